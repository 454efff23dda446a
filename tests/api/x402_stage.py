"""A node that sells over plain HTTP, and payers: the real door, bounds, till, journal and signatures.

Made up are the engine (fake_llama.py) and the chain: a deposit that was signed as it must be is in its channel as soon
as it is looked for. Chain, contract and token are those of Base Sepolia, so that clients of x402 sign the same bytes.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from meshnode.api import x402
from meshnode.api.access import Access
from meshnode.api.app import api_app
from meshnode.api.charging import Sale
from meshnode.api.gate import Gates
from meshnode.api.guest_requests import GuestRequests
from meshnode.api.record import Record
from meshnode.api.served import Served
from meshnode.api.x402_door import X402Door
from meshnode.api.x402_sale import CappedTill
from meshnode.core.guests import GuestLimits, Guests
from meshnode.core.prices import FREE, Price
from meshnode.earning import Earning
from meshnode.earning_terms import Conditions
from meshnode.errors import PaymentRefused
from meshnode.settlement.contracts import Authorization, typed
from meshnode.settlement.keys import Verifier, VoucherKey, recover
from meshnode.settlement.networks import NETWORKS
from meshnode.settlement.preflight import authorization_digest
from meshnode.settlement.store import Store
from meshnode.settlement.store_book import Book
from meshnode.settlement.typed_data import channel_id, voucher_digest
from meshnode.wire.payments import ChannelConfig, PayAsk, PayOpen, PayStand, PayState, PayVoucher
from meshnode.wire.registry import PayCode
from tests.api import running
from tests.api.fake_llama import FakeLlamaServer
from tests.api.raw_http import Reply
from tests.api.test_guest_requests import Trail
from tests.net.nodes import IDENTITIES

NETWORK = NETWORKS["base-sepolia"]
KEY = "the key of the owner"
PRICE = Price(200_000, 600_000)
"""20 and 60 cents a million tokens."""
CHAT = running.CHAT
WEIGHTS = "ab" * 16
PROVIDER = VoucherKey.from_secret(sha256(b"the key of a provider").digest())
RECEIVER = b"where earnings go..."
DAY_S = 86_400
SHORT = {**running.HELLO, "max_tokens": 100}
LONGEST = 200
"""Tokens of an answer for a stranger."""


def decoded(header: str) -> dict[str, Any]:
    """What a header of x402 says."""
    return dict(json.loads(base64.b64decode(header)))


class Shop:
    """Money, as a node composes it: the till of strangers, and the cashier of the door."""

    def __init__(self, store: Store, key: VoucherKey = PROVIDER, receiver: bytes = RECEIVER) -> None:
        self.store = store
        self.book = Book(self.store, chain=NETWORK.chain, hub=NETWORK.hub)
        self.conditions = Conditions(receiver, key.address, least_withdraw_delay_s=DAY_S)
        self.prices: dict[str, Price] = {}
        self.on_chain: dict[bytes, int] = {}
        self.sent: dict[bytes, int] = {}
        self.deposits: list[PayOpen] = []
        self.looks = 0
        self.sells = True
        self.is_slow = False
        self.now = 1000.0
        self.earning = Earning(
            self.store,
            node=IDENTITIES[1].node_id,
            sign=IDENTITIES[1].sign,
            price=self.price,
            content_hash=lambda model: bytes.fromhex(WEIGHTS),
            conditions=self.conditions,
            network=NETWORK,
            look=self.look,
            monotonic=self._monotonic,
        )
        self.book.listeners.append(self.earning.take)

    async def open(self, node: bytes, ask: PayAsk, /, *, model: str, content_hash: bytes) -> Sale:
        return await self.earning.open(node, ask, model=model, content_hash=content_hash)

    def _monotonic(self) -> float:
        self.now += 10
        return self.now

    async def start(self) -> None:
        """Open the journal."""
        await self.store.start()
        await self.earning.start()

    def terms(self) -> x402.Terms | None:
        if not self.sells:
            return None
        network, conditions = NETWORK, self.conditions
        return x402.Terms(
            chain=network.chain,
            token=network.token,
            token_name=network.token_name,
            token_version=network.token_version,
            receiver=conditions.receiver,
            receiver_authorizer=conditions.authorizer,
            withdraw_delay_s=conditions.least_withdraw_delay_s,
            least_deposit_micros=conditions.least_deposit_micros,
        )

    def price(self, model: str, /) -> Price:
        return self.prices.get(model, PRICE)

    def channel(self, config: ChannelConfig, /) -> bytes:
        return channel_id(typed(config), NETWORK.chain, NETWORK.hub)

    def is_signed(self, config: ChannelConfig, voucher: PayVoucher, /) -> bool:
        digest = voucher_digest(voucher.channel, voucher.cumulative, NETWORK.chain, NETWORK.hub)
        return Verifier(config.payer_authorizer).verify(digest, voucher.signature)

    async def stand(self, question: PayState, node: bytes, /) -> PayStand:
        return await self.earning.stand(question, node)

    async def deposit(self, opening: PayOpen, node: bytes, /) -> bytes:
        """Take a deposit whose authorization is the payer's, for this channel."""
        config = typed(opening.channel)
        given = Authorization(
            opening.amount, opening.valid_after, opening.valid_before, opening.salt, opening.signature
        )
        if recover(authorization_digest(NETWORK, config, given), opening.signature) != config.payer:
            raise PaymentRefused("not signed by its payer", pay_code=PayCode.BAD_SIGNATURE)
        channel = self.channel(opening.channel)
        transaction = sha256(channel + opening.salt).digest()
        if transaction not in self.sent:
            self.sent[transaction] = opening.amount
            self.deposits.append(opening)
            self.on_chain[channel] = self.on_chain.get(channel, 0) + opening.amount
            await self.book.opening(opening.channel, channel, "receiver", node)
        return transaction

    async def look(self, config: ChannelConfig, channel: bytes, node: bytes) -> None:
        """What the made-up chain says comes into the book."""
        self.looks += 1
        balance = self.on_chain.get(channel, 0)
        if not balance or self.is_slow:
            return
        await self.book.opening(config, channel, "receiver", node)
        facts = {"balance_micros": balance, "usable_micros": balance, "claimed_micros": 0}
        await self.book.seen(channel, **facts, state="open", withdrawable_at=None)


