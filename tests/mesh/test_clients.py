import asyncio
from time import monotonic

import pytest

from meshnode.mesh.clients import MOST_ACCESS_NODES, ClientPart
from meshnode.mesh.control import frame_of
from meshnode.mesh.vault import Vault
from meshnode.wire import messages, statements
from meshnode.wire.messages import View
from meshnode.wire.registry import Close, Role
from meshnode.wire.statements import Dynamic
from tests.mesh.neighbourhood import Neighbourhood, Resident, offer

pytestmark = pytest.mark.anyio


async def served(town: Neighbourhood, hosts: int) -> tuple[list[Resident], Resident]:
    """Members that each serve a model, and a client that sees them all."""
    members = await town.members(hosts)
    for number, member in enumerate(members):
        member.mesh.publish(Dynamic(models=(offer(f"model-{number}"),)))
    client = await town.joined(members[0], Role.CLIENT)
    for number, member in enumerate(members):
        await client.until(lambda member=member, n=number: client.models_of(member) == [f"model-{n}"])
    return members, client


async def test_a_client_sees_the_hosts_and_asks_them_all(town: Neighbourhood) -> None:
    members, client = await served(town, 4)
    for member in members:
        assert await client.ask(member) == (200, f"{member.name}:hello".encode())
        seen = client.sees(member)
        assert seen is not None and (seen.state, seen.role) == ("alive", Role.MEMBER)
        assert members[0].mesh.members().members.get(client.id) is None, "a client is no member of the gossip"
    assert members[2].requests[0].peer == client.id
    assert client.mesh.state == "joined"


async def test_news_reach_a_client(town: Neighbourhood) -> None:
    members, client = await served(town, 2)
    members[1].mesh.publish(Dynamic(models=(offer("another"),)))
    await client.until(lambda: client.models_of(members[1]) == ["another"])


async def test_a_client_keeps_a_few_access_nodes_and_replaces_those_it_loses(town: Neighbourhood) -> None:
    members, client = await served(town, 5)
    part = client.mesh._part
    await client.until(lambda: len(part._access) >= 2)  # type: ignore[union-attr]
    for member in members:
        await client.ask(member)
    assert len(part._access) <= MOST_ACCESS_NODES  # type: ignore[union-attr]
    lost = [member for member in members if member.id in part._access]  # type: ignore[union-attr]
    for member in lost:
        await member.stop()
    left = [member for member in members if member not in lost]
    await client.until(lambda: {node for node in part._access} == {member.id for member in left})  # type: ignore[union-attr]
    await client.until(lambda: all(client.sees(member) is None for member in lost))
    assert (await client.ask(left[0]))[0] == 200


async def test_without_any_access_node_the_last_view_stays(town: Neighbourhood) -> None:
    members, client = await served(town, 2)
    await asyncio.gather(*(member.crash() for member in members))  # one that leaves in peace says so in a last View
    for peer in client.mesh._sessions.peers:
        peer.link.close(Close.DONE)
    await client.until(lambda: not client.mesh._sessions.peers)
    assert client.sees(members[1]) is not None
    assert client.mesh.state == "joining"


async def test_a_client_returns_after_a_restart(town: Neighbourhood) -> None:
    members, client = await served(town, 2)
    await client.stop()
    await client.restart()
    await client.until(lambda: client.models_of(members[0]) == ["model-0"])


async def test_an_access_node_that_forges_is_dropped(town: Neighbourhood) -> None:
    founder, other = await town.members(2)
    client = await town.joined(founder, Role.CLIENT)
    forged = statements.make(statements.Demand(), origin=other.id, incarnation=9, number=1, sign=founder.identity.sign)
    peer = founder.mesh._sessions.get(client.id)
    assert peer is not None
    peer.send(View((forged.signed,)))
    await client.until(lambda: client.mesh.counters.get("bans"))
    assert client.mesh._sessions.is_banned(founder.id)


async def test_a_client_takes_only_views(town: Neighbourhood) -> None:
    founder = await town.founder()
    client = await town.joined(founder, Role.CLIENT)
    peer = founder.mesh._sessions.get(client.id)
    assert peer is not None
    peer.control.send(frame_of(messages.Prune()))
    await client.until(lambda: client.mesh.counters.get("messages_malformed"))


async def test_a_client_has_nothing_to_say(town: Neighbourhood) -> None:
    founder = await town.founder()
    client = await town.joined(founder, Role.CLIENT)
    client.mesh.publish(Dynamic(models=(offer("a"),)))
    client.mesh.publish_demand(())
    await client.mesh.leave()
    await founder.until(lambda: founder.mesh._sessions.get(client.id) is None)
    assert client.id not in founder.mesh.members().members


