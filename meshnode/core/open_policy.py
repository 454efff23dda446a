"""Whom a node lets into an open mesh: anybody, within bounds that a crowd of made-up identities cannot stretch.

An identity costs nothing, an address does. So identities are counted by the network prefix they come from, as seen on
the link, where a return path has been proven, or, of nodes that are only heard of, as they name it: at most four a
/24 (IPv4) or /56 (IPv6, what one customer gets; RFC 6177). Addresses that are not global (loopback, private networks,
relayed links) say little of who is behind them; they have a wider bound.

Pure: `now` is monotonic seconds. Whatever is refused comes back as a Refusal: close code, counter, words.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from meshnode.core.budget import Bucket
from meshnode.wire.address import Address
from meshnode.wire.registry import LIMIT_BAN_S, LIMIT_PUBLIC_IDENTITIES_A_PREFIX, Close, Role

PREFIXES = 4096
"""So many prefixes are remembered for their rates and offences; the one that was quiet for longest is forgotten."""
IPV4_BITS = 24
IPV6_BITS = 56


@dataclass(frozen=True, slots=True)
class Prefix:
    """A network prefix as text. `near`: not global, so no bound on how many machines share it."""

    text: str
    near: bool


def prefix_of(address: Address) -> Prefix:
    """The /24 or /56 of an address."""
    host = ipaddress.ip_address(address.host)
    bits = IPV6_BITS if host.version == 6 else IPV4_BITS
    return Prefix(str(ipaddress.ip_network((host, bits), strict=False)), not host.is_global)


@dataclass(frozen=True, slots=True)
class OpenLimits:
    """Identities a prefix, linked strangers by role, and greetings of one prefix in the long run and at once.

    `near_*` hold for addresses that are not global. A prefix with `strikes` offences within `ban_s` is kept out for
    that time. `heard` bounds the nodes that are known by gossip alone.
    """

    identities: int = LIMIT_PUBLIC_IDENTITIES_A_PREFIX
    near_identities: int = 64
    clients: int = 64
    members: int = 128
    heard: int = 16_384
    attempts_per_s: float = 0.5
    attempts: int = 16
    near_attempts_per_s: float = 20.0
    near_attempts: int = 200
    strikes: int = 3
    ban_s: float = LIMIT_BAN_S


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why somebody is not let in: how the link is closed, what is counted, and the words."""

    code: Close
    counter: str
    text: str


_BANNED = Refusal(Close.BANNED, "open_banned", "its network has broken the rules lately")
_TOO_OFTEN = Refusal(Close.FLOOD, "open_too_often", "its network knocks too often")
_CROWD = Refusal(Close.NO_ROOM, "open_prefix_full", "as many nodes of its network as may be are here")
_NO_CLIENTS = Refusal(Close.NO_ROOM, "open_clients_full", "as many clients as may be are connected")
_NO_MEMBERS = Refusal(Close.NO_ROOM, "open_members_full", "as many members as may be are connected")


class PrefixRates:
    """How often something may come from one prefix: a token bucket for each, bounded in number."""

    def __init__(self, *, per_s: float, burst: int, near_per_s: float, near_burst: int) -> None:
        self._far = per_s, burst
        self._near = near_per_s, near_burst
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def take(self, prefix: Prefix, now: float) -> bool:
        """Whether one more may come."""
        bucket = self._buckets.get(prefix.text)
        if bucket is None:
            rate, burst = self._near if prefix.near else self._far
            bucket = self._buckets[prefix.text] = Bucket(rate, burst, now)
            if len(self._buckets) > PREFIXES:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(prefix.text)
        return bucket.take(1, now)


@dataclass(slots=True)
class _Linked:
    prefix: Prefix
    role: Role
    links: int


