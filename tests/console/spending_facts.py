"""Invented facts of money, in the shape of GET /api/spending."""

from __future__ import annotations

import copy
from typing import Any

from meshnode.api.spending_control import nothing_spent
from tests.console.fake_mesh import node_id

Facts = dict[str, Any]
NOW = 1_790_000_000.0
DAY_S = 86_400


def a_channel(number: int, **values: Any) -> Facts:
    """A channel with the node of that number; `values` replace members."""
    return {
        "id": "0x" + node_id(100 + number),
        "role": "payer",
        "node": node_id(number),
        "state": "open",
        "balance_micros": 500_000,
        "signed_micros": 41_237,
        "charged_micros": 41_225,
        "claimed_micros": 30_000,
        "opened_at": NOW - DAY_S,
        "withdrawable_at": None,
    } | values


def a_receipt(number: int, **values: Any) -> Facts:
    """A receipt of the node of that number."""
    return {
        "request": f"req_{number:012x}",
        "node": node_id(number),
        "model": "qwen2.5-7b",
        "role": "payer",
        "tokens_in": 512,
        "tokens_out": 1024 + number,
        "charged_micros": 717,
        "channel": "0x" + node_id(100 + number),
        "finish": "stop",
        "at": NOW - 60 * number,
    } | values


def a_transaction(number: int, **values: Any) -> Facts:
    """A transaction on the chain."""
    return {
        "purpose": "deposit",
        "state": "final",
        "hash": "0x" + node_id(200 + number),
        "channel": "0x" + node_id(101),
        "at": NOW - 600 * number,
        "fee_micros": 840,
    } | values


def a_spending(**values: Any) -> Facts:
    """The accounts of a node that pays and earns; `values` replace whole members."""
    facts = nothing_spent(why_not="") | {
        "paying": True,
        "wallet": {
            "address": "0x52908400098527886E0F7030069857D2E4169EE7",
            "voucher": "0x8617E340B3D01FA5F11F306F4090FD50E238070D",
            "network": "base-sepolia",
            "chain": 84532,
            "testnet": True,
        },
        "policy": {
            "mode": "auto",
            "network": "base-sepolia",
            "ceiling": {"in": 200_000, "out": 600_000},
            "model_ceilings": {"qwen2.5-72b": {"in": 900_000, "out": 2_500_000}},
            "month_micros": 5_000_000,
            "deposit_micros": 500_000,
            "most_deposit_micros": 2_000_000,
            "gas_month_micros": 1_000_000,
            "prepay_micros": 100_000,
        },
        "month": "2026-09",
        "committed_micros": 1_234_567,
        "reserved_micros": 20_000,
        "remaining_micros": 3_745_433,
        "locked_micros": 917_000,
        "gas_micros": 2_340,
        "channels": [
            a_channel(1),
            a_channel(2, state="withdrawing", withdrawable_at=NOW + 50_000),
            a_channel(3, role="receiver", state="opening"),
            a_channel(4, state="closed", balance_micros=0),
        ],
        "receipts": [a_receipt(1), a_receipt(2, role="receiver", finish="cancelled"), a_receipt(3, finish="broken")],
        "by_day": [
            {
                "day": f"2026-09-{20 - at}",
                "spent_micros": 90_000 * (at % 4),
                "earned_micros": 12_345 * at,
                "requests": at,
            }
            for at in range(6)
        ],
        "by_provider": [
            {"node": node_id(at), "spent_micros": 700_000 // at, "requests": 40 // at, "tokens_out": 90_000 // at}
            for at in range(1, 4)
        ],
        "earning": {
            "selling": True,
            "receiver": "0x52908400098527886E0F7030069857D2E4169EE7",
            "price": {"in": 100_000, "out": 400_000},
            "vouched_micros": 61_000,
            "claimed_micros": 40_000,
            "unclaimed_micros": 21_000,
            "channels": 1,
            "last_claim_at": NOW - 7200,
            "why_not": "",
        },
        "chain": {
            "why_not": "",
            "endpoints": [
                {"url": "https://one.example", "ok": True, "behind": 0},
                {"url": "https://two.example", "ok": True, "behind": 2},
            ],
        },
        "transactions": [
            a_transaction(1),
            a_transaction(2, purpose="claim", state="mined"),
            a_transaction(3, state="failed"),
        ],
    }
    return copy.deepcopy(facts | values)
