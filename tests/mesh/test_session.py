from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meshnode.core.open_policy import OpenLimits, OpenPolicy
from meshnode.errors import InviteInvalid, NetworkError, PeerRefused, PeerUnreachable
from meshnode.identity import load_or_create
from meshnode.mesh import session
from meshnode.mesh.open_vault import OpenVault
from meshnode.mesh.session import GREETING_BYTES, NotLetIn, Session, greet, receive
from meshnode.mesh.vault import Vault
from meshnode.wire import certificates
from meshnode.wire.address import Address
from meshnode.wire.frames import HEADER_BYTES, decode_stream_header, encode_frame
from meshnode.wire.messages import Hello, Probe, Welcome, encode_message
from meshnode.wire.registry import VERSION, Close, MessageId, Role, StreamType
from tests.mesh.fake_links import FakeLink, connected
from tests.mesh.members import DAY_S, HERE, Clock, Node, Village

Outcome = Session | BaseException
LIMITS = OpenLimits()


@pytest.fixture
def village(tmp_path: Path) -> Village:
    return Village(tmp_path)


def hello_of(node: Node, **changes: Any) -> Hello:
    """What a member says."""
    mine = node.vault.credentials
    assert mine is not None
    hello = Hello(VERSION, mine.mesh, mine.role, mine.certificate, b"", HERE, "name", "software")
    return dataclasses.replace(hello, **changes)


async def _accept(link: FakeLink, acceptor: Node) -> Session:
    stream = await link.opened.get()
    kind, size = decode_stream_header(await stream.read_exactly(HEADER_BYTES))
    assert (kind, size) == (StreamType.CONTROL, 0)
    return await receive(link, stream, acceptor.vault, name="host", software="test")  # type: ignore[arg-type]


def meet(dialler: Node, acceptor: Node, hello: Hello) -> tuple[Outcome, Outcome, FakeLink]:
    """Both sides of one greeting: what became of it at the dialler, at the acceptor, and the link."""

    async def run() -> tuple[Any, Any, FakeLink]:
        here, there = connected(dialler.id, acceptor.id)
        asked = greet(here, dialler.vault, hello=hello, mesh_name="home")
        outcomes = await asyncio.gather(asked, _accept(there, acceptor), return_exceptions=True)
        return (*outcomes, here)

    return asyncio.run(run())


def refused(outcomes: tuple[Outcome, Outcome, FakeLink], code: Close) -> None:
    """Both sides know of one code."""
    ours, theirs, link = outcomes
    assert link.closed_with == code
    for error in (ours, theirs):
        if code in (Close.INVITE_INVALID, Close.INVITE_EXPIRED, Close.INVITE_REVOKED, Close.INVITE_USED):
            assert isinstance(error, InviteInvalid), error
        else:
            assert isinstance(error, PeerRefused) and error.close_code == code, error


def test_two_members_greet_each_other(village: Village) -> None:
    ann = village.member("ann")
    ours, theirs, link = meet(ann, village.founder, hello_of(ann))
    assert isinstance(ours, Session) and isinstance(theirs, Session)
    assert link.closed_with is None
    assert (ours.certificate.node, ours.role, ours.name, ours.software) == (
        village.founder.id,
        Role.MEMBER,
        "host",
        "test",
    )
    assert ours.observed == Address("192.0.2.1", 40000)
    assert (theirs.certificate.node, theirs.role, theirs.name, theirs.addresses) == (ann.id, Role.MEMBER, "name", HERE)


def test_a_newcomer_has_its_certificate_on_disk_when_the_greeting_is_over(village: Village) -> None:
    ann, mesh = village.stranger("ann"), village.founder.vault.credentials.mesh  # type: ignore[union-attr]
    hello = Hello(VERSION, mesh, Role.MEMBER, invite=village.founder.invite(uses=1))
    ours, theirs, _ = meet(ann, village.founder, hello)
    assert isinstance(ours, Session) and isinstance(theirs, Session)
    assert theirs.certificate.node == ann.id
    mine = ann.reopened().vault.credentials
    assert mine is not None and mine.mesh_name == "home"
    # From now on with the certificate; and the same invite again, after a crash, is not counted.
    assert isinstance(meet(ann, village.founder, hello_of(ann))[0], Session)
    assert isinstance(meet(ann, village.founder, hello)[1], Session)
    refused(meet(village.stranger("eve"), village.founder, hello), Close.INVITE_USED)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"version": 2}, Close.BAD_VERSION),
        ({"mesh": b"m" * 32}, Close.WRONG_MESH),
        ({"role": 0}, Close.ROLE_REFUSED),
        ({"certificate": b""}, Close.NOT_ADMITTED),
        ({"certificate": b"\0" * 300}, Close.PROTOCOL_ERROR),
        ({"certificate": b"", "invite": b"\1" * 200}, Close.INVITE_INVALID),
    ],
)
def test_a_wrong_hello_is_refused_with_one_code(village: Village, change: dict[str, Any], code: Close) -> None:
    ann = village.member("ann")
    outcomes = meet(ann, village.founder, hello_of(ann, **change))
    if code == Close.WRONG_MESH:
        assert isinstance(outcomes[1], PeerRefused)
    refused(outcomes, code)


