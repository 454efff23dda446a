"""This node's dealings with the chain, from start to end: watches its channels, brings transactions to their end.

    turn    every POLL_S: transactions follow the chain (settlement/sending.py), channels are looked at (attending.py)
    wishes  of people and peers: deposit, withdraw, close, panic, claim, sponsor, refund; each has a dry run

The two sides are settlement/depositing.py (what a payer does) and collecting.py (what a provider does). The chain may
be away, lie or be too dear: nothing of that stops a node. `why_not` then says what is wrong, in words, and the next
turn tries again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from meshnode.attending import Attendant
from meshnode.collecting import Collector
from meshnode.core.claiming import block_tag_for
from meshnode.core.gas import GasLedger
from meshnode.core.pay_policy import Refused
from meshnode.errors import GasCapReached, MeshnodeError, NoChannel
from meshnode.settlement import keys
from meshnode.settlement.addresses import shown
from meshnode.settlement.chain import Bounds, Chain, ChannelBook
from meshnode.settlement.contracts import Authorization, Standing, typed
from meshnode.settlement.depositing import AskOpen, AskRefund, Depositor
from meshnode.settlement.fees import dollars
from meshnode.settlement.keys import VoucherKey
from meshnode.settlement.networks import Network
from meshnode.settlement.outcomes import Outcome, Step
from meshnode.settlement.rpc import RpcPair
from meshnode.settlement.store_channels import Channel
from meshnode.settlement.store_spent import day_of, month_of
from meshnode.settlement.transactions import Kind, Transaction, TransactionStore
from meshnode.settlement.typed_data import channel_id
from meshnode.telemetry import LOG
from meshnode.wire.payments import ChannelConfig, PayOpen, PayRefund

POLL_S = 15.0
SOON_S = 3.0
"""While a transaction waits for its block: an OP chain makes one every two seconds."""
CLOSE_S = 10.0
RETRY_S = 5.0
MOST_SHOWN = 50
UNCAPPED: frozenset[Kind] = frozenset({"claim", "settle", "initiate-withdraw", "finalize-withdraw", "fill"})
"""What brings money back or frees what does: counted, never held up by the cap for fees."""


@dataclass(frozen=True, slots=True)
class _Parts:
    """What there is once endpoints are open."""

    chain: Chain
    depositor: Depositor
    collector: Collector
    attendant: Attendant


class Settling:
    """The chain for one wallet. `receiver` is paid by channels to this node, and None where it sells nothing.

    `open_rpc` opens the endpoints: it is called late, since that takes a second of a thread, and again until it
    succeeds. `record` writes to the audit log.
    """

    def __init__(
        self,
        network: Network,
        open_rpc: Callable[[], Awaitable[RpcPair]],
        transactions: TransactionStore,
        book: ChannelBook,
        key: VoucherKey,
        *,
        bounds: Callable[[], Bounds],
        receiver: bytes | None = None,
        record: Callable[..., None] = lambda _, **__: None,
        stop_serving: Callable[[bytes], None] = lambda _: None,
        is_busy: Callable[[bytes], bool] | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._network = network
        self._open_rpc = open_rpc
        self._transactions = transactions
        self._book = book
        self._key = key
        self._bounds = bounds
        self._receiver = receiver
        self._record = record
        self._stop_serving = stop_serving
        self._is_busy = is_busy
        self._clock = clock
        self._monotonic = monotonic
        self._opening = asyncio.Lock()
        self._turning = asyncio.Lock()
        self._woken = asyncio.Event()
        self._rpc: RpcPair | None = None
        self._made: _Parts | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_waiting = False
        self.why_not = "the chain has not been asked yet"

    # --- life ---

    def start(self) -> None:
        """Begin to watch, in a task. What the chain does wrong is in `why_not`."""
        self._task = asyncio.create_task(self._run(), name="settling")

    async def close(self) -> None:
        """Claim what is worth it, for CLOSE_S at most, and stop."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._made is not None and self._receiver is not None and not self.why_not:
            with contextlib.suppress(MeshnodeError, TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await self.claim_now()
        if self._rpc is not None:
            await self._rpc.close()

    def wake(self) -> None:
        """Do the next turn now."""
        self._woken.set()

    async def _run(self) -> None:
        while True:
            self._woken.clear()
            try:
                await self.turn()
                pause_s = SOON_S if self._is_waiting else POLL_S
            except MeshnodeError:
                pause_s = RETRY_S
            except Exception as error:  # a fault of this program must not end the watch over money in silence
                LOG.exception("a turn of the settlement failed")
                self.why_not = f"a fault of this program: {type(error).__name__}"
                pause_s = RETRY_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._woken.wait()

    async def _parts(self) -> _Parts:
        """The chain, checked. Raises WrongNetwork, ChainUnreachable, ChainDisagrees, SettingsError."""
        async with self._opening:
            if self._made is None:
                await asyncio.to_thread(keys.prepare)
                self._rpc = await self._open_rpc()
                self._made = self._made_of(self._rpc)
        await self._made.chain.check()
        return self._made

    def _made_of(self, rpc: RpcPair) -> _Parts:
        chain = Chain(
            *(self._network, rpc, self._transactions, self._book, self._key),
            bounds=self._bounds,
            allow=self._allow,
            tag_for=block_tag_for,
            clock=self._clock,
            monotonic=self._monotonic,
        )
        depositor = Depositor(chain)
        collector = Collector(
            chain,
            self._receiver or bytes(20),
            stop_serving=self._stop_serving,
            is_busy=self._is_busy,
            clock=self._clock,
            monotonic=self._monotonic,
        )
        attendant = Attendant(
            *(chain, depositor, collector),
            claims=self._receiver is not None,
            alarm=self._alarm,
            monotonic=self._monotonic,
        )
        return _Parts(chain, depositor, collector, attendant)

    def _alarm(self, channel_id: bytes) -> None:
        self._record("withdrawing", channel=channel_id.hex())
        self._stop_serving(channel_id)

    async def _allow(self, purpose: str, kind: Kind, most_micros: int) -> None:
        """Hold a fee against the cap of the month. Raises GasCapReached."""
        month = month_of(day_of(self._clock()))
        paid, promised = await self._transactions.gas(self._network.chain, month)
        ledger = GasLedger(self._bounds().gas_month_micros, {month: paid}, promised)
        try:
            ledger.reserve(purpose, most_micros, month, forced=kind in UNCAPPED)
        except Refused as refused:
            raise GasCapReached(str(refused)) from None

    # --- turns ---

    async def turn(self) -> None:
        """One look at everything. Raises the first thing that went wrong, after all else was done; it is in `why_not`
        as well.
        """
        async with self._turning:
            try:
                await self._turn()
            except MeshnodeError as error:
                self.why_not = error.message
                raise
            self.why_not = ""

    async def _turn(self) -> None:
        parts = await self._parts()
        wrong: list[MeshnodeError] = []
        moved: set[bytes] = set()
        try:
            for changed in await parts.chain.sender.follow():
                moved |= set(changed.channels)
                if not changed.is_open:
                    self._say(Step.made(changed))
        except MeshnodeError as error:
            wrong.append(error)
        try:
            self._said(await parts.attendant.look(moved))
        except MeshnodeError as error:
            wrong.append(error)
        open_ones = await self._transactions.open_ones(self._network.chain, self._key.address)
        self._is_waiting = any(one.state != "mined" for one in open_ones)
        if wrong:
            raise wrong[0]

    def _said(self, outcome: Outcome) -> None:
        for step in outcome.steps if not outcome.is_dry else ():
            self._say(step)

    def _say(self, step: Step) -> None:
        self._record(
            "transaction",
            purpose=step.kind,
            transaction=step.digest.hex(),
            channel=step.channel.hex(),
            cost_micros=step.fee_micros,
            outcome=step.state,
        )

    # --- what people and peers ask for ---

    async def deposit(
        self,
        config: ChannelConfig,
        amount_micros: int,
        fund: VoucherKey,
        node: bytes,
        *,
        ask_open: AskOpen | None = None,
        is_dry: bool = False,
    ) -> Outcome:
        """Put an amount into the channel to `node`. See Depositor.deposit; whether it may be is asked of the ledger."""
        depositor = (await self._parts()).depositor
        return self._done(await depositor.deposit(config, amount_micros, fund, node, ask_open=ask_open, is_dry=is_dry))

    async def withdraw(self, channel_id: bytes, *, is_dry: bool = False) -> Outcome:
        """Take back what is left of a channel after its delay. See Depositor.withdraw."""
        return self._done(await (await self._parts()).depositor.withdraw(channel_id, is_dry=is_dry))

    async def close_channel(self, channel_id: bytes, ask_refund: AskRefund, *, is_dry: bool = False) -> Outcome:
        """Ask the provider for what is left of a channel. See Depositor.close."""
        return self._done(await (await self._parts()).depositor.close(channel_id, ask_refund, is_dry=is_dry))

    async def panic(self, *, is_dry: bool = False) -> Outcome:
        """Announce the withdrawal of every channel that this node pays through."""
        return self._done(await (await self._parts()).depositor.panic(is_dry=is_dry))

    async def claim_now(self, *, is_dry: bool = False) -> Outcome:
        """Claim all that is worth its fee, without waiting for company."""
        parts = await self._parts()
        standings = await parts.attendant.all_standings()
        return self._done(await parts.collector.claim(standings, is_shutdown=True, is_dry=is_dry))

    async def sponsor(self, asked: PayOpen, node: bytes) -> bytes:
        """Send a peer's deposit. See Collector.sponsor."""
        digest = await (await self._parts()).collector.sponsor(asked, node)
        channel = channel_id(typed(asked.channel), self._network.chain, self._network.hub)
        self._sent_for(node, "deposit", digest, channel)
        return digest

    async def refund(self, asked: PayRefund, node: bytes) -> bytes:
        """Give a payer back what it does not owe. See Collector.refund."""
        digest = await (await self._parts()).collector.refund(asked, node)
        self._sent_for(node, "refund", digest, asked.channel)
        return digest

    def _sent_for(self, node: bytes, purpose: str, digest: bytes, channel: bytes) -> None:
        """What was sent at the wish of a peer is told at once; what it cost, when it has come to its end."""
        facts = {"node": node.hex(), "transaction": digest.hex(), "channel": channel.hex()}
        self._record("transaction", purpose=purpose, outcome="submitted", **facts)
        self.wake()

    async def look_at(self, channel_id: bytes) -> Standing:
        """What the chain says of a channel of the book now; the book is told. Raises NoChannel."""
        chain = (await self._parts()).chain
        channel = await chain.channel(channel_id)
        if channel is None:
            raise NoChannel(f"0x{channel_id.hex()}")
        return (await chain.refresh([channel]))[channel_id]

    async def look_for(self, config: ChannelConfig, channel_id: bytes, node: bytes) -> None:
        """A channel to this node that a payer names: it comes into the book if there is money in it."""
        chain = (await self._parts()).chain
        known = await chain.channel(channel_id)
        place = (chain.network.chain, chain.network.hub, config)
        named = known or Channel(channel_id, "receiver", node, *place, opened_at=self._clock())
        standing = (await chain.refresh([named]))[channel_id]
        if known is None and standing.balance_micros:
            await self._book.opening(config, channel_id, "receiver", node)
            await chain.refresh([named])

    async def outstanding(self, channel_id: bytes, payer: bytes) -> Authorization | None:
        """The deposit into a channel that was signed and can still be taken. See Depositor.outstanding."""
        return await (await self._parts()).depositor.outstanding(channel_id, payer)

    def _done(self, outcome: Outcome) -> Outcome:
        """What was just done is followed at once."""
        self._said(outcome)
        if outcome.steps and not outcome.is_dry:
            self.wake()
        return outcome

    # --- what is seen of it ---

    async def facts(self) -> dict[str, Any]:
        """For `GET /api/spending`: the network, what is wrong with it, fees of this month, the last transactions.

        A journal that cannot be read is part of what is wrong.
        """
        made: tuple[Transaction, ...] = ()
        paid, promised, why_not = 0, 0, self.why_not
        try:
            month = month_of(day_of(self._clock()))
            paid, open_ones = await self._transactions.gas(self._network.chain, month)
            promised = sum(open_ones.values())
            made = tuple(await self._transactions.newest(self._network.chain, MOST_SHOWN))
        except MeshnodeError as error:
            why_not = error.message
        refusals = self._made.chain.sender.refusals if self._made is not None else {}
        return {
            "network": self._network.name,
            "chain": self._network.chain,
            "testnet": self._network.testnet,
            "why_not": why_not,
            "endpoints": self._rpc.facts() if self._rpc is not None else [],
            "is_checked_by_two": self._rpc is not None and not self._rpc.alone,
            "sender": shown(self._key.address),
            "gas_micros": paid,
            "gas_reserved_micros": promised,
            "gas_cap": dollars(self._bounds().gas_month_micros),
            "transactions": [
                {**Step.made(one).as_dict(), "at": one.made_at, "words": refusals.get(one.purpose, "")} for one in made
            ],
        }
