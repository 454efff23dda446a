"""What was paid, to whom, and what is left."""

from __future__ import annotations

import json

from meshnode.api.spending_control import nothing_spent
from tests.cli.conftest import ScriptedNode
from tests.cli.spending_answers import a_spending
from tests.console.fake_mesh import node_id


def lines(text: str) -> dict[str, str]:
    """Name -> words of what stands above the table."""
    return dict(line.split(maxsplit=1) for line in text.partition("\n\n")[0].splitlines())


def test_the_month_and_who_was_paid(run, scripted: ScriptedNode) -> None:
    scripted.answer_with("/api/spending", a_spending())
    result = run("spend")
    assert result.exit_code == 0 and result.stderr == ""
    above = lines(result.stdout)
    assert above["network"] == "base-sepolia (test money)"
    assert above["2026-09"].endswith("$1.234567 of $5.00") and above["2026-09"].count("█") == 5
    assert above["left"] == "$3.745433, $0.02 more held for running requests"
    assert above["locked"] == "$0.917 in 2 channels" and above["fees"] == "$0.00234 of $1.00"
    rows = result.stdout.partition("\n\n")[2].splitlines()
    assert rows[0].split() == ["PROVIDER", "PAID", "REQUESTS", "TOKENS"]
    assert rows[1].split() == [node_id(1)[:10], "$0.70", "40", "90,000"]
    assert json.loads(run("spend", "--json").stdout)["committed_micros"] == 1_234_567


def test_day_by_day(run, scripted: ScriptedNode) -> None:
    scripted.answer_with("/api/spending", a_spending())
    rows = run("spend", "--days").stdout.partition("\n\n")[2].splitlines()
    assert rows[0].split() == ["DAY", "SPENT", "EARNED", "REQUESTS"]
    assert rows[2].split() == ["2026-09-19", "$0.09", "$0.012345", "1"]


def test_real_money_is_called_so(run, scripted: ScriptedNode) -> None:
    facts = a_spending(why_not="payments are off", by_provider=[])
    facts["wallet"] |= {"network": "base", "testnet": False}
    scripted.answer_with("/api/spending", facts)
    result = run("spend")
    assert lines(result.stdout)["network"] == "base (real money)"
    assert "nothing is paid now: payments are off" in result.stderr and "PROVIDER" not in result.stdout


def test_nothing_spent(run, scripted: ScriptedNode) -> None:
    scripted.answer_with("/api/spending", nothing_spent())
    result = run("spend")
    assert "nothing, and nothing may be: meshnode wallet policy" in result.stdout and "no wallet" in result.stderr


def test_damage_is_said(run, scripted: ScriptedNode) -> None:
    scripted.answer_with("/api/spending", a_spending(damaged="page 3\x1b[2J is torn"))
    result = run("spend")
    assert "the record of payments is damaged: page 3" in result.stderr and "\x1b" not in result.output


def test_without_a_node(run) -> None:
    result = run("spend")
    assert result.exit_code == 3 and "start it first" in result.stderr
