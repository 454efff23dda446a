"""Pieces of a model: verified before they are written, claimed only once they are synced, whole only when proven."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from gguf_samples import llama

from meshnode.errors import CacheNotWritable, DiskFull, ModelFileInvalid
from meshnode.models import pieces as module
from meshnode.models.digest import DigestStopped
from meshnode.models.manifest import Manifest
from meshnode.models.pieces import Pieces, PiecesBusy, remove, safe_name
from meshnode.models.survey import ManifestShelf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, bytes]:
    """A model of some megabytes: its manifest and its bytes."""
    folder = tmp_path_factory.mktemp("model")
    path = llama(folder / "m.gguf", layers=2, kind="Q4_0")
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 8)
        file.write(random.Random(1).randbytes(path.stat().st_size - file.tell()))
    return ManifestShelf(folder / "hashes.json").survey(path), path.read_bytes()


def data_of(model: tuple[Manifest, bytes], number: int) -> bytes:
    chunk = model[0].chunk(number)
    return model[1][chunk.position :][: chunk.size_bytes]


@pytest.fixture
def folder(tmp_path: Path, model: tuple[Manifest, bytes]) -> Path:
    return tmp_path / "weights" / model[0].digest.hex()


@pytest.fixture
def pieces(folder: Path, model: tuple[Manifest, bytes]) -> Pieces:
    return Pieces.create(folder, model[0], "tiny")


def test_chunk_by_chunk_to_the_whole_model(pieces: Pieces, model: tuple[Manifest, bytes], folder: Path) -> None:
    numbers = list(range(model[0].chunk_count))
    random.Random(2).shuffle(numbers)
    with pieces.lock():
        for number in numbers:
            assert pieces.read(number) is None
            assert pieces.write(number, data_of(model, number))
            assert pieces.read(number) == data_of(model, number)
        pieces.sync()
    assert pieces.is_complete and not pieces.is_proven
    pieces.prove()
    assert pieces.is_proven
    assert pieces.path.read_bytes() == model[1]
    again = Pieces.load(folder)
    assert again is not None and again.is_proven and again.missing(numbers) == []


def test_damaged_chunks_are_not_written(pieces: Pieces, model: tuple[Manifest, bytes]) -> None:
    good = data_of(model, 0)
    with pieces.lock():
        for bad in (b"", good[:-1], good + b"\0", bytes(len(good)), data_of(model, 1)):
            assert not pieces.write(0, bad)
        assert pieces.missing([0]) == [0]
        assert os.pread(pieces._files[0], 16, 0) == bytes(16)


def test_the_file_is_full_of_holes(pieces: Pieces, model: tuple[Manifest, bytes]) -> None:
    with pieces.lock():
        pieces.write(0, data_of(model, 0))
        pieces.sync()
    assert pieces.path.stat().st_size == len(model[1])
    assert pieces.disk_bytes() <= len(data_of(model, 0)) + 16384


def test_tensors_are_there_once_their_chunks_are_synced(pieces: Pieces, model: tuple[Manifest, bytes]) -> None:
    tensor = "blk.1.ffn_up.weight"
    with pieces.lock():
        for number in model[0].chunks_of([tensor]):
            pieces.write(number, data_of(model, number))
        assert not pieces.has_tensor(tensor)
        pieces.sync()
        assert pieces.has_tensor(tensor)
        assert not pieces.has_tensor("blk.0.ffn_up.weight")
        assert not pieces.has_tensor("")
        with pytest.raises(ModelFileInvalid, match="has not come"):
            pieces.references()
        for number in model[0].header_chunks():
            pieces.write(number, data_of(model, number))
        found = pieces.references()
    assert found.find(tensor, 0, 8) == (pieces.path, model[0].span_of[tensor].start)
    assert found.find("blk.0.ffn_up.weight", 0, 8) is None


def test_one_process_writes(pieces: Pieces, folder: Path, model: tuple[Manifest, bytes]) -> None:
    other = Pieces.load(folder)
    assert other is not None
    assert not other.is_held()
    with pieces.lock():
        assert other.is_held()
        with pytest.raises(PiecesBusy), other.lock():
            pass
        assert pieces.write(0, data_of(model, 0)), "the refused one has taken nothing away"
    with other.lock():
        pass
    with pytest.raises(CacheNotWritable):
        pieces.write(1, data_of(model, 1))


def test_what_another_process_has_brought_is_seen(pieces: Pieces, folder: Path, model: tuple[Manifest, bytes]) -> None:
    other = Pieces.load(folder)
    assert other is not None
    with other.lock():
        other.write(0, data_of(model, 0))
        other.sync()
    with pieces.lock():
        assert pieces.has(0)


def test_letting_go_waits_for_threads(
    pieces: Pieces, model: tuple[Manifest, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number of a file that was closed may be another file's a moment later."""
    inside, go_on = threading.Event(), threading.Event()
    real = module._write_all

    def slow(descriptor: int, data: bytes, position: int) -> None:
        inside.set()
        assert go_on.wait(10)
        real(descriptor, data, position)

    with pieces.lock():
        monkeypatch.setattr(module, "_write_all", slow)
        writer = threading.Thread(target=pieces.write, args=(0, data_of(model, 0)))
        writer.start()
        assert inside.wait(10)
        threading.Timer(0.05, go_on.set).start()
    assert go_on.is_set()
    writer.join()


