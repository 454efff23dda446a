"""What this node does with a request of a stranger: a few endpoints, bounded, counted, recorded, and after all others.

The same road as that of a member's request (peer_requests.py) on other terms. In this order: is it open at all, how
often does this stranger come, is the request one that strangers may make (guest_bounds.py), how many are inside, how
many tokens are left of its hour (core/guests.py); then it waits behind everyone nearer (gate.py). What it gets is
hashed, and its record goes to the audit log; where that cannot be written, nothing is served. A member of the public
mesh that is known to be a friend is answered as a member, at the endpoints of strangers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any, Protocol

from meshnode.api.activity import Activity
from meshnode.api.body import LARGE_BODY_BYTES
from meshnode.api.charging import Charge, Payer, Till
from meshnode.api.endpoints import COUNTING_ENDPOINTS, PUBLIC_ENDPOINTS
from meshnode.api.gate import Gates
from meshnode.api.guest_bounds import MOST_BODY_BYTES, Bounded, bounded, counted
from meshnode.api.metering import metered
from meshnode.api.metrics import Gauge, outcome
from meshnode.api.peer_requests import Admitted, MemberTerms, PeerRequest, PeerRequests, Reply
from meshnode.api.record import STATUS_CALLER_LEFT, Record
from meshnode.api.request import Limits
from meshnode.api.served import Served
from meshnode.core.guests import Guests, Refused, Stranger
from meshnode.core.open_policy import prefix_of
from meshnode.core.prices import usd
from meshnode.errors import (
    BodyTooLarge,
    EndpointNotFound,
    MeshnodeError,
    PaymentRequired,
    PublicPaused,
    StrangerLimit,
)
from meshnode.wire.address import Address

MOST_WAITING = 32
"""Requests of all strangers that wait for a slot; each of them may have two here at a time."""
LONGEST_ANSWER_S = 900.0
"""A stranger that takes its answer by drops does not keep a slot for ever."""
PAUSED_S = 60.0


class Trail(Protocol):
    """The audit log. `writable` is False while nothing more would get into it."""

    @property
    def writable(self) -> bool: ...
    def record(self, kind: str, /, **facts: object) -> None: ...
    def mask(self, prefix: str, /) -> str: ...


class GuestRequests:
    """Answers the requests of strangers; `answer` is what a public mesh is given.

    `address_of` is where a node is linked from, if that is known; `is_near` says that the node is a friend's, or our
    own. The other arguments are those of PeerRequests. Strangers share `slots` of all models. With a `till` they pay
    for those that have a price there.
    """

    def __init__(
        self,
        *,
        models: Callable[[], Sequence[Served]],
        gates: Gates,
        guests: Guests,
        slots: int,
        trail: Trail,
        finished: Callable[[Record], None],
        stopping: Callable[[], bool],
        activity: Activity | None = None,
        address_of: Callable[[bytes], Address | None] = lambda node: None,
        is_near: Callable[[bytes], bool] = lambda node: False,
        clock: Callable[[], float] = time.monotonic,
        till: Till | None = None,
    ) -> None:
        self._till = till
        self._gates = gates
        self._guests = guests
        self._trail = trail
        self._address_of = address_of
        self._is_near = is_near
        self._clock = clock
        gates.serve_guests(slots=slots, capacity=MOST_WAITING)
        limits = Limits(MOST_BODY_BYTES, 0)
        self._friends = MemberTerms(limits)
        self._requests = PeerRequests(
            models=models,
            gates=gates,
            limits=limits,
            finished=finished,
            stopping=stopping,
            activity=activity,
            terms=self,
        )

    async def answer(self, request: PeerRequest, reply: Reply) -> None:
        """Answer one request; see PeerRequests.answer. Raises TimeoutError for a stranger that is too slow."""
        async with asyncio.timeout(LONGEST_ANSWER_S):
            await self._requests.answer(request, reply)

    def pause(self, paused: bool) -> None:
        """Serve no strangers from now on: running answers end, those that wait are sent away. Or serve them again."""
        self._guests.paused = paused
        if paused:
            self._gates.dismiss_guests(_paused())

    @property
    def paused(self) -> bool:
        """Whether the owner has paused it."""
        return self._guests.paused

    def facts(self) -> dict[str, Any]:
        """The `strangers` of /api/status."""
        now = self._gates.guests()
        return {"serving": now.busy, "waiting": now.waiting, "slots": now.slots, **self._guests.facts()}

    # --- terms ----------------------------------------------------------------------------------------------

    async def admit(self, request: PeerRequest) -> Admitted:
        """See peer_requests.Terms.

        Raises PublicPaused, StrangerLimit, EndpointNotFound, BodyTooLarge, BadRequest, PaymentRequired.
        """
        if self._is_near(request.peer):
            _check_endpoint(request)
            return await self._friends.admit(request)
        stranger = self._stranger(request.peer)
        if not self._trail.writable:
            self._guests.refused("audit")
            raise PublicPaused("its audit log cannot be written", retry_after_s=PAUSED_S)
        if (refused := self._guests.knock(stranger, self._clock())) is not None:
            raise _error(refused)
        try:
            if request.path in COUNTING_ENDPOINTS:
                return await self._counting(request)
            found = await self._read(request)
            charge = None if self._till is None else self._charge(self._till, request, found)
        except MeshnodeError as error:
            self._guests.refused(error.code)
            raise
        visit = self._guests.enter(stranger, prompt_tokens=found.prompt_tokens, wanted=found.wanted, now=self._clock())
        if isinstance(visit, Refused):
            raise _error(visit)
        answer_tokens = visit.answer_tokens
        if charge is not None and request.payment is not None:
            found = replace(found, members=metered(found.members))
            answer_tokens = max(1, min(answer_tokens, request.payment.ask.most_out))
        return Admitted(
            PUBLIC_ENDPOINTS[request.path],
            found.body(answer_tokens),
            found.members.get("model"),
            guest=stranger,
            visit=visit,
            output=sha256(),
            charge=charge,
        )

    def ended(self, admitted: Admitted | None, record: Record, pieces: int) -> None:
        """Settle what the visit has cost, and record it if the engine was asked."""
        if admitted is None or admitted.visit is None or admitted.guest is None:
            return
        if (charge := admitted.charge) is not None and (charge.tokens_in or charge.tokens_out):
            record.tokens_in, record.tokens_out = charge.tokens_in, charge.tokens_out
        # An answer that was cut short does not tell its counts: an event is about a token, and the prompt was read.
        if admitted.asked and (record.status < 400 or record.status == STATUS_CALLER_LEFT):
            record.tokens_in = record.tokens_in or admitted.visit.prompt_tokens
            record.tokens_out = record.tokens_out or pieces
        self._guests.leave(
            admitted.visit,
            tokens_in=record.tokens_in,
            tokens_out=record.tokens_out,
            served=admitted.asked,
            now=self._clock(),
        )
        if not admitted.asked:
            self._guests.refused(record.error or "left")
            return
        if admitted.output is not None and record.status < 400:
            record.output_sha256 = admitted.output.hexdigest()
        prefix = self._trail.mask(admitted.guest.prefix)
        self._trail.record("served", node=record.peer, prefix=prefix, **{**audit_facts(record), "radius": "public"})

    def _charge(self, till: Till, request: PeerRequest, found: Bounded) -> Charge | None:
        """What the request costs; None where it is free. Raises PaymentRequired for one that should be paid, and what
        find_served raises.
        """
        model, _ = self._requests.find(found.members.get("model"))
        price = till.price(model.id)
        if price.is_free:
            return None
        payer: Payer | None = request.payment
        if payer is None:
            amounts = f"{usd(price.tokens_in)} in and {usd(price.tokens_out)} out"
            raise PaymentRequired(f"{model.id} costs {amounts} per million tokens here")
        return Charge(till, payer, request.peer, prompt_tokens=found.prompt_tokens)

    async def _counting(self, request: PeerRequest) -> Admitted:
        """A question about tokens costs a request of the stranger's minute, and no slot."""
        _check_endpoint(request)
        model, body = await asyncio.to_thread(counted, request.path, request.body)
        return Admitted(COUNTING_ENDPOINTS[request.path], body, model)

    async def _read(self, request: PeerRequest) -> Bounded:
        _check_endpoint(request)
        longest = self._guests.limits.answer_tokens
        if len(request.body) < LARGE_BODY_BYTES:
            return bounded(request.path, request.body, answer_tokens=longest)
        return await asyncio.to_thread(bounded, request.path, request.body, answer_tokens=longest)

    def _stranger(self, node: bytes) -> Stranger:
        address = self._address_of(node)
        if address is None:
            return Stranger(node)
        prefix = prefix_of(address)
        return Stranger(node, prefix.text, prefix.near)


