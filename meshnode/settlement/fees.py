"""What a transaction may cost: EIP-1559 fees of this moment, held below a bound that the owner has set.

Three prices make up the cost. The base fee is burnt, and can rise by an eighth a block; the priority fee goes to who
makes the block; on an OP chain the transaction is also written to the chain below, for a fee that its oracle tells. The
bound is in dollars, as people think, so it needs the price of the coin: a setting, since no chain can be asked for it.
All of it is whole numbers: wei, and micro-dollars rounded up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

from meshnode.errors import GasCapReached

WEI_PER_ETH = 10**18
BASE_FEE_ROOM = 2
"""Six full blocks in a row double the base fee: as much as a transaction waits through without a new price."""
LEAST_PRIORITY_WEI = 1_000_000
"""0.001 gwei: what OP chains ask where nobody pays more."""
MOST_PRIORITY_WEI = 2_000_000_000
GAS_ROOM_PERCENT = 125
"""Of what endpoints estimate: other transactions may come before and make a slot cold."""
MOST_GAS = 5_000_000
"""No call of this node needs as much: 25 claims with their settling take 650,000."""
RAISE_PERCENT = 113
"""Nodes take a replacement only for a tenth more; an eighth is the custom."""


@dataclass(frozen=True, slots=True)
class Fees:
    """What a transaction offers per gas: at most `most_wei` in all, of it `priority_wei` for the maker of the block."""

    most_wei: int
    priority_wei: int


@dataclass(frozen=True, slots=True)
class GasBounds:
    """What the owner allows: `most_micros` of dollars for one transaction, at `eth_micros` for one coin."""

    eth_micros: int
    most_micros: int


def micros(wei: int, eth_micros: int) -> int:
    """Dollars in micros, rounded up."""
    return -(-wei * eth_micros // WEI_PER_ETH)


def dollars(amount_micros: int) -> str:
    """An amount in words, to the micro."""
    whole, rest = divmod(amount_micros, 1_000_000)
    return f"${whole}.{f'{rest:06d}'.rstrip('0').ljust(2, '0')}"


def expected(base_fee_wei: int, priorities_wei: Sequence[int]) -> Fees:
    """Fees that are enough now, and while the base fee doubles."""
    paid = [fee for fee in priorities_wei if fee > 0]
    priority = min(max(median_low(paid) if paid else 0, LEAST_PRIORITY_WEI), MOST_PRIORITY_WEI)
    return Fees(BASE_FEE_ROOM * base_fee_wei + priority, priority)


def raised(before: Fees, now: Fees) -> Fees:
    """Fees that replace a transaction of the same nonce: what is expected now, and enough more than before."""
    return Fees(
        max(now.most_wei, before.most_wei * RAISE_PERCENT // 100 + 1),
        max(now.priority_wei, before.priority_wei * RAISE_PERCENT // 100 + 1),
    )


def bounded(fees: Fees, base_fee_wei: int, *, gas: int, l1_wei: int, bounds: GasBounds) -> Fees:
    """The fees, lowered to what the bound allows as long as that is enough at this moment.

    Raises GasCapReached where the transaction would cost more than the bound now.
    """
    left = bounds.most_micros * WEI_PER_ETH // bounds.eth_micros - l1_wei
    allowed = left // gas
    needed = base_fee_wei + fees.priority_wei
    if allowed < needed:
        cost = dollars(micros(gas * needed + l1_wei, bounds.eth_micros))
        raise GasCapReached(
            f"it would cost {cost} now, and one transaction may cost {dollars(bounds.most_micros)}",
            fix="wait until fees are lower; it is tried again by itself where it has to be made",
        )
    return Fees(min(fees.most_wei, allowed), fees.priority_wei)


def gas_limit(estimate: int) -> int:
    """What a transaction may use: the estimate and some room. Raises ValueError for an estimate that cannot be true."""
    limit = estimate * GAS_ROOM_PERCENT // 100
    if not 21_000 <= limit <= MOST_GAS:
        raise ValueError(f"an estimate of {estimate} gas")
    return limit
