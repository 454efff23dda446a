"""What this node pays to strangers: the Purse of the gateway (api/paying.py).

    refusal   cheap, for every host that has a price: may it be paid at all
    begin     a channel to the provider that holds enough, and a reservation in it, written before anyone is asked
    take      the chain says something new of a channel (settlement/store_book.py)

The policy is asked for at each step, so what a person changes in a terminal holds from the next voucher on. Nothing on
the way of a request asks the chain: what channels hold stands in the journal, which whoever watches the chain keeps
fresh. Where no channel holds enough, `fund` may put something into one, within the policy; a request waits a little for
that, and no longer.

Nothing here keeps a node from starting: a journal that is damaged, in use by another node, or on a full disk, and a
wallet without a key, are what `refusal` and `begin` then say.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from meshnode.core.ledger_entries import Line
from meshnode.core.pay_policy import Policy
from meshnode.core.prices import Price
from meshnode.errors import LedgerDamaged, MeshnodeError, MonthlyCapReached, NoChannel, PaymentRefused, PaymentsOff
from meshnode.settlement.keys import VoucherKey
from meshnode.settlement.networks import Network
from meshnode.settlement.store import Store
from meshnode.settlement.store_channels import Channel
from meshnode.settlement.store_spent import day_of, month_of
from meshnode.spending_books import Books, error_of
from meshnode.spending_calls import PaidByVouchers, Terms
from meshnode.wire.registry import PayCode
from meshnode.wire.signed import Verify

if TYPE_CHECKING:
    from meshnode.api.paying import PaidCall

FUND_WAIT_S = 20.0
"""So long a request waits for a deposit that was made for it."""
DISTRUST_S = 3600.0
MOST_REMEMBERED = 512
"""Quotes, speeds and distrusted nodes."""

Fund = Callable[[bytes, int], Awaitable[None]]
"""Put what the policy allows into a channel to this node, at least so many micro-USDC; returns when it can be used.

