"""Which nodes are on this network, as far as DNS records tell that anybody may have sent. No sockets, no clock.

A service is `mn-` and eight random characters; its records are a pointer (PTR), a port (SRV), a text (TXT: version, tag
of the mesh, whether a code is shown) and addresses (A, AAAA). What is odd or too large is passed over without a word,
and the number of services kept is bounded. Nothing here is proof of anything: a neighbour is a hint of where to dial.
Protocol: 08-pairing; the records are those of RFC 6763.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from meshnode.wire.address import Address
from meshnode.wire.registry import LIMIT_ADDRESSES, VERSION

MAX_NEIGHBOURS = 64
TEXT_BYTES = 100
TAG_BYTES = 8
_DAY_S = 86_400
_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
_INSTANCE = re.compile(r"mn-[a-z2-7]{8}")
_TAG = re.compile(r"[0-9a-f]{16}")
_PRIVATE = tuple(map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")))
"""RFC 1918 and RFC 4193. Carrier-grade NAT (100.64/10) is missing: its far end is not this house."""


def day_of(now_s: float) -> int:
    """Days since 1970 in UTC, of seconds since then."""
    return int(now_s // _DAY_S)


def mesh_tag(mesh: bytes, day: int) -> str:
    """By which members of a mesh know each other on that day: 16 hex digits of BLAKE2s over its key and the day."""
    return hashlib.blake2s(mesh + day.to_bytes(4, "big")).digest()[:TAG_BYTES].hex()


def tags_around(mesh: bytes | None, day: int) -> frozenset[str]:
    """The tags that members may show on that day: clocks differ, and midnight comes to all at once."""
    return frozenset() if mesh is None else frozenset(mesh_tag(mesh, each) for each in (day - 1, day, day + 1))


def new_instance(draw: Callable[[int], int]) -> str:
    """A name for one day on one network, that says nothing. `draw(n)` gives a number below n."""
    return "mn-" + "".join(_BASE32[draw(len(_BASE32))] for _ in range(8))


def lan_hosts(hosts: Iterable[str], *, setting: str) -> tuple[str, ...]:
    """Of these interface addresses, those on which to announce and to listen; at most LIMIT_ADDRESSES.

    `setting` is "off" (none), "auto" (private networks only) or "on" (all that others can dial). Link-local addresses
    never: those of IPv6 mean nothing without an interface, and a mesh names neither kind as an address of a node.
    Loopback only with "on" and where nothing else is given, as by a node that is bound to it; of IPv4, as the loopback
    of IPv6 carries no multicast. Raises ValueError for another setting.
    """
    if setting not in ("off", "auto", "on"):
        raise ValueError(f"expected off, auto or on, not {setting!r}")
    if setting == "off":
        return ()
    usable: list[_Literal]
    literals = [found for found in map(_literal, dict.fromkeys(hosts)) if found is not None]
    if setting == "on" and literals and all(found.is_loopback for found in literals):
        usable = [found for found in literals if found.version == 4]
    else:
        usable = [found for found in literals if _is_dialled(found) and (setting == "on" or _is_private(found))]
    return tuple(str(found) for found in usable[:LIMIT_ADDRESSES])


_Literal = ipaddress.IPv4Address | ipaddress.IPv6Address


def _literal(host: str) -> _Literal | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_dialled(found: _Literal) -> bool:
    return not (found.is_loopback or found.is_link_local or found.is_multicast or found.is_unspecified)


def _is_private(found: _Literal) -> bool:
    return any(found in network for network in _PRIVATE)


# --- the text of a service ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Text:
    """What a TXT record says: the tag of a mesh or "", and whether a code is shown."""

    tag: str = ""
    shows_code: bool = False

    def encode(self) -> bytes:
        """As in RFC 6763, 6.1: strings of `key=value`, each after its length."""
        entries = [f"v={VERSION}"] + [f"g={self.tag}"] * bool(self.tag) + ["s=1"] * self.shows_code
        return b"".join(bytes([len(entry)]) + entry.encode("ascii") for entry in entries)

    @classmethod
    def decode(cls, data: bytes) -> Text | None:
        """None for what is too long, broken, or of another version. Of a key that comes twice the first one counts."""
        if len(data) > TEXT_BYTES:
            return None
        values: dict[bytes, bytes] = {}
        at = 0
        while at < len(data):
            entry = data[at + 1 : at + 1 + data[at]]
            if len(entry) != data[at]:
                return None
            at += 1 + len(entry)
            key, _, value = entry.partition(b"=")
            values.setdefault(key.lower(), value)
        if values.get(b"v") != str(VERSION).encode("ascii"):
            return None
        tag = values.get(b"g", b"").decode("latin-1")
        return cls(tag if _TAG.fullmatch(tag) else "", values.get(b"s") == b"1")


# --- services -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A node that announces itself: where it says that it can be dialled, and what it says of itself.

    `ours`: it shows the tag of our mesh, which every listener could repeat. `shows_code`: it waits for a guest.
    """

    instance: str
    addresses: tuple[Address, ...]
    ours: bool
    shows_code: bool


