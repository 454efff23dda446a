"""The space of the keys, and how addresses are weighed in the hash table.

Distance is the exclusive or of two keys, as a number (Maymounkov and Mazieres 2002). Keys of nodes cost nothing: an
attacker has as many as it likes near any key. Addresses cost something, so nodes are counted by prefix: the /24 of an
IPv4 address, the /56 of an IPv6 address. Nobody pays for addresses inside of a house, and nobody outside can have one:
there the count is wide.
"""

from __future__ import annotations

import ipaddress
from enum import IntEnum
from functools import lru_cache

from meshnode.core.open_policy import prefix_of
from meshnode.core.randomness import Randomness
from meshnode.wire.address import Address
from meshnode.wire.dht import node_key

KEY_BITS = 256
WIDE = 64
"""How many of one prefix inside of a house, or of this machine, count as many."""
REMEMBERED = 1 << 14
CHANCE_BITS = 32

_DETOURS = ipaddress.IPv6Network("100::/64")
_SHARED = ipaddress.IPv4Network("100.64.0.0/10")


class Scope(IntEnum):
    """From where an address can be reached; a greater one from further away.

    DETOUR is the address of a way through another node (RFC 6666 prefix): it means nothing to anybody else.
    """

    DETOUR = 0
    LOOPBACK = 1
    PRIVATE = 2
    PUBLIC = 3


@lru_cache(REMEMBERED)
def scope(address: Address) -> Scope:
    """From where an address can be reached."""
    found = ipaddress.ip_address(address.host)
    if found in _DETOURS:
        return Scope.DETOUR
    if found.is_loopback:
        return Scope.LOOPBACK
    # RFC 6598 addresses are those of a provider's own translation: nobody outside reaches them.
    if found.is_private or found.is_link_local or found in _SHARED:
        return Scope.PRIVATE
    return Scope.PUBLIC


@lru_cache(REMEMBERED)
def prefix(address: Address) -> str:
    """The network that an address stands for when heads are counted."""
    return prefix_of(address).text


@lru_cache(REMEMBERED)
def most(address: Address, narrow: int) -> int:
    """How many nodes of the prefix of this address may be counted where `narrow` of a public one may."""
    return max(narrow, WIDE) if scope(address) in (Scope.LOOPBACK, Scope.PRIVATE) else narrow


@lru_cache(REMEMBERED)
def nearest_scope(addresses: tuple[Address, ...]) -> Scope:
    """The scope of the address that reaches least far; DETOUR where there is none."""
    return min(map(scope, addresses), default=Scope.DETOUR)


@lru_cache(REMEMBERED)
def least_told(other: Address) -> Scope:
    """From where an address must be reached at least, that a node at `other` may be told of, or believed about.

    Nobody far away has any business with an address of a house, and nobody at all with a detour of this node.
    """
    at = scope(other)
    return Scope.PUBLIC if at is Scope.DETOUR else at


def told_to(addresses: tuple[Address, ...], other: Address) -> tuple[Address, ...]:
    """Those of the addresses that a node at `other` may be told of, or believed about."""
    least = least_told(other)
    if nearest_scope(addresses) >= least:
        return addresses
    return tuple(address for address in addresses if scope(address) >= least)


@lru_cache(REMEMBERED)
def place(node: bytes) -> int:
    """Where a node stands, as a number."""
    return number(node_key(node))


def number(key: bytes) -> int:
    """A key as a number."""
    return int.from_bytes(key, "big")


def key_bytes(key: int) -> bytes:
    """The key of a number."""
    return key.to_bytes(KEY_BITS // 8, "big")


def far_key(own: int, bits: int, random: Randomness) -> int:
    """A key of which the distance to `own` has that many bits (1 to 256), its place among them by chance."""
    distance = 0
    for _ in range(0, bits, CHANCE_BITS):
        distance = (distance << CHANCE_BITS) | int(random.random() * (1 << CHANCE_BITS))
    distance &= (1 << (bits - 1)) - 1
    return own ^ distance ^ (1 << (bits - 1))