def audit_facts(record: Record) -> dict[str, object]:
    """What the audit log keeps of a request that went to a stranger, or came from one. Never a prompt or an answer."""
    return {
        "request": record.id,
        "model": record.model,
        "endpoint": record.endpoint,
        "radius": record.reached or record.radius,
        "status": record.status,
        "outcome": outcome(record),
        "error": record.error,
        "tokens_in": record.tokens_in,
        "tokens_out": record.tokens_out,
        "cost_micros": record.cost_micros,
        "output_sha256": record.output_sha256,
        "duration_s": record.total_s,
    }


def guest_gauges(facts: dict[str, Any]) -> Iterator[Gauge]:
    """The metrics of `GuestRequests.facts`. Strangers are counted, never named."""
    for name, text in (
        ("serving", "Requests of strangers that are answered now"),
        ("waiting", "Requests of strangers that wait for a slot"),
        ("served", "Requests of strangers that were answered, since the start of the node"),
    ):
        yield f"meshnode_strangers_{name}", text, {}, facts[name]
    for direction in ("in", "out"):
        value = facts[f"tokens_{direction}"]
        yield "meshnode_strangers_tokens", "Tokens of strangers since the start", {"direction": direction}, value
    for reason, value in facts["reasons"].items():
        yield "meshnode_strangers_refused", "Requests of strangers that were refused", {"reason": reason}, value
    yield "meshnode_strangers_paused", "1 while the owner serves no strangers", {}, float(facts["paused"])


def _check_endpoint(request: PeerRequest) -> None:
    if request.method != "POST" or request.path not in PUBLIC_ENDPOINTS | COUNTING_ENDPOINTS:
        listed = ", ".join(PUBLIC_ENDPOINTS)
        raise EndpointNotFound(f"{request.method} {request.path[:200]}; a stranger may POST to {listed}")
    if len(request.body) > MOST_BODY_BYTES:
        raise BodyTooLarge(f"a stranger may send {MOST_BODY_BYTES} bytes")


def _paused() -> PublicPaused:
    return PublicPaused("the owner has paused it", retry_after_s=PAUSED_S)


def _error(refused: Refused) -> MeshnodeError:
    if refused.reason == "paused":
        return _paused()
    return StrangerLimit(refused.text, retry_after_s=refused.retry_after_s)
