"""Drives core/election on the clock of the event loop: who hosts which split, as this node sees the mesh now.

    term = await claims.claim(content_hash)     waits until this node is the host
    claims.advance(...)                         how far it is, for others to see
    claims.disclaim(content_hash)               it hosts no more

`observe` is told of every change among the members; `mine` goes into the dynamic statement whenever `changed` is
called. A model is named by the digest of its weights, whole or its first 16 bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping

from meshnode.core.effects import CancelTimer, Member, SetTimer
from meshnode.core.election import Advance, ClaimsSeen, ElectionEvent, Elections, GiveUp, MayHost, MustStop, Want
from meshnode.core.events import TimerFired
from meshnode.wire.statements import CONTENT_HASH_BYTES, PlanClaim

LIVE = ("alive", "unreachable")


class Claims:
    """This node's claims. `stop` is called with the model (the first 16 bytes of its digest) and the NodeId of the
    winner when another node's claim turns out to be better: this node must stop hosting at once, and then either
    claims anew, which waits until the other is gone, or disclaims.
    """

    def __init__(
        self, elections: Elections, *, changed: Callable[[], None], stop: Callable[[bytes, bytes], None]
    ) -> None:
        self._elections = elections
        self._changed = changed
        self._stop = stop
        self._timers: dict[Hashable, asyncio.TimerHandle] = {}
        self._waiting: dict[bytes, asyncio.Future[int]] = {}
        self._seen: dict[bytes, tuple[PlanClaim, ...]] = {}

    def mine(self) -> tuple[PlanClaim, ...]:
        """What this node claims now."""
        return self._elections.claims()

    def host(self, model: bytes) -> bytes | None:
        """The node with the best claim on a model, be it this one; None when nobody claims it."""
        return self._elections.host(model[:CONTENT_HASH_BYTES])

    async def claim(self, model: bytes) -> int:
        """Wait until this node is the host of a model; gives the term. At once for one that it hosts already.

        Others may host it meanwhile: then this lasts until they are gone. Cancelling it gives the claim up.
        """
        model = model[:CONTENT_HASH_BYTES]
        if self._elections.is_host(model):
            return next(each.term for each in self.mine() if each.content_hash == model)
        elected = self._waiting.get(model)
        if elected is None:
            elected = self._waiting[model] = asyncio.get_running_loop().create_future()
            self._give(Want(model))
        try:
            return await asyncio.shield(elected)
        except asyncio.CancelledError:
            self.disclaim(model)
            raise

    def advance(self, model: bytes, state: int, plan: bytes, workers: tuple[bytes, ...]) -> None:
        """Show how far the host of a model is. Nothing happens when this node is not its host."""
        self._give(Advance(model[:CONTENT_HASH_BYTES], state, plan, workers))

    def disclaim(self, model: bytes) -> None:
        """Host a model no more. Whoever waits for `claim` is cancelled."""
        model = model[:CONTENT_HASH_BYTES]
        elected = self._waiting.pop(model, None)
        if elected is not None:
            elected.cancel()
        self._give(GiveUp(model))

    def observe(self, members: Mapping[bytes, Member]) -> None:
        """The members of the mesh, this node among them or not, as they are seen now."""
        seen = {
            node: member.dynamic.claims
            for node, member in members.items()
            if member.dynamic is not None and member.dynamic.claims and member.state in LIVE
        }
        if seen != self._seen:
            self._seen = seen
            self._give(ClaimsSeen(seen))

    def close(self) -> None:
        """Claim nothing any more, and stop all timers."""
        for model in [*self._waiting, *(claim.content_hash for claim in self.mine())]:
            self.disclaim(model)
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _give(self, event: ElectionEvent) -> None:
        loop = asyncio.get_running_loop()
        changed = False
        for effect in self._elections.handle(event, loop.time()):
            match effect:
                case SetTimer(key, at):
                    self._cancel(key)
                    self._timers[key] = loop.call_at(at, self._fire, key)
                case CancelTimer(key):
                    self._cancel(key)
                case MayHost(model, term):
                    elected = self._waiting.pop(model, None)
                    if elected is not None and not elected.done():
                        elected.set_result(term)
                case MustStop(model, host):
                    self._stop(model, host)
                case _:
                    changed = True
        if changed:
            self._changed()

    def _fire(self, key: Hashable) -> None:
        self._timers.pop(key, None)
        self._give(TimerFired(key))

    def _cancel(self, key: Hashable) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
