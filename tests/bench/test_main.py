"""Which programs `python -m bench` runs."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

program = import_module("bench.__main__")
ROOT = Path(__file__).parents[2]


def test_all_of_them_and_then_the_report() -> None:
    found = program.commands([])
    assert [command[0] for command in found] == [*(f"bench.{name}" for name in program.NAMES), "bench.report"]
    assert all((ROOT / "bench" / f"{name}.py").exists() for name in program.NAMES)


def test_named_ones_and_quick_ones_change_no_report() -> None:
    assert program.commands(["split"]) == [["bench.split"]]
    assert program.commands(["split", "mesh", "--quick"]) == [["bench.split", "--quick"], ["bench.mesh", "--quick"]]
    assert program.commands(["split", "--only", "load"]) == [["bench.split", "--only", "load"]]
    assert ["bench.report"] not in program.commands(["--quick"])


@pytest.mark.parametrize(("arguments", "words"), [(["splits"], "splits"), (["--only", "load"], "--only load")])
def test_what_there_is_not_is_refused_in_words(arguments: list[str], words: str) -> None:
    with pytest.raises(SystemExit, match=words):
        program.main(arguments)


def test_it_ends_as_the_first_that_fails_does(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def run(argv: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append(argv[2])
        return subprocess.CompletedProcess(argv, 3)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemExit) as ended:
        program.main(["mesh", "split"])
    assert (ran, ended.value.code) == (["bench.mesh"], 3)


def test_it_is_a_program() -> None:
    done = subprocess.run([sys.executable, "-m", "bench", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "split" in done.stdout
