"""Money moves by the running node, with the value of this terminal; without a node nothing moves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from meshnode.core.pay_policy import Policy
from meshnode.core.prices import Price
from meshnode.errors import MonthlyCapReached, NodeNotFound, WalletLocked
from meshnode.policies import PolicyFile, StoredPolicy
from meshnode.wallets import Wallets
from tests.cli.conftest import ScriptedNode
from tests.cli.spending_answers import CHANNEL, NODE, a_channel, a_spending, moved
from tests.cli.terminals import at_terminal

SWARM = {
    "peers": [{"id": NODE, "name": "harbour"}, {"id": "cd" * 32, "name": "twin"}, {"id": "ce" * 32, "name": "twin"}]
}
MOVES = [("deposit", NODE, "0.5"), ("withdraw", "cdcd"), ("close", "cdcd"), ("panic",)]


@pytest.fixture
def node(scripted: ScriptedNode, tmp_path: Path) -> ScriptedNode:
    """A node that has opened the wallet of this home; `terminal` is the value that it wants to see."""
    scripted.terminal = Wallets(tmp_path).new_terminal_token()  # type: ignore[attr-defined]
    scripted.answer_with("/api/status", {"swarm": SWARM})
    channels = [a_channel(1, id=CHANNEL, node=NODE), a_channel(2, id="0x" + "ce" * 32), a_channel(3, state="closed")]
    scripted.answer_with("/api/spending", a_spending(channels=channels))
    for act, purpose in (("deposit", "deposit"), ("withdraw", "initiate-withdraw"), ("close", "refund")):
        scripted.answer_with(f"/api/wallet/{act}", moved(purpose))
    scripted.answer_with("/api/wallet/panic", moved("initiate-withdraw", channel=None))
    return scripted


# --- who moves it -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [*MOVES, ("channels",)], ids=" ".join)
def test_without_a_node_nothing_moves_and_it_says_what_to_do(run, command: tuple[str, ...]) -> None:
    result = run("wallet", *command)
    assert result.exit_code == 3 and "(no-node)" in result.stderr and "start it first" in result.stderr


@pytest.mark.parametrize("command", MOVES, ids=" ".join)
def test_every_move_shows_the_value_of_the_terminal(run, node: ScriptedNode, command: tuple[str, ...]) -> None:
    result = run("wallet", *command)
    assert result.exit_code == 0, result.output
    assert node.terminals == [node.terminal] and node.terminal not in result.output  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", MOVES, ids=" ".join)
def test_a_node_that_has_opened_no_wallet(run, node: ScriptedNode, tmp_path: Path, command: tuple[str, ...]) -> None:
    Wallets(tmp_path).terminal_file.unlink()
    result = run("wallet", *command)
    assert result.exit_code == 8 and "(no-wallet)" in result.stderr and node.calls == []


# --- deposit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [NODE, NODE.upper(), "abab", "harbour", " Harbour"])
def test_a_deposit_for_whom_is_meant(run, node: ScriptedNode, words: str) -> None:
    result = run("wallet", "deposit", words, "$0.50")
    assert node.calls == [("/api/wallet/deposit", {"node": NODE, "amount_micros": 500_000, "dry_run": False})]
    assert "$0.50 are locked for ababababab;" in result.stderr and "0x" + "ef" * 32 in result.stdout


def test_who_is_unknown_here_may_be_known_to_the_node(run, node: ScriptedNode) -> None:
    node.answer_with("/api/wallet/deposit", NodeNotFound("elsewhere"))
    assert run("wallet", "deposit", "Elsewhere", "1").exit_code == 5
    assert node.calls[0][1]["node"] == "elsewhere"
    twins = run("wallet", "deposit", "twin", "1")
    assert twins.exit_code == 5 and "any of 2" in twins.stderr and len(node.calls) == 1


@pytest.mark.parametrize("amount", ["0", "-1", "0.0000001", "1e3", "nan", "five", "1,5", "9999999999999"])
def test_what_is_no_amount(run, node: ScriptedNode, amount: str) -> None:
    assert run("wallet", "deposit", NODE, "--", amount).exit_code == 2
    assert node.calls == []


def test_a_dry_run_shows_calldata_gas_and_dollars(run, node: ScriptedNode) -> None:
    node.answer_with("/api/wallet/deposit", moved("deposit", dry_run=True, note="the provider pays the fee"))
    result = run("wallet", "deposit", NODE, "0.5", "--dry-run")
    assert node.calls[0][1]["dry_run"] is True
    lines = result.stdout.splitlines()
    assert "140,117" in lines[1] and "$0.00084" in lines[1] and "prepared" in lines[1]
    calldata = "".join(line.strip() for line in lines[4:])
    assert calldata == "0x" + "12" * 150 and lines[3] == "deposit  calldata, 150 bytes"
    assert "nothing was sent; it would cost $0.00084 of fees" in result.stderr
    assert "the provider pays the fee" in result.stderr and "are locked" not in result.stderr
    assert json.loads(run("wallet", "deposit", NODE, "0.5", "--dry-run", "--json").stdout)["dry_run"] is True


def test_no_pay_stops_it_before_the_node_is_asked(run, node: ScriptedNode) -> None:
    result = run("wallet", "deposit", NODE, "1", MESHNODE_NO_PAY="1")
    assert result.exit_code == 8 and "(payments-off)" in result.stderr and node.calls == []


def test_bounds_of_the_policy_are_those_of_the_node(run, node: ScriptedNode) -> None:
    node.answer_with("/api/wallet/deposit", MonthlyCapReached("the cap is $5.00"))
    result = run("wallet", "deposit", NODE, "100")
    assert result.exit_code == 8 and "the cap is $5.00" in result.stderr
    failed = run("wallet", "deposit", NODE, "100", "--json")
    assert json.loads(failed.stdout)["error"]["code"] == "monthly-cap-reached"


# --- the password -------------------------------------------------------------------------------------------------


def test_a_locked_wallet_asks_for_the_password_at_a_terminal(node: ScriptedNode, tmp_path: Path) -> None:
    node.answer_with("/api/wallet/deposit", WalletLocked(), moved("deposit"))
    typed = [("Password of the wallet", "s3cret")]
    code, shown = at_terminal("wallet", "deposit", NODE, "1", home=tmp_path, answers=typed)
    assert code == 0 and "s3cret" not in shown
    assert [body.get("password") for _, body in node.calls] == [None, "s3cret"]


def test_and_nowhere_else(run, node: ScriptedNode, tmp_path: Path) -> None:
    node.answer_with("/api/wallet/deposit", WalletLocked())
    result = run("wallet", "deposit", NODE, "1", stdin="s3cret\n")
    assert result.exit_code == 8 and "(wallet-locked)" in result.stderr and len(node.calls) == 1
    file = tmp_path / "password"
    file.write_text("from a file\n")
    file.chmod(0o600)
    node.answer_with("/api/wallet/deposit", moved("deposit"))
    assert run("wallet", "deposit", NODE, "1", "--password-file", str(file)).exit_code == 0
    assert node.calls[-1][1]["password"] == "from a file"


# --- channels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["withdraw", "close"])
@pytest.mark.parametrize("words", [CHANNEL, CHANNEL[2:], "cdcd", "0xCDCD", "abab", NODE])
def test_a_channel_by_its_digits_or_its_node(run, node: ScriptedNode, act: str, words: str) -> None:
    result = run("wallet", act, words, "--dry-run")
    assert result.exit_code == 0, result.output
    assert node.calls == [(f"/api/wallet/{act}", {"channel": CHANNEL, "dry_run": True})]


@pytest.mark.parametrize(("words", "said"), [("c", "no open channel"), ("ffff", "no open channel"), ("0x", "no open")])
def test_no_channel_is_guessed(run, node: ScriptedNode, words: str, said: str) -> None:
    result = run("wallet", "withdraw", words)
    assert result.exit_code == 5 and said in result.stderr and node.calls == []


def test_several_channels_are_not_one(run, node: ScriptedNode) -> None:
    pair = [a_channel(1, node=NODE), a_channel(2, node=NODE), a_channel(3, node=NODE, role="receiver")]
    node.answer_with("/api/spending", a_spending(channels=pair))
    result = run("wallet", "close", "abababab")
    assert result.exit_code == 5 and "any of 2 channels" in result.stderr and node.calls == []


def test_channels_are_a_table(run, node: ScriptedNode) -> None:
    shown = [
        a_channel(1, state="withdrawing", withdrawable_at=4_000_000_000.0),
        a_channel(2, state="withdrawing", withdrawable_at=1.0),
        a_channel(3, role="receiver", state="x\x1b[31my"),
    ]
    node.answer_with("/api/spending", a_spending(channels=shown))
    result = run("wallet", "channels")
    rows = result.stdout.splitlines()
    assert "withdrawing, " in rows[1] and " left" in rows[1] and "$0.041237" in rows[1] and rows[1].split()[1] == "pays"
    assert "can be had back" in rows[2] and "earns" in rows[3] and "\x1b" not in result.stdout
    assert json.loads(run("wallet", "channels", "--json").stdout)["channels"] == shown
    node.answer_with("/api/spending", a_spending(channels=[]))
    empty = run("wallet", "channels")
    assert empty.stdout == "" and "no channel is open" in empty.stderr


# --- panic --------------------------------------------------------------------------------------------------------


def policy_file(home: Path) -> PolicyFile:
    file = PolicyFile(home / "wallet" / "policy.json")
    file.save(StoredPolicy("base", Policy("auto", Price(1, 2), {}, 5_000_000)))
    return file


def test_panic_switches_payments_off_first(run, node: ScriptedNode, tmp_path: Path) -> None:
    file = policy_file(tmp_path)
    result = run("wallet", "panic")
    assert result.exit_code == 0 and file.load() == StoredPolicy("base", Policy("off", Price(1, 2), {}, 5_000_000))
    assert "payments are off" in result.stderr and node.calls == [("/api/wallet/panic", {"dry_run": False})]


def test_panic_without_a_node_still_switches_payments_off(run, tmp_path: Path) -> None:
    file = policy_file(tmp_path)
    result = run("wallet", "panic")
    assert result.exit_code == 3 and file.load().policy.mode == "off"


def test_a_dry_panic_changes_nothing(run, node: ScriptedNode, tmp_path: Path) -> None:
    file = policy_file(tmp_path)
    assert run("wallet", "panic", "--dry-run").exit_code == 0
    assert file.load().policy.mode == "auto"


def test_panic_with_a_damaged_policy(run, node: ScriptedNode, tmp_path: Path) -> None:
    policy_file(tmp_path).file.write_bytes(b"{}")
    facts: dict[str, Any] = json.loads(run("wallet", "panic", "--json").stdout)
    assert facts["transactions"][0]["purpose"] == "initiate-withdraw"
