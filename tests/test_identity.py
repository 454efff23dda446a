import os
import stat
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from meshnode.errors import HomeNotWritable, StateError
from meshnode.identity import NodeId, ephemeral, load_or_create, short, verify


def test_an_identity_is_made_once_and_found_again(tmp_path: Path) -> None:
    file = tmp_path / "new" / "home" / "node.key"
    first = load_or_create(file)
    second = load_or_create(file)
    assert first.node_id == second.node_id
    assert len(first.node_id) == 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert [path.name for path in file.parent.iterdir()] == ["node.key"]
    assert load_or_create(tmp_path / "other.key").node_id != first.node_id


def test_signatures(tmp_path: Path) -> None:
    mine, other = load_or_create(tmp_path / "a"), load_or_create(tmp_path / "b")
    signature = mine.sign(b"message")
    assert len(signature) == 64
    assert verify(mine.node_id, signature, b"message")
    assert not verify(other.node_id, signature, b"message")
    assert not verify(mine.node_id, signature, b"messagf")
    for position in range(len(signature)):
        damaged = bytearray(signature)
        damaged[position] ^= 1
        assert not verify(mine.node_id, bytes(damaged), b"message")
    for malformed in (b"", b"x", signature + b"x", signature[:-1]):
        assert not verify(mine.node_id, malformed, b"message")
    for malformed in (b"", b"x" * 31, b"x" * 33):
        assert not verify(NodeId(malformed), signature, b"message")


def test_the_private_half_is_not_shown(tmp_path: Path) -> None:
    identity = load_or_create(tmp_path / "k")
    assert repr(identity) == f"Identity({short(identity.node_id)})"
    assert len(short(identity.node_id)) == 10
    assert identity.node_id.hex().startswith(short(identity.node_id))


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "k"
    load_or_create(file)
    for mode in (0o640, 0o604, 0o610, 0o666):
        file.chmod(mode)
        with pytest.raises(StateError, match="others can read") as caught:
            load_or_create(file)
        assert caught.value.fix == f"chmod 600 {file}"
    file.chmod(0o400)
    load_or_create(file)


def test_what_is_no_key_is_refused_and_kept(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    load_or_create(whole)
    pem = whole.read_bytes()
    key = load_pem_private_key(pem, None)
    wrong = Ed448PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))  # type: ignore[arg-type]
    file = tmp_path / "k"
    for content in (b"", b"\0" * 100, pem[:50], pem[:-30], pem.replace(b"MC4", b"MC5"), wrong, locked, b"a" * 100_000):
        file.write_bytes(content)
        file.chmod(0o600)
        with pytest.raises(StateError, match="not the key of a node") as caught:
            load_or_create(file)
        assert "new identity" in caught.value.fix
        assert file.read_bytes() == content
    with pytest.raises(StateError, match="cannot be read"):
        load_or_create(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StateError):  # root may write everywhere, so a file stands where the folder should
        load_or_create(blocked / "node.key")


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HomeNotWritable, match="No space left"):
        load_or_create(tmp_path / "node.key")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    load_or_create(tmp_path / "node.key")


def test_a_crash_before_the_rename_leaves_no_identity_but_not_half_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(Killed):
        load_or_create(tmp_path / "node.key")
    monkeypatch.undo()
    assert not (tmp_path / "node.key").exists()


def test_many_readers_at_once_agree(tmp_path: Path) -> None:
    file = tmp_path / "node.key"
    load_or_create(file)
    found: list[NodeId] = []
    threads = [threading.Thread(target=lambda: found.append(load_or_create(file).node_id)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_an_ephemeral_key_is_new_each_time() -> None:
    one, two = ephemeral(), ephemeral()
    assert one.node_id != two.node_id
    assert verify(one.node_id, one.sign(b"x"), b"x")
