"""The chain as the two sides of a channel use it: one hub on one network, one key that sends, and the book of channels.

Joins the parts of this room: reads (`standings`), transactions (`sending`), and what the journal is told. Nothing is
decided by it before the network was checked: the number of the chain, the code and the domains of hub and token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from meshnode.errors import TransactionFailed
from meshnode.settlement import networks
from meshnode.settlement.answers import Call, Reverted
from meshnode.settlement.contracts import Standing
from meshnode.settlement.fees import GasBounds
from meshnode.settlement.keys import VoucherKey
from meshnode.settlement.networks import Network
from meshnode.settlement.outcomes import Step
from meshnode.settlement.rpc import RpcPair
from meshnode.settlement.sending import Allow, Order, Sender
from meshnode.settlement.standings import HubReader, TagFor
from meshnode.settlement.store_channels import Channel, Role, State
from meshnode.settlement.transactions import Kind, TransactionStore
from meshnode.wire.payments import ChannelConfig

MOST_FAILURES = 5
MOST_MICROS = (1 << 53) - 1
"""As much as the journal holds: a token that anyone can make may be deposited in larger amounts."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the owner of this node allows. Amounts in micros of USDC or dollars.

    `eth_micros` is the price of one coin of the chain, which a setting says. A deposit into a channel of this node is
    refused below `least_deposit_micros`, and so is a channel whose payer could withdraw in less than
    `least_withdraw_delay_s`.
    """

    eth_micros: int = 3_000_000_000
    most_gas_micros: int = 100_000
    gas_month_micros: int = 1_000_000
    least_deposit_micros: int = 100_000
    most_deposit_micros: int = 2_000_000
    least_withdraw_delay_s: int = 3_600
    most_unclaimed_micros: int = 500_000

    @property
    def gas(self) -> GasBounds:
        """Those of one transaction."""
        return GasBounds(self.eth_micros, self.most_gas_micros)


class ChannelBook(Protocol):
    """The channels of this node in its journal. What a method was given is on the disk when it returns."""

    async def channels(self) -> Sequence[Channel]:
        """All of this chain and hub."""

    async def opening(self, config: ChannelConfig, channel_id: bytes, role: Role, node: bytes) -> None:
        """Keep a channel before anything is signed or sent for it; one that is there stays as it is, and is told of."""

    async def seen(
        self,
        channel_id: bytes,
        *,
        balance_micros: int,
        usable_micros: int,
        claimed_micros: int,
        state: State,
        withdrawable_at: float | None,
    ) -> None:
        """Keep what the chain says of it. `withdrawable_at` is by the chain's clock, in epoch seconds."""


class Chain:
    """One hub on one network, for one key. `bounds` is asked each time; `allow` as `Sender` says; `tag_for` says how
    settled a deposit must be, by its amount.
    """

    def __init__(
        self,
        network: Network,
        rpc: RpcPair,
        transactions: TransactionStore,
        book: ChannelBook,
        key: VoucherKey,
        *,
        bounds: Callable[[], Bounds],
        allow: Allow,
        tag_for: TagFor,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.network = network
        self.rpc = rpc
        self.transactions = transactions
        self.book = book
        self.key = key
        self.bounds = bounds
        self.hub = HubReader(rpc, network.hub, tag_for=tag_for)
        self.sender = Sender(
            rpc,
            transactions,
            key,
            network.chain,
            bounds=lambda: bounds().gas,
            allow=allow,
            fee_oracle=network.l1_fee_oracle,
            clock=clock,
            monotonic=monotonic,
        )
        self._is_checked = False

    async def check(self) -> None:
        """Make sure, once, that this is the network that was meant. Raises WrongNetwork, ChainUnreachable,
        ChainDisagrees.
        """
        if not self._is_checked:
            await networks.checked(self.network, self.rpc)
            self._is_checked = True

    async def refresh(self, channels: Sequence[Channel]) -> dict[bytes, Standing]:
        """What the chain says of these channels, told to the book. Raises ChainUnreachable, ChainDisagrees."""
        await self.check()
        found = await self.hub.now([channel.id for channel in channels])
        for channel in channels:
            standing = found[channel.id]
            await self.book.seen(
                channel.id,
                balance_micros=min(standing.balance_micros, MOST_MICROS),
                usable_micros=min(await self.hub.usable_micros(channel.id, standing), MOST_MICROS),
                claimed_micros=min(standing.claimed_micros, MOST_MICROS),
                state=state_of(channel, standing),
                withdrawable_at=withdrawable_at(channel, standing),
            )
        return found

    async def tell_again(self, channel: Channel) -> None:
        """Have the book tell of a channel as it stands there: somebody was told that it ends, and it does not."""
        await self.book.opening(channel.config, channel.id, channel.role, channel.node)

    async def channel(self, channel_id: bytes) -> Channel | None:
        """A channel of the book."""
        return next((channel for channel in await self.book.channels() if channel.id == channel_id), None)

    async def purpose(self, stem: str) -> str:
        """A purpose that is open or new: what was tried under the stem and has come to an end is done again only under
        another number, and only by who has looked at the chain and still wants it. Raises TransactionFailed after too
        many failures: whoever makes simulations succeed and transactions fail is after the fees.
        """
        number = failures = 0
        while True:
            name = f"{stem}#{number}"
            found = await self.transactions.find(name)
            if found is not None and found.is_open:
                return name
            if failures >= MOST_FAILURES:
                raise TransactionFailed(f"{failures} times already, although simulations succeed: it is given up")
            if found is None:
                return name
            failures += found.state == "failed"
            number += 1

    async def under_way(self, *kinds: Kind) -> set[bytes]:
        """Channels that a transaction of one of these kinds is about which has not come to its end."""
        open_ones = await self.transactions.open_ones(self.network.chain, self.key.address)
        return {channel for made in open_ones if made.kind in kinds for channel in made.channels}

    async def would_succeed(self, order: Order) -> bool:
        """Whether the contract would take it now. Raises ChainUnreachable, ChainDisagrees."""
        try:
            await self.rpc.simulate(Call(self.key.address, order.target, order.data))
        except Reverted:
            return False
        return True

    async def do(self, order: Order, *, is_dry: bool = False) -> Step:
        """Make a transaction, or say what it would be. Raises as `Sender.plan` and `Sender.send` do."""
        await self.check()
        found = await self.transactions.find(order.purpose)
        if found is not None:
            return Step.made(found)
        plan = await self.sender.plan(order)
        return Step.planned(plan) if is_dry else Step.made(await self.sender.send(plan))


def state_of(channel: Channel, standing: Standing) -> State:
    """The state of a channel, from what the chain says of it."""
    if standing.withdraw_since:
        return "withdrawing"
    if standing.left_micros:
        return "open"
    return "opening" if channel.state == "opening" and not standing.balance_micros else "closed"


def withdrawable_at(channel: Channel, standing: Standing) -> float | None:
    """When an announced withdrawal can be done, by the chain's clock."""
    return float(standing.withdraw_since + channel.config.withdraw_delay_s) if standing.withdraw_since else None
