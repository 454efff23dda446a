"""A node's part in its mesh, over real QUIC on loopback: found, join, offer, use, leave, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshnode.errors import (
    AlreadyInMesh,
    InviteInvalid,
    MeshnodeError,
    NodeNotFound,
    NotInMesh,
    PeerUnreachable,
    PortInUse,
)
from tests.stage import Stage, refuse, running, token_of, until

pytestmark = pytest.mark.anyio


async def test_the_first_start_founds_a_mesh_and_later_ones_return_to_it(tmp_path: Path) -> None:
    async with running(tmp_path, name="studio") as stage:
        facts = stage.facts()
        assert (facts["name"], facts["role"], facts["state"], facts["may_invite"]) == (
            "studio's mesh",
            "member",
            "alone",
            True,
        )
        assert facts["peers"] == [] and facts["addresses"][0].startswith("127.0.0.1:")
    async with running(tmp_path, private_mesh_name="another") as stage:
        assert stage.facts()["id"] == facts["id"]


async def test_two_nodes_serve_each_others_models(tmp_path: Path) -> None:
    async with running(tmp_path / "a", name="left", private_mesh_name="home") as a:
        async with running(tmp_path / "b", name="right", join=await token_of(a)) as b:
            assert b.facts()["name"] == "home" and not b.facts()["may_invite"]
            assert any("connected" in text for label, text in b.told if label == "mesh")
            a.serve("small")
            b.serve("large")
            for stage in (a, b):
                await until(lambda stage=stage: {model.id for model in stage.meshing.served()} == {"small", "large"})
            (peer,) = b.facts()["peers"]
            assert (peer["name"], peer["state"], peer["models"][0]["id"]) == ("left", "alive", "small")
            answer = await b.meshing.ping("LEFT", 3)
            assert len(answer["rtts_ms"]) == 3 and answer["node"] == peer["id"]
            assert (await b.meshing.ping(peer["id"][:6], 1))["name"] == "left"
        await until(lambda: [model.id for model in a.meshing.served()] == ["small"], 3)


async def test_a_client_sees_models_and_offers_none(tmp_path: Path) -> None:
    async with running(tmp_path / "a") as a:
        a.serve("small")
        made = await a.meshing.invite(role="client", ttl_s=60, uses=1, may_invite=False)
        async with running(tmp_path / "b", client=True, name="laptop", join=made["token"]) as b:
            await until(lambda: [model.id for model in b.meshing.served()] == ["small"])
            assert b.facts()["role"] == "client"
            (peer,) = a.facts()["peers"]
            assert (peer["name"], peer["role"], peer["reachable"]) == ("laptop", "client", True)
            assert peer["address"] == b.facts()["addresses"][0] and not peer["models"]
            with pytest.raises(MeshnodeError):
                await b.meshing.invite(role="member", ttl_s=60, uses=1, may_invite=False)
        (entry,) = a.facts()["invites"]
        assert entry["id"] == made["id"] and entry["uses_left"] == 0
        assert "token" not in entry


async def test_a_client_for_the_swarm_alone_has_no_private_mesh_and_says_so(tmp_path: Path) -> None:
    async with running(tmp_path / "a") as a:
        alone = Stage(tmp_path / "b", client=True, auto=True)
        assert not alone.meshing.has_where_to_go and alone.meshing.facts() is None
        with pytest.raises(NotInMesh, match="for the public swarm alone"):
            await alone.meshing.join(await token_of(a))


async def test_an_invite_for_clients_makes_no_member(tmp_path: Path) -> None:
    async with running(tmp_path / "a") as a:
        made = await a.meshing.invite(role="client", ttl_s=60, uses=1, may_invite=False)
        with pytest.raises(InviteInvalid, match="client-only"):
            await Stage(tmp_path / "b", join=made["token"]).meshing.start(refuse)


async def test_a_revoked_invite_admits_nobody(tmp_path: Path) -> None:
    async with running(tmp_path / "a") as a:
        made = await a.meshing.invite(role="member", ttl_s=60, uses=1, may_invite=False)
        assert (await a.meshing.revoke(made["id"]))["revoked"]
        late = Stage(tmp_path / "b", join=made["token"])
        with pytest.raises(InviteInvalid, match="revoked"):
            await late.meshing.start(refuse)
        await late.meshing.stop(now=True)


@pytest.mark.parametrize("token", ["", "mn1", "nonsense", "mn1" + "a" * 300])
async def test_a_mistyped_invite_is_told_before_anything_is_opened(tmp_path: Path, token: str) -> None:
    stage = Stage(tmp_path)
    with pytest.raises(InviteInvalid):
        await stage.meshing.join(token)
    assert stage.meshing.facts() is None


async def test_a_client_without_an_invite_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotInMesh) as caught:
        await Stage(tmp_path, client=True).meshing.start(refuse)
    assert "--join TOKEN" in caught.value.fix


async def test_the_mesh_that_nobody_else_is_in_gives_way_to_another(tmp_path: Path) -> None:
    async with running(tmp_path / "a", private_mesh_name="home") as a, running(tmp_path / "b") as b:
        joined = await b.meshing.join(await token_of(a))
        assert joined["name"] == "home" == b.facts()["name"]
        await until(lambda: bool(a.facts()["peers"]))
        async with running(tmp_path / "c") as c:
            with pytest.raises(AlreadyInMesh):
                await a.meshing.join(await token_of(c))
        assert a.facts()["name"] == "home"


def own_models(stage: Stage) -> list[str]:
    """What the node states of itself to its mesh."""
    assert stage.meshing._mesh is not None
    member = stage.meshing._mesh.members().members.get(stage.meshing._identity.node_id)
    return [model.name for model in member.dynamic.models] if member and member.dynamic else []


async def test_models_that_were_there_before_a_join_are_offered_after_it(tmp_path: Path) -> None:
    async with running(tmp_path / "a") as a, running(tmp_path / "b") as b:
        b.serve("small")
        await until(lambda: own_models(b) == ["small"])
        await b.meshing.join(await token_of(a))
        await until(lambda: [model.id for model in a.meshing.served()] == ["small"], 5)


async def test_a_join_that_fails_leaves_a_node_that_can_still_invite(tmp_path: Path) -> None:
    async with running(tmp_path / "a") as a:
        token = await token_of(a)
    async with running(tmp_path / "b") as b:
        with pytest.raises(PeerUnreachable):
            await b.meshing.join(token)
        assert b.facts()["may_invite"] and (await token_of(b)).startswith("mn1")


async def test_leaving_is_told_and_forgets_the_mesh(tmp_path: Path) -> None:
    async with (
        running(tmp_path / "a", private_mesh_name="home") as a,
        running(tmp_path / "b", join=await token_of(a)) as b,
    ):
        await until(lambda: bool(a.facts()["peers"]))
        assert await b.meshing.leave() == {"left": "home"}
        await until(lambda: all(peer["state"] == "left" for peer in a.facts()["peers"]), 3)
        assert (b.facts()["id"] != a.facts()["id"]) and b.facts()["state"] == "alone"
        with pytest.raises(NodeNotFound):
            await b.meshing.ping(a.facts()["node"], 1)
        await until(lambda: not b.facts()["peers"])


async def test_a_client_that_leaves_is_in_no_mesh(tmp_path: Path) -> None:
    async with running(tmp_path / "a") as a, running(tmp_path / "b", client=True, join=await token_of(a)) as b:
        await b.meshing.leave()
        assert b.meshing.facts() is None
        with pytest.raises(NotInMesh):
            await b.meshing.ping("any", 1)


async def test_a_port_that_was_asked_for_is_not_replaced(tmp_path: Path) -> None:
    async with running(tmp_path / "a") as a:
        port = int(a.facts()["addresses"][0].rpartition(":")[2])
        with pytest.raises(PortInUse):
            await Stage(tmp_path / "b", bind_port=port).meshing.start(refuse)
        async with running(tmp_path / "c", bind_port=port, sources={}) as c:
            assert int(c.facts()["addresses"][0].rpartition(":")[2]) != port


async def test_a_peer_that_is_not_there_cannot_be_pinged(tmp_path: Path) -> None:
    async with running(tmp_path) as stage:
        with pytest.raises(NodeNotFound):
            await stage.meshing.ping("studio", 1)
