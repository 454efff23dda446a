"""What can be read off the payer's ledger: what is spent, promised, locked, and left.

Rules of this file: pure; nothing here changes anything. Amounts are micros, months are text ("2026-11").
"""

from __future__ import annotations

import re

from meshnode.core.ledger_entries import Line, Running, Standing, State
from meshnode.core.pay_policy import Policy
from meshnode.core.prices import check_micros

MONTH = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])", re.ASCII)
NEAR = (8, 10)
"""At this part of the cap, people are warned."""


class Figures:
    """Channels, running requests and months, as core/ledger.py keeps them. Raises ValueError when `state` contradicts
    itself.
    """

    def __init__(self, policy: Policy, state: State) -> None:
        self.policy = policy
        self._lines = dict(state.lines)
        self._running = dict(state.running)
        self._spent = dict(state.spent)
        for month, micros in self._spent.items():
            check_month(month)
            check_micros(month, micros)
        for request, running in self._running.items():
            if running.request != request or running.channel not in self._lines:
                raise ValueError(f"the running request {request!r} belongs to no channel of this ledger")

    def line(self, channel: bytes) -> Line | None:
        """One channel."""
        return self._lines.get(channel)

    def running(self, request: str) -> Running | None:
        """One request that is not over."""
        return self._running.get(request)

    def running_on(self, channel: bytes) -> list[Running]:
        """The requests of a channel that are not over."""
        return [running for running in self._running.values() if running.channel == channel]

    def headroom(self, channel: bytes) -> int:
        """What is signed on a channel and covers nothing."""
        line = self._line(channel)
        return max(0, line.signed_micros - line.settled_micros - self._covered(channel))

    def room(self, channel: bytes, month: str) -> int:
        """The most that a new request on a channel may cost by the cap and the deposit: to choose its `most_out`."""
        line = self._line(channel)
        promised = line.settled_micros + self._most(channel)
        in_month = self.policy.month_micros - self.committed(month) - self.reserved()
        by_cap = in_month + max(0, line.signed_micros - promised) if in_month >= 0 else 0
        return max(0, min(by_cap, line.balance_micros - promised))

    def reserved(self, channel: bytes | None = None) -> int:
        """The most that can still be signed for what runs: on a channel, or on all."""
        if channel is not None:
            line = self._line(channel)
            return max(0, line.settled_micros + self._most(channel) - line.signed_micros)
        most = dict.fromkeys(self._lines, 0)
        for running in self._running.values():
            most[running.channel] += running.most_micros
        return sum(max(0, line.settled_micros + most[each] - line.signed_micros) for each, line in self._lines.items())

    @property
    def locked(self) -> int:
        """What lies in channels, or is on its way there, and is not signed away."""
        return sum(line.locked_micros for line in self._lines.values())

    def committed(self, month: str) -> int:
        """What counts as spent in a month: what was signed in it or, by a clock that was ahead, in a later one."""
        check_month(month)
        return sum(micros for other, micros in self._spent.items() if other >= month)

    def standing(self, month: str) -> Standing:
        """The month in figures."""
        committed, cap = self.committed(month), self.policy.month_micros
        is_near = committed * NEAR[1] >= cap * NEAR[0]
        return Standing(cap, committed, self.reserved(), self.locked, cap > 0 and is_near, dict(self._spent))

    def state(self) -> State:
        """All of it, as it is now."""
        return State(dict(self._lines), dict(self._running), dict(self._spent))

    def _covered(self, channel: bytes) -> int:
        return sum(running.covered_micros for running in self.running_on(channel))

    def _received(self, channel: bytes) -> int:
        return sum(running.received_micros for running in self.running_on(channel))

    def _most(self, channel: bytes) -> int:
        return sum(running.most_micros for running in self.running_on(channel))

    def _line(self, channel: bytes) -> Line:
        if channel not in self._lines:
            raise ValueError(f"no channel {channel.hex()}")
        return self._lines[channel]


def check_month(month: str) -> None:
    """Raise ValueError unless it is a month."""
    if not MONTH.fullmatch(month):
        raise ValueError(f"{month!r} is no month such as 2026-11")
