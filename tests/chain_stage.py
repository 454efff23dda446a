"""A payer and a provider on a local chain, each with a journal of its own, for tests of what they do on it.

Nobody talks to nobody here: a test hands messages from one to the other. Turns are done by hand (`turn`), clocks are
the test's, and no endpoint is waited for between two attempts.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meshnode.settlement.addresses import parse, shown
from meshnode.settlement.chain import Bounds
from meshnode.settlement.contracts import typed
from meshnode.settlement.keys import VoucherKey
from meshnode.settlement.networks import Network
from meshnode.settlement.rpc import RpcPair
from meshnode.settlement.store import Store
from meshnode.settlement.store_book import Book
from meshnode.settlement.store_channels import channel_of, charged, signed
from meshnode.settlement.store_transactions import SCHEMA, SqliteTransactions
from meshnode.settlement.typed_data import channel_id, voucher_digest
from meshnode.settling import Settling
from meshnode.wire.payments import ChannelConfig
from tests.lab.evm import Anvil, Deployment, deployed

ETH = 10**18
USDC = 1_000_000
DAY_S = 86_400
CHEAP_ETH_MICROS = 1_000_000
"""anvil's fees are a thousand times those of an OP chain, so its coin is worth a dollar here."""
FINAL_BLOCKS = 40
"""Enough for a block of anvil's to be safe."""


@dataclass
class Clock:
    """A clock that stands still until a test moves it."""

    now: float = 1_795_300_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Side:
    """One node's dealings with the chain."""

    settling: Settling
    store: Store
    book: Book
    transactions: SqliteTransactions
    key: VoucherKey
    fund: VoucherKey
    node: bytes
    clock: Clock
    monotonic: Clock
    bounds: dict[str, Any]
    stopped: list[bytes] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    is_busy: bool = False

    async def close(self) -> None:
        await self.settling.close()
        await self.store.close()


@dataclass
class Stage:
    """A chain with the contracts on it, and who deals with it."""

    anvil: Anvil
    contracts: Deployment
    network: Network
    folder: Path
    before: int
    sides: list[Side] = field(default_factory=list)

    @property
    def in_hub(self) -> int:
        """What the hub has received since this stage was made, in micro-USDC."""
        return self.contracts.balance(self.contracts.hub) - self.before

    async def side(
        self,
        name: str,
        *,
        urls: tuple[str, ...] = (),
        eth_wei: int = ETH,
        usdc_micros: int = 0,
        sells: bool = False,
        knows_busy: bool = True,
        key: VoucherKey | None = None,
        fund: VoucherKey | None = None,
        **bounds: Any,
    ) -> Side:
        """A node whose journal is in the folder `name`: the same name again is the same journal after a restart."""
        key, fund = key or VoucherKey.generate(), fund or VoucherKey.generate()
        if eth_wei:
            self.contracts.fund(shown(key.address), eth_wei=eth_wei)
        if usdc_micros:
            self.contracts.fund(shown(fund.address), usdc_micros=usdc_micros)
        store = Store(self.folder / name, more_tables=(SCHEMA,))
        await store.start()
        assert store.trouble is None, store.trouble
        clock, monotonic = Clock(), Clock(0.0)
        book = Book(store, chain=self.network.chain, hub=self.network.hub, clock=clock)
        transactions = SqliteTransactions(store.run)
        settings = {"eth_micros": CHEAP_ETH_MICROS, **bounds}
        stopped: list[bytes] = []
        records: list[dict[str, Any]] = []
        made: list[Side] = []
        settling = Settling(
            self.network,
            lambda: RpcPair.of(urls or (self.anvil.url,), testnet=True, pause_s=0),
            transactions,
            book,
            key,
            bounds=lambda: Bounds(**settings),
            receiver=fund.address if sells else None,
            record=lambda kind, **facts: records.append({"kind": kind, **facts}),
            stop_serving=stopped.append,
            is_busy=(lambda _: made[0].is_busy) if knows_busy else None,
            clock=clock,
            monotonic=monotonic,
        )
        side = Side(
            *(settling, store, book, transactions, key, fund, secrets.token_bytes(32), clock, monotonic, settings),
            stopped=stopped,
            records=records,
        )
        made.append(side)
        self.sides.append(side)
        return side

    def config(self, payer: Side, provider: Side, **changes: Any) -> ChannelConfig:
        """A channel between two, with a new salt."""
        values: dict[str, Any] = {
            "payer": payer.fund.address,
            "payer_authorizer": payer.key.address,
            "receiver": provider.fund.address,
            "receiver_authorizer": provider.key.address,
            "token": self.network.token,
            "withdraw_delay_s": DAY_S,
            "salt": secrets.token_bytes(32),
        }
        return ChannelConfig(**values | changes)

    def id_of(self, config: ChannelConfig) -> bytes:
        return channel_id(typed(config), self.network.chain, self.network.hub)

    def settle(self) -> None:
        """Make all that is in a block safe."""
        self.anvil.mine(FINAL_BLOCKS)

    async def opened(self, payer: Side, provider: Side, amount_micros: int, **changes: Any) -> bytes:
        """A funded channel that both sides have in their books."""
        config = self.config(payer, provider, **changes)
        await payer.settling.deposit(config, amount_micros, payer.fund, provider.node)
        await provider.book.opening(config, self.id_of(config), "receiver", payer.node)
        self.settle()
        await payer.settling.turn()
        await provider.settling.turn()
        return self.id_of(config)

    async def earned(self, payer: Side, provider: Side, channel: bytes, vouched: int, used: int | None = None) -> None:
        """The provider holds a voucher for that much, and has charged for `used` of it."""
        digest = voucher_digest(channel, vouched, self.network.chain, self.network.hub)
        signature = payer.key.sign(digest)

        def work(db: Any) -> None:
            signed(db, channel, vouched, signature)
            charged(db, channel, vouched if used is None else used)

        await provider.store.run(work)

    async def close(self) -> None:
        for side in self.sides:
            await side.close()


async def on_chain(stage: Stage, side: Side, channel: bytes) -> Any:
    """What the journal of a side says of a channel."""
    return await side.store.run(lambda db: channel_of(db, channel))


def stage_on(anvil: Anvil, folder: Path, contracts: Deployment | None = None) -> Stage:
    """Contracts at fresh addresses of a running chain, or those that are there."""
    contracts = contracts or deployed(anvil.web3)
    network = Network(
        "local",
        "a local chain",
        contracts.chain_id,
        True,
        parse(contracts.token),
        "USDC",
        "2",
        parse(contracts.hub),
        parse(contracts.collector),
    )
    return Stage(anvil, contracts, network, folder, contracts.balance(contracts.hub))