Raises a MeshnodeError.
"""


class Standing(Protocol):
    """What may be spent now; with a `why_not` nothing, and that is why."""

    @property
    def policy(self) -> Policy: ...
    @property
    def why_not(self) -> str: ...


class Spending:
    """Pays with the channels of `store` on `network`, as `standing` allows at each moment.

    `key` reads the key that signs vouchers; it is called in a thread, and may raise a MeshnodeError. `verify` tells
    what a node has signed.
    """

    def __init__(
        self,
        store: Store,
        *,
        standing: Callable[[], Standing],
        key: Callable[[], VoucherKey],
        network: Network,
        verify: Verify,
        fund: Fund | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._standing = standing
        self._key = key
        self._network = network
        self._fund = fund
        self._clock = clock
        self._monotonic = monotonic
        self._books: Books | None = None
        self._opening = asyncio.Lock()
        self._filling: dict[bytes, asyncio.Task[None]] = {}
        self._distrusted: dict[bytes, tuple[float, str]] = {}
        self._trouble: MeshnodeError | None = None
        self._terms = Terms(network, verify, monotonic, self._distrust, {}, {})

    async def start(self) -> None:
        """Open the books. What is in the way is said by `refusal` and `begin`, and no error."""
        await self._try_opening()

    async def close(self) -> None:
        """End what is under way; the store is closed by whoever opened it."""
        filling = list(self._filling.values())
        for task in filling:
            task.cancel()
        await asyncio.gather(*filling, return_exceptions=True)

    # --- the purse ------------------------------------------------------------------------------------------

    def refusal(self, price: Price, chain: int, model: str, /) -> MeshnodeError | None:
        """Why a host with this price is not asked; None when it may be. Cheap, and waits for nothing."""
        standing = self._standing()
        if standing.why_not:
            return PaymentsOff(standing.why_not)
        if chain != self._network.chain:
            text = (
                f"it is paid on the chain {chain}, and this wallet is of {self._network.name} ({self._network.chain})"
            )
            return PaymentRefused(text, pay_code=PayCode.UNSUPPORTED_NETWORK)
        if refused := standing.policy.refusal(price, model):
            return error_of(refused)
        if isinstance(self._store.trouble, LedgerDamaged):
            return self._store.trouble
        books = self._books
        if books is not None:
            figures = books.ledger.standing(self._month())
            if figures.committed + figures.reserved >= standing.policy.month_micros:
                return MonthlyCapReached(f"{figures.committed} of {standing.policy.month_micros} micro-USDC are spent")
        return None

    async def begin(self, call: PaidCall, /) -> PaidByVouchers:
        """Reserve what the call costs at most, in a channel to its provider. Raises a PaymentError, or StateError."""
        if refused := self.refusal(call.price, call.chain, call.model):
            raise refused
        self._refuse_distrusted(call.node)
        self._forget_oldest()
        books = await self._ready()
        try:
            channel = await self._reserve(books, call)
        except NoChannel as reason:
            await self._fill(call, reason)
            channel = await self._reserve(books, call)
        return PaidByVouchers(call, channel, books, self._terms)

    async def _reserve(self, books: Books, call: PaidCall) -> Channel:
        """Reserve in the channel to the node of the call that holds most. Raises NoChannel, or what begin raises."""
        wanted: MeshnodeError = NoChannel("there is no open channel to this provider")
        for channel, _ in sorted(self._channels_to(books, call.node), key=lambda found: -_left_micros(found[1])):
            try:
                await books.reserve(call.request, channel.id, call.model, call.price, call.most_in, call.most_out)
            except NoChannel as reason:
                wanted = reason
            else:
                return channel
        raise wanted

    def _channels_to(self, books: Books, node: bytes) -> list[tuple[Channel, Line]]:
        found = []
        for channel in books.channels.values():
            line = books.ledger.line(channel.id)
            if channel.node == node and line is not None and line.is_open:
                found.append((channel, line))
        return found

    async def _fill(self, call: PaidCall, reason: NoChannel) -> None:
        """Have a channel to the node filled, once for all requests that wait for that. Raises NoChannel."""
        if self._fund is None:
            raise reason
        task = self._filling.get(call.node)
        if task is None:
            most = -(-(call.most_in * call.price.tokens_in + call.most_out * call.price.tokens_out) // 1_000_000)
            task = asyncio.ensure_future(self._fund(call.node, most))
            self._filling[call.node] = task
            task.add_done_callback(lambda done: self._filled(call.node, done))
        try:
            async with asyncio.timeout(FUND_WAIT_S):
                await asyncio.shield(task)
        except TimeoutError:
            raise NoChannel("a deposit is on its way", fix="try again in a minute", retry_after_s=30) from None

    def _filled(self, node: bytes, task: asyncio.Task[None]) -> None:
        self._filling.pop(node, None)
        if not task.cancelled():
            task.exception()  # whoever waited has it

    # --- channels -------------------------------------------------------------------------------------------

    async def take(self, channel: Channel) -> None:
        """The journal has something new of a channel: another balance or state, or that it is there."""
        mine = (channel.role, channel.chain, channel.hub) == ("payer", self._network.chain, self._network.hub)
        if mine and self._books is not None:
            with suppress(MeshnodeError):  # books that take nothing more are opened anew, and read the journal then
                await self._books.take(channel)

    async def deposit_wanted(self, channel: bytes) -> int:
        """How much the policy would put into a channel now, in micro-USDC. Raises what `begin` raises."""
        return (await self._ready()).ledger.deposit_wanted(channel, self._month())

    async def deposit_begins(self, channel: bytes, micros: int, *, by_hand: bool = False) -> None:
        """Count a deposit before it is signed. Raises a PaymentError where the policy does not allow it."""
        await (await self._ready()).deposit(channel, micros, by_hand=by_hand)

    async def deposit_failed(self, channel: bytes, micros: int) -> None:
        """A deposit that was counted will not come. One that comes is seen on the chain, and needs no word."""
        await (await self._ready()).deposit_ended(channel, micros)

    # --- figures --------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """The month in figures, in micro-USDC, and why nothing is paid, if nothing is."""
        standing, month = self._standing(), self._month()
        trouble = self._trouble or self._store.trouble
        found = self._books.ledger.standing(month) if self._books is not None else None
        spent = found.committed + found.reserved if found else 0
        return {
            "month": month,
            "committed_micros": found.committed if found else 0,
            "reserved_micros": found.reserved if found else 0,
            "locked_micros": found.locked if found else 0,
            "remaining_micros": max(0, standing.policy.month_micros - spent),
            "is_near_cap": found.is_near if found else False,
            "paying": not standing.why_not and trouble is None,
            "why_not": standing.why_not or (trouble.message if trouble else ""),
            "damaged": trouble.message if isinstance(trouble, LedgerDamaged) else "",
        }

    # --- inside ---------------------------------------------------------------------------------------------

    async def _ready(self) -> Books:
        """The books, opened now if they are not, and with the policy of now. Raises what is in the way."""
        if self._books is None or self._books.failed is not None:
            await self._try_opening()
        if self._books is None:
            raise self._trouble or LedgerDamaged("the books are closed")
        self._books.ledger.policy = self._policy()
        return self._books

    async def _try_opening(self) -> None:
        async with self._opening:
            if self._books is not None and self._books.failed is None:
                return
            self._books = None
            try:
                key = await asyncio.to_thread(self._key)
                self._books = await Books.opened(self._store, self._policy, key, self._network, self._clock)
                self._trouble = None
            except MeshnodeError as reason:
                self._trouble = reason

    def _policy(self) -> Policy:
        return self._standing().policy

    def _month(self) -> str:
        return month_of(day_of(self._clock()))

    def _refuse_distrusted(self, node: bytes) -> None:
        until, why = self._distrusted.get(node, (0.0, ""))
        if self._monotonic() < until:
            raise PaymentRefused(f"it is not paid for a while: {why}", pay_code=PayCode.CUM_MISMATCH)

    def _distrust(self, node: bytes, why: str) -> None:
        self._distrusted[node] = (self._monotonic() + DISTRUST_S, why)

    def _forget_oldest(self) -> None:
        for remembered in (self._distrusted, self._terms.quotes, self._terms.rates):
            while len(remembered) > MOST_REMEMBERED:
                remembered.pop(next(iter(remembered)))  # type: ignore[call-overload]


def _left_micros(line: Line) -> int:
    return line.balance_micros - max(line.signed_micros, line.settled_micros)
