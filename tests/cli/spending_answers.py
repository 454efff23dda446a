"""What a node answers about money, for commands that show it."""

from __future__ import annotations

from typing import Any

from tests.console.spending_facts import a_channel, a_receipt, a_spending

__all__ = ["a_channel", "a_receipt", "a_spending", "moved"]

NODE = "ab" * 32
CHANNEL = "0x" + "cd" * 32


def moved(*purposes: str, **values: Any) -> dict[str, Any]:
    """The answer of a call that moves money, with a transaction for each purpose; `values` replace members."""
    dry = bool(values.get("dry_run"))
    sent = [
        {
            "purpose": purpose,
            "to": "0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003",
            "calldata": "0x" + "12" * 150,
            "gas": 140_117,
            "fee_micros": 840,
            "hash": None if dry else "0x" + "ef" * 32,
            "state": "prepared" if dry else "submitted",
            "channel": CHANNEL,
        }
        for purpose in purposes
    ]
    facts = {"dry_run": False, "transactions": sent, "channel": CHANNEL, "amount_micros": 500_000, "note": ""}
    return facts | values
