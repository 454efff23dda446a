from pathlib import Path

import pytest

from meshnode import durable
from meshnode.errors import StateError
from meshnode.mesh.peers import FILE_BYTES, MAX_PEERS, AddressBook
from meshnode.wire.address import Address
from meshnode.wire.messages import PeerEntry
from meshnode.wire.statements import Coordinate


def entry(number: int, port: int = 9337) -> PeerEntry:
    return PeerEntry(number.to_bytes(32, "big"), (Address("192.0.2.1", port),))


def test_the_last_heard_of_come_first(tmp_path: Path) -> None:
    book = AddressBook(tmp_path / "peers")
    assert book.peers == ()
    book.remember([entry(1), entry(2)])
    book.remember([entry(3), entry(2, port=1)])
    assert AddressBook(tmp_path / "peers").peers == (entry(3), entry(2, port=1), entry(1)) == book.peers


def test_who_cannot_be_dialled_is_passed_over(tmp_path: Path) -> None:
    book = AddressBook(tmp_path / "peers")
    book.remember([entry(1)])
    book.remember([PeerEntry(entry(1).node), PeerEntry(entry(2).node)])
    assert book.peers == (entry(1),)


def test_the_book_is_bounded_and_its_largest_form_can_be_read(tmp_path: Path) -> None:
    addresses = tuple(Address(f"2001:db8:1111:2222:3333:4444:5555:{n + 1:x}", 65535) for n in range(8))
    place = Coordinate((1 << 30,) * 8, 1 << 31, 1000)
    entries = [PeerEntry(number.to_bytes(32, "big"), addresses, place) for number in range(MAX_PEERS + 10)]
    AddressBook(tmp_path / "peers").remember(entries)
    assert AddressBook(tmp_path / "peers").peers == tuple(entries[:MAX_PEERS])
    assert (tmp_path / "peers").stat().st_size <= FILE_BYTES


def test_nothing_is_written_when_nothing_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = AddressBook(tmp_path / "peers")
    book.remember([entry(1), entry(2)])
    monkeypatch.setattr(durable, "write", None)
    book.remember([entry(1), entry(2)])
    book.remember([])
    book.forget(entry(3).node)


def test_who_has_left_is_forgotten(tmp_path: Path) -> None:
    book = AddressBook(tmp_path / "peers")
    book.remember([entry(1), entry(2)])
    book.forget(entry(1).node)
    assert AddressBook(tmp_path / "peers").peers == (entry(2),)
    book.clear()
    assert book.peers == AddressBook(tmp_path / "peers").peers == ()


def test_a_damaged_book(tmp_path: Path) -> None:
    (tmp_path / "peers").write_bytes(b"\x80")
    with pytest.raises(StateError) as caught:
        AddressBook(tmp_path / "peers")
    assert "remove it" in caught.value.fix
