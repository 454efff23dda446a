"""What a request of a caller costs, through the whole gateway and over real QUIC: told, recorded, refused, resumed."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from meshnode.api import charging
from meshnode.api.bill import Bill
from meshnode.api.paying import PaidCall
from meshnode.api.record import Record
from meshnode.api.served import Served
from meshnode.api.upstream import Connect
from meshnode.core.prices import Price, charge
from meshnode.errors import PaymentRefused
from meshnode.identity import Identity
from meshnode.wire.registry import PayCode
from tests.api import running
from tests.api.fake_llama import FakeLlamaServer, Received
from tests.api.fake_money import CHANNEL, PRICE, PROMPT_TOKENS, FakePaidRequest, FakePurse, FakeTill
from tests.api.paid_stage import Engine, Provider, chunk, last, line_to, paid_gateway
from tests.api.raw_http import Connection, Reply, ask, request
from tests.api.running import CHAT, HELLO, STREAM
from tests.net.nodes import IDENTITIES

pytestmark = pytest.mark.anyio

TOKENS = 40
COST = charge(PRICE, PROMPT_TOKENS, TOKENS)
DEAR = Price(PRICE.tokens_in, PRICE.tokens_out + 1)
MONTH = "2026-11"


async def asked(llama: FakeLlamaServer, purse: FakePurse | None, body: object = STREAM, **more: Any) -> Reply:
    """An answer to one request, of a gateway with one provider."""
    async with line_to(Provider(llama, FakeTill())) as line, paid_gateway(line, purse, **more) as gateway:
        return await ask(gateway.port, CHAT, body)


async def test_a_stream_says_at_its_end_what_it_cost(llama: FakeLlamaServer) -> None:
    Engine(llama, TOKENS)
    purse = FakePurse()
    async with line_to(Provider(llama, FakeTill())) as line, paid_gateway(line, purse) as gateway:
        reply = await ask(gateway.port, CHAT, STREAM)
        assert reply.status == 200 and "x-meshnode-cost-micros" not in reply.headers
        assert reply.body.endswith(b"data: [DONE]\n\n: meshnode-cost-micros %d\n\n" % COST)
        record = await gateway.record(0)
        assert (record.cost_micros, record.tokens_out, record.error) == (COST, TOKENS, "")
        [paid] = purse.requests
        assert paid.call.request == f"{record.id}.1" and paid.output == record.output_sha256
        assert (paid.call.most_out, paid.call.price, paid.call.content_hash.hex()) == (4096, PRICE, "ab" * 16)
        assert purse.ledger.running(paid.call.request) is None


async def test_a_plain_answer_says_it_in_its_head(llama: FakeLlamaServer) -> None:
    Engine(llama, TOKENS)
    reply = await asked(llama, FakePurse(), {**HELLO, "max_tokens": 100})
    assert reply.status == 200 and reply.headers["x-meshnode-cost-micros"] == str(COST)
    assert reply.json["choices"][0]["message"]["content"] == "word " * TOKENS


async def test_a_free_answer_says_nothing_of_money(llama: FakeLlamaServer) -> None:
    Engine(llama, TOKENS)
    provider = Provider(llama, None)
    async with line_to(provider) as line, paid_gateway(line, FakePurse(), price=Price(0, 0)) as gateway:
        reply = await ask(gateway.port, CHAT, STREAM)
        assert reply.status == 200 and b"cost" not in reply.body
        assert (await gateway.record(0)).cost_micros == 0


async def test_the_limit_of_the_request_is_what_is_reserved(llama: FakeLlamaServer) -> None:
    Engine(llama, TOKENS)
    purse = FakePurse()
    reply = await asked(llama, purse, {**STREAM, "max_tokens": 7})
    assert purse.requests[0].call.most_out == 7 and reply.body.count(b"word") == 7
    most_in = purse.requests[0].call.most_in
    assert len(json.dumps(STREAM)) < most_in < len(json.dumps(STREAM)) + 200


# --- what is not paid -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_above_the_ceiling_nobody_is_asked_and_the_answer_has_the_figures(
    llama: FakeLlamaServer, stream: bool
) -> None:
    reply = await asked(llama, FakePurse(ceiling=PRICE), {**HELLO, "stream": stream}, price=DEAR)
    assert (reply.status, reply.error["code"]) == (402, "price_above_ceiling")
    assert "$0.20 in and $0.600001 out, the ceiling is $0.20 in and $0.60 out" in reply.error["message"]
    assert not llama.requests


async def test_without_a_purse_nobody_is_paid(llama: FakeLlamaServer) -> None:
    reply = await asked(llama, None)
    assert (reply.status, reply.error["code"]) == (402, "payments_off")
    assert not llama.requests


async def test_a_cap_that_leaves_too_little_refuses_before_anybody_is_asked(llama: FakeLlamaServer) -> None:
    reply = await asked(llama, FakePurse(month_micros=100), {**STREAM, "max_tokens": 4000})
    assert (reply.status, reply.error["code"]) == (402, "monthly_cap_reached")
    assert "the cap is $0.0001 a month" in reply.error["message"] and not llama.requests


async def test_a_provider_that_asks_more_than_it_advertised_is_not_paid(llama: FakeLlamaServer) -> None:
    till, purse = FakeTill(), FakePurse()
    till.quotes_at = DEAR
    async with line_to(Provider(llama, till)) as line, paid_gateway(line, purse) as gateway:
        reply = await ask(gateway.port, CHAT, STREAM)
        assert (reply.status, reply.error["code"]) == (402, "price_above_ceiling")
        assert purse.requests[0].signed == [] and till.credit.vouched_micros == 0
        record = await gateway.record(0)
        assert (record.cost_micros, record.error) == (0, "price-above-ceiling")


async def test_the_words_of_a_provider_that_refuses_reach_the_caller(llama: FakeLlamaServer) -> None:
    till = FakeTill()
    till.refuses = PaymentRefused("the channel is closing", pay_code=PayCode.WITHDRAW_PENDING)
    async with line_to(Provider(llama, till)) as line, paid_gateway(line, FakePurse()) as gateway:
        reply = await ask(gateway.port, CHAT, STREAM)
        assert (reply.status, reply.error["code"]) == (402, "payment_refused")
        assert "the channel is closing" in reply.error["message"]


# --- several hosts ----------------------------------------------------------------------------------------------------


class Town:
    """A payer with a line to each of several providers of one model, each with an engine of its own."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.hosts: list[Any] = []
        self.tills: list[FakeTill] = []
        self.providers: list[Provider] = []
        self.llamas: list[FakeLlamaServer] = []

    async def add(self, price: Price = PRICE, **more: Any) -> FakeLlamaServer:
        llama = await self._stack.enter_async_context(FakeLlamaServer.running())
        identity: Identity = IDENTITIES[len(self.hosts) + 1]
        till = FakeTill(price)
        till.node = identity
        provider = Provider(llama, till, identity=identity)
        line = await self._stack.enter_async_context(line_to(provider))
        self.hosts.append(replace(line.host(price), **more))
        self.tills.append(till)
        self.providers.append(provider)
        self.llamas.append(llama)
        return llama

    async def gateway(self, purse: FakePurse) -> Any:
        served = Served("demo", "ready", hosts=tuple(self.hosts))
        return await self._stack.enter_async_context(
            running.gateway(served, purse=purse, radius=lambda: "public", router=running.InOrder())
        )