@dataclass(slots=True)
class _Service:
    port: int = 0
    text: Text | None = None
    hosts: dict[bytes, None] = field(default_factory=dict)
    """Packed addresses, in the order in which they came."""

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Once the port is known."""
        return tuple(Address.from_bytes(host + self.port.to_bytes(2, "big")) for host in self.hosts)


class Neighbourhood:
    """The services that were seen. Every method takes what stands in a record, and says whether anything is new."""

    def __init__(self, own: str, *, loopback: bool = False) -> None:
        """`own` is the instance that is announced here, and left out.

        `loopback` admits loopback addresses, for a node that is bound to one.
        """
        self._own = own
        self._loopback = loopback
        self._services: dict[str, _Service] = {}
        self.tags: frozenset[str] = frozenset()

    @property
    def neighbours(self) -> tuple[Neighbour, ...]:
        """Those of which everything is known that it takes to dial them, the oldest first."""
        return tuple(
            Neighbour(instance, service.addresses, self._is_ours(service), service.text.shows_code)
            for instance, service in self._services.items()
            if service.text is not None and service.port and service.hosts
        )

    def pointed(self, instance: str) -> bool:
        """A pointer names the service. Where there is no room, one goes that is neither ours nor shows a code."""
        if instance in self._services or instance == self._own or not _INSTANCE.fullmatch(instance):
            return False
        if len(self._services) >= MAX_NEIGHBOURS:
            useless = (name for name, service in self._services.items() if not self._is_useful(service))
            victim = next(useless, None)
            if victim is None:
                return False
            del self._services[victim]
        self._services[instance] = _Service()
        return True

    def left(self, instance: str) -> bool:
        """Its pointer was taken back, or has run out."""
        return self._services.pop(instance, None) is not None

    def served(self, instance: str, port: int) -> bool:
        """It can be dialled at this port."""
        service = self._services.get(instance)
        if service is None or service.port == port or not 0 < port < 1 << 16:
            return False
        service.port = port
        return True

    def said(self, instance: str, data: bytes) -> bool:
        """This is its text; with one that cannot be read it is no neighbour any more."""
        service = self._services.get(instance)
        text = Text.decode(data)
        if service is None or service.text == text:
            return False
        service.text = text
        return True

    def lives(self, instance: str, host: bytes) -> bool:
        """This is one of its addresses: 4 or 16 bytes. Those at which no other machine is dialled are passed over."""
        service = self._services.get(instance)
        if service is None or host in service.hosts or len(service.hosts) >= LIMIT_ADDRESSES:
            return False
        try:
            found = ipaddress.ip_address(Address.from_bytes(host + b"\0\1").host)
        except ValueError:
            return False
        if not _is_dialled(found) and not (self._loopback and found.is_loopback):
            return False
        service.hosts[host] = None
        return True

    def _is_ours(self, service: _Service) -> bool:
        return service.text is not None and service.text.tag in self.tags

    def _is_useful(self, service: _Service) -> bool:
        return self._is_ours(service) or (service.text is not None and service.text.shows_code)
