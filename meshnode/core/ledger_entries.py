"""What the payer's ledger consists of, and what it asks to have written.

An entry carries the values after the step, never differences that somebody would have to add up: writing it twice
changes nothing, and the store needs no arithmetic. The difference stands beside it, for people who read the journal.

Rules of this file: pure values; amounts are micros, months are text ("2026-11"), a channel goes by its 32 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from meshnode.core.prices import MOST_MICROS, Price, charge, check_micros

Why = Literal["opened", "closed", "funded", "depositing", "deposit ended", "adopted"]
CHANNEL_BYTES = 32
MOST_TOKENS = 2**31
"""No request is larger, in or out."""


@dataclass(frozen=True, slots=True)
class Line:
    """One channel, as the payer keeps it. Raises ValueError for amounts that cannot be.

    `signed_micros` is the highest cumulative that was ever signed; it never falls, and all of it counts as spent.
    `settled_micros` is what the ended requests cost, to our knowledge; those that ended without a receipt may have cost
    up to `unsure_micros` more. What is signed above what is settled and what running requests are covered with is
    headroom. `balance_micros` is the usable deposit, all of it that ever came, and `claimed_micros` what the provider
    has claimed of it on the chain; `depositing_micros` is on its way there.
    """

    channel: bytes
    signed_micros: int = 0
    settled_micros: int = 0
    balance_micros: int = 0
    claimed_micros: int = 0
    depositing_micros: int = 0
    unsure_micros: int = 0
    is_open: bool = True

    def __post_init__(self) -> None:
        if len(self.channel) != CHANNEL_BYTES:
            raise ValueError(f"a channel id of {len(self.channel)} bytes")
        for name in ("signed", "settled", "balance", "claimed", "depositing", "unsure"):
            check_micros(f"{name}_micros", getattr(self, f"{name}_micros"))

    @property
    def locked_micros(self) -> int:
        """What lies in the channel and is not signed away, with what is on its way there."""
        return max(0, self.balance_micros + self.depositing_micros - self.signed_micros)


@dataclass(frozen=True, slots=True)
class Running:
    """A request that may still have to be paid. Raises ValueError for sizes that cannot be.

    At most `most_in` tokens of prompt and `most_out` of answer are ever paid for it. `tokens_in` is the prompt as far
    as it was claimed, `received_out` what came of the answer, `covered_out` what of it the channel's voucher covers.
    """

    request: str
    channel: bytes
    model: str
    price: Price
    most_in: int
    most_out: int
    tokens_in: int = 0
    received_out: int = 0
    covered_out: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.tokens_in <= self.most_in <= MOST_TOKENS and 0 <= self.received_out <= self.most_out):
            raise ValueError(
                f"{self.tokens_in} of {self.most_in} tokens in, {self.received_out} of {self.most_out} out"
            )
        if not 0 <= self.covered_out <= self.most_out:
            raise ValueError(f"{self.covered_out} tokens covered of {self.most_out}")
        if not 1 <= self.most_out <= MOST_TOKENS or self.most_micros > MOST_MICROS:
            raise ValueError(f"a request for {self.most_in} tokens in and {self.most_out} out at {self.price}")

    @property
    def most_micros(self) -> int:
        """What it costs at most."""
        return charge(self.price, self.most_in, self.most_out)

    @property
    def received_micros(self) -> int:
        """What came of it costs."""
        return charge(self.price, self.tokens_in, self.received_out)

    @property
    def covered_micros(self) -> int:
        """What of the channel's voucher is for it."""
        return charge(self.price, self.tokens_in, self.covered_out)


@dataclass(frozen=True, slots=True)
class State:
    """All that a ledger knows: to be stored, and to start from again. `spent` has the signed micros of each month."""

    lines: Mapping[bytes, Line] = field(default_factory=dict)
    running: Mapping[str, Running] = field(default_factory=dict)
    spent: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Standing:
    """The month in figures: the cap, what is spent and promised of it, and what lies in channels."""

    cap: int
    committed: int
    reserved: int
    locked: int
    is_near: bool
    months: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Reserved:
    """A request may cost so much. To be written before its provider is asked."""

    running: Running


@dataclass(frozen=True, slots=True)
class Signed:
    """Sign `line.signed_micros` for the channel. To be written, with the signature, before the voucher is sent.

    `delta_micros` of it are new; they count to `month`, which has `month_micros` with them. `running` is the request
    that asked for it; None when it is for requests that have ended.
    """

    line: Line
    month: str
    month_micros: int
    delta_micros: int
    running: Running | None


@dataclass(frozen=True, slots=True)
class Ended:
    """A request is over: its reservation goes. `charged_micros` is None when no receipt said what it cost."""

    line: Line
    running: Running
    charged_micros: int | None


@dataclass(frozen=True, slots=True)
class Changed:
    """A channel is otherwise than it was."""

    line: Line
    why: Why


@dataclass(frozen=True, slots=True)
class Proven:
    """Somebody showed a signature of ours that this ledger did not know; it counts from now on, in `month`."""

    line: Line
    month: str
    month_micros: int
    delta_micros: int


Entry = Reserved | Signed | Ended | Changed | Proven
