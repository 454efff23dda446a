"""The tables of the journal of money, and how one of an older version becomes one of this version.

    channels      a payment channel: between whom, what the chain says of it, what was signed last
    requests      a request that is paid through a channel: what it may cost, what it cost, its receipt
    spent         what was signed, by UTC day; the cap of a month is held against it
    events        what the audit log has yet to be told
    meta          single values, by name

Rules that the file itself holds, whatever program writes: an amount is an integer of micro-USDC from 0 below 2**53, an
amount that was signed never falls, no payer is charged more than it signed. Every change of these lines is a new step
in STEPS; a step that was released is never edited. What is sent to the chain has tables of its own beside these
(store_transactions.py).
"""

from __future__ import annotations

import sqlite3

from meshnode.errors import LedgerDamaged

APPLICATION_ID = 0x6D6E6D79
"""Says in the head of the file that it is this kind of database ("mnmy")."""

_FIRST = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;

CREATE TABLE channels (
    id BLOB PRIMARY KEY CHECK (length(id) = 32),
    role TEXT NOT NULL CHECK (role IN ('payer', 'receiver')),
    node BLOB NOT NULL CHECK (length(node) = 32),
    chain INTEGER NOT NULL CHECK (chain > 0),
    hub BLOB NOT NULL CHECK (length(hub) = 20),
    payer BLOB NOT NULL CHECK (length(payer) = 20),
    payer_authorizer BLOB NOT NULL CHECK (length(payer_authorizer) = 20),
    receiver BLOB NOT NULL CHECK (length(receiver) = 20),
    receiver_authorizer BLOB NOT NULL CHECK (length(receiver_authorizer) = 20),
    token BLOB NOT NULL CHECK (length(token) = 20),
    withdraw_delay_s INTEGER NOT NULL CHECK (withdraw_delay_s > 0),
    salt BLOB NOT NULL CHECK (length(salt) = 32),
    state TEXT NOT NULL CHECK (state IN ('opening', 'open', 'withdrawing', 'closing', 'closed')),
    balance_micros INTEGER NOT NULL CHECK (balance_micros BETWEEN 0 AND (1 << 53) - 1),
    usable_micros INTEGER NOT NULL CHECK (usable_micros BETWEEN 0 AND (1 << 53) - 1),
    depositing_micros INTEGER NOT NULL CHECK (depositing_micros BETWEEN 0 AND (1 << 53) - 1),
    claimed_micros INTEGER NOT NULL CHECK (claimed_micros BETWEEN 0 AND (1 << 53) - 1),
    signed_micros INTEGER NOT NULL CHECK (signed_micros BETWEEN 0 AND (1 << 53) - 1),
    charged_micros INTEGER NOT NULL CHECK (charged_micros BETWEEN 0 AND (1 << 53) - 1),
    unsure_micros INTEGER NOT NULL CHECK (unsure_micros BETWEEN 0 AND (1 << 53) - 1),
    written_off_micros INTEGER NOT NULL CHECK (written_off_micros BETWEEN 0 AND (1 << 53) - 1),
    signature BLOB NOT NULL CHECK (length(signature) IN (0, 65)),
    opened_at REAL NOT NULL,
    checked_at REAL NOT NULL,
    withdrawable_at REAL,
    CHECK (role = 'receiver' OR charged_micros <= signed_micros)
) STRICT, WITHOUT ROWID;
CREATE INDEX channels_of_node ON channels (node);
CREATE TRIGGER a_signed_amount_never_falls BEFORE UPDATE OF signed_micros ON channels
    WHEN NEW.signed_micros < OLD.signed_micros
    BEGIN SELECT RAISE(ABORT, 'a signed amount never falls'); END;

CREATE TABLE requests (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    channel BLOB NOT NULL REFERENCES channels (id),
    id TEXT NOT NULL,
    model TEXT NOT NULL,
    price_in INTEGER NOT NULL CHECK (price_in >= 0),
    price_out INTEGER NOT NULL CHECK (price_out >= 0),
    most_in INTEGER NOT NULL CHECK (most_in >= 0),
    most_out INTEGER NOT NULL CHECK (most_out >= 0),
    unpaid_tokens INTEGER NOT NULL CHECK (unpaid_tokens >= 0),
    tokens_in INTEGER NOT NULL CHECK (tokens_in BETWEEN 0 AND most_in),
    tokens_out INTEGER NOT NULL CHECK (tokens_out BETWEEN 0 AND most_out),
    charged_micros INTEGER NOT NULL CHECK (charged_micros BETWEEN 0 AND (1 << 53) - 1),
    state TEXT NOT NULL CHECK (state IN ('running', 'ended', 'interrupted')),
    finish TEXT NOT NULL,
    receipt BLOB NOT NULL,
    started_at REAL NOT NULL,
    ended_at REAL NOT NULL,
    UNIQUE (channel, id)
) STRICT;
CREATE INDEX requests_running ON requests (channel) WHERE state = 'running';
CREATE INDEX requests_ended ON requests (ended_at);

CREATE TABLE spent (
    day TEXT NOT NULL CHECK (length(day) = 10),
    channel BLOB NOT NULL REFERENCES channels (id),
    micros INTEGER NOT NULL CHECK (micros BETWEEN 0 AND (1 << 53) - 1),
    PRIMARY KEY (day, channel)
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    kind TEXT NOT NULL,
    facts TEXT NOT NULL
) STRICT;
"""

STEPS = (_FIRST,)
"""Step k makes a file of version k one of version k + 1."""
VERSION = len(STEPS)


def prepare(db: sqlite3.Connection) -> None:
    """Check a file that was just opened, make its tables, or bring it to this version, all or nothing.

    Raises LedgerDamaged for what is no journal, has been changed by something else, or comes from a newer meshnode; the
    file stays as it is then. Raises sqlite3.Error for a disk that fails.
    """
    version = _number(db, "user_version")
    is_new = version == 0 and _number(db, "schema_version") == 0
    if not is_new:
        if _number(db, "application_id") != APPLICATION_ID:
            raise LedgerDamaged("it is a database of another program")
        if version > VERSION:
            fix = "use the newer meshnode: this one would not understand all that stands there"
            raise LedgerDamaged(f"it was written by a newer meshnode (version {version}, here {VERSION})", fix=fix)
        found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise LedgerDamaged(str(found).splitlines()[-1][:200])
    if version == VERSION:
        return
    marks = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION};"
    db.executescript(f"BEGIN IMMEDIATE; {''.join(STEPS[version:])} {marks} COMMIT;")


def _number(db: sqlite3.Connection, pragma: str) -> int:
    return int(db.execute(f"PRAGMA {pragma}").fetchone()[0])
