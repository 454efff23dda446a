"""The journal as a person looks at it: channels, receipts, what was spent and earned by day and by provider.

Functions on a connection, to be run by `Store.run`. All lists are bounded. Amounts are micro-USDC, ids and keys hex
digits, with 0x before what an explorer of the chain shows.
"""

from __future__ import annotations

import sqlite3
from typing import Any

from meshnode.settlement.store_channels import Channel, Role, channels

MOST_CHANNELS = 200
MOST_RECEIPTS = 50
MOST_DAYS = 31
MOST_PROVIDERS = 50


def money_facts(db: sqlite3.Connection) -> dict[str, Any]:
    """What stands in the journal, as the console and the command line show it."""
    return {
        "channels": [shown_channel(channel) for channel in channels(db)[:MOST_CHANNELS]],
        "receipts": shown_receipts(db, MOST_RECEIPTS),
        "by_day": _by_day(db),
        "by_provider": _by_provider(db),
        "earning": _earning(db),
    }


def shown_channel(channel: Channel) -> dict[str, Any]:
    """A channel in one line."""
    return {
        "id": f"0x{channel.id.hex()}",
        "role": channel.role,
        "node": channel.node.hex(),
        "state": channel.state,
        "balance_micros": channel.balance_micros,
        "signed_micros": channel.signed_micros,
        "charged_micros": channel.charged_micros,
        "claimed_micros": channel.claimed_micros,
        "opened_at": channel.opened_at,
        "withdrawable_at": channel.withdrawable_at,
    }


def shown_receipts(db: sqlite3.Connection, limit: int, *, with_text: bool = False) -> list[dict[str, Any]]:
    """The newest receipts; `with_text` adds the signed text itself."""
    found = db.execute(
        "SELECT r.id, c.node, r.model, c.role, r.tokens_in, r.tokens_out, r.charged_micros, r.channel, r.finish, "
        "r.ended_at, r.receipt FROM requests r JOIN channels c ON c.id = r.channel WHERE r.receipt != x'' "
        "ORDER BY r.ended_at DESC, r.number DESC LIMIT ?",
        (limit,),
    )
    return [
        {
            "request": request,
            "node": node.hex(),
            "model": model,
            "role": role,
            "tokens_in": tokens_in,
            "tokens_out": tokens_out,
            "charged_micros": charged,
            "channel": f"0x{channel.hex()}",
            "finish": finish,
            "at": at,
            **({"signed": receipt.decode("utf-8", "replace")} if with_text else {}),
        }
        for request, node, model, role, tokens_in, tokens_out, charged, channel, finish, at, receipt in found
    ]


def _by_day(db: sqlite3.Connection) -> list[dict[str, Any]]:
    """The last days on which anything was paid or earned, the newest first."""
    found = db.execute(
        "SELECT day, sum(paid), sum(earned), sum(requests) FROM ("
        " SELECT day, micros AS paid, 0 AS earned, 0 AS requests FROM spent"
        " UNION ALL"
        " SELECT date(r.ended_at, 'unixepoch'), 0, iif(c.role = 'receiver', r.charged_micros, 0), 1"
        " FROM requests r JOIN channels c ON c.id = r.channel WHERE r.state != 'running'"
        ") GROUP BY day ORDER BY day DESC LIMIT ?",
        (MOST_DAYS,),
    )
    names = ("day", "spent_micros", "earned_micros", "requests")
    return [dict(zip(names, row, strict=True)) for row in found]


def _by_provider(db: sqlite3.Connection) -> list[dict[str, Any]]:
    """Whom this node has paid, the dearest first."""
    found = db.execute(
        "SELECT c.node, sum(coalesce(s.micros, 0)), sum(coalesce(r.requests, 0)), sum(coalesce(r.tokens_out, 0)) "
        "FROM channels c "
        "LEFT JOIN (SELECT channel, sum(micros) AS micros FROM spent GROUP BY channel) s"
        " ON s.channel = c.id "
        "LEFT JOIN (SELECT channel, count(*) AS requests, sum(tokens_out) AS tokens_out FROM requests GROUP BY channel)"
        " r ON r.channel = c.id "
        "WHERE c.role = 'payer' GROUP BY c.node ORDER BY 2 DESC, c.node LIMIT ?",
        (MOST_PROVIDERS,),
    )
    return [
        {"node": node.hex(), "spent_micros": micros, "requests": requests, "tokens_out": tokens_out}
        for node, micros, requests, tokens_out in found
    ]


def _earning(db: sqlite3.Connection) -> dict[str, int]:
    """All that others have vouched for to this node, how much of it is claimed, and what was earned beyond that: what
    was vouched ahead of an answer is not earned.
    """
    receiver: Role = "receiver"
    found = channels(db, receiver)
    return {
        "vouched_micros": sum(channel.signed_micros for channel in found),
        "claimed_micros": sum(channel.claimed_micros for channel in found),
        "unclaimed_micros": sum(_unclaimed_micros(channel) for channel in found),
        "channels": len(found),
    }


def _unclaimed_micros(channel: Channel) -> int:
    earned = min(channel.charged_micros, channel.signed_micros, channel.balance_micros)
    return max(0, earned - channel.claimed_micros)
