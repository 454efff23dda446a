"""Spreading statements over the neighbours: Plumtree (Leitao, Pereira, Rodrigues, SRDS 2007), floods where it hurries.

A statement goes whole to eager neighbours and by its id to lazy ones, twice a second. One that sends what is known
already is made lazy (Prune), one that has what is missing is made eager (Graft); so the eager links become a tree that
mends itself. Accusations, answers to them and farewells are flooded: they go whole to every neighbour.

Rules of this file: pure; what is handed to `spread` was verified; statements of one call of the machine travel in one
message to each neighbour.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice

from meshnode.core.context import Context
from meshnode.core.reconcile import frames
from meshnode.wire.messages import Graft, IHave, Prune, Statements
from meshnode.wire.registry import LIMIT_IHAVE_IDS, LIMIT_WANT_IDS
from meshnode.wire.statements import Statement

REMEMBERED = 8192
MISSING = 4096
FIRST_EAGER = 3
GRAFT_TRIES = 4
DUPLICATES_OF_A_RING = 3


class Broadcast:
    """The neighbours and what they are sent."""

    def __init__(self, context: Context) -> None:
        self._context = context
        # Eager neighbours, with how often in a row they sent what was known.
        self.eager: dict[bytes, int] = {}
        self.lazy: dict[bytes, None] = {}
        self._seen: OrderedDict[bytes, tuple[Statement | None, bool]] = OrderedDict()
        self._sending: dict[bytes, list[Statement]] = {}
        self._announcing: dict[bytes, list[bytes]] = {}
        self._missing: OrderedDict[bytes, tuple[float, int, list[bytes]]] = OrderedDict()
        self._ihave_at = 0.0

    # --- neighbours ---------------------------------------------------------------------------------------------

    def add(self, peer: bytes) -> None:
        """A new neighbour: eager where there are few, as a tree needs no more."""
        if peer not in self.eager and peer not in self.lazy:
            if len(self.eager) < FIRST_EAGER:
                self.eager[peer] = 0
            else:
                self.lazy[peer] = None

    def remove(self, peer: bytes) -> None:
        """No neighbour any more. When the last eager one is gone, a lazy one takes its place."""
        self.eager.pop(peer, None)
        self.lazy.pop(peer, None)
        self._announcing.pop(peer, None)
        self._sending.pop(peer, None)
        if not self.eager and self.lazy:
            self._make_eager(next(iter(self.lazy)))

    # --- out ----------------------------------------------------------------------------------------------------

    def spread(self, statement: Statement, source: bytes | None, *, urgent: bool) -> None:
        """Pass a statement on to all neighbours but the one that it came from."""
        self._remember(statement.id, statement, urgent)
        for peer in self.eager:
            if peer != source:
                self._sending.setdefault(peer, []).append(statement)
        if urgent:
            for peer in self.lazy:
                if peer != source:
                    self._sending.setdefault(peer, []).append(statement)
        else:
            for peer in islice(self.lazy, self._context.options.announced_to):
                if peer != source:
                    self._announcing.setdefault(peer, []).append(statement.id)
                    self._context.deadlines.set_earlier("ihave", self._ihave_at)
        if source is not None and not urgent and (source in self.lazy or source in self.eager):
            self._make_eager(source)

    def send(self, peer: bytes, statements: Iterable[Statement]) -> None:
        """Send statements to one linked peer, with whatever else goes there."""
        self._sending.setdefault(peer, []).extend(statements)

    def flush(self) -> None:
        """Everything that was handed over in this call leaves. Neighbours that get the same get the same message."""
        made: dict[tuple[bytes, ...], Statements] = {}
        for peer, statements in self._sending.items():
            for piece in frames({each.id: each for each in statements}.values()):
                message = made.get(piece)
                if message is None:
                    message = made[piece] = Statements(piece)
                self._context.out.send(peer, message)
        self._sending.clear()

    def announce(self) -> None:
        """The time for ids has come."""
        for peer, ids in self._announcing.items():
            for at in range(0, len(ids), LIMIT_IHAVE_IDS):
                self._context.out.send(peer, IHave(tuple(ids[at : at + LIMIT_IHAVE_IDS])))
        self._announcing.clear()

    # --- in -----------------------------------------------------------------------------------------------------

    def knows(self, name: bytes) -> bool:
        """Whether a statement with this id was here lately, useful or not."""
        return name in self._seen

    def refuse(self, name: bytes) -> None:
        """This statement is of no use here: do not ask for it."""
        self._remember(name, None, False)

    def duplicates(self, peer: bytes, ids: list[bytes]) -> None:
        """A neighbour sent nothing but what is known. If that was no flood, its link does not belong to the tree."""
        if peer not in self.eager or not ids or any(self._seen.get(name, (None, True))[1] for name in ids):
            return
        # Two statements that run round a ring in opposite directions must not cut it twice: once is no pattern.
        self.eager[peer] += 1
        if self.eager[peer] >= DUPLICATES_OF_A_RING:
            self._make_lazy(peer)
            self._context.out.send(peer, Prune())

    def pruned(self, peer: bytes) -> None:
        """A neighbour wants ids alone."""
        if peer in self.eager:
            self._make_lazy(peer)

    def announced(self, peer: bytes, ids: Iterable[bytes], rtt_s: float | None, now: float) -> None:
        """A neighbour has these. Those that do not come by themselves are asked for."""
        # Jitter, as a whole branch may lack it: the first that is served passes it on to the others.
        delay_s = self._context.options.least_graft_s * (1 + self._context.random.random()) + 2 * (rtt_s or 0.0)
        for name in ids:
            if name in self._seen:
                continue
            waiting = self._missing.get(name)
            if waiting is not None:
                if len(waiting[2]) < GRAFT_TRIES and peer not in waiting[2]:
                    waiting[2].append(peer)
            elif len(self._missing) < MISSING:
                self._missing[name] = (now + delay_s, 0, [peer])
                self._context.deadlines.set_earlier("graft", now + delay_s)

    def graft_due(self, now: float) -> None:
        """Ask for what was announced and has not come; every announcer in turn."""
        asked: dict[bytes, list[bytes]] = {}
        next_at: float | None = None
        for name, (at, tried, peers) in list(self._missing.items()):
            if name in self._seen or (at <= now and tried >= min(len(peers), GRAFT_TRIES)):
                del self._missing[name]
                continue
            if at <= now:
                asked.setdefault(peers[tried], []).append(name)
                at = now + self._context.options.least_graft_s
                self._missing[name] = (at, tried + 1, peers)
            next_at = at if next_at is None else min(next_at, at)
        for peer, ids in asked.items():
            if peer not in self.eager and peer not in self.lazy:
                continue
            self._make_eager(peer)
            for start in range(0, len(ids), LIMIT_WANT_IDS):
                self._context.out.send(peer, Graft(tuple(ids[start : start + LIMIT_WANT_IDS])))
        if next_at is not None:
            self._context.deadlines.set("graft", next_at)

    def grafted(self, peer: bytes, ids: Iterable[bytes]) -> None:
        """A neighbour wants these, and from now on everything at once."""
        if peer in self.lazy:
            self._make_eager(peer)
        found = (self._seen.get(name, (None, False))[0] for name in ids)
        self.send(peer, [statement for statement in found if statement is not None])

    def clock(self, now: float) -> None:
        """What time it is in this call."""
        self._ihave_at = now + self._context.options.ihave_s

    def _make_eager(self, peer: bytes) -> None:
        self.lazy.pop(peer, None)
        self.eager[peer] = 0

    def _make_lazy(self, peer: bytes) -> None:
        del self.eager[peer]
        self.lazy[peer] = None

    def _remember(self, name: bytes, statement: Statement | None, urgent: bool) -> None:
        self._seen[name] = (statement, urgent)
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
