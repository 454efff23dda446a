"""The serving end of a paid stream: HTTP and money on one stream, and payers that do not keep to the rules."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from meshnode.mesh.paid_stream import TOKENS_A_VOUCHER, VOUCHERS_AT_ONCE, PaidStream, StreamMisused
from meshnode.mesh.tunnel import Answer, TunnelLimits, TunnelReply, TunnelServer
from meshnode.mesh.tunnel_request import RequestLimits, TunnelRequest
from meshnode.net.stream import MeshStream
from meshnode.wire.frames import FrameReader, encode_frame, encode_stream_header
from meshnode.wire.messages import decode_message, encode_message, message_id
from meshnode.wire.payments import PAID_HEADER, PayAsk, PayDue, PayHttp, PayReceipt, PayRefused, PayVoucher, is_paid
from meshnode.wire.registry import LIMIT_PAY_FRAME_BYTES, LIMIT_PAY_HTTP_BYTES, MessageId, PayCode, Reset, StreamType
from meshnode.wire.values import WireError
from tests.mesh.memory_link import MemoryLink, code_of, memory_links

pytestmark = pytest.mark.anyio
PATH = "/v1/chat/completions"
ASK = PayAsk("req_1", "demo", 100, 84532)
HTTP = b"POST %s HTTP/1.1\r\nHost: llama-server\r\nContent-Length: 2\r\n\r\n{}" % PATH.encode()
CHANNEL = b"c" * 32
RECEIPT = PayReceipt(b"{}")


def frame(message: Any) -> bytes:
    return encode_frame(message_id(message), encode_message(message))


def voucher(cumulative: int) -> PayVoucher:
    return PayVoucher(CHANNEL, cumulative, b"s" * 65)


class Running:
    """A tunnel server that answers with `answer`, behind a link in memory."""

    def __init__(self, answer: Answer, limits: TunnelLimits | None = None) -> None:
        self.counters: Counter[str] = Counter()
        limits = limits or TunnelLimits()
        self.server = TunnelServer(answer, admitted={("POST", PATH)}, limits=limits, counters=self.counters)
        self.tasks: list[asyncio.Task[None]] = []
        self.header = PAID_HEADER
        self.link: MemoryLink
        self.link, self.far = memory_links(self.opened)

    def opened(self, stream: MeshStream) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(self.serve(stream)))

    async def serve(self, stream: MeshStream) -> None:
        await stream.read_exactly(len(encode_stream_header(StreamType.HTTP, self.header)))
        await self.server.serve(stream, self.header)

    def stream(self, *messages: Any) -> MeshStream:
        stream = self.link.open_stream()
        stream.write(encode_stream_header(StreamType.HTTP, self.header))
        for message in messages:
            stream.write(message if isinstance(message, bytes) else frame(message))
        return stream

    async def over(self) -> None:
        async with asyncio.timeout(2):
            await asyncio.gather(*self.tasks)


async def messages_of(stream: MeshStream) -> list[Any]:
    """All that comes until the end."""
    frames, found = FrameReader(), []
    async with asyncio.timeout(2):
        while data := await stream.read(1 << 16):
            found += [decode_message(number, body) for number, body in frames.feed(data)]
    return found


def payment(request: TunnelRequest) -> PaidStream:
    assert request.payment is not None
    return request.payment


def waiting(work: Callable[[PaidStream], Awaitable[None]]) -> Answer:
    """Sends a head, does `work`, and then waits until it is ended."""

    async def answer(request: TunnelRequest, reply: TunnelReply) -> None:
        await reply.head(200, [])
        await work(payment(request))
        await asyncio.get_running_loop().create_future()

    return answer


async def nothing(_: PaidStream) -> None:
    """Only wait."""


async def test_a_request_its_answer_and_the_money_travel_on_one_stream() -> None:
    seen: list[Any] = []

    async def answer(request: TunnelRequest, reply: TunnelReply) -> None:
        paid = payment(request)
        seen.extend([paid.ask, request.body, await paid.voucher()])
        await reply.head(200, [])
        paid.counted(7, 1)
        await reply.body(b"x" * (LIMIT_PAY_HTTP_BYTES + 1))
        paid.send(PayDue(9, 7, 1))
        seen.append(await paid.voucher())
        paid.send(RECEIPT)
        await reply.finish()

    running = Running(answer)
    stream = running.stream(ASK, voucher(3), *(PayHttp(bytes([byte])) for byte in HTTP))
    frames, found = FrameReader(), []
    while not any(isinstance(message, PayDue) for message in found):
        found += [decode_message(number, body) for number, body in frames.feed(await stream.read(1 << 16))]
    stream.write(frame(voucher(9)))
    found += await messages_of(stream)
    assert seen == [ASK, b"{}", voucher(3), voucher(9)]
    head, *pieces, due, receipt = found
    assert head.data.startswith(b"HTTP/1.1 200 OK\r\n") and (head.tokens_in, head.tokens_out) == (0, 0)
    assert [len(piece.data) for piece in pieces] == [LIMIT_PAY_HTTP_BYTES, 1]
    assert all((piece.tokens_in, piece.tokens_out) == (7, 1) for piece in pieces)
    assert (due, receipt) == (PayDue(9, 7, 1), RECEIPT)
    stream.write_eof()
    await running.over()
    assert running.counters == {"http_answered": 1}


async def test_a_refusal_of_the_tunnel_comes_in_frames() -> None:
    running = Running(waiting(nothing))
    stream = running.stream(ASK, PayHttp(HTTP.replace(b"/v1/chat", b"/slots")))
    [head] = await messages_of(stream)
    assert head.data.startswith(b"HTTP/1.1 404 ")
    stream.abort()
    await running.over()
    assert running.counters == {"http_refused": 1}


UNKNOWN_ODD = encode_frame(999, b"\x80")
BAD = {
    "http before anything is asked": [PayHttp(HTTP)],
    "a voucher before anything is asked": [voucher(1), ASK],
    "asked twice": [ASK, PayHttp(HTTP), ASK],
    "a message of the provider": [ASK, PayHttp(HTTP), PayDue(1)],
    "a message of another stream": [ASK, PayHttp(HTTP), encode_frame(MessageId.PUNCH_DONE, b"\x80")],
    "an unknown message that counts": [ASK, PayHttp(HTTP), encode_frame(9998, b"\x80")],
    "a frame that is too long": [ASK, (1 << 31).to_bytes(4, "big") + b"\0\0"],
    "a large message about money": [ASK, encode_frame(MessageId.PAY_VOUCHER, bytes(LIMIT_PAY_FRAME_BYTES + 1))],
    "bytes that are no message": [ASK, encode_frame(MessageId.PAY_HTTP, b"\xc1")],
}


@pytest.mark.parametrize("messages", BAD.values(), ids=BAD)
async def test_what_has_no_place_on_the_stream_ends_it(messages: list[Any]) -> None:
    running = Running(waiting(nothing))
    assert await code_of(running.stream(*messages)) == Reset.MALFORMED
    await running.over()
    assert running.counters.total() == running.counters["http_malformed"] == 1


async def test_bytes_after_the_request_end_it() -> None:
    running = Running(waiting(nothing))
    stream = running.stream(ASK, PayHttp(HTTP))
    await stream.read(1)
    stream.write(frame(PayHttp(b"GET /slots HTTP/1.1\r\n\r\n")))
    assert await code_of(stream) == Reset.MALFORMED
    await running.over()


async def test_messages_of_later_versions_are_passed_over() -> None:
    async def answer(_: TunnelRequest, reply: TunnelReply) -> None:
        await reply.head(200, [])
        await reply.finish()

    running = Running(answer)
    stream = running.stream(UNKNOWN_ODD, ASK, UNKNOWN_ODD, PayHttp(HTTP), UNKNOWN_ODD)
    assert len(await messages_of(stream)) == 1
    stream.write_eof()
    await running.over()


@pytest.mark.parametrize("ended", [b"", frame(ASK)[:-1], frame(ASK) + frame(PayHttp(HTTP))[:20]])
async def test_a_stream_that_ends_in_the_middle_is_malformed(ended: bytes) -> None:
    running = Running(waiting(nothing))
    stream = running.stream(ended)
    stream.write_eof()
    assert await code_of(stream) == Reset.MALFORMED
    await running.over()


async def test_a_payer_that_asks_for_nothing_is_not_waited_for() -> None:
    running = Running(waiting(nothing), TunnelLimits(RequestLimits(head_s=0.02)))
    assert await code_of(running.stream()) == Reset.TOO_SLOW
    await running.over()


async def test_another_kind_of_stream_is_refused() -> None:
    running = Running(waiting(nothing))
    running.header = b"\x02"
    assert await code_of(running.stream()) == Reset.MALFORMED
    await running.over()


async def test_of_many_vouchers_only_the_newest_waits() -> None:
    seen: list[PayVoucher | None] = []
    released = asyncio.Event()

    async def take(paid: PaidStream) -> None:
        await released.wait()
        seen.append(await paid.voucher())

    running = Running(waiting(take))
    stream = running.stream(ASK, PayHttp(HTTP), *map(voucher, range(1, VOUCHERS_AT_ONCE + 1)))
    await stream.read(1)
    released.set()
    stream.write_eof()
    await running.over()
    assert seen == [voucher(VOUCHERS_AT_ONCE)]


@pytest.mark.parametrize("tokens", [0, 40])
async def test_a_flood_of_vouchers_ends_the_stream(tokens: int) -> None:
    async def give(paid: PaidStream) -> None:
        paid.counted(1, tokens)

    running = Running(waiting(give))
    stream = running.stream(ASK, PayHttp(HTTP))
    await stream.read(1)
    most = VOUCHERS_AT_ONCE + tokens // TOKENS_A_VOUCHER
    for number in range(most):
        stream.write(frame(voucher(number)))
    await asyncio.sleep(0)
    assert not stream.is_closing()
    stream.write(frame(voucher(most)))
    assert await code_of(stream) == Reset.MALFORMED
    await running.over()


async def test_the_end_of_the_payer_ends_the_answer_and_it_gets_its_receipt() -> None:
    ends: list[type[BaseException]] = []

    async def answer(request: TunnelRequest, reply: TunnelReply) -> None:
        await reply.head(200, [])
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError as reason:
            ends.append(type(reason))
            payment(request).send(RECEIPT)
            raise

    running = Running(answer)
    stream = running.stream(ASK, PayHttp(HTTP))
    stream.write_eof()
    assert (await messages_of(stream))[-1] == RECEIPT, "in order, and not by a reset"
    await running.over()
    assert (ends, running.counters) == ([asyncio.CancelledError], {"http_cancelled": 1})


async def test_a_payer_that_resets_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    running = Running(waiting(nothing))
    stream = running.stream(ASK, PayHttp(HTTP))
    await stream.read(1)
    stream.abort()
    await running.over()
    assert running.counters == {"http_cancelled": 1}


async def test_who_waits_for_vouchers_hears_that_none_will_come() -> None:
    seen: list[Any] = []

    async def take(paid: PaidStream) -> None:
        seen.append(await paid.voucher())
        seen.append(paid.refused)

    running = Running(waiting(take))
    refused = PayRefused(PayCode.CAP_REACHED, "enough")
    stream = running.stream(ASK, PayHttp(HTTP), refused)
    await stream.read(1)
    stream.write_eof()
    await running.over()
    assert seen == [None, refused]


@pytest.mark.parametrize("says", [True, False])
async def test_an_answer_that_breaks_ends_in_order_only_behind_a_receipt(says: bool) -> None:
    async def answer(request: TunnelRequest, reply: TunnelReply) -> None:
        await reply.head(200, [])
        if says:
            payment(request).send(RECEIPT)
        raise ConnectionResetError("engine")

    running = Running(answer)
    stream = running.stream(ASK, PayHttp(HTTP))
    if says:
        assert (await messages_of(stream))[-1] == RECEIPT
        stream.write_eof()
    else:
        assert await code_of(stream) == Reset.UPSTREAM_BROKEN
    await running.over()


async def test_a_payer_that_stays_after_a_broken_answer_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnode.mesh.paid_stream.LEAVE_S", 0.02)

    async def answer(request: TunnelRequest, reply: TunnelReply) -> None:
        await reply.head(200, [])
        payment(request).send(RECEIPT)
        raise ConnectionResetError("engine")

    running = Running(answer)
    stream = running.stream(ASK, PayHttp(HTTP))
    await messages_of(stream)
    async with asyncio.timeout(2):
        await stream.broken()
    await running.over()


class Bytes:
    """A stream that brings these bytes in pieces, and then ends."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self.is_finished = True

    async def read(self, limit_bytes: int) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    async def drain(self) -> None: ...


