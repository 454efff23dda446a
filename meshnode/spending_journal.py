"""The payer's ledger as lines of the journal: what it is made of at a start, and how each of its entries is written.

All of this runs in the thread of the store, inside one transaction. Amounts in the journal are those after the step,
so that writing it twice would change nothing; the table of what was spent by day alone adds up.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from meshnode.core.ledger_entries import Changed, Ended, Entry, Line, Proven, Reserved, Running, Signed, State
from meshnode.core.prices import Price
from meshnode.errors import LedgerDamaged
from meshnode.settlement import store_channels
from meshnode.settlement.networks import Network
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
from meshnode.settlement.store_spent import day_of, spent, spent_by_month
from meshnode.wire.payments import PayVoucher


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended: the tokens that are charged, why it ended, and its receipt, empty where there is none."""

    tokens_in: int = 0
    tokens_out: int = 0
    finish: str = ""
    receipt: bytes = b""


INTERRUPTED = Outcome(finish="interrupted")


def read(db: sqlite3.Connection, authorizer: bytes, network: Network, now: float) -> tuple[list[Channel], State]:
    """The channels on which this node pays with the key of that address, and the state of a ledger over them.

    Raises LedgerDamaged where the journal contradicts itself, or a voucher in it does not bear its signature.
    """
    forget_requests(db, now)
    channels = [
        channel
        for channel in store_channels.channels(db, "payer")
        if (channel.chain, channel.hub) == (network.chain, network.hub)
    ]
    for channel in channels:
        check_voucher(channel)
    lines = {channel.id: _line(channel, authorizer) for channel in channels}
    requests = [request for request in running_requests(db, "payer") if request.channel in lines]
    try:
        running = {request.id: _running(request) for request in requests}
    except ValueError as reason:
        raise LedgerDamaged(str(reason)) from None
    return channels, State(lines, running, spent_by_month(db, network.chain))


def is_payable(channel: Channel, authorizer: bytes) -> bool:
    """Whether it may be filled, and paid from as far as it is, with the key of that address."""
    return channel.state in ("opening", "open") and channel.config.payer_authorizer == authorizer


def put(
    db: sqlite3.Connection,
    entry: Entry,
    now: float,
    outcome: Outcome,
    sign: Callable[[Line], bytes],
    shown: bytes = b"",
) -> PayVoucher | None:
    """Write one entry, at this wall time (s); the voucher that it makes, if any.

    `sign` signs what a line has as signed. `outcome` is that of a request that ends, `shown` the signature that proved
    something. Raises LedgerDamaged for an entry that does not fit what is there, sqlite3.Error.
    """
    match entry:
        case Reserved(running):
            if not begin_request(db, _request(running, started_at=now)):
                raise LedgerDamaged(f"the request {running.request} was there before")
        case Signed(line, _, _, delta_micros, running):
            signature = sign(line)
            _put_signed(db, line, signature, delta_micros, now)
            if running is not None:
                marked(db, line.channel, running.request, running.tokens_in, running.covered_out)
            return PayVoucher(line.channel, line.signed_micros, signature)
        case Ended(line, running, charged_micros):
            _put_end(db, line, running, charged_micros, outcome, now)
        case Changed(line, why):
            _put_charged(db, line)
            if why in ("depositing", "deposit ended"):
                store_channels.depositing(db, line.channel, line.depositing_micros)
        case Proven(line, _, _, delta_micros):
            _put_signed(db, line, shown, delta_micros, now)
            put_event(db, now, "proven", {"channel": line.channel.hex(), "amount_micros": delta_micros})
            return PayVoucher(line.channel, line.signed_micros, shown) if shown else None
    return None


def _put_signed(db: sqlite3.Connection, line: Line, signature: bytes, delta_micros: int, now: float) -> None:
    store_channels.signed(db, line.channel, line.signed_micros, signature)
    _put_charged(db, line)
    spent(db, day_of(now), line.channel, delta_micros)


def _put_charged(db: sqlite3.Connection, line: Line) -> None:
    settled_micros = min(line.settled_micros, line.signed_micros)
    store_channels.charged(db, line.channel, settled_micros, unsure_micros=line.unsure_micros)


def _put_end(
    db: sqlite3.Connection, line: Line, running: Running, charged_micros: int | None, outcome: Outcome, now: float
) -> None:
    """A request is over. What it cost above all that is signed is in memory alone: the next voucher signs it, and
    the provider has to ask for it again after a crash.
    """
    before = store_channels.channel_of(db, line.channel)
    if before is None:
        raise LedgerDamaged("a request of a channel that is not there")
    at_worst = max(0, min(line.settled_micros, line.signed_micros) - before.charged_micros)
    cost = at_worst if charged_micros is None else charged_micros
    _put_charged(db, line)
    ended = _request(
        running,
        tokens_in=min(outcome.tokens_in, running.most_in),
        tokens_out=min(outcome.tokens_out, running.most_out),
        charged_micros=cost,
        state="interrupted" if charged_micros is None else "ended",
        finish=outcome.finish,
        receipt=outcome.receipt,
        ended_at=now,
    )
    end_request(db, ended)
    facts: dict[str, Fact] = {
        "request": running.request,
        "node": before.node.hex(),
        "model": running.model,
        "tokens_in": ended.tokens_in,
        "tokens_out": ended.tokens_out,
        "cost_micros": cost,
        "reason": outcome.finish,
        "channel": line.channel.hex(),
    }
    put_event(db, now, "paid", facts)


def _line(channel: Channel, authorizer: bytes) -> Line:
    return Line(
        channel.id,
        signed_micros=channel.signed_micros,
        settled_micros=channel.charged_micros,
        balance_micros=channel.usable_micros,
        claimed_micros=channel.claimed_micros,
        depositing_micros=channel.depositing_micros,
        unsure_micros=channel.unsure_micros,
        is_open=is_payable(channel, authorizer),
    )


def _running(request: Request) -> Running:
    price = Price(request.price_in, request.price_out)
    names = (request.id, request.channel, request.model, price, request.most_in, request.most_out)
    return Running(*names, tokens_in=request.tokens_in, covered_out=request.tokens_out)


def _request(running: Running, **values: object) -> Request:
    """The line of a request; its tokens are those that are covered, unless `values` say otherwise."""
    found: dict[str, object] = {"tokens_in": running.tokens_in, "tokens_out": running.covered_out, **values}
    price = running.price
    names = (running.channel, running.request, running.model)
    return Request(*names, price.tokens_in, price.tokens_out, running.most_in, running.most_out, **found)  # type: ignore[arg-type]
