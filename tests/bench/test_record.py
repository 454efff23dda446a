"""Figures against their limits, and the file that a run leaves."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from bench.record import Figure, Run, bounds, limit, number, row


@pytest.mark.parametrize(
    ("figure", "reached"),
    [
        (Figure("a", 1.9, "ms", 2), True),
        (Figure("a", 2.0, "ms", 2), False),
        (Figure("a", 90.0, "%", 90, at_least=True), True),
        (Figure("a", 89.9, "%", 90, at_least=True), False),
        (Figure("a", 1.0, "ms"), None),
    ],
)
def test_limits(figure: Figure, reached: bool | None) -> None:
    assert figure.reached is reached
    mark = {True: "ok", False: "MISSED", None: "ms"}[reached]
    assert row(asdict(figure)).endswith(mark)


def test_words() -> None:
    assert [number(value) for value in (12345.6, 12.34, 0.01234, -3.456, 0.0)] == [
        "12,346",
        "12.3",
        "0.0123",
        "-3.46",
        "0",
    ]
    figure = asdict(Figure("a", 1.0, "ms", 2, low=0.5, high=1.5))
    assert (bounds(figure), limit(figure)) == ("0.5 to 1.5", "under 2")
    assert (bounds({**figure, "low": None}), limit({**figure, "limit": None})) == ("", "")
    assert limit({**figure, "at_least": True}) == "at least 2"


def test_a_run_leaves_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run("gateway", quick=False, machine={"processor": "x"}, started_at=0.0)
    run.add(Figure("added", 3.0, "ms", 2))
    run.raw["points"] = [1, 2]
    path = run.finish(tmp_path / "results")
    assert path is not None and path.name == "gateway-1970-01-01-0000.json"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    body = json.loads(path.read_text())
    assert (body["schema"], body["benchmark"], body["date"]) == (1, "gateway", "1970-01-01T00:00:00Z")
    assert body["figures"][0] == {**asdict(run.figures[0]), "reached": False}
    assert body["raw"] == {"points": [1, 2]} and body["machine"] == {"processor": "x"}
    assert "MISSED: added" in capsys.readouterr().out


def test_a_quick_run_is_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("bench.record.FOLDER", tmp_path)
    assert Run("gateway", quick=True, machine={}).finish() is None
    assert list(tmp_path.iterdir()) == []
