"""When to reconcile and with whom, and the sending of what was asked for in small pieces (see reconcile.py).

A node that has just been linked for the first time reconciles at once, later every half minute with one neighbour; and
with a peer that was thought to be gone, or that knows members who are unknown here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice

from meshnode.core import reconcile
from meshnode.core.broadcast import Broadcast
from meshnode.core.budget import STATEMENT_BYTES, Bucket, PeerBudget
from meshnode.core.chance import jittered, pick
from meshnode.core.context import Context
from meshnode.wire import messages
from meshnode.wire.statements import Statement

JOIN_AGAIN_S = 3.0
SOON_S = 1.0
PIECE = 192
PIECE_S = 0.01
DIGESTS_A_SECOND = 0.2
DIGESTS_BURST = 4.0
UNEXPECTED = 256


class Sync:
    """The reconciliations of this node. `shared` gives all statements that nodes should have in common."""

    def __init__(self, context: Context, broadcast: Broadcast, shared: Callable[[], Iterator[Statement]]) -> None:
        self._context = context
        self._broadcast = broadcast
        self._shared = shared
        self._started_at: float | None = None
        self._joined = False
        self._sending: dict[bytes, deque[bytes]] = {}
        self._answers: dict[bytes, Bucket] = {}
        self._offered: dict[bytes, float] = {}
        self._wanting: set[bytes] = set()

    # --- this node asks -----------------------------------------------------------------------------------------

    def met(self, peer: bytes, budget: PeerBudget, now: float, *, was_gone: bool) -> None:
        """A peer is linked."""
        waited = self._started_at is None or now - self._started_at >= JOIN_AGAIN_S
        if was_gone or (not self._joined and waited):
            self._start(peer, budget, now)

    def soon(self, peer: bytes, now: float) -> None:
        """A peer knows more."""
        if peer in self._context.linked:
            self._wanting.add(peer)
            self._context.deadlines.set_earlier("sync", now + SOON_S)

    def periodic(self, healthy: Mapping[bytes, object], budgets: Mapping[bytes, PeerBudget], now: float) -> None:
        """The deadline of the next reconciliation has come."""
        pause_s = self._context.options.reconcile_s if self._joined else JOIN_AGAIN_S
        self._context.deadlines.set("sync", now + jittered(self._context.random, pause_s))
        candidates = sorted(self._wanting & self._context.linked) or sorted(healthy)
        self._wanting.clear()
        if candidates:
            peer = pick(self._context.random, candidates)
            if peer in budgets:
                self._start(peer, budgets[peer], now)

    def _start(self, peer: bytes, budget: PeerBudget, now: float) -> None:
        self._started_at = now
        self._offered[peer] = now
        self._context.out.send(peer, reconcile.digest(self._shared()))

    def bucket(self, peer: bytes, message: messages.Bucket, budget: PeerBudget, now: float) -> int:
        """The ids that a peer holds. Returns how many statements are asked for."""
        if peer not in self._offered:
            self._context.out.count("messages_unexpected")
            return 0
        self._joined = True
        lacking, surplus = reconcile.compare(message, self._shared())
        lacking = [name for name in lacking if not self._broadcast.knows(name)]
        lacking = lacking[: self._context.options.most_statements]
        for want in reconcile.wants(lacking):
            self._context.out.send(peer, want)
        budget.asked_for(len(lacking), len(lacking) * STATEMENT_BYTES)
        self._queue(peer, (each.id for each in surplus), now)
        return len(lacking)

    # --- this node answers --------------------------------------------------------------------------------------

    def digest(self, peer: bytes, message: messages.Digest, budget: PeerBudget, now: float) -> None:
        """A peer wants to know what differs."""
        bucket = self._answers.setdefault(peer, Bucket(DIGESTS_A_SECOND, DIGESTS_BURST, now))
        if not bucket.take(1, now):
            self._context.out.count("digests_over_budget")
            return
        mine = list(self._shared())
        indexes = reconcile.differing(message, reconcile.digest(mine))
        if not indexes:
            self._joined = True
            return
        budget.asked_for(self._context.size + UNEXPECTED, (self._context.size + UNEXPECTED) * STATEMENT_BYTES)
        for listing in reconcile.list_buckets(indexes, mine):
            self._context.out.send(peer, listing)

    def want(self, peer: bytes, ids: Iterable[bytes], now: float) -> None:
        """A peer lacks these."""
        self._queue(peer, ids, now)

    # --- sending ------------------------------------------------------------------------------------------------

    def transfer(self, now: float) -> None:
        """Send the next piece to everybody who waits for one."""
        wanted = {name for queue in self._sending.values() for name in islice(queue, PIECE)}
        found = {each.id: each for each in self._shared() if each.id in wanted}
        for peer, queue in list(self._sending.items()):
            names = [queue.popleft() for _ in range(min(PIECE, len(queue)))]
            self._broadcast.send(peer, [found[name] for name in names if name in found])
            if not queue:
                del self._sending[peer]
        if self._sending:
            self._context.deadlines.set("transfer", now + PIECE_S)

    def dropped(self, peer: bytes) -> None:
        """The link of a peer is gone."""
        self._sending.pop(peer, None)
        self._answers.pop(peer, None)
        self._offered.pop(peer, None)
        self._wanting.discard(peer)

    def _queue(self, peer: bytes, ids: Iterable[bytes], now: float) -> None:
        queue = self._sending.setdefault(peer, deque())
        for name in ids:
            if len(queue) >= self._context.options.most_statements:
                self._context.out.count("wants_over_budget")
                break
            queue.append(name)
        if not queue:
            del self._sending[peer]
            return
        self._context.deadlines.set_earlier("transfer", now)
