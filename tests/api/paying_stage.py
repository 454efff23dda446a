"""One paid request as a gateway makes it, and a provider that does as a test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from meshnode.api.paid_pipe import Payment
from meshnode.api.paying import PaidCall
from meshnode.api.upstream import Exchange, UpstreamBroken
from meshnode.core.prices import Price
from meshnode.mesh.paid_stream import PaidStream
from meshnode.mesh.tunnel import TunnelReply
from meshnode.mesh.tunnel_request import TunnelRequest
from meshnode.wire.payments import (
    PayQuote,
    PayVoucher,
)
from tests.api.fake_llama import FakeLlamaServer
from tests.api.fake_money import CHAIN, PRICE, FakePaidRequest, FakePurse, FakeSale, FakeTill
from tests.api.paid_stage import Line, Provider, line_to
from tests.api.running import CHAT, STREAM
from tests.net.nodes import IDENTITIES

TOKENS = 100
MOST_IN, MOST_OUT = 300, 200
CALL = PaidCall(
    "req_1.1", IDENTITIES[1].node_id, "demo", bytes.fromhex("ab" * 16), PRICE, CHAIN, MOST_IN, MOST_OUT, 0.0
)
SSE = [("content-type", "text/event-stream")]

Conduct = Callable[[PaidStream, TunnelReply], Awaitable[None]]


class Paying:
    """One paid request, as attempt.py and answering.py make it."""

    def __init__(self, line: Line, purse: FakePurse, request: FakePaidRequest) -> None:
        self.purse = purse
        self.request = request
        self.payment = Payment(request, CHAT)
        self._connect = line.host().connect_paid
        self.body = b""
        self.exchange: Exchange | None = None

    async def send(self, body: object = STREAM) -> Exchange:
        assert self._connect is not None
        self.exchange = await Exchange.send(
            self.payment.over(self._connect),
            "POST",
            CHAT,
            api_key="",
            body=json.dumps(body).encode(),
            content_type="application/json",
        )
        return self.exchange

    async def run(self) -> str:
        """Take the answer; "whole" or the name of what went wrong."""
        try:
            exchange = await self.send()
            async for piece in exchange.body():
                self.body += piece
            return "whole"
        except UpstreamBroken:
            refusal = self.payment.refusal
            return type(refusal).__name__ if refusal is not None else "broken"

    async def end(self, outcome: str) -> int:
        if self.exchange is not None:
            self.exchange.close()
        async with asyncio.timeout(5):
            return await self.payment.settle(outcome)

    @property
    def tokens(self) -> int:
        return self.body.count(b'"content":"word')


@asynccontextmanager
async def paying(provider: Provider, purse: FakePurse | None = None) -> AsyncIterator[Paying]:
    purse = purse or FakePurse()
    async with line_to(provider) as line:
        yield Paying(line, purse, await purse.begin(CALL))


class Rogue(Provider):
    """A provider that does with each paid request what `conduct` says."""

    def __init__(self, llama: FakeLlamaServer, conduct: Conduct) -> None:
        super().__init__(llama, FakeTill())
        self.conduct = conduct
        self.server._answer = self._answer
        self.vouchers: list[PayVoucher] = []

    async def _answer(self, request: TunnelRequest, reply: TunnelReply) -> None:
        assert request.payment is not None
        await self.conduct(request.payment, reply)

    def quote(self, paid: PaidStream, price: Price = PRICE) -> PayQuote:
        till = FakeTill()
        till.quotes_at = price
        till.credit.open(paid.ask.request, price)
        return PayQuote(FakeSale(till, paid.ask, "demo", CALL.content_hash).quote)


async def begin(paid: PaidStream, reply: TunnelReply, quote: PayQuote | None) -> None:
    if quote is not None:
        paid.send(quote)
    await reply.head(200, SSE)
