"""Models from peers: what was longest unused goes first, what is used stays, and nothing else is touched."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from gguf_samples import llama

from meshnode.errors import DiskFull
from meshnode.models import fetched
from meshnode.models.fetched import FetchedModels
from meshnode.models.pieces import Pieces
from meshnode.models.survey import ManifestShelf

DAY_S = 86_400


@pytest.fixture(autouse=True)
def no_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetched, "SPARE_BYTES", 0)


def bring(models: FetchedModels, folder: Path, name: str, *, days_ago: int, whole: bool = True) -> Pieces:
    """A model that was fetched some days ago."""
    path = llama(folder / f"{name}.gguf", layers=1, kind="Q4_0")
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 4)
        file.write(random.Random(name).randbytes(path.stat().st_size - file.tell()))
    manifest = ManifestShelf(folder / "hashes.json").survey(path)
    content = path.read_bytes()
    pieces = models.open(manifest, name)
    with pieces.lock():
        for number in range(manifest.chunk_count if whole else 3):
            chunk = manifest.chunk(number)
            assert pieces.write(number, content[chunk.position :][: chunk.size_bytes])
        pieces.sync()
    if whole:
        pieces.prove()
    when = 1_700_000_000 - days_ago * DAY_S
    os.utime(pieces.folder / "manifest", (when, when))
    return pieces


def test_whole_models_are_files_like_any_other(tmp_path: Path) -> None:
    models = FetchedModels(tmp_path / "weights")
    one = bring(models, tmp_path, "one", days_ago=1)
    bring(models, tmp_path, "half", days_ago=1, whole=False)
    (found,) = models.whole()
    assert found.path == one.path == found.parts[0]
    assert found.name == "one"
    assert found.ref.kind == "file" and found.ref.path == one.path
    assert found.sha256 == one.manifest.sha256.hex()
    assert not found.incomplete
    assert {pieces.name for pieces in models.all()} == {"one", "half"}
    assert models.find(one.manifest.digest) is not None
    assert models.find(bytes(32)) is None


def test_what_was_longest_unused_goes_first(tmp_path: Path) -> None:
    models = FetchedModels(tmp_path / "weights")
    old = bring(models, tmp_path, "old", days_ago=9)
    older = bring(models, tmp_path, "older", days_ago=99)
    new = bring(models, tmp_path, "new", days_ago=1)
    bounded = FetchedModels(models.folder, models.taken_bytes() + 1000)
    assert bounded.make_room(1000, lambda _: False) == []
    assert bounded.make_room(1001, lambda _: False) == [older.manifest.digest]
    assert not older.folder.exists() and old.folder.exists() and new.folder.exists()
    old.use()
    size = new.disk_bytes()
    assert bounded.make_room(bounded.most_bytes - size, lambda _: False) == [new.manifest.digest]  # type: ignore[operator]
    assert old.folder.exists()


def test_what_is_used_stays(tmp_path: Path) -> None:
    models = FetchedModels(tmp_path / "weights")
    used = bring(models, tmp_path, "used", days_ago=9)
    held = bring(models, tmp_path, "held", days_ago=8)
    bounded = FetchedModels(models.folder, models.taken_bytes())
    with held.lock(), pytest.raises(DiskFull, match="models from peers may take") as caught:
        bounded.make_room(1, lambda found: found.name == "used")
    assert "--max-disk" in caught.value.fix
    assert used.folder.exists() and held.folder.exists()


def test_nothing_is_deleted_for_what_cannot_fit(tmp_path: Path) -> None:
    models = FetchedModels(tmp_path / "weights", 50_000_000)
    one = bring(models, tmp_path, "one", days_ago=9)
    with pytest.raises(DiskFull):
        models.make_room(50_000_001, lambda _: False)
    assert one.is_proven
    unbounded = FetchedModels(models.folder)
    with pytest.raises(DiskFull, match="GB free"):
        unbounded.make_room(1 << 60, lambda _: False)
    assert one.is_proven


def test_other_files_are_not_looked_at(tmp_path: Path) -> None:
    models = FetchedModels(tmp_path / "weights", 1)
    one = bring(models, tmp_path, "one", days_ago=9)
    mine = tmp_path / "weights" / "mine.gguf"
    mine.write_bytes(bytes(1000))
    strange = tmp_path / "weights" / ("x" * 64)
    strange.mkdir()
    (strange / "manifest").write_bytes(b"not a manifest")
    assert models.make_room(0, lambda _: False) == [one.manifest.digest]
    assert mine.exists() and strange.exists()


def test_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    models = FetchedModels(tmp_path / "none", 10)
    assert models.whole() == []
    assert models.taken_bytes() == 0
    assert models.make_room(10, lambda _: False) == []
