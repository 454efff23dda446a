"""What a router grants when it is asked to forward a UDP port, and what of its answer is believed. Pure.

The three protocols (net/pcp, net/nat_pmp, net/upnp) end in the same `Mapping`. A router is a stranger like any other:
it may be broken, or somebody on the local network who answers in its place.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshnode.net.nat import is_global
from meshnode.wire.address import Address

WANTED_LIFETIME_S = 7200
SHORTEST_LIFETIME_S = 60
"""A router that forgets sooner would have to be asked all the time."""


class NoMapping(Exception):
    """The router forwards nothing; the text says why, in words for people. `answered`: there is a router that speaks
    this protocol.
    """

    def __init__(self, text: str, *, answered: bool = True) -> None:
        super().__init__(text)
        self.answered = answered


@dataclass(frozen=True, slots=True)
class Mapping:
    """Datagrams to `external` arrive at `port` of this machine, for `lifetime_s` from now on.

    `way` is the protocol; `secret` what it takes to renew or remove the mapping, if the protocol has that.
    """

    external: Address
    port: int
    lifetime_s: float
    way: str
    secret: bytes = b""


def outside(host: str) -> str:
    """The router's address outside, in its shortest form. Raises NoMapping unless it is one of the internet: otherwise
    the router lies, or is itself behind a NAT, and a port that it forwards helps nobody.
    """
    try:
        found = Address.of(host, 1)
    except ValueError:
        raise NoMapping("the router names an outside address that is none") from None
    if not is_global(found):
        raise NoMapping(f"the router has no address of the internet itself: its outside is {found.host}")
    return found.host


def granted(
    external_host: str, external_port: int, port: int, lifetime_s: int, way: str, secret: bytes = b""
) -> Mapping:
    """The mapping that a router's figures stand for.

    Raises NoMapping as `outside` does, for port 0, and for a lifetime that is too short. A longer lifetime than was
    wanted is not relied upon.
    """
    host = outside(external_host)
    if not 0 < external_port < 1 << 16:
        raise NoMapping("the router names an outside port that is none")
    if lifetime_s < SHORTEST_LIFETIME_S:
        raise NoMapping(f"the router would forward the port for {lifetime_s} s only")
    return Mapping(Address(host, external_port), port, float(min(lifetime_s, WANTED_LIFETIME_S)), way, secret)
