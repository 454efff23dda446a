"""What may be spent: lowered from anywhere, raised by a person at a terminal and by nobody else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from meshnode.cli.wallet_policy import BAR_COLUMNS, bar
from meshnode.core.pay_policy import Policy
from meshnode.core.prices import Price
from meshnode.errors import NotTerminal
from meshnode.policies import PolicyFile, StoredPolicy
from tests.cli.spending_answers import a_spending
from tests.cli.terminals import at_terminal

SET = StoredPolicy("base-sepolia", Policy("auto", Price(200_000, 600_000), {"qwen": Price(1, 2)}, 5_000_000))
START = ("--mode", "auto", "--max-usd-per-month", "5", "--max-usd-per-mtok-in", "0.2", "--max-usd-per-mtok-out", "0.6")
RAISES = [
    ("--max-usd-per-month", "5.000001"),
    ("--max-usd-per-mtok-in", "0.21"),
    ("--max-usd-per-mtok-out", "1000000"),
    ("--model", "qwen", "--max-usd-per-mtok-out", "0.1"),
    ("--model", "other", "--max-usd-per-mtok-out", "0.7"),
    ("--forget-model", "qwen"),
    ("--deposit", "1"),
    ("--max-deposit", "3"),
    ("--max-usd-fees-per-month", "2"),
    ("--max-prepay", "9"),
    ("--network", "base"),
    ("--network", "arbitrum-sepolia"),
    ("--mode", "off", "--max-usd-per-month", "500"),
    ("--reset", "--max-deposit", "3"),
    ("--max-usd-per-month", "1", "--deposit", "1"),
]
LOWERS = [
    ("--max-usd-per-month", "4.999999"),
    ("--max-usd-per-mtok-in", "0"),
    ("--model", "other", "--max-usd-per-mtok-out", "0.5"),
    ("--deposit", "0.1"),
    ("--max-deposit", "1"),
    ("--max-usd-fees-per-month", "0"),
    ("--max-prepay", "0.000001"),
    ("--mode", "off"),
    ("--reset",),
]


@pytest.fixture
def file(tmp_path: Path) -> PolicyFile:
    """The policy file of the home of the test, with a policy in it."""
    made = PolicyFile(tmp_path / "wallet" / "policy.json")
    made.save(SET)
    return made


# --- without a terminal -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", RAISES, ids=" ".join)
def test_a_program_raises_nothing(run, file: PolicyFile, options: tuple[str, ...]) -> None:
    """Not by a pipe that answers yes to all that it is asked, either."""
    for stdin in ("", "y\n" * 9, "spend real money on base\n" * 9):
        result = run("wallet", "policy", *options, stdin=stdin)
        assert result.exit_code == NotTerminal.exit_code == 8 and "(not-a-terminal)" in result.stderr
        assert result.stdout == ""
    result = run("wallet", "policy", *options, "--json")
    assert json.loads(result.stdout)["error"]["code"] == "not-a-terminal"
    assert file.load() == SET


@pytest.mark.parametrize("options", LOWERS, ids=" ".join)
def test_less_is_allowed_from_anywhere(run, file: PolicyFile, options: tuple[str, ...]) -> None:
    result = run("wallet", "policy", *options)
    assert result.exit_code == 0, result.output
    assert "saved; a running node knows it at once" in result.stderr and file.load() != SET


def test_what_was_lowered_cannot_be_taken_back(run, file: PolicyFile) -> None:
    assert run("wallet", "policy", "--mode", "off").exit_code == 0
    assert run("wallet", "policy", "--mode", "auto").exit_code == 8
    assert run("wallet", "policy", "--max-usd-per-month", "1").exit_code == 0
    assert run("wallet", "policy", "--max-usd-per-month", "5").exit_code == 8
    assert file.load().policy.mode == "off" and file.load().policy.month_micros == 1_000_000


def test_the_first_policy_needs_a_person(run, tmp_path: Path) -> None:
    assert run("wallet", "policy", *START).exit_code == 8
    assert not (tmp_path / "wallet" / "policy.json").exists()


def test_a_shell_command_of_an_agent_raises_nothing(file: PolicyFile, tmp_path: Path) -> None:
    """As an agent runs it, really: its own session, no terminal, output caught, answers piped in."""
    done = subprocess.run(
        ["/bin/sh", "-c", f"yes | {sys.executable} -m meshnode wallet policy --max-usd-per-month 1000"],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "MESHNODE_HOME": str(tmp_path), "HOME": str(tmp_path)},
        start_new_session=True,
    )
    assert done.returncode == 8 and "(not-a-terminal)" in done.stderr and file.load() == SET


# --- at a terminal ------------------------------------------------------------------------------------------------


def test_a_person_is_told_what_and_agrees(tmp_path: Path) -> None:
    code, shown = at_terminal("wallet", "policy", *START, home=tmp_path, answers=[("Allow it?", "y")])
    assert code == 0, shown
    for words in ("payments: on", "the cap of a month: $5.00, not $0.00", "$0.20 in and $0.60 out, not none"):
        assert words in shown.partition("Allow it?")[0]
    stored = PolicyFile(tmp_path / "wallet" / "policy.json").load()
    assert stored == StoredPolicy("base-sepolia", Policy("auto", Price(200_000, 600_000), {}, 5_000_000))


@pytest.mark.parametrize("answer", ["", "n", "no"])
def test_a_person_who_does_not_agree_changes_nothing(file: PolicyFile, tmp_path: Path, answer: str) -> None:
    given = ("wallet", "policy", "--max-usd-per-month", "50")
    code, shown = at_terminal(*given, home=tmp_path, answers=[("Allow it?", answer)])
    assert code == 1 and "Aborted" in shown and file.load() == SET


@pytest.mark.parametrize("elsewhere", ["stdin_elsewhere", "stderr_elsewhere"])
def test_half_a_terminal_is_none(file: PolicyFile, tmp_path: Path, elsewhere: str) -> None:
    """Who cannot see the question, or cannot be asked, has not agreed."""
    more: dict[str, Any] = {elsewhere: True}
    code, shown = at_terminal("wallet", "policy", "--max-usd-per-month", "50", home=tmp_path, **more)
    assert code == 8 and "not-a-terminal" in shown and file.load() == SET


@pytest.mark.parametrize(
    ("answer", "agreed"), [("y", False), ("spend real money", False), ("spend real money on base", True)]
)
def test_real_money_takes_a_sentence(file: PolicyFile, tmp_path: Path, answer: str, agreed: bool) -> None:
    code, shown = at_terminal("wallet", "policy", "--network", "base", home=tmp_path, answers=[("type:", answer)])
    assert (code == 0) == agreed and "is no test network" in shown
    assert file.load().network == ("base" if agreed else "base-sepolia")


def test_every_raise_on_a_real_network_takes_it(tmp_path: Path) -> None:
    file = PolicyFile(tmp_path / "wallet" / "policy.json")
    file.save(StoredPolicy("base", SET.policy))
    code, _ = at_terminal("wallet", "policy", "--deposit", "1", home=tmp_path, answers=[("type:", "y")])
    assert code == 1 and file.load().policy == SET.policy


# --- what makes no policy -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--max-usd-per-month", "0.0000001"), "six decimals"),
        (("--max-usd-per-month", "-1"), "no amount of dollars"),
        (("--max-usd-per-month", "1e9"), "no amount of dollars"),
        (("--max-usd-per-month", "\u0661"), "no amount of dollars"),
        (("--max-usd-per-mtok-in", "1000001"), "is more than $1000000.00"),
        (("--model", "qwen"), "--model goes with"),
        (("--forget-model", "nothing"), "no ceiling of its own"),
        (("--model", "m" * 65, "--max-usd-per-mtok-in", "1"), "at most 64"),
        (("--reset", "--mode", "auto"), "needs a cap and a ceiling"),
        (("--max-usd-per-month", "0"), "needs a cap and a ceiling"),
    ],
    ids=str,
)
def test_what_makes_no_policy(run, file: PolicyFile, options: tuple[str, ...], words: str) -> None:
    result = run("wallet", "policy", *options)
    assert result.exit_code == 2 and words in result.stderr.replace("\n", " ") and file.load() == SET


def test_a_network_that_nobody_knows(run, file: PolicyFile) -> None:
    result = run("wallet", "policy", "--network", "basement")
    assert result.exit_code == 2 and "bad-setting" in result.stderr and file.load() == SET


def test_payments_can_be_switched_off_whatever_else_is_wrong(run, file: PolicyFile, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('no_such_setting = "x"\n')
    file.save(StoredPolicy("a chain of the attic", SET.policy))
    result = run("wallet", "policy", "--mode", "off")
    assert result.exit_code == 0 and file.load().policy.mode == "off"
    assert "no_such_setting" in result.stderr and "a chain of the attic (not known here)" in result.stdout
    assert run("wallet", "policy", "--mode", "auto").exit_code == 8


def test_a_damaged_file_is_said_and_begun_anew(run, file: PolicyFile) -> None:
    file.file.write_bytes(b"{}")
    result = run("wallet", "policy", "--mode", "off")
    assert result.exit_code == 1 and "--reset" in result.stderr and file.file.read_bytes() == b"{}"
    assert run("wallet", "policy", "--reset").exit_code == 0
    assert file.load() == StoredPolicy()


def test_a_change_meanwhile_is_not_lost(run, file: PolicyFile, monkeypatch: pytest.MonkeyPatch) -> None:
    lowered = StoredPolicy(SET.network, Policy())
    before = PolicyFile.load
    seen: list[StoredPolicy] = []

    def load(self: PolicyFile) -> StoredPolicy:
        seen.append(before(self))
        if len(seen) == 1:
            self.save(lowered)
        return seen[-1]

    monkeypatch.setattr(PolicyFile, "load", load)
    result = run("wallet", "policy", "--max-usd-per-month", "1")
    assert result.exit_code == 1 and "was changed meanwhile" in result.stderr
    monkeypatch.undo()
    assert file.load() == lowered


# --- shown --------------------------------------------------------------------------------------------------------


def test_it_is_shown_without_a_node(run, file: PolicyFile) -> None:
    result = run("wallet", "policy")
    assert result.exit_code == 0
    lines = dict(line.split("  ", 1) for line in map(str.strip, result.stdout.splitlines()))
    shown = {name.strip(): value.strip() for name, value in lines.items()}
    assert shown["mode"].startswith("auto") and shown["network"] == "base-sepolia (test money)"
    assert shown["a month"] == "$5.00 at most, and $1.00 of fees"
    assert shown["ceiling"] == "$0.20 in, $0.60 out, for a million tokens"
    assert shown["qwen"] == "$0.000001 in, $0.000002 out, for a million tokens"
    assert "nothing is paid now: there is no wallet" in result.stderr


def test_with_a_node_it_says_what_is_left(run, scripted, file: PolicyFile) -> None:
    scripted.answer_with("/api/spending", a_spending())
    shown = run("wallet", "policy").stdout
    assert "2026-09" in shown and "$1.234567 spent, $3.745433 left" in shown and "$0.917 locked in channels" in shown
    facts = json.loads(run("wallet", "policy", "--json").stdout)
    assert facts["month_micros"] == 5_000_000 and facts["ceiling"] == {"in": 200_000, "out": 600_000}
    assert facts["now"]["committed_micros"] == 1_234_567 and facts["paying"] is False


def test_no_pay_is_said(run, file: PolicyFile) -> None:
    assert "MESHNODE_NO_PAY" in run("wallet", "policy", MESHNODE_NO_PAY="1").stderr


@pytest.mark.parametrize(
    ("part", "whole", "filled"),
    [
        (0, 100, 0),
        (1, 10**9, 1),
        (50, 100, BAR_COLUMNS // 2),
        (10**9 - 1, 10**9, BAR_COLUMNS - 1),
        (7, 7, BAR_COLUMNS),
        (9, 7, BAR_COLUMNS),
        (5, 0, 0),
    ],
)
def test_a_bar_is_never_empty_nor_full_too_early(part: int, whole: int, filled: int) -> None:
    assert bar(part, whole) == "█" * filled + "░" * (BAR_COLUMNS - filled)
