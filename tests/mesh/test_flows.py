"""Ends of flows in a real node, with relays that lie and relays that are made up by the test."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from meshnode.errors import PeerUnreachable
from meshnode.mesh import flows as flows_module
from meshnode.mesh.flows import MOST_OF_A_RELAY, Flows, RelayFailed
from meshnode.mesh.message_stream import MessageStream
from meshnode.net.link import Link
from meshnode.wire.frames import HEADER_BYTES
from meshnode.wire.registry import Close, RelayCode, Reset, Role, StreamType
from meshnode.wire.traversal import (
    RELAY_MESSAGES,
    RelayConnect,
    RelayEnd,
    RelayFlow,
    RelayRefused,
    RelayReserved,
)
from tests.mesh.neighbourhood import Neighbourhood, Resident
from tests.mesh.rogue import Rogue

pytestmark = pytest.mark.anyio
SOMEBODY, ANOTHER = b"s" * 32, b"a" * 32
FLOW = b"12345678"
PATIENCE_S = 5.0


def flows_of(resident: Resident) -> Flows:
    return resident.mesh._traversal._flows


def link_to(resident: Resident, rogue: Rogue) -> Link:
    peer = resident.mesh._sessions.get(rogue.resident.id)
    assert peer is not None
    return peer.link


async def entered(rogue: Rogue, node: Resident, role: Role = Role.MEMBER) -> Rogue:
    await rogue.enter(node, role)
    await node.until(lambda: node.mesh._sessions.get(rogue.resident.id))
    return rogue


async def answers(rogue: Rogue, *said: Any) -> MessageStream:
    """Take the next request for a flow, and say something to it."""
    while not rogue.opened:
        await asyncio.sleep(0.005)
    stream = rogue.opened.pop()
    assert (await stream.read_exactly(HEADER_BYTES))[0] == StreamType.RELAY
    messages = MessageStream(stream, RELAY_MESSAGES)
    assert await messages.receive(PATIENCE_S) == RelayConnect(SOMEBODY)
    for message in said:
        messages.send(message)
    return messages


async def asks(node: Resident, rogue: Rogue, *said: Any) -> Any:
    """What comes of asking a relay that says this; a failure, or a flow and the relay's stream."""
    asking = asyncio.ensure_future(flows_of(node).through(link_to(node, rogue), SOMEBODY))
    messages = await answers(rogue, *said)
    try:
        return await asking, messages
    except RelayFailed as failure:
        return failure


@pytest.mark.parametrize(
    ("said", "why", "lied"),
    [
        (RelayFlow(ANOTHER, FLOW), "somebody else", True),
        (RelayReserved(), "another answer", True),
        (RelayEnd(RelayCode.DONE), "another answer", True),
        (RelayRefused(RelayCode.QUOTA, "go away"), "used up", False),
        (RelayRefused(99, "?"), "unknown reason", False),
    ],
)
async def test_what_a_relay_answers_is_checked(town: Neighbourhood, said: Any, why: str, lied: bool) -> None:
    node = await town.founder()
    async with Rogue(town.resident()) as rogue:
        await entered(rogue, node)
        failure = await asks(node, rogue, said)
        assert isinstance(failure, RelayFailed) and why in str(failure) and failure.lied is lied
        assert node.mesh.counters["flows_failed"] == 1
        assert len(node.mesh._endpoint._detours) == 0


async def test_a_relay_that_gives_one_flow_twice(town: Neighbourhood) -> None:
    node = await town.founder()
    async with Rogue(town.resident()) as rogue:
        await entered(rogue, node)
        flow, _ = await asks(node, rogue, RelayFlow(SOMEBODY, FLOW))
        assert flows_of(node).at(flow.address) is flow and flows_of(node).over_relay(link_to(node, rogue)) == [flow]
        failure = await asks(node, rogue, RelayFlow(SOMEBODY, FLOW))
        assert isinstance(failure, RelayFailed) and failure.lied
        assert flows_of(node).at(flow.address) is flow


async def test_a_relay_that_says_nothing_or_breaks_off(town: Neighbourhood, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows_module, "ANSWER_S", 0.1)
    node = await town.founder()
    async with Rogue(town.resident()) as rogue:
        await entered(rogue, node)
        failure = await asks(node, rogue)
        assert isinstance(failure, RelayFailed) and not failure.lied
        asking = asyncio.ensure_future(flows_of(node).through(link_to(node, rogue), SOMEBODY))
        (await answers(rogue)).stream.reset(Reset.REFUSED)
        with pytest.raises(RelayFailed):
            await asking
        asking = asyncio.ensure_future(flows_of(node).through(link_to(node, rogue), SOMEBODY))
        (await answers(rogue)).finish()
        with pytest.raises(RelayFailed) as caught:
            await asking
        assert not caught.value.lied


