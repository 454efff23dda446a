"""Addresses as the socket module names them.

On the one dual-stack socket of a node an IPv4 peer appears as an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2). That
form exists only between here and the socket; everybody else uses `Address` of wire/.

Addresses of the discard-only prefix 100::/64 (RFC 6666) are *virtual*: they stand for a way that is not "this socket to
that address" (`detours.py`), and never leave the node.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

from meshnode.wire.address import Address

__all__ = ["Address", "SocketAddress", "for_socket", "from_socket", "is_virtual"]

_VIRTUAL_BEGINNING = "100:"
_VIRTUAL = ipaddress.IPv6Network("100::/64")

SocketAddress = tuple[Any, ...]
"""What the socket module takes and gives: (host, port), or (host, port, flow, scope) for IPv6."""


def from_socket(name: SocketAddress) -> Address:
    """The address behind a socket name."""
    return Address.of(name[0], name[1])


def for_socket(address: Address, family: int) -> SocketAddress | None:
    """The name of `address` for a socket of `family`; None where that family cannot reach it.

    A virtual address has the same name everywhere, as no socket ever gets to see it.
    """
    if is_virtual(address):
        return (address.host, address.port, 0, 0)
    if family == socket.AF_INET6:
        return (address.host if address.is_ipv6 else f"::ffff:{address.host}", address.port, 0, 0)
    return None if address.is_ipv6 else (address.host, address.port)


def is_virtual(address: Address) -> bool:
    """Whether the address stands for a detour. Nobody outside this node may name one."""
    return is_virtual_name((address.host, address.port))


def is_virtual_name(name: SocketAddress) -> bool:
    """The same of a name."""
    return name[0].startswith(_VIRTUAL_BEGINNING) and ipaddress.IPv6Address(name[0]) in _VIRTUAL
