"""Money of nodes on a local chain with the contracts, joined by a wire that a test can cut. Keys, journals are real."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from meshnode import durable
from meshnode.config import Places
from meshnode.core.pay_policy import Policy
from meshnode.core.prices import Price
from meshnode.errors import PaymentRefused
from meshnode.identity import load_or_create
from meshnode.mesh.payments_stream import Answer, Question
from meshnode.money import Money, MoneyParts, open_money
from meshnode.policies import StoredPolicy
from meshnode.settlement.keys import VoucherKey
from meshnode.wallets import Wallets
from meshnode.wire.registry import PayCode
from meshnode.wire.statements import Capability, ModelState, Offer
from tests.lab.evm import Anvil, Deployment
from tests.stage import QUIET
from tools.play_chain import make_cheap, network_of

USDC = 1_000_000
ETHER = 10**18
PASSWORD = b"correct horse"
PRICE = Price(200_000, 600_000)
ALLOWED = Policy(mode="auto", ceiling=PRICE, month_micros=2 * USDC, deposit_micros=USDC // 2)
DEMO = Offer(
    name="demo", content_hash=b"d" * 16, state=ModelState.READY, context=4096, slots=4, capabilities=Capability.CHAT
)


class Wire:
    """A fake of the mesh's `pay` streams: what one node asks, the other's desk answers, unless it is cut."""

    def __init__(self) -> None:
        self.nodes: dict[bytes, Node] = {}
        self.asked: list[Question] = []
        self.cut = False

    def between(self, asking: bytes) -> Any:
        """What stands for `payments_stream.ask` at one node."""

        async def ask(_: object, node: bytes, question: Question, **__: object) -> Answer:
            self.asked.append(question)
            if self.cut or node not in self.nodes:
                raise PaymentRefused("nobody answers", pay_code=PayCode.CHAIN_DOWN)
            return await self.nodes[node].money.bank.answer(asking, question)

        return ask


class Members:
    """A fake of the public mesh: enough to be asked for streams, which the wire does not need."""

    open_stream = None


@dataclasses.dataclass
class Node:
    """One node's money."""

    home: Path
    money: Money
    wallets: Wallets
    node: bytes
    told: list[tuple[str, str]]
    records: list[tuple[str, dict[str, Any]]]

    def allow(self, **changes: Any) -> None:
        """What a person says in a terminal."""
        self.wallets.policy_file.save(StoredPolicy("play", dataclasses.replace(ALLOWED, **changes)))


class Bank:
    """A chain, and nodes on it."""

    def __init__(self, chain: Anvil, contracts: Deployment, folder: Path) -> None:
        self.chain = chain
        self.contracts = contracts
        self.folder = folder
        self.wire = Wire()
        self.network_file = folder / "network.json"
        self.network_file.write_text(json.dumps(network_of(contracts)), "utf-8")

    def made(self, name: str, *, wallet: bool = True, ether: bool = True, usd: int = 5, **settings: Any) -> Node:
        """A node that is not started. Its password file unlocks its funds."""
        home = self.folder / name
        password = self.folder / "password"
        durable.write(password, PASSWORD)
        wallets = Wallets(home, environment={}, password_file=password)
        if wallet:
            found = wallets.make(PASSWORD, "pbkdf2")
            self.contracts.fund(found["address"], usdc_micros=usd * USDC)
        key: VoucherKey = wallets.ensure_voucher_key()
        if ether:
            self.contracts.fund("0x" + key.address.hex(), eth_wei=ETHER)
        make_cheap(self.contracts)
        identity = load_or_create(home / "node.key")
        told: list[tuple[str, str]] = []
        records: list[tuple[str, dict[str, Any]]] = []

        async def recorded() -> bool:
            return True

        chosen = {"network": "play", "network_file": self.network_file, "rpc": (self.chain.url,)} | settings
        money = open_money(
            MoneyParts(
                settings=dataclasses.replace(QUIET, wallet_password_file=password, **chosen),
                places=Places(home, home / "cache", home / "config.toml"),
                identity=identity,
                tell=lambda label, text: told.append((label, text)),
                mesh=lambda: Members(),  # type: ignore[arg-type,return-value]
                offers=lambda: (DEMO,),
                record=lambda kind, **facts: records.append((kind, facts)),
                recorded=recorded,
            )
        )
        assert money is not None
        node = Node(home, money, wallets, bytes(identity.node_id), told, records)
        self.wire.nodes[node.node] = node
        return node

    @asynccontextmanager
    async def running(self, name: str, **options: Any) -> AsyncIterator[Node]:
        """The same, started, and stopped at the end."""
        node = self.made(name, **options)
        await node.money.start()
        try:
            yield node
        finally:
            await node.money.stop()

    @asynccontextmanager
    async def seller(self, **options: Any) -> AsyncIterator[Node]:
        """A provider of the demo."""
        prices = {"publish": True, "price_in": PRICE.tokens_in, "price_out": PRICE.tokens_out}
        async with self.running("seller", wallet=False, **(prices | options)) as node:
            yield node