@pytest.mark.parametrize("how", ["end", "reset", "link", "ours"])
async def test_a_flow_ends_with_its_stream(town: Neighbourhood, how: str) -> None:
    node = await town.founder()
    async with Rogue(town.resident()) as rogue:
        await entered(rogue, node)
        flows = flows_of(node)
        told: list[object] = []
        flows._ended = told.append
        flow, messages = await asks(node, rogue, RelayFlow(SOMEBODY, FLOW))
        assert node.mesh._endpoint._detours.flow(FLOW) is not None
        match how:
            case "end":
                messages.send(RelayEnd(RelayCode.LEAVING))
            case "reset":
                messages.stream.reset(Reset.CANCELLED)
            case "link":
                rogue.link.close(Close.DONE)
            case "ours":
                flows.close(flow)
                flows.close(flow)
                assert await messages.receive(PATIENCE_S) == RelayEnd(RelayCode.DONE)
        await node.until(lambda: flows.at(flow.address) is None)
        await flows.end()
        assert node.mesh._endpoint._detours.flow(FLOW) is None
        assert told == ([] if how == "ours" else [flow])


async def test_a_relay_that_ends_a_flow_at_once_is_asked_last(town: Neighbourhood) -> None:
    node = await town.founder()
    async with Rogue(town.resident()) as rogue:
        await entered(rogue, node)
        reaching = asyncio.ensure_future(node.mesh._traversal.reach(SOMEBODY))
        messages = await answers(rogue, RelayFlow(SOMEBODY, FLOW))
        messages.finish(RelayEnd(RelayCode.DONE))
        await node.until(lambda: rogue.resident.id in node.mesh._traversal._to_avoid())
        reaching.cancel()
        assert flows_of(node)._by_address == {}


async def test_a_lying_relay_is_asked_last_and_leads_nowhere(town: Neighbourhood) -> None:
    """It grants a flow and binds it to itself: the keys of whoever answers there are not those that were meant."""
    node = await town.founder()
    async with Rogue(town.resident()) as rogue:
        await entered(rogue, node)
        reaching = asyncio.ensure_future(node.mesh._traversal.reach(SOMEBODY))
        await answers(rogue, RelayFlow(SOMEBODY, FLOW))
        rogue.endpoint.open_flow(FLOW, rogue.link)
        with pytest.raises(PeerUnreachable, match="somebody else"):
            await reaching
        assert node.mesh.counters["relays_lied"] == 1
        assert rogue.resident.id in node.mesh._traversal._to_avoid()
        assert flows_of(node)._by_address == {}


# --- flows that a relay offers ----------------------------------------------------------------------------------------


def offer(rogue: Rogue, node: bytes, flow: bytes = FLOW) -> MessageStream:
    messages = MessageStream(rogue.open(StreamType.RELAY), RELAY_MESSAGES)
    messages.send(RelayFlow(node, flow))
    return messages


async def test_an_offered_flow_is_agreed_to_and_ends_with_its_stream(town: Neighbourhood) -> None:
    node = await town.founder()
    async with Rogue(town.resident()) as rogue:
        await entered(rogue, node)
        messages = offer(rogue, SOMEBODY)
        assert await messages.receive(PATIENCE_S) == RelayFlow(SOMEBODY, FLOW)
        assert len(flows_of(node)._by_address) == 1
        messages.finish(RelayEnd(RelayCode.DONE))
        await node.until(lambda: not flows_of(node)._by_address)
        assert await messages.receive(PATIENCE_S) == RelayEnd(RelayCode.DONE)


async def test_offers_that_are_declined(town: Neighbourhood) -> None:
    node = await town.founder()
    async with Rogue(town.resident()) as rogue, Rogue(town.resident(Role.CLIENT)) as client:
        await entered(rogue, node)
        await entered(client, node, Role.CLIENT)
        node.mesh._sessions._bans[ANOTHER] = 1e12
        declined = RelayRefused
        for nobody in (node.id, rogue.resident.id, ANOTHER):
            assert isinstance(await offer(rogue, nobody).receive(PATIENCE_S), declined)
        assert isinstance(await offer(client, SOMEBODY).receive(PATIENCE_S), declined), "only members relay"
        assert isinstance(await offer(rogue, SOMEBODY).receive(PATIENCE_S), RelayFlow)
        assert isinstance(await offer(rogue, SOMEBODY).receive(PATIENCE_S), declined), "the id is in use"
        assert node.mesh.counters["flows_declined"] == 5


async def test_a_relay_that_offers_flows_without_end(town: Neighbourhood) -> None:
    node = await town.founder()
    async with Rogue(town.resident()) as rogue:
        await entered(rogue, node)
        offers = [offer(rogue, SOMEBODY, number.to_bytes(8, "big")) for number in range(MOST_OF_A_RELAY + 8)]
        said = [await messages.receive(PATIENCE_S) for messages in offers]
        assert [isinstance(answer, RelayFlow) for answer in said] == [True] * MOST_OF_A_RELAY + [False] * 8
        rogue.link.close(Close.DONE)
        await node.until(lambda: not flows_of(node)._by_address)
