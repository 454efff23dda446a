from pathlib import Path

import pytest

from meshnode.errors import StateError
from meshnode.identity import Identity, load_or_create, short
from meshnode.mesh.credentials import CredentialFiles
from meshnode.mesh.lineage import issued
from meshnode.wire.registry import Role
from tests.mesh.members import NOW_S


class Founded:
    """The files of a founder in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "mesh"
        self.node: Identity = load_or_create(folder / "node.key")
        self.files = CredentialFiles(self.folder, self.node.node_id)
        self.key = self.files.found_key()
        self.files.keep(self.key.node_id, "home", self.certificate(self.node.node_id))

    def certificate(self, node: bytes) -> bytes:
        return issued(self.key.sign, mesh=self.key.node_id, node=node, role=Role.MEMBER, may_invite=True, now_s=NOW_S)

    def reopened(self, node: bytes | None = None) -> CredentialFiles:
        return CredentialFiles(self.folder, node or self.node.node_id)


@pytest.fixture
def founded(tmp_path: Path) -> Founded:
    return Founded(tmp_path)


def test_an_empty_folder(tmp_path: Path) -> None:
    found = CredentialFiles(tmp_path / "mesh", b"n" * 32)
    assert (found.credentials, found.mesh_key) == (None, None)
    assert not (tmp_path / "mesh").exists()


def test_credentials_come_back(founded: Founded) -> None:
    again = founded.reopened()
    assert again.credentials == founded.files.credentials is not None
    assert again.mesh_key is not None and again.mesh_key.node_id == founded.key.node_id


def test_a_name_that_is_too_long_is_cut(founded: Founded) -> None:
    kept = founded.files.keep(founded.key.node_id, "x" * 100, founded.certificate(founded.node.node_id))
    assert founded.reopened().credentials == kept and len(kept.mesh_name) == 40


def test_the_key_of_a_mesh_that_is_left_is_put_aside(founded: Founded, tmp_path: Path) -> None:
    founded.files.forget()
    assert (founded.files.credentials, founded.files.mesh_key) == (None, None)
    (kept,) = founded.folder.iterdir()
    assert kept.name.startswith("mesh.key.left-2") and kept.name.endswith(short(founded.key.node_id))
    assert load_or_create(kept).node_id == founded.key.node_id
    other = Founded(tmp_path / "other")
    founded.files.found_key()
    founded.files.keep(other.key.node_id, "other", other.certificate(founded.node.node_id))
    assert founded.reopened().mesh_key is None
    assert len(list(founded.folder.glob("mesh.key.left-*"))) == 2


def test_the_next_membership_waits_for_its_key(founded: Founded, tmp_path: Path) -> None:
    successor = load_or_create(tmp_path / "successor").node_id
    founded.files.keep_next(founded.key.node_id, "home", founded.certificate(successor))
    assert founded.reopened().credentials == founded.files.credentials
    taken = founded.reopened(successor).credentials
    assert taken is not None and taken.certificate != founded.files.credentials.certificate  # type: ignore[union-attr]
    assert founded.reopened(successor).credentials == taken
    with pytest.raises(StateError, match="not the one that its mesh knows"):
        founded.reopened()


@pytest.mark.parametrize("name", ["membership", "membership.next", "mesh.key"])
def test_damage_is_told_with_a_fix(founded: Founded, tmp_path: Path, name: str) -> None:
    successor = load_or_create(tmp_path / "successor").node_id
    founded.files.keep_next(founded.key.node_id, "home", founded.certificate(successor))
    file = founded.folder / name
    whole = file.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"\0" * 5000, b"\x80"):
        file.write_bytes(damaged)
        with pytest.raises(StateError) as caught:
            founded.reopened(successor if name == "membership.next" else None)
        assert caught.value.fix
    assert file.read_bytes() == b"\x80"


def test_a_membership_that_contradicts_itself(founded: Founded, tmp_path: Path) -> None:
    own = founded.certificate(founded.node.node_id)
    founded.files.keep_next(b"m" * 32, "home", own)
    (founded.folder / "membership.next").replace(founded.folder / "membership")
    with pytest.raises(StateError, match="damaged"):
        founded.reopened()
    founded.files.keep_next(founded.key.node_id, "home", own[:100])
    (founded.folder / "membership.next").replace(founded.folder / "membership")
    with pytest.raises(StateError, match="damaged"):
        founded.reopened()


def test_the_key_of_another_mesh(founded: Founded, tmp_path: Path) -> None:
    other = Founded(tmp_path / "other")
    (founded.folder / "mesh.key").write_bytes((other.folder / "mesh.key").read_bytes())
    with pytest.raises(StateError, match="another mesh"):
        founded.reopened()
