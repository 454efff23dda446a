"""Where a node can be reached: a literal IP address and a UDP port. Names are never looked up for a peer."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Self

IPV4_BYTES = 6
IPV6_BYTES = 18


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """`host` is an IPv4 or IPv6 address in its shortest form; an IPv4 address never appears mapped into IPv6."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "192.0.2.1:5", "[2001:db8::1]:5". Raises ValueError for anything else, host names among it."""
        host, colon, port = text.rpartition(":")
        if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 1 << 16:
            raise ValueError(f"expected an address and a port such as 192.0.2.1:9337, not {text[:60]!r}")
        bracketed = host.startswith("[") and host.endswith("]")
        if "%" in host:
            raise ValueError(f"an address with a scope means nothing elsewhere: {text[:60]!r}")
        if bracketed != (":" in host):
            raise ValueError(f"an IPv6 address stands in brackets: {text[:60]!r}")
        return cls.of(host[1:-1] if bracketed else host, int(port))

    @classmethod
    def of(cls, host: str, port: int) -> Self:
        """From what a socket reports; a mapped IPv4 address is unmapped, a scope is dropped. Raises ValueError."""
        found = ipaddress.ip_address(host.partition("%")[0] if ":" in host else host)
        mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
        return cls(str(mapped or found), port)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """From the packed form: 4 or 16 bytes of address and 2 of port, in network order.

        Raises ValueError for what is no address of one node, so that no peer can make us dial it.
        """
        if len(data) not in (IPV4_BYTES, IPV6_BYTES):
            raise ValueError("an address has 6 or 18 bytes")
        found = ipaddress.ip_address(data[:-2])
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped:
            raise ValueError("an IPv4 address is sent with 6 bytes")
        port = int.from_bytes(data[-2:], "big")
        _refuse_what_is_no_node(found, port)
        return cls(str(found), port)

    def to_bytes(self) -> bytes:
        """The packed form. Raises ValueError for what `from_bytes` refuses, as an address to bind to may be."""
        found = ipaddress.ip_address(self.host)
        _refuse_what_is_no_node(found, self.port)
        return found.packed + self.port.to_bytes(2, "big")

    @property
    def is_loopback(self) -> bool:
        """Reachable only from this machine."""
        return ipaddress.ip_address(self.host).is_loopback

    @property
    def is_private(self) -> bool:
        """Not routed on the internet: RFC 1918, link-local, unique local, loopback."""
        return ipaddress.ip_address(self.host).is_private

    @property
    def is_ipv6(self) -> bool:
        """Written with colons."""
        return ":" in self.host

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if self.is_ipv6 else f"{self.host}:{self.port}"


def _refuse_what_is_no_node(found: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> None:
    if not 0 < port < 1 << 16:
        raise ValueError("port 0 cannot be reached")
    packed = found.packed
    this_network = len(packed) == 4 and packed[0] == 0
    if this_network or found.is_unspecified or found.is_multicast or packed == b"\xff\xff\xff\xff":
        raise ValueError(f"{found} is no address of a node")
