"""Questions about payment channels: one a stream, bounded, and answered by a desk that may say no."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from meshnode.errors import ChainUnreachable, PaymentRefused, PeerRefused, PeerUnreachable
from meshnode.mesh import payments_stream
from meshnode.mesh.payments_stream import ASKED_AT_ONCE, QUESTIONS_AT_ONCE, PaymentsStream, ask
from meshnode.net.stream import LinkLost, MeshStream
from meshnode.wire.frames import encode_frame, encode_stream_header
from meshnode.wire.messages import encode_message, message_id
from meshnode.wire.payments import PayOpened, PayStand, PayState, PayTerms, PayVoucher
from meshnode.wire.registry import LIMIT_PAY_FRAME_BYTES, LIMIT_PAY_TEXT_CHARS, PayCode, Reset, Role, StreamType
from tests.mesh.memory_link import code_of, memory_links

pytestmark = pytest.mark.anyio

CHANNEL = b"c" * 32
STATE = PayState(CHANNEL)
STAND = PayStand(5, 9, b"s" * 65, 100, 2)
NODE = b"s" * 32


class FakeDesk:
    """Answers with `says`, or raises it; waits for `go` before."""

    def __init__(self, says: Any = STAND) -> None:
        self.says = says
        self.asked: list[tuple[bytes, Any]] = []
        self.go = asyncio.Event()
        self.go.set()

    async def answer(self, node: bytes, question: Any, /) -> Any:
        self.asked.append((node, question))
        await self.go.wait()
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


class Served:
    """A PaymentsStream behind a link in memory, whose peer has the address `host`."""

    def __init__(self, desk: FakeDesk, host: str = "11.7.1.5") -> None:
        self.counters: Counter[str] = Counter()
        self.payments = PaymentsStream(desk, self.counters)
        self.tasks: list[asyncio.Task[None]] = []
        self.link, far = memory_links(self.opened)
        far.address = SimpleNamespace(host=host, port=9)  # type: ignore[attr-defined]

    def opened(self, stream: MeshStream) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(self.serve(stream)))

    async def serve(self, stream: MeshStream) -> None:
        await stream.read_exactly(len(encode_stream_header(StreamType.PAY, b"")))
        await self.payments.serve(stream, b"", Role.MEMBER)

    async def open(self, node: bytes, kind: StreamType, header: bytes) -> MeshStream:
        assert (node, kind) == (NODE, StreamType.PAY)
        stream = self.link.open_stream()
        stream.write(encode_stream_header(kind, header))
        return stream

    async def sent(self, data: bytes, *, end: bool = False) -> MeshStream:
        stream = await self.open(NODE, StreamType.PAY, b"")
        stream.write(data)
        if end:
            stream.write_eof()
        return stream

    async def over(self) -> None:
        async with asyncio.timeout(2):
            await asyncio.gather(*self.tasks)


async def test_a_question_and_its_answer() -> None:
    desk = FakeDesk()
    served = Served(desk)
    assert await ask(served.open, NODE, STATE) == STAND
    await served.over()
    assert desk.asked == [(b"c" * 32, STATE)]
    assert served.counters == {"pay_answered": 1}


@pytest.mark.parametrize(
    ("says", "code", "text"),
    [
        (PaymentRefused("not here", pay_code=PayCode.UNKNOWN_CHANNEL), PayCode.UNKNOWN_CHANNEL, "not here"),
        (PaymentRefused("a\nb" + "x" * 500, pay_code=PayCode.TOO_SMALL), PayCode.TOO_SMALL, "a b" + "x" * 197),
        (PaymentRefused(pay_code=PayCode.NOT_SELLING), PayCode.NOT_SELLING, "this node sells nothing of the kind"),
        (
            ChainUnreachable("https://key@rpc.example"),
            PayCode.CHAIN_DOWN,
            "the chain cannot be reached or does not agree with itself",
        ),
    ],
)
async def test_a_refusal_comes_with_its_code_and_says_nothing_of_this_node(
    says: Exception, code: PayCode, text: str
) -> None:
    served = Served(FakeDesk(says))
    with pytest.raises(PaymentRefused) as refused:
        await ask(served.open, NODE, STATE)
    assert (refused.value.pay_code, refused.value.detail) == (code, text)
    assert len(refused.value.detail) <= LIMIT_PAY_TEXT_CHARS
    await served.over()
    assert served.counters == {"pay_refused": 1}


async def test_a_desk_that_takes_too_long_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payments_stream, "ANSWER_S", 0.01)
    desk = FakeDesk()
    desk.go.clear()
    served = Served(desk)
    with pytest.raises(PaymentRefused) as refused:
        await ask(served.open, NODE, STATE, timeout_s=2)
    assert refused.value.pay_code == PayCode.CHAIN_DOWN


async def test_a_peer_may_ask_so_often() -> None:
    served = Served(FakeDesk())
    for _ in range(QUESTIONS_AT_ONCE):
        await ask(served.open, NODE, STATE)
    with pytest.raises(PaymentRefused) as refused:
        await ask(served.open, NODE, STATE)
    assert refused.value.pay_code == PayCode.TOO_OFTEN
    assert served.counters["pay_too_often"] == 1


async def test_and_so_much_at_once() -> None:
    desk = FakeDesk()
    desk.go.clear()
    served = Served(desk, host="127.0.0.1")
    asking = [asyncio.create_task(ask(served.open, NODE, STATE)) for _ in range(ASKED_AT_ONCE)]
    while len(desk.asked) < ASKED_AT_ONCE:
        await asyncio.sleep(0)
    with pytest.raises(PaymentRefused) as refused:
        await ask(served.open, NODE, STATE)
    assert refused.value.pay_code == PayCode.TOO_OFTEN
    desk.go.set()
    assert await asyncio.gather(*asking) == [STAND] * ASKED_AT_ONCE
    assert await ask(served.open, NODE, STATE) == STAND


VOUCHER = PayVoucher(CHANNEL, 1, b"s" * 65)
BAD = {
    "no frame": b"GET / HTTP/1.1\r\n\r\n",
    "an answer": encode_frame(message_id(STAND), encode_message(STAND)),
    "a voucher": encode_frame(message_id(VOUCHER), encode_message(VOUCHER)),
    "too large": (LIMIT_PAY_FRAME_BYTES + 1).to_bytes(4, "big"),
    "no message": encode_frame(message_id(STATE), b"\xc1"),
    "half of it": encode_frame(message_id(STATE), encode_message(STATE))[:-3],
    "nothing": b"",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
async def test_what_is_no_question_is_reset(data: bytes) -> None:
    desk = FakeDesk()
    served = Served(desk)
    assert await code_of(await served.sent(data, end=True)) == Reset.MALFORMED
    await served.over()
    assert (desk.asked, served.counters) == ([], {"pay_malformed": 1})


async def test_a_header_is_no_question() -> None:
    served = Served(FakeDesk())
    stream = served.link.open_stream()
    opened = asyncio.create_task(served.payments.serve(stream, b"\x01", Role.MEMBER))  # type: ignore[arg-type]
    await opened
    assert stream.is_closing() and served.counters == {"pay_malformed": 1}


async def test_a_peer_that_asks_nothing_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payments_stream, "QUESTION_S", 0.01)
    served = Served(FakeDesk())
    assert await code_of(await served.sent(b"\0\0")) == Reset.TOO_SLOW
    assert served.counters == {"pay_too_slow": 1}


# --- the side that asks -----------------------------------------------------------------------------------------------


class Answering:
    """A peer that answers every question with these bytes, and then ends or resets the stream."""

    def __init__(self, data: bytes, *, reset: bool = False) -> None:
        self._data, self._reset = data, reset
        self._link, _ = memory_links(self._opened)

    def _opened(self, stream: MeshStream) -> None:
        if self._reset:
            stream.reset(Reset.REFUSED)
            return
        stream.write(self._data)
        stream.write_eof()

    async def open(self, node: bytes, kind: StreamType, header: bytes) -> MeshStream:
        stream = self._link.open_stream()
        stream.write(encode_stream_header(kind, header))
        return stream


OPENED = PayOpened(b"t" * 32)


@pytest.mark.parametrize(
    "data",
    [b"", b"\0\0\0\x02\xff\xff", encode_frame(message_id(STATE), encode_message(STATE)), b"\xff" * 8],
    ids=["nothing", "nothing known", "a question", "noise"],
)
async def test_what_is_no_answer_is_the_peers_fault(data: bytes) -> None:
    with pytest.raises(PeerRefused):
        await ask(Answering(data).open, NODE, STATE)


async def test_the_answer_to_another_question_is_none() -> None:
    peer = Answering(encode_frame(message_id(OPENED), encode_message(OPENED)))
    with pytest.raises(PeerRefused, match="another question"):
        await ask(peer.open, NODE, STATE)


async def test_a_peer_that_takes_no_payments() -> None:
    with pytest.raises(PeerRefused, match="takes no payments"):
        await ask(Answering(b"", reset=True).open, NODE, PayTerms("demo"))


async def test_a_peer_that_is_gone_or_silent() -> None:
    async def lost(node: bytes, kind: StreamType, header: bytes) -> MeshStream:
        raise LinkLost("gone")

    with pytest.raises(PeerUnreachable):
        await ask(lost, NODE, STATE)
    silent, _ = memory_links()

    async def opened(node: bytes, kind: StreamType, header: bytes) -> MeshStream:
        return silent.open_stream()  # type: ignore[no-any-return]

    with pytest.raises(PeerUnreachable, match="does not answer"):
        await ask(opened, NODE, STATE, timeout_s=0.01)
    assert all(stream.is_closing() for stream in silent.streams.values())


async def test_words_of_a_later_version_are_shown_as_they_are() -> None:
    refusal = payments_stream.PayRefused(200, "")
    assert payments_stream.refused(refusal).detail == "code 200"
    assert payments_stream.refused(payments_stream.PayRefused(200, "its own")).detail == "its own"
