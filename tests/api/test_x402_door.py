"""Plain HTTP strangers at the door of a node that sells: who is asked for money, what they get, and what they try."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from meshnode.api import x402
from meshnode.api.upstream import Connect
from meshnode.core.prices import Price, charge
from meshnode.errors import PaymentRefused
from meshnode.identity import verify
from meshnode.wire import receipts
from meshnode.wire.registry import PayCode
from tests.api.fake_llama import FakeLlamaServer, plain, raw, silent
from tests.api.fake_money import PROMPT_TOKENS
from tests.api.paid_stage import Engine, chunk, last
from tests.api.raw_http import Connection, ask, request
from tests.api.running import CHAT, HELLO, STREAM, serving, until
from tests.api.x402_stage import KEY, LONGEST, PRICE, SHORT, Node, Payer, decoded, refused, selling
from tests.net.nodes import IDENTITIES

pytestmark = pytest.mark.anyio


@pytest.fixture
async def node(llama: FakeLlamaServer, tmp_path: Path) -> AsyncIterator[Node]:
    async with selling(llama, tmp_path / "wallet") as started:
        yield started


# --- who is asked for money -------------------------------------------------------------------------------------------


async def test_who_has_no_key_is_told_what_this_very_request_costs(node: Node) -> None:
    reply = await node.ask(SHORT)
    assert reply.status == 402 and reply.headers["cache-control"] == "no-store"
    assert reply.error["code"] == "payment_required" and "$0.20 in and $0.60 out" in reply.error["message"]
    said = decoded(reply.headers["payment-required"])
    assert said["error"] == x402.WANTED and said["accepts"] == reply.json["accepts"] and reply.json["x402Version"] == 2
    [asked] = said["accepts"]
    extra = asked["extra"]
    most_in = int(extra["meshnode"]["mostTokensIn"])
    assert asked["amount"] == str(charge(PRICE, most_in, 100)) and extra["meshnode"]["mostTokensOut"] == "100"
    assert said["resource"]["url"] == f"http://localhost{CHAT}"
    most = await node.price_of({**SHORT, "max_tokens": 5000})
    assert most["extra"]["meshnode"]["mostTokensOut"] == str(LONGEST), "no stranger gets more"
    longer = await node.price_of(HELLO)
    assert int(longer["amount"]) == charge(PRICE, most_in - len(', "max_tokens": 100'), LONGEST)


async def test_a_prompt_is_bounded_by_its_bytes_and_by_what_the_model_can_read(node: Node) -> None:
    async def most_in(content: object) -> int:
        asked = await node.price_of({**SHORT, "messages": [{"role": "user", "content": content}]})
        return int(asked["extra"]["meshnode"]["mostTokensIn"])

    short = await most_in("")
    assert await most_in("x" * 100) == short + 100 and 512 < short < 1000
    assert await most_in("x" * 10_000) == 4096
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    assert await most_in([picture]) == 4096, "however small it is"


async def test_a_key_passes_and_a_wrong_one_is_refused_as_ever(node: Node) -> None:
    assert (await node.ask(authorization=f"Bearer {KEY}")).status == 200
    assert node.passed == [CHAT]
    for wrong in ({"authorization": "Bearer nonsense"}, {"x_api_key": "nonsense"}):
        reply = await node.ask(**wrong)
        assert reply.status == 401 and "payment-required" not in reply.headers
    assert (await node.ask(authorization="Bearer x402")).status == 402, "what SDKs send that must send something"
    payment = x402.header(Payer().payment(await node.price_of(SHORT), cumulative=1))
    reply = await node.ask(SHORT, authorization="Bearer nonsense", payment_signature=payment)
    assert reply.status == 402, "who pays needs no key"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/embeddings", "/v1/messages", "/v1/rerank", "/anything"])
async def test_everything_else_is_for_those_with_a_key(node: Node, path: str) -> None:
    payment = x402.header(Payer().payment(await node.price_of(HELLO)))
    for body in (None, HELLO):
        reply = await node.ask(body, path, payment_signature=payment)
        assert reply.status == 401, reply
    assert (await node.ask(None, CHAT, payment_signature=payment)).status == 401, "by GET"
    assert (await node.ask(host="evil.example")).status == 403


async def test_what_is_free_or_not_sold_or_not_here_is_not_offered(node: Node) -> None:
    assert (await node.ask({**HELLO, "model": "other"})).status == 404
    node.free()
    assert (await node.ask()).status == 401
    node.shop.prices.clear()
    node.shop.sells = False
    assert (await node.ask()).status == 401


@pytest.mark.parametrize(
    ("body", "status"),
    [({**HELLO, "n": 5}, 400), ({**HELLO, "id_slot": 1}, 400), (b"{", 400), (b" " * ((1 << 20) + 1), 413)],
)
async def test_what_no_stranger_may_ask_has_no_price(node: Node, body: Any, status: int) -> None:
    assert (await node.ask(body)).status == status


# --- what is paid and answered ----------------------------------------------------------------------------------------


async def test_a_plain_answer_costs_what_it_came_to_and_says_so(node: Node, llama: FakeLlamaServer) -> None:
    Engine(llama, tokens=30)
    payer = Payer()
    await node.fund(payer)
    reply = await node.pay(payer, SHORT)
    assert reply.status == 200, reply.body
    assert reply.json["choices"][0]["message"]["content"] == "word " * 30
    assert reply.json["usage"]["completion_tokens"] == 30
    said = decoded(reply.headers["payment-response"])
    due = charge(PRICE, PROMPT_TOKENS, 30)
    assert said["success"] and said["extra"]["chargedAmount"] == str(due)
    assert said["extra"]["channelState"]["chargedCumulativeAmount"] == str(due)
    receipt = receipts.read_genuine(said["extra"]["meshnodeReceipt"].encode(), verify)
    assert receipt.node == IDENTITIES[1].node_id and receipt.payer == payer.key.address
    assert (receipt.charged_micros, receipt.tokens_out, receipt.finish) == (due, 30, "stop")
    [(kind, facts)] = node.trail.records
    assert (kind, facts["node"], facts["cost_micros"]) == ("served", payer.id.hex(), due)
    assert node.records[0].peer.startswith(b"x402".hex())
    [received] = llama.requests
    assert received.json["max_tokens"] == 100 and received.json["stream"] is True


async def test_the_next_voucher_goes_on_from_what_was_charged(node: Node, llama: FakeLlamaServer) -> None:
    engine = Engine(llama, tokens=30)
    payer = Payer()
    await node.fund(payer)
    total = 0
    for tokens in (30, 1, 77):
        engine.tokens = tokens
        reply = await node.pay(payer, SHORT)
        total += charge(PRICE, PROMPT_TOKENS, tokens)
        assert (reply.status, payer.charged) == (200, total)
    assert decoded(reply.headers["payment-response"])["extra"]["channelState"]["balance"] == "1000000"


async def test_a_stream_ends_with_what_it_came_to(node: Node, llama: FakeLlamaServer) -> None:
    Engine(llama, tokens=40)
    payer = Payer()
    await node.fund(payer)
    reply = await node.pay(payer, {**STREAM, "max_tokens": 60})
    assert reply.status == 200 and reply.headers["content-type"] == "text/event-stream"
    first = decoded(reply.headers["payment-response"])
    assert first["success"] and "chargedAmount" not in first["extra"], "nobody knows yet"
    events, _, last = reply.body.rstrip().rpartition(b"\n\n")
    assert events.endswith(b"data: [DONE]") and events.count(b"word ") == 40
    said = decoded(last.removeprefix(b": payment-response ").decode())
    assert said["extra"]["chargedAmount"] == str(charge(PRICE, PROMPT_TOKENS, 40))
    receipt = receipts.read_genuine(said["extra"]["meshnodeReceipt"].encode(), verify)
    assert receipt.output_sha256 == sha256(events + b"\n\n").digest()


async def test_a_deposit_opens_the_channel_and_pays_at_once(node: Node, llama: FakeLlamaServer) -> None:
    Engine(llama, tokens=10)
    payer = Payer()
    reply = await node.pay(payer, SHORT, deposit=200_000)
    assert reply.status == 200, reply.body
    said = decoded(reply.headers["payment-response"])
    assert said["amount"] == "200000" and said["transaction"].startswith("0x") and len(said["transaction"]) == 66
    assert said["extra"]["channelState"]["balance"] == "200000"
    assert (await node.pay(payer, SHORT)).status == 200
    assert (await node.pay(payer, SHORT, deposit=150_000, salt=2)).status == 200, "more into the same channel"
    assert [opening.amount for opening in node.shop.deposits] == [200_000, 150_000]
    assert payer.charged == 3 * charge(PRICE, PROMPT_TOKENS, 10)


async def test_completions_and_responses_are_paid_alike(node: Node, llama: FakeLlamaServer) -> None:
    payer = Payer()
    await node.fund(payer)
    text = (
        b'data: {"choices":[{"index":0,"text":"a","finish_reason":null}],"timings":{"prompt_n":7,"predicted_n":1}}\n\n'
    )
    ends = (
        b'data: {"choices":[{"index":0,"text":"","finish_reason":"stop"}],'
        b'"usage":{"prompt_tokens":7,"completion_tokens":1}}\n\n'
    )

    async def script(received: Any) -> None:
        await received.head()
        await received.chunk(text + ends + b"data: [DONE]\n\n")
        await received.end()

    llama.script = script
    body = {"model": "demo", "prompt": "hello", "max_tokens": 5}
    reply = await node.pay(payer, body, "/v1/completions")
    assert (reply.status, reply.json["choices"][0]["text"]) == (200, "a") and payer.charged == charge(PRICE, 7, 1)
    done = b'data: {"type":"response.completed","response":{"id":"r","usage":{"input_tokens":7,"output_tokens":2}}}\n\n'

    async def responses(received: Any) -> None:
        await received.head()
        await received.chunk(done)
        await received.end()

    llama.script = responses
    body = {"model": "demo", "input": [{"role": "user", "content": "hello"}], "max_output_tokens": 5}
    reply = await node.pay(payer, body, "/v1/responses")
    assert (reply.status, reply.json["id"]) == (200, "r")
    assert payer.charged == charge(PRICE, 7, 1) + charge(PRICE, 7, 2)


async def test_the_engine_itself_is_paid_by_its_own_counts(real_llama: Connect, tmp_path: Path) -> None:
    async with selling(SimpleNamespace(connect=real_llama), tmp_path / "wallet") as node:  # type: ignore[arg-type]
        payer = Payer()
        await node.fund(payer)
        for tokens in (1, 100):
            before = payer.charged
            reply = await node.pay(payer, {**HELLO, "max_tokens": tokens, "ignore_eos": True})
            usage = reply.json["usage"]
            assert usage["completion_tokens"] == tokens and 0 < usage["prompt_tokens"] < 100
            assert payer.charged - before == charge(PRICE, usage["prompt_tokens"], tokens)
        reply = await node.pay(payer, {**STREAM, "max_tokens": 50, "ignore_eos": True})
        comment = reply.body.rstrip().rpartition(b": payment-response ")[2].decode()
        due = charge(PRICE, usage["prompt_tokens"], 50)
        assert decoded(comment)["extra"]["chargedAmount"] == str(due) and b"timings_per_token" not in reply.body


# --- what goes wrong --------------------------------------------------------------------------------------------------


async def test_an_engine_that_refuses_costs_nothing(node: Node, llama: FakeLlamaServer) -> None:
    llama.script = plain(400, b'{"error":{"code":400,"message":"too long","type":"exceed_context_size_error"}}')
    payer = Payer()
    await node.fund(payer)
    reply = await node.pay(payer, SHORT)
    assert (reply.status, reply.error["message"], reply.error["code"]) == (400, "too long", "exceed_context_size_error")
    assert "payment-response" not in reply.headers
    Engine(llama, tokens=5)
    assert (await node.pay(payer, SHORT)).status == 200, "the same voucher is still good"
    assert payer.charged == charge(PRICE, PROMPT_TOKENS, 5)


async def test_an_error_inside_of_the_stream_is_the_answer_of_a_plain_request(
    node: Node, llama: FakeLlamaServer
) -> None:
    event = b'data: {"error":{"code":503,"message":"out of memory","type":"unavailable_error"}}\n\n'

    async def fails(received: Any) -> None:
        await received.head()
        await received.chunk(chunk("a", 1) + event)
        await received.end()

    llama.script = fails
    payer = Payer()
    await node.fund(payer)
    reply = await node.pay(payer, SHORT)
    assert (reply.status, reply.error["message"]) == (503, "out of memory")
    assert payer.charged >= charge(PRICE, PROMPT_TOKENS, 1), "what was made until then"
    reply = await node.pay(payer, {**STREAM, "max_tokens": 9})
    assert reply.status == 200 and event in reply.body and b": payment-response " in reply.body


async def test_an_answer_that_takes_too_long_ends(
    node: Node, llama: FakeLlamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.api.guest_requests.LONGEST_ANSWER_S", 0.2)
    llama.script = silent
    payer = Payer()
    await node.fund(payer)
    reply = await node.pay(payer, SHORT)
    assert (reply.status, reply.error["code"]) == (429, "stranger_limit") and "payment-response" not in reply.headers
    assert node.door.offer_of(payer.id) is None, "it may ask again"


async def test_an_engine_that_is_gone_costs_nothing(node: Node, llama: FakeLlamaServer) -> None:
    payer = Payer()
    await node.fund(payer)
    llama.script = raw(b"nonsense")
    reply = await node.pay(payer, SHORT)
    assert reply.status >= 500 and "payment-response" not in reply.headers
    node.models = []
    assert (await node.ask(SHORT)).status in (404, 503)


async def test_the_bounds_of_strangers_hold_for_those_who_pay(llama: FakeLlamaServer, tmp_path: Path) -> None:
    Engine(llama, tokens=5)
    async with selling(llama, tmp_path / "wallet", requests=1) as node:
        payer = Payer()
        assert (await node.pay(payer, SHORT, deposit=200_000)).status == 200
        reply = await node.pay(payer, SHORT, deposit=100_000, salt=2)
        assert (reply.status, reply.error["code"]) == (429, "stranger_limit") and "retry-after" in reply.headers
        said = decoded(reply.headers["payment-response"])
        assert said["amount"] == "100000" and said["extra"]["chargedAmount"] == "0", "its deposit is told all the same"
        node.requests.pause(True)
        assert (await node.pay(Payer(b"another"), SHORT, deposit=100_000)).status == 503


async def test_an_answer_that_breaks_is_charged_as_far_as_it_came(node: Node, llama: FakeLlamaServer) -> None:
    async def breaks(received: Any) -> None:
        await received.head()
        await received.chunk(chunk("a", 1) + chunk("b", 2))
        received.writer.transport.abort()

    llama.script = breaks
    payer = Payer()
    await node.fund(payer)
    due = charge(PRICE, PROMPT_TOKENS, 2)
    reply = await node.pay(payer, SHORT)
    assert (reply.status, payer.charged) == (502, due), reply.body
    reply = await node.pay(payer, {**STREAM, "max_tokens": 9})
    assert reply.status == 200 and b'"b"' in reply.body and b"error" in reply.body
    comment = next(line for line in reply.body.split(b"\n\n") if line.startswith(b": payment-response "))
    assert decoded(comment.partition(b"response ")[2].decode())["extra"]["channelState"][
        "chargedCumulativeAmount"
    ] == str(2 * due)


async def test_a_caller_that_leaves_pays_for_what_it_got(node: Node, llama: FakeLlamaServer) -> None:
    pace: asyncio.Queue[None] = asyncio.Queue()
    engine = Engine(llama, tokens=90, pace=pace)
    payer = Payer()
    await node.fund(payer)
    body = {**STREAM, "max_tokens": 90}
    payment = x402.header(payer.payment(await node.price_of(body)))
    for _ in range(3):
        pace.put_nowait(None)
    async with serving(node.door) as port, await Connection.open(port) as connection:
        await connection.send(request(CHAT, body, headers={"Payment-Signature": payment}))
        await connection.head()
        for _ in range(3):
            assert b"word" in await connection.event()
        await connection.leave()
        await until(lambda: bool(node.records))
    assert engine.written == 3 and node.records[0].cost_micros == charge(PRICE, PROMPT_TOKENS, 3)
    assert node.door.address_of(payer.id) is None
    engine.pace = None
    reply = await node.pay(payer, SHORT)
    said = decoded(reply.headers["payment-required"])
    assert (reply.status, said["error"]) == (402, x402.WRONG_AMOUNT), "the payer has not heard what it was charged"
    state = said["accepts"][0]["extra"]
    payer.charged = int(state["channelState"]["chargedCumulativeAmount"])
    assert payer.charged == charge(PRICE, PROMPT_TOKENS, 3)
    assert (
        state["voucherState"]["signature"]
        == payer.voucher(int(state["voucherState"]["signedMaxClaimable"]))["signature"]
    ), "what it has signed itself proves it"
    assert (await node.pay(payer, SHORT)).status == 200


# --- what is tried ----------------------------------------------------------------------------------------------------


async def test_a_voucher_pays_once(node: Node, llama: FakeLlamaServer) -> None:
    Engine(llama, tokens=20)
    payer = Payer()
    await node.fund(payer)
    accepted = await node.price_of(SHORT)
    payment = payer.payment(accepted)
    assert (await node.ask(SHORT, payment_signature=x402.header(payment))).status == 200
    assert await refused(node, SHORT, payment) == (402, x402.WRONG_AMOUNT)
    for other in ({**SHORT, "max_tokens": 5}, {**SHORT, "max_tokens": 101}, {**SHORT, "user": "x"}):
        assert await refused(node, other, payment) == (402, x402.OTHER_TERMS)
    charged = charge(PRICE, PROMPT_TOKENS, 20)
    amount = int(accepted["amount"])
    for stale in (amount - 1, charged, charged + amount - 1, charged + amount + 1, 1, 0):
        assert await refused(node, SHORT, payer.payment(accepted, cumulative=stale)) == (402, x402.WRONG_AMOUNT)
    payer.charged = charged
    assert (await node.pay(payer, SHORT)).status == 200


async def test_a_body_that_costs_more_than_was_agreed_is_not_answered(node: Node, llama: FakeLlamaServer) -> None:
    Engine(llama, tokens=20)
    payer = Payer()
    await node.fund(payer)
    cheap = await node.price_of({**SHORT, "max_tokens": 1})
    assert await refused(node, SHORT, payer.payment(cheap)) == (402, x402.OTHER_TERMS)
    dear = await node.price_of(SHORT)
    lie = {**dear, "amount": cheap["amount"]}
    assert await refused(node, SHORT, payer.payment(lie)) == (402, x402.OTHER_TERMS)
    assert llama.requests == []


@pytest.mark.parametrize(
    ("accepted", "config", "why"),
    [
        ({"network": "eip155:8453"}, {}, x402.WRONG_NETWORK),
        ({"asset": f"0x{'11' * 20}"}, {}, x402.WRONG_TOKEN),
        ({}, {"token": b"\x11" * 20}, x402.WRONG_TOKEN),
        ({"payTo": f"0x{'11' * 20}"}, {}, x402.WRONG_RECEIVER),
        ({}, {"receiver": b"\x11" * 20}, x402.WRONG_RECEIVER),
        ({}, {"receiver_authorizer": b"\x11" * 20}, x402.WRONG_AUTHORIZER),
        ({}, {"withdraw_delay_s": 900}, x402.WRONG_DELAY),
        ({}, {"payer_authorizer": bytes(20)}, x402.WRONG_PAYLOAD),
        ({}, {"payer_authorizer": b"\x11" * 20}, x402.WRONG_SIGNATURE),
    ],
)
async def test_what_is_paid_elsewhere_or_by_nobody_pays_nothing(
    node: Node, accepted: dict[str, str], config: dict[str, Any], why: str
) -> None:
    payer = Payer(changes=config)
    await node.fund(payer)
    payment = payer.payment({**await node.price_of(SHORT), **accepted})
    assert await refused(node, SHORT, payment) == (402, why)
    assert node.shop.looks == 0, "no chain is asked for nonsense"


async def test_vouchers_of_others_and_forged_ones_pay_nothing(node: Node) -> None:
    payer, other = Payer(), Payer(b"another payer")
    await node.fund(payer)
    accepted = await node.price_of(SHORT)
    payment = payer.payment(accepted)
    mixed = {**payment, "payload": {**payment["payload"], "voucher": other.payment(accepted)["payload"]["voucher"]}}
    assert await refused(node, SHORT, mixed) == (402, x402.WRONG_CHANNEL)
    voucher = payment["payload"]["voucher"]
    for change in ({"signature": other.voucher(5)["signature"]}, {"signature": f"0x{'00' * 65}"}):
        forged = {**payment, "payload": {**payment["payload"], "voucher": {**voucher, **change}}}
        assert await refused(node, SHORT, forged) == (402, x402.WRONG_SIGNATURE)
    raised = {**payment, "payload": {**payment["payload"], "voucher": {**voucher, "maxClaimableAmount": "5"}}}
    assert await refused(node, SHORT, raised) == (402, x402.WRONG_SIGNATURE)


async def test_how_a_channel_stands_is_told_to_its_payer_alone(node: Node, llama: FakeLlamaServer) -> None:
    Engine(llama, tokens=5)
    payer = Payer()
    await node.fund(payer)
    assert (await node.pay(payer, SHORT)).status == 200
    payment = payer.payment(await node.price_of(SHORT), cumulative=7)
    payment["payload"]["voucher"]["signature"] = Payer(b"another payer").voucher(7)["signature"]
    reply = await node.ask(SHORT, payment_signature=x402.header(payment))
    assert (
        reply.status == 402 and "channelState" not in decoded(reply.headers["payment-required"])["accepts"][0]["extra"]
    )


async def test_a_payer_has_one_request_at_a_time(node: Node, llama: FakeLlamaServer) -> None:
    pace: asyncio.Queue[None] = asyncio.Queue()
    Engine(llama, tokens=5, pace=pace)
    payer = Payer()
    await node.fund(payer)
    payment = payer.payment(await node.price_of(SHORT))
    first = asyncio.create_task(node.ask(SHORT, payment_signature=x402.header(payment)))
    await llama.request(0)
    assert await refused(node, SHORT, payment) == (402, x402.BUSY)
    other = Payer(b"another payer")
    await node.fund(other)
    second = asyncio.create_task(node.pay(other, SHORT))
    await llama.request(1)
    for _ in range(10):
        pace.put_nowait(None)
    assert [(await first).status, (await second).status] == [200, 200]
    assert await refused(node, SHORT, payment) == (402, x402.WRONG_AMOUNT)


async def test_headers_that_are_huge_or_come_twice_or_mean_nothing(node: Node) -> None:
    payment = x402.header(Payer().payment(await node.price_of(SHORT)))
    for bad in ("A" * 9000, "nonsense", "e30=", payment[:-9]):
        reply = await node.ask(SHORT, payment_signature=bad)
        assert (reply.status, reply.error["code"]) == (400, "bad_request") and "PAYMENT-SIGNATURE" in reply.error[
            "message"
        ]
    twice = request(CHAT, SHORT).replace(
        b"\r\n\r\n", f"\r\nPayment-Signature: {payment}\r\nPayment-Signature: {payment}\r\n\r\n".encode(), 1
    )
    async with serving(node.door) as port:
        async with await Connection.open(port) as connection:
            await connection.send(twice)
            assert (await connection.reply()).status == 400
        assert (await ask(port, CHAT, SHORT, payment_signature="A" * 70_000)).status == 431


async def test_an_address_asks_only_so_often(node: Node) -> None:
    for _ in range(120):
        assert (await node.ask(b"{")).status == 400
    reply = await node.ask(SHORT)
    assert (reply.status, reply.error["code"]) == (429, "stranger_limit") and "retry-after" in reply.headers
    node.client = "198.51.100.9"
    assert (await node.ask(SHORT)).status == 402, "another address"
    node.client = "203.0.113.7"
    assert (await node.ask(authorization=f"Bearer {KEY}")).status == 200, "who has the key is not counted"
    node.now += 62
    assert (await node.ask(SHORT)).status == 402


async def test_no_request_costs_more_than_was_said_whatever_is_vouched(node: Node, llama: FakeLlamaServer) -> None:
    """Much is vouched, from a dear request that came to little. Then a prompt has more tokens than its bytes said."""
    Engine(llama, tokens=1)
    payer = Payer()
    await node.fund(payer)
    node.shop.prices["demo"] = Price(0, 10_000_000)
    assert (await node.pay(payer, SHORT)).status == 200
    node.shop.prices.clear()

    async def swollen(received: Any) -> None:
        await received.head()
        await received.chunk(chunk("a", 1).replace(b'"prompt_n":20', b'"prompt_n":4000') + last(1))
        await received.end()

    llama.script = swollen
    reply = await node.pay(payer, SHORT)
    assert reply.status == 402 and payer.charged == 10, reply.body
    [channel] = await node.shop.book.channels()
    assert channel.signed_micros >= 1000 and channel.charged_micros == 10


async def test_a_payer_that_withdraws_is_served_no_more(node: Node, llama: FakeLlamaServer) -> None:
    Engine(llama, tokens=5)
    payer = Payer()
    await node.fund(payer)
    assert (await node.pay(payer, SHORT)).status == 200
    node.shop.earning.withdrawn(payer.channel)
    reply = await node.pay(payer, SHORT)
    assert reply.status == 402 and "withdrawing" in decoded(reply.headers["payment-required"])["error"]


async def test_a_till_that_refuses_after_a_deposit_was_taken_says_both(node: Node, llama: FakeLlamaServer) -> None:
    payer = Payer()
    for code, status in ((PayCode.CHAIN_DOWN, 503), (PayCode.TOO_OFTEN, 429), (PayCode.WITHDRAW_PENDING, 402)):

        async def refuses(*_: Any, why: PayCode = code, **__: Any) -> Any:
            raise PaymentRefused("no", pay_code=why)

        node.shop.open = refuses  # type: ignore[method-assign]
        reply = await node.pay(payer, SHORT, deposit=100_000, salt=status)
        assert reply.status == status and ("payment-required" in reply.headers) is (status == 402)
        said = decoded(reply.headers["payment-response"])
        assert (said["amount"], said["extra"]["chargedAmount"]) == ("100000", "0")
    assert llama.requests == []


async def test_a_journal_that_cannot_be_written_sells_nothing(node: Node, llama: FakeLlamaServer) -> None:
    payer = Payer()
    await node.fund(payer)
    await node.shop.store.close()
    reply = await node.pay(payer, SHORT)
    assert reply.status == 503 and "retry-after" in reply.headers and llama.requests == []


async def test_too_many_bodies_at_a_time_are_refused(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnode.api.x402_door.MOST_READING", 1)
    monkeypatch.setattr("meshnode.api.x402_door.LONGEST_READING_S", 0.2)
    async with serving(node.door) as port, await Connection.open(port) as slow:
        await slow.send(b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{" % CHAT.encode())
        async with asyncio.timeout(5):
            while (reply := await ask(port, CHAT, SHORT)).status == 402:
                pass
        assert reply.status == 429 and "too many requests come in" in reply.error["message"]
        assert (await slow.reply()).status == 408
    assert (await node.ask(SHORT)).status == 402
