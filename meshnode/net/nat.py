"""What the address translation before this node does, from where peers say that they see it. Pure.

A NAT that gives a socket one outside endpoint for all destinations (endpoint-independent mapping, RFC 4787, 4.1) is
called `cone` here, whatever it filters: a punch opens it. One that gives another for each is `symmetric`: nobody can
say beforehand where the next peer will see us. Two peers at different addresses are what it takes to tell; a single one
could send everybody elsewhere.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from meshnode.wire.address import Address
from meshnode.wire.registry import Nat

WITNESSES = 2
"""Peers at different addresses that must have spoken before a kind of NAT is believed."""


@dataclass(frozen=True, slots=True)
class Observation:
    """A peer at `observer` saw datagrams of this node's one socket come from `seen`."""

    observer: Address
    seen: Address


def classify(observations: Iterable[Observation], local: Collection[Address] = ()) -> Nat:
    """The kind of NAT between this node and its peers; `local` are the addresses of its own socket.

    Of several observations from one host the last counts, so that a peer has one voice however many ports it has. What
    peers on the local network see says nothing of the router: once anybody sees a global address, only such count; and
    IPv4 is judged alone where it was observed, as IPv6 is hardly ever translated. Nobody tells a node that is only ever
    dialled; an own IPv4 address of the internet says then that there is no NAT.
    """
    voices = {found.observer.host: found.seen for found in observations}
    seen = list(voices.values())
    for usable in (lambda address: not address.is_ipv6, is_global):
        seen = [address for address in seen if usable(address)] or seen
    if not seen:
        seen = [address for address in local if is_global(address) and not address.is_ipv6]
    if seen and all(address in local for address in seen):
        return Nat.NONE
    if len(seen) < WITNESSES:
        return Nat.UNKNOWN
    _, most = Counter(seen).most_common(1)[0]
    return Nat.CONE if most >= WITNESSES else Nat.SYMMETRIC


def is_global(address: Address) -> bool:
    """Routed on the internet: neither private (RFC 1918), nor of a carrier's NAT (RFC 6598), nor of any special use."""
    found = ipaddress.ip_address(address.host)
    return found.is_global and not found.is_multicast
