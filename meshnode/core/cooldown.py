"""A host that failed is left alone for a while: 1 s, then 2, 4 and so on up to 30 s, with one trial after each.

The idea is Envoy's outlier ejection. It only says who is cooling down; that never all hosts are left out is the
router's rule. A node that is gone for good leaves by the mesh's own failure detection; this covers the seconds before.

Rules of this file: pure; failures of requests that were already under way when the pause began count as the same
failure; the trial is one request at a time, and its outcome ends the pause or doubles it.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
FORGOTTEN_AFTER_S = 120.0
"""After so long without another failure, the next one is a first one again."""
RECORDS = 1024


@dataclass(frozen=True, slots=True)
class Cooling:
    """Why a host is to be left alone. `remaining_s` is 0 when only a trial under way keeps others off."""

    remaining_s: float
    failures: int

    def __str__(self) -> str:
        """For the table of candidates."""
        times = f"{self.failures} failure{'s' * (self.failures > 1)}"
        return f"{times}, left alone for {self.remaining_s:.1f} s" if self.remaining_s else f"{times}, a trial runs"


@dataclass(slots=True)
class _Record:
    failures: int
    until: float
    trials: int = 0


class Cooldowns:
    """Pauses of hosts, each for one model of one node."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, str], _Record] = {}

    def __len__(self) -> int:
        """How many hosts have a failure on record."""
        return len(self._records)

    def failed(self, node: str, model: str, now: float) -> None:
        """A request that was sent there failed."""
        record = self._records.pop((node, model), None)
        if record is None or now > record.until + FORGOTTEN_AFTER_S:
            record = _Record(0, now)
        if now >= record.until or record.trials:
            record.failures += 1
            # The exponent is bounded as well, for it is computed before the minimum is taken.
            pause_s = FIRST_PAUSE_S * 2.0 ** min(record.failures - 1, 16)
            record.until = now + min(LONGEST_PAUSE_S, pause_s)
            record.trials = 0
        self._records[node, model] = record  # again at the end: the order is that of the last failures
        if len(self._records) > RECORDS:
            del self._records[next(iter(self._records))]

    def succeeded(self, node: str, model: str) -> None:
        """It answers: nothing is held against it any more."""
        self._records.pop((node, model), None)

    def started(self, node: str, model: str) -> None:
        """A request is sent there; where a failure is on record, it is the trial."""
        if record := self._records.get((node, model)):
            record.trials += 1

    def ended(self, node: str, model: str) -> None:
        """A request that was sent there is over, whatever came of it."""
        if record := self._records.get((node, model)):
            record.trials = max(0, record.trials - 1)

    def cooling(self, node: str, model: str, now: float) -> Cooling | None:
        """None when the host may be used."""
        record = self._records.get((node, model)) if self._records else None
        if record is None or (now >= record.until and not record.trials):
            return None
        return Cooling(max(0.0, record.until - now), record.failures)
