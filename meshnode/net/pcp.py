"""Port Control Protocol (RFC 6887): the MAP request for one UDP port, and what may answer it.

`request` and `read` are pure; `map_port` and `unmap_port` ask a router.
"""

from __future__ import annotations

import ipaddress
import os
import struct
from collections.abc import Sequence
from contextlib import suppress

from meshnode.net.gateway import Gateway
from meshnode.net.mapping import WANTED_LIFETIME_S, Mapping, NoMapping, granted
from meshnode.net.router_question import PAUSES_S, ask
from meshnode.wire.address import Address

WAY = "pcp"
VERSION = 2
NONCE_BYTES = 12
UDP = 17
_MAP = 1
_RESPONSE = 0x80
_HEAD = struct.Struct("!BBxBII12x")  # version, opcode, result, lifetime, epoch: as a response has them
_BODY = struct.Struct("!12sBxxxHH16s")  # nonce, protocol, internal port, external port, external address
_MOST_BYTES = 1100  # RFC 6887, 7
_UNSUPPORTED_VERSION = 1
RESULTS = {
    1: "it speaks another version",
    2: "it is not allowed to",
    3: "it says that the request is malformed",
    4: "it does not know the request",
    5: "it does not know an option",
    6: "it says that an option is malformed",
    7: "it has a failure of its network",
    8: "it has no resources left",
    9: "it does not forward this protocol",
    10: "this machine has had as many ports as it may",
    11: "it cannot give that outside port",
    12: "the request came from another address than it names: there is a second NAT between",
    13: "it would exceed the number of peers",
}
"""Result codes (RFC 6887, 7.4), as the end of a sentence."""


def request(nonce: bytes, own: str, port: int, lifetime_s: int, suggested: Address | None = None) -> bytes:
    """A MAP request of the host `own` for its UDP `port`; lifetime 0 removes the mapping."""
    head = struct.pack("!BBxxI16s", VERSION, _MAP, lifetime_s, _as_ipv6(own))
    outside = suggested or Address("0.0.0.0", port)
    return head + _BODY.pack(nonce, UDP, port, outside.port, _as_ipv6(outside.host))


def read(data: bytes, nonce: bytes, port: int) -> tuple[Address, int] | None:
    """The outside address and the lifetime in seconds; None for what does not answer that request.

    Raises NoMapping when the router says no.
    """
    if not 4 <= len(data) <= _MOST_BYTES:
        return None
    if data[0] == 0 and data[1] >= _RESPONSE and data[3] == _UNSUPPORTED_VERSION:
        # A router that knows NAT-PMP only (RFC 6886, 3.5) says so in its own shape.
        raise NoMapping("the router speaks NAT-PMP only", answered=False)
    if len(data) < _HEAD.size or data[0] != VERSION or data[1] != _RESPONSE | _MAP:
        return None
    _, _, result, lifetime_s, _ = _HEAD.unpack_from(data)
    if len(data) < _HEAD.size + _BODY.size:
        return None
    found_nonce, protocol, internal, external, host = _BODY.unpack_from(data, _HEAD.size)
    if (found_nonce, protocol, internal) != (nonce, UDP, port):
        return None
    if result:
        text = RESULTS.get(result, f"it answers with the unknown code {result}")
        raise NoMapping(f"the router refuses: {text}", answered=result != _UNSUPPORTED_VERSION)
    found = ipaddress.IPv6Address(host)
    return Address(str(found.ipv4_mapped or found), external), lifetime_s


async def map_port(
    gateway: Gateway, port: int, before: Mapping | None = None, *, pauses_s: Sequence[float] = PAUSES_S
) -> Mapping:
    """Ask for the port, or to renew `before`. Raises NoMapping."""
    nonce = before.secret if before else os.urandom(NONCE_BYTES)
    suggested = before.external if before else None
    asked = request(nonce, gateway.own, port, WANTED_LIFETIME_S, suggested)
    external, lifetime_s = await ask(gateway, asked, lambda data: read(data, nonce, port), pauses_s=pauses_s)
    try:
        return granted(external.host, external.port, port, lifetime_s, WAY, nonce)
    except NoMapping:
        with suppress(NoMapping):  # what is of no use is not left behind
            await unmap_port(gateway, Mapping(external, port, 0.0, WAY, nonce), pauses_s=pauses_s[:1])
        raise


async def unmap_port(gateway: Gateway, mapping: Mapping, *, pauses_s: Sequence[float] = PAUSES_S[:1]) -> None:
    """Give it back. Raises NoMapping when nobody confirms it."""
    asked = request(mapping.secret, gateway.own, mapping.port, 0)
    await ask(gateway, asked, lambda data: read(data, mapping.secret, mapping.port), pauses_s=pauses_s)


def _as_ipv6(host: str) -> bytes:
    found = ipaddress.ip_address(host)
    return ipaddress.IPv6Address(f"::ffff:{found}").packed if found.version == 4 else found.packed
