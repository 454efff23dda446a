import asyncio
from typing import Any

import pytest

from meshnode.core.effects import Close as CloseEffect
from meshnode.core.effects import Dial, SaveIncarnation, Send
from meshnode.mesh.control import frame_of
from meshnode.mesh.member import MemberPart
from meshnode.wire.address import Address
from meshnode.wire.messages import IHave, Measured, Probe, Renewed, Subscribe, View
from meshnode.wire.registry import Close, Role
from meshnode.wire.statements import Dynamic, Wish
from tests.mesh.neighbourhood import Neighbourhood, Resident, offer
from tests.mesh.rogue import Rogue

pytestmark = pytest.mark.anyio


def part_of(resident: Resident) -> MemberPart:
    part = resident.mesh._part
    assert isinstance(part, MemberPart)
    return part


async def test_what_one_publishes_all_see(town: Neighbourhood) -> None:
    one, two, three = await town.members(3)
    for number in range(3):
        one.mesh.publish(Dynamic(models=(offer(f"model-{number}"),)))
        one.mesh.publish_demand((Wish("a", number),))
    for other in (two, three):
        await other.until(lambda other=other: other.models_of(one) == ["model-2"])
        await other.until(lambda other=other: other.sees(one).demand.wishes[0].rate == 2)


async def test_effects_reach_the_network(town: Neighbourhood) -> None:
    one, two = await town.members(2)
    part = part_of(one)
    received: list[Any] = []
    part_of(two)._driver.handle = received.append  # type: ignore[method-assign]
    driver = part._driver
    driver._effects.extend([Send(two.id, Probe(3), False), Send(two.id, IHave((b"0123456789",)), True)])
    driver._execute()
    await two.until(lambda: len([event for event in received if hasattr(event, "message")]) >= 2)
    messages = [event.message for event in received if hasattr(event, "message")]
    assert Probe(3) in messages and IHave((b"0123456789",)) in messages


async def test_what_cannot_be_sent_is_counted(town: Neighbourhood) -> None:
    one, two = await town.members(2)
    part = part_of(one)
    part.send(b"x" * 32, Probe(1), True)
    assert one.mesh.counters["messages_undeliverable"] >= 1
    part.send(two.id, IHave((b"0123456789",) * 200), False)
    part.send(two.id, IHave((b"0123456789",) * 4097), True)
    assert (await one.ask(two))[0] == 200


async def test_dials_are_bounded_and_shared(town: Neighbourhood) -> None:
    founder = await town.founder()
    part = part_of(founder)
    peers = [bytes((number,)) * 32 for number in range(1, 40)]
    running = most = 0
    seen: list[bytes] = []

    async def reach(peer: bytes, addresses: object) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        seen.append(peer)
        await asyncio.sleep(0.001)
        running -= 1
        raise ConnectionError

    part._reach = reach
    for peer in [*peers, *peers]:
        part.dial(peer, (Address("127.0.0.1", 9),))
    await founder.until(lambda: not part._dials)
    assert (sorted(seen), most) == (peers, 8)


async def test_a_peer_that_the_machine_refuses_is_closed(town: Neighbourhood) -> None:
    victim = await town.founder()
    async with Rogue(town.resident()) as rogue:
        await rogue.enter(victim)
        driver = part_of(victim)._driver
        driver._effects.append(CloseEffect(rogue.resident.id, Close.FLOOD))
        driver._execute()
        assert await rogue.was_closed() == Close.FLOOD
    assert victim.mesh.counters["bans"] == 1
    driver._effects.extend([CloseEffect(b"x" * 32, Close.FLOOD), Dial(victim.id, ())])
    driver._execute()


async def test_an_incarnation_is_written(town: Neighbourhood) -> None:
    founder = await town.founder()
    driver = part_of(founder)._driver
    driver._effects.append(SaveIncarnation(1000))
    driver._execute()
    await driver.settled()
    assert founder.vault.next_incarnation() == 1001


async def test_clients_are_shown_the_mesh_and_forgotten_when_they_go(town: Neighbourhood) -> None:
    one, two = await town.members(2)
    two.mesh.publish(Dynamic(models=(offer("a"),)))
    await one.until(lambda: one.models_of(two) == ["a"])
    part = part_of(one)
    async with Rogue(town.resident(Role.CLIENT)) as rogue:
        await rogue.enter(one, Role.CLIENT)
        rogue.session.stream.write(frame_of(Subscribe(1)))
        view = await rogue.session.stream.read(1 << 16)
        for statement in (part._machine.statement(one.id, 0), part._machine.statement(two.id, 2)):
            assert statement is not None and statement.signed in view
        assert len(part._subscribers) == 1
    await one.until(lambda: len(part._subscribers) == 0)


async def test_an_answer_that_nobody_asked_for_is_passed_over(town: Neighbourhood) -> None:
    victim = await town.founder()
    async with Rogue(town.resident()) as rogue:
        await rogue.enter(victim)
        rogue.session.stream.write(frame_of(View(())) + frame_of(Measured(victim.id, 5)) + frame_of(Renewed(b"x")))
        await rogue.link.echo()
        await victim.until(lambda: victim.mesh.counters.get("messages_unasked"))
        assert rogue.link.alive


async def test_what_means_nothing_from_a_member_is_an_offence(town: Neighbourhood) -> None:
    victim = await town.founder()
    async with Rogue(town.resident()) as rogue:
        await rogue.enter(victim)
        rogue.session.stream.write(frame_of(Subscribe(1)))
        assert await rogue.was_closed() == Close.PROTOCOL_ERROR
