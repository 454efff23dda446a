"""Reaching nodes behind address translation: through whom, with which candidates, who guesses, and when again.

Nothing here sends anything; mesh/traversal.py does, and protocol/14-traversal.md is what it follows. Candidates come
from a peer, which may name anything: only those are kept that cannot be somebody else's machine next to this one.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

from meshnode.core.effects import Member
from meshnode.wire.address import Address
from meshnode.wire.registry import Nat
from meshnode.wire.statements import SHORT_ID_BYTES, Dynamic

MOST_RELAYS_TRIED = 3
RESERVATIONS = 2
UNKNOWN_RTT_S = 0.25
"""What a way of which nothing is known counts for: behind those that were measured."""
HIDDEN_HEAD_START_S, NEAR_HEAD_START_S, HEAD_START_S = 0.0, 0.05, 0.15
"""How long a direct dial is alone: to a peer behind NAT, to one that may stand beside us, to everybody else."""
RETRY_S = (5.0, 60.0)
MOST_CANDIDATES = 8
MOST_OF_A_HOST = 3
MICROSECONDS = 1_000_000

GuessRole = Literal["opener", "prober"]

_IPV4_BLOCKS = tuple(
    ipaddress.IPv4Network(block) for block in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")
)
"""RFC 1918, and the addresses between a provider and its customers (RFC 6598)."""
_ULA = ipaddress.IPv6Network("fc00::/7")
_ULA_BITS = 48
PUBLIC = "public"


# --- which network an address belongs to ------------------------------------------------------------------------------


def network_of(host: str) -> str | None:
    """ "public", the name of a private network, or None for what means nothing to another node: link-local addresses,
    documentation and discard prefixes, multicast, text that is no address.
    """
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return None
    if found.is_loopback:
        return "loopback"
    if found.is_multicast or found.is_link_local or found.is_unspecified or found.is_reserved:
        return None
    if isinstance(found, ipaddress.IPv6Address):
        if found in _ULA:
            return str(ipaddress.IPv6Network((int(found) >> (128 - _ULA_BITS) << (128 - _ULA_BITS), _ULA_BITS)))
        return None if found.is_private else PUBLIC
    for block in _IPV4_BLOCKS:
        if found in block:
            return str(block)
    return None if found.is_private else PUBLIC


def share_a_network(some: Iterable[Address], others: Iterable[Address]) -> bool:
    """Whether the two may stand side by side: both have addresses of one private network."""
    mine = {network_of(address.host) for address in some} - {None, PUBLIC}
    return any(network_of(address.host) in mine for address in others)


def sensible_candidates(named: Iterable[Address], own: Collection[Address]) -> list[Address]:
    """Of the addresses that a peer names, those that may be punched, at most MOST_CANDIDATES.

    Private and loopback ones only where this node has one of the same network, never one of our own sockets, and not
    many ports of one host.
    """
    mine = {network_of(address.host) for address in own} | {PUBLIC}
    kept: list[Address] = []
    for address in dict.fromkeys(named):
        network = network_of(address.host)
        if network is None or network not in mine or address in own:
            continue
        if sum(other.host == address.host for other in kept) < MOST_OF_A_HOST:
            kept.append(address)
    return kept[:MOST_CANDIDATES]


# --- who is behind what -----------------------------------------------------------------------------------------------


def is_hidden(dynamic: Dynamic | None, addresses: Sequence[Address]) -> bool:
    """Whether a peer probably cannot be dialled: it says that it is behind NAT, or names no public address."""
    if dynamic is not None and dynamic.nat in (Nat.CONE, Nat.SYMMETRIC):
        return True
    return all(network_of(address.host) != PUBLIC for address in addresses)


def head_start_s(dynamic: Dynamic | None, addresses: Sequence[Address], own: Sequence[Address]) -> float:
    """How long to dial a peer directly before a relay is asked as well."""
    if not is_hidden(dynamic, addresses):
        return HEAD_START_S
    return NEAR_HEAD_START_S if share_a_network(addresses, own) else HIDDEN_HEAD_START_S


def needs_relays(nat: Nat, own: Sequence[Address]) -> bool:
    """Whether others reach this node only through somebody else. `nat` is what it tells them of itself."""
    if nat is Nat.NONE:
        return False
    return nat is not Nat.UNKNOWN or all(network_of(address.host) != PUBLIC for address in own)


def guess_role(mine: int, theirs: int) -> GuessRole | None:
    """What this end does when ports are guessed: only one of the two may be behind a symmetric NAT.

    The symmetric end opens many ports, the other one looks for any of them (network.md 3.3: 5 of 5 within 4.5 s).
    """
    if mine == theirs or Nat.SYMMETRIC not in (mine, theirs) or Nat.NONE in (mine, theirs):
        return None
    return "opener" if mine == Nat.SYMMETRIC else "prober"


def guess_target(candidates: Iterable[Address], observed: Address | None) -> str | None:
    """The host at which ports may be guessed: the one where the relay sees the peer, if the peer names it as well.

    Thousands of datagrams must not go to a host because a peer alone says so.
    """
    if observed is None or network_of(observed.host) != PUBLIC:
        return None
    return observed.host if any(address.host == observed.host for address in candidates) else None


# --- which relay ------------------------------------------------------------------------------------------------------


def relays_to(
    target: bytes,
    members: Mapping[bytes, Member],
    linked: Mapping[bytes, float | None],
    avoid: Collection[bytes] = (),
) -> list[bytes]:
    """Through whom to reach `target`, best first: nodes that relay, by the round trip over them.

    `linked` are the nodes that we have a direct link to, with its round trip in seconds. One of which no statement is
    known may relay or not: it is asked last, as are those to `avoid`.
    """
    there = _neighbours(members.get(target))
    ranked: list[tuple[bool, bool, float, bytes]] = []
    for node, rtt_s in linked.items():
        member = members.get(node)
        dynamic = None if member is None else member.dynamic
        if node == target or (dynamic is not None and not dynamic.relay):
            continue
        beyond_s = there.get(node[:SHORT_ID_BYTES], _neighbours(member).get(target[:SHORT_ID_BYTES]))
        # Whoever neither end calls a neighbour may still be linked to both, as everybody is in a small mesh.
        known = dynamic is not None and beyond_s is not None
        total_s = _or_unknown(rtt_s) + _or_unknown(beyond_s)
        ranked.append((node in avoid, not known, total_s, node))
    return [node for *_, node in sorted(ranked)][:MOST_RELAYS_TRIED]


def relays_for_me(
    members: Mapping[bytes, Member],
    neighbours: Collection[bytes],
    linked: Mapping[bytes, float | None],
    held: Collection[bytes],
    avoid: Collection[bytes] = (),
) -> list[bytes]:
    """With whom to reserve a place, best first: those held already, then near neighbours that relay.

    Others find a relay among the neighbours that this node names in its statement; one without NAT is preferred.
    """
    ranked: list[tuple[bool, bool, bool, bool, float, bytes]] = []
    for node, rtt_s in linked.items():
        member = members.get(node)
        if member is None or member.dynamic is None or not member.dynamic.relay:
            continue
        behind_nat = member.dynamic.nat in (Nat.CONE, Nat.SYMMETRIC)
        ranked.append((node in avoid, node not in held, node not in neighbours, behind_nat, _or_unknown(rtt_s), node))
    return [node for *_, node in sorted(ranked)]


def _neighbours(member: Member | None) -> dict[bytes, float]:
    if member is None or member.dynamic is None:
        return {}
    return {each.node: each.rtt_us / MICROSECONDS for each in member.dynamic.neighbours}


def _or_unknown(rtt_s: float | None) -> float:
    return UNKNOWN_RTT_S if rtt_s is None else rtt_s


# --- when again -------------------------------------------------------------------------------------------------------


class Retries:
    """When to look for a direct path to one peer: at once, after 5 s, after a minute, then only when something has
    changed, and never twice within 5 s.
    """

    __slots__ = ("_circumstances", "_failed", "_failed_at", "_next_at")

    def __init__(self, now: float) -> None:
        self._failed = 0
        self._failed_at = 0.0
        self._next_at: float | None = now
        self._circumstances: object = None

    def due_at(self, circumstances: object, now: float) -> float | None:
        """When the next attempt is due; None: not before something changes.

        `circumstances` are all that an attempt depends on: addresses and kinds of NAT of both ends.
        """
        if self._failed and circumstances != self._circumstances:
            self._failed = 1
            soon = max(now, self._failed_at + RETRY_S[0])
            self._next_at = soon if self._next_at is None else min(self._next_at, soon)
        self._circumstances = circumstances
        return self._next_at

    def failed(self, now: float) -> None:
        """An attempt was in vain."""
        self._next_at = now + RETRY_S[self._failed] if self._failed < len(RETRY_S) else None
        self._failed += 1
        self._failed_at = now