class ManyPurse(FakePurse):
    """One channel would do for all: each provider's credit knows only what it is shown itself."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.own: dict[bytes, FakePurse] = {}

    async def begin(self, call: Any, /) -> Any:
        own = self.own.setdefault(call.node, FakePurse(ceiling=self.policy.ceiling or PRICE))
        found = await own.begin(call)
        self.requests.append(found)
        return found


async def test_an_answer_that_is_killed_in_the_middle_goes_on_elsewhere_and_both_parts_are_paid() -> None:
    async with AsyncExitStack() as stack:
        town = Town(stack)
        first, second = await town.add(), await town.add()
        begun = asyncio.Event()

        async def dies(request: Received) -> None:
            await request.head()
            for number in range(1, 6):
                await request.chunk(chunk("word ", number))
            await begun.wait()
            request.writer.transport.abort()

        first.script = dies
        answers = {"/tokenize": b'{"tokens":[]}'}

        async def goes_on(request: Received) -> None:
            if request.path != CHAT:
                body = answers.get(request.path, b'{"input_tokens":%d}' % PROMPT_TOKENS)
                await request.head(200, "application/json", len(body))
                await request.raw(body)
                return
            await Engine(second, TOKENS).script(request)
            second.script = goes_on

        second.script = goes_on
        purse = ManyPurse()
        gateway = await town.gateway(purse)
        async with await Connection.open(gateway.port) as connection:
            connection.writer.write(request(CHAT, {**STREAM, "temperature": 0, "seed": 1}))
            got = b""
            async with asyncio.timeout(10):
                while got.count(b"word") < 5:
                    got += await connection.reader.read(1 << 16)
                begun.set()
                while b": meshnode-cost-micros" not in got and b'"error"' not in got:
                    got += await connection.reader.read(1 << 16)
        record = await gateway.record(0)
        assert got.count(b"word ") == TOKENS and b": meshnode-resumed 1" in got
        one, other = (till.sales[-1].receipt for till in town.tills)
        assert one is not None and other is not None
        assert (one.finish, one.tokens_out, other.finish) == ("broken", 5, "stop")
        assert one.charged_micros == charge(PRICE, PROMPT_TOKENS, 5)
        assert record.cost_micros == one.charged_micros + other.charged_micros
        assert [each.call.request for each in purse.requests] == [f"{record.id}.1", f"{record.id}.2"]
        assert [each.outcome for each in purse.requests] == ["broken", "whole"]


async def test_a_host_that_costs_nothing_goes_first_and_a_dear_one_is_not_asked() -> None:
    async with AsyncExitStack() as stack:
        town = Town(stack)
        for price in (DEAR, PRICE, Price(0, 0)):
            Engine(await town.add(price), TOKENS)
        purse = FakePurse()
        served = Served("demo", "ready", hosts=tuple(town.hosts))
        gateway = await stack.enter_async_context(running.gateway(served, purse=purse, radius=lambda: "public"))
        reply = await ask(gateway.port, CHAT, STREAM)
        assert reply.status == 200 and not purse.requests
        assert [len(llama.requests) for llama in town.llamas] == [0, 0, 1]
        gateway.models[:] = [Served("demo", "ready", hosts=tuple(town.hosts[:2]))]
        reply = await ask(gateway.port, CHAT, STREAM)
        assert reply.status == 200 and len(purse.requests) == 1
        assert [len(llama.requests) for llama in town.llamas] == [0, 1, 1]


async def test_a_caller_that_leaves_pays_for_what_came(llama: FakeLlamaServer) -> None:
    pace: asyncio.Queue[None] = asyncio.Queue()
    Engine(llama, 1000, pace)
    purse, till = FakePurse(), FakeTill()
    async with line_to(Provider(llama, till)) as line, paid_gateway(line, purse) as gateway:
        async with await Connection.open(gateway.port) as connection:
            connection.writer.write(request(CHAT, STREAM))
            got = b""
            for _ in range(6):
                pace.put_nowait(None)
            async with asyncio.timeout(5):
                while got.count(b"word") < 6:
                    got += await connection.reader.read(1 << 16)
        record = await gateway.record(0)
        assert record.status == 499 and record.cost_micros == charge(PRICE, PROMPT_TOKENS, 6)
        assert purse.requests[0].outcome == "cancelled"
        line_of = purse.ledger.line(CHANNEL)
        assert line_of is not None and line_of.settled_micros == record.cost_micros, "exactly, by the receipt"


async def test_two_requests_at_once_share_a_channel(llama: FakeLlamaServer) -> None:
    Engine(llama, TOKENS)
    purse, till = FakePurse(), FakeTill()
    async with line_to(Provider(llama, till)) as line, paid_gateway(line, purse) as gateway:
        replies = await asyncio.gather(*(ask(gateway.port, CHAT, STREAM) for _ in range(2)))
        assert [reply.body.count(b"word ") for reply in replies] == [TOKENS] * 2
        assert sum([(await gateway.record(number)).cost_micros for number in range(2)]) == 2 * COST
        assert till.credit.settled_micros == 2 * COST
        assert purse.ledger.committed(MONTH) <= 2 * charge(PRICE, PROMPT_TOKENS, TOKENS + 64)


async def test_a_caller_that_leaves_while_money_is_reserved_gives_it_back(llama: FakeLlamaServer) -> None:
    entered, go = asyncio.Event(), asyncio.Event()

    class SlowPurse(FakePurse):
        """As one that writes to a slow disk."""

        async def begin(self, call: PaidCall, /) -> FakePaidRequest:
            found = await super().begin(call)
            entered.set()
            await go.wait()
            return found

    purse = SlowPurse()
    async with line_to(Provider(llama, FakeTill())) as line, paid_gateway(line, purse) as gateway:
        async with await Connection.open(gateway.port) as connection:
            connection.writer.write(request(CHAT, STREAM))
            await asyncio.wait_for(entered.wait(), 5)
        for _ in range(3):
            await asyncio.sleep(0)
        go.set()
        await gateway.record(0)
        assert purse.requests[0].outcome == "cancelled" and purse.ledger.reserved() == 0
        assert not llama.requests


async def test_a_bill_without_payments_is_nothing() -> None:
    record = Record("req_1", CHAT, 0.0)
    bill = Bill(None, record)
    assert not bill.has_payments and bill.refusal is None
    bill.leave("whole")
    await bill.settled()
    assert record.cost_micros == 0


async def test_nothing_of_a_paid_answer_is_taken_for_free_by_asking_without_paying(llama: FakeLlamaServer) -> None:
    """A host whose price came after the last news: asked as if it were free, it says what it wants."""
    provider = Provider(llama, FakeTill())
    async with line_to(provider) as line, paid_gateway(line, FakePurse(), price=Price(0, 0)) as gateway:
        reply = await ask(gateway.port, CHAT, STREAM)
        assert reply.status == 402 and "per million tokens here" in reply.error["message"]
        assert not llama.requests


async def test_the_end_of_an_answer_is_the_same_as_of_a_free_one(llama: FakeLlamaServer) -> None:
    Engine(llama, 3)
    reply = await asked(llama, FakePurse())
    body = reply.body.partition(b": meshnode-cost")[0]
    assert body == b"".join(chunk("word ", n, counts=False) for n in (1, 2, 3)) + last(3)


@pytest.mark.parametrize(
    ("path", "members", "limit"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "one two"}]}, "max_tokens"),
        ("/v1/completions", {"prompt": "one two three"}, "max_tokens"),
        ("/v1/responses", {"input": "one two"}, "max_output_tokens"),
        ("/v1/messages", {"messages": [{"role": "user", "content": "one two"}]}, "max_tokens"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_the_real_engine_is_paid_to_the_token(
    real_llama: Connect, path: str, members: dict[str, Any], limit: str, stream: bool
) -> None:
    purse, till = FakePurse(), FakeTill()
    engine = SimpleNamespace(connect=real_llama)
    body = {"model": "demo", "stream": stream, limit: 150, "temperature": 0, "ignore_eos": True, **members}
    async with line_to(Provider(engine, till)) as line, paid_gateway(line, purse) as gateway:  # type: ignore[arg-type]
        reply = await ask(gateway.port, path, body)
        assert reply.status == 200, reply.body
        record = await gateway.record(0)
        # Of strangers these two dialects take no `ignore_eos`.
        assert record.tokens_in > 0 and (record.tokens_out == 150 or path in ("/v1/responses", "/v1/messages"))
        assert record.cost_micros == charge(PRICE, record.tokens_in, record.tokens_out)
        receipt = till.sales[0].receipt
        assert receipt is not None and receipt.finish == ("length" if record.tokens_out == 150 else "stop")
        assert (receipt.tokens_in, receipt.tokens_out) == (record.tokens_in, record.tokens_out)
        assert purse.requests[0].outcome == "whole" and not till.sales[0].ignored > charging.MOST_IGNORED
        assert purse.requests[0].output == receipt.output_sha256.hex()
        if stream:
            assert reply.body.endswith(b": meshnode-cost-micros %d\n\n" % record.cost_micros)
        else:
            assert reply.headers["x-meshnode-cost-micros"] == str(record.cost_micros)
