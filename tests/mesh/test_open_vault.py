"""The vault of an open mesh: its own certificates, whom it admits, and what can never open a private one."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from meshnode.core.open_policy import OpenPolicy
from meshnode.errors import MayNotInvite, StateError
from meshnode.identity import load_or_create
from meshnode.mesh.open_vault import OpenVault
from meshnode.mesh.vault import Vault
from meshnode.wire import certificates
from meshnode.wire.messages import PeerEntry
from meshnode.wire.open_meshes import open_mesh_id
from meshnode.wire.registry import LIMIT_PUBLIC_CERTIFICATE_TTL_S, Close, Role
from meshnode.wire.values import WireError
from tests.crashes import at_every_step
from tests.mesh.members import DAY_S, HERE, NOW_S, Clock, Village

PEER = PeerEntry(b"p" * 32, HERE)


class Public:
    """The home of a node that goes public."""

    def __init__(self, home: Path, clock: Clock | None = None) -> None:
        self.home = home
        self.clock = clock or Clock()
        self.identity = load_or_create(home / "node.key")
        self.vault = self.opened()

    @property
    def id(self) -> bytes:
        return bytes(self.identity.node_id)

    def opened(self) -> OpenVault:
        return OpenVault(self.home / "public", self.identity, OpenPolicy(), self.clock)


@pytest.fixture
def ann(tmp_path: Path) -> Public:
    return Public(tmp_path / "ann")


@pytest.fixture
def bob(tmp_path: Path) -> Public:
    return Public(tmp_path / "bob")


def refused(vault: Vault, certificate: bytes, node: bytes, code: Close, mesh: bytes | None = None) -> None:
    with pytest.raises(WireError) as caught:
        vault.admit(certificate, node, mesh=mesh)
    assert caught.value.code == code, caught.value.reason


def test_whoever_names_a_mesh_belongs_to_it(ann: Public, bob: Public) -> None:
    mine, theirs = ann.vault.open("My Mesh", Role.MEMBER), bob.vault.open("my-mesh", Role.CLIENT)
    assert mine.mesh == theirs.mesh == open_mesh_id("my mesh")
    assert (mine.mesh_name, mine.role, mine.may_invite) == ("my-mesh", Role.MEMBER, False)
    assert ann.vault.admit(theirs.certificate, bob.id).role == Role.CLIENT
    assert ann.vault.is_open and ann.opened().credentials == mine
    assert ann.vault.open("MY MESH", Role.MEMBER) == mine, "nothing is written anew without need"


def test_certificates_of_others_other_meshes_and_other_times_are_refused(ann: Public, bob: Public) -> None:
    ann.vault.open("one", Role.MEMBER)
    theirs = bob.vault.open("one", Role.MEMBER).certificate
    refused(ann.vault, theirs, ann.id, Close.NOT_ADMITTED)
    refused(ann.vault, theirs, bob.id, Close.WRONG_MESH, open_mesh_id("two"))
    refused(ann.vault, bob.vault.open("two", Role.MEMBER).certificate, bob.id, Close.WRONG_MESH)
    ann.clock.now_s += LIMIT_PUBLIC_CERTIFICATE_TTL_S + 1
    refused(ann.vault, theirs, bob.id, Close.CERTIFICATE_EXPIRED)


def test_a_certificate_is_renewed_by_its_holder(ann: Public) -> None:
    before = ann.vault.open("one", Role.MEMBER)
    assert not ann.vault.renewal_due
    ann.clock.now_s += 10 * DAY_S
    assert ann.vault.renewal_due and ann.vault.renew_own()
    after = ann.vault.credentials
    assert after is not None and after.ends_at == before.ends_at + 10 * DAY_S and not ann.vault.renewal_due
    ann.clock.now_s += 100 * DAY_S
    again = ann.opened().credentials
    assert again is not None and again.ends_at > ann.clock.now_s, "also after a long time off"


def test_a_new_key_of_the_node_goes_on_in_the_same_mesh(ann: Public) -> None:
    mine = ann.vault.open("one", Role.MEMBER)
    ann.vault.remember_peers([PEER])
    (ann.home / "node.key").unlink()
    ann.identity = load_or_create(ann.home / "node.key")
    vault = ann.opened()
    assert vault.credentials is not None and vault.credentials.mesh == mine.mesh
    assert certificates.read(vault.credentials.certificate).node == ann.id
    assert vault.peers() == (PEER,)


def test_the_book_stays_with_its_mesh(ann: Public) -> None:
    ann.vault.open("one", Role.MEMBER)
    ann.vault.remember_peers([PEER])
    ann.vault.open("one", Role.CLIENT)
    assert ann.vault.peers() == (PEER,)
    ann.vault.open("two", Role.CLIENT)
    assert ann.vault.peers() == () and ann.opened().peers() == ()


def test_there_are_no_founders_and_no_invites(ann: Public, tmp_path: Path) -> None:
    ann.vault.open("one", Role.MEMBER)
    with pytest.raises(StateError):
        ann.vault.found("mine")
    with pytest.raises(MayNotInvite):
        ann.vault.create_invite(addresses=HERE)
    village = Village(tmp_path / "village")
    for token in (village.founder.invite(), b"", b"\0" * 200):
        with pytest.raises(WireError):
            ann.vault.redeem(token, b"n" * 32, Role.MEMBER)
    with pytest.raises(ValueError, match="name of a public mesh"):
        ann.vault.open("a/b", Role.MEMBER)


def test_a_private_vault_takes_no_self_made_certificate(ann: Public, tmp_path: Path) -> None:
    """Neither one for an open mesh, nor one that names the private mesh; at no door."""
    village = Village(tmp_path / "village")
    private = village.founder.vault
    mesh = private.credentials.mesh  # type: ignore[union-attr]
    own = ann.vault.open("home", Role.MEMBER).certificate
    forged = certificates.issue(
        certificates.Certificate(mesh, ann.id, Role.MEMBER, 0, int(NOW_S) + DAY_S, b"serial 1"), ann.identity.sign
    )
    for certificate in (own, forged):
        for wanted in (None, mesh, open_mesh_id("home")):
            with pytest.raises(WireError) as caught:
                private.admit(certificate, ann.id, mesh=wanted)
            assert caught.value.code in (Close.WRONG_MESH, Close.NOT_ADMITTED)
        with pytest.raises(WireError):
            private.accept(mesh, "home", certificate)
    assert not private.is_open and private.policy is None and not hasattr(private, "open")


def test_a_membership_of_a_private_mesh_does_not_become_public(tmp_path: Path) -> None:
    village = Village(tmp_path)
    (village.founder.home / "mesh").rename(village.founder.home / "public")
    with pytest.raises(StateError, match="private mesh"):
        OpenVault(village.founder.home / "public", village.founder.identity, OpenPolicy(), village.clock)


def test_a_crash_at_any_step_of_a_change_leaves_a_vault_that_opens(tmp_path: Path) -> None:
    homes = (tmp_path / str(number) for number in count())

    def prepare() -> Public:
        node = Public(next(homes))
        node.vault.open("one", Role.MEMBER)
        node.vault.remember_peers([PEER])
        return node

    def check(node: Public) -> None:
        found = node.opened()
        name = None if found.credentials is None else found.credentials.mesh_name
        assert name in (None, "one", "two")
        assert name != "two" or found.peers() == ()
        found.open("two", Role.MEMBER)
        assert found.peers() == (), "the book of one mesh is never that of another"

    steps = at_every_step(prepare, lambda node: node.vault.open("two", Role.MEMBER), check)
    assert steps >= 3