async def test_a_silent_host_is_not_reachable(town: Neighbourhood) -> None:
    members, client = await served(town, 2)
    link = client.mesh._sessions.get(members[0].id).link  # type: ignore[union-attr]
    client.mesh.link_silent(link, True)
    assert client.sees(members[0]).reachable is False  # type: ignore[union-attr]
    client.mesh.link_silent(link, False)
    assert client.sees(members[0]).reachable is True  # type: ignore[union-attr]


async def test_an_idle_client_notices_that_its_access_node_is_gone(town: Neighbourhood) -> None:
    members, client = await served(town, 1)
    gone_at = monotonic()
    await members[0].crash()
    await client.until(lambda: not client.sees(members[0]).reachable)  # type: ignore[union-attr]
    assert monotonic() - gone_at < 3.0
    assert client.mesh._sessions.get(members[0].id), "the link stays: it may be heard again"


async def test_a_host_that_comes_back_is_offered_again_at_once(town: Neighbourhood) -> None:
    """It has forgotten its old link, which stays silent for as long as QUIC waits."""
    members, client = await served(town, 2)
    port = members[1].mesh.addresses[0].port
    await members[1].crash()
    await client.until(lambda: (seen := client.sees(members[1])) is None or not seen.reachable)
    members[1].vault = Vault(members[1].home / "mesh", members[1].identity)
    await members[1].start(port)
    back_at = monotonic()
    members[1].mesh.publish(Dynamic(models=(offer("again"),)))
    await client.until(lambda: client.models_of(members[1]) == ["again"] and client.sees(members[1]).reachable)  # type: ignore[union-attr]
    assert monotonic() - back_at < 5.0
    assert await client.ask(members[1]) == (200, b"member1:hello")


async def test_a_new_link_to_an_access_node_is_watched_and_brings_views(town: Neighbourhood) -> None:
    members, client = await served(town, 2)
    old = client.mesh._sessions.get(members[1].id)
    assert old is not None
    old.link._watch._liveness.silent = True
    new = await client.mesh._reach.session(members[1].id)
    assert new is not old and client.mesh._part._access[members[1].id] is new  # type: ignore[union-attr]
    assert new.link._watch.is_running
    await client.until(lambda: members[1].id in client.mesh._part._view.access_nodes)  # type: ignore[union-attr]
    await client.until(lambda: not old.link.alive)
    members[1].mesh.publish(Dynamic(models=(offer("news"),)))
    await client.until(lambda: client.models_of(members[1]) == ["news"])


async def test_a_silent_access_node_counts_for_nothing_until_it_is_heard(town: Neighbourhood) -> None:
    members, client = await served(town, 4)
    for member in members:
        await client.ask(member)
    part = client.mesh._part
    assert isinstance(part, ClientPart)
    await client.until(lambda: len(part._view.access_nodes) == MOST_ACCESS_NODES)
    first, *others = [member for member in members if member.id in part._access]
    (spare,) = [member for member in members if member.id not in part._access]
    link = client.mesh._sessions.get(first.id).link  # type: ignore[union-attr]
    link._watch._liveness.silent = True
    client.mesh.link_silent(link, True)
    assert set(part._access) == {spare.id, *(member.id for member in others)}
    assert all(first.id not in seen.access for seen in part._seen.values())
    assert client.sees(first).reachable is False  # type: ignore[union-attr]
    for member in others:
        client.mesh.link_silent(client.mesh._sessions.get(member.id).link, True)  # type: ignore[union-attr]
    assert part.wants_links()
    link._watch._liveness.silent = False
    client.mesh.link_silent(link, False)
    assert first.id in part._access and not part.wants_links()
    assert client.sees(first).reachable is True  # type: ignore[union-attr]


async def test_distances_are_measured_or_estimated(town: Neighbourhood) -> None:
    members, client = await served(town, 3)
    await client.ask(members[0])
    await client.mesh.ping(members[0].id, 2)
    for peer in client.mesh._sessions.peers:
        assert peer.link.rtt_s is not None
        client.mesh._part.measured(peer.node, peer.link.rtt_s)  # type: ignore[union-attr]
    known = client.sees(members[0])
    assert known is not None and known.rtt_s is not None and 0 < known.rtt_s < 1
    assert all(client.sees(member).estimated_rtt_s is not None for member in members)  # type: ignore[union-attr]
