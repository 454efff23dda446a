"""Questions of strangers to an open mesh: what is answered, what is believed, and who is refused."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import time
from typing import Any

import pytest

from meshnode.core.open_policy import OpenLimits, OpenPolicy
from meshnode.errors import MeshnodeError, PeerRefused, PeerUnreachable, WrongPeer
from meshnode.identity import Identity, ephemeral, load_or_create
from meshnode.mesh import inquiry
from meshnode.mesh.inquiry import Answered, Inquiries, ask
from meshnode.mesh.mesh import Mesh
from meshnode.mesh.open_vault import OpenVault
from meshnode.mesh.options import MeshOptions
from meshnode.net.endpoint import Endpoint
from meshnode.net.link import Link
from meshnode.net.stream import MeshStream
from meshnode.wire import messages, open_meshes, statements
from meshnode.wire.address import Address
from meshnode.wire.frames import encode_frame, encode_stream_header
from meshnode.wire.inquiry import Inquiry, Prospect
from meshnode.wire.registry import VERSION, Close, MessageId, Reset, Role, StreamType
from meshnode.wire.statements import Dynamic, ModelState, Offer
from tests.stage import refuse, until

pytestmark = pytest.mark.anyio

HOST = "127.0.0.1"
NAME = "club"
MESH = open_meshes.open_mesh_id(NAME)
LIMITS = OpenLimits()
OFFER = Offer("small", b"h" * 16, ModelState.READY, 512, 2)


class Asked:
    """A node of an open mesh that answers inquiries."""

    def __init__(self, home: Path, limits: OpenLimits = LIMITS) -> None:
        self.identity = load_or_create(home / "node.key")
        self.id = bytes(self.identity.node_id)
        self.policy = OpenPolicy(limits)
        self.vault = OpenVault(home / "public", self.identity, self.policy)
        self.counters: Counter[str] = Counter()
        self.inquiries = Inquiries(self.vault, self.id, self.counters)
        self.mesh: Mesh

    async def start(self, role: Role) -> None:
        self.vault.open(NAME, role)
        self.mesh = await Mesh.start(
            vault=self.vault,
            identity=self.identity,
            role=role,
            options=MeshOptions(HOST, name="asked"),
            answer=refuse,
            admitted=[],
            handlers={StreamType.INQUIRY: self.inquiries.serve},
        )
        self.inquiries.attach(self.mesh)
        self.mesh.publish(Dynamic(models=(OFFER,)))
        if role is Role.MEMBER:
            await until(lambda: any(shown.dynamic is not None for shown in self.mesh.shown()))

    async def ask(self, **more: Any) -> Answered:
        return await ask(ephemeral(), self.mesh.addresses, host=HOST, **more)


@asynccontextmanager
async def asked(home: Path, role: Role = Role.MEMBER, limits: OpenLimits = LIMITS) -> AsyncIterator[Asked]:
    node = Asked(home, limits)
    await node.start(role)
    try:
        yield node
    finally:
        await node.mesh.close()


async def test_what_a_mesh_offers_is_shown_before_anybody_enters(tmp_path: Path) -> None:
    async with asked(tmp_path / "a") as a:
        found = await a.ask(expected=a.id, mesh=MESH)
        assert (found.node, found.prospect.mesh, found.prospect.name) == (a.id, MESH, NAME)
        assert found.prospect.open and found.prospect.room and (found.prospect.nodes, found.prospect.clients) == (1, 0)
        assert found.prospect.observed is not None and found.prospect.observed.is_loopback
        assert 0 < found.rtt_s < 1 and found.address == a.mesh.addresses[0]
        (stated,) = found.stated
        assert stated.node == a.id and stated.dynamic is not None and stated.dynamic.models == (OFFER,)
        assert not a.mesh.clients() and a.policy.count(Role.MEMBER) == 0, "who asks is not let in yet"
        async with asked(tmp_path / "b") as b:
            await b.mesh.call(a.id, a.mesh.addresses)
            await until(lambda: len(a.mesh.shown()) == 2)
            for node in (a, b):
                await until(lambda node=node: len(node.mesh.shown()) == 2)
                found = await node.ask()
                assert found.stated[0].node == node.id and {each.node for each in found.stated} == {a.id, b.id}


async def test_a_full_node_says_so_to_each_role(tmp_path: Path) -> None:
    async with asked(tmp_path, limits=OpenLimits(clients=0)) as a:
        assert (await a.ask(role=Role.MEMBER)).prospect.room
        assert not (await a.ask(role=Role.CLIENT)).prospect.room


async def test_who_has_nothing_to_offer_refuses(tmp_path: Path) -> None:
    async with asked(tmp_path / "c", role=Role.CLIENT) as client:
        with pytest.raises(PeerRefused, match="no open mesh"):
            await client.ask()
        assert client.counters == {"inquiries_refused": 1}
    async with asked(tmp_path / "a") as a:
        with pytest.raises(PeerRefused, match="no open mesh"):
            await a.ask(mesh=b"m" * 32)
        with pytest.raises(WrongPeer):
            await a.ask(expected=ephemeral().node_id)
        await a.mesh.leave()
        a.vault.forget()
        with pytest.raises(PeerRefused, match="no open mesh"):
            await a.ask()
    with pytest.raises(PeerUnreachable):
        await ask(ephemeral(), [Address(HOST, 9)], host=HOST, timeout_s=0.5)
    with pytest.raises(PeerUnreachable):
        await ask(ephemeral(), [Address("100::1", 9)], host=HOST, timeout_s=0.5)


async def test_a_private_mesh_answers_no_inquiry(tmp_path: Path) -> None:
    """It has no handler for such streams."""
    from tests.mesh.neighbourhood import neighbourhood

    async with neighbourhood(tmp_path) as town:
        founder = await town.founder()
        with pytest.raises(PeerRefused):
            await ask(ephemeral(), founder.mesh.addresses, host=HOST)
        assert founder.mesh.counters["streams_not_allowed"] == 1


async def test_questions_of_one_network_are_rationed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inquiry, "NEAR_ANSWERS_AT_ONCE", 3)
    monkeypatch.setattr(inquiry, "NEAR_ANSWERS_A_SECOND", 0.0)
    async with asked(tmp_path) as a:
        outcomes = await asyncio.gather(*(a.ask() for _ in range(8)), return_exceptions=True)
        assert sum(isinstance(each, Answered) for each in outcomes) == 3
        refused = [each for each in outcomes if isinstance(each, PeerRefused)]
        assert len(refused) == 5 and all("too often" in str(each) for each in refused)
        assert a.counters == {"inquiries_answered": 3, "inquiries_too_often": 5}


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\0\0\0\xff" + b"x" * 255,
        b"\0\0\0\1x",
        encode_frame(MessageId.PROSPECT, b"\x80"),
        encode_frame(MessageId.INQUIRY, b"\x80"),
        encode_frame(MessageId.INQUIRY, messages.encode_message(Inquiry(VERSION + 1))),
    ],
)
async def test_a_question_that_breaks_the_rules_is_refused(tmp_path: Path, sent: bytes) -> None:
    from meshnode.mesh.stranger import visit

    async with asked(tmp_path) as a, visit(ephemeral(), a.mesh.addresses, host=HOST) as link:
        stream = link.open_stream()
        stream.write(encode_stream_header(StreamType.INQUIRY, b"") + sent)
        stream.write_eof()
        with pytest.raises(ConnectionResetError) as refused:
            await stream.read(1)
        assert getattr(refused.value, "code", None) in (Reset.MALFORMED, Reset.REFUSED)
        assert a.counters["inquiries_malformed"] + a.counters["inquiries_refused"] == 1


# --- answers that lie -----------------------------------------------------------------------------------------


class Liar:
    """Answers every stream with what it was given (net.Handler)."""

    def __init__(self, answer: Callable[[Identity], bytes]) -> None:
        self.identity = ephemeral()
        self.answer = answer

    def link_up(self, link: Link) -> None: ...
    def link_down(self, link: Link, code: int, reason: str) -> None: ...
    def datagram(self, link: Link, data: bytes) -> None: ...
    def link_silent(self, link: Link, silent: bool) -> None: ...

    def stream_opened(self, stream: MeshStream) -> None:
        stream.write(self.answer(self.identity))
        stream.write_eof()


def prospect(*signed: bytes, **changes: Any) -> bytes:
    """The frame of an answer."""
    members = {"version": VERSION, "mesh": MESH, "name": NAME, "open": True, "room": True, "nodes": 1} | changes
    return encode_frame(MessageId.PROSPECT, messages.encode_message(Prospect(**members, statements=signed)))


def identity_of(node: Identity, *, mesh: bytes = MESH, ago_s: float = 0.0, role: Role = Role.MEMBER) -> bytes:
    certificate = open_meshes.self_issued(
        node.sign, mesh=mesh, node=node.node_id, role=role, serial=b"serial 1", now_s=time() - ago_s
    )
    body = statements.Identity(certificate)
    return statements.make(body, origin=node.node_id, incarnation=1, number=1, sign=node.sign).signed


def dynamic_of(node: Identity, *, incarnation: int = 1, number: int = 1, models: tuple[Offer, ...] = (OFFER,)) -> bytes:
    body = Dynamic(models=models)
    return statements.make(body, origin=node.node_id, incarnation=incarnation, number=number, sign=node.sign).signed


async def asked_of(answer: Callable[[Identity], bytes], **more: Any) -> Answered:
    liar = Liar(answer)
    endpoint = await Endpoint.open(liar.identity, liar, host=HOST)
    try:
        return await ask(ephemeral(), [endpoint.address], host=HOST, **more)
    finally:
        await endpoint.close()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (lambda node: b"", Close.PROTOCOL_ERROR),
        (lambda node: b"\0\1\0\0" + b"x" * 10, Close.PROTOCOL_ERROR),
        (lambda node: prospect(version=VERSION + 1), Close.BAD_VERSION),
        (lambda node: prospect(open=False), Close.NOT_ADMITTED),
        (lambda node: prospect(name="another"), Close.NOT_ADMITTED),
        (lambda node: prospect(name="a/b"), Close.NOT_ADMITTED),
        (lambda node: prospect(b"x" * 200), Close.PROTOCOL_ERROR),
        (lambda node: prospect(identity_of(node)[:-1] + b"\0"), Close.PROTOCOL_ERROR),
        (lambda node: prospect(bytes(64) + identity_of(node)[64:]), Close.PROTOCOL_ERROR),
    ],
)
async def test_an_answer_that_is_malformed_or_forged_is_no_answer(
    answer: Callable[[Identity], bytes], code: Close
) -> None:
    with pytest.raises(PeerRefused) as refused:
        await asked_of(answer)
    assert refused.value.close_code == code, refused.value


async def test_another_mesh_than_the_one_that_is_meant() -> None:
    with pytest.raises(PeerRefused) as refused:
        await asked_of(lambda node: prospect(), mesh=b"m" * 32)
    assert refused.value.close_code == Close.WRONG_MESH


async def test_statements_that_prove_nothing_count_for_nothing() -> None:
    other, gone, thin, foreign = (ephemeral() for _ in range(4))
    found = await asked_of(
        lambda node: prospect(
            identity_of(node),
            dynamic_of(node, models=()),
            dynamic_of(node, number=2),
            dynamic_of(other),
            identity_of(gone, ago_s=60 * 86_400),
            dynamic_of(gone),
            identity_of(thin, role=Role.CLIENT),
            identity_of(foreign, mesh=open_meshes.open_mesh_id("elsewhere")),
            nodes=1000,
        )
    )
    (stated,) = found.stated
    assert stated.node == found.node and stated.dynamic is not None and stated.dynamic.models == (OFFER,)


async def test_a_statement_of_an_earlier_life_is_not_current() -> None:
    found = await asked_of(lambda node: prospect(identity_of(node), dynamic_of(node, incarnation=0)))
    (stated,) = found.stated
    assert stated.dynamic is None


async def test_whoever_never_answers_is_not_waited_for() -> None:
    class Silent(Liar):
        def stream_opened(self, stream: MeshStream) -> None: ...

    silent = Silent(lambda node: b"")
    endpoint = await Endpoint.open(silent.identity, silent, host=HOST)
    with pytest.raises(MeshnodeError):
        await ask(ephemeral(), [endpoint.address], host=HOST, timeout_s=0.3)
    await endpoint.close()
