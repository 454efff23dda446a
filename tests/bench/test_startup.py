"""The start-up benchmark: what it measures is what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import startup
from bench.record import Run
from meshnode.models.gguf import read_header


def test_the_large_header(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    startup.write_large_header(path)
    header = read_header(path)
    assert header.vocabulary_size == startup.HEADER_TOKENS
    assert header.array_lengths["tokenizer.ggml.merges"] == startup.HEADER_MERGES
    assert path.stat().st_size > 5_000_000


def test_commands_and_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "HEADER_TOKENS", 500)
    monkeypatch.setattr(startup, "HEADER_MERGES", 500)
    run = Run("startup", quick=True, machine={})
    effort = startup.Effort(commands=1, starts=0, headers=1)
    for part in (startup.baseline, startup.commands, startup.header):
        part(run, effort)
    assert [figure.name.split(" with")[0] for figure in run.figures] == [
        "python -c '' (for comparison)",
        "meshnode --version",
        "meshnode --help",
        "header",
    ]
    assert all(figure.value > 0 for figure in run.figures)
    assert run.figures[1].value > run.figures[0].value
