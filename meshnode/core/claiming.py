"""When a provider claims what it has earned, and of which channels at once.

Theory of operation. A claim of k channels in one transaction costs 21,057 + 84,018 / k gas a channel (measured on the
real token), so claims wait for company and for amounts that make the fee small: a hundred times the channel's share.
They do not wait for ever: a payer can take its deposit back after the withdraw delay, so a channel is claimed at a
quarter of that, at a bound on the amount, when its payer begins to withdraw, and before this node goes away. What
costs more than it brings is never claimed.

One drained channel makes the whole transaction fail. So a batch is simulated first; when that fails, whoever the chain
shows as drained is dropped, and where it shows nobody, the halves are tried on their own.

Rules of this file: pure; amounts are micros, `_s` are seconds of one clock, which the caller chooses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

MOST_IN_BATCH = 25
"""More save hardly any gas."""
GAS_A_CHANNEL = 21_057
GAS_A_BATCH = 84_018
WEI_PER_ETH = 10**18
PART_OF_DELAY = 4
SOON_MICROS = 1_000_000
SAFE_MICROS = 100_000_000

Reason = Literal["withdraw", "shutdown", "amount", "age", "value"]
URGENCY: tuple[Reason, ...] = ("withdraw", "shutdown", "amount", "age", "value")
BlockTag = Literal["latest", "safe", "finalized"]


@dataclass(frozen=True, slots=True)
class Fee:
    """What gas costs now: the fee, the dollars of one ETH in micros, and the data fee of the chain below per claim."""

    wei_per_gas: int
    eth_micros: int
    data_wei: int = 0


@dataclass(frozen=True, slots=True)
class ClaimPolicy:
    """How much may be unclaimed in a channel, and how many times its share of the fee makes a claim worth while."""

    most_unclaimed_micros: int = 500_000
    value_ratio: int = 100


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """A channel that could be claimed up to `target_micros`, of which `claimed_micros` were.

    `since_s` is when the oldest of the difference was earned; `deadline_s` when its payer can take everything, if it
    has begun to withdraw.
    """

    channel: bytes
    target_micros: int
    claimed_micros: int
    since_s: float
    withdraw_delay_s: float
    deadline_s: float | None = None

    @property
    def claimable_micros(self) -> int:
        """What a claim brings."""
        return max(0, self.target_micros - self.claimed_micros)


@dataclass(frozen=True, slots=True)
class Claim:
    """One channel of a batch, claimed up to `target_micros`, and why now."""

    channel: bytes
    target_micros: int
    reason: Reason


Batch = tuple[Claim, ...]
"""What goes into one transaction, the most urgent first; MOST_IN_BATCH at most."""


@dataclass(frozen=True, slots=True)
class Stand:
    """A channel on the chain, now."""

    balance_micros: int
    claimed_micros: int


def gas_micros(gas: int, fee: Fee) -> int:
    """The micros of so much gas, rounded up."""
    return -(-gas * fee.wei_per_gas * fee.eth_micros // WEI_PER_ETH)


def share_micros(channels: int, fee: Fee) -> int:
    """What each of so many channels in a batch pays of its fee, rounded up."""
    wei = (GAS_A_CHANNEL * channels + GAS_A_BATCH) * fee.wei_per_gas + fee.data_wei * channels
    return -(-wei * fee.eth_micros // (WEI_PER_ETH * channels))


def plan(
    items: Iterable[Unclaimed], fee: Fee, now_s: float, policy: ClaimPolicy, is_shutdown: bool = False
) -> tuple[Batch, ...]:
    """The batches to claim now, the most urgent first; none when waiting is better."""
    left = [(item, _reason(item, now_s, policy, is_shutdown)) for item in items if item.claimable_micros]
    left.sort(key=lambda each: _urgency(*each))
    batches: list[Batch] = []
    while chosen := _worth_while(left, fee, policy.value_ratio):
        # Full batches first; what remains is weighed again, as a smaller batch costs each of its channels more.
        taken = chosen[: max(len(chosen) // MOST_IN_BATCH * MOST_IN_BATCH, min(len(chosen), MOST_IN_BATCH))]
        claims = [Claim(item.channel, item.target_micros, reason) for item, reason in taken]
        batches += [tuple(claims[at : at + MOST_IN_BATCH]) for at in range(0, len(claims), MOST_IN_BATCH)]
        done = {claim.channel for claim in claims}
        left = [each for each in left if each[0].channel not in done]
    return tuple(batches)


def without_drained(batch: Batch, stands: Mapping[bytes, Stand]) -> tuple[Batch, Batch]:
    """A batch whose simulation failed, without the channels that cannot pay or were claimed already; and those.

    A channel that the chain was not asked about stays.
    """
    kept = tuple(
        claim
        for claim in batch
        if (stand := stands.get(claim.channel)) is None
        or stand.claimed_micros < claim.target_micros <= stand.balance_micros
    )
    return kept, tuple(claim for claim in batch if claim not in kept)


def halves(batch: Batch) -> tuple[Batch, ...]:
    """What to simulate when a batch fails and nobody in it is drained. A single claim has no halves: it is dropped."""
    middle = len(batch) // 2
    return (batch[:middle], batch[middle:]) if middle else ()


def block_tag_for(micros: int) -> BlockTag:
    """How settled a deposit must be before it is relied on: up to a dollar when it is mined, then when the chain calls
    it safe, above a hundred dollars when it is final.
    """
    if micros <= SOON_MICROS:
        return "latest"
    return "safe" if micros <= SAFE_MICROS else "finalized"


def _reason(item: Unclaimed, now_s: float, policy: ClaimPolicy, is_shutdown: bool) -> Reason:
    if item.deadline_s is not None:
        return "withdraw"
    if is_shutdown:
        return "shutdown"
    if item.claimable_micros >= policy.most_unclaimed_micros:
        return "amount"
    if (now_s - item.since_s) * PART_OF_DELAY >= item.withdraw_delay_s:
        return "age"
    return "value"


def _urgency(item: Unclaimed, reason: Reason) -> tuple[int, float, int]:
    when = item.since_s if item.deadline_s is None else item.deadline_s
    return URGENCY.index(reason), when if reason != "value" else 0.0, -item.claimable_micros


def _worth_while(items: list[tuple[Unclaimed, Reason]], fee: Fee, value_ratio: int) -> list[tuple[Unclaimed, Reason]]:
    """The most items of which each brings enough for its share of the fee in a batch of that many, in their order.

    More items make the share smaller, and each further one is worth less: the largest number that holds is taken.
    """

    def worth(each: tuple[Unclaimed, Reason]) -> int:
        item, reason = each
        return item.claimable_micros * (1 if reason == "value" else value_ratio)

    ranked = sorted(items, key=worth, reverse=True)
    for count in range(len(ranked), 0, -1):
        if worth(ranked[count - 1]) >= value_ratio * share_micros(min(count, MOST_IN_BATCH), fee):
            chosen = {item.channel for item, _ in ranked[:count]}
            return [each for each in items if each[0].channel in chosen]
    return []
