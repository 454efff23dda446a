"""`pay` streams: one question about a payment channel, one answer, and then the end (protocol/15-payments.md).

    PaymentsStream   the side that is asked: bounds, and the words of a Desk, which knows the money
    ask              the side that asks

What a Desk does may need the chain, so an answer may take a while; what a peer may ask is bounded by how often, how
much at once, and how long.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, Protocol

from meshnode.core.open_policy import PrefixRates, prefix_of
from meshnode.errors import MeshnodeError, PaymentRefused, PeerRefused, PeerUnreachable
from meshnode.mesh.message_stream import MessageStream
from meshnode.net.stream import MeshStream, StreamReset
from meshnode.telemetry import LOG
from meshnode.wire.address import Address
from meshnode.wire.payments import (
    ANSWERS,
    PAY_ANSWERS,
    PAY_QUESTIONS,
    PayOpen,
    PayOpened,
    PayQuote,
    PayRefund,
    PayRefunded,
    PayRefused,
    PayStand,
    PayState,
    PayTerms,
)
from meshnode.wire.registry import (
    LIMIT_PAY_FRAME_BYTES,
    LIMIT_PAY_TEXT_CHARS,
    PAY_TEXTS,
    Close,
    PayCode,
    Reset,
    Role,
    StreamType,
)
from meshnode.wire.schema import showable
from meshnode.wire.values import WireError

Question = PayTerms | PayState | PayOpen | PayRefund
Answer = PayQuote | PayStand | PayOpened | PayRefunded

QUESTION_S = 5.0
ANSWER_S = 30.0
"""A deposit is simulated and submitted within; that it is mined is for the asking node to see."""
ASKED_AT_ONCE = 8
"""Questions of one peer that are worked on."""
QUESTIONS_A_SECOND = 1.0
QUESTIONS_AT_ONCE = 16
NEAR_QUESTIONS_A_SECOND = 50.0
NEAR_QUESTIONS_AT_ONCE = 200


class Desk(Protocol):
    """Answers questions about channels to this node."""

    async def answer(self, node: bytes, question: Question, /) -> Answer:
        """The answer to a node. Raises PaymentRefused with a code for one that gets none, other MeshnodeErrors where
        the chain or the ledger does not let it answer.
        """
        ...


class PaymentsStream:
    """Serves `pay` streams. `counters` gets: pay_answered, pay_refused, pay_too_often, pay_malformed, pay_too_slow."""

    def __init__(self, desk: Desk, counters: Counter[str]) -> None:
        self._desk = desk
        self._counters = counters
        self._working: Counter[bytes] = Counter()
        self._rates = PrefixRates(
            per_s=QUESTIONS_A_SECOND,
            burst=QUESTIONS_AT_ONCE,
            near_per_s=NEAR_QUESTIONS_A_SECOND,
            near_burst=NEAR_QUESTIONS_AT_ONCE,
        )

    async def serve(self, stream: MeshStream, header: bytes, role: Role | None) -> None:
        """One stream (mesh.streams.StreamHandler)."""
        messages = MessageStream(stream, PAY_QUESTIONS, frame_bytes=LIMIT_PAY_FRAME_BYTES)
        try:
            question = None if header else await messages.receive(QUESTION_S)
        except TimeoutError:
            self._end(stream, "pay_too_slow", Reset.TOO_SLOW)
            return
        except WireError:
            question = None
        if question is None:
            self._end(stream, "pay_malformed", Reset.MALFORMED)
            return
        messages.finish(await self._answer(stream, question))

    async def _answer(self, stream: MeshStream, question: Question) -> Answer | PayRefused:
        peer = stream.link.peer
        address = Address.of(stream.link.address.host, stream.link.address.port)
        if self._working[peer] >= ASKED_AT_ONCE or not self._rates.take(prefix_of(address), monotonic()):
            self._counters["pay_too_often"] += 1
            return refusal(PayCode.TOO_OFTEN)
        self._working[peer] += 1
        try:
            async with asyncio.timeout(ANSWER_S):
                answer = await self._desk.answer(peer, question)
            self._counters["pay_answered"] += 1
            return answer
        except PaymentRefused as reason:
            self._counters["pay_refused"] += 1
            return refusal(reason.pay_code, reason.detail)
        except (MeshnodeError, TimeoutError) as reason:
            LOG.info("a question about a payment channel was not answered: %s", type(reason).__name__)
            self._counters["pay_refused"] += 1
            return refusal(PayCode.CHAIN_DOWN)
        finally:
            self._working[peer] -= 1
            if not self._working[peer]:
                del self._working[peer]

    def _end(self, stream: MeshStream, counter: str, code: Reset) -> None:
        self._counters[counter] += 1
        stream.reset(code)


def refusal(code: int, text: str = "") -> PayRefused:
    """A refusal as it is sent: a text of ours, cut and without what cannot be shown."""
    return PayRefused(code, showable(text or PAY_TEXTS[code], LIMIT_PAY_TEXT_CHARS))


OpenStream = Callable[..., Awaitable[MeshStream]]
"""Mesh.open_stream: (peer, type, header) -> a stream."""


async def ask(open_stream: OpenStream, node: bytes, question: Question, *, timeout_s: float = ANSWER_S) -> Any:
    """The answer of a node to a question: of the class that ANSWERS names for it.

    Raises PaymentRefused with the code of the node, PeerUnreachable, PeerRefused for an answer against the rules.
    """
    stream: MeshStream | None = None
    try:
        async with asyncio.timeout(timeout_s):
            stream = await open_stream(node, StreamType.PAY, b"")
            messages = MessageStream(stream, PAY_ANSWERS, frame_bytes=LIMIT_PAY_FRAME_BYTES)
            messages.finish(question)
            answer = await messages.receive()
    except TimeoutError:
        raise PeerUnreachable(f"{node.hex()[:10]} does not answer about payments") from None
    except WireError as error:
        raise PeerRefused(error.reason, close_code=error.code) from None
    except StreamReset:
        raise PeerRefused(f"{node.hex()[:10]} takes no payments", close_code=Close.NOT_ADMITTED) from None
    except OSError as reason:
        raise PeerUnreachable(str(reason)) from None
    finally:
        if stream is not None and not stream.is_finished:
            stream.abort()
    if isinstance(answer, PayRefused):
        raise refused(answer)
    if not isinstance(answer, ANSWERS[type(question)]):
        raise PeerRefused("it answers another question", close_code=Close.PROTOCOL_ERROR)
    return answer


def refused(answer: PayRefused) -> PaymentRefused:
    """The refusal of another node as an error. Its words are its own; a code that no version knows has none of ours."""
    return PaymentRefused(answer.text or PAY_TEXTS.get(answer.code, f"code {answer.code}"), pay_code=answer.code)
