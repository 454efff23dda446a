"""Channels in the journal: one line for each, with the last voucher, and what the chain was last seen to say.

Functions on a connection, to be run by `Store.run`. `signed_micros` is the highest amount that a voucher of the channel
was signed for: by this node where it pays, for this node where it is paid; `signature` belongs to it. The line of a
channel stays when the channel is closed: it says what was signed, and a channel of the same id may be opened again.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, fields
from typing import Literal

from meshnode.errors import LedgerDamaged
from meshnode.settlement.keys import Verifier
from meshnode.settlement.typed_data import voucher_digest
from meshnode.wire.payments import ChannelConfig

Role = Literal["payer", "receiver"]
State = Literal["opening", "open", "withdrawing", "closing", "closed"]


@dataclass(frozen=True, slots=True)
class Channel:
    """A line of the table.

    `node` is the other end. `balance_micros` and `claimed_micros` are what was ever deposited and claimed, as the chain
    said at `checked_at` (wall time, s; 0: never); of the balance, `usable_micros` are confirmed well enough, and no
    voucher is good for more. `depositing_micros` are on their way. `charged_micros` is what the requests that have
    ended came to; a payer may owe up to `unsure_micros` more, and `written_off_micros` of it a receiver was never paid.
    `withdrawable_at` is set while a withdrawal runs.
    """

    id: bytes
    role: Role
    node: bytes
    chain: int
    hub: bytes
    config: ChannelConfig
    state: State = "opening"
    balance_micros: int = 0
    usable_micros: int = 0
    depositing_micros: int = 0
    claimed_micros: int = 0
    signed_micros: int = 0
    charged_micros: int = 0
    unsure_micros: int = 0
    written_off_micros: int = 0
    signature: bytes = b""
    opened_at: float = 0.0
    checked_at: float = 0.0
    withdrawable_at: float | None = None

    @property
    def unclaimed_micros(self) -> int:
        """What its last voucher is worth beyond what was claimed."""
        return max(0, min(self.signed_micros, self.balance_micros) - self.claimed_micros)


@dataclass(frozen=True, slots=True)
class OnChain:
    """What the chain says of a channel, at wall time `at`."""

    balance_micros: int
    usable_micros: int
    claimed_micros: int
    state: State
    at: float
    withdrawable_at: float | None = None


_CONFIG = tuple(item.name for item in fields(ChannelConfig))
_OWN = tuple(item.name for item in fields(Channel) if item.name != "config")
_COLUMNS = (*_OWN, *_CONFIG)
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM channels"


def add_channel(db: sqlite3.Connection, channel: Channel) -> None:
    """Write a channel that is not there yet; one that is stays as it is, but for a deposit that it waits for again."""
    values = [getattr(channel, name) for name in _OWN] + [getattr(channel.config, name) for name in _CONFIG]
    db.execute(
        f"INSERT INTO channels ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(values))}) "
        "ON CONFLICT (id) DO UPDATE SET state = 'opening' WHERE state = 'closed' AND excluded.state = 'opening'",
        values,
    )


def channel_of(db: sqlite3.Connection, channel: bytes) -> Channel | None:
    """The channel with this id."""
    found = db.execute(f"{_SELECT} WHERE id = ?", (channel,)).fetchone()
    return _read(found) if found else None


def channels(db: sqlite3.Connection, role: Role | None = None, node: bytes | None = None) -> list[Channel]:
    """All, or those of one role or with one other end; the newest first."""
    found = db.execute(
        f"{_SELECT} WHERE (?1 IS NULL OR role = ?1) AND (?2 IS NULL OR node = ?2) ORDER BY opened_at DESC, id",
        (role, node),
    )
    return [_read(row) for row in found]


def seen_on_chain(db: sqlite3.Connection, channel: bytes, facts: OnChain) -> Channel | None:
    """Keep what the chain says, the last word in the order of the calls: clocks go back. The channel as it is now, if
    it is known.

    What the usable balance has grown by is no longer on its way. One that was closed is not opened by a look that began
    before that: `add_channel` opens it.
    """
    db.execute(
        "UPDATE channels SET depositing_micros = max(0, depositing_micros - max(0, ?2 - usable_micros)), "
        "balance_micros = ?1, usable_micros = ?2, claimed_micros = ?3, checked_at = ?5, withdrawable_at = ?6, "
        "state = CASE WHEN state = 'closed' AND ?4 = 'opening' THEN 'closed' ELSE ?4 END WHERE id = ?7",
        (
            *(facts.balance_micros, facts.usable_micros, facts.claimed_micros, facts.state),
            *(facts.at, facts.withdrawable_at, channel),
        ),
    )
    return channel_of(db, channel)


def signed(db: sqlite3.Connection, channel: bytes, cumulative: int, signature: bytes) -> None:
    """Keep a voucher. The file itself refuses one that is lower than the last."""
    _set(db, channel, "signed_micros = ?, signature = ?", cumulative, signature)


def charged(
    db: sqlite3.Connection, channel: bytes, charged_micros: int, *, unsure_micros: int = 0, written_off_micros: int = 0
) -> None:
    """Keep what the ended requests of a channel came to in all, and what of that is in doubt, or was never paid."""
    assignment = "charged_micros = ?, unsure_micros = ?, written_off_micros = ?"
    _set(db, channel, assignment, charged_micros, unsure_micros, written_off_micros)


def depositing(db: sqlite3.Connection, channel: bytes, depositing_micros: int) -> None:
    """Keep what is on its way into a channel."""
    _set(db, channel, "depositing_micros = ?", depositing_micros)


def bound(db: sqlite3.Connection, channel: bytes, node: bytes) -> None:
    """Keep which node is the other end."""
    _set(db, channel, "node = ?", node)


def check_voucher(channel: Channel) -> None:
    """Raise LedgerDamaged unless the last voucher of a channel is what its payer has signed."""
    if channel.signature:
        digest = voucher_digest(channel.id, channel.signed_micros, channel.chain, channel.hub)
        if not Verifier(channel.config.payer_authorizer).verify(digest, channel.signature):
            raise LedgerDamaged(f"the voucher of the channel {channel.id.hex()} is not what was signed")


def _set(db: sqlite3.Connection, channel: bytes, assignment: str, *values: object) -> None:
    if db.execute(f"UPDATE channels SET {assignment} WHERE id = ?", (*values, channel)).rowcount != 1:
        raise LedgerDamaged("an entry for a channel that is not there")


def _read(row: tuple[object, ...]) -> Channel:
    values = dict(zip(_COLUMNS, row, strict=True))
    config = ChannelConfig(**{name: values.pop(name) for name in _CONFIG})  # type: ignore[arg-type]
    return Channel(**values, config=config)  # type: ignore[arg-type]
