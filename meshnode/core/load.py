"""How many requests a host has now: what it said of itself some seconds ago, and what was sent there since.

Gossip lags by seconds. A gateway that believed it would send a burst of requests all to the host that was idle when it
last spoke; one that added its own requests to every report would count those twice that the report has already, and
one whose requests are over would avoid the host until it speaks again. So whenever a report changes, the most requests
of our own in the seconds before are taken to be in it, and what others do there is the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

LAG_S = 2.0
"""So old a report may well be when it comes: the time between two of a host, and the way."""
BELIEVED_AFTER_S = 10.0
"""A host reports a change within seconds: what is still the same after that time is true as it stands."""
RECORDS = 4096


@dataclass(slots=True)
class _Account:
    """`peak` is the most of ours in the present interval of LAG_S, `peak_before` in the one before."""

    ours: int = 0
    reported: int = -1
    ours_in_it: int = 0
    at: float = 0.0
    peak: int = 0
    peak_before: int = 0
    turned_at: float = 0.0

    def peaks(self, now: float) -> int:
        """The most of ours in the last one or two intervals."""
        age_s = now - self.turned_at
        if age_s > LAG_S:
            self.peak_before = self.peak if age_s <= 2 * LAG_S else self.ours
            self.peak = self.ours
            self.turned_at = now
        return max(self.peak, self.peak_before)


class Load:
    """Our own requests under way by node and model, and the last report of each."""

    def __init__(self) -> None:
        self._accounts: dict[tuple[str, str], _Account] = {}

    def __len__(self) -> int:
        """How many hosts are accounted for."""
        return len(self._accounts)

    def started(self, node: str, model: str) -> None:
        """A request of ours was sent there."""
        account = self._account(node, model)
        account.ours += 1
        account.peak = max(account.peak, account.ours)

    def ended(self, node: str, model: str) -> None:
        """A request of ours is over. Raises ValueError when none was under way."""
        account = self._account(node, model)
        if account.ours < 1:
            raise ValueError(f"a request ended at {node} that was never started")
        account.ours -= 1

    def ours(self, node: str, model: str) -> int:
        """How many requests of ours are under way there."""
        account = self._accounts.get((node, model))
        return account.ours if account else 0

    def present(self, node: str, model: str, reported: int, now: float) -> int:
        """The requests that run or wait there, when the host's last report says `reported`; never less than ours."""
        account = self._account(node, model)
        peak = account.peaks(now)
        if reported != account.reported:
            account.reported, account.ours_in_it, account.at = reported, peak, now
        elif now - account.at > BELIEVED_AFTER_S:
            account.ours_in_it, account.at = account.ours, now
        return max(account.ours, reported + account.ours - account.ours_in_it)

    def _account(self, node: str, model: str) -> _Account:
        account = self._accounts.get((node, model))
        if account is None:
            if len(self._accounts) >= RECORDS:
                self._accounts = {key: kept for key, kept in self._accounts.items() if kept.ours}
            account = self._accounts[node, model] = _Account()
        return account
