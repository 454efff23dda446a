"""The door of the API port for strangers over plain HTTP: who has no key may pay for an answer by x402 (api/x402.py).

    no key, no payment   402 with what this very request can cost at most
    a payment            taken for what this request costs now, or 402 again with what is wrong; then the request goes
                         the way of all strangers (guest_requests.py), and one voucher pays for it
    a key, or elsewhere  the application behind, untouched

The payer is charged what it got, and never more than it vouched for. Of a payer one request is answered at a time, as
its next voucher depends on what this one comes to.

An answer that is no stream is put together from one, as the gateway does for its own callers, so that the engine stops
when its caller leaves. Protocol: 15-payments, "Plain HTTP".
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from meshnode.api import x402
from meshnode.api.access import Access
from meshnode.api.aggregate import StreamFailed
from meshnode.api.answer import Answer, CallerLeft, Send
from meshnode.api.app import ASGIApp
from meshnode.api.body import LARGE_BODY_BYTES, parse_object
from meshnode.api.delivery import Collecting, Passing
from meshnode.api.dialects import dialect_of, error_body, error_headers, foreign_error_body
from meshnode.api.endpoints import ENDPOINTS
from meshnode.api.guest_bounds import MOST_BODY_BYTES, bounded
from meshnode.api.peer_requests import PeerRequest, Reply
from meshnode.api.request import Receive, Scope, as_stream, read_body, unless_caller_leaves
from meshnode.api.served import Served, find_served
from meshnode.api.x402 import Offer, Payment, Terms
from meshnode.api.x402_cashier import Cashier, Unpaid, check_voucher, taken, told
from meshnode.api.x402_sale import Asked, HttpReply, OneVoucher, Refusal
from meshnode.core.counting import most_tokens_in
from meshnode.core.guests import GuestLimits, Guests, Stranger
from meshnode.core.open_policy import prefix_of
from meshnode.core.prices import charge, usd
from meshnode.errors import (
    BadRequest,
    MeshnodeError,
    PaymentRefused,
    PaymentRequired,
    RequestTimeout,
    StrangerLimit,
    Unauthorized,
)
from meshnode.telemetry import LOG, new_request_id
from meshnode.wire.address import Address

PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
KEYLESS = (b"", b"bearer", b"bearer x402")
"""What `authorization` is, in lower case, where somebody brings no key: some SDKs cannot leave it out."""
REQUESTS_A_MINUTE = 120
"""Of one address, answered or not; a prefix may have more (core/guests.py)."""
TEMPLATE_TOKENS = 512
"""What a template may add of its own, once: a system prompt, and how tools are called."""
MEDIA_MARKS = (b"image_url", b"input_image", b"input_audio", b"input_video", b"video_url")
MOST_READING = 16
"""Bodies that are read at a time, of all who have no key."""
LONGEST_READING_S = 60.0


@dataclass(frozen=True, slots=True)
class Call:
    """One request of somebody without a key, on the terms of this moment."""

    scope: Scope
    terms: Terms
    request_id: str

    @property
    def path(self) -> str:
        """The endpoint."""
        return str(self.scope["path"])

    @property
    def url(self) -> str:
        """What was asked for."""
        host = next((value for name, value in self.scope["headers"] if name == b"host"), b"")
        return f"{self.scope.get('scheme', 'http')}://{host.decode('latin-1')}{self.path}"

    @property
    def address(self) -> Address | None:
        """Where it comes from."""
        try:
            return Address.of(*self.scope["client"][:2])
        except (KeyError, TypeError, ValueError):
            return None

    def header(self, wanted: bytes) -> bytes | None:
        """The one header of that name. Raises BadRequest where there are more."""
        found = [value for name, value in self.scope["headers"] if name == wanted]
        if len(found) > 1:
            raise BadRequest(f"two headers {wanted.decode()}")
        return found[0] if found else None


@dataclass(frozen=True, slots=True)
class Ordered:
    """A request that may be made: what it can cost, and what goes to the engine, which streams in every case."""

    offer: Offer
    body: bytes
    is_stream: bool


class X402Door:
    """Stands in front of `app`, whose callers `access` tells apart.

    `strangers` answers a request as one of a stranger's (GuestRequests.answer), `models` are those of this node, and
    no stranger's answer has more than `longest_answer` tokens. The node ids in such requests are x402.payer_id's. Of
    those whose request runs `address_of` knows where they are, and `offer_of` what they may be charged (CappedTill).
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        *,
        cashier: Cashier,
        strangers: Callable[[PeerRequest, Reply], Awaitable[None]],
        models: Callable[[], Sequence[Served]],
        longest_answer: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._access = access
        self._cashier = cashier
        self._strangers = strangers
        self._models = models
        self._longest_answer = longest_answer
        self._clock = clock
        self._callers = Guests(GuestLimits(requests=REQUESTS_A_MINUTE))
        self._reading = 0
        self._inside: dict[bytes, tuple[Address | None, Offer]] = {}

    def address_of(self, node: bytes) -> Address | None:
        """Where the payer with this id asks from now; None for any other node."""
        return self._inside[node][0] if node in self._inside else None

    def offer_of(self, node: bytes) -> Offer | None:
        """What the request of this payer may cost; None for any other node."""
        return self._inside[node][1] if node in self._inside else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        terms = self._cashier.terms() if self._is_for_payers(scope) else None
        if terms is None:
            await self._app(scope, receive, send)
            return
        call = Call(scope, terms, new_request_id())
        answer = Answer(
            send,
            dialect=dialect_of(call.path),
            headers={"x-meshnode-request-id": call.request_id},
            request_id=call.request_id,
        )
        try:
            await self._serve(call, receive, answer)
        except CallerLeft:
            pass
        except MeshnodeError as error:
            await answer.fail(error)
        except Exception:
            LOG.exception("request %s failed", call.request_id)
            await answer.fail(MeshnodeError("this is a fault of meshnode; its log has the details"))
        finally:
            answer.stop_watching()

    def _is_for_payers(self, scope: Scope) -> bool:
        """Whether it is a request that can be paid for, by somebody whom the application behind would send away."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in PATHS:
            return False
        try:
            self._access.check(scope)
            return False
        except Unauthorized:
            names = [name for name, _ in scope["headers"]]
            return b"payment-signature" in names or not _brings_key(scope)
        except MeshnodeError:
            return False

    async def _serve(self, call: Call, receive: Receive, answer: Answer) -> None:
        given = call.header(b"payment-signature")
        self._knock(call.address)
        payment = x402.read_payment(given) if given is not None else None
        ordered = await self._ordered(call, await self._body(call, receive))
        try:
            if payment is None:
                raise Unpaid(x402.WANTED)
            await unless_caller_leaves(receive, self._sell(call, ordered, payment, answer))
        except Unpaid as unpaid:
            await _ask_for_payment(call, ordered.offer, payment, unpaid, answer)

    # --- what is asked --------------------------------------------------------------------------------------------

    def _knock(self, address: Address | None) -> None:
        """Count a request of this address. Raises StrangerLimit."""
        stranger = Stranger(b"")
        if address is not None:
            prefix = prefix_of(address)
            stranger = Stranger(address.host.encode(), prefix.text, prefix.near)
        if (refused := self._callers.knock(stranger, self._clock())) is not None:
            raise StrangerLimit(refused.text, retry_after_s=refused.retry_after_s)

    async def _body(self, call: Call, receive: Receive) -> bytes:
        if self._reading >= MOST_READING:
            raise StrangerLimit("too many requests come in at this moment", retry_after_s=2.0)
        self._reading += 1
        try:
            async with asyncio.timeout(LONGEST_READING_S):
                return await read_body(receive, call.header(b"content-length"), MOST_BODY_BYTES)
        except TimeoutError:
            raise RequestTimeout(f"it took more than {LONGEST_READING_S:.0f} s") from None
        finally:
            self._reading -= 1

    async def _ordered(self, call: Call, raw: bytes) -> Ordered:
        """What is asked for, and what it costs. Raises what is wrong with it; Unauthorized for a model that is free."""
        found = await parse_object(raw)
        is_stream = found.members.get("stream") is True
        body = raw if is_stream else as_stream(found, ENDPOINTS[call.path])
        model = find_served(found.members.get("model"), list(self._models()), {})
        price = self._cashier.price(model.id)
        if price.is_free:
            raise Unauthorized
        longest = self._longest_answer
        if len(body) < LARGE_BODY_BYTES:
            asked = bounded(call.path, body, answer_tokens=longest)
        else:
            asked = await asyncio.to_thread(bounded, call.path, body, answer_tokens=longest)
        most_out = max(1, longest if asked.wanted is None else min(asked.wanted, longest))
        most_in = _most_in(raw, found.members, 0 if model.local is None else model.local.context_length)
        offer = Offer(model.id, price, most_in, most_out, charge(price, most_in, most_out))
        return Ordered(offer, body, is_stream)

    # --- what is paid, and answered -------------------------------------------------------------------------------

    async def _sell(self, call: Call, ordered: Ordered, payment: Payment, answer: Answer) -> None:
        """Answer a request, if the payment is one for it. Raises Unpaid."""
        check_voucher(self._cashier, payment, call.terms, ordered.offer.amount)
        payer = x402.payer_id(payment.config.payer_authorizer)
        if payer in self._inside:
            raise Unpaid(x402.BUSY, retry_after_s=1.0)
        self._inside[payer] = call.address, ordered.offer
        try:
            stand, transaction = await taken(self._cashier, payment, call.terms, payer)
            sale = OneVoucher(call.request_id, ordered.offer, payment, call.terms.chain, stand, transaction)
            await self._answer(Asked(call.path, ordered.body, payer, call.request_id, sale), ordered, answer)
        finally:
            del self._inside[payer]

    async def _answer(self, request: Asked, ordered: Ordered, answer: Answer) -> None:
        sale = request.payment

        def begins() -> None:
            answer.add_headers(payment_response=sale.response(has_ended=False))

        reply = HttpReply(Passing(answer), begins) if ordered.is_stream else HttpReply(Collecting(answer, request.path))
        failure = await self._given(request, reply)
        has_paid = failure is None or bool(sale.charged_micros or sale.transaction)
        paid = sale.response(has_ended=True)
        if answer.started:
            await answer.write(b": payment-response " + paid.encode() + b"\n\n")
        elif has_paid:
            answer.add_headers(payment_response=paid)
        if (refused := sale.refused_with) is not None and not answer.started:
            raise told(PaymentRefused(refused.text, pay_code=refused.code))
        if isinstance(failure, Refusal):
            await _pass_on(failure, answer)
        elif failure is not None:
            await answer.fail(failure)
        else:
            await reply.sink.end()

    async def _given(self, request: Asked, reply: HttpReply) -> MeshnodeError | Refusal | None:
        """Have a request answered; what went wrong with it."""
        try:
            await self._strangers(request, reply)
        except StreamFailed as reason:
            return Refusal(reason.status, reason.error)
        except TimeoutError:
            return StrangerLimit("the answer took too long")
        except MeshnodeError as reason:
            return reason
        return reply.refusal


def _most_in(raw: bytes, members: Mapping[str, object], context_length: int) -> int:
    """The most tokens that the prompt of a body can have: one for each byte, and what the template of the model adds.
    A picture or sound may have any number, up to all that the model can read.
    """
    turns = members.get("messages", members.get("input"))
    most = most_tokens_in(len(raw), len(turns) if isinstance(turns, list) else 1) + TEMPLATE_TOKENS
    if not context_length:
        return most
    return context_length if any(mark in raw for mark in MEDIA_MARKS) else min(most, context_length)


def _brings_key(scope: Scope) -> bool:
    """Whether a caller shows a key, which then is a wrong one."""
    for name, value in scope["headers"]:
        if name == b"x-api-key" and value.strip():
            return True
        if name == b"authorization" and value.strip().lower() not in KEYLESS:
            return True
    return False


async def _ask_for_payment(call: Call, offer: Offer, payment: Payment | None, unpaid: Unpaid, answer: Answer) -> None:
    """Answer 402."""
    channel = payment.voucher.channel if payment is not None else b""
    wanted = x402.required(unpaid.why, call.url, call.terms, offer, unpaid.stand, channel)
    prices = f"{usd(offer.price.tokens_in)} in and {usd(offer.price.tokens_out)} out per million tokens"
    error = PaymentRequired(
        f"{unpaid.why}. {offer.model} costs {prices} here, this request {usd(offer.amount)} at most",
        fix="pay by x402: one of `accepts`, signed, in PAYMENT-SIGNATURE",
        retry_after_s=unpaid.retry_after_s,
    )
    headers = {"payment-required": x402.header(wanted), "cache-control": "no-store", **error_headers(error)}
    if unpaid.paid:
        headers["payment-response"] = unpaid.paid
    public = {name: wanted[name] for name in ("x402Version", "resource", "accepts")}
    await answer.json(error.http_status, {**error_body(error, answer.dialect), **public}, headers)


async def _pass_on(refusal: Refusal, answer: Answer) -> None:
    """An error of the engine, or of strangers' bounds, in the caller's dialect."""
    message = str(refusal.error.get("message", "the engine gave no reason"))
    code = str(refusal.error.get("type", "engine_refused"))
    body = foreign_error_body(message, refusal.status, code, answer.dialect)
    await answer.json(refusal.status, body, {"retry-after": refusal.retry_after} if refusal.retry_after else {})
