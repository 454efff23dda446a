import asyncio
from contextlib import suppress

import pytest

from meshnode.api.upstream import UpstreamBroken
from meshnode.errors import AlreadyInMesh, InviteInvalid, NotInMesh, PeerUnreachable, PortInUse, StateError
from meshnode.mesh.stranger import open_pairing, visit
from meshnode.mesh.tunnel import TunnelReply
from meshnode.mesh.tunnel_request import TunnelRequest
from meshnode.net.stream import MeshStream
from meshnode.wire.address import Address
from meshnode.wire.invites import Invite
from meshnode.wire.registry import Close, Role
from meshnode.wire.statements import Dynamic, Wish
from tests.mesh.neighbourhood import Neighbourhood, offer, slowly
from tests.mesh.rogue import Rogue

pytestmark = pytest.mark.anyio


async def test_two_nodes_join_and_answer_each_other(town: Neighbourhood) -> None:
    one, two = await town.members(2)
    assert one.mesh.state == two.mesh.state == "joined"
    one.mesh.publish(Dynamic(models=(offer("a"),)))
    two.mesh.publish(Dynamic(models=(offer("b"),)))
    two.mesh.publish_demand((Wish("a", 5000),))
    await two.until(lambda: two.models_of(one) == ["a"])
    await one.until(lambda: one.models_of(two) == ["b"])
    await one.until(lambda: (found := one.sees(two)) and found.demand and found.demand.wishes)
    assert await one.ask(two, b"hello") == (200, b"member1:hello")
    assert await two.ask(one, b"x" * 1_000_000) == (200, b"member0:" + b"x" * 1_000_000)
    [request] = two.requests
    assert (request.peer, request.content_type) == (one.id, "text/plain")
    seen = one.sees(two)
    assert seen is not None and seen.identity is not None
    assert (seen.identity.name, seen.identity.software, seen.role) == ("member1", "test", Role.MEMBER)
    assert one.mesh.address_of(two.id) == two.mesh.addresses[0]
    assert one.mesh.counters["http_answered"] == 1


async def test_five_nodes_find_each_other(town: Neighbourhood) -> None:
    everybody = await town.members(5)
    for number, resident in enumerate(everybody):
        resident.mesh.publish(Dynamic(models=(offer(f"model-{number}"),)))
    for one in everybody:
        for number, other in enumerate(everybody):
            if one is not other:
                await one.until(lambda one=one, other=other, n=number: one.models_of(other) == [f"model-{n}"])
    answers = await asyncio.gather(*(one.ask(two) for one in everybody for two in everybody if one is not two))
    assert {status for status, _ in answers} == {200}


async def test_a_node_alone(town: Neighbourhood) -> None:
    founder = await town.founder()
    assert founder.mesh.state == "alone"
    assert founder.mesh.address_of(b"x" * 32) is None
    stranger = await town.resident().start()
    assert (stranger.mesh.state, dict(stranger.mesh.members().members)) == ("alone", {})
    stranger.mesh.publish(Dynamic(models=()))
    with pytest.raises(NotInMesh):
        await stranger.mesh.enter()
    with pytest.raises(PeerUnreachable):
        await stranger.mesh.ping(founder.id, 1)


async def test_a_founder_may_come_later(town: Neighbourhood) -> None:
    late = await town.resident().start()
    late.vault.found("home")
    await late.mesh.enter()
    await late.mesh.enter()
    other = await town.joined(late)
    await town.acquainted([late, other])


async def test_why_an_invite_cannot_be_used(town: Neighbourhood) -> None:
    founder = await town.founder()
    guest = await town.resident().start()
    used, token = founder.invite(uses=1)
    await (await town.resident().start()).mesh.join(used, token)
    with pytest.raises(InviteInvalid, match="used up"):
        await guest.mesh.join(used, token)
    revoked, token = founder.invite()
    founder.vault.revoke(revoked.id.hex())
    with pytest.raises(InviteInvalid, match="revoked"):
        await guest.mesh.join(revoked, token)
    good, token = founder.invite()
    with pytest.raises(InviteInvalid, match="malformed"):
        await guest.mesh.join(good, token[:-1] + bytes((token[-1] ^ 1,)))
    assert guest.vault.credentials is None
    nowhere = Invite(good.mesh, good.issuer, good.id, good.role, good.expires_at, (Address("127.0.0.1", 9),))
    with pytest.raises(PeerUnreachable, match="127.0.0.1:9"):
        await guest.mesh.join(nowhere, token)
    await guest.mesh.join(good, token)
    await guest.mesh.join(good, token)
    with pytest.raises(AlreadyInMesh):
        await guest.mesh.join(Invite(b"m" * 32, good.issuer, good.id, good.role, 0, good.addresses), token)


