"""Addresses as the socket module names them.

On the one dual-stack socket of a node an IPv4 peer appears as an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2). That
form exists only between here and the socket; everybody else uses `Address` of wire/.
"""

from __future__ import annotations

import socket
from typing import Any

from meshnode.wire.address import Address

__all__ = ["Address", "SocketAddress", "for_socket", "from_socket"]

SocketAddress = tuple[Any, ...]
"""What the socket module takes and gives: (host, port), or (host, port, flow, scope) for IPv6."""


def from_socket(name: SocketAddress) -> Address:
    """The address behind a socket name."""
    return Address.of(name[0], name[1])


def for_socket(address: Address, family: int) -> SocketAddress | None:
    """The name of `address` for a socket of `family`; None where that family cannot reach it."""
    if family == socket.AF_INET6:
        return (address.host if address.is_ipv6 else f"::ffff:{address.host}", address.port, 0, 0)
    return None if address.is_ipv6 else (address.host, address.port)
