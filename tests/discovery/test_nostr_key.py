"""The Nostr key: its file, what it signs, what is genuine, and that nothing shows it."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from nostr_sdk import Keys

from meshnode.discovery.nostr_key import NostrKey, is_genuine, load_or_create
from meshnode.errors import HomeNotWritable, StateError
from meshnode.wire.nostr import event_id


def test_a_key_is_made_once_and_kept_to_oneself(tmp_path: Path) -> None:
    file = tmp_path / "public" / "nostr.key"
    key = load_or_create(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert load_or_create(file).public == key.public
    assert Keys.parse(file.read_text().strip()).public_key().to_hex() == key.public.hex()


def test_it_is_on_the_disk_before_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(descriptor), real(descriptor))[1])
    load_or_create(tmp_path / "nostr.key")
    assert len(synced) == 2, "the file, and its folder"


def test_a_key_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    file = tmp_path / "nostr.key"
    load_or_create(file)
    file.chmod(0o640)
    with pytest.raises(StateError, match="others can read") as caught:
        load_or_create(file)
    assert caught.value.fix.startswith("chmod 600")


@pytest.mark.parametrize("content", [b"", b"xyz", b"0" * 64, b"f" * 64, b"ab" * 31, b"\xff" * 64, b"1" * 5000])
def test_a_file_that_is_no_key_stays_and_is_not_quoted(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "nostr.key"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(StateError, match="is not a Nostr key") as caught:
        load_or_create(file)
    assert caught.value.__cause__ is None
    assert file.read_bytes() == content


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((HomeNotWritable, StateError)):
        load_or_create(tmp_path / "file" / "nostr.key")


def test_what_it_signs_is_genuine_and_has_its_work() -> None:
    key = NostrKey(Keys.generate())
    event = key.sign(30078, [["d", "x"], ["t", "meshnode"]], "content \u00fc", 1_800_000_000, work_bits=10)
    assert is_genuine(event)
    assert event.publisher == key.public
    assert event.work_bits >= 10
    assert event.values("d") == ("x",)
    assert event.id == event_id(event.publisher, event.created_at, event.kind, event.tags, event.content)


def test_what_was_changed_is_not_genuine() -> None:
    event = NostrKey(Keys.generate()).sign(1, [["d", "x"]], "content", 5)
    other = NostrKey(Keys.generate()).sign(1, [["d", "x"]], "content", 5)
    for changed in (
        replace(event, content="other"),
        replace(event, created_at=6),
        replace(event, tags=()),
        replace(event, publisher=other.publisher),
        replace(event, publisher=bytes(32)),
        replace(event, signature=bytes(64)),
        replace(event, signature=other.signature),
        replace(event, id=hashlib.sha256(b"").digest()),
        replace(event, content="\ud800"),
    ):
        assert not is_genuine(changed)


def test_nothing_shows_the_secret(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    file = tmp_path / "nostr.key"
    key = load_or_create(file)
    key.sign(1, [], "x", 5)
    secret = file.read_text().strip()
    assert secret not in repr(key)
    assert secret not in caplog.text
    assert key.public.hex().startswith(repr(key).removeprefix("NostrKey(").removesuffix(")"))


def test_the_library_is_loaded_only_when_it_is_used() -> None:
    code = "import sys, meshnode.discovering; print({'nostr_sdk', 'websockets', 'web3'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
