"""Receipts are listed by the node, and verified without any."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import ScriptedNode
from tests.cli.spending_answers import a_receipt as a_listed_one
from tests.test_receipt_reading import PROVIDER, a_receipt

FORGED = a_receipt(9).replace(b'"charged_micros":"70"', b'"charged_micros":"60"')


def listed(*texts: bytes) -> dict[str, object]:
    """What the node answers, with what the providers signed."""
    return {"receipts": [a_listed_one(at, signed=text.decode()) for at, text in enumerate(texts)]}


# --- list ---------------------------------------------------------------------------------------------------------


def test_they_are_a_table(run, scripted: ScriptedNode) -> None:
    scripted.answer_with("/api/receipts?limit=2", listed(a_receipt(1), a_receipt(2)))
    result = run("receipts", "list", "-n", "2")
    rows = result.stdout.splitlines()
    assert rows[0].split()[:4] == ["WHEN", "ROLE", "NODE", "MODEL"] and len(rows) == 3
    assert "paid" in rows[1] and "$0.000717" in rows[1] and "qwen2.5-7b" in rows[1]
    scripted.answer_with("/api/receipts?limit=20", {"receipts": []})
    empty = run("receipts", "list")
    assert empty.stdout == "" and "nothing was paid or earned" in empty.stderr
    assert run("receipts", "list", "-n", "0").exit_code == 2


def test_what_is_listed_as_json_can_be_verified(run, scripted: ScriptedNode) -> None:
    scripted.answer_with("/api/receipts?limit=20", listed(a_receipt(1), a_receipt(2)))
    text = run("receipts", "list", "--json").stdout
    result = run("receipts", "verify", stdin=text)
    assert result.exit_code == 0, result.output
    assert "all 2 are genuine, $0.00014 together" in result.stderr


def test_a_list_needs_a_node_and_a_check_does_not(run) -> None:
    assert run("receipts", "list").exit_code == 3
    assert run("receipts", "verify", "-", stdin=a_receipt().decode()).exit_code == 0


# --- verify -------------------------------------------------------------------------------------------------------


def test_one_from_a_file(run, tmp_path: Path) -> None:
    file = tmp_path / "receipt.json"
    file.write_bytes(a_receipt() + b"\n")
    result = run("receipts", "verify", str(file))
    assert "it is genuine, $0.00007 together" in result.stderr
    row = result.stdout.splitlines()[1].split()
    assert row == ["1", "genuine", PROVIDER.node_id.hex()[:10], "qwen", "50", "100", "$0.00007"]
    facts = json.loads(run("receipts", "verify", str(file), "--json").stdout)
    assert facts["genuine"] == 1 and facts["receipts"][0]["receipt"]["tokens_out"] == 100


def test_one_forged_among_many_is_named(run) -> None:
    text = b"\n".join([a_receipt(1), FORGED, a_receipt(2)]).decode()
    result = run("receipts", "verify", stdin=text)
    assert result.exit_code == 8 and "1 of 3; the first is number 2" in result.stderr
    assert "(receipt-invalid)" in result.stderr and [row.split()[1] for row in result.stdout.splitlines()[1:]] == [
        "genuine",
        "not",
        "genuine",
    ]
    result = run("receipts", "verify", "--json", stdin=text)
    assert result.exit_code == 8 and json.loads(result.stdout)["genuine"] == 2


def test_whose_they_must_be(run) -> None:
    own = PROVIDER.node_id.hex()
    assert run("receipts", "verify", "--node", own[:10].upper(), stdin=a_receipt().decode()).exit_code == 0
    other = "f" * 10 if own[0] != "f" else "0" * 10
    result = run("receipts", "verify", "--node", other, stdin=a_receipt().decode())
    assert result.exit_code == 8 and "signed by another node" in result.output


@pytest.mark.parametrize("text", ["", "\n", "hello", "{}", "\x1b[2J", "\ufffd" * 50])
def test_what_is_none_steers_no_terminal(run, text: str) -> None:
    result = run("receipts", "verify", stdin=text)
    assert result.exit_code == 8 and "\x1b" not in result.output and "Traceback" not in result.output


def test_an_empty_list_is_no_fault(run) -> None:
    result = run("receipts", "verify", stdin='{"schema": 1, "receipts": []}')
    assert result.exit_code == 0 and "no receipt to verify" in result.stderr
    assert json.loads(run("receipts", "verify", "--json", stdin='{"receipts": []}').stdout)["genuine"] == 0


def test_a_file_that_is_not_there(run, tmp_path: Path) -> None:
    assert run("receipts", "verify", str(tmp_path / "none")).exit_code == 1
