import stat
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import AlreadyInMesh, BadRequest, HomeNotWritable, InviteInvalid, MayNotInvite, NotInMesh
from meshnode.identity import short, verify
from meshnode.wire import certificates, invites
from meshnode.wire.address import Address
from meshnode.wire.messages import PeerEntry
from meshnode.wire.registry import LIMIT_CERTIFICATE_BYTES, LIMIT_CERTIFICATE_TTL_S, LIMIT_INVITE_CHARS, Close, Role
from meshnode.wire.values import WireError
from tests.crashes import at_every_step
from tests.mesh.members import DAY_S, HERE, NOW_S, Node, Village


@pytest.fixture
def village(tmp_path: Path) -> Village:
    return Village(tmp_path)


def refused(code: Close, work: object, *arguments: object, **options: object) -> None:
    with pytest.raises(WireError) as caught:
        work(*arguments, **options)  # type: ignore[operator]
    assert caught.value.code == code, caught.value.reason


# --- membership -----------------------------------------------------------------------------------------------


def test_a_founder_is_a_member_that_may_invite(village: Village) -> None:
    mine = village.founder.vault.credentials
    assert mine is not None
    assert (mine.mesh_name, mine.role, mine.may_invite) == ("home", Role.MEMBER, True)
    certificate = certificates.check(
        mine.certificate, mesh=mine.mesh, node=village.founder.id, now_s=NOW_S, verify=verify
    )
    assert certificate.not_after == NOW_S + LIMIT_CERTIFICATE_TTL_S
    assert village.founder.reopened().vault.credentials == mine
    with pytest.raises(AlreadyInMesh, match="home"):
        village.founder.vault.found("another")