class OpenPolicy:
    """The rules of one node. `known` names nodes that its owner trusts: they are counted, and never refused."""

    def __init__(self, limits: OpenLimits = OpenLimits(), *, known: Callable[[bytes], bool] = lambda _: False) -> None:
        self._limits = limits
        self._known = known
        self._attempts = PrefixRates(
            per_s=limits.attempts_per_s,
            burst=limits.attempts,
            near_per_s=limits.near_attempts_per_s,
            near_burst=limits.near_attempts,
        )
        self._linked: dict[bytes, _Linked] = {}
        self._heard: dict[bytes, tuple[Prefix, ...]] = {}
        self._present: dict[str, dict[bytes, int]] = {}
        """By prefix: nodes, and for how many reasons each counts there."""
        self._strikes: OrderedDict[str, tuple[int, float]] = OrderedDict()

    # --- links ------------------------------------------------------------------------------------------------------

    def attempt(self, address: Address, now: float) -> Refusal | None:
        """Somebody at `address` greets."""
        prefix = prefix_of(address)
        if self._is_banned(prefix, now):
            return _BANNED
        return None if self._attempts.take(prefix, now) else _TOO_OFTEN

    def judge(self, node: bytes, address: Address, role: Role) -> Refusal | None:
        """Whether a node whose key is proven may come in from `address`. Nothing is counted yet."""
        if node in self._linked or self._known(node):
            return None
        if not self._has_room(node, prefix_of(address)):
            return _CROWD
        return self._full(role)

    def room(self, role: Role) -> bool:
        """Whether one more node of this role would be let in, were its network no crowd."""
        return self._full(role) is None

    def count(self, role: Role) -> int:
        """How many nodes of a role are linked."""
        return sum(linked.role is role for linked in self._linked.values())

    def entered(self, node: bytes, address: Address, role: Role) -> None:
        """A link to the node is in use; by whom it was dialled makes no difference."""
        linked = self._linked.get(node)
        if linked is not None:
            linked.links += 1
            return
        self._linked[node] = _Linked(prefix_of(address), role, 1)
        self._count(node, (self._linked[node].prefix,), 1)

    def left(self, node: bytes) -> None:
        """One link to it has ended."""
        linked = self._linked.get(node)
        if linked is None:
            return
        linked.links -= 1
        if not linked.links:
            del self._linked[node]
            self._count(node, (linked.prefix,), -1)

    def _full(self, role: Role) -> Refusal | None:
        if role is Role.CLIENT:
            return _NO_CLIENTS if self.count(role) >= self._limits.clients else None
        return _NO_MEMBERS if self.count(role) >= self._limits.members else None

    # --- nodes that are heard of ------------------------------------------------------------------------------------

    def heard(self, node: bytes, addresses: Sequence[Address]) -> bool:
        """Whether to believe that `node`, which says that it is at these addresses, is a member of its own.

        Each global prefix it names must have room, so that naming many helps nobody; of a node that names none,
        those that are not global count.
        """
        prefixes = self._prefixes(addresses)
        if node not in self._linked and not self._known(node):
            if node not in self._heard and len(self._heard) >= self._limits.heard:
                return False
            if not all(self._has_room(node, prefix) for prefix in prefixes):
                return False
        self._forget(node)
        self._heard[node] = prefixes
        self._count(node, prefixes, 1)
        return True

    def retain(self, nodes: Collection[bytes]) -> None:
        """Of those that were heard of, only these are still there."""
        for node in [node for node in self._heard if node not in nodes]:
            self._forget(node)

    def _forget(self, node: bytes) -> None:
        self._count(node, self._heard.pop(node, ()), -1)

    def _prefixes(self, addresses: Sequence[Address]) -> tuple[Prefix, ...]:
        found = dict.fromkeys(prefix_of(address) for address in addresses)
        far = tuple(prefix for prefix in found if not prefix.near)
        return far or tuple(found) or (Prefix("", True),)

    # --- offences ---------------------------------------------------------------------------------------------------

    def offended(self, address: Address, now: float) -> None:
        """Somebody at `address` broke the rules: a new identity must not help there."""
        prefix = prefix_of(address)
        if prefix.near:
            return
        count, since = self._strikes.get(prefix.text, (0, now))
        count, since = (1, now) if now - since > self._limits.ban_s else (count + 1, since)
        self._strikes[prefix.text] = count, now if count >= self._limits.strikes else since
        self._strikes.move_to_end(prefix.text)
        if len(self._strikes) > PREFIXES:
            self._strikes.popitem(last=False)

    def _is_banned(self, prefix: Prefix, now: float) -> bool:
        count, at = self._strikes.get(prefix.text, (0, 0.0))
        return count >= self._limits.strikes and now - at <= self._limits.ban_s

    # --- counting ---------------------------------------------------------------------------------------------------

    def _has_room(self, node: bytes, prefix: Prefix) -> bool:
        present = self._present.get(prefix.text, {})
        return node in present or len(present) < (
            self._limits.near_identities if prefix.near else self._limits.identities
        )

    def _count(self, node: bytes, prefixes: Sequence[Prefix], by: int) -> None:
        for prefix in prefixes:
            present = self._present.setdefault(prefix.text, {})
            present[node] = present.get(node, 0) + by
            if not present[node]:
                del present[node]
            if not present:
                del self._present[prefix.text]
