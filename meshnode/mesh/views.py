"""Client-only nodes: what a member shows them, and what they make of it.

A client takes no part in the gossip, so what it costs does not grow with the mesh. It subscribes to one to three
members, its access nodes, and each sends it a View: the signed statements of the hosts worth asking, for each model at
most four. A client believes no access node: every statement is verified, and the newest of each node counts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from meshnode.wire.messages import View
from meshnode.wire.registry import LIMIT_FRAME_BYTES, LIMIT_VIEW_STATEMENTS, Role, StatementKind
from meshnode.wire.signed import Verify
from meshnode.wire.statements import Dynamic, Identity, ModelState, Offer, Statement, is_genuine, read
from meshnode.wire.values import WireError

HOSTS_A_MODEL = 4
SPARE_NODES = 4
"""Members without a model that a View names as well, so that a client can find another access node."""
VIEW_BYTES = LIMIT_FRAME_BYTES - 4096
LEAST_INTERVAL_S = 0.5
MOST_SUBSCRIBERS = 256
VERIFIED = 4 * LIMIT_VIEW_STATEMENTS


# --- the side of the member -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shown:
    """A member as it is considered for a View: its signed statements, and the round trip to it where it is known."""

    node: bytes
    identity: Statement
    dynamic: Statement | None
    rtt_s: float


def choose(members: Iterable[Shown]) -> View:
    """The statements that clients get: for each model the best hosts, then a few others, within the limits."""
    known = list(members)
    by_model: dict[str, list[tuple[tuple[bool, bool, float, bytes], Shown]]] = {}
    for shown in known:
        for offer in shown.dynamic.body.models if shown.dynamic is not None else ():
            by_model.setdefault(offer.name, []).append((_rank(offer, shown), shown))
    chosen: OrderedDict[bytes, Shown] = OrderedDict()
    ranked = [[shown for _, shown in sorted(hosts, key=lambda host: host[0])] for hosts in by_model.values()]
    # The best host of every model comes before the second of any, as there may not be room for all.
    for place in range(HOSTS_A_MODEL):
        for hosts in ranked:
            if place < len(hosts):
                chosen.setdefault(hosts[place].node, hosts[place])
    others = sorted((shown for shown in known if shown.node not in chosen), key=lambda shown: (shown.rtt_s, shown.node))
    for shown in others[:SPARE_NODES]:
        chosen[shown.node] = shown
    return View(tuple(_fitting(chosen.values())))


def _rank(offer: Offer, shown: Shown) -> tuple[bool, bool, float, bytes]:
    return offer.state != ModelState.READY, offer.busy >= offer.slots, shown.rtt_s, shown.node


def _fitting(chosen: Iterable[Shown]) -> list[bytes]:
    statements: list[bytes] = []
    size = 0
    for shown in chosen:
        wanted = [shown.identity.signed, *([shown.dynamic.signed] if shown.dynamic is not None else [])]
        size += sum(len(signed) + 3 for signed in wanted)
        if len(statements) + len(wanted) > LIMIT_VIEW_STATEMENTS or size > VIEW_BYTES:
            break
        statements += wanted
    return statements


@dataclass(slots=True)
class _Subscriber:
    interval_s: float
    due_at: float = 0.0
    sent: View | None = None


class Subscribers:
    """Who wants Views, and when the next one is due. Pure: `due` is asked about twice a second."""

    def __init__(self) -> None:
        self._subscribers: dict[bytes, _Subscriber] = {}

    def __len__(self) -> int:
        return len(self._subscribers)

    def subscribe(self, peer: bytes, interval_s: float) -> bool:
        """A client wants Views at most every `interval_s`. False when too many do."""
        interval_s = max(LEAST_INTERVAL_S, interval_s)
        known = self._subscribers.get(peer)
        if known is not None:
            known.interval_s = interval_s  # asking again brings nothing sooner
        elif len(self._subscribers) >= MOST_SUBSCRIBERS:
            return False
        else:
            self._subscribers[peer] = _Subscriber(interval_s)
        return True

    def gone(self, peer: bytes) -> None:
        """It has left."""
        self._subscribers.pop(peer, None)

    def due(self, view: Callable[[], View], now: float) -> list[tuple[bytes, View]]:
        """Who gets which View now. `view` is called only when somebody waits for one."""
        waiting = [(peer, each) for peer, each in self._subscribers.items() if each.due_at <= now]
        if not waiting:
            return []
        current = view()
        told = []
        for peer, subscriber in waiting:
            if subscriber.sent != current:
                subscriber.sent = current
                subscriber.due_at = now + subscriber.interval_s
                told.append((peer, current))
        return told


# --- the side of the client -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seen:
    """A node as a client knows it: two statements and the round trip from an access node, if one told of it."""

    node: bytes
    role: Role
    identity: Identity
    dynamic: Dynamic | None
    incarnation: int
    access: tuple[bytes, ...]


class ClientView:
    """What a client makes of the Views of its access nodes. Pure.

    `admit` judges an identity statement as the membership machine does: the role, or None for no member.
    """

    def __init__(self, *, admit: Callable[[Statement], Role | None], verify: Verify) -> None:
        self._admit = admit
        self._verify = verify
        self._verified: OrderedDict[bytes, tuple[Statement, Role | None]] = OrderedDict()
        self._views: dict[bytes, dict[tuple[bytes, int], Statement]] = {}

    @property
    def access_nodes(self) -> tuple[bytes, ...]:
        """Those whose View is known."""
        return tuple(self._views)

    def received(self, access: bytes, view: View) -> bool:
        """A View of an access node, which replaces the one before. Whether anything has changed.

        Raises WireError for a statement that is malformed or forged: honest nodes pass on only what they verified.
        """
        found: dict[tuple[bytes, int], Statement] = {}
        for signed in view.statements:
            statement, _ = self._checked(signed)
            if statement.kind in (StatementKind.IDENTITY, StatementKind.DYNAMIC):
                found[statement.origin, statement.kind] = statement
        changed = found != self._views.get(access)
        self._views[access] = found
        return changed

    def lost(self, access: bytes) -> None:
        """An access node is gone; what it alone told is forgotten."""
        self._views.pop(access, None)

    def nodes(self, access_nodes: Iterable[bytes]) -> list[Seen]:
        """Every node that the View of one of these access nodes proves to be a member."""
        newest: dict[tuple[bytes, int], Statement] = {}
        access: dict[bytes, list[bytes]] = {}
        for told_by in access_nodes:
            for (origin, kind), statement in self._views[told_by].items():
                known = newest.get((origin, kind))
                if known is None or statement.order > known.order:
                    newest[origin, kind] = statement
                if kind == StatementKind.IDENTITY:
                    access.setdefault(origin, []).append(told_by)
        return [seen for origin, told_by in access.items() if (seen := self._seen(origin, told_by, newest)) is not None]

    def _seen(
        self, origin: bytes, told_by: Sequence[bytes], newest: Mapping[tuple[bytes, int], Statement]
    ) -> Seen | None:
        identity = newest[origin, StatementKind.IDENTITY]
        dynamic = newest.get((origin, StatementKind.DYNAMIC))
        role = self._verified[identity.id][1] if identity.id in self._verified else self._admit(identity)
        if role is None:
            return None
        body = dynamic.body if dynamic is not None and dynamic.incarnation >= identity.incarnation else None
        return Seen(origin, role, identity.body, body, identity.incarnation, tuple(told_by))

    def _checked(self, signed: bytes) -> tuple[Statement, Role | None]:
        statement = read(signed)
        known = self._verified.get(statement.id)
        if known is not None:
            self._verified.move_to_end(statement.id)
            return known
        if not is_genuine(statement, self._verify):
            raise WireError("a forged statement")
        role = self._admit(statement) if statement.kind == StatementKind.IDENTITY else None
        self._verified[statement.id] = statement, role
        if len(self._verified) > VERIFIED:
            self._verified.popitem(last=False)
        return statement, role
