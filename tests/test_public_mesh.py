"""The socket for strangers: what answers there, and what does not."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meshnode.core.open_policy import OpenLimits
from meshnode.errors import MeshnodeError, PeerRefused, StateError
from meshnode.identity import ephemeral
from meshnode.public_mesh import PublicMesh, SwarmParts
from meshnode.wire import open_meshes, statements
from meshnode.wire.address import Address
from meshnode.wire.messages import Statements
from meshnode.wire.registry import Close, Reset, Role, StreamType
from tests.stage import until
from tests.swarm_stage import NOBODY, Stranger

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def opened(
    home: Path, role: Role = Role.MEMBER, *, name: str = "one", stranger: Stranger | None = None
) -> AsyncIterator[PublicMesh]:
    """A public mesh that was entered, without anybody who looks for others."""
    stranger = stranger or Stranger(home, (NOBODY,), client=role is Role.CLIENT)
    parts: SwarmParts = stranger.swarm._its
    found = await PublicMesh.open(parts, role, lambda: None)
    try:
        assert found.mesh.state == "alone" and found.vault.credentials is None, "it enters nothing by itself"
        found.vault.open(name, role)
        await found.mesh.enter()
        yield found
    finally:
        await found.close(0.0)


async def call(one: PublicMesh, other: PublicMesh) -> None:
    await one.mesh.call(other._its.identity.node_id, other.mesh.addresses)


async def test_strangers_are_let_in_by_policy_alone(tmp_path: Path) -> None:
    async with opened(tmp_path / "a") as a, opened(tmp_path / "b") as b, opened(tmp_path / "c", Role.CLIENT) as c:
        await call(b, a)
        await call(c, a)
        await until(lambda: a.policy.count(Role.MEMBER) == 1 and a.policy.count(Role.CLIENT) == 1)
        assert {peer["radius"] for peer in a.facts()["peers"]} == {"public"}
        await c.mesh.leave()
        await until(lambda: a.policy.count(Role.CLIENT) == 0)


async def test_members_of_another_open_mesh_are_sent_away(tmp_path: Path) -> None:
    async with opened(tmp_path / "a") as a, opened(tmp_path / "b", name="two") as b:
        with pytest.raises(PeerRefused) as refused:
            await call(b, a)
        assert refused.value.close_code == Close.WRONG_MESH
        assert a.policy.count(Role.MEMBER) == 0


async def test_of_a_crowd_of_identities_only_so_many_come_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = OpenLimits(near_identities=4, near_attempts=30, near_attempts_per_s=0.0)
    monkeypatch.setattr("meshnode.public_mesh.OpenLimits", lambda **_: limits)
    async with opened(tmp_path / "a") as a, contextlib.AsyncExitStack() as stack:
        crowd = [await stack.enter_async_context(opened(tmp_path / f"e{number}")) for number in range(40)]
        outcomes = await asyncio.gather(*(call(one, a) for one in crowd), return_exceptions=True)
        assert sum(outcome is None for outcome in outcomes) == 4
        codes = {each.close_code for each in outcomes if isinstance(each, PeerRefused)}
        assert codes == {Close.NO_ROOM, Close.FLOOD}
        counters = a.facts()["counters"]
        assert (counters["open_prefix_full"], counters["open_too_often"]) == (26, 10)
        assert counters["admissions_refused"] == 36 and a.policy.count(Role.MEMBER) == 4


async def test_a_crowd_that_is_told_of_does_not_fill_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One member, let in like any other, tells of many that nobody has seen."""
    async with opened(tmp_path / "a") as a, opened(tmp_path / "b") as b:
        await call(b, a)
        await until(lambda: a.policy.count(Role.MEMBER) == 1)
        assert a.vault.credentials is not None
        signed = []
        for number in range(40):
            key = ephemeral()
            certificate = open_meshes.self_issued(
                key.sign,
                mesh=a.vault.credentials.mesh,
                node=key.node_id,
                role=Role.MEMBER,
                serial=b"serial 1",
                now_s=a.vault._clock(),
            )
            body = statements.Identity(certificate, (Address(f"8.8.8.{number}", 9338),))
            made = statements.make(body, origin=key.node_id, incarnation=1, number=1, sign=key.sign)
            signed.append(made.signed)
        b.mesh._send(a._its.identity.node_id, Statements(tuple(signed)))
        await until(lambda: a.mesh.counters.get("identities_not_admitted", 0) == 36)
        assert len(a.mesh.members().members) == 2 + 4


