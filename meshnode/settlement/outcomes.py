"""What was done on the chain, or would be: for people, before they agree, and for programs.

A dry run has the same form as the real thing, without a hash: what would be called where, with which bytes, and what it
would cost. Both come from the same plan, so that what was shown is what is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from meshnode.settlement.addresses import shown
from meshnode.settlement.sending import Plan
from meshnode.settlement.transactions import Transaction


@dataclass(frozen=True, slots=True)
class Step:
    """One transaction. `digest` is empty, and `state` "prepared", where it was only planned; `state` "asked-provider"
    where another node sends it.
    """

    kind: str
    target: bytes
    data: bytes
    gas: int
    fee_micros: int
    digest: bytes = b""
    state: str = "prepared"
    channel: bytes = b""

    @classmethod
    def planned(cls, plan: Plan) -> Step:
        """As it would be done."""
        order = plan.order
        channel = order.channels[0] if order.channels else b""
        return cls(order.kind, order.target, order.data, plan.gas, plan.likely_micros, channel=channel)

    @classmethod
    def made(cls, transaction: Transaction) -> Step:
        """As it stands."""
        return cls(
            transaction.kind,
            transaction.target,
            transaction.data,
            transaction.gas,
            transaction.most_micros if transaction.is_open else transaction.fee_micros,
            transaction.newest.digest,
            transaction.state,
            transaction.channels[0] if transaction.channels else b"",
        )

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "purpose": self.kind,
            "to": shown(self.target),
            "calldata": _hex(self.data),
            "gas": self.gas,
            "fee_micros": self.fee_micros,
            "hash": _hex(self.digest) if self.digest else None,
            "state": self.state,
            "channel": _hex(self.channel) if self.channel else None,
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one wish: its transactions, the channel and amount that it was about, and words where they help."""

    steps: tuple[Step, ...] = ()
    channel: bytes = b""
    amount_micros: int = 0
    note: str = ""
    is_dry: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The answer to `POST /api/wallet/*`."""
        return {
            "dry_run": self.is_dry,
            "transactions": [step.as_dict() for step in self.steps],
            "channel": _hex(self.channel) if self.channel else None,
            "amount_micros": self.amount_micros,
            "note": self.note,
        }


def _hex(data: bytes) -> str:
    return f"0x{data.hex()}"
