"""A provider over real QUIC: what goes out when it is vouched for, and what it came to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest

from meshnode.api import charging
from meshnode.core.prices import Price, charge
from meshnode.errors import LedgerDamaged, PaymentRefused
from meshnode.mesh.paid_stream import VOUCHERS_AT_ONCE
from meshnode.wire.payments import (
    PayAsk,
    PayDue,
    PayHttp,
    PayQuote,
    PayReceipt,
    PayRefused,
    PayVoucher,
)
from meshnode.wire.registry import PayCode, Reset
from tests.api.fake_llama import FakeLlamaServer, plain
from tests.api.fake_money import CHANNEL, PRICE, PROMPT_TOKENS, FakeSale, FakeTill, sign_voucher
from tests.api.paid_stage import Engine, Provider, chunk, last, line_to
from tests.api.raw_payer import TOKENS, WHOLE, RawPayer, at, covers
from tests.api.running import CHAT, STREAM
from tests.api.tunnel import Asked, Reply

pytestmark = pytest.mark.anyio


async def test_an_answer_that_is_paid_at_once(llama: FakeLlamaServer) -> None:
    Engine(llama, TOKENS)
    till = FakeTill()
    async with at(till, llama) as (payer, provider):
        payer.ask()
        payer.send(covers(200))
        await payer.over()
        assert isinstance(payer.came[0], PayQuote)
        [sale] = till.sales
        receipt = sale.receipt
        assert receipt is not None and isinstance(payer.came[-1], PayReceipt)
        assert (receipt.charged_micros, receipt.tokens_in, receipt.tokens_out) == (WHOLE, PROMPT_TOKENS, TOKENS)
        assert (receipt.finish, payer.code) == ("stop", None)
        head, _, body = payer.http.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert body == b"".join(chunk("word ", n, counts=False) for n in range(1, TOKENS + 1)) + last(TOKENS)
        assert receipt.output_sha256 == sha256(body).digest()
        assert [message.tokens_out for message in payer.all(PayHttp)][-1] == TOKENS
        payer.stream.write_eof()
        await provider.idle()
        [(kind, facts)] = provider.trail.records
        assert (kind, facts["cost_micros"], facts["tokens_out"]) == ("served", WHOLE, TOKENS)
        assert facts["output_sha256"] == sha256(body).hexdigest()
        assert provider.records[0].cost_micros == WHOLE


# --- ends -------------------------------------------------------------------------------------------------------------


async def test_a_payer_that_ends_its_side_is_told_what_the_part_cost(llama: FakeLlamaServer) -> None:
    pace: asyncio.Queue[None] = asyncio.Queue()
    Engine(llama, 1000, pace)
    till = FakeTill()
    async with at(till, llama) as (payer, provider):
        payer.ask()
        payer.send(covers(200))
        for _ in range(7):
            pace.put_nowait(None)
        await payer.until(lambda: payer.tokens == 7)
        payer.stream.write_eof()
        await payer.over()
        receipt = till.sales[0].receipt
        assert receipt is not None and isinstance(payer.came[-1], PayReceipt)
        assert (receipt.finish, receipt.tokens_out) == ("cancelled", 7)
        assert receipt.charged_micros == charge(PRICE, PROMPT_TOKENS, 7)
        await provider.idle()
        await asyncio.wait_for(llama.requests[0].left.wait(), 2)


async def test_a_payer_that_resets_is_charged_for_what_it_got(llama: FakeLlamaServer) -> None:
    pace: asyncio.Queue[None] = asyncio.Queue()
    Engine(llama, 1000, pace)
    till = FakeTill()
    async with at(till, llama) as (payer, provider):
        payer.ask()
        payer.send(covers(200))
        for _ in range(7):
            pace.put_nowait(None)
        await payer.until(lambda: payer.tokens == 7)
        payer.stream.abort()
        await provider.idle()
        assert till.sales[0].charged_micros == charge(PRICE, PROMPT_TOKENS, 7)
        assert provider.records[0].cost_micros == till.sales[0].charged_micros


async def test_who_refuses_to_pay_on_gets_the_rest_that_is_vouched(llama: FakeLlamaServer) -> None:
    Engine(llama, 1000)
    till = FakeTill()
    async with at(till, llama) as (payer, _):
        payer.ask(most_out=1000)
        payer.send(covers(10), PayRefused(PayCode.CAP_REACHED))
        await payer.over()
        assert payer.tokens in (0, 10), "the voucher counts if it was taken before"
        assert till.sales[0].charged_micros <= charge(PRICE, PROMPT_TOKENS, 10)


async def test_a_last_voucher_may_come_after_the_receipt(llama: FakeLlamaServer) -> None:
    Engine(llama, TOKENS)
    till = FakeTill(unpaid=64)
    async with at(till, llama) as (payer, provider):
        payer.ask()
        payer.send(covers(10))
        await payer.over()
        assert payer.tokens == TOKENS and till.credit.vouched_micros < till.credit.settled_micros
        payer.send(sign_voucher(till.credit.settled_micros))
        payer.stream.write_eof()
        await provider.idle()
        async with asyncio.timeout(2):
            while till.credit.vouched_micros < till.credit.settled_micros:
                await asyncio.sleep(0.001)


async def test_the_answer_is_no_longer_than_what_is_paid_for(llama: FakeLlamaServer) -> None:
    Engine(llama, 1000)
    till = FakeTill()
    async with at(till, llama) as (payer, _):
        payer.ask({**STREAM, "max_tokens": 500}, most_out=12)
        payer.send(covers(12))
        await payer.over()
        assert llama.requests[0].json["max_tokens"] == 12 and payer.tokens == 12
        receipt = till.sales[0].receipt
        assert receipt is not None and (receipt.finish, receipt.tokens_out) == ("length", 12)


# --- other answers ----------------------------------------------------------------------------------------------------


async def test_an_answer_in_one_piece_is_held_until_it_is_paid(llama: FakeLlamaServer) -> None:
    body = json.dumps({"data": [{"embedding": [0.5]}], "usage": {"prompt_tokens": 9, "total_tokens": 9}}).encode()
    llama.script = plain(200, body)
    till = FakeTill()
    async with at(till, llama) as (payer, _):
        payer.ask({"model": "demo", "input": "text"}, "/v1/embeddings", most_out=1)
        await payer.until(lambda: bool(payer.all(PayDue)))
        assert payer.http == b"", "not even its head"
        [due] = payer.all(PayDue)
        assert due == PayDue(charge(PRICE, 9, 0), 9, 0)
        payer.send(sign_voucher(due.cumulative))
        await payer.over()
        assert payer.http.endswith(body) and b"content-length" in payer.http
        assert till.sales[0].charged_micros == due.cumulative


async def test_a_refusal_of_the_engine_costs_nothing(llama: FakeLlamaServer) -> None:
    llama.script = plain(400, b'{"error":{"code":400,"message":"no","type":"invalid"}}')
    till = FakeTill()
    async with at(till, llama) as (payer, _):
        payer.ask()
        payer.send(covers(50))
        await payer.over()
        assert b"HTTP/1.1 400 " in payer.http and not payer.all(PayReceipt)
        assert till.sales[0].charged_micros == 0


async def test_an_engine_that_breaks_is_paid_for_what_came(llama: FakeLlamaServer) -> None:
    async def script(request: Any) -> None:
        await request.head()
        await request.chunk(chunk("word ", 1) + chunk("word ", 2))

    llama.script = script
    till = FakeTill()
    async with at(till, llama) as (payer, _):
        payer.ask()
        payer.send(covers(50))
        await payer.over()
        receipt = till.sales[0].receipt
        assert receipt is not None and (receipt.finish, receipt.tokens_out) == ("broken", 2)
        assert isinstance(payer.came[-1], PayReceipt)


async def test_a_payer_that_leaves_while_the_till_opens_leaves_no_sale_open(llama: FakeLlamaServer) -> None:
    entered, go = asyncio.Event(), asyncio.Event()

    class SlowTill(FakeTill):
        """As one that writes to a slow disk."""

        async def open(self, node: bytes, ask: PayAsk, /, *, model: str, content_hash: bytes) -> FakeSale:
            found = await super().open(node, ask, model=model, content_hash=content_hash)
            entered.set()
            await go.wait()
            return found

    till = SlowTill()
    async with at(till, llama) as (payer, provider):
        payer.ask()
        await asyncio.wait_for(entered.wait(), 5)
        payer.stream.abort()
        await provider.idle()
        go.set()
        async with asyncio.timeout(2):
            while till.sales[0].receipt is None:
                await asyncio.sleep(0)
        assert (till.sales[0].receipt.finish, till.credit.running) == ("cancelled", 0)


async def test_a_till_that_refuses_says_why(llama: FakeLlamaServer) -> None:
    till = FakeTill()
    till.refuses = PaymentRefused("no such channel here", pay_code=PayCode.UNKNOWN_CHANNEL)
    async with at(till, llama) as (payer, provider):
        payer.ask()
        await payer.over()
        assert payer.all(PayRefused) == [PayRefused(PayCode.UNKNOWN_CHANNEL, "no such channel here")]
        assert b"HTTP/1.1 402 " in payer.http and not llama.requests
        payer.stream.write_eof()
        await provider.idle()
        assert provider.requests.facts()["serving"] == 0


async def test_a_journal_that_takes_nothing_lets_nothing_out(
    llama: FakeLlamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(self: FakeSale, voucher: PayVoucher, /) -> bool:
        raise LedgerDamaged("the disk is full")

    monkeypatch.setattr(FakeSale, "voucher", full)
    Engine(llama, TOKENS)
    async with at(FakeTill(), llama) as (payer, _):
        payer.ask()
        payer.send(covers(50))
        await payer.over()
        assert payer.tokens == 0
        [refused] = payer.all(PayRefused)
        assert "disk" not in refused.text


async def test_a_receipt_that_cannot_be_kept_takes_no_answer_away(
    llama: FakeLlamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(self: FakeSale, *facts: object) -> bytes:
        raise LedgerDamaged("the disk is full")

    monkeypatch.setattr(FakeSale, "ended", full)
    Engine(llama, TOKENS)
    async with at(FakeTill(), llama) as (payer, _):
        payer.ask()
        payer.send(covers(50))
        await payer.over()
        assert payer.tokens == TOKENS and payer.code is None and not payer.all(PayReceipt)


# --- who does not pay -------------------------------------------------------------------------------------------------


async def test_what_has_a_price_is_not_given_to_who_does_not_pay(llama: FakeLlamaServer) -> None:
    provider = Provider(llama, FakeTill())
    reply = Reply()
    await provider.requests.answer(Asked(CHAT, json.dumps(STREAM).encode()), reply)
    error = json.loads(reply.content)["error"]
    assert (reply.status, error["type"]) == (402, "payment_required")
    assert "$0.20 in and $0.60 out per million tokens" in error["message"]
    assert not llama.requests and provider.requests.facts()["serving"] == 0


async def test_questions_about_tokens_cost_nothing(llama: FakeLlamaServer) -> None:
    llama.script = plain(200, b'{"tokens":[]}')
    provider = Provider(llama, FakeTill())
    reply = Reply()
    await provider.requests.answer(Asked("/tokenize", b'{"model":"demo","content":"a"}'), reply)
    assert reply.status == 200


@pytest.mark.parametrize("near", [True, False])
async def test_a_friend_and_a_model_without_a_price_are_free_on_a_paid_stream(
    llama: FakeLlamaServer, near: bool
) -> None:
    Engine(llama, TOKENS)
    till = FakeTill(PRICE if near else Price(0, 0))
    provider = Provider(llama, till, near=near)
    async with line_to(provider) as line:
        payer = RawPayer(line.stream())
        payer.ask()
        await payer.over()
        assert payer.tokens == TOKENS and not till.sales
        assert {type(message) for message in payer.came} == {PayHttp}
        payer.stream.write_eof()


# --- payers that do not pay -------------------------------------------------------------------------------------------


async def test_who_stops_signing_gets_what_is_vouched_and_not_a_token_more(
    llama: FakeLlamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charging, "STALL_S", 0.1)
    Engine(llama, 1000)
    till = FakeTill()
    async with at(till, llama) as (payer, provider):
        payer.ask(most_out=1000)
        payer.send(covers(10))
        await payer.over()
        assert payer.tokens == 10 and till.sales[0].delivered == (PROMPT_TOKENS, 10)
        [due] = payer.all(PayDue)
        assert due == PayDue(charge(PRICE, PROMPT_TOKENS, 11), PROMPT_TOKENS, 11)
        [refused] = payer.all(PayRefused)
        assert refused.code == PayCode.NO_VOUCHER
        receipt = till.sales[0].receipt
        assert receipt is not None and (receipt.finish, receipt.tokens_out) == ("broken", 10)
        assert receipt.charged_micros == charge(PRICE, PROMPT_TOKENS, 10)
        assert isinstance(payer.came[-1], PayReceipt), "so that the payer knows what it came to"
        payer.stream.write_eof()
        await provider.idle()
        assert provider.records[0].error == "payment-refused"


async def test_a_provider_that_trusts_gives_so_many_tokens_unpaid(
    llama: FakeLlamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charging, "STALL_S", 0.1)
    Engine(llama, 1000)
    till = FakeTill(unpaid=16)
    async with at(till, llama) as (payer, _):
        payer.ask(most_out=1000)
        payer.send(covers(10))
        await payer.over()
        owed = charge(PRICE, PROMPT_TOKENS, payer.tokens)
        assert 10 < payer.tokens <= 26
        assert owed <= charge(PRICE, PROMPT_TOKENS, 10) + 16 * PRICE.tokens_out // 10**6 + 1


async def test_nothing_at_all_goes_out_without_a_voucher(
    llama: FakeLlamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charging, "STALL_S", 0.1)
    Engine(llama, 1000)
    till = FakeTill()
    async with at(till, llama) as (payer, _):
        payer.ask()
        await payer.over()
        assert b"200 OK" in payer.http and payer.http.endswith(b"\r\n\r\n"), "the head, and nothing of the body"
        assert not payer.all(PayReceipt), "what was not given costs nothing"
        assert till.sales[0].charged_micros == 0


async def test_while_the_line_stands_the_engine_works_no_further_than_its_socket(llama: FakeLlamaServer) -> None:
    engine = Engine(llama, 100_000, text="x" * 4000)
    till = FakeTill()
    async with at(till, llama) as (payer, _):
        payer.ask()
        await payer.until(lambda: bool(payer.all(PayDue)))
        for _ in range(20):
            await asyncio.sleep(0.01)
        before = engine.written
        await asyncio.sleep(0.1)
        assert engine.written == before < 10_000


async def test_a_prompt_that_is_too_long_to_be_read_on_trust_waits_for_its_voucher(
    llama: FakeLlamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charging, "STALL_S", 0.2)
    Engine(llama, TOKENS)
    long = {**STREAM, "messages": [{"role": "user", "content": "word " * 4000}]}
    till = FakeTill(balance_micros=10**7)
    async with at(till, llama) as (payer, provider):
        payer.ask(long)
        await payer.over()
        assert not llama.requests, "the engine has not heard of it"
        assert b"HTTP/1.1 402 " in payer.http and b"payment_refused" in payer.http
        assert [refused.code for refused in payer.all(PayRefused)] == [PayCode.NO_VOUCHER]
        assert till.sales[0].charged_micros == 0 and not payer.all(PayReceipt)
        again = RawPayer(payer.stream.link.open_stream())
        again.stream.write(b"\x02\0\0\0\x01\x01")
        again.ask(long, request="req_2")
        await again.until(lambda: bool(again.all(PayDue)))
        [due] = again.all(PayDue)
        assert due.tokens_in > 2048 and not llama.requests
        again.send(sign_voucher(due.cumulative + WHOLE))
        await again.over()
        assert again.tokens == TOKENS


async def test_a_long_prompt_is_asked_to_be_paid_for_while_it_is_read(llama: FakeLlamaServer) -> None:
    pace: asyncio.Queue[None] = asyncio.Queue()
    Engine(llama, TOKENS, pace)
    async with at(FakeTill(), llama) as (payer, _):
        payer.ask({**STREAM, "messages": [{"role": "user", "content": "word " * 300}]})
        await payer.until(lambda: bool(payer.all(PayDue)))
        assert not payer.http.partition(b"\r\n\r\n")[2], "before its first token"


# --- vouchers that are worth nothing ----------------------------------------------------------------------------------


def forged(number: int) -> PayVoucher:
    return PayVoucher(CHANNEL, 10**6 + number, bytes([number]) * 65)


def stale(number: int) -> PayVoucher:
    return sign_voucher(1 + number % 3)


def elsewhere(number: int) -> PayVoucher:
    return sign_voucher(10**5 + number, b"\xdd" * 32)


@pytest.mark.parametrize("bad", [forged, stale, elsewhere])
async def test_vouchers_that_are_worth_nothing_let_nothing_out_and_end_it(
    llama: FakeLlamaServer, bad: Callable[[int], PayVoucher]
) -> None:
    Engine(llama, 1000)
    till = FakeTill()
    async with at(till, llama) as (payer, _):
        payer.ask(most_out=1000)
        payer.send(covers(10))
        await payer.until(lambda: bool(payer.all(PayDue)))
        [sale] = till.sales
        for number in range(charging.MOST_IGNORED + 1):
            payer.send(bad(number))
            async with asyncio.timeout(5):
                while sale.ignored <= number:
                    await asyncio.sleep(0.001)
        await payer.over()
        assert payer.tokens == 10
        assert [refused.code for refused in payer.all(PayRefused)] == [PayCode.BAD_SIGNATURE]


async def test_a_voucher_beyond_what_the_channel_holds_ends_it(llama: FakeLlamaServer) -> None:
    Engine(llama, 1000)
    till = FakeTill(balance_micros=100)
    async with at(till, llama) as (payer, _):
        payer.ask()
        payer.send(sign_voucher(101))
        await payer.over()
        assert payer.tokens == 0
        assert [refused.code for refused in payer.all(PayRefused)] == [PayCode.INSUFFICIENT_BALANCE]


async def test_a_flood_of_vouchers_ends_it(llama: FakeLlamaServer) -> None:
    Engine(llama, 1000)
    till = FakeTill()
    async with at(till, llama) as (payer, provider):
        payer.ask()
        await payer.until(lambda: bool(payer.came))
        for number in range(10_000):
            payer.send(forged(number % 250))
        await payer.over()
        assert payer.code == Reset.MALFORMED and till.sales[0].ignored <= VOUCHERS_AT_ONCE
        assert provider.counters["http_malformed"] == 1


async def test_one_voucher_too_many_is_no_harm(llama: FakeLlamaServer) -> None:
    Engine(llama, TOKENS)
    async with at(FakeTill(), llama) as (payer, _):
        payer.ask()
        payer.send(covers(100), covers(100), covers(99))
        await payer.over()
        assert payer.tokens == TOKENS
