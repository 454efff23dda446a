"""The hash of a file is right, kept, and taken again when the file has changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from meshnode.models.digest import READ_BYTES, DigestStopped, content_sha256


def sample(folder: Path, content: bytes = b"weights") -> tuple[Path, Path]:
    file = folder / "model.gguf"
    file.write_bytes(content)
    return file, folder / "cache" / "hashes.json"


@pytest.mark.parametrize("content", [b"", b"weights", b"x" * (2 * READ_BYTES + 1)])
def test_it_is_the_hash_of_all_bytes(tmp_path: Path, content: bytes) -> None:
    file, notes = sample(tmp_path, content)
    assert content_sha256(file, notes) == hashlib.sha256(content).hexdigest()


def test_a_known_file_is_not_read_again(tmp_path: Path) -> None:
    file, notes = sample(tmp_path)
    found = content_sha256(file, notes)

    def refuse() -> bool:
        raise AssertionError("the file was read")

    assert content_sha256(file, notes, refuse) == found


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    file, notes = sample(tmp_path)
    first = content_sha256(file, notes)
    file.write_bytes(b"other weights")
    assert content_sha256(file, notes) == hashlib.sha256(b"other weights").hexdigest() != first
    assert len(json.loads(notes.read_bytes())) == 2


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"a": 1}', b"[" * 100_000])
def test_damaged_notes_cost_only_the_time(tmp_path: Path, damage: bytes) -> None:
    file, notes = sample(tmp_path)
    notes.parent.mkdir()
    notes.write_bytes(damage)
    assert content_sha256(file, notes) == hashlib.sha256(b"weights").hexdigest()


def test_notes_that_cannot_be_kept_cost_only_the_time(tmp_path: Path) -> None:
    file, notes = sample(tmp_path)
    notes.parent.write_text("a file where a folder should be")
    assert content_sha256(file, notes) == hashlib.sha256(b"weights").hexdigest()


def test_it_can_be_stopped_and_leaves_nothing(tmp_path: Path) -> None:
    file, notes = sample(tmp_path)
    with pytest.raises(DigestStopped):
        content_sha256(file, notes, lambda: True)
    assert not notes.exists()
