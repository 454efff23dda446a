"""How far ahead an answer is paid for: the window between tokens received and tokens vouched for.

Theory of operation. The payer signs a higher voucher every N tokens, for W tokens more than it has received; the
provider lets C tokens run unpaid. W is what the payer can lose, C what the provider can. An answer never stands still
if W + C covers what is generated while the voucher is on its way, N + rate * RTT, with a quarter on top for jitter.

Rules of this file: pure; counts are tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

EVERY_TOKENS = 32
AHEAD_TOKENS = 64
MOST_AHEAD_TOKENS = 256
MOST_UNPAID_TOKENS = 64
MARGIN = 1.25
"""Below this factor a jitter of 20 % makes answers stand still."""


@dataclass(frozen=True, slots=True)
class Window:
    """N: tokens from one voucher to the next; W: tokens paid ahead; C: tokens that may run unpaid.

    Raises ValueError unless 1 <= N <= W <= MOST_AHEAD_TOKENS and 0 <= C <= MOST_UNPAID_TOKENS.
    """

    every: int = EVERY_TOKENS
    ahead: int = AHEAD_TOKENS
    unpaid: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.every <= self.ahead <= MOST_AHEAD_TOKENS or not 0 <= self.unpaid <= MOST_UNPAID_TOKENS:
            raise ValueError(f"a window of {self.every}, {self.ahead} and {self.unpaid} tokens")


def window_for(rate_tokens_s: float, rtt_s: float, unpaid: int = 0) -> Window:
    """The window that keeps an answer of this speed going over a path of this delay, within the bounds.

    What cannot have been measured (negative, infinite, not a number) gives the smallest window.
    """
    on_the_way = max(0.0, rate_tokens_s) * max(0.0, rtt_s)
    if not math.isfinite(on_the_way):
        return Window(EVERY_TOKENS, AHEAD_TOKENS, unpaid)
    needed = math.ceil(MARGIN * (EVERY_TOKENS + on_the_way)) - unpaid
    return Window(EVERY_TOKENS, min(max(needed, AHEAD_TOKENS), MOST_AHEAD_TOKENS), unpaid)
