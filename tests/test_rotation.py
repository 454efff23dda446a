from itertools import count
from pathlib import Path

import pytest

from meshnode.errors import HomeNotWritable, StateError
from meshnode.identity import load_or_create
from meshnode.mesh.lineage import REPLACEMENT_SHOWN_S, chain
from meshnode.rotation import rotate
from meshnode.wire import certificates
from meshnode.wire.registry import Close, Role
from meshnode.wire.values import WireError
from tests.crashes import at_every_step
from tests.mesh.members import DAY_S, Node, Village


@pytest.fixture
def village(tmp_path: Path) -> Village:
    return Village(tmp_path)


def proof(node: Node) -> bytes:
    mine = node.vault.credentials
    assert mine is not None
    return mine.certificate


def code_of(node: Node, certificate: bytes, other: bytes) -> Close | None:
    """Why `node` refuses the certificate; None when it does not."""
    try:
        node.vault.admit(certificate, other)
    except WireError as error:
        return error.code
    return None


def test_a_node_without_a_mesh_gets_a_new_key(tmp_path: Path) -> None:
    old = load_or_create(tmp_path / "node.key").node_id
    assert rotate(tmp_path) == (old, load_or_create(tmp_path / "node.key").node_id)
    assert load_or_create(tmp_path / "node.key").node_id != old
    assert {path.name for path in tmp_path.iterdir()} <= {"node.key", "mesh"}


def test_a_home_without_a_key_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no key"):
        rotate(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["ann", "founder"])
def test_peers_admit_the_new_key_and_refuse_the_old(village: Village, name: str) -> None:
    ann, bob = village.member("ann"), village.member("bob")
    node, before = (ann if name == "ann" else village.founder), ann.clock
    old_id, old_proof = node.id, proof(node)
    assert rotate(node.home, before) == (old_id, node.reopened().id)
    new = node.reopened()
    mine = new.vault.credentials
    assert mine is not None and mine.ends_at == certificates.read(old_proof).not_after
    assert code_of(bob, old_proof, old_id) is None  # it has heard nothing yet
    assert code_of(bob, proof(new), new.id) is None
    assert code_of(bob, old_proof, old_id) == Close.SUPERSEDED
    assert code_of(bob.reopened(), old_proof, old_id) == Close.SUPERSEDED
    assert code_of(new, old_proof, old_id) == Close.SUPERSEDED
    assert new.vault.may_invite == (name == "founder")


def test_a_stolen_key_cannot_name_a_successor_or_invite_any_more(village: Village) -> None:
    ann = village.member("ann", may_invite=True)
    thief = Node(village.folder / "thief", village.clock)
    issued = ann.vault.redeem(ann.invite(), thief.id, Role.MEMBER)
    (thief.home / "node.key").write_bytes((ann.home / "node.key").read_bytes())
    thief = thief.reopened()
    thief.vault.accept(certificates.read(proof(ann)).mesh, "home", proof(ann))
    thieves = certificates.read(issued).node

    rotate(ann.home, village.clock)
    ann = ann.reopened()
    assert code_of(village.founder, proof(ann), ann.id) is None
    rotate(thief.home, village.clock)
    thief = thief.reopened()
    assert code_of(village.founder, proof(thief), thief.id) == Close.SUPERSEDED
    assert code_of(village.founder, issued, thieves) == Close.SUPERSEDED
    by_thief = village.founder.invite()
    with pytest.raises(WireError) as caught:
        village.founder.vault.redeem(by_thief, certificates.read(chain_root(proof(ann))).node, Role.MEMBER)
    assert caught.value.code == Close.SUPERSEDED


def chain_root(signed: bytes) -> bytes:
    """The bytes of the authority of a certificate."""
    return certificates.read(signed).authority


def test_invites_of_the_old_key_are_void(village: Village) -> None:
    token = village.founder.invite()
    rotate(village.founder.home, village.clock)
    founder = village.founder.reopened()
    assert founder.vault.invites() == ()
    with pytest.raises(WireError) as caught:
        founder.vault.redeem(token, b"n" * 32, Role.MEMBER)
    assert caught.value.code == Close.INVITE_INVALID
    assert founder.vault.redeem(founder.invite(), b"n" * 32, Role.MEMBER)


def test_a_replacement_is_shown_for_a_week_and_then_renewed(village: Village) -> None:
    ann = village.member("ann")
    rotate(ann.home, village.clock)
    ann = ann.reopened()
    assert not ann.vault.renewal_due
    village.clock.now_s += REPLACEMENT_SHOWN_S
    assert ann.vault.renewal_due
    renewed = village.founder.vault.renew(proof(ann), ann.id)
    ann.vault.accept_renewal(renewed)
    assert len(chain(renewed)) == 1 and not ann.vault.renewal_due
    rotate(village.founder.home, village.clock)
    village.clock.now_s += REPLACEMENT_SHOWN_S
    assert len(chain(proof(village.founder.reopened()))) == 1


def test_keys_can_be_changed_as_often_as_a_chain_is_long(village: Village) -> None:
    ann = village.member("ann")
    for _ in range(2):
        rotate(ann.home, village.clock)
    ann = ann.reopened()
    assert code_of(village.founder, proof(ann), ann.id) is None
    with pytest.raises(StateError, match="too many signatures"):
        rotate(ann.home, village.clock)
    assert ann.reopened().id == ann.id
    village.clock.now_s += 100 * DAY_S
    bob = village.member("bob")
    village.clock.now_s += 91 * DAY_S
    with pytest.raises(StateError, match="expired"):
        rotate(bob.home, village.clock)


@pytest.mark.parametrize("of_founder", [False, True])
def test_a_crash_at_any_step_leaves_a_node_that_starts(village: Village, of_founder: bool) -> None:
    names = map(str, count())

    def prepare() -> tuple[Node, Node, bytes]:
        if of_founder:
            there = Village(village.folder / next(names))
            return there.founder, there.member("bob"), there.founder.id
        return (ann := village.member(next(names))), village.founder, ann.id

    def check(subject: tuple[Node, Node, bytes]) -> None:
        node, peer, old = subject
        again = node.reopened()
        assert code_of(peer, proof(again), again.id) is None
        assert again.vault.may_invite == of_founder
        # And it can be tried again.
        before = again.id
        assert rotate(node.home, village.clock)[0] == before
        final = node.reopened()
        assert final.id not in (old, before)
        assert code_of(peer, proof(final), final.id) is None

    steps = at_every_step(prepare, lambda subject: rotate(subject[0].home, village.clock), check)
    assert steps >= 4


def test_a_membership_of_an_unknown_key_says_what_to_do(village: Village) -> None:
    ann = village.member("ann")
    (ann.home / "node.key").unlink()
    with pytest.raises(StateError, match="not the one that its mesh knows") as caught:
        ann.reopened()
    assert "restore node.key" in caught.value.fix


def test_a_full_disk_changes_nothing(village: Village, monkeypatch: pytest.MonkeyPatch) -> None:
    ann = village.member("ann")

    def full(*_: object, **__: object) -> None:
        raise HomeNotWritable("no space left")

    monkeypatch.setattr("meshnode.durable.write", full)
    with pytest.raises(HomeNotWritable):
        rotate(ann.home, village.clock)
    assert ann.reopened().id == ann.id