def test_the_certificate_of_another_node_is_worth_nothing(village: Village) -> None:
    ann, eve = village.member("ann"), village.stranger("eve")
    refused(meet(eve, village.founder, hello_of(ann)), Close.NOT_ADMITTED)


def test_the_certificate_of_another_mesh_is_worth_nothing(village: Village) -> None:
    mesh = village.founder.vault.credentials.mesh  # type: ignore[union-attr]
    other = Village(village.folder / "other").member("eve")
    refused(meet(other, village.founder, hello_of(other)), Close.WRONG_MESH)
    refused(meet(other, village.founder, hello_of(other, mesh=mesh)), Close.WRONG_MESH)


def test_an_expired_member_may_come_again_with_an_invite(village: Village) -> None:
    ann = village.member("ann")
    village.clock.now_s += 91 * DAY_S
    village.founder = village.founder.reopened()
    refused(meet(ann, village.founder, hello_of(ann)), Close.CERTIFICATE_EXPIRED)
    both = hello_of(ann, invite=village.founder.invite(uses=1))
    assert isinstance(meet(ann, village.founder, both)[0], Session)
    assert ann.reopened().vault.credentials.ends_at > village.clock.now_s  # type: ignore[union-attr]


def test_an_invite_beside_a_good_certificate_is_not_used(village: Village) -> None:
    ann = village.member("ann")
    before = ann.vault.credentials
    token = village.founder.invite(uses=1)
    assert isinstance(meet(ann, village.founder, hello_of(ann, invite=token))[0], Session)
    assert ann.vault.credentials == before
    assert village.founder.vault.redeem(token, b"n" * 32, Role.MEMBER)


def test_revoked_and_expired_invites(village: Village) -> None:
    ann = village.stranger("ann")
    mesh = village.founder.vault.credentials.mesh  # type: ignore[union-attr]
    token = village.founder.invite(ttl_s=60)
    village.founder.vault.revoke(village.founder.vault.invites()[0].id)
    refused(meet(ann, village.founder, Hello(VERSION, mesh, Role.MEMBER, invite=token)), Close.INVITE_REVOKED)
    village.clock.now_s += 61
    refused(meet(ann, village.founder, Hello(VERSION, mesh, Role.MEMBER, invite=token)), Close.INVITE_EXPIRED)
    assert ann.vault.credentials is None


def test_a_client_has_no_rights_of_a_member(village: Village) -> None:
    thin = village.stranger("thin")
    thin.join(village.founder, village.founder.invite(role=Role.CLIENT), Role.CLIENT)
    _, theirs, _ = meet(thin, village.founder, hello_of(thin))
    assert isinstance(theirs, Session) and theirs.role == Role.CLIENT
    refused(meet(thin, village.founder, hello_of(thin, role=Role.MEMBER)), Close.ROLE_REFUSED)
    # Nobody is let in by it, either, whichever side dialled.
    ann = village.member("ann")
    refused(meet(ann, thin, hello_of(ann)), Close.ROLE_REFUSED)


def test_a_member_that_comes_as_a_client_is_treated_as_one(village: Village) -> None:
    ann = village.member("ann")
    _, theirs, _ = meet(ann, village.founder, hello_of(ann, role=Role.CLIENT))
    assert isinstance(theirs, Session)
    assert (theirs.role, theirs.certificate.role) == (Role.CLIENT, Role.MEMBER)


def test_a_node_in_no_mesh_lets_nobody_in(village: Village) -> None:
    ann = village.member("ann")
    refused(meet(ann, village.stranger("hermit"), hello_of(ann)), Close.NOT_ADMITTED)


# --- peers that do not keep to the rules --------------------------------------------------------------------------