def test_copies_are_verified(pieces: Pieces, model: tuple[Manifest, bytes], tmp_path: Path) -> None:
    source = tmp_path / "other"
    source.write_bytes(b"xyz" + data_of(model, 0))
    with pieces.lock():
        assert not pieces.copy(0, source, 0)
        assert not pieces.copy(0, tmp_path / "none", 3)
        assert not pieces.copy(0, source, 4)
        assert pieces.copy(0, source, 3)


def test_files_that_are_not_those_of_the_bits_are_fetched_anew(
    pieces: Pieces, folder: Path, model: tuple[Manifest, bytes]
) -> None:
    with pieces.lock():
        pieces.write(0, data_of(model, 0))
        pieces.sync()
    for spoil in (lambda: os.truncate(pieces.path, 10), pieces.path.unlink):
        spoil()
        again = Pieces.create(folder, model[0], "tiny")
        with again.lock():
            assert again.missing([0]) == [0]
            assert again.write(0, data_of(model, 0))
            again.sync()


@pytest.mark.parametrize("damage", ["manifest", "name"])
def test_a_damaged_folder_is_made_anew(
    pieces: Pieces, folder: Path, model: tuple[Manifest, bytes], damage: str
) -> None:
    with pieces.lock():
        pieces.write(0, data_of(model, 0))
        pieces.sync()
    (folder / damage).write_bytes(b"/../\xff")
    assert Pieces.load(folder) is None
    again = Pieces.create(folder, model[0], "tiny")
    assert again.missing([0]) == [0]


