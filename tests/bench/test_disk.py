"""The models of benchmarks are found where every machine of a benchmark looks for them, and written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import disk
from meshnode.models.store import ModelStore
from tests.e2e.small_models import embedding_model


def test_a_model_is_written_once_and_found_by_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHNODE_CACHE", str(tmp_path))
    written: list[Path] = []

    def write(path: Path) -> None:
        written.append(path)
        embedding_model(path)

    path = disk.kept("small", write)
    assert path == disk.kept("small", write) and len(written) == 1
    assert path.is_relative_to(tmp_path) and path.name == "small.gguf"
    monkeypatch.setenv("HF_HOME", str(disk.home()))
    found = [local for local in ModelStore.from_environment().list_local() if local.path == path]
    assert [(local.incomplete, local.total_bytes) for local in found] == [(False, path.stat().st_size)]
