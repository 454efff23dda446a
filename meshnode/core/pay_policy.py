"""What a person allows this node to spend, and how a refusal to spend says so, with every figure.

Theory of operation. Nothing is spent unless the mode says so, a ceiling for the price is set, and the month's cap
leaves room; without a ceiling nothing is paid at all. A ceiling for one model stands in place of the general one, as
somebody who names a model means that model. The cap counts what was signed (core/ledger.py) and what is promised.

Rules of this file: pure; a policy never changes by anything that a peer, a page or a program sends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from meshnode.core.prices import Price, check_micros, usd

Mode = Literal["off", "auto"]
RefusalCode = Literal[
    "pay_off",
    "no_pay",
    "price_above_ceiling",
    "monthly_cap_reached",
    "gas_cap_reached",
    "prepay_too_large",
    "channel_exhausted",
    "no_channel",
    "deposit_too_large",
    "over_count",
    "cum_mismatch",
    "insufficient_balance",
]
SENTENCES: Mapping[RefusalCode, str] = MappingProxyType(
    {
        "pay_off": "paying is off",
        "no_pay": "paying is switched off for this node by MESHNODE_NO_PAY",
        "price_above_ceiling": "a million tokens cost {price_in} in and {price_out} out, "
        "the ceiling is {ceiling_in} in and {ceiling_out} out",
        "monthly_cap_reached": "the cap is {cap} a month: {committed} are spent, {reserved} are promised, "
        "and {wanted} more are wanted",
        "gas_cap_reached": "the cap for gas is {cap} a month: {committed} are spent, {reserved} are promised, "
        "and {wanted} more are wanted",
        "prepay_too_large": "{wanted} would be paid before the first token, the most is {prepay}",
        "channel_exhausted": "the channel holds {balance}, of which {signed} are signed away and {reserved} are "
        "promised; {wanted} more are wanted, {short} are missing",
        "no_channel": "there is no open channel to this provider",
        "deposit_too_large": "{wanted} more beside the {locked} in this channel is above the {most} a channel may hold",
        "over_count": "{claimed} are claimed, {most} are the most that can be owed",
        "cum_mismatch": "the provider states that {stated} were charged; by our record it is {settled}. "
        "It holds a voucher of {vouched}, and {signed} were signed",
        "insufficient_balance": "a voucher of {wanted} on a channel that holds {balance}",
    }
)
COUNTS: frozenset[RefusalCode] = frozenset({"over_count"})
"""Refusals whose figures may be tokens, and are shown as bare numbers."""


class Refused(Exception):
    """Money stays where it is. `figures` are micros (tokens or micros for over_count), named as in SENTENCES."""

    def __init__(self, code: RefusalCode, figures: Mapping[str, int] | None = None) -> None:
        self.code: RefusalCode = code
        self.figures: Mapping[str, int] = MappingProxyType(dict(figures or {}))
        words = {name: str(figure) if code in COUNTS else usd(figure) for name, figure in self.figures.items()}
        super().__init__(SENTENCES[code].format(**words))


@dataclass(frozen=True, slots=True)
class Policy:
    """What may be spent; all amounts are micros. Off, without a ceiling and with a cap of zero unless a person says
    otherwise. `prepay_micros` bounds what is at risk in one request: what is signed and not yet delivered.

    `no_pay` is the kill switch of the environment. Raises ValueError for what makes no sense.
    """

    mode: Mode = "off"
    ceiling: Price | None = None
    model_ceilings: Mapping[str, Price] = field(default_factory=dict)
    month_micros: int = 0
    deposit_micros: int = 500_000
    most_deposit_micros: int = 2_000_000
    gas_month_micros: int = 1_000_000
    prepay_micros: int = 100_000
    no_pay: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ("off", "auto"):
            raise ValueError(f"the mode is off or auto, not {self.mode!r}")
        for name in ("month", "deposit", "most_deposit", "gas_month", "prepay"):
            check_micros(f"{name}_micros", getattr(self, f"{name}_micros"))

    def ceiling_for(self, model: str) -> Price | None:
        """The highest price for this model; None where none was ever set."""
        return self.model_ceilings.get(model, self.ceiling)

    def switched_off(self) -> Refused | None:
        """Why nothing at all is paid, if that is so."""
        if self.no_pay:
            return Refused("no_pay")
        return Refused("pay_off") if self.mode == "off" else None

    def refusal(self, price: Price, model: str) -> Refused | None:
        """Why this price is not paid for this model, whatever is left of the month; None when it is."""
        if price.is_free:
            return None
        if off := self.switched_off():
            return off
        ceiling = self.ceiling_for(model)
        if ceiling is not None and not price.exceeds(ceiling):
            return None
        return Refused(
            "price_above_ceiling",
            {
                "price_in": price.tokens_in,
                "price_out": price.tokens_out,
                "ceiling_in": ceiling.tokens_in if ceiling else 0,
                "ceiling_out": ceiling.tokens_out if ceiling else 0,
            },
        )
