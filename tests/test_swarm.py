"""A node in the public swarm, over real QUIC on loopback and an embedded relay."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meshnode import seeking
from meshnode.core.open_policy import OpenLimits
from meshnode.discovering import open_relays
from meshnode.errors import BadRequest, NotInMesh, PortInUse
from meshnode.identity import ephemeral, load_or_create
from meshnode.mesh.inquiry import ask
from meshnode.mesh.open_vault import OpenVault
from meshnode.mesh.vault import Vault
from meshnode.wire.open_meshes import open_mesh_id
from meshnode.wire.registry import Reset, Role, StreamType
from meshnode.wire.statements import ModelState
from tests.swarm_stage import NOBODY, Stranger, nostr_relay, offer, stranger

pytestmark = pytest.mark.anyio


@pytest.fixture
async def relay() -> AsyncIterator[str]:
    async with nostr_relay() as url:
        yield url


async def listed(node: Stranger) -> None:
    """Wait until a node has its mesh on a relay."""
    await node.until(lambda: node.facts.get("listing") and node.facts["listing"]["relays"][0]["state"] == "ok")


async def test_a_stranger_finds_what_another_publishes(tmp_path: Path, relay: str) -> None:
    async with stranger(tmp_path / "a", (relay,), offer("small"), publish=True) as a:
        await listed(a)
        assert a.state == "alone" and "whoever names it" in a.facts["sentence"]
        async with stranger(tmp_path / "b", (relay,), auto=True) as b:
            assert await b.until(lambda: b.state == "joined") < 1.0
            await b.until(lambda: b.hosts() == {"small": ["public"]})
            assert await b.ask("small") == b"a"
            await a.until(lambda: a.meets(b))
            (peer,) = a.facts["peers"]
            assert (peer["name"], peer["radius"], peer["path"], peer["models"]) == ("b", "public", "direct", [])
            assert a.facts["mesh"]["name"] == "meshnode" == b.facts["mesh"]["name"]
        await a.until(lambda: a.sees(b) is None or a.sees(b).state == "left", 5)  # type: ignore[union-attr]
    assert ("public", 'in "meshnode" as member') in [(label, text[:23]) for label, text in b.told]
    assert not list(b.problems)


async def test_a_model_that_is_ready_later_is_listed_soon(tmp_path: Path, relay: str) -> None:
    async with stranger(tmp_path / "a", (relay,), publish=True) as a:
        await listed(a)
        a.serve(offer("late"))
        relays = open_relays((relay,), tmp_path / "nostr.key")
        async with asyncio.timeout(15):
            while "late" not in {model.name for each in (await relays.fetch()).listings for model in each.models}:
                await asyncio.sleep(0.1)
        await relays.close()


async def test_a_node_that_only_looks_offers_nothing_to_strangers(tmp_path: Path, relay: str) -> None:
    async with (
        stranger(tmp_path / "a", (relay,), offer("small"), publish=True) as a,
        stranger(tmp_path / "b", (relay,), offer("mine"), auto=True) as b,
    ):
        await b.until(lambda: b.hosts() == {"small": ["public"]})
        await a.until(lambda: a.meets(b) and a.sees(b).dynamic is not None)  # type: ignore[union-attr]
        dynamic = a.sees(b).dynamic  # type: ignore[union-attr]
        assert dynamic is not None and (dynamic.models, dynamic.devices, dynamic.rpc) == ((), (), 0)
        assert not b.facts["publishing"]
        assert (a.refusing, b.refusing) == (False, True), "who knows the address gets nothing, either"
        await b.swarm.pause(False)
        assert b.refusing and b.hosts()


async def test_a_client_uses_the_swarm_and_is_no_member(tmp_path: Path, relay: str) -> None:
    async with stranger(tmp_path / "a", (relay,), offer("small"), publish=True) as a:
        await listed(a)
        async with stranger(tmp_path / "c", (relay,), client=True, auto=True) as c:
            await c.until(lambda: c.hosts() == {"small": ["public"]})
            assert await c.ask("small") == b"a"
            assert c.facts["role"] == "client" and c.facts["listing"] is None
            policy = a.swarm._public.policy  # type: ignore[union-attr]
            assert policy is not None and policy.count(Role.CLIENT) == 1


async def test_a_client_that_finds_nothing_says_so_and_goes_on_looking(tmp_path: Path, relay: str) -> None:
    async with stranger(tmp_path / "c", (relay,), client=True, auto=True) as c:
        await c.until(lambda: c.state == "failed")
        assert "the relays list none" in c.facts["sentence"]
        assert [problem.kind.code for problem in c.problems] == ["public-mesh-unfound"]
        async with stranger(tmp_path / "a", (relay,), offer("small"), publish=True):
            await c.until(lambda: c.hosts() == {"small": ["public"]})
            assert not list(c.problems)


async def test_a_member_that_finds_nothing_begins_a_mesh(tmp_path: Path, relay: str) -> None:
    async with stranger(tmp_path / "a", (relay,), auto=True) as a:
        await listed(a)
        assert (a.state, a.facts["mesh"]["name"]) == ("alone", "meshnode")
        assert a.facts["publisher"] and not a.facts["publishing"]


async def test_without_any_relay_the_sentence_names_them(tmp_path: Path) -> None:
    async with stranger(tmp_path / "a", (NOBODY,), auto=True) as a:
        await a.until(lambda: a.state == "alone")
        assert "no Nostr relay answers" in a.facts["sentence"] and NOBODY in a.facts["sentence"]
        await a.until(lambda: len(list(a.problems)) == 2)
        assert {problem.kind.code for problem in a.problems} == {"public-mesh-unfound", "public-mesh-unlisted"}
        assert all("(reason)" not in problem.as_dict()["text"] for problem in a.problems)  # type: ignore[operator]


async def test_a_relay_that_never_answers_is_not_waited_for(tmp_path: Path, relay: str) -> None:
    ends: list[asyncio.Task[None]] = []

    async def read_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(1 << 16):
                continue
        writer.close()

    def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.append(asyncio.create_task(read_on(reader, writer)))

    silent = await asyncio.start_server(stall, "127.0.0.1", 0)
    stalls = f"ws://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    async with stranger(tmp_path / "a", (relay,), offer("small"), publish=True) as a:
        await listed(a)
        async with stranger(tmp_path / "b", (stalls, relay, NOBODY), auto=True) as b:
            assert await b.until(lambda: b.state == "joined") < 1.0
            await b.until(lambda: b.hosts() == {"small": ["public"]})
    silent.close()
    await asyncio.gather(*ends)


async def test_everybody_who_says_one_name_meets(tmp_path: Path, relay: str) -> None:
    async with (
        stranger(tmp_path / "a", (relay,), offer("small"), mesh_name="My Mesh") as a,
        stranger(tmp_path / "b", (relay,), offer("large", digest=2), mesh_name="my-mesh") as b,
        stranger(tmp_path / "c", (relay,), mesh_name="another") as c,
    ):
        # All began at the same time, when nobody was listed.
        took_s = await a.until(lambda: a.meets(b), 60)
        await b.until(lambda: b.hosts() == {"small": ["public"]})
        assert a.facts["mesh"] == {"id": open_mesh_id("my mesh").hex(), "name": "my-mesh"}
        assert c.state in ("looking", "alone") and c.facts["mesh"]["name"] == "another" and not c.hosts()
    assert took_s < 60


async def test_two_meshes_of_one_name_become_one(tmp_path: Path, relay: str) -> None:
    """Each has two members, which have never heard of the others."""
    async with nostr_relay() as elsewhere, contextlib.AsyncExitStack() as stack:
        first = [
            await stack.enter_async_context(stranger(tmp_path / name, (relay,), mesh_name="one")) for name in ("a", "b")
        ]
        second = [
            await stack.enter_async_context(stranger(tmp_path / name, (elsewhere, relay), mesh_name="one"))
            for name in ("c", "d")
        ]
        for node in first:
            await node.until(lambda node=node: all(node.meets(other) for other in first + second if other != node), 60)


async def test_with_every_relay_down_a_node_comes_back_by_its_saved_peers(tmp_path: Path, relay: str) -> None:
    async with stranger(tmp_path / "a", (relay,), offer("small"), publish=True, public_port=0) as a:
        await listed(a)
        async with stranger(tmp_path / "b", (relay,), auto=True) as b:
            await b.until(lambda: a.meets(b) and b.meets(a))
            await b.until(lambda: bool(b.swarm._public.vault.peers()))  # type: ignore[union-attr]
        async with stranger(tmp_path / "b", (NOBODY,), auto=True) as again:
            assert await again.until(lambda: again.state == "joined") < 2.0
            await again.until(lambda: again.hosts() == {"small": ["public"]})
        async with stranger(tmp_path / "b", (NOBODY,), auto=True, client=True) as thin:
            await thin.until(lambda: thin.hosts() == {"small": ["public"]})


async def test_an_address_that_was_given_is_enough(tmp_path: Path) -> None:
    async with stranger(tmp_path / "a", (NOBODY,), offer("small"), mesh_name="club") as a:
        await a.until(lambda: a.state == "alone")
        at = a.facts["addresses"][0].replace("127.0.0.1", "localhost")
        async with stranger(tmp_path / "b", (NOBODY,), auto=True, bootstrap=("127.0.0.1:9", at)) as b:
            await b.until(lambda: b.state == "joined" and b.hosts() == {"small": ["public"]})
            assert b.facts["mesh"]["name"] == "club"


async def test_models_of_the_private_mesh_are_not_added_twice(tmp_path: Path, relay: str) -> None:
    async with (
        stranger(tmp_path / "a", (relay,), offer("small"), publish=True) as a,
        stranger(tmp_path / "b", (relay,), auto=True) as b,
    ):
        await b.until(lambda: b.hosts() == {"small": ["public"]})
        assert b.swarm.hosts([]) is b.swarm.hosts([])
        b.known = {a.node}
        b.swarm.touch()
        assert b.hosts() == {"small": ["trusted"]}, "whom the owner trusts is trusted here, too"
        b.private = frozenset({a.node})
        assert b.hosts() == {}


# --- what the owner can do --------------------------------------------------------------------------------------


async def test_a_pause_takes_models_and_listing_back(tmp_path: Path, relay: str) -> None:
    async with (
        stranger(tmp_path / "a", (relay,), offer("small"), publish=True) as a,
        stranger(tmp_path / "b", (relay,), auto=True) as b,
    ):
        await b.until(lambda: b.hosts() == {"small": ["public"]})
        assert await a.swarm.pause(True) == {"paused": True}
        await b.until(lambda: b.hosts() == {})
        await a.until(lambda: not a.swarm._publisher.is_listed)  # type: ignore[union-attr]
        assert a.facts["paused"] and a.refusing
        await a.swarm.pause(False)
        await b.until(lambda: b.hosts() == {"small": ["public"]})


async def test_joining_and_leaving_while_the_node_runs(tmp_path: Path, relay: str) -> None:
    async with stranger(tmp_path / "a", (relay,), offer("small"), mesh_name="one") as a, stranger(tmp_path / "b") as b:
        assert b.swarm.facts() is None and b.swarm.hosts([]) == []
        b.settings = a.settings
        b.swarm = Stranger(tmp_path / "b", (relay,)).swarm
        with pytest.raises(NotInMesh):
            await b.swarm.leave_public()
        with pytest.raises(BadRequest):
            await b.swarm.join_public("no/name")
        await listed(a)
        assert await b.swarm.join_public("ONE") == {"state": "looking", "name": "one"}
        await b.until(lambda: b.state == "joined" and "small" in b.hosts())
        assert await b.swarm.leave_public() == {"left": "one"}
        await a.until(lambda: a.sees(b) is None or a.sees(b).state == "left", 5)  # type: ignore[union-attr]
        assert b.swarm.facts() is None and b.hosts() == {}
        assert await b.swarm.join_public(None) == {"state": "looking", "name": None}
        await b.until(lambda: b.state == "joined")


async def test_what_is_listed_can_be_discovered(tmp_path: Path, relay: str) -> None:
    async with (
        stranger(tmp_path / "a", (relay,), offer("small"), publish=True, region="moon") as a,
        stranger(tmp_path / "b", (relay,), auto=True) as b,
    ):
        await b.until(lambda: b.hosts() == {"small": ["public"]})
        await a.until(lambda: a.swarm._publisher._said[:1] != ((),))  # type: ignore[union-attr]
        await listed(a)
        facts = await b.swarm.discover("small", "moon")
        (found,) = facts["meshes"]
        assert found["name"] == "meshnode" and "small" in str(found["shown"])
        async with asyncio.timeout(15):
            while not (found := await b.swarm.providers("small"))["providers"]:
                await asyncio.sleep(0.1)
        assert found["content_hash"] == (b"\1" * 16).hex()
        assert [each["node"] for each in found["providers"]] == [a.node.hex()]
        assert (await b.swarm.providers("unheard of"))["content_hash"] is None


async def test_stopping_takes_the_listing_back(tmp_path: Path, relay: str) -> None:
    async with stranger(tmp_path / "a", (relay,), publish=True) as a:
        await listed(a)
    async with stranger(tmp_path / "c", (relay,), client=True, auto=True) as c:
        await c.until(lambda: c.state == "failed")
        assert "the relays list none" in c.facts["sentence"]


async def test_a_port_that_was_asked_for_is_not_replaced(tmp_path: Path) -> None:
    async with stranger(tmp_path / "a", (NOBODY,), publish=True) as a:
        port = int(a.facts["addresses"][0].rpartition(":")[2])
        taken = Stranger(tmp_path / "b", public_port=port, auto=True, sources={"public_port": "test"})
        with pytest.raises(PortInUse):
            await taken.swarm.start()
        async with stranger(tmp_path / "c", public_port=port, auto=True, sources={}) as c:
            assert int(c.facts["addresses"][0].rpartition(":")[2]) != port


async def test_a_damaged_folder_ends_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "membership").write_bytes(b"not a membership")
    async with stranger(tmp_path, auto=True) as node:
        assert node.state == "failed" and "damaged" in node.facts["sentence"]
        assert [problem.kind.code for problem in node.problems] == ["public-mesh-unfound"]


async def test_a_name_that_is_none_ends_in_a_sentence(tmp_path: Path) -> None:
    async with stranger(tmp_path, mesh_name="a/b") as node:
        assert node.state == "failed" and "letters, digits" in node.facts["sentence"]


# --- strangers --------------------------------------------------------------------------------------------------


async def test_a_stranger_who_asks_for_lending_weights_or_pairing_is_refused_and_counted(tmp_path: Path) -> None:
    async with (
        stranger(tmp_path / "a", (NOBODY,), offer("small"), mesh_name="one") as a,
        stranger(tmp_path / "b", (NOBODY,), mesh_name="one") as b,
    ):
        await b.until(lambda: a.state == b.state == "alone")
        await b.swarm.mesh.call(a.node, a.swarm.mesh.addresses)  # type: ignore[union-attr]
        await b.until(lambda: b.meets(a))
        before = a.facts["counters"].get("streams_not_allowed", 0)
        kinds = (StreamType.RPC, StreamType.BULK, StreamType.PAIR)
        for kind in kinds:
            stream = await b.swarm.mesh.open_stream(a.node, kind, b"")  # type: ignore[union-attr]
            with pytest.raises(ConnectionResetError) as refused:
                await stream.read(1)
            assert getattr(refused.value, "code", None) == Reset.REFUSED
        assert a.facts["counters"]["streams_not_allowed"] == before + len(kinds)
        assert b.meets(a), "it costs a stranger its streams, not its link"


async def test_a_private_mesh_is_opened_by_no_self_made_certificate(tmp_path: Path) -> None:
    """A private node is shown a certificate that a stranger has issued for itself: for its mesh, or for an open one."""
    owner, eve = load_or_create(tmp_path / "a" / "node.key"), ephemeral()
    private = Vault(tmp_path / "a" / "mesh", owner)
    private.found("home")
    assert not private.is_open and private.policy is None
    async with stranger(tmp_path / "b", mesh_name="home") as b:
        await b.until(lambda: b.state == "alone")
        public = b.swarm._public.vault
        assert isinstance(public, OpenVault)
        mine = public.credentials
        assert mine is not None
        for mesh in (None, mine.mesh):
            with pytest.raises(Exception, match="another mesh|forged"):
                private.admit(mine.certificate, b.node, mesh=mesh)
        with pytest.raises(Exception, match="forged|no open mesh|another mesh|refused|not a member"):
            await ask(eve, b.swarm.mesh.addresses, mesh=bytes(owner.node_id), host="127.0.0.1")  # type: ignore[union-attr]


async def test_a_mesh_that_serves_nothing_of_what_it_lists_is_left(
    tmp_path: Path, relay: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeking, "SERVES_S", 1.0)
    async with stranger(tmp_path / "liar", (relay,), offer("treasure"), mesh_name="liars") as liar:
        liar.status = 503
        await listed(liar)
        async with stranger(tmp_path / "b", (relay,), auto=True) as b:
            await b.until(lambda: b.state == "joined")
            await b.until(lambda: b.state == "alone" and b.facts["mesh"]["name"] == "meshnode")
            assert any("serves none of them: left" in text for _, text in b.told)
            assert liar.node in b.swarm._seeking.avoided  # type: ignore[union-attr]
            await asyncio.sleep(0)
            await b.until(lambda: not b.hosts())


async def test_of_a_crowd_only_so_many_come_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = 40
    limits = OpenLimits(near_identities=4)
    monkeypatch.setattr("meshnode.public_mesh.OpenLimits", lambda **more: limits)
    async with (
        stranger(tmp_path / "a", (NOBODY,), offer("small"), mesh_name="one") as a,
        contextlib.AsyncExitStack() as s,
    ):
        await a.until(lambda: a.state == "alone")
        at = (a.facts["addresses"][0],)
        for number in range(crowd // 4):
            await s.enter_async_context(
                stranger(tmp_path / f"e{number}", (NOBODY,), mesh_name="one", client=True, bootstrap=at)
            )
        policy = a.swarm._public.policy  # type: ignore[union-attr]
        assert policy is not None
        await a.until(lambda: policy.count(Role.CLIENT) == 4)
        await a.until(lambda: a.facts["counters"].get("inquiries_answered", 0) >= crowd // 4)
        assert policy.count(Role.CLIENT) == 4


async def test_a_state_that_is_loading_is_no_listed_model(tmp_path: Path, relay: str) -> None:
    loading = offer("slow", state=ModelState.LOADING)
    async with stranger(tmp_path / "a", (relay,), loading, publish=True) as a:
        await listed(a)
        assert a.swarm._publisher.listing().models == ()  # type: ignore[union-attr]
