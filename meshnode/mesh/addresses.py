"""Under which addresses this node tells others to reach it.

The port is that of the one socket. The hosts are those of the interfaces that are up, and what peers see us come from
when two of them agree: one alone could send everybody elsewhere. Loopback is named only by a node that is bound to it,
or that has nothing else: then its peers are on the same machine.
"""

from __future__ import annotations

import ipaddress
import socket
from collections import Counter, OrderedDict
from collections.abc import Container, Iterable, Sequence

import psutil

from meshnode.net.nat import Observation
from meshnode.wire.address import Address
from meshnode.wire.registry import LIMIT_ADDRESSES

AGREEING = 2
MOST_OUTSIDE = 4
OBSERVERS = 64
_LOOPBACK = ipaddress.IPv4Address("127.0.0.1")
_VIRTUAL = ("docker", "br-", "virbr", "lxc", "cni", "podman")
"""Bridges to containers on the same machine: nobody else reaches anything through them, so they come last."""


def interface_hosts() -> list[str]:
    """The addresses of the interfaces that are up, those of bridges to containers last. Reads the system tables."""
    states = psutil.net_if_stats()
    found: list[tuple[bool, str]] = []
    for name, entries in psutil.net_if_addrs().items():
        if name in states and not states[name].isup:
            continue
        for entry in entries:
            if entry.family in (socket.AF_INET, socket.AF_INET6):
                found.append((name.startswith(_VIRTUAL), entry.address.partition("%")[0]))
    return [host for _, host in sorted(found, key=lambda item: item[0])]


def advertised(bound: Address, hosts: Iterable[str], observed: Sequence[Address] = ()) -> tuple[Address, ...]:
    """What to name, best first, at most LIMIT_ADDRESSES.

    A node bound to one address names that one. IPv6 addresses are named only if the socket has both families.
    `observed` are what the outside knows of this node, a mapping of its router among them: MOST_OUTSIDE have their
    place whatever interfaces there are.
    """
    literal = ipaddress.ip_address(bound.host)
    if not literal.is_unspecified:
        return tuple(dict.fromkeys([bound, *observed]))[:LIMIT_ADDRESSES]
    both = literal.version == 6
    usable = [_usable(host) for host in hosts]
    kept = [address for address in usable if address is not None and (both or address.version == 4)]
    # Within a network the private IPv4 address is the one that works most often; global ones are for everybody else.
    kept.sort(key=lambda address: (address.version == 6, not address.is_private))
    named = [Address(str(address), bound.port) for address in kept or [_LOOPBACK]]
    outside = observed[:MOST_OUTSIDE]
    return tuple(dict.fromkeys([*named[: LIMIT_ADDRESSES - len(outside)], *outside, *named]))[:LIMIT_ADDRESSES]


def _usable(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    # A link-local IPv6 address means nothing without the name of an interface, which differs on every machine.
    refused = address.is_loopback or address.is_unspecified or address.is_multicast or address.is_link_local
    return None if refused else address


class Observed:
    """How peers see this node. Pure, and bounded."""

    def __init__(self) -> None:
        self._by_peer: OrderedDict[bytes, Observation] = OrderedDict()

    def note(self, peer: bytes, address: Address, observer: Address) -> None:
        """`peer`, which is itself at `observer`, sees this node at `address`."""
        self._by_peer[peer] = Observation(observer, address)
        self._by_peer.move_to_end(peer)
        if len(self._by_peer) > OBSERVERS:
            self._by_peer.popitem(last=False)

    def of(self, peers: Container[bytes]) -> list[Observation]:
        """What some of the peers see, those who spoke last at the end."""
        return [observation for peer, observation in self._by_peer.items() if peer in peers]

    def agreed(self) -> tuple[Address, ...]:
        """The addresses that peers at two hosts see, the most seen first, without those of no use to others."""
        # One host may have as many identities as it likes.
        voices = {(observation.seen, observation.observer.host) for observation in self._by_peer.values()}
        seen = Counter(address for address, _ in voices)
        return tuple(address for address, count in seen.most_common(2) if count >= AGREEING and not address.is_loopback)
