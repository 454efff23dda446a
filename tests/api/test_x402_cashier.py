"""Which payments are taken, in which order they are looked at, and what is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meshnode.api import x402
from meshnode.api.x402 import Deposit, Payment, payer_id
from meshnode.api.x402_cashier import Unpaid, check_voucher, taken, told
from meshnode.core.prices import FREE, Price
from meshnode.errors import ChainUnreachable, DiskFull, MeshnodeError, PaymentRefused, PublicPaused, StrangerLimit
from meshnode.wire.payments import ChannelConfig, PayOpen, PayStand, PayState, PayVoucher
from meshnode.wire.registry import PayCode
from tests.api.fake_llama import FakeLlamaServer
from tests.api.paid_stage import Engine
from tests.api.test_x402 import CHANNEL, PAYMENT, SALT, SIGNATURE, TERMS
from tests.api.x402_stage import SHORT, Node, decoded, refused, selling
from tests.api.x402_stage import Payer as Customer

pytestmark = pytest.mark.anyio

PAYER = payer_id(PAYMENT.config.payer_authorizer)
DEPOSIT = Deposit(100_000, 0, 2_000_000_000, SALT, SIGNATURE)
UNKNOWN = PaymentRefused("no such channel", pay_code=PayCode.UNKNOWN_CHANNEL)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnode.api.x402_cashier.LOOK_S", 0.01)
    monkeypatch.setattr("meshnode.api.x402_cashier.DEPOSIT_S", 0.05)


class FakeCashier:
    """Says what it is told to; `stands` one after another, the last one again and again. `told` is what was asked."""

    def __init__(self, *stands: PayStand | MeshnodeError, refuses: MeshnodeError | None = None) -> None:
        self.stands = list(stands)
        self.refuses = refuses
        self.told: list[str] = []
        self.is_right = True
        self.openings: list[tuple[PayOpen, bytes]] = []
        self.go = asyncio.Event()
        self.go.set()

    def terms(self) -> x402.Terms | None:
        return TERMS

    def price(self, model: str, /) -> Price:
        return FREE

    def channel(self, config: ChannelConfig, /) -> bytes:
        self.told.append("channel")
        return CHANNEL

    def is_signed(self, config: ChannelConfig, voucher: PayVoucher, /) -> bool:
        self.told.append("signed")
        return self.is_right

    async def stand(self, question: PayState, node: bytes, /) -> PayStand:
        assert (question.channel, node) == (CHANNEL, PAYER)
        self.told.append("stand")
        stand = self.stands.pop(0) if len(self.stands) > 1 else self.stands[0]
        if isinstance(stand, MeshnodeError):
            raise stand
        return stand

    async def deposit(self, opening: PayOpen, node: bytes, /) -> bytes:
        self.told.append("deposit")
        await self.go.wait()
        if self.refuses is not None:
            raise self.refuses
        self.openings.append((opening, node))
        return b"\x0f" * 32

    async def look(self, config: ChannelConfig, channel: bytes, node: bytes, /) -> None:
        self.told.append("look")


def _paying(cumulative: int, deposit: Deposit | None = None) -> Payment:
    return replace(PAYMENT, voucher=PayVoucher(CHANNEL, cumulative, SIGNATURE), deposit=deposit)


async def _unpaid(work: Callable[[], Any]) -> Unpaid:
    with pytest.raises(Unpaid) as caught:
        found = work()
        if asyncio.iscoroutine(found):
            await found
    return caught.value


# --- the voucher ------------------------------------------------------------------------------------------------------


async def test_what_is_cheap_is_looked_at_first() -> None:
    cashier = FakeCashier(PayStand())
    unpaid = await _unpaid(lambda: check_voucher(cashier, replace(PAYMENT, amount=49), TERMS, 50))
    assert unpaid.why == x402.OTHER_TERMS and cashier.told == []
    foreign = replace(PAYMENT, voucher=replace(PAYMENT.voucher, channel=SALT))
    assert (await _unpaid(lambda: check_voucher(cashier, foreign, TERMS, 50))).why == x402.WRONG_CHANNEL
    assert cashier.told == ["channel"]
    cashier.is_right = False
    assert (await _unpaid(lambda: check_voucher(cashier, PAYMENT, TERMS, 50))).why == x402.WRONG_SIGNATURE
    cashier.is_right = True
    check_voucher(cashier, PAYMENT, TERMS, 50)


@pytest.mark.parametrize("charged", [0, 1, 70, 10**12])
async def test_the_sum_is_what_was_charged_and_this_request(charged: int) -> None:
    stand = PayStand(charged=charged, vouched=charged + 500, signature=SIGNATURE, balance=10**13)
    assert await taken(FakeCashier(stand), _paying(charged + 50), TERMS, PAYER) == (stand, b"")
    for off in (-50, -1, 1, 500):
        unpaid = await _unpaid(lambda: taken(FakeCashier(stand), _paying(max(0, charged + 50 + off)), TERMS, PAYER))  # noqa: B023
        assert unpaid.why == x402.WRONG_AMOUNT and unpaid.stand == stand


async def test_a_channel_that_is_not_known_was_charged_nothing() -> None:
    assert await taken(FakeCashier(UNKNOWN), _paying(50), TERMS, PAYER) == (None, b"")
    unpaid = await _unpaid(lambda: taken(FakeCashier(UNKNOWN), _paying(51), TERMS, PAYER))
    assert unpaid.why == x402.WRONG_AMOUNT and unpaid.stand is None


@pytest.mark.parametrize("down", [PaymentRefused("the disk", pay_code=PayCode.NOT_SELLING), DiskFull("the disk")])
async def test_where_nobody_keeps_channels_it_is_no_fault_of_the_payer(down: MeshnodeError) -> None:
    for cashier in (FakeCashier(down), FakeCashier(UNKNOWN, refuses=down)):
        with pytest.raises(PublicPaused) as caught:
            await taken(cashier, _paying(50, DEPOSIT), TERMS, PAYER)
        assert caught.value.retry_after_s and "disk" not in caught.value.message


# --- the deposit ------------------------------------------------------------------------------------------------------


async def test_a_deposit_is_submitted_and_waited_for() -> None:
    there = PayStand(balance=100_000)
    cashier = FakeCashier(UNKNOWN, UNKNOWN, ChainUnreachable("it blinks"), PayStand(), there)
    assert await taken(cashier, _paying(50, DEPOSIT), TERMS, PAYER) == (there, b"\x0f" * 32)
    assert cashier.told == ["stand", "deposit", *["look", "stand"] * 4]
    [(opening, node)] = cashier.openings
    assert (opening.channel, opening.chain, opening.amount, node) == (PAYMENT.config, 84532, 100_000, PAYER)


async def test_one_that_does_not_come_is_told_as_taken() -> None:
    cashier = FakeCashier(PayStand())
    unpaid = await _unpaid(lambda: taken(cashier, _paying(50, DEPOSIT), TERMS, PAYER))
    assert unpaid.why == x402.PENDING and unpaid.retry_after_s
    said = decoded(unpaid.paid)
    assert said["success"] and said["transaction"] == f"0x{'0f' * 32}" and "chargedAmount" not in said["extra"]
    assert 2 <= cashier.told.count("look") <= 6


@pytest.mark.parametrize(
    ("stand", "payment", "why"),
    [
        (UNKNOWN, _paying(50, replace(DEPOSIT, amount=99_999)), x402.SMALL_DEPOSIT),
        (
            PayStand(charged=199_951, balance=100_000),
            _paying(200_001, DEPOSIT),
            x402.TOO_MUCH,
        ),
        (PayStand(charged=7), _paying(50, DEPOSIT), x402.WRONG_AMOUNT),
    ],
)
async def test_one_that_would_not_pay_is_not_submitted(
    stand: PayStand | MeshnodeError, payment: Payment, why: str
) -> None:
    cashier = FakeCashier(stand)
    assert (await _unpaid(lambda: taken(cashier, payment, TERMS, PAYER))).why == why
    assert "deposit" not in cashier.told


async def test_one_that_is_refused_is_refused_in_the_words_of_the_scheme() -> None:
    refused = PaymentRefused("forged", pay_code=PayCode.BAD_SIGNATURE)
    cashier = FakeCashier(UNKNOWN, refuses=refused)
    assert (await _unpaid(lambda: taken(cashier, _paying(50, DEPOSIT), TERMS, PAYER))).why == x402.WRONG_SIGNATURE


async def test_one_that_was_begun_is_ended_when_its_payer_leaves() -> None:
    cashier = FakeCashier(UNKNOWN)
    cashier.go.clear()
    task = asyncio.create_task(taken(cashier, _paying(50, DEPOSIT), TERMS, PAYER))
    while "deposit" not in cashier.told:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    cashier.go.set()
    while not cashier.openings:
        await asyncio.sleep(0)


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", list(PayCode))
def test_every_refusal_is_against_the_payment_or_the_moment(code: PayCode) -> None:
    found = told(PaymentRefused("particulars", pay_code=code))
    if code == PayCode.TOO_OFTEN:
        assert isinstance(found, StrangerLimit) and found.retry_after_s
    elif code in (PayCode.CHAIN_DOWN, PayCode.NOT_SELLING):
        assert isinstance(found, PublicPaused)
    else:
        assert isinstance(found, Unpaid) and found.why == x402.reason_of(code)


# --- over HTTP --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def node(llama: FakeLlamaServer, tmp_path: Path) -> AsyncIterator[Node]:
    async with selling(llama, tmp_path / "wallet") as started:
        yield started


async def test_a_channel_without_money_pays_nothing(node: Node, llama: FakeLlamaServer) -> None:
    payer = Customer()
    accepted = await node.price_of(SHORT)
    reply = await node.ask(SHORT, payment_signature=x402.header(payer.payment(accepted)))
    assert (reply.status, decoded(reply.headers["payment-required"])["error"]) == (
        402,
        "invalid_batch_settlement_evm_channel_not_found",
    )
    await node.fund(payer, int(accepted["amount"]) - 1)
    reply = await node.ask(SHORT, payment_signature=x402.header(payer.payment(accepted)))
    assert reply.status == 402 and llama.requests == []


async def test_deposits_that_do_not_hold_are_refused(node: Node) -> None:
    payer = Customer()
    accepted = await node.price_of(SHORT)
    small = payer.payment(accepted, deposit=99_999)
    assert await refused(node, SHORT, small) == (402, x402.SMALL_DEPOSIT)
    changed = payer.payment(accepted, deposit=200_000)
    changed["payload"]["deposit"]["amount"] = "300000"
    assert await refused(node, SHORT, changed) == (402, x402.WRONG_SIGNATURE)
    dear = {**SHORT, "messages": [{"role": "user", "content": "word " * 100}]}
    node.shop.prices["demo"] = Price(10**9, 10**9)
    dearly = payer.payment(await node.price_of(dear), deposit=100_000)
    assert await refused(node, dear, dearly) == (402, x402.TOO_MUCH)
    assert node.shop.deposits == []


async def test_a_deposit_that_takes_long_is_told_and_not_taken_twice(node: Node, llama: FakeLlamaServer) -> None:
    Engine(llama, tokens=5)
    node.shop.is_slow = True
    payer = Customer()
    payment = payer.payment(await node.price_of(SHORT), deposit=200_000)
    reply = await node.ask(SHORT, payment_signature=x402.header(payment))
    assert (reply.status, decoded(reply.headers["payment-required"])["error"]) == (402, x402.PENDING)
    said = decoded(reply.headers["payment-response"])
    assert said["success"] and said["transaction"] and "chargedAmount" not in said["extra"]
    node.shop.is_slow = False
    assert (await node.ask(SHORT, payment_signature=x402.header(payment))).status == 200, "the same again"
    assert len(node.shop.deposits) == 1
