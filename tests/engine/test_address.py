"""Addresses: private, short, fresh, and nothing left behind."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

import pytest

from meshnode.engine.address import AddressBook
from meshnode.engine.commands import SOCKET_PATH_BYTES


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder with a short path, which pytest's own may not have."""
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def test_fresh_private_sockets_and_a_clean_end(short: Path) -> None:
    book = AddressBook(short / "home" / "run")
    first, second = book.fresh(), book.fresh()
    assert first.socket is not None and second.socket is not None and first != second
    assert first.socket.parent == short / "home" / "run"
    assert first.socket.parent.stat().st_mode & 0o777 == 0o700
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(first.socket))
    book.release(first)
    book.release(second)
    book.close()
    assert list((short / "home").iterdir()) == []


def test_leftovers_and_wide_permissions_are_mended(short: Path) -> None:
    folder = short / "run"
    folder.mkdir(mode=0o755)
    (folder / "000001.sock").touch()
    (folder / "other.txt").touch()
    address = AddressBook(folder).fresh()
    assert address.socket == folder / "000001.sock" and not address.socket.exists()
    assert folder.stat().st_mode & 0o777 == 0o700 and (folder / "other.txt").exists()


@pytest.mark.parametrize("kind", ["long", "link", "file"])
def test_an_unusable_folder_is_replaced_by_a_temporary_one(short: Path, kind: str) -> None:
    wanted = short / ("x" * 100 if kind == "long" else "run")
    if kind == "link":
        (short / "elsewhere").mkdir()
        wanted.symlink_to(short / "elsewhere")
    if kind == "file":
        wanted.touch()
    book = AddressBook(wanted)
    address = book.fresh()
    assert address.socket is not None and len(str(address.socket)) <= SOCKET_PATH_BYTES
    assert address.socket.parent.name.startswith("meshnode-")
    assert address.socket.parent.stat().st_mode & 0o777 == 0o700
    book.close()
    assert not address.socket.parent.exists()


def test_loopback_ports_where_no_socket_can_be(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (short / ("d" * 100)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(short / ("d" * 100)))
    for book in (AddressBook(short / "run", unix=False), AddressBook(short / ("x" * 100))):
        address = book.fresh()
        assert address.socket is None and address.host == "127.0.0.1" and 1024 <= address.port < 65536
        with socket.socket() as listener:
            listener.bind((address.host, address.port))
        assert str(address) == f"http://127.0.0.1:{address.port}"
        book.close()
    assert list((short / ("d" * 100)).iterdir()) == []
