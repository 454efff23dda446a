"""What others can have of this disk: by hash and number, from files that are still what they were."""

from __future__ import annotations

import gc
import os
import random
from pathlib import Path

import pytest
from gguf_samples import llama

from meshnode.models.fetched import FetchedModels
from meshnode.models.library import ModelLibrary
from meshnode.models.manifest import Manifest
from meshnode.models.survey import ManifestShelf


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = llama(tmp_path / "m.gguf", layers=2, kind="Q4_0")
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 8)
        file.write(random.Random(1).randbytes(path.stat().st_size - file.tell()))
    return path


def library(folder: Path) -> ModelLibrary:
    found = ModelLibrary(ManifestShelf(folder / "cache" / "hashes.json"), FetchedModels(folder / "cache" / "weights"))
    found.open()
    return found


def data_of(path: Path, manifest: Manifest, number: int) -> bytes:
    chunk = manifest.chunk(number)
    return path.read_bytes()[chunk.position :][: chunk.size_bytes]


def test_a_surveyed_model_can_be_had_also_after_a_restart(tmp_path: Path, model: Path) -> None:
    first = library(tmp_path)
    manifest = first.survey(model)
    for shown in (first, library(tmp_path)):
        assert shown.manifest(manifest.sha256, b"") == (manifest.encoded, shown.have(manifest.digest))
        assert shown.manifest(b"", manifest.digest) is not None
        bits = shown.have(manifest.digest)
        assert bits is not None
        assert [bits[n >> 3] >> (n & 7) & 1 for n in range(8 * len(bits))] == [
            int(n < manifest.chunk_count) for n in range(8 * len(bits))
        ]
        for number in (0, manifest.chunk_count - 1):
            assert shown.read(manifest.digest, number) == data_of(model, manifest, number)
        assert shown.models() == (manifest.sha256,)
        assert shown.path_of(manifest.sha256) == model
        assert shown.manifest_of(manifest.sha256) == manifest


def test_what_is_not_there_is_not_there(tmp_path: Path, model: Path) -> None:
    shown = library(tmp_path)
    manifest = shown.survey(model)
    assert shown.manifest(bytes(32), b"") is None
    assert shown.manifest(manifest.sha256, bytes(32)) is None
    assert shown.manifest(bytes(32), manifest.digest) is None
    assert shown.have(bytes(32)) is None
    assert shown.read(bytes(32), 0) is None
    assert shown.read(manifest.digest, manifest.chunk_count) is None
    assert shown.read(manifest.digest, (1 << 32) - 1) is None
    assert shown.references(bytes(32)) is None
    assert shown.path_of(manifest.sha256, bytes(32)) is None


def test_a_file_that_changed_is_not_shown(tmp_path: Path, model: Path) -> None:
    shown = library(tmp_path)
    manifest = shown.survey(model)
    os.utime(model, (1, 1))
    assert shown.manifest(manifest.sha256, b"") is None
    assert shown.have(manifest.digest) is None
    assert shown.read(manifest.digest, 0) is None
    assert shown.references(manifest.sha256) is None
    assert shown.models() == ()
    model.unlink()
    assert shown.models() == ()


def test_pieces_are_shown_while_they_come(tmp_path: Path, model: Path) -> None:
    manifest = library(tmp_path / "other").survey(model)
    shown = library(tmp_path)
    pieces = shown.fetched.open(manifest, "tiny")
    shown.add_pieces(pieces)
    assert shown.pieces_of(manifest.digest) is pieces
    assert shown.references(manifest.sha256, manifest.digest) is None, "its header has not come"
    with pieces.lock():
        for number in manifest.header_chunks():
            assert pieces.write(number, data_of(model, manifest, number))
        pieces.sync()
        bits = shown.have(manifest.digest)
        assert bits is not None and bits[0] & 1
        assert shown.read(manifest.digest, 0) == data_of(model, manifest, 0)
        assert shown.read(manifest.digest, manifest.chunk_count - 1) is None
    assert shown.models() == ()
    assert shown.path_of(manifest.sha256) is None
    assert shown.manifest(manifest.sha256, b"") is None, "nothing is offered under a hash that is not proven"
    assert shown.references(manifest.sha256) is None
    found = shown.references(manifest.sha256, manifest.digest)
    assert found is not None and found.find("blk.0.ffn_up.weight", 0, 1) is None
    assert shown.is_lent(pieces.folder)
    del found
    gc.collect()
    assert not shown.is_lent(pieces.folder)
    assert library(tmp_path).have(manifest.digest) == bits
    shown.drop(manifest.digest)
    assert shown.have(manifest.digest) is None


def test_equal_chunks_of_other_models_are_found(tmp_path: Path, model: Path) -> None:
    other = tmp_path / "other.gguf"
    content = bytearray(model.read_bytes())
    content[-100:] = bytes(100)
    other.write_bytes(content)
    wanted = library(tmp_path / "elsewhere").survey(model)
    shown = library(tmp_path)
    assert list(shown.copies_of(wanted, range(wanted.chunk_count))) == []
    shown.survey(other)
    found = {number: (path, position) for number, path, position in shown.copies_of(wanted, range(wanted.chunk_count))}
    assert set(range(wanted.chunk_count)) - set(found) == {wanted.chunk_count - 1}
    for number, (path, position) in found.items():
        chunk = wanted.chunk(number)
        assert path.read_bytes()[position:][: chunk.size_bytes] == data_of(model, wanted, number)
    assert list(shown.copies_of(wanted, [wanted.chunk_count - 1])) == []