async def test_damaged_bytes_are_misuse_and_nothing_worse() -> None:
    """Flipped bits, cuts and repeats of a stream that is right, a thousand times over."""
    chance = random.Random(15)
    right = b"".join(map(frame, (ASK, voucher(1), PayHttp(HTTP), voucher(2), PayRefused(PayCode.CAP_REACHED, "no"))))
    outcomes: Counter[str] = Counter()
    for _ in range(1000):
        data = bytearray(right)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(data))
            match chance.randrange(4):
                case 0:
                    data[at] ^= 1 << chance.randrange(8)
                case 1:
                    del data[at : at + chance.randrange(1, 40)]
                case 2:
                    data[at:at] = chance.randbytes(chance.randrange(1, 40))
                case _:
                    data[at:at] = data[: chance.randrange(len(data))]
            data = data or bytearray(b"\0")
        size = chance.randrange(1, 300)
        paid = PaidStream(Bytes([bytes(data[at : at + size]) for at in range(0, len(data), size)]))  # type: ignore[arg-type]
        try:
            await paid.begin(1)
            while await paid.read(1 << 16):
                pass
            outcomes["read"] += 1
        except StreamMisused:
            outcomes["misused"] += 1
    assert outcomes["misused"] > 500 and outcomes["read"] > 10