def test_nobody_else_can_read_what_is_kept(village: Village) -> None:
    village.founder.invite()
    village.founder.vault.next_incarnation()
    village.founder.vault.remember_peers([PeerEntry(b"p" * 32, HERE)])
    found = [path for path in village.founder.home.rglob("*")]
    assert len(found) >= 6
    assert [path for path in found if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_a_member_joins_with_an_invite(village: Village) -> None:
    ann = village.member("ann")
    mine = ann.vault.credentials
    assert mine is not None
    assert (mine.role, mine.may_invite, mine.mesh_name) == (Role.MEMBER, False, "home")
    assert village.founder.vault.admit(mine.certificate, ann.id).node == ann.id
    assert ann.reopened().vault.credentials == mine
    with pytest.raises(MayNotInvite):
        ann.invite()


def test_what_is_no_certificate_for_this_node_is_not_accepted(village: Village) -> None:
    ann, bob = village.member("ann"), village.stranger("bob")
    mesh = village.founder.vault.credentials.mesh  # type: ignore[union-attr]
    hers = ann.vault.credentials.certificate  # type: ignore[union-attr]
    refused(Close.NOT_ADMITTED, bob.vault.accept, mesh, "home", hers)
    refused(Close.WRONG_MESH, bob.vault.accept, b"m" * 32, "home", hers)
    for garbage in (b"", b"x", hers[:-1], hers + b"\0", b"\0" * 200):
        with pytest.raises(WireError):
            bob.vault.accept(mesh, "home", garbage)
    assert bob.vault.credentials is None
    with pytest.raises(AlreadyInMesh):
        ann.vault.accept(b"m" * 32, "other", hers)


def test_leaving_takes_everything_along_but_the_key_of_the_mesh(village: Village) -> None:
    founder = village.founder
    mesh = founder.vault.credentials.mesh  # type: ignore[union-attr]
    token = founder.invite()
    founder.vault.remember_peers([PeerEntry(b"p" * 32, HERE)])
    founder.vault.next_incarnation()
    founder.vault.forget()
    assert founder.vault.credentials is None
    assert (founder.vault.invites(), founder.vault.peers(), founder.vault.renewal_due) == ((), (), False)
    names = {path.name for path in (founder.home / "mesh").iterdir()}
    assert {name for name in names if "left" not in name} <= {"incarnation", "invites"}
    assert [name for name in names if name.startswith("mesh.key.left-") and name.endswith(short(mesh))]  # type: ignore[arg-type]
    refused(Close.NOT_ADMITTED, founder.vault.redeem, token, b"n" * 32, Role.MEMBER)
    with pytest.raises(NotInMesh):
        founder.invite()
    assert founder.reopened().vault.found("new").mesh != mesh
    refused(Close.INVITE_INVALID, founder.reopened().vault.redeem, token, b"n" * 32, Role.MEMBER)


# --- invites --------------------------------------------------------------------------------------------------


def test_an_invite_says_all_a_joiner_must_know(village: Village) -> None:
    text, entry = village.founder.vault.create_invite(role=Role.CLIENT, ttl_s=60, uses=2, addresses=HERE * 12)
    invite = invites.read(invites.to_bytes(text), verify)
    assert len(text) <= LIMIT_INVITE_CHARS
    assert (invite.issuer, invite.mesh_name, invite.role) == (village.founder.id, "home", Role.CLIENT)
    assert (invite.expires_at, invite.addresses) == (NOW_S + 60, HERE * 8)
    assert (entry.id, entry.uses_left, entry.revoked) == (invite.id.hex(), 2, False)
    assert village.founder.vault.invites() == (entry,)


def test_the_longest_invite_fits(tmp_path: Path) -> None:
    node = Village(tmp_path).stranger("long")
    node.vault.found("\U0001f600" * 60)
    addresses = [Address(f"2001:db8:1111:2222:3333:4444:5555:{number + 1:x}", 65535) for number in range(8)]
    text, _ = node.vault.create_invite(may_invite=True, ttl_s=DAY_S, addresses=addresses)
    assert invites.read(invites.to_bytes(text), verify).addresses == tuple(addresses)


def test_an_invite_admits_as_many_as_it_says(village: Village) -> None:
    token = village.founder.invite(uses=2)
    for name in ("ann", "bob"):
        village.stranger(name).join(village.founder, token)
    refused(Close.INVITE_USED, village.founder.vault.redeem, token, village.stranger("eve").id, Role.MEMBER)
    again = village.founder.reopened().vault
    refused(Close.INVITE_USED, again.redeem, token, village.stranger("eve").id, Role.MEMBER)


def test_the_same_node_gets_the_same_certificate_and_is_counted_once(village: Village) -> None:
    token = village.founder.invite(uses=1)
    ann = village.stranger("ann")
    first = ann.join(village.founder, token)
    assert village.founder.vault.redeem(token, ann.id, Role.MEMBER) == first
    assert village.founder.reopened().vault.redeem(token, ann.id, Role.MEMBER) == first
    assert village.founder.vault.invites()[0].uses_left == 0


def test_with_an_invite_for_a_member_one_may_come_as_a_client_but_not_the_other_way(village: Village) -> None:
    token = village.founder.invite(uses=1, may_invite=True)
    ann = village.stranger("ann")
    as_client = certificates.read(village.founder.vault.redeem(token, ann.id, Role.CLIENT))
    assert (as_client.role, as_client.may_invite) == (Role.CLIENT, False)
    as_member = certificates.read(village.founder.vault.redeem(token, ann.id, Role.MEMBER))
    assert (as_member.role, as_member.may_invite) == (Role.MEMBER, True)
    assert village.founder.vault.invites()[0].uses_left == 0
    for_clients = village.founder.invite(role=Role.CLIENT)
    refused(Close.ROLE_REFUSED, village.founder.vault.redeem, for_clients, ann.id, Role.MEMBER)


def test_refused_invites_have_one_clear_code(village: Village) -> None:
    founder, eve = village.founder, village.stranger("eve")
    expiring, revoked, good = founder.invite(ttl_s=10), founder.invite(), founder.invite()
    founder.vault.revoke(invites.read(revoked, verify).id.hex())
    redeem = founder.vault.redeem
    refused(Close.INVITE_REVOKED, redeem, revoked, eve.id, Role.MEMBER)
    village.clock.now_s += 10
    refused(Close.INVITE_EXPIRED, redeem, expiring, eve.id, Role.MEMBER)
    founder.invite()  # the expired entry goes now; the answer stays the same
    refused(Close.INVITE_EXPIRED, redeem, expiring, eve.id, Role.MEMBER)
    # Well signed, but by a member that is not the issuer; or by the issuer in another life.
    ann = village.member("ann", may_invite=True)
    refused(Close.INVITE_INVALID, redeem, ann.invite(), eve.id, Role.MEMBER)
    known = invites.read(good, verify)
    unknown = invites.Invite(known.mesh, known.issuer, b"unknown!", 1, known.expires_at, HERE)
    text = invites.write(unknown, founder.identity.sign)
    refused(Close.INVITE_INVALID, redeem, invites.to_bytes(text), eve.id, Role.MEMBER)
    other = Village(village.folder / "other").founder.invite()
    refused(Close.INVITE_INVALID, redeem, other, eve.id, Role.MEMBER)
    assert len(redeem(good, eve.id, Role.MEMBER)) > 100


def test_every_flipped_bit_of_an_invite_is_noticed(village: Village) -> None:
    token = village.founder.invite()
    for position in range(len(token)):
        damaged = bytearray(token)
        damaged[position] ^= 1 << (position % 8)
        refused(Close.INVITE_INVALID, village.founder.vault.redeem, bytes(damaged), b"n" * 32, Role.MEMBER)
    assert village.founder.vault.invites()[0].uses_left == 5


@settings(max_examples=200, deadline=None)
@given(token=st.binary(max_size=300))
def test_garbage_is_no_invite(tmp_path_factory: pytest.TempPathFactory, token: bytes) -> None:
    village = _shared(tmp_path_factory)
    refused(Close.INVITE_INVALID, village.founder.vault.redeem, token, b"n" * 32, Role.MEMBER)


_SHARED: list[Village] = []


def _shared(factory: pytest.TempPathFactory) -> Village:
    if not _SHARED:
        _SHARED.append(Village(factory.mktemp("shared")))
    return _SHARED[0]


def test_revoking_finds_an_invite_by_the_beginning_of_its_id(village: Village) -> None:
    _, entry = village.founder.vault.create_invite(addresses=HERE)
    assert village.founder.vault.revoke(entry.id[:6].upper()).revoked
    assert village.founder.reopened().vault.invites()[0].revoked
    for wrong in ("", "zz", "0" * 17):
        with pytest.raises(InviteInvalid):
            village.founder.vault.revoke(wrong)


def test_bounds_of_an_invite(village: Village) -> None:
    create = village.founder.vault.create_invite
    for wrong in (
        {"ttl_s": 0},
        {"ttl_s": 91 * DAY_S},
        {"uses": 0},
        {"uses": 1001},
        {"addresses": ()},
        {"role": Role.CLIENT, "may_invite": True},
    ):
        with pytest.raises(BadRequest):
            create(**{"addresses": HERE, **wrong})  # type: ignore[arg-type]
    assert village.founder.vault.invites() == ()


# --- chains, renewal ------------------------------------------------------------------------------------------


def test_invitations_reach_as_far_as_chains_do(village: Village) -> None:
    ann = village.member("ann", may_invite=True)
    bob = village.member("bob", issuer=ann, may_invite=True)
    certificate = bob.vault.credentials.certificate  # type: ignore[union-attr]
    assert village.founder.vault.admit(certificate, bob.id).may_invite
    assert not ann.vault.renew_own() and ann.vault.may_invite
    cid = village.member("cid", issuer=bob, may_invite=True)
    longest = cid.vault.credentials.certificate  # type: ignore[union-attr]
    assert len(longest) <= LIMIT_CERTIFICATE_BYTES
    assert village.founder.vault.admit(longest, cid.id).node == cid.id
    assert not cid.vault.may_invite
    with pytest.raises(MayNotInvite):
        cid.invite()


def test_nothing_outlives_the_certificate_it_rests_on(village: Village) -> None:
    ann = village.member("ann", may_invite=True)
    village.clock.now_s += 80 * DAY_S
    bob = village.member("bob", issuer=ann)
    assert bob.vault.credentials.ends_at == ann.vault.credentials.ends_at  # type: ignore[union-attr]
    village.clock.now_s += 11 * DAY_S
    with pytest.raises(WireError) as caught:
        ann.vault.redeem(ann.invite(), village.stranger("cid").id, Role.MEMBER)
    assert caught.value.code == Close.CERTIFICATE_EXPIRED


def test_a_certificate_is_renewed_after_two_thirds_of_its_life(village: Village) -> None:
    ann = village.member("ann")
    before = ann.vault.credentials
    assert before is not None and not ann.vault.renewal_due
    village.clock.now_s += 59 * DAY_S
    assert not ann.vault.renewal_due
    village.clock.now_s += 1 * DAY_S
    assert ann.vault.renewal_due
    renewed = village.founder.vault.renew(before.certificate, ann.id)
    after = ann.vault.accept_renewal(renewed)
    assert after.ends_at == before.ends_at + 60 * DAY_S
    assert (after.role, after.may_invite) == (before.role, before.may_invite)
    assert not ann.reopened().vault.renewal_due
    refused(Close.NOT_ADMITTED, ann.vault.accept_renewal, before.certificate)
    refused(Close.NOT_ADMITTED, village.founder.vault.renew, before.certificate, b"n" * 32)
    village.clock.now_s += 31 * DAY_S
    refused(Close.CERTIFICATE_EXPIRED, village.founder.vault.renew, before.certificate, ann.id)


def test_a_renewal_changes_no_rights(village: Village) -> None:
    ann = village.member("ann", may_invite=True)
    village.clock.now_s += 60 * DAY_S
    as_client = village.founder.vault.redeem(village.founder.invite(), ann.id, Role.CLIENT)
    refused(Close.NOT_ADMITTED, ann.vault.accept_renewal, as_client)
    assert ann.vault.credentials.role == Role.MEMBER  # type: ignore[union-attr]


def test_a_founder_renews_itself_even_when_it_was_away_for_long(village: Village) -> None:
    before = village.founder.vault.credentials
    village.clock.now_s += 400 * DAY_S
    after = village.founder.reopened().vault.credentials
    assert before is not None and after is not None
    assert (after.mesh, after.ends_at) == (before.mesh, before.ends_at + 400 * DAY_S)


def test_who_has_nothing_better_renews_nobody(village: Village) -> None:
    ann = village.member("ann", may_invite=True)
    bob = village.member("bob")
    refused(Close.NOT_ADMITTED, ann.vault.renew, bob.vault.credentials.certificate, bob.id)  # type: ignore[union-attr]
    refused(Close.ROLE_REFUSED, bob.vault.renew, ann.vault.credentials.certificate, ann.id)  # type: ignore[union-attr]


# --- what outlives the process --------------------------------------------------------------------------------


def test_incarnations_only_grow(village: Village) -> None:
    vault = village.founder.vault
    assert [vault.next_incarnation() for _ in range(3)] == [1, 2, 3]
    vault.save_incarnation(10)
    vault.save_incarnation(4)
    vault.forget()
    assert village.founder.reopened().vault.next_incarnation() == 11


def test_the_address_book_leaves_out_this_node(village: Village) -> None:
    vault = village.founder.vault
    vault.remember_peers([PeerEntry(village.founder.id, HERE), PeerEntry(b"a" * 32, HERE), PeerEntry(b"b" * 32, HERE)])
    vault.forget_peer(b"a" * 32)
    assert [peer.node for peer in village.founder.reopened().vault.peers()] == [b"b" * 32]


# --- crashes --------------------------------------------------------------------------------------------------


def test_a_crash_while_founding(tmp_path: Path) -> None:
    homes = (tmp_path / str(number) for number in count())
    village = Village(tmp_path / "village")

    def check(node: Node) -> None:
        vault = node.reopened().vault
        mine = vault.credentials or vault.found("home")
        assert node.reopened().vault.credentials == mine
        assert node.reopened().vault.may_invite

    steps = at_every_step(lambda: village.stranger(str(next(homes))), lambda node: node.vault.found("home"), check)
    assert steps >= 2


def test_a_founding_that_was_cut_short_does_not_hinder_joining(tmp_path: Path) -> None:
    village = Village(tmp_path / "village")
    names = map(str, count())

    def check(node: Node) -> None:
        again = node.reopened()
        if again.vault.credentials is None:
            again.join(village.founder, village.founder.invite())
            mine = again.reopened().vault.credentials
            assert mine is not None and mine.mesh == village.founder.vault.credentials.mesh  # type: ignore[union-attr]
            assert again.reopened().vault.may_invite is False

    at_every_step(lambda: village.stranger(next(names)), lambda node: node.vault.found("alone"), check)


def test_a_crash_while_redeeming_gives_no_second_use_away(village: Village) -> None:
    names = map(str, count())

    def prepare() -> tuple[Node, bytes]:
        return village.stranger(next(names)), village.founder.invite(uses=1)

    def check(subject: tuple[Node, bytes]) -> None:
        node, token = subject
        issuer = village.founder.reopened()
        left = {entry.key: entry.uses_left for entry in issuer.vault.invites()}
        known = left[invites.read(token, verify).id] == 0
        if known:
            eve = village.stranger("eve")
            refused(Close.INVITE_USED, issuer.vault.redeem, token, eve.id, Role.MEMBER)
        first = issuer.vault.redeem(token, node.id, Role.MEMBER)
        assert issuer.reopened().vault.redeem(token, node.id, Role.MEMBER) == first

    def redeem(subject: tuple[Node, bytes]) -> None:
        village.founder.vault.redeem(subject[1], subject[0].id, Role.MEMBER)

    assert at_every_step(prepare, redeem, check) == 1


def test_a_crash_while_joining_or_leaving(village: Village) -> None:
    names = map(str, count())

    def check(node: Node) -> None:
        again = node.reopened()
        if again.vault.credentials is None:
            again.join(village.founder, village.founder.invite())
        again.vault.forget()
        assert again.reopened().vault.credentials is None

    token = village.founder.invite(uses=1000)
    at_every_step(lambda: village.stranger(next(names)), lambda node: node.join(village.founder, token), check)
    assert at_every_step(lambda: village.member(next(names)), lambda node: node.vault.forget(), check) >= 2


def test_a_crash_while_a_founder_leaves_keeps_the_key_of_the_mesh(tmp_path: Path) -> None:
    homes = (tmp_path / str(number) for number in count())

    def check(village: Village) -> None:
        vault = village.founder.reopened().vault
        if vault.credentials is not None:
            vault.forget()
        kept = [path.name for path in (village.founder.home / "mesh").glob("mesh.key*")]
        assert len(kept) == 1

    at_every_step(lambda: Village(next(homes)), lambda village: village.founder.vault.forget(), check)


def test_a_full_disk_hands_out_nothing(village: Village, monkeypatch: pytest.MonkeyPatch) -> None:
    token = village.founder.invite(uses=1)

    def full(*_: object, **__: object) -> None:
        raise HomeNotWritable("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("meshnode.durable.write", full)
        with pytest.raises(HomeNotWritable):
            village.founder.vault.redeem(token, b"n" * 32, Role.MEMBER)
    assert village.founder.vault.invites()[0].uses_left == 1
    assert village.founder.vault.redeem(token, b"m" * 32, Role.MEMBER)
