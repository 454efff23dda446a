"""From a relayed link to a direct one: both ends tell each other where they may be, and send punches at the same time
(protocol/14-traversal.md).

    here: PunchOffer ──────────────> there        over the relayed link itself, so that no relay reads it
          <────────────── PunchAnswer
          punches in both directions; one symmetric NAT, and both agree: ports are guessed
          PunchDone <──────> PunchDone
          the end that was answered moves the link; the other one follows by itself

A punch has 24 bytes and goes to no more than eight addresses, of those that make sense from here (core/traversal).
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

from meshnode.core.budget import Bucket
from meshnode.core.traversal import guess_role, guess_target, sensible_candidates
from meshnode.mesh.message_stream import MessageStream
from meshnode.net.address import is_virtual
from meshnode.net.link import Link
from meshnode.net.punching import Guess, Puncher
from meshnode.net.stream import MeshStream
from meshnode.telemetry import LOG
from meshnode.wire.address import Address
from meshnode.wire.frames import encode_stream_header
from meshnode.wire.registry import Nat, Reset, Role, StreamType
from meshnode.wire.traversal import NONCE_BYTES, PUNCH_MESSAGES, PunchAnswer, PunchDone, PunchOffer
from meshnode.wire.values import WireError

PUNCH_S = 1.0
GUESS_S = 10.5
"""Guessing begins a moment after punching, and lasts ten seconds."""
LAST_S = 0.3
ANSWER_S = 3.0
MOVED_S = 2.0
MOST_SERVED = 8
"""Peers with which this node punches at a time because they asked for it."""
OFFERS_PER_S, OFFERS_BURST = 1 / 15, 4
PEERS = 1024


class Punches(Protocol):
    """What is needed of the endpoint."""

    @property
    def puncher(self) -> Puncher:
        """What sends punches and answers them."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What this node tells of itself: where it may be, what is before it, and whether it guesses ports."""

    candidates: Sequence[Address]
    nat: Nat
    guess: bool


