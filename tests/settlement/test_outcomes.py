from __future__ import annotations

from dataclasses import replace

from meshnode.settlement.addresses import shown
from meshnode.settlement.fees import Fees
from meshnode.settlement.outcomes import Outcome, Step
from meshnode.settlement.sending import Order, Plan
from meshnode.settlement.transactions import Attempt, Transaction

HUB, CHANNEL = bytes([4]) * 20, b"c" * 32
ORDER = Order("deposit:1#0", "deposit", HUB, b"\x01\x02", (CHANNEL,))
PLAN = Plan(ORDER, 140_000, Fees(9, 1), likely_micros=300, most_micros=700)
MADE = Transaction(
    *("deposit:1#0", "deposit", 84532, bytes(20), 0, HUB, b"\x01\x02", 140_000, (CHANNEL,)),
    *((Attempt(b"d" * 32, b"raw", Fees(9, 1)),), 700, 1.0),
    state="submitted",
)


def test_what_is_planned_and_what_is_made_have_one_form() -> None:
    planned, made = Step.planned(PLAN), Step.made(MADE)
    assert replace(made, digest=b"", state="prepared", fee_micros=300) == planned
    assert planned.as_dict() == {
        "purpose": "deposit",
        "to": shown(HUB),
        "calldata": "0x0102",
        "gas": 140_000,
        "fee_micros": 300,
        "hash": None,
        "state": "prepared",
        "channel": "0x" + CHANNEL.hex(),
    }
    assert made.as_dict()["hash"] == "0x" + (b"d" * 32).hex()


def test_what_it_cost_is_known_at_its_end() -> None:
    assert Step.made(MADE).fee_micros == 700
    assert Step.made(replace(MADE, state="final", fee_micros=250)).fee_micros == 250
    assert Step.made(replace(MADE, channels=())).as_dict()["channel"] is None


def test_an_outcome_is_one_object() -> None:
    outcome = Outcome((Step.planned(PLAN),), CHANNEL, 500, "soon", is_dry=True).as_dict()
    assert (outcome["dry_run"], outcome["amount_micros"], outcome["note"]) == (True, 500, "soon")
    assert outcome["channel"] == "0x" + CHANNEL.hex() and len(outcome["transactions"]) == 1
    assert Outcome().as_dict() == {
        "dry_run": False,
        "transactions": [],
        "channel": None,
        "amount_micros": 0,
        "note": "",
    }
