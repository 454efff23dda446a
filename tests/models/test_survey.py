"""Surveying a model gives its manifest and its hash in one pass, and keeps both."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest
from gguf_samples import base_keys, ends, feed_forward, llama, write_gguf

from meshnode.errors import ModelFileInvalid
from meshnode.models.digest import DigestStopped, content_sha256
from meshnode.models.manifest import Manifest
from meshnode.models.survey import ManifestShelf


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = llama(tmp_path / "m.gguf", layers=2, kind="Q4_0")
    with path.open("r+b") as file:
        file.seek(-(1 << 20), os.SEEK_END)
        file.write(random.Random(1).randbytes(1 << 20))
    return path


@pytest.fixture
def shelf(tmp_path: Path) -> ManifestShelf:
    return ManifestShelf(tmp_path / "cache" / "hashes.json")


def refuse() -> bool:
    raise AssertionError("the file was read")


def check(manifest: Manifest, *paths: Path) -> None:
    contents = [path.read_bytes() for path in paths]
    assert [file.size_bytes for file in manifest.files] == [len(content) for content in contents]
    for number in range(manifest.chunk_count):
        chunk = manifest.chunk(number)
        data = contents[chunk.file][chunk.position :][: chunk.size_bytes]
        assert hashlib.sha256(data).digest() == chunk.sha256


def test_the_manifest_is_that_of_the_bytes(model: Path, shelf: ManifestShelf) -> None:
    manifest = shelf.survey(model)
    check(manifest, model)
    assert manifest.sha256 == hashlib.sha256(model.read_bytes()).digest()


def test_the_hash_of_the_file_is_noted_on_the_way(model: Path, shelf: ManifestShelf) -> None:
    manifest = shelf.survey(model)
    assert content_sha256(model, shelf.notes, refuse) == manifest.sha256.hex()


def test_a_known_hash_is_taken(model: Path, shelf: ManifestShelf) -> None:
    assert shelf.survey(model, sha256="ab" * 32).sha256 == b"\xab" * 32
    other = ManifestShelf(shelf.notes.parent / "other" / "hashes.json")
    found = content_sha256(model, other.notes)
    assert other.survey(model).sha256.hex() == found


def test_a_known_manifest_is_not_made_again(model: Path, shelf: ManifestShelf) -> None:
    first = shelf.survey(model)
    assert ManifestShelf(shelf.notes).survey(model, stopped=refuse) == first
    assert shelf.load(first.digest) == first
    assert list(shelf.surveyed()) == [model]


def test_a_changed_file_is_read_anew(model: Path, shelf: ManifestShelf) -> None:
    first = shelf.survey(model)
    with model.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\0")
    os.utime(model, (1, 1))
    assert shelf.known(model) is None
    assert list(shelf.surveyed()) == []
    second = shelf.survey(model)
    check(second, model)
    assert second.digest != first.digest


@pytest.mark.parametrize("damage", [b"", b"{", b"{}", b"[1]", b'[["a"]]', b'[["a", "b", "zz"]]'])
def test_a_damaged_shelf_costs_only_the_time(model: Path, shelf: ManifestShelf, damage: bytes) -> None:
    first = shelf.survey(model)
    (shelf.folder / "index.json").write_bytes(damage)
    assert shelf.known(model) is None
    assert shelf.survey(model) == first
    (shelf.folder / first.digest.hex()).write_bytes(first.encoded[:-1])
    assert shelf.load(first.digest) is None
    assert shelf.survey(model) == first
    assert shelf.known(model) == first


def test_a_shelf_that_cannot_be_written_costs_only_the_time(model: Path, shelf: ManifestShelf) -> None:
    shelf.notes.parent.write_text("a file where a folder should be")
    check(shelf.survey(model), model)


def test_it_can_be_stopped(model: Path, shelf: ManifestShelf) -> None:
    with pytest.raises(DigestStopped):
        shelf.survey(model, stopped=lambda: True)
    assert shelf.known(model) is None


def test_a_split_model_has_one_manifest(tmp_path: Path, shelf: ManifestShelf) -> None:
    tensors = [*ends(), *feed_forward(0)]
    paths = []
    for number in range(2):
        raw: dict[str, object] = {"split.no": number, "split.count": 2, "split.tensors.count": 6}
        path = tmp_path / f"big-{number + 1:05d}-of-00002.gguf"
        own = tensors[3 * number : 3 * number + 3]
        paths.append(write_gguf(path, "llama", base_keys(1), own, vocabulary=0, raw_keys=raw))
    manifest = shelf.survey(paths[1])
    check(manifest, *paths)
    assert shelf.known(paths[0]) == manifest
    assert list(shelf.surveyed()) == [paths[1]]
    paths[0].unlink()
    assert shelf.known(paths[1]) is None
    with pytest.raises(ModelFileInvalid, match="1 of 2 parts are missing: big-00001-of-00002"):
        shelf.survey(paths[1])


def test_a_file_that_is_no_model(tmp_path: Path, shelf: ManifestShelf) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(ModelFileInvalid):
        shelf.survey(path)
