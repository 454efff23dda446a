import os
import stat
from pathlib import Path
from typing import Any

import pytest

from meshnode import durable
from meshnode.errors import HomeNotWritable


class Killed(BaseException):
    pass


def test_what_is_written_can_be_read_by_nobody_else(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file"
    durable.write(file, b"one")
    durable.write(file, b"two")
    assert file.read_bytes() == b"two"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    durable.write(tmp_path / "open", b"", mode=0o644)
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o644 & ~_umask()
    assert [path.name for path in file.parent.iterdir()] == ["file"]


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def test_the_order_is_content_name_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    sync, replace = os.fsync, Path.replace

    def noted_sync(descriptor: int) -> None:
        happened.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "content")
        sync(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        happened.append("name")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    durable.write(tmp_path / "file", b"x")
    assert happened == ["content", "name", "folder"]
    durable.rename(tmp_path / "file", tmp_path / "other")
    assert happened[3:] == ["name", "folder"]
    durable.remove(tmp_path / "other")
    assert happened[5:] == ["folder"]


@pytest.mark.parametrize("where", ["os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize("before", [None, b"old"])
def test_a_crash_leaves_the_old_content_and_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, before: bytes | None
) -> None:
    file = tmp_path / "file"
    if before is not None:
        durable.write(file, before)

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(where, killed)
        with pytest.raises(Killed):
            durable.write(file, b"new")
    assert (file.read_bytes() if file.exists() else None) == before
    durable.write(file, b"newer")
    assert file.read_bytes() == b"newer"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    durable.write(tmp_path / "file", b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HomeNotWritable, match="file: No space left"):
        durable.write(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".file.partial").symlink_to(victim)
    durable.write(tmp_path / "file", b"x")
    assert victim.read_text() == "mine"
    assert not (tmp_path / "file").is_symlink()


def test_renaming_and_removing(tmp_path: Path) -> None:
    durable.write(tmp_path / "a", b"a")
    durable.write(tmp_path / "b", b"b")
    durable.rename(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"a"
    with pytest.raises(HomeNotWritable):
        durable.rename(tmp_path / "a", tmp_path / "b")
    durable.remove(tmp_path / "b")
    durable.remove(tmp_path / "b")
    durable.remove(tmp_path / "no" / "folder")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(HomeNotWritable):
        durable.remove(tmp_path)


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeNotWritable):
        durable.write(tmp_path / "file" / "key", b"x")
