"""The payer's ledger (core/ledger.py) with its journal (settlement/store*.py): what it decides is written, then done.

Each step is decided in memory, on the event loop; written in one transaction by the thread of the store, which also
signs; and only then handed on, so that no voucher leaves that is not counted as spent. A crash at any point leaves
a journal that counts at least what was sent. Requests that a crash cut off are ended when the books are opened again.

A write that failed leaves memory ahead of the disk: these books take nothing more then, and new ones are opened.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence

from meshnode.core.ledger import Ledger
from meshnode.core.ledger_entries import Entry, Line
from meshnode.core.pay_policy import Policy, Refused
from meshnode.core.prices import Price
from meshnode.core.windows import Window
from meshnode.errors import (
    GasCapReached,
    LedgerDamaged,
    MeshnodeError,
    MonthlyCapReached,
    NoChannel,
    PaymentRefused,
    PaymentRequired,
    PaymentsOff,
    PriceAboveCeiling,
)
from meshnode.settlement.keys import Verifier, VoucherKey
from meshnode.settlement.networks import Network
from meshnode.settlement.store import Store
from meshnode.settlement.store_channels import Channel
from meshnode.settlement.store_spent import day_of, month_of
from meshnode.settlement.typed_data import voucher_digest
from meshnode.spending_journal import INTERRUPTED, Outcome, is_payable, put, read
from meshnode.wire.payments import PayVoucher
from meshnode.wire.registry import PayCode


def error_of(refused: Refused) -> MeshnodeError:
    """What a refusal of the ledger is to a caller."""
    text = str(refused)
    match refused.code:
        case "pay_off" | "no_pay":
            return PaymentsOff(text)
        case "price_above_ceiling":
            return PriceAboveCeiling(text)
        case "monthly_cap_reached":
            return MonthlyCapReached(text)
        case "gas_cap_reached":
            return GasCapReached(text)
        case "no_channel" | "channel_exhausted":
            return NoChannel(text)
        case "over_count" | "cum_mismatch" | "insufficient_balance":
            return PaymentRefused(text, pay_code=PayCode.CUM_MISMATCH)
        case "prepay_too_large" | "deposit_too_large":
            return PaymentRequired(text)


class Books:
    """Made by `opened`. `failed` says why they take nothing more."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        policy: Callable[[], Policy],
        key: VoucherKey,
        network: Network,
        clock: Callable[[], float],
    ) -> None:
        self.ledger = ledger
        self.failed: MeshnodeError | None = None
        self.channels: dict[bytes, Channel] = {}
        self.unsure: set[bytes] = set()
        """Channels on which something ended without a receipt, until a quote says what it cost."""
        self._store = store
        self._policy = policy
        self._key = key
        self._network = network
        self._clock = clock
        self._vouchers: dict[bytes, PayVoucher] = {}
        self._writing: set[asyncio.Task[PayVoucher | None]] = set()

    @classmethod
    async def opened(
        cls, store: Store, policy: Callable[[], Policy], key: VoucherKey, network: Network, clock: Callable[[], float]
    ) -> Books:
        """The books as the journal has them; what a crash cut off is ended.

        Raises LedgerDamaged, also where a voucher does not bear the signature that stands beside it, or what the store
        raises.
        """

        channels, state = await store.run(lambda db: read(db, key.address, network, clock()))
        try:
            ledger = Ledger(policy(), state)
        except ValueError as reason:
            raise LedgerDamaged(str(reason)) from None
        books = cls(store, ledger, policy, key, network, clock)
        for channel in channels:
            books.channels[channel.id] = channel
            books.unsure.add(channel.id)
            if channel.signature:
                books._vouchers[channel.id] = PayVoucher(channel.id, channel.signed_micros, channel.signature)
        if ended := ledger.recover():
            await books._write(clock(), ended)
        return books

    @property
    def month(self) -> str:
        """The month in which a voucher that is signed now counts."""
        return month_of(day_of(self._clock()))

    def voucher(self, channel: bytes) -> PayVoucher | None:
        """The highest voucher of a channel that is written, if its signature is known."""
        return self._vouchers.get(channel)

    def settled_micros(self, channel: bytes) -> int:
        """What the ended requests of a channel came to, at worst."""
        line = self.ledger.line(channel)
        return line.settled_micros if line else 0

    # --- one request ----------------------------------------------------------------------------------------

    async def reserve(
        self, request: str, channel: bytes, model: str, price: Price, most_in: int, most_out: int
    ) -> None:
        """Promise what a request costs at most. Raises a PaymentError, or what the store raises."""
        now = self._check()
        try:
            entry = self.ledger.reserve(request, channel, model, price, most_in, most_out, month_of(day_of(now)))
        except Refused as refused:
            raise error_of(refused) from None
        except ValueError as reason:
            raise PaymentRequired(str(reason)) from None
        try:
            await self._write(now, (entry,))
        except asyncio.CancelledError:
            self._begin_writing(now, (self.ledger.release(request),))  # nobody is left to end it
            raise

    async def adopt(self, request: str, charged_micros: int, vouched_micros: int) -> None:
        """Go by what the provider states, as far as that is certain. Raises PaymentRefused."""
        now = self._check()
        try:
            entry = self.ledger.adopt(request, charged_micros, vouched_micros)
        except (Refused, ValueError) as reason:
            raise PaymentRefused(str(reason), pay_code=PayCode.CUM_MISMATCH) from None
        running = self.ledger.running(request)
        line = self.ledger.line(running.channel) if running else None
        if line is not None and (line.settled_micros, line.signed_micros) == (charged_micros, vouched_micros):
            self.unsure.discard(line.channel)
        if entry is not None:
            await self._write(now, (entry,))

    async def due(
        self, request: str, tokens_in: int, tokens_out: int, window: Window, *, asked: bool = False
    ) -> PayVoucher | None:
        """The voucher for so many tokens, written; None while the last one is enough. Raises a PaymentError."""
        now = self._check()
        try:
            entry = self.ledger.due(request, tokens_in, tokens_out, window, month_of(day_of(now)), asked)
        except Refused as refused:
            raise error_of(refused) from None
        return await self._write(now, (entry,)) if entry is not None else None

    async def finished(self, request: str, charged_micros: int, outcome: Outcome) -> PayVoucher | None:
        """A receipt that was checked ends the request; the voucher that is still missing, if one is. Raises
        PaymentRefused for a charge that cannot be; the request then still has to be released.
        """
        now = self._check()
        try:
            entries = self.ledger.finished(request, charged_micros, month_of(day_of(now)))
        except (Refused, ValueError) as reason:
            raise PaymentRefused(str(reason), pay_code=PayCode.CUM_MISMATCH) from None
        return await self._write(now, entries, outcome)

    async def release(self, request: str, outcome: Outcome) -> int:
        """The request is over without a receipt. What it came to at worst, in micro-USDC."""
        now = self._check()
        running = self.ledger.running(request)
        if running is None:
            return 0
        before = self.settled_micros(running.channel)
        entry = self.ledger.release(request)
        self.unsure.add(running.channel)
        await self._write(now, (entry,), outcome)
        return entry.line.settled_micros - before

    # --- one channel ----------------------------------------------------------------------------------------

    async def proven(self, channel: bytes, cumulative: int, signature: bytes) -> None:
        """Somebody shows a voucher above all that this journal knows: it counts if this wallet has signed it.

        Raises PaymentRefused for a signature that is not ours.
        """
        now = self._check()
        if not Verifier(self._key.address).verify(self._digest(channel, cumulative), signature):
            raise PaymentRefused("it shows a voucher that was never signed", pay_code=PayCode.BAD_SIGNATURE)
        entry = self.ledger.proven(channel, cumulative, month_of(day_of(now)))
        if entry is not None:
            await self._write(now, (entry,), signature=signature)

    async def take(self, channel: Channel) -> None:
        """What the chain says of a channel has changed, or there is a new one; it stands in the journal already."""
        now = self._check()
        known = self.ledger.line(channel.id)
        self.channels[channel.id] = channel
        entries: list[Entry] = [] if known else [self.ledger.opened(channel.id)]
        line = self.ledger.line(channel.id) or Line(channel.id)
        if arrived := min(line.depositing_micros, max(0, channel.usable_micros - line.balance_micros)):
            entries.append(self.ledger.deposit_ended(channel.id, arrived))
        entries += self.ledger.funded(channel.id, channel.usable_micros, channel.claimed_micros, month_of(day_of(now)))
        is_open = is_payable(channel, self._key.address)
        if known is None or known.is_open != is_open:
            entries.append(self.ledger.opened(channel.id) if is_open else self.ledger.closed(channel.id))
        await self._write(now, entries)

    async def deposit(self, channel: bytes, micros: int, *, by_hand: bool) -> None:
        """So much is about to be put into a channel: counted from now on. Raises a PaymentError."""
        now = self._check()
        try:
            entry = self.ledger.deposit(channel, micros, month_of(day_of(now)), by_hand)
        except Refused as refused:
            raise error_of(refused) from None
        except ValueError as reason:
            raise PaymentRequired(str(reason)) from None
        await self._write(now, (entry,))

    async def deposit_ended(self, channel: bytes, micros: int) -> None:
        """That deposit has failed, or was never sent. One that arrives is seen on the chain."""
        now = self._check()
        await self._write(now, (self.ledger.deposit_ended(channel, micros),))

    # --- writing --------------------------------------------------------------------------------------------

    def _check(self) -> float:
        """The wall time at which a step is decided and written, by the policy of now. Raises why none is taken."""
        if self.failed is not None:
            raise self.failed
        self.ledger.policy = self._policy()
        return self._clock()

    async def _write(
        self, now: float, entries: Sequence[Entry], outcome: Outcome = INTERRUPTED, signature: bytes = b""
    ) -> PayVoucher | None:
        """Have the entries written, whether the caller waits for that or not. The voucher that is among them."""
        return await asyncio.shield(self._begin_writing(now, entries, outcome, signature))

    def _begin_writing(
        self, now: float, entries: Sequence[Entry], outcome: Outcome = INTERRUPTED, signature: bytes = b""
    ) -> asyncio.Task[PayVoucher | None]:
        task = asyncio.ensure_future(self._written(now, tuple(entries), outcome, signature))
        self._writing.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[PayVoucher | None]) -> None:
        self._writing.discard(task)
        if not task.cancelled():
            task.exception()  # `failed` has it

    async def _written(
        self, now: float, entries: tuple[Entry, ...], outcome: Outcome, signature: bytes
    ) -> PayVoucher | None:
        def work(db: sqlite3.Connection) -> PayVoucher | None:
            """In the thread of the store."""
            voucher = None
            for entry in entries:
                voucher = put(db, entry, now, outcome, self._sign, signature) or voucher
            return voucher

        try:
            voucher = await self._store.run(work)
        except MeshnodeError as error:
            self.failed = error
            raise
        if voucher is not None:
            self._vouchers[voucher.channel] = voucher
        return voucher

    def _sign(self, line: Line) -> bytes:
        return self._key.sign(self._digest(line.channel, line.signed_micros))

    def _digest(self, channel: bytes, cumulative: int) -> bytes:
        return voucher_digest(channel, cumulative, self._network.chain, self._network.hub)