async def test_a_taken_port_and_a_wrong_role(town: Neighbourhood) -> None:
    founder = await town.founder()
    with pytest.raises(PortInUse):
        await town.resident().start(founder.mesh.addresses[0].port)
    client = await town.joined(founder, Role.CLIENT)
    await client.stop()
    client.role = Role.MEMBER
    with pytest.raises(StateError):
        await client.restart()


async def test_a_stop_is_known_at_once_and_lets_answers_finish(town: Neighbourhood) -> None:
    one, two, three = await town.members(3)
    began, release = asyncio.Event(), asyncio.Event()

    async def pause() -> None:
        began.set()
        await release.wait()

    two.answer = slowly(3, pause)
    exchange = await one.send(two)
    await began.wait()
    stopping = asyncio.ensure_future(two.stop(drain_s=5))
    for other in (one, three):
        await other.until(lambda other=other: (seen := other.sees(two)) is None or seen.state == "left")
    release.set()
    assert (await exchange.read_all(1000)).startswith(b"0;")
    exchange.close()
    await stopping


async def test_a_stop_hands_over_what_does_not_finish(town: Neighbourhood) -> None:
    one, two = await town.members(2)
    two.answer = slowly(3, asyncio.Event().wait)
    exchange = await one.send(two)
    await two.stop()
    with pytest.raises(UpstreamBroken):
        await exchange.read_all(1000)
    exchange.close()
    with pytest.raises(UpstreamBroken):
        await one.ask(two)


async def test_who_leaves_is_left_and_may_join_again(town: Neighbourhood) -> None:
    one, two = await town.members(2)
    await two.mesh.leave()
    two.vault.forget()
    await one.until(lambda: (seen := one.sees(two)) is None or seen.state == "left")
    assert (two.mesh.state, dict(two.mesh.members().members)) == ("alone", {})
    await two.join(one)
    await town.acquainted([one, two])
    assert (await one.ask(two))[0] == 200


async def test_a_crash_is_noticed_and_the_rest_goes_on(town: Neighbourhood) -> None:
    one, two, three = await town.members(3)
    await two.crash()
    for other in (one, three):
        await other.until(lambda other=other: (seen := other.sees(two)) is None or not seen.reachable)
    assert (await one.ask(three))[0] == 200


async def test_a_peer_that_falls_silent_is_avoided_at_once(town: Neighbourhood) -> None:
    one, two = await town.members(2)
    peer = one.mesh._sessions.get(two.id)
    assert peer is not None
    one.mesh.link_silent(peer.link, True)
    seen = one.sees(two)
    assert seen is not None and (seen.reachable, seen.state) == (False, "alive")
    one.mesh.link_silent(peer.link, False)
    seen = one.sees(two)
    assert seen is not None and seen.reachable


async def test_round_trips(town: Neighbourhood) -> None:
    one, two, three = await town.members(3)
    rtts_s = await one.mesh.ping(two.id, 3)
    assert len(rtts_s) == 3 and all(0 < rtt_s < 1 for rtt_s in rtts_s)
    rtt_s = await one.mesh.rtt_between(two.id, three.id)
    assert rtt_s is not None and 0 < rtt_s < 1
    await three.crash()
    assert await one.mesh.rtt_between(two.id, b"x" * 32) is None
    assert await one.mesh.rtt_between(b"x" * 32, two.id) is None
    assert two.mesh.counters["measured_for_others"] == 2


async def test_news_come_in_bundles(town: Neighbourhood) -> None:
    one, two = await town.members(2)
    count = 0

    def changed() -> None:
        nonlocal count
        count += 1

    one.mesh._changed = changed
    for _ in range(100):
        one.mesh._news.came()
        await asyncio.sleep(0.001)
    assert 1 <= count <= 10
    snapshot = one.mesh.members()
    assert one.mesh.members() is snapshot