def facing(node: Node, say: Callable[[Any, FakeLink], None], *, dialling: Hello | None = None) -> tuple[Any, FakeLink]:
    """What becomes of `node` when its peer is a script: as acceptor, or as dialler with `dialling` for its HELLO."""

    async def run() -> tuple[Any, FakeLink]:
        ann, node_end = connected(b"a" * 32, node.id)
        if dialling is None:
            stream = ann.open_stream()
            say(stream, ann)
            work = receive(node_end, stream.other, node.vault)
        else:
            node_end, ann = connected(node.id, b"a" * 32)
            work = greet(node_end, node.vault, hello=dialling)
        task = asyncio.create_task(work)
        if dialling is not None:
            say(await ann.opened.get(), ann)
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        return outcome, node_end

    return asyncio.run(run())


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\0",
        b"\0\0\0\1\0",
        (GREETING_BYTES + 1).to_bytes(4, "big"),
        b"\xff" * 64,
        encode_frame(MessageId.HELLO, b""),
        encode_frame(MessageId.HELLO, b"\xc1" * 10),
        encode_frame(MessageId.HELLO, b"\x90"),
        encode_frame(MessageId.WELCOME, encode_message(Welcome(VERSION, b"c"))),
        encode_frame(MessageId.PROBE, encode_message(Probe(1))),
        encode_frame(63, b"\x80"),
        encode_frame(1, b"\x80"),
    ],
)
def test_what_is_no_greeting_is_a_protocol_error(village: Village, data: bytes) -> None:
    for dialling in (None, hello_of(village.founder)):
        if dialling is not None and data[4:6] == b"\0\2":
            continue
        outcome, link = facing(village.founder, lambda stream, _: stream.write(data), dialling=dialling)
        assert isinstance(outcome, PeerRefused) and outcome.close_code == Close.PROTOCOL_ERROR
        assert link.closed_with == Close.PROTOCOL_ERROR


def test_a_later_version_hears_that_it_is_the_version(village: Village) -> None:
    body = b"\x82\x00\x02\x64\xc0"  # {0: 2, 100: nil}: an even member that version 1 does not know
    outcome, link = facing(village.founder, lambda stream, _: stream.write(encode_frame(MessageId.HELLO, body)))
    assert isinstance(outcome, PeerRefused) and link.closed_with == Close.BAD_VERSION