async def test_what_is_for_the_private_mesh_has_no_door_here(tmp_path: Path) -> None:
    async with opened(tmp_path / "a") as a, opened(tmp_path / "b") as b:
        await call(b, a)
        for kind in (StreamType.RPC, StreamType.BULK, StreamType.PAIR):
            assert kind not in a.mesh._dispatch._handlers
            stream = await b.mesh.open_stream(a._its.identity.node_id, kind, b"")
            with pytest.raises(ConnectionResetError) as refused:
                await stream.read(1)
            assert getattr(refused.value, "code", None) == Reset.REFUSED
        assert a.facts()["counters"]["streams_not_allowed"] == 3


async def test_whether_a_member_answers_requests_at_all(tmp_path: Path) -> None:
    stranger = Stranger(tmp_path / "a")
    async with opened(tmp_path / "a", stranger=stranger) as a, opened(tmp_path / "b") as b:
        await call(b, a)
        node = a._its.identity.node_id
        assert await b.answers(node)
        for status in (200, 429):
            stranger.status = status
            assert await b.answers(node)
        for status in (403, 500, 503):
            stranger.status = status
            assert not await b.answers(node)
        assert not await b.answers(b"n" * 32)


async def test_a_friend_comes_in_where_strangers_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = OpenLimits(members=0)
    monkeypatch.setattr("meshnode.public_mesh.OpenLimits", lambda **_: limits)
    host = Stranger(tmp_path / "a")
    async with opened(tmp_path / "a", stranger=host) as a, opened(tmp_path / "b") as b:
        with pytest.raises(MeshnodeError):
            await call(b, a)
        host.known.add(bytes(b._its.identity.node_id))
        await call(b, a)
        assert [peer["radius"] for peer in a.facts()["peers"]] == ["trusted"]


async def test_a_host_name_is_told_to_nobody(tmp_path: Path) -> None:
    async with opened(tmp_path / "a") as a, opened(tmp_path / "b") as b:
        await call(b, a)
        await until(lambda: any(peer["name"] for peer in b.facts()["peers"]))
        assert b.facts()["peers"][0]["name"] == "a"
    nameless = Stranger(tmp_path / "c")
    parts = dataclasses.replace(nameless.swarm._its, settings=dataclasses.replace(nameless.settings, name=None))
    found = await PublicMesh.open(parts, Role.MEMBER, lambda: None)
    hello = found.mesh._presence._options.name
    assert hello == nameless.node.hex()[:10]
    await found.close(0.0)


async def test_the_port_is_mapped_and_given_back(tmp_path: Path) -> None:
    class Mapper:
        mapped = (Address("8.8.8.8", 4242),)

        def __init__(self) -> None:
            self.ports: list[int] = []
            self.closed = False

        async def start(self, port: int) -> None:
            self.ports.append(port)

        async def close(self) -> None:
            self.closed = True

    mapper = Mapper()
    parts = dataclasses.replace(Stranger(tmp_path).swarm._its, mapper=mapper)
    found = await PublicMesh.open(parts, Role.MEMBER, lambda: None)
    await until(lambda: bool(mapper.ports))
    assert mapper.ports == [found.mesh.bound.port]
    await found.close(0.0)
    assert mapper.closed


async def test_the_folder_of_another_mesh_is_not_opened(tmp_path: Path) -> None:
    stranger = Stranger(tmp_path)
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "peers").write_bytes(b"?")
    with pytest.raises(StateError, match="damaged"):
        await PublicMesh.open(stranger.swarm._its, Role.MEMBER, lambda: None)
