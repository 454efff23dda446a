"""A payer over real QUIC: what is signed, what is delivered, and how it ends."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meshnode.api import paid_pipe
from meshnode.api.paid_pipe import DUES_AT_ONCE, Payment
from meshnode.api.upstream import UpstreamBroken
from meshnode.core.prices import Price, charge
from meshnode.errors import MonthlyCapReached, PaymentRefused, PriceAboveCeiling
from meshnode.mesh.paid_stream import PaidStream
from meshnode.mesh.tunnel import TunnelReply
from meshnode.wire.frames import encode_frame
from meshnode.wire.messages import encode_message, message_id
from meshnode.wire.payments import (
    PayAsk,
    PayDue,
    PayHttp,
    PayQuote,
    PayReceipt,
    PayRefused,
    PayVoucher,
)
from meshnode.wire.registry import LIMIT_PAY_FRAME_BYTES, MessageId, PayCode, Reset
from tests.api.fake_llama import FakeLlamaServer
from tests.api.fake_money import CHAIN, PRICE, PROMPT_TOKENS, FakePaidRequest, FakePurse, FakeTill
from tests.api.paid_stage import Engine, Provider, chunk, last
from tests.api.paying_stage import CALL, MOST_IN, MOST_OUT, Paying, Rogue, begin, paying
from tests.api.running import CHAT

pytestmark = pytest.mark.anyio

TOKENS = 100


async def test_a_paid_answer_is_the_one_that_anyone_would_get(llama: FakeLlamaServer) -> None:
    Engine(llama, TOKENS)
    till = FakeTill()
    async with paying(Provider(llama, till)) as it:
        assert await it.run() == "whole"
        assert await it.end("whole") == charge(PRICE, PROMPT_TOKENS, TOKENS)
        free = b"".join(chunk("word ", n, counts=False) for n in range(1, TOKENS + 1)) + last(TOKENS)
        assert it.body == free
        request, [sale] = it.request, till.sales
        assert request.told[0] == "ask" and request.told[-1] == "receipt" and request.outcome == "whole"
        assert sale.receipt is not None and sale.receipt.output_sha256.hex() == request.output
        assert request.progress.text_bytes == 5 * TOKENS
        assert max(request.signed) <= charge(PRICE, PROMPT_TOKENS, TOKENS + 64), "never above received + W"
        assert sale.vouched == sorted(set(sale.vouched))


async def test_what_was_signed_before_a_quote_goes_out_with_the_prompt(llama: FakeLlamaServer) -> None:
    Engine(llama, 10)
    till = FakeTill()
    async with paying(Provider(llama, till), FakePurse(blind=True)) as it:
        assert await it.run() == "whole"
        await it.end("whole")
        assert it.request.signed[0] == till.sales[0].vouched[0] == charge(PRICE, 0, 64)


async def test_a_caller_that_leaves_pays_for_what_came_and_gets_its_receipt(llama: FakeLlamaServer) -> None:
    pace: asyncio.Queue[None] = asyncio.Queue()
    Engine(llama, 1000, pace)
    till = FakeTill()
    async with paying(Provider(llama, till)) as it:
        exchange = await it.send()
        body = exchange.body()
        for _ in range(5):
            pace.put_nowait(None)
            it.body += await anext(body)
        assert await it.end("cancelled") == charge(PRICE, PROMPT_TOKENS, 5)
        receipt = it.request.receipt_seen
        assert receipt is not None and (receipt.finish, receipt.tokens_out) == ("cancelled", 5)
        await asyncio.wait_for(llama.requests[0].left.wait(), 1)
        assert it.purse.ledger.running("req_1.1") is None


# --- who pays says no -------------------------------------------------------------------------------------------------


async def test_a_price_that_is_not_the_one_that_was_advertised_is_not_paid(llama: FakeLlamaServer) -> None:
    Engine(llama, TOKENS)
    till = FakeTill()
    till.quotes_at = Price(200_000, 600_001)
    async with paying(Provider(llama, till)) as it:
        assert await it.run() == "PriceAboveCeiling"
        assert isinstance(it.payment.refusal, PriceAboveCeiling) and it.tokens == 0
        await it.end("broken")
        assert (it.request.signed, it.request.outcome) == ([], "refused")
        assert till.sales[0].charged_micros == 0


async def test_a_cap_that_is_reached_in_the_middle_ends_it_there(llama: FakeLlamaServer) -> None:
    Engine(llama, 1000)
    till = FakeTill()
    purse = FakePurse()
    async with paying(Provider(llama, till), purse) as it:
        purse.ledger.policy = replace(purse.policy, month_micros=70)
        assert await it.run() == "MonthlyCapReached"
        cost = await it.end("broken")
        assert isinstance(it.payment.refusal, MonthlyCapReached)
        assert 0 < it.tokens < 200 and purse.ledger.committed("2026-11") <= 70
        assert cost == till.sales[0].charged_micros <= 70, "the provider says what the part cost, and both agree"


async def test_who_never_signs_gets_nothing(llama: FakeLlamaServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnode.api.charging.STALL_S", 0.1)
    Engine(llama, TOKENS)
    purse = FakePurse()
    purse.silent = True
    async with paying(Provider(llama, FakeTill()), purse) as it:
        assert await it.run() == "PaymentRefused"
        assert isinstance(it.payment.refusal, PaymentRefused)
        assert (it.payment.refusal.pay_code, it.tokens) == (PayCode.NO_VOUCHER, 0)
        assert await it.end("broken") == 0


async def test_a_journal_that_fails_before_anything_is_sent_asks_nobody(llama: FakeLlamaServer) -> None:
    async def fails(self: FakePaidRequest) -> tuple[PayAsk, PayVoucher | None]:
        raise MonthlyCapReached("just now")

    async with paying(Provider(llama, FakeTill())) as it:
        it.request.ask = fails.__get__(it.request)  # type: ignore[method-assign]
        assert await it.run() == "MonthlyCapReached"
        await it.end("broken")
        assert it.request.outcome == "refused" and not llama.requests


async def test_a_fault_of_ours_ends_the_payment_and_not_the_node(llama: FakeLlamaServer) -> None:
    async def fails(self: FakePaidRequest, quote: bytes) -> PayVoucher | None:
        raise KeyError("ours")

    Engine(llama, TOKENS)
    async with paying(Provider(llama, FakeTill())) as it:
        it.request.quoted = fails.__get__(it.request)  # type: ignore[method-assign]
        assert await it.run() == "MeshnodeError"
        await it.end("broken")
        assert it.request.outcome == "refused"


async def test_a_provider_that_is_gone_is_not_waited_for(llama: FakeLlamaServer) -> None:
    async def conduct(paid: PaidStream, reply: TunnelReply) -> None:
        await begin(paid, reply, rogue.quote(paid))
        await reply.body(chunk("word ", 1, counts=False))
        paid._stream.reset(Reset.UPSTREAM_BROKEN)

    rogue = Rogue(llama, conduct)
    async with paying(rogue) as it:
        assert await it.run() == "broken"
        begun = asyncio.get_running_loop().time()
        await it.end("broken")
        assert asyncio.get_running_loop().time() - begun < paid_pipe.LEAVE_S / 2


async def test_a_provider_that_says_nothing_more_has_its_time(
    llama: FakeLlamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paid_pipe, "LEAVE_S", 0.05)

    async def conduct(paid: PaidStream, reply: TunnelReply) -> None:
        await begin(paid, reply, rogue.quote(paid))
        await reply.body(chunk("word ", 1, counts=False))
        with suppress(asyncio.CancelledError):
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(0.5)  # it goes on as if nobody had left

    rogue = Rogue(llama, conduct)
    async with paying(rogue) as it:
        exchange = await it.send()
        await anext(exchange.body())
        await it.end("cancelled")
        assert it.request.outcome == "cancelled" and it.request.receipt_seen is None


async def test_a_reader_that_is_given_up_wakes_at_once(llama: FakeLlamaServer) -> None:
    """As when a host falls silent: whoever reads must go on elsewhere, not wait for a receipt."""
    Engine(llama, TOKENS, asyncio.Queue())
    async with paying(Provider(llama, FakeTill())) as it:
        exchange = await it.send()
        reading = asyncio.create_task(anext(exchange.body()))
        await asyncio.sleep(0.01)
        exchange.close()
        with pytest.raises(UpstreamBroken):
            await asyncio.wait_for(reading, 1)
        await it.end("broken")


async def test_a_payment_whose_stream_never_opened_is_ended(llama: FakeLlamaServer) -> None:
    async def refused() -> Any:
        raise ConnectionRefusedError("nobody there")

    purse = FakePurse()
    request = await purse.begin(CALL)
    payment = Payment(request, CHAT)
    with pytest.raises(ConnectionRefusedError):
        await payment.over(refused)()
    assert await payment.settle("broken") == 0
    assert await payment.settle("whole") == 0, "it ends once"
    assert request.outcome == "broken"


async def test_what_a_provider_hears_of_a_refusal_is_its_kind(llama: FakeLlamaServer) -> None:
    heard: list[PayRefused | None] = []

    async def conduct(paid: PaidStream, reply: TunnelReply) -> None:
        await begin(paid, reply, rogue.quote(paid, Price(1, 1)))
        assert await paid.voucher() is None
        heard.append(paid.refused)

    rogue = Rogue(llama, conduct)
    async with paying(rogue) as it:
        assert await it.run() == "PriceAboveCeiling"
        await it.end("broken")
        assert heard == [PayRefused(PayCode.PRICE_ABOVE_CEILING, "")]


# --- providers that do not keep to the rules --------------------------------------------------------------------------


async def ends_with(it: Paying, outcome: str, refusal: type[Exception] | None = PaymentRefused) -> None:
    assert await it.run() == outcome
    assert refusal is None or isinstance(it.payment.refusal, refusal)
    await it.end("broken")


async def test_more_tokens_than_bytes_are_not_believed(llama: FakeLlamaServer) -> None:
    async def conduct(paid: PaidStream, reply: TunnelReply) -> None:
        await begin(paid, reply, rogue.quote(paid))
        paid.counted(PROMPT_TOKENS, 150)
        await reply.body(chunk("word ", 1, counts=False))
        await asyncio.get_running_loop().create_future()

    rogue = Rogue(llama, conduct)
    async with paying(rogue) as it:
        await ends_with(it, "PaymentRefused")
        assert max(it.request.signed) <= charge(PRICE, 0, 64), "as before the first token"
        assert it.request.outcome == "refused"


async def test_a_demand_for_more_than_can_have_come_is_not_met(llama: FakeLlamaServer) -> None:
    async def conduct(paid: PaidStream, reply: TunnelReply) -> None:
        await begin(paid, reply, rogue.quote(paid))
        await reply.body(chunk("word ", 1, counts=False))
        paid.send(PayDue(10**9, PROMPT_TOKENS, 10**6))
        await asyncio.get_running_loop().create_future()

    rogue = Rogue(llama, conduct)
    async with paying(rogue) as it:
        await ends_with(it, "PaymentRefused")
        assert max(it.request.signed) <= charge(PRICE, 0, 64)


async def test_a_provider_that_takes_vouchers_and_sends_nothing_gets_no_more_of_them(llama: FakeLlamaServer) -> None:
    async def conduct(paid: PaidStream, reply: TunnelReply) -> None:
        await begin(paid, reply, rogue.quote(paid))
        for _ in range(20):
            paid.send(PayDue(10**6, PROMPT_TOKENS, 1))
            if (voucher := await paid.voucher()) is not None:
                rogue.vouchers.append(voucher)
        raise ConnectionResetError("enough")

    rogue = Rogue(llama, conduct)
    async with paying(rogue) as it:
        await ends_with(it, "broken", None)
        assert len(rogue.vouchers) == 20
        assert max(voucher.cumulative for voucher in rogue.vouchers) <= charge(PRICE, PROMPT_TOKENS, 1 + 64)


async def test_bytes_that_were_not_paid_for_are_a_gift(llama: FakeLlamaServer) -> None:
    async def conduct(paid: PaidStream, reply: TunnelReply) -> None:
        await begin(paid, reply, None)
        await reply.body(b"".join(chunk("word ", n) for n in range(1, 101)) + last(100))
        await reply.finish()

    rogue = Rogue(llama, conduct)
    async with paying(rogue) as it:
        assert await it.run() == "whole" and it.tokens == 100
        assert await it.end("whole") == 0
        assert (it.request.told, it.request.signed) == (["ask"], []), "without a quote nothing is signed"


async def test_a_receipt_that_is_not_believed_takes_no_answer_away(llama: FakeLlamaServer) -> None:
    Engine(llama, TOKENS)

    async def disbelieves(self: FakePaidRequest, *facts: object) -> PayVoucher | None:
        raise PaymentRefused("its sum is wrong", pay_code=PayCode.CUM_MISMATCH)

    async with paying(Provider(llama, FakeTill())) as it:
        it.request.receipt = disbelieves.__get__(it.request)  # type: ignore[method-assign]
        assert await it.run() == "whole" and it.tokens == TOKENS
        await it.end("whole")
        assert it.request.outcome == "whole"


async def test_an_answer_that_says_it_is_not_whole_is_not(llama: FakeLlamaServer) -> None:
    async def script(request: Any) -> None:
        await request.head()
        await request.chunk(chunk("word ", 1))

    llama.script = script
    till = FakeTill()
    async with paying(Provider(llama, till)) as it:
        assert await it.run() == "broken" and it.tokens == 1
        assert await it.end("broken") == charge(PRICE, PROMPT_TOKENS, 1) == till.sales[0].charged_micros
        assert it.request.receipt_seen is not None and it.request.receipt_seen.finish == "broken"


async def test_a_refusal_of_the_provider_is_told_with_its_words(llama: FakeLlamaServer) -> None:
    till = FakeTill()
    till.refuses = PaymentRefused("no such channel", pay_code=PayCode.UNKNOWN_CHANNEL)
    async with paying(Provider(llama, till)) as it:
        assert await it.run() == "PaymentRefused"
        assert isinstance(it.payment.refusal, PaymentRefused)
        assert (it.payment.refusal.pay_code, it.payment.refusal.detail) == (PayCode.UNKNOWN_CHANNEL, "no such channel")
        await it.end("broken")


def raw(message: Any) -> bytes:
    return encode_frame(message_id(message), encode_message(message))


QUOTED = "a quote"
BAD: dict[str, list[Any]] = {
    "a message of the payer": [PayVoucher(b"c" * 32, 1, b"s" * 65)],
    "asked back": [PayAsk("req", "demo", 1, CHAIN)],
    "a message of another stream": [encode_frame(MessageId.PUNCH_DONE, b"\x80")],
    "an unknown message that counts": [encode_frame(9998, b"\x80")],
    "two quotes": [QUOTED, QUOTED],
    "two receipts": [QUOTED, PayReceipt(b"{}"), PayReceipt(b"{}")],
    "a frame that is too long": [(1 << 31).to_bytes(4, "big") + b"\0\0"],
    "a large message about money": [encode_frame(MessageId.PAY_DUE, bytes(LIMIT_PAY_FRAME_BYTES + 1))],
    "bytes that are no message": [encode_frame(MessageId.PAY_HTTP, b"\xc1")],
    "a head without end": [PayHttp(b"x" * 60_000), PayHttp(b"x" * 60_000)],
    "a flood of demands": [PayDue(1)] * (DUES_AT_ONCE + 1),
}


@pytest.mark.parametrize("messages", BAD.values(), ids=BAD)
async def test_what_has_no_place_on_the_stream_ends_it(llama: FakeLlamaServer, messages: list[Any]) -> None:
    async def conduct(paid: PaidStream, reply: TunnelReply) -> None:
        for message in messages:
            quote = rogue.quote(paid) if message is QUOTED else message
            paid._stream.write(quote if isinstance(quote, bytes) else raw(quote))
        await asyncio.get_running_loop().create_future()

    rogue = Rogue(llama, conduct)
    async with paying(rogue) as it:
        assert await it.run() in ("PaymentRefused", "broken")
        await it.end("broken")
        assert it.request.outcome == "refused"
        assert all(micros <= charge(PRICE, 0, 64) for micros in it.request.signed)


async def test_messages_of_later_versions_are_passed_over(llama: FakeLlamaServer) -> None:
    async def conduct(paid: PaidStream, reply: TunnelReply) -> None:
        paid._stream.write(encode_frame(999, b"\x80"))
        await begin(paid, reply, rogue.quote(paid))
        paid._stream.write(encode_frame(997, b"\x80"))
        await reply.body(last(0))
        await reply.finish()

    rogue = Rogue(llama, conduct)
    async with paying(rogue) as it:
        assert await it.run() == "whole"
        await it.end("whole")


@pytest.mark.parametrize("ends", [b"", raw(PayDue(1))[:-1]])
async def test_a_stream_that_ends_without_an_answer(llama: FakeLlamaServer, ends: bytes) -> None:
    async def conduct(paid: PaidStream, reply: TunnelReply) -> None:
        paid._stream.write(ends)
        paid._stream.write_eof()
        await asyncio.get_running_loop().create_future()

    async with paying(Rogue(llama, conduct)) as it:
        assert await it.run() in ("broken", "PaymentRefused")
        await it.end("broken")


class Noise:
    """A pipe that brings these bytes in pieces, and then ends."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    async def read(self, limit_bytes: int, /) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    def write(self, data: bytes, /) -> None: ...

    def abort(self) -> None:
        self._pieces.clear()


