"""NAT Port Mapping Protocol (RFC 6886): what routers know that are older than PCP, Apple's among them.

Two questions: for the outside address, and for one UDP port. No answer carries more of the question than the port, so
a forged one can only be told by where it comes from. `*_request` and `read_*` are pure.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

from meshnode.net.gateway import Gateway
from meshnode.net.mapping import WANTED_LIFETIME_S, Mapping, NoMapping, granted, outside
from meshnode.net.router_question import PAUSES_S, ask

WAY = "nat-pmp"
_VERSION = 0
_ADDRESS, _MAP_UDP = 0, 1
_RESPONSE = 128
_HEAD = struct.Struct("!BBHI")  # version, opcode, result, seconds since the router started
_MAPPED = struct.Struct("!HHI")  # internal port, external port, lifetime
RESULTS = {
    1: "it speaks another version",
    2: "it is not allowed to",
    3: "it has no connection itself",
    4: "it has no resources left",
    5: "it does not know the request",
}
"""Result codes (RFC 6886, 3.5), as the end of a sentence."""


def address_request() -> bytes:
    """What is the outside address?"""
    return struct.pack("!BB", _VERSION, _ADDRESS)


def map_request(port: int, external_port: int, lifetime_s: int) -> bytes:
    """Forward this UDP port. Lifetime 0, with outside port 0, removes the mapping."""
    return struct.pack("!BBHHHI", _VERSION, _MAP_UDP, 0, port, external_port, lifetime_s)


def read_address(data: bytes) -> str | None:
    """The outside address; None for what is no answer to that. Raises NoMapping when the router says no."""
    if not _is_answer(data, _ADDRESS, 12):
        return None
    return socket.inet_ntoa(data[8:12])


def read_mapping(data: bytes, port: int) -> tuple[int, int] | None:
    """The outside port and the lifetime in seconds; None for what is no answer to that. Raises NoMapping."""
    if not _is_answer(data, _MAP_UDP, 16):
        return None
    internal, external, lifetime_s = _MAPPED.unpack_from(data, _HEAD.size)
    return (external, lifetime_s) if internal == port else None


def _is_answer(data: bytes, opcode: int, size_bytes: int) -> bool:
    if len(data) < _HEAD.size or len(data) > 2 * size_bytes:
        return False
    version, found, result, _ = _HEAD.unpack_from(data)
    if version != _VERSION or found != _RESPONSE | opcode:
        return False
    if result:
        text = RESULTS.get(result, f"it answers with the unknown code {result}")
        raise NoMapping(f"the router refuses: {text}")
    return len(data) >= size_bytes


async def map_port(
    gateway: Gateway, port: int, before: Mapping | None = None, *, pauses_s: Sequence[float] = PAUSES_S
) -> Mapping:
    """Ask for the port, or to renew `before`. Raises NoMapping."""
    host = outside(await ask(gateway, address_request(), read_address, pauses_s=pauses_s))
    wanted = map_request(port, before.external.port if before else port, WANTED_LIFETIME_S)
    external_port, lifetime_s = await ask(gateway, wanted, lambda data: read_mapping(data, port), pauses_s=pauses_s)
    return granted(host, external_port, port, lifetime_s, WAY)


async def unmap_port(gateway: Gateway, mapping: Mapping, *, pauses_s: Sequence[float] = PAUSES_S[:1]) -> None:
    """Give it back. Raises NoMapping when nobody confirms it."""
    asked = map_request(mapping.port, 0, 0)
    await ask(gateway, asked, lambda data: read_mapping(data, mapping.port), pauses_s=pauses_s)
