"""What the pure rooms know of a `random.Random`: it is handed in, so that a seed repeats every decision."""

from __future__ import annotations

from typing import Protocol


class Randomness(Protocol):
    """A source of chance; `random.Random` is one."""

    def random(self) -> float:
        """At least 0 and less than 1."""
        ...
