"""What transactions may cost in a month: the cap for gas, beside the one for tokens.

Theory of operation. A transaction is promised at its highest possible fee before it is signed, and counted with its
real one when it is mined, in that month. What is promised stays so over a restart: a transaction that was sent may be
mined at any time. Whoever saves money from a lost key must not be stopped by a cap: that is `forced`, and counted.

Rules of this file: pure; amounts are micros of dollars; a purpose is text that names one transaction and its
replacements. As in core/ledger.py, entries are written before anything is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from meshnode.core.pay_policy import Refused
from meshnode.core.prices import check_micros


@dataclass(frozen=True, slots=True)
class GasReserved:
    """A transaction may cost so much."""

    purpose: str
    most_micros: int


@dataclass(frozen=True, slots=True)
class GasPaid:
    """A transaction has cost so much; the month has `month_micros` with it, and the promise is gone."""

    purpose: str
    micros: int
    month: str
    month_micros: int


@dataclass(frozen=True, slots=True)
class GasReleased:
    """A transaction will never be mined."""

    purpose: str


class GasLedger:
    """Gas of all transactions of this node. `cap_micros` may be changed at any time."""

    def __init__(
        self, cap_micros: int, spent: Mapping[str, int] | None = None, promised: Mapping[str, int] | None = None
    ) -> None:
        self.cap_micros = cap_micros
        self._spent = dict(spent or {})
        self._promised = dict(promised or {})

    def reserve(self, purpose: str, most_micros: int, month: str, forced: bool = False) -> GasReserved:
        """Promise a fee. Asked again for the same purpose (a replacement pays more), the higher one stands.

        Raises Refused (gas_cap_reached) unless `forced`.
        """
        check_micros("most_micros", most_micros)
        before = self._promised.get(purpose, 0)
        wanted = max(0, most_micros - before)
        committed = self.committed(month)
        if not forced and committed + self.promised + wanted > self.cap_micros:
            figures = {"cap": self.cap_micros, "committed": committed, "reserved": self.promised, "wanted": wanted}
            raise Refused("gas_cap_reached", figures)
        self._promised[purpose] = before + wanted
        return GasReserved(purpose, before + wanted)

    def paid(self, purpose: str, micros: int, month: str) -> GasPaid:
        """A transaction was mined (and so was paid for, even if it failed)."""
        check_micros("micros", micros)
        self._promised.pop(purpose, None)
        self._spent[month] = self._spent.get(month, 0) + micros
        return GasPaid(purpose, micros, month, self._spent[month])

    def release(self, purpose: str) -> GasReleased:
        """A transaction was given up before it was sent, or its place was taken by another."""
        self._promised.pop(purpose, None)
        return GasReleased(purpose)

    @property
    def promised(self) -> int:
        """The fees of all transactions that may still be mined, at most."""
        return sum(self._promised.values())

    def committed(self, month: str) -> int:
        """What was paid in a month, or in a later one by a clock that was ahead."""
        return sum(micros for other, micros in self._spent.items() if other >= month)
