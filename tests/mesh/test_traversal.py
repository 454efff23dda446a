"""Whole nodes with walls between some of them: relays, direct paths, and what happens when a relay goes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from time import monotonic

import pytest

from meshnode.errors import PeerRefused, PeerUnreachable
from meshnode.mesh import presence, relayed_links
from meshnode.mesh.direct_paths import MOST_SERVED
from meshnode.mesh.traversal import NatView
from meshnode.wire.address import Address
from meshnode.wire.registry import Close, Nat, Role
from meshnode.wire.statements import Dynamic
from tests.mesh.neighbourhood import Neighbourhood, Resident, offer, slowly
from tests.mesh.walls import Walls, part

pytestmark = pytest.mark.anyio
OUTSIDE = Address("11.7.1.1", 9337)


async def relaying(town: Neighbourhood, count: int = 1) -> list[Resident]:
    """Members that relay; the first founds the mesh."""
    found: list[Resident] = []
    for _ in range(count):
        relay = town.resident()
        relay.relay = True
        if not found:
            relay.vault.found("home")
        await relay.start()
        if found:
            await relay.join(found[0])
        found.append(relay)
    await town.acquainted(found)
    for relay in found:
        relay.mesh.publish(Dynamic())
    return found


async def apart(
    town: Neighbourhood, relays: Iterable[Resident], **walls: bool
) -> tuple[Resident, Resident, Walls, Walls]:
    """Two members that no datagram of the other reaches, and their walls."""
    one, other = await town.resident().start(), await town.resident().start()
    here, there = Walls(one, **walls), Walls(other, **walls)
    if not walls:
        part(here, there)
    first, *_ = relays
    await one.join(first)
    await other.join(first)
    for resident in (one, other):
        resident.mesh.publish(Dynamic())
    return one, other, here, there


def paths(one: Resident, other: Resident) -> tuple[str | None, str | None]:
    return one.mesh.path_of(other.id), other.mesh.path_of(one.id)


@pytest.fixture
def behind(monkeypatch: pytest.MonkeyPatch) -> Callable[[Nat], None]:
    """Has every node find that kind of NAT before it."""

    def set_kind(kind: Nat) -> None:
        monkeypatch.setattr(presence, "classify", lambda *_: kind)

    return set_kind


async def test_peers_that_cannot_reach_each_other_do_so_through_a_third(town: Neighbourhood) -> None:
    [relay] = await relaying(town)
    one, other, here, there = await apart(town, [relay])
    await town.acquainted([relay, one, other])
    assert paths(one, other) == ("relayed", "relayed")
    assert paths(one, relay) == ("direct", "direct")
    assert one.mesh.address_of(other.id) is None and one.mesh.path_of(b"x" * 32) is None
    body = b"x" * 300_000
    assert await one.ask(other, body) == (200, other.name.encode() + b":" + body)
    assert await other.ask(one) == (200, one.name.encode() + b":hello")
    assert relay.requests == [] and relay.mesh.counters["relay_flows"] >= 1
    seen = one.sees(other)
    assert seen is not None and (seen.linked, seen.reachable) == (True, True)
    rtts_s = await one.mesh.ping(other.id, 2)
    assert all(0 < rtt_s < 1 for rtt_s in rtts_s)
    assert here.dropped and there.dropped


async def test_a_request_to_a_peer_behind_a_wall_goes_out_in_a_fraction_of_a_second(town: Neighbourhood) -> None:
    [relay] = await relaying(town)
    one, other, *_ = await apart(town, [relay])
    await town.acquainted([relay, one, other])
    for resident in (one, other):
        for peer in resident.mesh._sessions.peers:
            if peer.node in (one.id, other.id):
                peer.link.close(Close.DONE)
    begun = monotonic()
    assert (await one.ask(other))[0] == 200
    assert one.mesh.path_of(other.id) == "relayed"
    assert monotonic() - begun < 0.6, "0.3 s, and as much for a slow machine"


async def test_a_direct_path_is_found_and_streams_notice_nothing(
    town: Neighbourhood, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relayed_links, "LINGER_S", 0.2)
    [relay] = await relaying(town)
    one, other, here, there = await apart(town, [relay])
    await town.acquainted([relay, one, other])
    tick = asyncio.Semaphore(0)
    other.answer = slowly(200, tick.acquire)
    exchange = await one.send(other)
    reading = asyncio.ensure_future(exchange.read_all(1 << 20))
    for _ in range(100):
        tick.release()
    part(here, there, apart=False)
    await one.until(lambda: paths(one, other) == ("direct", "direct"))
    for _ in range(100):
        tick.release()
    pieces = (await reading).split(b";")
    exchange.close()
    assert [int(piece.strip(b".") or b"-1") for piece in pieces[:-1]] == list(range(200))
    await relay.until(lambda: relay.mesh._traversal._relaying.flows == 0)
    assert (await one.ask(relay))[0] == 200
    assert paths(one, other) == ("direct", "direct")


async def test_two_home_routers_are_opened_at_once(town: Neighbourhood) -> None:
    """Walls that let in only whom the node has sent something to: a direct path comes by itself, in no time."""
    [relay] = await relaying(town)
    one, other, *_ = await apart(town, [relay], stateful=True)
    begun = monotonic()
    await one.mesh.call(other.id, other.mesh.addresses)
    await one.until(lambda: paths(one, other) == ("direct", "direct"))
    assert monotonic() - begun < 1.5, "half a second, and more for a slow machine"
    assert (await one.ask(other))[0] == 200


async def test_a_direct_dial_that_is_answered_late_costs_no_stream(town: Neighbourhood) -> None:
    """The wall falls while the dial that began first still tries: what has begun over the relay goes on."""
    [relay] = await relaying(town)
    one, other, here, there = await apart(town, [relay])
    await one.until(lambda: one.mesh._sessions.get(relay.id))
    for resident in (one, other):  # both are too busy to look for a direct path
        resident.mesh._traversal._paths._serving |= {bytes((number,)) * 32 for number in range(MOST_SERVED)}
    await one.mesh.call(other.id, other.mesh.addresses)
    await asyncio.sleep(1.2)  # both may have dialled: one of the two links is closed after a second
    tick = asyncio.Semaphore(0)
    other.answer = slowly(30, tick.acquire)
    exchange = await one.send(other)
    tick.release()
    part(here, there, apart=False)
    await one.until(lambda: paths(one, other) == ("direct", "direct"))
    await asyncio.sleep(1.3)  # a second after it has come up, a link takes the place of an older one
    for _ in range(30):
        tick.release()
    assert (await exchange.read_all(1 << 20)).count(b";") == 30
    exchange.close()


@pytest.mark.parametrize("how", ["crash", "leaves"])
async def test_another_relay_takes_over_and_the_answer_goes_on(town: Neighbourhood, how: str) -> None:
    relays = await relaying(town, 2)
    one, other, *_ = await apart(town, relays)
    await town.acquainted([*relays, one, other])
    tick = asyncio.Semaphore(0)
    other.answer = slowly(20, tick.acquire)
    exchange = await one.send(other)
    tick.release()
    reading = asyncio.ensure_future(exchange.read_all(1 << 20))
    used = next(relay for relay in relays if relay.mesh._traversal._relaying.flows)
    spare = next(relay for relay in relays if relay is not used)
    await (used.crash() if how == "crash" else used.stop())
    await spare.until(lambda: spare.mesh._traversal._relaying.flows)
    for _ in range(20):
        tick.release()
    assert (await asyncio.wait_for(reading, 10)).count(b";") == 20
    exchange.close()
    assert paths(one, other) == ("relayed", "relayed")
    moved = sum(resident.mesh.counters.get("relayed_rerouted", 0) for resident in (one, other))
    assert moved == 1


async def test_without_a_relay_a_wall_is_a_wall(town: Neighbourhood) -> None:
    founder = await town.founder()
    one, other, *_ = await apart(town, [founder])
    founder.mesh.publish(Dynamic())
    await one.until(lambda: (seen := one.sees(founder)) and seen.dynamic)
    with pytest.raises(PeerUnreachable, match=str(other.mesh.addresses[0].port)):
        await one.mesh._reach.session(other.id, other.mesh.addresses, 0.5)


async def test_who_refuses_is_not_asked_again_through_a_relay(town: Neighbourhood) -> None:
    [relay] = await relaying(town)
    one = await town.joined(relay)
    await town.acquainted([relay, one])
    stranger = await town.resident().start()
    stranger.vault.found("elsewhere")
    await stranger.mesh.enter()
    await one.until(lambda: one.mesh._traversal.head_start_s(stranger.id, stranger.mesh.addresses) is not None)
    asked = one.mesh.counters.get("flows_asked", 0)
    with pytest.raises(PeerRefused):
        await one.mesh._reach.session(stranger.id, stranger.mesh.addresses)
    assert one.mesh.counters.get("flows_asked", 0) <= asked + 1, "asked meanwhile, but not waited for"


async def test_a_client_reaches_a_host_through_its_access_node(town: Neighbourhood) -> None:
    [relay] = await relaying(town)
    host = await town.resident().start()
    client = await town.resident(Role.CLIENT).start()
    part(Walls(host), Walls(client))
    await host.join(relay)
    host.mesh.publish(Dynamic(models=(offer("a"),)))
    await client.join(relay)
    await client.until(lambda: client.models_of(host) == ["a"])
    assert await client.ask(host) == (200, host.name.encode() + b":hello")
    assert paths(client, host) == ("relayed", "relayed")
    assert client.mesh.nat.relays == () and client.mesh._traversal.told(Dynamic()).relay is False


async def test_a_node_behind_nat_has_places_with_two_relays(town: Neighbourhood, behind: Callable[[Nat], None]) -> None:
    relays = await relaying(town, 3)
    one = await town.joined(relays[0])
    await town.acquainted([*relays, one])
    await one.until(lambda: all(seen.dynamic for relay in relays if (seen := one.sees(relay))))
    await asyncio.sleep(0)
    assert one.mesh.nat == NatView("none", (one.mesh.bound,), (), ())
    behind(Nat.SYMMETRIC)
    one.mesh._traversal._look_soon()
    await one.until(lambda: len(one.mesh.nat.relays) == 2)
    assert one.mesh.nat.kind == "symmetric"
    assert one.mesh._traversal.told(Dynamic()) == Dynamic(nat=Nat.SYMMETRIC)
    lost = next(relay for relay in relays if relay.id.hex() in one.mesh.nat.relays)
    await lost.stop()
    await one.until(lambda: lost.id.hex() not in one.mesh.nat.relays and len(one.mesh.nat.relays) == 2)
    # A router that forwards a port makes the NAT as good as none.
    object.__setattr__(one.mesh._presence._options, "mapped", lambda: (OUTSIDE,))
    one.mesh._traversal._look_soon()
    await one.until(lambda: one.mesh.nat.relays == ())
    assert one.mesh.nat.mapped == (OUTSIDE,) and OUTSIDE in one.mesh.addresses
    assert one.mesh._traversal.told(Dynamic()).nat == Nat.NONE
    others = [relay for relay in relays if relay is not lost]
    for other in others:
        await other.until(lambda other=other: OUTSIDE in other.sees(one).identity.addresses)


async def test_a_relay_that_leaves_the_mesh_relays_no_more_and_does_so_again_in_the_next(town: Neighbourhood) -> None:
    [relay] = await relaying(town)
    assert relay.mesh._traversal.told(Dynamic()).relay is True
    await relay.mesh.leave()
    assert relay.mesh._traversal.told(Dynamic()).relay is False
    relay.vault.forget()
    relay.vault.found("next")
    await relay.mesh.enter()
    await relay.until(lambda: relay.mesh._traversal.told(Dynamic()).relay)


async def test_what_a_relayed_peer_calls_our_address_is_passed_over(town: Neighbourhood) -> None:
    [relay] = await relaying(town)
    one, other, *_ = await apart(town, [relay])
    await town.acquainted([relay, one, other])
    assert one.mesh.nat.observed == (one.mesh.bound,) and other.mesh.nat.observed == (other.mesh.bound,)
    assert all(address.host == "127.0.0.1" for address in (*one.mesh.addresses, *one.mesh._presence.candidates()))
    one.mesh._presence.seen_at(Address("100::1", 3), other.id, relay.mesh.bound)
    one.mesh._presence.seen_at(OUTSIDE, other.id, Address("100::1", 3))
    assert one.mesh.nat.observed == (one.mesh.bound,)


async def test_an_address_of_the_discard_prefix_is_never_dialled(town: Neighbourhood) -> None:
    """Only this node itself may mean a detour by one."""
    founder = await town.founder()
    with pytest.raises(PeerUnreachable, match="no address"):
        await founder.mesh._reach.session(b"x" * 32, [Address("100::1", 3)])
