"""One voucher, and what becomes of the request that it pays for."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest

from meshnode.api.x402 import Offer
from meshnode.api.x402_sale import Asked, CappedTill, HttpReply, OneVoucher, Refusal
from meshnode.core.prices import Price
from meshnode.identity import verify
from meshnode.wire import receipts
from meshnode.wire.payments import PayAsk, PayDue, PayQuote, PayReceipt, PayRefused, PayStand, PayVoucher
from meshnode.wire.receipts import Receipt
from meshnode.wire.registry import PayCode
from tests.api.test_x402 import PAYMENT
from tests.api.x402_stage import decoded
from tests.net.nodes import IDENTITIES

pytestmark = pytest.mark.anyio

OFFER = Offer("demo", Price(200_000, 600_000), 100, 50, 50)
STAND = PayStand(charged=70, vouched=120, balance=1000)
RECEIPT = receipts.write(
    Receipt(
        request="req_1",
        quote=bytes(16),
        node=IDENTITIES[1].node_id,
        model="demo",
        content_hash=bytes(16),
        payer=PAYMENT.config.payer_authorizer,
        channel=PAYMENT.voucher.channel,
        chain=84532,
        hub=b"\x01" * 20,
        price_in=200_000,
        price_out=600_000,
        tokens_in=20,
        tokens_out=10,
        charged_micros=10,
        channel_charged_micros=80,
        finish="stop",
        output_sha256=sha256().digest(),
        at=1_000_000,
    ),
    IDENTITIES[1].sign,
)


def _sale(stand: PayStand | None = STAND, transaction: bytes = b"") -> OneVoucher:
    return OneVoucher("req_1", OFFER, PAYMENT, 84532, stand, transaction)


async def test_there_is_one_voucher_and_no_other() -> None:
    sale = _sale()
    assert (sale.ask.request, sale.ask.most_out, sale.ask.channel) == ("req_1", 50, PAYMENT.config)
    sale.send(PayQuote(bytes(65)))
    sale.send(PayDue(200))
    assert [await sale.voucher() for _ in range(3)] == [PAYMENT.voucher, None, None]
    assert sale.refused_with is None


def test_what_it_came_to_is_what_the_receipt_says() -> None:
    sale = _sale()
    assert "chargedAmount" not in decoded(sale.response(has_ended=False))["extra"]
    sale.counted(20, 10)
    assert sale.charged_micros is None, "tokens went out, and nobody could write down what they cost"
    assert "chargedAmount" not in decoded(sale.response(has_ended=True))["extra"]
    sale.send(PayReceipt(RECEIPT))
    said = decoded(sale.response(has_ended=True))["extra"]
    assert (said["chargedAmount"], said["channelState"]["chargedCumulativeAmount"]) == ("10", "80")
    assert receipts.read_genuine(said["meshnodeReceipt"].encode(), verify).charged_micros == 10


@pytest.mark.parametrize(("stand", "total"), [(STAND, "70"), (None, "0")])
def test_where_nothing_was_given_nothing_is_charged(stand: PayStand | None, total: str) -> None:
    sale = _sale(stand)
    sale.send(PayRefused(PayCode.CHANNEL_BUSY, "busy"))
    said = decoded(sale.response(has_ended=True))["extra"]
    assert (said["chargedAmount"], said["channelState"]["chargedCumulativeAmount"]) == ("0", total)
    assert sale.refused_with == PayRefused(PayCode.CHANNEL_BUSY, "busy")


class OneSale:
    """A till and its only sale, which allows everything."""

    quote = b"quote"
    charged_micros = 7

    def price(self, model: str, /) -> Price:
        return OFFER.price

    async def open(self, node: bytes, ask: PayAsk, /, *, model: str, content_hash: bytes) -> Any:
        return self

    def may_start(self, tokens_in: int, /) -> bool:
        return True

    def may_emit(self, tokens_in: int, tokens_out: int, /) -> bool:
        return True

    def due(self, tokens_in: int, tokens_out: int, /) -> PayDue:
        return PayDue(tokens_in + tokens_out)

    async def voucher(self, voucher: PayVoucher, /) -> bool:
        return True

    async def ended(self, tokens_in: int, tokens_out: int, finish: str, output_sha256: str, /) -> bytes:
        return finish.encode()


async def test_a_request_over_http_comes_to_no_more_than_was_said_and_one_of_a_node_to_what_is_vouched() -> None:
    payer, inner = b"\x01" * 32, OneSale()
    till = CappedTill(inner, {payer: OFFER}.get)
    ask = _sale().ask
    assert till.price("demo") == OFFER.price
    assert await till.open(b"\x02" * 32, ask, model="demo", content_hash=b"") is inner
    sale = await till.open(payer, ask, model="demo", content_hash=b"")
    assert (sale.quote, sale.charged_micros, sale.due(1, 2)) == (b"quote", 7, PayDue(3))
    assert await sale.voucher(PAYMENT.voucher) and await sale.ended(0, 0, "stop", "") == b"stop"
    assert OFFER.amount == 50 and [sale.may_emit(100, 50), sale.may_emit(100, 51)] == [True, False]
    assert [sale.may_start(250), sale.may_start(251), sale.may_emit(251, 0)] == [True, False, False]


class Sink:
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.told: list[object] = []

    async def take(self, events: bytes, /) -> None:
        self.told.append(events)

    async def end(self) -> None:
        self.told.append("end")


async def test_events_go_on_and_the_first_one_is_announced() -> None:
    sink = Sink()
    reply = HttpReply(sink, lambda: sink.told.append("begins"))
    await reply.head(200, [("content-type", "text/event-stream")])
    await reply.body(b"a")
    await reply.body(b"b")
    await reply.finish()
    assert sink.told == ["begins", b"a", b"b"] and reply.refusal is None


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([b'{"error":{"message":"no', b'","type":"x"}}'], {"message": "no", "type": "x"}),
        ([b"<html>"], {"message": "the engine gave no reason"}),
        ([b'{"error":5}'], {"message": "the engine gave no reason"}),
        ([b"[1]"], {"message": "the engine gave no reason"}),
        ([b'{"error":{"message":"' + b"x" * 70_000, b'x"}}'], {"message": "the engine gave no reason"}),
    ],
)
async def test_a_refusal_is_kept(words: list[bytes], error: dict[str, str]) -> None:
    sink = Sink()
    reply = HttpReply(sink)
    await reply.head(429, [("retry-after", "7")])
    for piece in words:
        await reply.body(piece)
    await reply.finish()
    assert reply.refusal == Refusal(429, error, "7") and sink.told == []


def test_it_is_asked_as_a_peer_asks() -> None:
    asked = Asked("/v1/completions", b"{}", b"\x01" * 32, "req_1", _sale())
    assert (asked.method, asked.content_type) == ("POST", "application/json")