@dataclass
class Payer:
    """Somebody with a channel to the provider, who keeps count of it."""

    name: bytes = b"a payer"
    changes: dict[str, Any] = field(default_factory=dict)
    charged: int = 0

    @property
    def key(self) -> VoucherKey:
        return VoucherKey.from_secret(sha256(self.name).digest())

    @property
    def config(self) -> ChannelConfig:
        whose = self.key.address
        config = ChannelConfig(whose, whose, RECEIVER, PROVIDER.address, NETWORK.token, DAY_S, bytes(32))
        return replace(config, **self.changes)

    @property
    def channel(self) -> bytes:
        return channel_id(typed(self.config), NETWORK.chain, NETWORK.hub)

    @property
    def id(self) -> bytes:
        return x402.payer_id(self.config.payer_authorizer)

    def voucher(self, cumulative: int) -> dict[str, Any]:
        digest = voucher_digest(self.channel, cumulative, NETWORK.chain, NETWORK.hub)
        signature = self.key.sign(digest).hex()
        return {
            "channelId": f"0x{self.channel.hex()}",
            "maxClaimableAmount": str(cumulative),
            "signature": f"0x{signature}",
        }

    def deposit(self, amount: int, salt: int = 1) -> dict[str, Any]:
        given = Authorization(amount, 0, 2**40, salt.to_bytes(32, "big"), b"")
        signature = self.key.sign(authorization_digest(NETWORK, typed(self.config), given)).hex()
        authorization = {
            "validAfter": "0",
            "validBefore": str(2**40),
            "salt": f"0x{given.salt.hex()}",
            "signature": f"0x{signature}",
        }
        return {"amount": str(amount), "authorization": {"erc3009Authorization": authorization}}

    def payment(
        self, accepted: dict[str, Any], *, cumulative: int | None = None, deposit: int = 0, salt: int = 1
    ) -> dict[str, Any]:
        """What goes into PAYMENT-SIGNATURE for one of the `accepts`."""
        config = self.config
        payload: dict[str, Any] = {
            "type": "deposit" if deposit else "voucher",
            "channelConfig": {
                "payer": f"0x{config.payer.hex()}",
                "payerAuthorizer": f"0x{config.payer_authorizer.hex()}",
                "receiver": f"0x{config.receiver.hex()}",
                "receiverAuthorizer": f"0x{config.receiver_authorizer.hex()}",
                "token": f"0x{config.token.hex()}",
                "withdrawDelay": config.withdraw_delay_s,
                "salt": f"0x{config.salt.hex()}",
            },
            "voucher": self.voucher(self.charged + int(accepted["amount"]) if cumulative is None else cumulative),
        }
        if deposit:
            payload["deposit"] = self.deposit(deposit, salt)
        return {"x402Version": 2, "accepted": accepted, "payload": payload}


