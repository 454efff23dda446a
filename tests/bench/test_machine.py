"""The description of the machine."""

from __future__ import annotations

import json

import pytest

from bench import machine


def test_it_says_what_a_reader_needs() -> None:
    facts = machine.describe()
    assert {"architecture", "cores", "threads", "memory_bytes", "system", "python", "packages"} <= set(facts)
    assert facts["memory_bytes"] > 1 << 28 and facts["threads"] >= 1
    assert json.loads(json.dumps(facts)) == facts


def test_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert machine.commit() == ""
    assert "commit" not in machine.describe()


def test_changed_files_mark_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"rev-parse": "abc123", "status": " M meshnode/node.py"}
    monkeypatch.setattr(machine, "_git", lambda command, *_: answers[command])
    assert machine.commit() == "abc123+"
    answers["status"] = ""
    assert machine.commit() == "abc123"
