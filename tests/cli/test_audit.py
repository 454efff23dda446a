"""The commands that look at the audit log, in a process without a node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from meshnode.cli.audit import audit
from meshnode.core.audit import Fact, Head, extended

FACTS: dict[str, Fact] = {
    "request": "req_1",
    "node": "ab" * 32,
    "prefix": "0011223344556677",
    "model": "demo",
    "radius": "public",
    "status": 200,
    "outcome": "ok",
    "tokens_in": 12,
    "tokens_out": 34,
    "cost_micros": 0,
    "output_sha256": "cd" * 32,
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder with three records."""
    head, lines = Head(), []
    for kind, facts in (
        ("asked", {**FACTS, "verdict": "good"}),
        ("served", FACTS),
        ("repaired", {"cut_bytes": 17, "reason": "a crash"}),
    ):
        line, head = extended(head, kind, 1_790_000_000.0 + head.count, facts)
        lines.append(line)
    (tmp_path / "audit.log").write_bytes(b"".join(lines))
    (tmp_path / "audit.head").write_bytes(head.encode())
    return tmp_path


def run(home: Path, *arguments: str) -> Result:
    return CliRunner(env={"MESHNODE_HOME": str(home), "NO_COLOR": "1"}).invoke(audit, arguments)


def test_the_last_records_as_a_table_the_newest_last(home: Path) -> None:
    lines = run(home, "show").stdout.splitlines()
    assert lines[0].split("  ")[0] == "WHEN" and len(lines) == 4
    assert lines[1].split()[2:] == ["asked", "ab" * 5, "demo", "12", "34", "ok", "good", "req_1"]
    assert lines[2].split()[2:] == ["served", "ab" * 5, "demo", "12", "34", "ok", "-", "req_1"]
    assert "repaired" in lines[3] and "a crash" in lines[3]
    assert len(run(home, "show", "-n", "1").stdout.splitlines()) == 2


def test_records_as_json(home: Path) -> None:
    shown = json.loads(run(home, "show", "--json").stdout)
    assert shown["schema"] == 1 and [record["n"] for record in shown["records"]] == [0, 1, 2]
    assert shown["records"][1]["output_sha256"] == "cd" * 32


def test_nothing_recorded_is_said_and_no_error(tmp_path: Path) -> None:
    for arguments in (("show",), ("verify",), ("export",)):
        found = run(tmp_path, *arguments)
        assert found.exit_code == 0, found.output
    assert "nothing went to strangers" in run(tmp_path, "show").stderr
    assert "0 records" in run(tmp_path, "verify").stdout


def test_a_whole_log_gives_its_last_hash_to_keep(home: Path) -> None:
    found = run(home, "verify")
    digest = json.loads((home / "audit.head").read_bytes())["digest"]
    assert found.exit_code == 0 and "3 records in 1 file, " in found.stdout
    assert f"number 2, with the hash {digest}" in found.stdout
    assert run(home, "verify", "--hash", f" {digest.upper()} ").exit_code == 0
    facts = json.loads(run(home, "verify", "--json").stdout)
    assert (facts["schema"], facts["whole"], facts["head"]["digest"]) == (1, True, digest)


def test_a_changed_log_is_an_error_that_names_the_line(home: Path) -> None:
    file = home / "audit.log"
    file.write_bytes(file.read_bytes().replace(b'"tokens_out":34', b'"tokens_out":35', 1))
    found = run(home, "verify")
    assert found.exit_code == 1 and "audit.log, line 1: it was changed" in found.stdout
    assert "audit-broken" in found.stderr and "line 1" in found.stderr
    found = run(home, "verify", "--json")
    facts = json.loads(found.stdout)
    assert found.exit_code == 1 and not facts["whole"]
    assert facts["findings"] == [{"file": "audit.log", "line": 1, "text": "it was changed"}]


def test_a_hash_that_is_not_there_is_an_error(home: Path) -> None:
    found = run(home, "verify", "--hash", "ab" * 32)
    assert found.exit_code == 1 and "no record has the hash" in found.stderr


def test_an_unfinished_line_is_mentioned(home: Path) -> None:
    with (home / "audit.log").open("ab") as file:
        file.write(b'{"n":3')
    found = run(home, "verify")
    assert found.exit_code == 0 and "6 bytes of an unfinished line" in found.stderr


def test_export_gives_a_line_of_json_for_each_record(home: Path) -> None:
    lines = run(home, "export").stdout.splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["asked", "served", "repaired"]
    [served] = run(home, "export", "--kind", "served").stdout.splitlines()
    assert json.loads(served)["prefix"] == FACTS["prefix"]
    assert [json.loads(line)["n"] for line in run(home, "export", "--after", "1").stdout.splitlines()] == [2]


def test_text_of_strangers_cannot_steer_the_terminal(tmp_path: Path) -> None:
    line, _ = extended(Head(), "served", 1.0, {**FACTS, "request": "\x1b[2J\r\nroot"})
    (tmp_path / "audit.log").write_bytes(line)
    shown = run(tmp_path, "show").stdout
    assert "\x1b" not in shown and len(shown.splitlines()) == 2
    assert "\x1b" not in run(tmp_path, "export").stdout
