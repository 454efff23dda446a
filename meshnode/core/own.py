"""What this node says of itself: when it says it again, and with which number.

Every statement has the incarnation of this life of the node and a number that only grows. The incarnation is raised to
answer an accusation; it is saved before it is used. News of load are held back so that all members together publish
about 7 to 11 a second, however many they are: each may say three things at once, then waits for its turn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from meshnode.core.budget import Bucket
from meshnode.core.chance import jittered
from meshnode.core.context import Context
from meshnode.core.effects import SaveIncarnation
from meshnode.wire.registry import LIMIT_MONITORS, StatementKind
from meshnode.wire.signed import Sign
from meshnode.wire.statements import (
    SHORT_ID_BYTES,
    Accuse,
    Coordinate,
    Demand,
    Dynamic,
    Identity,
    Leave,
    Neighbour,
    Statement,
    make,
)
from meshnode.wire.values import WireError

US = 1_000_000
FORMER_MONITOR_S = 30.0
FEWEST_MONITORS = 3
"""With fewer of those it has named, a node must not wait for its turn: without any it would be taken for dead."""
RESCUES_A_SECOND = 0.5
TOLD_NEIGHBOURS = 4
MOST_NEEDED_WEIGHTS = 4


class OwnStatements:
    """The statements of this node, the newest of each kind."""

    def __init__(self, context: Context, *, incarnation: int, sign: Sign, now: float) -> None:
        self._context = context
        self._sign = sign
        self._number = 0
        self._wanted: dict[int, Any] = {}
        self._bucket = Bucket(1.0, context.options.publish_burst, now)
        self._rescue = Bucket(RESCUES_A_SECOND, 2, now)
        self._monitors: list[bytes] = []
        self._former: dict[bytes, float] = {}
        self.incarnation = incarnation
        self.statements: dict[int, Statement] = {}
        self.changed_at: dict[int, float] = {}

    # --- saying -------------------------------------------------------------------------------------------------

    def say(self, body: Any, now: float) -> Statement | None:
        """Sign a statement with the next number. None when no form of it fits into the limits."""
        for form in _shorter(body):
            try:
                self._number += 1
                made = make(
                    form, origin=self._context.node, incarnation=self.incarnation, number=self._number, sign=self._sign
                )
            except WireError:
                self._context.out.count("statements_shortened")
                continue
            if made.kind != StatementKind.ACCUSE:
                self.statements[made.kind] = made
                self.changed_at[made.kind] = now
            return made
        return None

    def accuse(self, subject: bytes, incarnation: int, now: float) -> Statement:
        """Say that a member is missed."""
        made = self.say(Accuse(subject, incarnation), now)
        assert made is not None, "an accusation has a fixed size"
        return made

    def leave(self, now: float) -> Statement:
        """Say farewell."""
        made = self.say(Leave(), now)
        assert made is not None, "a farewell has a fixed size"
        return made

    def raise_incarnation(self, beyond: int) -> None:
        """Begin an incarnation after this one and after `beyond`."""
        self.incarnation = max(self.incarnation, beyond) + 1
        self._context.out.add(SaveIncarnation(self.incarnation))

    # --- what is wanted and when --------------------------------------------------------------------------------

    def want(self, body: Identity | Dynamic | Demand, now: float) -> list[Statement]:
        """The composition has something new. Returns what is said at once; the rest waits for `due`."""
        if isinstance(body, Identity):
            said = self.statements.get(StatementKind.IDENTITY)
            if said is not None and said.body == body:
                return []
            made = self.say(body, now)
            return [] if made is None else [made]
        if isinstance(body, Dynamic):
            self._wanted[StatementKind.DYNAMIC] = replace(body, monitors=(), coordinate=None, neighbours=())
        else:
            self._wanted[StatementKind.DEMAND] = body
        self.hurry(now)
        return []

    def hurry(self, now: float) -> None:
        """Something may be different: look soon."""
        self._context.deadlines.set_earlier("publish", now + self._context.options.settle_s)

    def due(self, edges: dict[bytes, float | None], coordinate: Coordinate, now: float) -> list[Statement]:
        """Say what differs from what was said. `edges` are healthy neighbours with their round trips in seconds."""
        self._bucket.rate = min(1.0, self._rate() / self._context.size)
        refresh_s = self.refresh_s
        self._context.deadlines.set("publish", now + jittered(self._context.random, refresh_s / 4))
        said: list[Statement] = []
        dynamic = self._dynamic(edges, coordinate, now)
        for kind, body in (
            (StatementKind.DYNAMIC, dynamic),
            (StatementKind.DEMAND, self._wanted.get(StatementKind.DEMAND)),
        ):
            if body is None or not self._is_news(kind, body, refresh_s, now):
                continue
            urgent = kind == StatementKind.DYNAMIC and self._lacks_monitors(edges) and self._rescue.take(1, now)
            if not urgent and not self._bucket.take(1, now):
                self._context.deadlines.set_earlier("publish", now + 1.0 / self._bucket.rate)
                break
            made = self.say(body, now)
            if made is not None:
                said.append(made)
        return said

    @property
    def refresh_s(self) -> float:
        """How often every member repeats what it has, even if nothing has changed."""
        return max(self._context.options.refresh_s, self._context.size / 4)

    def answer(self, edges: dict[bytes, float | None], coordinate: Coordinate, now: float) -> Statement | None:
        """A Dynamic of the present incarnation, at once."""
        return self.say(self._dynamic(edges, coordinate, now), now)

    def _rate(self) -> float:
        """How many news of load all members may publish in a second."""
        options = self._context.options
        decades = max(0.0, math.log10(self._context.size) - 2)
        return options.statements_a_second + options.statements_a_decade * decades

    def _is_news(self, kind: int, body: Any, refresh_s: float, now: float) -> bool:
        said = self.statements.get(kind)
        if said is None:
            return True
        if now - self.changed_at[kind] >= refresh_s:
            return kind == StatementKind.DYNAMIC or said.body != body
        if isinstance(body, Dynamic) and isinstance(said.body, Dynamic):
            return _of_note(body) != _of_note(said.body)
        return bool(said.body != body)

    # --- monitors -----------------------------------------------------------------------------------------------

    def may_accuse(self, accuser: bytes, now: float) -> bool:
        """Whether this node has lately declared that one as its monitor."""
        short = accuser[:SHORT_ID_BYTES]
        return short in self._monitors or now - self._former.get(short, -1e9) < FORMER_MONITOR_S

    @property
    def monitors(self) -> tuple[bytes, ...]:
        """Short ids of those who may accuse this node."""
        return tuple(self._monitors)

    def _lacks_monitors(self, edges: Iterable[bytes]) -> bool:
        """Whether few of the monitors that others know are left, and there are new ones to name."""
        said = self.statements.get(StatementKind.DYNAMIC)
        named = set(said.body.monitors) if said is not None else set()
        standing = named & {peer[:SHORT_ID_BYTES] for peer in edges}
        return len(standing) < FEWEST_MONITORS and named != set(self._monitors)

    def _choose_monitors(self, edges: Iterable[bytes], now: float) -> tuple[bytes, ...]:
        """Keep those who still are healthy neighbours, fill up with others in the order of the edges' ages."""
        most = min(LIMIT_MONITORS, self._context.options.monitors)
        shorts = [peer[:SHORT_ID_BYTES] for peer in edges]
        kept = [short for short in self._monitors if short in shorts]
        for short in self._monitors:
            if short not in kept:
                self._former[short] = now
        self._former = {short: at for short, at in self._former.items() if now - at < FORMER_MONITOR_S}
        self._monitors = (kept + [short for short in shorts if short not in kept])[:most]
        return tuple(sorted(self._monitors))

    def _dynamic(self, edges: dict[bytes, float | None], coordinate: Coordinate, now: float) -> Dynamic:
        near = sorted((rtt_s, peer) for peer, rtt_s in edges.items() if rtt_s is not None)[:TOLD_NEIGHBOURS]
        wanted: Dynamic = self._wanted.get(StatementKind.DYNAMIC, Dynamic())
        return replace(
            wanted,
            monitors=self._choose_monitors(edges, now),
            coordinate=coordinate,
            neighbours=tuple(Neighbour(peer[:SHORT_ID_BYTES], round(rtt_s * US)) for rtt_s, peer in near),
        )


def _of_note(body: Dynamic) -> tuple[Any, ...]:
    """What of a Dynamic is news when it differs: not where the node is, nor who is near."""
    return body.devices, body.models, body.monitors, body.claims, body.weights, body.rpc, body.relay, body.nat


def _shorter(body: Any) -> Iterable[Any]:
    """The body, and what is tried when it is too large: first what helps least goes."""
    yield body
    if isinstance(body, Dynamic):
        body = replace(body, neighbours=())
        yield body
        body = replace(body, models=tuple(replace(offer, names=()) for offer in body.models))
        yield body
        body = replace(body, weights=body.weights[:MOST_NEEDED_WEIGHTS])
        yield body
        # Who works for a split helps a planner; that it has a host, and in which term, keeps others from hosting it.
        body = replace(body, weights=(), claims=tuple(replace(claim, workers=()) for claim in body.claims))
        yield body
        while body.models:
            body = replace(body, models=body.models[:-1])
            yield body
        yield replace(body, devices=())
    elif isinstance(body, Demand):
        while body.wishes:
            body = replace(body, wishes=body.wishes[:-1])
            yield body
    elif isinstance(body, Identity):
        yield replace(body, addresses=body.addresses[:2])
        yield replace(body, addresses=(), name="", software="")
