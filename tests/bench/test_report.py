"""The results section of the README, from result files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.record import Figure, Run
from bench.report import BEGIN, END, README, main, newest, render, replaced

MACHINE: dict[str, Any] = {"processor": "Some CPU", "threads": 2, "cores": 2, "memory_bytes": 16e9, "commit": "abc"}


def saved(folder: Path, benchmark: str, value: float, *, day: int = 1, **machine: object) -> Path:
    run = Run(benchmark, quick=False, machine={**MACHINE, **machine}, started_at=day * 86_400.0)
    run.add(Figure("a | b", value, "ms", 2, low=value - 0.5, high=value + 0.5, note="how"))
    path = run.finish(folder)
    assert path is not None
    return path


def test_the_newest_of_each_in_order(tmp_path: Path) -> None:
    files = [saved(tmp_path, name, day, day=day) for name in ("startup", "zebra", "gateway") for day in (2, 1)]
    found = newest(files)
    assert [result["benchmark"] for result in found] == ["gateway", "startup", "zebra"]
    assert [result["figures"][0]["value"] for result in found] == [2, 2, 2]


@pytest.mark.parametrize("content", ["[]", "{}", '{"schema": 9}'])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(content)
    with pytest.raises(ValueError, match="is no result"):
        newest([file])


def test_the_section(tmp_path: Path) -> None:
    text = render(newest([saved(tmp_path, "gateway", 1.5), saved(tmp_path, "startup", 3.0, load_1min=4)]))
    assert "| a / b | 1.5 ms | 1 to 2 | under 2 | yes | how |" in text
    assert "| a / b | 3 ms | 2.5 to 3.5 | under 2 | **no** | how |" in text
    assert "1970-01-02 00:00 UTC, commit abc" in text
    assert text.count("Some CPU") == 1, "one machine is described once"
    assert (
        render(newest([saved(tmp_path, "gateway", 1, processor="A"), saved(tmp_path, "startup", 1)])).count("GB") == 2
    )
    assert "No results" in render([])


def test_only_the_part_between_the_markers_changes() -> None:
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = replaced(text, "new")
    assert once == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert replaced(once, "new") == once
    for broken in ("", BEGIN, text + text):
        with pytest.raises(ValueError, match="expected one"):
            replaced(broken, "new")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}{END}\n")
    arguments = ["report", str(saved(tmp_path, "gateway", 1.5)), "--readme", str(readme)]
    monkeypatch.setattr("sys.argv", [*arguments, "--check"])
    with pytest.raises(SystemExit, match="out of date"):
        main()
    monkeypatch.setattr("sys.argv", arguments)
    main()
    assert "1.5 ms" in readme.read_text()
    monkeypatch.setattr("sys.argv", [*arguments, "--check"])
    main()
    monkeypatch.setattr("sys.argv", ["report", str(readme), "--readme", str(readme)])
    with pytest.raises((SystemExit, json.JSONDecodeError)):
        main()


def test_the_readme_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    assert README.exists()
    monkeypatch.setattr("sys.argv", ["report", "--check"])
    main()