class DirectPaths:
    """See the module. `standing` gives that of this node; `observed` where a relay sees the peer of a link; `seen` is
    told where a peer has found this node.

    `counters` gets: punches_tried, punches_found, punches_served, punches_declined, punches_malformed,
    candidates_refused, ports_guessed.
    """

    def __init__(
        self,
        own: bytes,
        *,
        standing: Callable[[], Standing],
        observed: Callable[[Link], Address | None],
        seen: Callable[[Address, Link], None],
        counters: Counter[str],
        punch_s: float = PUNCH_S,
        guess_s: float = GUESS_S,
    ) -> None:
        self._own = own
        self._standing = standing
        self._observed = observed
        self._seen = seen
        self._counters = counters
        self._punch_s = punch_s
        self._guess_s = guess_s
        self._seeking: set[bytes] = set()
        self._serving: set[bytes] = set()
        self._offers: OrderedDict[bytes, Bucket] = OrderedDict()
        self.endpoint: Punches

    # --- the end that asks --------------------------------------------------------------------------------------------

    def is_busy(self, peer: bytes) -> bool:
        """Whether a direct path to this peer is being looked for, because either end asked."""
        return peer in self._seeking or peer in self._serving

    async def seek(self, link: Link) -> bool:
        """Look for a direct path to the peer of a relayed link, and move the link there. Whether it has moved.

        Must not be called while `is_busy`.
        """
        self._counters["punches_tried"] += 1
        self._seeking.add(link.peer)
        stream: MeshStream | None = None
        moved = False
        try:
            stream = link.open_stream()
            stream.watched = False
            stream.write(encode_stream_header(StreamType.PUNCH, b""))
            moved = await self._seek(link, MessageStream(stream, PUNCH_MESSAGES))
            self._counters["punches_found"] += moved
            stream = None
        except WireError as error:
            LOG.debug("no direct path to %s: %s", link.peer.hex()[:10], error.reason)
        except (OSError, TimeoutError):
            pass  # the link, or the peer, does not last
        finally:
            self._seeking.discard(link.peer)
            if stream is not None:
                stream.reset(Reset.CANCELLED)
        return moved

    async def _seek(self, link: Link, messages: MessageStream) -> bool:
        mine = self._standing()
        nonce = os.urandom(NONCE_BYTES)
        messages.send(PunchOffer(nonce, tuple(mine.candidates), mine.nat, mine.guess))
        answer = await messages.receive(ANSWER_S)
        if not isinstance(answer, PunchAnswer) or answer.busy:
            messages.finish()
            return False
        theirs = Standing(self._sensible(answer.candidates, mine), _nat(answer.nat), answer.guess)
        moved = await self._look(link, messages, nonce, mine, theirs, asks=True)
        messages.finish()
        return moved

    # --- the end that is asked ----------------------------------------------------------------------------------------

    async def asked(self, stream: MeshStream, header: bytes, role: Role | None) -> None:
        """Serve a `punch` stream: a handler of StreamDispatch."""
        messages = MessageStream(stream, PUNCH_MESSAGES)
        link = stream.link
        stream.watched = False
        try:
            offer = await messages.receive(ANSWER_S)
            if not isinstance(offer, PunchOffer):
                raise WireError("something else than an offer")
            if link.path != "relayed" or not self._may(link.peer):
                self._counters["punches_declined"] += 1
                messages.finish(PunchAnswer(busy=True))
                return
            self._serving.add(link.peer)
            try:
                await self._answer(link, messages, offer)
            finally:
                self._serving.discard(link.peer)
        except (WireError, TimeoutError):
            self._counters["punches_malformed"] += 1
            stream.reset(Reset.MALFORMED)

    async def _answer(self, link: Link, messages: MessageStream, offer: PunchOffer) -> None:
        self._counters["punches_served"] += 1
        mine = self._standing()
        messages.send(PunchAnswer(tuple(mine.candidates), mine.nat, mine.guess))
        theirs = Standing(self._sensible(offer.candidates, mine), _nat(offer.nat), offer.guess)
        await self._look(link, messages, offer.nonce, mine, theirs, asks=False)
        messages.finish()

    def _may(self, peer: bytes) -> bool:
        """Whether this peer may have us punch now: one at a time, and not endlessly.

        If both ends have asked at once, the offer of the one with the smaller id counts.
        """
        if peer in self._serving or len(self._serving) >= MOST_SERVED or (peer in self._seeking and self._own < peer):
            return False
        offers = self._offers.pop(peer, None) or Bucket(OFFERS_PER_S, OFFERS_BURST, monotonic())
        self._offers[peer] = offers
        if len(self._offers) > PEERS:
            self._offers.popitem(last=False)
        return offers.take(1, monotonic())

    # --- both ---------------------------------------------------------------------------------------------------------

    def _sensible(self, named: Sequence[Address], mine: Standing) -> list[Address]:
        kept = sensible_candidates(named, mine.candidates)
        self._counters["candidates_refused"] += len(named) - len(kept)
        return kept

    async def _look(
        self, link: Link, messages: MessageStream, nonce: bytes, mine: Standing, theirs: Standing, *, asks: bool
    ) -> bool:
        """Punch, and move the link. Whether it has moved. Raises WireError, OSError, TimeoutError."""
        guess = self._guess_of(link, mine, theirs)
        self._counters["ports_guessed"] += guess is not None
        path, done = await self._punch(messages, nonce, theirs.candidates, guess, asks=asks)
        if path is not None and (asks or not done.found):
            moved = await link.redirect(path)
        else:
            moved = done.found and await becomes_direct(link, MOVED_S)
        if moved and done.path is not None:
            self._seen(done.path, link)
        return moved

    def _guess_of(self, link: Link, mine: Standing, theirs: Standing) -> Guess | None:
        """How ports are guessed if punching alone brings nothing; None where they are not."""
        role = guess_role(mine.nat, theirs.nat) if mine.guess and theirs.guess else None
        host = guess_target(theirs.candidates, self._observed(link))
        return None if role is None or host is None else Guess(role, host)

    async def _punch(
        self, messages: MessageStream, nonce: bytes, there: Sequence[Address], guess: Guess | None, *, asks: bool
    ) -> tuple[Address | None, PunchDone]:
        """The path that was found here, and what the other end has found."""
        timeout_s = self._punch_s if guess is None else self._guess_s
        punching = asyncio.ensure_future(
            self.endpoint.puncher.punch(nonce, there, opens=asks, timeout_s=timeout_s, guess=guess)
        )
        hearing = asyncio.ensure_future(messages.receive(timeout_s + ANSWER_S))
        try:
            await asyncio.wait({punching, hearing}, return_when=asyncio.FIRST_COMPLETED)
            if not punching.done():  # the other end is through: what it was answered with may still be on its way
                await asyncio.wait({punching}, timeout=LAST_S)
            path = punching.result() if punching.done() else None
            messages.send(PunchDone(path is not None, None if path is None or is_virtual(path) else path))
            done = await hearing
        except ValueError:
            raise WireError("a nonce that is in use") from None
        finally:
            punching.cancel()
            hearing.cancel()
            await asyncio.gather(punching, hearing, return_exceptions=True)
        if not isinstance(done, PunchDone):
            raise WireError("something else than the end of a round")
        return path, done


async def becomes_direct(link: Link, timeout_s: float) -> bool:
    """Whether a link is moved to a direct path, by either end, within that time."""
    until = monotonic() + timeout_s
    while link.alive and link.path == "relayed" and monotonic() < until:
        await asyncio.sleep(0.02)
    return link.alive and link.path == "direct"


def _nat(code: int) -> Nat:
    return Nat(code) if code in tuple(Nat) else Nat.UNKNOWN