async def test_damaged_bytes_break_the_pipe_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flipped bits, cuts and repeats of a stream that is right, some hundred times over."""
    monkeypatch.setattr(paid_pipe, "LEAVE_S", 0.0)
    chance = random.Random(15)
    sale = await FakeTill().open(b"", PayAsk("req", "demo", 9, CHAIN), model="demo", content_hash=CALL.content_hash)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
    body = [PayHttp(chunk("word ", n, counts=False), PROMPT_TOKENS, n) for n in range(1, 6)]
    right = b"".join(map(raw, (PayQuote(sale.quote), PayHttp(head), *body, PayDue(3, 20, 5), PayHttp(last(5)))))
    outcomes: Counter[str] = Counter()
    for number in range(300):
        data = bytearray(right)
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
        size = chance.randrange(1, 2000)
        purse = FakePurse()
        request = await purse.begin(replace(CALL, request=f"req_{number}"))
        payment = Payment(request, CHAT)

        async def connect(data: bytes = bytes(data), size: int = size) -> Noise:
            return Noise([data[at : at + size] for at in range(0, len(data), size)])

        pipe = await payment.over(connect)()
        try:
            while await pipe.read(1 << 16):
                pass
            outcomes["read"] += 1
        except OSError:
            outcomes["broken"] += 1
        pipe.abort()
        await payment.settle("broken")
        assert request.outcome
        assert all(micros <= charge(PRICE, MOST_IN, MOST_OUT) for micros in request.signed)
    assert min(outcomes["read"], outcomes["broken"]) > 20


VECTORS = json.loads((Path(__file__).parents[2] / "protocol/vectors/paid-streams.json").read_text())


class Obliging:
    """A PaidRequest that signs nothing and believes everything."""

    step_tokens = 32

    async def ask(self) -> tuple[PayAsk, None]:
        return PayAsk("req", "demo", 9, CHAIN), None

    async def nothing(self, *facts: object) -> None: ...

    quoted = received = due = receipt = nothing

    async def ended(self, outcome: str, progress: object) -> int:
        return 0


def of_providers(kind: str) -> list[Any]:
    return [pytest.param(case, id=case["comment"]) for case in VECTORS[kind] if case["from"] == "provider"]


async def heard(case: dict[str, Any]) -> bytes:
    """The HTTP in the bytes of a vector. Raises OSError."""

    async def connect() -> Noise:
        return Noise([bytes.fromhex(case["hex"])])

    payment = Payment(Obliging(), CHAT)  # type: ignore[arg-type]
    pipe = await payment.over(connect)()
    http = b""
    try:
        while data := await pipe.read(100):
            http += data
    finally:
        pipe.abort()
        await payment.settle("broken")
    return http


@pytest.mark.parametrize("case", of_providers("valid"))
async def test_what_the_protocol_allows_is_understood(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paid_pipe, "LEAVE_S", 0.0)
    # The stream goes on behind what the vector shows, or ends with a refusal.
    if case["left_bytes"] or "pay_refused" in case["messages"]:
        with pytest.raises(OSError):
            await heard(case)
        return
    assert await heard(case) == bytes.fromhex(case["http"])


@pytest.mark.parametrize("case", of_providers("invalid"))
async def test_what_the_protocol_forbids_breaks_the_pipe(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paid_pipe, "LEAVE_S", 0.0)
    with pytest.raises(OSError):
        await heard(case)