VECTORS = json.loads((Path(__file__).parents[2] / "protocol/vectors/paid-streams.json").read_text())


def of_payers(kind: str) -> list[Any]:
    return [pytest.param(case, id=case["comment"]) for case in VECTORS[kind] if case["from"] == "payer"]


async def heard(case: dict[str, Any]) -> tuple[PaidStream, bytes]:
    """All that comes of the bytes of a vector. Raises StreamMisused."""
    paid = PaidStream(Bytes([bytes.fromhex(case["hex"])]))  # type: ignore[arg-type]
    await paid.begin(1)
    http = b""
    while data := await paid.read(100):
        http += data
    return paid, http


@pytest.mark.parametrize("case", of_payers("valid"))
async def test_what_the_protocol_allows_is_understood(case: dict[str, Any]) -> None:
    if case["left_bytes"] or not case["messages"]:  # the stream goes on behind what the vector shows
        with pytest.raises(StreamMisused):
            await heard(case)
        return
    _, http = await heard(case)
    assert http == bytes.fromhex(case["http"])


@pytest.mark.parametrize("case", of_payers("invalid"))
async def test_what_the_protocol_forbids_is_misuse(case: dict[str, Any]) -> None:
    if case["header"] != PAID_HEADER.hex():
        with pytest.raises(WireError):
            is_paid(bytes.fromhex(case["header"]))
        return
    with pytest.raises(StreamMisused):
        await heard(case)