def test_half_a_greeting(village: Village, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(stream: Any, _: FakeLink) -> None:
        stream.write(b"\0\0")
        stream.write_eof()

    outcome, link = facing(village.founder, end)
    assert isinstance(outcome, PeerUnreachable) and link.closed_with == Close.PROTOCOL_ERROR
    monkeypatch.setattr(session, "LIMIT_ADMISSION_TIMEOUT_S", 0.01)
    for dialling in (None, hello_of(village.founder)):
        outcome, link = facing(village.founder, lambda stream, _: stream.write(b"\0\0"), dialling=dialling)
        assert isinstance(outcome, PeerUnreachable) and link.closed_with == Close.ADMISSION_TIMEOUT


def test_a_link_that_is_lost(village: Village) -> None:
    outcome, _ = facing(village.founder, lambda _, link: link.close(0))
    assert isinstance(outcome, PeerUnreachable)
    outcome, _ = facing(village.founder, lambda _, link: link.close(Close.BANNED), dialling=hello_of(village.founder))
    assert isinstance(outcome, PeerRefused) and outcome.close_code == Close.BANNED


def test_a_welcome_without_proof_or_without_the_promised_certificate(village: Village) -> None:
    ann = village.member("ann")
    newcomer = village.stranger("new")
    mesh = village.founder.vault.credentials.mesh  # type: ignore[union-attr]
    by_invite = Hello(VERSION, mesh, Role.MEMBER, invite=b"x")
    others = ann.vault.credentials.certificate  # type: ignore[union-attr]

    def say(certificate: bytes, issued: bytes = b"") -> Callable[[Any, FakeLink], None]:
        frame = encode_frame(MessageId.WELCOME, encode_message(Welcome(VERSION, certificate, issued)))
        return lambda stream, _: stream.write(frame)

    outcome, link = facing(newcomer, say(others, others), dialling=by_invite)
    assert isinstance(outcome, PeerRefused) and link.closed_with == Close.NOT_ADMITTED
    # The peer of these scripts is b"a" * 32: a certificate of its own, but none for the newcomer.
    own = village.founder.vault.redeem(village.founder.invite(), b"a" * 32, Role.MEMBER)
    for issued, code in ((b"", Close.PROTOCOL_ERROR), (others, Close.NOT_ADMITTED)):
        outcome, link = facing(newcomer, say(own, issued), dialling=by_invite)
        assert isinstance(outcome, PeerRefused) and link.closed_with == code
    assert newcomer.vault.credentials is None


def test_a_disk_that_is_full_is_a_fault_of_ours(village: Village, monkeypatch: pytest.MonkeyPatch) -> None:
    from meshnode.errors import HomeNotWritable

    def full(*_: object, **__: object) -> None:
        raise HomeNotWritable("no space left")

    token = village.founder.invite()
    mesh = village.founder.vault.credentials.mesh  # type: ignore[union-attr]
    newcomer = village.stranger("new")
    monkeypatch.setattr("meshnode.durable.write", full)
    ours, theirs, link = meet(newcomer, village.founder, Hello(VERSION, mesh, Role.MEMBER, invite=token))
    assert isinstance(theirs, HomeNotWritable) and link.closed_with == Close.INTERNAL
    assert isinstance(ours, NetworkError)


def test_a_cancelled_greeting_closes_the_link(village: Village) -> None:
    async def run() -> int | None:
        here, _ = connected(b"a" * 32, village.founder.id)
        task = asyncio.create_task(greet(here, village.founder.vault, hello=hello_of(village.founder)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        return here.closed_with

    assert asyncio.run(run()) == Close.DONE


# --- open meshes ----------------------------------------------------------------------------------------------


class Public:
    """The home of a node in an open mesh, with the shape of members.Node."""

    def __init__(self, home: Path, clock: Clock, limits: OpenLimits = LIMITS) -> None:
        self.identity = load_or_create(home / "node.key")
        self.id = bytes(self.identity.node_id)
        self.vault: Vault = OpenVault(home / "public", self.identity, OpenPolicy(limits), clock)

    def within(self, name: str, role: Role = Role.MEMBER) -> Any:
        assert isinstance(self.vault, OpenVault)
        self.vault.open(name, role)
        return self


@pytest.fixture
def strangers(tmp_path: Path) -> Callable[..., Any]:
    clock = Clock()
    return lambda name, **more: Public(tmp_path / name, clock, **more)


def test_strangers_greet_each_other_in_an_open_mesh(strangers: Callable[..., Any]) -> None:
    ann, bob = strangers("ann").within("one"), strangers("bob").within("One")
    ours, theirs, link = meet(bob, ann, hello_of(bob))
    assert isinstance(ours, Session) and isinstance(theirs, Session) and link.closed_with is None
    assert (theirs.certificate.node, theirs.certificate.authority, theirs.role) == (bob.id, b"", Role.MEMBER)


def test_what_proves_nothing_lets_nobody_into_an_open_mesh(strangers: Callable[..., Any], village: Village) -> None:
    ann, bob, eve = strangers("ann").within("one"), strangers("bob").within("one"), strangers("eve").within("one")
    mesh = ann.vault.credentials.mesh
    # Somebody else's, one of another open mesh, one of a private mesh, one that is over, none at all, an invite.
    refused(meet(eve, ann, hello_of(bob)), Close.NOT_ADMITTED)
    refused(meet(eve, ann, hello_of(strangers("eve").within("two"), mesh=mesh)), Close.WRONG_MESH)
    refused(meet(village.founder, ann, hello_of(village.founder, mesh=mesh)), Close.WRONG_MESH)
    bare = Hello(VERSION, mesh, Role.MEMBER, invite=village.founder.invite())
    refused(meet(eve, ann, bare), Close.INVITE_INVALID)
    refused(meet(eve, ann, dataclasses.replace(bare, invite=b"")), Close.NOT_ADMITTED)
    before = hello_of(bob)
    ann.vault._clock.now_s += 15 * DAY_S
    assert ann.vault.renew_own()
    refused(meet(bob, ann, before), Close.CERTIFICATE_EXPIRED)


def test_a_private_mesh_lets_nobody_in_who_vouches_for_himself(strangers: Callable[..., Any], village: Village) -> None:
    eve = strangers("eve").within("home")
    private = village.founder.vault.credentials
    assert private is not None
    refused(meet(eve, village.founder, hello_of(eve)), Close.WRONG_MESH)
    refused(meet(eve, village.founder, hello_of(eve, mesh=private.mesh)), Close.WRONG_MESH)
    forged = certificates.issue(
        dataclasses.replace(certificates.read(eve.vault.credentials.certificate), mesh=private.mesh), eve.identity.sign
    )
    refused(meet(eve, village.founder, hello_of(eve, mesh=private.mesh, certificate=forged)), Close.NOT_ADMITTED)


@pytest.mark.parametrize(
    ("limits", "code", "counter"),
    [
        (OpenLimits(members=0), Close.NO_ROOM, "open_members_full"),
        (OpenLimits(near_identities=0), Close.NO_ROOM, "open_prefix_full"),
        (OpenLimits(near_attempts=0), Close.FLOOD, "open_too_often"),
    ],
)
def test_the_policy_decides_after_the_certificate(
    strangers: Callable[..., Any], limits: OpenLimits, code: Close, counter: str
) -> None:
    ann, bob = strangers("ann", limits=limits).within("one"), strangers("bob").within("one")
    ours, theirs, link = meet(bob, ann, hello_of(bob))
    assert link.closed_with == code
    assert isinstance(ours, PeerRefused) and ours.close_code == code
    assert isinstance(theirs, NotLetIn) and theirs.counter == counter and theirs.close_code == code
