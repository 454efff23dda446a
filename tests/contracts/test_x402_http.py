"""The reference client of x402 (PyPI `x402`), unchanged, as a customer over plain HTTP: it understands what is asked,
what it signs is taken, on a chain as well, and its own books come out even with ours."""

from __future__ import annotations

from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from x402 import x402Client
from x402.http.x402_http_client import x402HTTPClient
from x402.mechanisms.evm.batch_settlement.client.config import BatchSettlementEvmSchemeOptions
from x402.mechanisms.evm.batch_settlement.client.scheme import BatchSettlementEvmScheme
from x402.mechanisms.evm.batch_settlement.client.storage import BatchSettlementClientContext
from x402.mechanisms.evm.batch_settlement.utils import compute_channel_id
from x402.mechanisms.evm.signers import EthAccountSigner
from x402.schemas import PaymentRequirements

from meshnode.api import x402
from meshnode.core.prices import Price, charge
from meshnode.settlement.addresses import shown
from meshnode.wire.payments import ChannelConfig, PayOpen
from tests.api.fake_llama import FakeLlamaServer
from tests.api.paid_stage import PROMPT_TOKENS, Engine
from tests.api.raw_http import Reply
from tests.api.running import STREAM
from tests.api.x402_stage import NETWORK, PRICE, SHORT, Node, Shop, decoded, selling
from tests.chain_stage import Side, stage_on
from tests.lab.evm import Anvil, canonical, needs_anvil

pytestmark = pytest.mark.anyio


@pytest.fixture
async def llama() -> AsyncIterator[FakeLlamaServer]:
    async with FakeLlamaServer.running() as fake:
        yield fake


@pytest.fixture
async def node(llama: FakeLlamaServer, tmp_path: Path) -> AsyncIterator[Node]:
    async with selling(llama, tmp_path / "wallet") as started:
        yield started


class Signer(EthAccountSigner):
    """Reads the made-up chain where the client would read the real one."""

    def __init__(self, account: Any, node: Node) -> None:
        super().__init__(account)
        self._node = node

    def read_contract(self, address: str, abi: Any, function: str, *arguments: Any) -> Any:
        assert function == "channels"
        return self._node.shop.on_chain.get(bytes.fromhex(arguments[0][2:]), 0), 0


ACCOUNT, VOUCHERS = (Account.from_key(sha256(name).digest()) for name in (b"customer", b"its voucher key"))


class Customer:
    """A caller that pays when it is asked to, as the HTTP clients of the package do it."""

    def __init__(self, node: Node, *, reads_chain: bool = True, has_voucher_key: bool = False) -> None:
        signer = Signer(ACCOUNT, node) if reads_chain else EthAccountSigner(ACCOUNT)
        options = BatchSettlementEvmSchemeOptions(
            salt="0x" + "5a" * 32, voucher_signer=EthAccountSigner(VOUCHERS) if has_voucher_key else None
        )
        self.scheme = BatchSettlementEvmScheme(signer, options)
        self._http = x402HTTPClient(x402Client().register(NETWORK.caip2, self.scheme))
        self._node = node
        self.payments: list[str] = []

    async def ask(self, body: dict[str, Any]) -> Reply:
        """A request, paid once, and a second time where the node has told how the channel stands."""
        reply = await self._node.ask(body)
        if reply.status != 402:
            return reply
        required = self._http.get_payment_required_response(lambda name: reply.headers.get(name.lower()))
        paid, recovered = await self._paid(body, required)
        return (await self._paid(body, required))[0] if recovered else paid

    async def _paid(self, body: dict[str, Any], required: Any) -> tuple[Reply, bool]:
        payment = await self._http.create_payment_payload(required)
        [(name, value)] = self._http.encode_payment_signature_header(payment).items()
        assert name == "PAYMENT-SIGNATURE"
        self.payments.append(payment.payload["type"])
        reply = await self._node.ask(body, payment_signature=value)
        result = await self._http.process_payment_result(
            payment, lambda name: reply.headers.get(name.lower()), reply.status
        )
        return reply, result.recovered

    async def books(self) -> BatchSettlementClientContext:
        """What it believes of its channel."""
        requirements = PaymentRequirements.model_validate(await self._node.price_of(SHORT))
        channel = compute_channel_id(self.scheme.build_channel_config(requirements), NETWORK.caip2)
        found = self.scheme._storage.get(channel)
        assert found is not None
        return found


@pytest.mark.parametrize("has_voucher_key", [False, True])
async def test_a_customer_opens_a_channel_and_pays_request_by_request(
    node: Node, llama: FakeLlamaServer, has_voucher_key: bool
) -> None:
    engine = Engine(llama)
    customer = Customer(node, reads_chain=False, has_voucher_key=has_voucher_key)
    total = 0
    for tokens in (30, 100, 1):
        engine.tokens = tokens
        reply = await customer.ask(SHORT)
        assert reply.status == 200 and reply.json["choices"][0]["message"]["content"] == "word " * tokens, reply.body
        total += charge(PRICE, PROMPT_TOKENS, tokens)
        assert (await customer.books()).charged_cumulative_amount == str(total)
    assert customer.payments == ["deposit", "voucher", "voucher"]
    [opening] = node.shop.deposits
    assert opening.amount == 100_000 and (await customer.books()).balance == "100000"
    assert (opening.channel.payer != opening.channel.payer_authorizer) is has_voucher_key
    [channel] = await node.shop.book.channels()
    assert channel.charged_micros == total and channel.node == x402.payer_id(opening.channel.payer_authorizer)