class _Caller:
    """The far end of one request, which stays until it is answered."""

    def __init__(self, body: bytes) -> None:
        self.reply = Reply(0, {})
        self._body: bytes | None = body

    async def receive(self) -> dict[str, Any]:
        if self._body is None:
            await asyncio.Event().wait()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.reply.status = message["status"]
            self.reply.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.reply.body += message["body"]


class Node:
    """The API port of a node that sells `demo`."""

    def __init__(self, llama: FakeLlamaServer, shop: Shop, **limits: int) -> None:
        self.shop = shop
        self.trail = Trail()
        self.records: list[Record] = []
        self.models = [
            Served("demo", "ready", slots=4, context_length=4096).here(llama.connect, "inner", content_hash=WEIGHTS)
        ]
        self.passed: list[str] = []
        self.now = 1000.0
        self.requests = GuestRequests(
            models=lambda: self.models,
            gates=Gates(capacity=8, timeout_s=30),
            guests=Guests(GuestLimits(**{"answer_tokens": LONGEST, "requests": 500, **limits})),
            slots=4,
            trail=self.trail,
            finished=self.records.append,
            stopping=lambda: False,
            address_of=lambda node: self.door.address_of(node),
            till=CappedTill(self.shop, lambda node: self.door.offer_of(node)),
        )
        access = Access(api_key=KEY, public=True)
        self.door = X402Door(
            api_app(self._behind, access),
            access,
            cashier=self.shop,
            strangers=self.requests.answer,
            models=lambda: self.models,
            longest_answer=LONGEST,
            clock=lambda: self.now,
        )
        self.client = "203.0.113.7"

    async def _behind(self, scope: Any, receive: Any, send: Any) -> None:
        """What callers with the key reach."""
        self.passed.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}", "more_body": False})

    async def ask(self, body: Any = running.HELLO, path: str = CHAT, **headers: str) -> Reply:
        """One request from `client`, with or without a body. Underscores in names of headers become dashes."""
        raw = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"host": "localhost", "content-length": str(len(raw)), **headers}
        caller = _Caller(raw)
        scope = {
            "type": "http",
            "method": "GET" if body is None else "POST",
            "path": path,
            "scheme": "http",
            "client": (self.client, 4711),
            "headers": [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in given.items()],
        }
        async with asyncio.timeout(10):
            await self.door(scope, caller.receive, caller.send)
        return caller.reply

    async def price_of(self, body: Any, path: str = CHAT) -> dict[str, Any]:
        """The requirements of a request, as the node says them without a payment."""
        reply = await self.ask(body, path)
        assert reply.status == 402, reply
        return dict(decoded(reply.headers["payment-required"])["accepts"][0])

    async def pay(self, payer: Payer, body: Any, path: str = CHAT, **how: Any) -> Reply:
        """The same with a payment for what it costs. A plain answer is counted by the payer."""
        accepted = await self.price_of(body, path)
        reply = await self.ask(body, path, payment_signature=x402.header(payer.payment(accepted, **how)))
        if "payment-response" in reply.headers:
            payer.charged += int(decoded(reply.headers["payment-response"])["extra"].get("chargedAmount", "0"))
        return reply

    async def fund(self, payer: Payer, micros: int = 1_000_000) -> None:
        """A deposit that the payer has made by itself."""
        self.shop.on_chain[payer.channel] = micros

    def free(self) -> None:
        """Its model costs nothing from now on."""
        self.shop.prices["demo"] = FREE


@asynccontextmanager
async def selling(llama: FakeLlamaServer, folder: Path, **limits: int) -> AsyncIterator[Node]:
    """A node that is there."""
    node = Node(llama, Shop(Store(folder)), **limits)
    await node.shop.start()
    yield node
    await node.shop.store.close()


async def refused(node: Node, body: Any, payment: dict[str, Any], **headers: str) -> tuple[int, str]:
    """The status of a paid request, and what x402 clients are told is wrong."""
    before = len(node.records)
    reply = await node.ask(body, payment_signature=x402.header(payment), **headers)
    assert len(node.records) == before, "no stranger's request came of it"
    wanted = reply.headers.get("payment-required")
    return reply.status, decoded(wanted)["error"] if wanted else reply.error["message"]