def test_a_manifest_that_lies_is_found_out_at_the_end(model: tuple[Manifest, bytes], tmp_path: Path) -> None:
    manifest = model[0]
    lie = Manifest((replace(manifest.files[0], sha256=bytes(32)),), manifest.hashes)
    pieces = Pieces.create(tmp_path / lie.digest.hex(), lie, "tiny")
    with pieces.lock():
        with pytest.raises(ModelFileInvalid, match="not complete"):
            pieces.prove()
        for number in range(lie.chunk_count):
            assert pieces.write(number, data_of(model, number))
        with pytest.raises(DigestStopped):
            pieces.prove(lambda: True)
        with pytest.raises(ModelFileInvalid, match="not the model"):
            pieces.prove()
    assert not pieces.is_proven


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EIO, CacheNotWritable)]
)
def test_a_disk_that_does_not_take_it(
    pieces: Pieces, model: tuple[Manifest, bytes], monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with pieces.lock():
        pieces.write(0, data_of(model, 0))
        with monkeypatch.context() as patch:
            patch.setattr(module, "_write_all", refuse)
            with pytest.raises(error):
                pieces.write(1, data_of(model, 1))
        pieces.sync()
        assert pieces.has(0) and not pieces.has(1)


def test_removal_claims_nothing_half_way(pieces: Pieces, folder: Path, model: tuple[Manifest, bytes]) -> None:
    with pieces.lock():
        pieces.write(0, data_of(model, 0))
        pieces.sync()
    remove(folder)
    assert not folder.exists()


# --- crashes --------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The end of the process."""


class VolatileDisk:
    """Writes that were not synced are lost when the machine ends, at the step that was chosen."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.done = 0
        self.unsynced: list[tuple[int, int, bytes, int]] = []
        self.write_all, self.sync_one = module._write_all, module._sync

    def count(self) -> None:
        self.done += 1
        if self.done == self.step:
            raise Killed

    def write(self, descriptor: int, data: bytes, position: int) -> None:
        self.unsynced.append(
            (os.fstat(descriptor).st_ino, os.dup(descriptor), os.pread(descriptor, len(data), position), position)
        )
        self.write_all(descriptor, data, position)
        self.count()

    def sync(self, descriptor: int) -> None:
        self.count()
        self.sync_one(descriptor)
        inode = os.fstat(descriptor).st_ino
        for entry in [entry for entry in self.unsynced if entry[0] == inode]:
            os.close(entry[1])
            self.unsynced.remove(entry)

    def end(self, lost: Callable[[int], bool]) -> None:
        """What is `lost` (by its place among the unsynced writes) was never on the disk."""
        for place, (_, descriptor, before, position) in reversed(list(enumerate(self.unsynced))):
            if lost(place):
                self.write_all(descriptor, before, position)
            os.close(descriptor)


def crashes(folder: Path, model: tuple[Manifest, bytes]) -> Iterator[VolatileDisk]:
    """One run for each step at which the machine may end."""
    for step in range(1, 1000):
        disk = VolatileDisk(step)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_write_all", disk.write)
            patch.setattr(module, "_sync", disk.sync)
            patch.setattr(module, "SYNC_BYTES", 3 << 20)
            pieces = Pieces.create(folder, model[0], "tiny")
            try:
                with pieces.lock():
                    for number in pieces.missing(range(model[0].chunk_count)):
                        pieces.write(number, data_of(model, number))
                    pieces.sync()
            except Killed:
                yield disk
            else:
                return


def test_a_crash_at_any_write_or_sync(folder: Path, model: tuple[Manifest, bytes]) -> None:
    """Whatever reached the disk in whatever order: what the bits claim is there, and the rest can be fetched."""
    chance = random.Random(3)
    steps = 0
    for disk in crashes(folder, model):
        steps += 1
        kind = steps % 3
        disk.end(lambda _: True if kind == 0 else False if kind == 1 else chance.random() < 0.5)  # noqa: B023
        found = Pieces.load(folder)
        assert found is not None
        for number in range(model[0].chunk_count):
            if found.has(number):
                assert found.read(number) == data_of(model, number)
        if chance.random() < 0.5:
            remove(folder)
    assert steps > 15
    pieces = Pieces.create(folder, model[0], "tiny")
    with pieces.lock():
        for number in pieces.missing(range(model[0].chunk_count)):
            pieces.write(number, data_of(model, number))
        pieces.prove()
    assert pieces.path.read_bytes() == model[1]


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("Qwen3-8B-Q4_K_M", "Qwen3-8B-Q4_K_M"),
        ("owner/repo:Q4_K_M", "owner-repo-Q4_K_M"),
        ("../../etc/passwd", "etc-passwd"),
        ("tiny.gguf", "tiny"),
        ("..", "model"),
        ("", "model"),
        ("\u202e\0", "model"),
        ("a" * 300, "a" * 80),
        ("big-00001-of-00002", "big-00001_of_00002"),
    ],
)
def test_names_of_files(given: str, expected: str) -> None:
    assert safe_name(given) == expected
    assert safe_name(expected) == expected