async def test_a_customer_tops_its_channel_up(node: Node, llama: FakeLlamaServer) -> None:
    Engine(llama, tokens=100)
    node.shop.prices["demo"] = Price(0, 700_000_000)
    customer = Customer(node)
    for _ in range(3):
        reply = await customer.ask(SHORT)
        assert reply.status == 200, reply.body
    assert customer.payments == ["deposit"] * 3, "100,000 each, and 70,000 a request"
    [channel] = await node.shop.book.channels()
    assert (channel.charged_micros, channel.usable_micros) == (210_000, 300_000)


async def test_after_a_stream_a_customer_finds_its_place_again(node: Node, llama: FakeLlamaServer) -> None:
    """Its books lack what the stream came to, as that stands at its end: the corrective 402 brings them up to date."""
    Engine(llama, tokens=40)
    customer = Customer(node)
    reply = await customer.ask({**STREAM, "max_tokens": 60})
    assert reply.status == 200 and reply.body.count(b"word") == 40
    once = charge(PRICE, PROMPT_TOKENS, 40)
    books = await customer.books()
    assert books.balance == "100000" and books.charged_cumulative_amount == "0"
    assert (await customer.ask(SHORT)).status == 200
    assert (await customer.books()).charged_cumulative_amount == str(2 * once)
    assert customer.payments == ["deposit", "voucher", "voucher"]


async def test_a_customer_that_has_lost_its_books_finds_them(node: Node, llama: FakeLlamaServer) -> None:
    Engine(llama, tokens=20)
    assert (await Customer(node).ask(SHORT)).status == 200
    fresh = Customer(node)
    assert (await fresh.ask(SHORT)).status == 200
    assert fresh.payments == ["voucher", "voucher"], (
        "the chain says that there is a channel, and we what it was charged"
    )
    assert (await fresh.books()).charged_cumulative_amount == str(2 * charge(PRICE, PROMPT_TOKENS, 20))


async def test_a_customer_is_told_that_its_deposit_was_taken_when_its_request_was_not(
    node: Node, llama: FakeLlamaServer
) -> None:
    async def script(received: Any) -> None:
        words = b'{"error":{"code":400,"message":"no","type":"invalid_request_error"}}'
        await received.head(400, "application/json", len(words))
        await received.raw(words)

    llama.script = script
    customer = Customer(node, reads_chain=False)
    reply = await customer.ask(SHORT)
    assert reply.status == 400 and decoded(reply.headers["payment-response"])["extra"]["chargedAmount"] == "0"
    Engine(llama, tokens=5)
    assert (await customer.ask(SHORT)).status == 200
    assert customer.payments == ["deposit", "voucher"]


# --- with a chain -----------------------------------------------------------------------------------------------------


class ChainShop(Shop):
    """Its deposits are sent to a chain, which is asked about channels."""

    def __init__(self, side: Side) -> None:
        super().__init__(side.store, side.key, side.fund.address)
        self.book = side.book
        self.book.listeners.append(self.earning.take)
        self._settling = side.settling

    async def deposit(self, opening: PayOpen, node: bytes, /) -> bytes:
        return await self._settling.sponsor(opening, node)

    async def look(self, config: ChannelConfig, channel: bytes, node: bytes) -> None:
        await self._settling.look_for(config, channel, node)


@needs_anvil
async def test_what_a_customer_pays_over_http_is_claimed_on_the_chain(llama: FakeLlamaServer, tmp_path: Path) -> None:
    """It has USDC and no coin for gas. The contracts are where x402 has them."""
    Engine(llama, tokens=100)
    with Anvil() as anvil:
        stage = stage_on(anvil, tmp_path, canonical(anvil))
        provider = await stage.side("provider", sells=True, most_unclaimed_micros=1)
        stage.contracts.fund(ACCOUNT.address, usdc_micros=500_000)
        node = Node(llama, ChainShop(provider))
        await node.shop.earning.start()
        customer = Customer(node, reads_chain=False, has_voucher_key=True)
        for _ in range(3):
            reply = await customer.ask(SHORT)
            assert reply.status == 200, reply.body
        assert customer.payments == ["deposit", "voucher", "voucher"]
        assert stage.contracts.balance(ACCOUNT.address) == 400_000
        due = 3 * charge(PRICE, PROMPT_TOKENS, 100)
        [channel] = await provider.book.channels()
        assert (channel.usable_micros, channel.charged_micros) == (100_000, due)
        await provider.settling.claim_now()
        stage.settle()
        await provider.settling.turn()
        [channel] = await provider.book.channels()
        assert channel.claimed_micros == due
        assert stage.contracts.balance(shown(provider.fund.address)) == due
        assert (await customer.ask(SHORT)).status == 200, "and it goes on"
        await stage.close()