async def test_200_slow_streams_through_one_node(town: Neighbourhood) -> None:
    """Four nodes ask a fifth for 50 streams each: all advance, and none holds more than its share."""
    host, *askers = await town.members(5)
    turn = asyncio.Event()

    async def pause() -> None:
        await turn.wait()

    async def answer(_: TunnelRequest, reply: TunnelReply) -> None:
        await reply.head(200, [])
        for _ in range(5):
            await pause()
            await reply.body(b"x" * 10_000)
        await reply.finish()

    host.answer = answer
    exchanges = await asyncio.gather(*(asker.send(host) for asker in askers for _ in range(50)))
    assert host.mesh.counters["http_running"] == 200
    turn.set()
    async with asyncio.timeout(20):
        bodies = await asyncio.gather(*(exchange.read_all(1 << 20) for exchange in exchanges))
    assert {len(body) for body in bodies} == {50_000}
    for exchange in exchanges:
        exchange.close()


async def test_callers_that_do_not_read_hold_up_nobody(town: Neighbourhood) -> None:
    one, two = await town.members(2)
    written = 0

    async def endless(_: TunnelRequest, reply: TunnelReply) -> None:
        nonlocal written
        await reply.head(200, [])
        while True:
            await reply.body(b"x" * 16_384)
            written += 16_384

    two.answer = endless
    stalled = await asyncio.gather(*(one.send(two) for _ in range(50)))
    two.answer = two.echo
    for _ in range(20):
        assert (await one.ask(two, b"y" * 100_000))[0] == 200
    assert written < 50 << 20
    for exchange in stalled:
        exchange.close()
    async with asyncio.timeout(5):
        while two.mesh.counters["http_running"]:
            await asyncio.sleep(0.01)


async def test_a_stranger_may_pair_before_it_is_admitted(town: Neighbourhood) -> None:
    shown = town.resident()
    shown.vault.found("home")
    guests: list[bytes] = []

    async def pair(stream: MeshStream, header: bytes) -> None:
        guests.append(stream.link.peer)
        stream.write(await stream.read(100))
        stream.write_eof()

    shown.pair = pair
    await shown.start()
    typing = await town.resident().start()
    async with visit(typing.identity, shown.mesh.addresses, host="127.0.0.1") as link:
        stream = open_pairing(link)
        stream.write(b"hello")
        assert await stream.read(100) == b"hello"
    assert guests == [typing.id]
    await typing.join(shown)
    await town.acquainted([shown, typing])


async def test_a_member_without_a_link_is_met(town: Neighbourhood) -> None:
    one, two = await town.members(2)
    await two.crash()
    for link in one.mesh._endpoint.links:
        link.close(Close.DONE)
    two.vault.forget_peer(one.id)
    await two.restart()
    await one.mesh.meet(two.mesh.addresses)
    await one.until(lambda: one.mesh.state == "joined")


async def test_a_stranger_that_is_met_learns_nothing(town: Neighbourhood) -> None:
    one = await town.resident().start()
    other = town.resident()
    other.vault.found("home")
    one.vault.found("home too")
    await one.mesh.enter()
    await other.start()
    await one.mesh.meet(other.mesh.addresses)
    counters = other.mesh.counters
    assert counters["links_up"] == 1
    assert "messages_in" not in counters
    assert "streams_opened" not in counters
    assert not one.mesh.counters["links"]


async def test_a_peer_that_has_a_link_is_not_dialled_again(town: Neighbourhood) -> None:
    one, two = await town.members(2)
    before = two.mesh.counters["links_up"]
    await one.mesh.meet(two.mesh.addresses)
    assert two.mesh.counters["links_up"] == before


async def test_nothing_is_left_running(town: Neighbourhood) -> None:
    before = asyncio.all_tasks()
    one, two = await town.members(2)
    await one.ask(two)
    client = await town.joined(one, Role.CLIENT)
    await client.until(lambda: client.sees(two))
    async with Rogue(town.resident()) as rogue:
        await rogue.enter(one)
    for resident in (client, one, two):
        await resident.stop()
    for _ in range(10):
        await asyncio.sleep(0)
    left = {task for task in asyncio.all_tasks() - before if not task.done()}
    with suppress(KeyError):
        left.discard(asyncio.current_task())  # type: ignore[arg-type]
    assert left == set()
