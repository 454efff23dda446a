"""What strangers pay this node, and taking it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meshnode.api.spending_control import nothing_spent
from meshnode.errors import ChainUnreachable
from meshnode.wallets import Wallets
from tests.cli.conftest import ScriptedNode
from tests.cli.spending_answers import a_spending, moved


def test_the_price_and_what_came_of_it(run, scripted: ScriptedNode) -> None:
    scripted.answer_with("/api/spending", a_spending())
    result = run("earn", "status")
    shown = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert shown["price"] == "$0.10 in, $0.40 out, for a million tokens"
    assert shown["promised"] == "$0.061 in one channel" and shown["unclaimed"] == "$0.021"
    assert shown["claimed"].startswith("$0.04, the last time ") and shown["network"].endswith("(test money)")
    assert "paid to" in result.stdout and "meshnode earn claim" in result.stderr
    facts = json.loads(run("earn", "status", "--json").stdout)
    assert facts["earning"]["unclaimed_micros"] == 21_000 and facts["wallet"]["chain"] == 84532


def test_a_node_without_a_price_says_how_to_have_one(run, scripted: ScriptedNode) -> None:
    scripted.answer_with("/api/spending", nothing_spent())
    result = run("earn", "status")
    assert "none: it is free" in result.stdout and "--price-in" in result.stderr and result.exit_code == 0


def test_what_is_in_the_way_is_said(run, scripted: ScriptedNode) -> None:
    facts = a_spending()
    facts["earning"] |= {"why_not": "the chain\x1b[2J cannot be reached", "unclaimed_micros": 0}
    scripted.answer_with("/api/spending", facts)
    result = run("earn", "status")
    assert "cannot be reached" in result.stderr and "\x1b" not in result.output and "earn claim" not in result.stderr


@pytest.mark.parametrize(
    ("purposes", "said"), [(("claim", "settle"), "$0.50 claimed"), ((), "there is nothing to claim")]
)
def test_claiming(run, scripted: ScriptedNode, tmp_path: Path, purposes: tuple[str, ...], said: str) -> None:
    terminal = Wallets(tmp_path).new_terminal_token()
    scripted.answer_with("/api/wallet/claim", moved(*purposes))
    result = run("earn", "claim")
    assert result.exit_code == 0 and said in result.stderr and scripted.terminals == [terminal]
    assert scripted.calls == [("/api/wallet/claim", {"dry_run": False})]


def test_why_nothing_is_claimed_is_said_once(run, scripted: ScriptedNode, tmp_path: Path) -> None:
    Wallets(tmp_path).new_terminal_token()
    scripted.answer_with("/api/wallet/claim", moved(note="$0.000078 can be claimed, which is not yet worth the fee"))
    assert run("earn", "claim").stderr.count("claim") == 1


def test_a_dry_claim_and_a_chain_that_is_away(run, scripted: ScriptedNode, tmp_path: Path) -> None:
    Wallets(tmp_path).new_terminal_token()
    scripted.answer_with("/api/wallet/claim", moved("claim", dry_run=True), ChainUnreachable("https://one.example"))
    dry = run("earn", "claim", "--dry-run")
    assert "nothing was sent" in dry.stderr and "claimed" not in dry.stderr and "calldata" in dry.stdout
    failed = run("earn", "claim")
    assert failed.exit_code == 8 and "(chain-unreachable)" in failed.stderr


@pytest.mark.parametrize("command", ["status", "claim"])
def test_without_a_node(run, command: str) -> None:
    assert run("earn", command).exit_code == 3
