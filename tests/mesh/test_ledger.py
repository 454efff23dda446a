from pathlib import Path

import pytest

from meshnode.errors import InviteInvalid, StateError
from meshnode.mesh import ledger
from meshnode.mesh.ledger import ENTRY_BYTES, MAX_INVITES, MAX_USES, InviteEntry, Ledger, Redemption
from meshnode.wire.registry import LIMIT_CERTIFICATE_BYTES, Role

ISSUER = b"i" * 32


def invite(number: int = 1, *, uses: int = 2, expires_at: int = 100, **more: object) -> InviteEntry:
    return InviteEntry(number.to_bytes(8, "big"), ISSUER, Role.MEMBER, False, expires_at, uses, **more)  # type: ignore[arg-type]


def test_entries_outlive_the_process(tmp_path: Path) -> None:
    book = Ledger(tmp_path, ISSUER)
    book.put(invite(1))
    used = invite(2, expires_at=50).redeemed_by(b"n" * 32, b"certificate")
    book.put(used)
    again = Ledger(tmp_path, ISSUER)
    assert again.entries() == (used, invite(1))
    assert again.get(invite(1).key) == invite(1) and again.get(b"unknown!") is None


def test_redemptions(tmp_path: Path) -> None:
    entry = invite(uses=2).redeemed_by(b"a" * 32, b"one").redeemed_by(b"b" * 32, b"two").redeemed_by(b"a" * 32, b"new")
    assert (entry.certificate_of(b"a" * 32), entry.certificate_of(b"b" * 32)) == (b"new", b"two")
    assert entry.certificate_of(b"c" * 32) is None
    assert entry.uses_left == 0 == invite(revoked=True).uses_left


def test_the_largest_entry_can_be_read(tmp_path: Path) -> None:
    redemptions = tuple(
        Redemption(number.to_bytes(32, "big"), b"c" * LIMIT_CERTIFICATE_BYTES) for number in range(MAX_USES)
    )
    entry = invite(uses=MAX_USES, redemptions=redemptions)
    Ledger(tmp_path, ISSUER).put(entry)
    assert Ledger(tmp_path, ISSUER).entries() == (entry,)
    assert next(tmp_path.iterdir()).stat().st_size <= ENTRY_BYTES


def test_an_invite_is_found_by_the_beginning_of_its_id(tmp_path: Path) -> None:
    book = Ledger(tmp_path, ISSUER)
    book.put(invite(0x1111))
    book.put(invite(0x1122))
    assert book.find(" 0000000000001111 ").id == "0000000000001111"
    assert book.find("000000000000112").id == "0000000000001122"
    for wrong in ("", "00", "2", "x" * 1000):
        with pytest.raises(InviteInvalid) as caught:
            book.find(wrong)
        assert len(caught.value.message) < 200


def test_what_has_expired_goes(tmp_path: Path) -> None:
    book = Ledger(tmp_path, ISSUER)
    book.put(invite(1, expires_at=10))
    book.put(invite(2, expires_at=11))
    book.prune(10)
    assert book.entries() == Ledger(tmp_path, ISSUER).entries() == (invite(2, expires_at=11),)


def test_the_ledger_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MAX_INVITES", 3)
    assert MAX_INVITES > 3
    book = Ledger(tmp_path, ISSUER)
    for number in range(3):
        book.put(invite(number, expires_at=100 + number, revoked=number == 1))
    book.put(invite(3))
    assert [entry.key[-1] for entry in book.entries()] == [0, 3, 2]  # the revoked one made room
    with pytest.raises(StateError) as caught:
        book.put(invite(4))
    assert "--revoke" in caught.value.fix
    book.put(invite(3, uses=1))
    assert len(list(tmp_path.iterdir())) == 3


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    Ledger(tmp_path, ISSUER).put(invite(1))
    file = next(tmp_path.iterdir())
    other = file.with_name("0000000000000002.invite")
    other.write_bytes(file.read_bytes())
    with pytest.raises(StateError, match="holds the invite 0000000000000001"):
        Ledger(tmp_path, ISSUER)
    other.write_bytes(b"")
    with pytest.raises(StateError, match="damaged") as caught:
        Ledger(tmp_path, ISSUER)
    assert str(other) in caught.value.fix
    other.unlink()
    (tmp_path / ".x.partial").write_bytes(b"half")
    assert Ledger(tmp_path, b"j" * 32).entries() == ()
    assert not file.exists()


def test_clearing(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "invites", ISSUER)
    book.clear()
    book.put(invite(1))
    book.clear()
    assert book.entries() == () == Ledger(tmp_path / "invites", ISSUER).entries()
