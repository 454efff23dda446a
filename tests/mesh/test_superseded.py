from pathlib import Path

import pytest

from meshnode.errors import HomeNotWritable, StateError
from meshnode.identity import Identity, load_or_create
from meshnode.mesh import superseded
from meshnode.mesh.lineage import issued, replacement
from meshnode.mesh.superseded import SupersededKeys
from meshnode.wire.registry import LIMIT_CERTIFICATE_TTL_S, Close, Role
from meshnode.wire.values import WireError
from tests.mesh.members import NOW_S


class Owner:
    """Somebody with a key in a mesh, and with keys that come after it."""

    def __init__(self, folder: Path, mesh: Identity) -> None:
        folder.mkdir()
        self.folder = folder
        self.key = load_or_create(folder / "0")
        self.proof = issued(
            mesh.sign, mesh=mesh.node_id, node=self.key.node_id, role=Role.MEMBER, may_invite=True, now_s=NOW_S
        )

    def successor(self, name: str = "1") -> bytes:
        """The certificate of another key that replaces the present one."""
        node = load_or_create(self.folder / name).node_id
        return replacement(self.key.sign, signed=self.proof, successor=node, now_s=NOW_S)

    def invited(self, node: bytes) -> bytes:
        return issued(
            self.key.sign,
            mesh=b"m" * 32,
            node=node,
            role=Role.MEMBER,
            may_invite=False,
            authority=self.proof,
            now_s=NOW_S,
        )


@pytest.fixture
def mesh(tmp_path: Path) -> Identity:
    return load_or_create(tmp_path / "mesh.key")


@pytest.fixture
def ann(tmp_path: Path, mesh: Identity) -> Owner:
    return Owner(tmp_path / "ann", mesh)


def refused(keys: SupersededKeys, signed: bytes) -> bool:
    try:
        keys.judge(signed, NOW_S)
    except WireError as error:
        assert error.code == Close.SUPERSEDED
        return True
    return False


def test_what_a_replacement_ends(tmp_path: Path, ann: Owner) -> None:
    file = tmp_path / "superseded"
    keys = SupersededKeys(file, NOW_S)
    guest = ann.invited(b"g" * 32)
    assert not refused(keys, ann.proof) and not refused(keys, guest)
    assert not file.exists()
    first, second = ann.successor("1"), ann.successor("2")
    assert not refused(keys, first)
    for known in (keys, SupersededKeys(file, NOW_S)):
        assert not refused(known, first)
        assert [refused(known, signed) for signed in (ann.proof, guest, second)] == [True, True, True]
        assert ann.key.node_id in known and b"g" * 32 not in known


def test_an_entry_ends_with_the_old_certificate(tmp_path: Path, ann: Owner) -> None:
    keys = SupersededKeys(tmp_path / "superseded", NOW_S)
    keys.judge(ann.successor(), NOW_S)
    later = SupersededKeys(tmp_path / "superseded", NOW_S + LIMIT_CERTIFICATE_TTL_S)
    assert ann.key.node_id not in later


def test_the_number_of_entries_is_bounded(tmp_path: Path, mesh: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superseded, "MAX_ENTRIES", 3)
    keys = SupersededKeys(tmp_path / "superseded", NOW_S)
    owners = [Owner(tmp_path / f"owner{number}", mesh) for number in range(5)]
    for owner in owners:
        assert not refused(keys, owner.successor())
    assert sum(owner.key.node_id in keys for owner in owners) == 3
    again = SupersededKeys(tmp_path / "superseded", NOW_S)
    assert sum(owner.key.node_id in again for owner in owners) == 3


def test_a_full_disk_does_not_keep_the_new_key_out(tmp_path: Path, ann: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise HomeNotWritable("no space left")

    keys = SupersededKeys(tmp_path / "superseded", NOW_S)
    new = ann.successor()
    monkeypatch.setattr("meshnode.durable.write", full)
    assert not refused(keys, new)
    assert refused(keys, ann.proof)


def test_a_damaged_file(tmp_path: Path, ann: Owner) -> None:
    file = tmp_path / "superseded"
    SupersededKeys(file, NOW_S).judge(ann.successor(), NOW_S)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(StateError) as caught:
        SupersededKeys(file, NOW_S)
    assert "remove it" in caught.value.fix


def test_leaving_a_mesh_forgets(tmp_path: Path, ann: Owner) -> None:
    keys = SupersededKeys(tmp_path / "superseded", NOW_S)
    keys.judge(ann.successor(), NOW_S)
    keys.clear()
    assert not refused(keys, ann.proof)
    assert not refused(SupersededKeys(tmp_path / "superseded", NOW_S), ann.proof)
