"""The channels on which this node is paid, in memory and in the journal: what was vouched for, what was delivered.

    voucher in   verified, written with the marks of what it pays for, and only then counted (core/credit.py)
    request      written when it begins, so that its id is taken for ever; its charge and receipt when it ends
    start        requests that a crash cut off are charged what their marks say, and no more than was vouched for

A mark is what was delivered when the last voucher was written: a crash costs who crashes the tokens since then, some
96 at most, and nobody else anything. A write that failed leaves memory and disk apart: these accounts take nothing more
then, and are opened anew.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from meshnode.core.credit import Charged, Credit, Meter, Opened
from meshnode.core.ledger_entries import MOST_TOKENS
from meshnode.core.prices import Price
from meshnode.errors import LedgerDamaged, MeshnodeError
from meshnode.settlement import store_channels
from meshnode.settlement.keys import Verifier
from meshnode.settlement.networks import Network
from meshnode.settlement.store import Store, Work
from meshnode.settlement.store_channels import Channel, check_voucher
from meshnode.settlement.store_events import Fact, put_event
from meshnode.settlement.store_requests import (
    Request,
    begin_request,
    end_request,
    forget_requests,
    marked,
    running_requests,
)
from meshnode.settlement.typed_data import voucher_digest

Result = TypeVar("Result")


class Account:
    """One channel. `turn` is held while a voucher or an end is written: one after another. `read_for_nothing` counts
    the prompts that were read on trust since the last voucher, and that nothing came of.
    """

    def __init__(self, channel: Channel, credit: Credit) -> None:
        self.channel = channel
        self.credit = credit
        self.turn = asyncio.Lock()
        self.read_for_nothing = 0
        self._verifier = Verifier(channel.config.payer_authorizer)

    def is_signed(self, cumulative: int, signature: bytes) -> bool:
        """Whether the payer has signed a voucher for so much."""
        channel = self.channel
        digest = voucher_digest(channel.id, cumulative, channel.chain, channel.hub)
        return self._verifier.verify(digest, signature)

    def take(self, channel: Channel) -> None:
        """What the chain says has changed."""
        seen = ("state", "balance_micros", "usable_micros", "claimed_micros", "checked_at", "withdrawable_at")
        self.channel = replace(self.channel, **{name: getattr(channel, name) for name in seen})
        self.credit.funded(channel.usable_micros, channel.claimed_micros)


class Accounts:
    """Made by `opened`. `failed` says why they take nothing more."""

    def __init__(self, store: Store, clock: Callable[[], float]) -> None:
        self.failed: MeshnodeError | None = None
        self._store = store
        self._clock = clock
        self._accounts: dict[bytes, Account] = {}

    @classmethod
    async def opened(cls, store: Store, network: Network, clock: Callable[[], float]) -> Accounts:
        """The accounts as the journal has them. Raises LedgerDamaged, or what the store raises."""
        now = clock()

        def read(db: sqlite3.Connection) -> list[tuple[Channel, Credit]]:
            forget_requests(db, now)
            cut_off = running_requests(db, "receiver")
            found = []
            for channel in store_channels.channels(db, "receiver"):
                if (channel.chain, channel.hub) == (network.chain, network.hub):
                    check_voucher(channel)
                    requests = {request.id: request for request in cut_off if request.channel == channel.id}
                    found.append((channel, _recovered(db, channel, requests, now)))
            return found

        accounts = cls(store, clock)
        try:
            loaded = await store.run(read)
        except ValueError as reason:
            raise LedgerDamaged(str(reason)) from None
        accounts._accounts = {channel.id: Account(channel, credit) for channel, credit in loaded}
        return accounts

    def account(self, channel: bytes) -> Account | None:
        """The account of a channel that is known."""
        return self._accounts.get(channel)

    def take(self, channel: Channel) -> None:
        """The journal has a new channel, or something new of one."""
        known = self._accounts.get(channel.id)
        if known is not None:
            known.take(channel)
        else:
            self._accounts[channel.id] = Account(channel, _credit(channel))

    async def begin(self, account: Account, opened: Opened, model: str, most_out: int) -> bool:
        """Write that a request begins. False when its id was there before; then nothing is written."""
        channel, meter, now = account.channel, opened.meter, self._clock()
        request = Request(
            channel.id,
            meter.request,
            model,
            meter.price.tokens_in,
            meter.price.tokens_out,
            most_in=MOST_TOKENS,
            most_out=most_out,
            unpaid_tokens=meter.unpaid,
            started_at=now,
        )

        def work(db: sqlite3.Connection) -> bool:
            store_channels.charged(db, channel.id, opened.settled_micros, written_off_micros=opened.written_off_micros)
            return begin_request(db, request)

        return await self._write(work)

    async def hold(self, account: Account, cumulative: int, signature: bytes, request: str, node: bytes) -> None:
        """Write a verified voucher, and the mark of the request that it came with; then it counts.

        The first voucher of a channel says which node is its other end.
        """
        channel, meter = account.channel, account.credit.meter(request)
        is_first = not account.credit.vouched_micros

        def work(db: sqlite3.Connection) -> None:
            store_channels.signed(db, channel.id, cumulative, signature)
            if is_first:
                store_channels.bound(db, channel.id, node)
            if meter is not None and meter.tokens_out:
                marked(db, channel.id, request, meter.tokens_in, meter.tokens_out)

        await self._write(work)
        account.credit.held(cumulative)
        account.read_for_nothing = 0
        ours = node if is_first else channel.node
        account.channel = replace(account.channel, node=ours, signed_micros=cumulative, signature=signature)

    async def end(self, account: Account, charged: Charged, model: str, finish: str, receipt: bytes) -> None:
        """Write what a request came to, and its receipt."""
        now = self._clock()
        written_off = account.credit.written_off_micros

        def work(db: sqlite3.Connection) -> None:
            _put_end(db, account.channel, charged, model, finish, receipt, now, written_off)

        await self._write(work)

    async def _write(self, work: Work[Result]) -> Result:
        """Have it written, whether the caller goes on waiting or not."""
        if self.failed is not None:
            raise self.failed

        async def written() -> Result:
            try:
                return await self._store.run(work)
            except MeshnodeError as reason:
                self.failed = reason
                raise

        return await asyncio.shield(asyncio.ensure_future(written()))


def _credit(channel: Channel, meters: tuple[Meter, ...] = ()) -> Credit:
    return Credit(
        channel.id,
        balance_micros=channel.usable_micros,
        vouched_micros=channel.signed_micros,
        settled_micros=channel.charged_micros,
        claimed_micros=channel.claimed_micros,
        written_off_micros=channel.written_off_micros,
        meters=meters,
    )


def _recovered(db: sqlite3.Connection, channel: Channel, cut_off: dict[str, Request], now: float) -> Credit:
    """The credit of a channel, with the requests that were cut off charged at their marks.

    What of that is not vouched for is this node's own loss, and no debt of the payer.
    """
    meters = tuple(
        Meter(request.id, Price(request.price_in, request.price_out), request.tokens_in, request.tokens_out)
        for request in cut_off.values()
    )
    credit = _credit(channel, meters)
    for charged in credit.recover():
        request = cut_off[charged.meter.request]
        _put_end(db, channel, charged, request.model, "broken", b"", now, channel.written_off_micros)
    credit.settled_micros = max(channel.charged_micros, min(credit.settled_micros, credit.vouched_micros))
    store_channels.charged(db, channel.id, credit.settled_micros, written_off_micros=channel.written_off_micros)
    return credit


def _put_end(
    db: sqlite3.Connection,
    channel: Channel,
    charged: Charged,
    model: str,
    finish: str,
    receipt: bytes,
    now: float,
    written_off_micros: int,
) -> None:
    meter = charged.meter
    ended = Request(
        channel.id,
        meter.request,
        model,
        meter.price.tokens_in,
        meter.price.tokens_out,
        most_in=meter.tokens_in,
        most_out=meter.tokens_out,
        tokens_in=meter.tokens_in,
        tokens_out=meter.tokens_out,
        charged_micros=charged.charged_micros,
        state="ended" if receipt else "interrupted",
        finish=finish,
        receipt=receipt,
        ended_at=now,
    )
    end_request(db, ended)
    store_channels.charged(db, channel.id, charged.settled_micros, written_off_micros=written_off_micros)
    facts: dict[str, Fact] = {
        "request": meter.request,
        "node": channel.node.hex(),
        "model": model,
        "tokens_in": meter.tokens_in,
        "tokens_out": meter.tokens_out,
        "cost_micros": charged.charged_micros,
        "reason": finish,
        "channel": channel.id.hex(),
    }
    put_event(db, now, "earned", facts)
