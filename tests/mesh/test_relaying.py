"""The relay's side, in a real node, between peers that keep to the rules and peers that do not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from meshnode.mesh.message_stream import MessageStream
from meshnode.mesh.options import MeshLimits
from meshnode.mesh.relaying import Relaying, RelayLimits
from meshnode.net.stream import MeshStream, StreamReset
from meshnode.wire.frames import HEADER_BYTES, encode_stream_header
from meshnode.wire.registry import RELAY_TEXTS, Close, RelayCode, Reset, Role, StreamType
from meshnode.wire.traversal import (
    RELAY_MESSAGES,
    PunchDone,
    RelayConnect,
    RelayEnd,
    RelayFlow,
    RelayRefused,
    RelayReserve,
    RelayReserved,
)
from tests.mesh.neighbourhood import Neighbourhood, Resident
from tests.mesh.rogue import Rogue

pytestmark = pytest.mark.anyio
PATIENCE_S = 5.0


async def relay_in(town: Neighbourhood, limits: RelayLimits | None = None) -> Resident:
    """A founder that relays."""
    relay = town.resident(limits=MeshLimits(relay=limits or RelayLimits()))
    relay.relay = True
    relay.vault.found("home")
    return await relay.start()


@asynccontextmanager
async def rogues(town: Neighbourhood, relay: Resident, count: int) -> AsyncIterator[list[Rogue]]:
    """Peers that are admitted, with bare streams."""
    found = []
    for _ in range(count):
        found.append(await (await Rogue(town.resident()).__aenter__()).enter(relay))
    for rogue in found:
        await relay.until(lambda rogue=rogue: relay.mesh._sessions.get(rogue.resident.id))
    try:
        yield found
    finally:
        for rogue in found:
            await rogue.__aexit__(None, None, None)


def ask(rogue: Rogue, message: Any) -> MessageStream:
    messages = MessageStream(rogue.open(StreamType.RELAY), RELAY_MESSAGES)
    messages.send(message)
    return messages


async def asked(rogue: Rogue, relay: Resident) -> tuple[MessageStream, RelayFlow]:
    """The stream that the relay opens at the peer that is wanted, and what it says."""
    await relay.until(lambda: rogue.opened)
    stream: MeshStream = rogue.opened.pop()
    assert (await stream.read_exactly(HEADER_BYTES))[0] == StreamType.RELAY
    messages = MessageStream(stream, RELAY_MESSAGES)
    flow = await messages.receive(PATIENCE_S)
    assert isinstance(flow, RelayFlow)
    return messages, flow


async def connected(one: Rogue, other: Rogue, relay: Resident) -> tuple[MessageStream, MessageStream, bytes]:
    """Both streams of a flow that both agree to."""
    here = ask(one, RelayConnect(other.resident.id))
    there, flow = await asked(other, relay)
    there.send(flow)
    granted = await here.receive(PATIENCE_S)
    assert isinstance(granted, RelayFlow) and granted.flow == flow.flow
    return here, there, flow.flow


def relaying(relay: Resident) -> Relaying:
    return relay.mesh._traversal._relaying


async def test_two_peers_are_connected_and_datagrams_pass_unread(town: Neighbourhood) -> None:
    relay = await relay_in(town)
    async with rogues(town, relay, 2) as (one, other):
        here = ask(one, RelayConnect(other.resident.id))
        there, offer = await asked(other, relay)
        assert (offer.node, offer.observed) == (one.resident.id, one.endpoint.address)
        there.send(offer)
        granted = await here.receive(PATIENCE_S)
        assert granted == RelayFlow(other.resident.id, offer.flow, other.endpoint.address)
        far = other.endpoint.open_flow(offer.flow, other.link)
        near = one.endpoint.open_flow(granted.flow, one.link)
        link = await one.endpoint.dial([near], expected=other.resident.id)
        assert (link.path, link.address) == ("relayed", near) and far != near
        assert relay.mesh._endpoint.forwarder.counters.datagrams > 0
        assert [peer.node for peer in relay.mesh._sessions.peers] == [one.resident.id, other.resident.id]


async def test_either_end_ends_a_flow_and_the_other_hears_why(town: Neighbourhood) -> None:
    relay = await relay_in(town)
    async with rogues(town, relay, 2) as (one, other):
        here, there, flow = await connected(one, other, relay)
        assert relay.mesh._endpoint.forwarder.get(flow) is not None
        here.send(RelayEnd(RelayCode.DONE))
        assert await there.receive(PATIENCE_S) == RelayEnd(RelayCode.DONE)
        await relay.until(lambda: relaying(relay).flows == 0)
        assert relay.mesh._endpoint.forwarder.get(flow) is None
        here, there, _ = await connected(one, other, relay)
        there.stream.reset(Reset.CANCELLED)
        assert await here.receive(PATIENCE_S) == RelayEnd(RelayCode.DONE)
        here, there, _ = await connected(one, other, relay)
        there.send(RelayEnd(77))
        assert await here.receive(PATIENCE_S) == RelayEnd(RelayCode.DONE), "an unknown code says nothing"
        here, there, flow = await connected(one, other, relay)
        relay.mesh._endpoint.forwarder.on_ended(flow)
        assert await there.receive(PATIENCE_S) == await here.receive(PATIENCE_S) == RelayEnd(RelayCode.IDLE)
        here, there, _ = await connected(one, other, relay)
        relaying(relay).leave()
        assert await there.receive(PATIENCE_S) == await here.receive(PATIENCE_S) == RelayEnd(RelayCode.LEAVING)
        await relay.until(lambda: relaying(relay).flows == 0)
        assert not relaying(relay)._flows_of and not relaying(relay)._streams


async def test_the_end_of_a_link_is_the_end_of_its_flows(town: Neighbourhood) -> None:
    relay = await relay_in(town)
    async with rogues(town, relay, 2) as (one, other):
        here, _, _ = await connected(one, other, relay)
        other.link.close(Close.DONE)
        assert await here.receive(PATIENCE_S) == RelayEnd(RelayCode.DONE)
        await relay.until(lambda: relaying(relay).flows == 0)


async def refusal(messages: MessageStream) -> RelayCode:
    answer = await messages.receive(PATIENCE_S)
    assert isinstance(answer, RelayRefused) and answer.text == RELAY_TEXTS[answer.code]
    return RelayCode(answer.code)


async def test_every_refusal_is_told_in_words(town: Neighbourhood) -> None:
    limits = RelayLimits(flows=2, flows_of_a_peer=1, asks_burst=7, asks_per_s=0.0, answer_s=0.2)
    relay = await relay_in(town, limits)
    async with rogues(town, relay, 3) as (one, other, third):
        assert await refusal(ask(one, RelayConnect(b"x" * 32))) == RelayCode.NOT_CONNECTED
        assert await refusal(ask(one, RelayConnect(one.resident.id))) == RelayCode.NOT_CONNECTED
        # The peer says no, says something else, or nothing.
        wanted = ask(one, RelayConnect(other.resident.id))
        there, _ = await asked(other, relay)
        there.send(RelayRefused(RelayCode.REFUSED))
        assert await refusal(wanted) == RelayCode.REFUSED
        wanted = ask(one, RelayConnect(other.resident.id))
        there, offer = await asked(other, relay)
        there.send(RelayFlow(offer.node, b"another!"))
        assert await refusal(wanted) == RelayCode.REFUSED
        assert await refusal(ask(one, RelayConnect(other.resident.id))) == RelayCode.REFUSED
        other.opened.clear()
        await connected(one, other, relay)
        assert await refusal(ask(third, RelayConnect(other.resident.id))) == RelayCode.TOO_MANY
        assert await refusal(ask(one, RelayConnect(third.resident.id))) == RelayCode.TOO_MANY
        assert await refusal(ask(one, RelayConnect(third.resident.id))) == RelayCode.QUOTA
        relaying(relay).on = False
        assert await refusal(ask(third, RelayConnect(one.resident.id))) == RelayCode.NOT_RELAYING
        assert await refusal(ask(third, RelayReserve())) == RelayCode.NOT_RELAYING
        assert relay.mesh.counters["relay_refused"] == 10


async def test_no_flow_for_whoever_is_not_admitted(town: Neighbourhood) -> None:
    """Neither end may be of another mesh: a link alone opens no relay stream, and is nobody that could be wanted."""
    relay = await relay_in(town)
    async with rogues(town, relay, 1) as (one,), Rogue(town.resident()) as stranger:
        await stranger.dial(relay)
        stream = stranger.open(StreamType.RELAY)
        MessageStream(stream, RELAY_MESSAGES).send(RelayConnect(one.resident.id))
        assert await refusal(ask(one, RelayConnect(stranger.resident.id))) == RelayCode.NOT_CONNECTED
        assert stranger.opened == [] and one.opened == []
        stranger.link.close(Close.DONE)
        await relay.until(lambda: relay.mesh.counters.get("streams_not_allowed") == 1)


async def test_a_node_that_does_not_relay(town: Neighbourhood) -> None:
    plain = await town.founder()
    async with rogues(town, plain, 2) as (one, other):
        assert await refusal(ask(one, RelayConnect(other.resident.id))) == RelayCode.NOT_RELAYING
        assert other.opened == []


async def test_places(town: Neighbourhood) -> None:
    relay = await relay_in(town, RelayLimits(reservations=1))
    async with rogues(town, relay, 2) as (one, other):
        first = ask(one, RelayReserve())
        answer = await first.receive(PATIENCE_S)
        assert answer == RelayReserved(one.endpoint.address, RelayLimits().flows_of_a_peer, RelayLimits().bytes_per_s)
        assert await refusal(ask(one, RelayReserve())) == RelayCode.TOO_MANY
        assert await refusal(ask(other, RelayReserve())) == RelayCode.TOO_MANY
        first.finish()
        assert await first.receive(PATIENCE_S) == RelayEnd(RelayCode.DONE)
        second = ask(other, RelayReserve())
        assert isinstance(await second.receive(PATIENCE_S), RelayReserved)
        relaying(relay).leave()
        assert await second.receive(PATIENCE_S) == RelayEnd(RelayCode.LEAVING)


async def test_a_peer_that_holds_many_streams(town: Neighbourhood) -> None:
    relay = await relay_in(town, RelayLimits(streams_of_a_peer=2))
    async with rogues(town, relay, 3) as (one, *others):
        for other in others:
            await connected(one, other, relay)
        with pytest.raises(StreamReset) as caught:
            await ask(one, RelayConnect(others[0].resident.id)).receive(PATIENCE_S)
        assert caught.value.code == Reset.OVERLOAD
        assert relay.mesh.counters["relay_overload"] == 1


async def test_nobody_takes_all_places_of_another(town: Neighbourhood) -> None:
    relay = await relay_in(town)
    async with rogues(town, relay, 3) as (one, other, third):
        await connected(one, other, relay)
        await connected(other, one, relay)
        assert await refusal(ask(one, RelayConnect(other.resident.id))) == RelayCode.TOO_MANY
        assert await refusal(ask(other, RelayConnect(one.resident.id))) == RelayCode.TOO_MANY
        await connected(third, other, relay)


async def test_a_peer_that_asks_without_end_is_kept_out(town: Neighbourhood) -> None:
    relay = await relay_in(town, RelayLimits(refusals_burst=20))
    async with rogues(town, relay, 2) as (one, other):
        for _ in range(60):
            if one.closed.done():
                break
            try:
                ask(one, RelayConnect(b"x" * 32))
            except OSError:
                break
            await asyncio.sleep(0)
        assert await one.was_closed() == Close.FLOOD
        assert relay.mesh._sessions.is_banned(one.resident.id)
        assert await refusal(ask(other, RelayConnect(one.resident.id))) == RelayCode.NOT_CONNECTED


@pytest.mark.parametrize(
    "data",
    [b"\xff" * 8, encode_stream_header(0, b""), MessageStream, PunchDone()],
    ids=["size", "bytes", "end", "punch"],
)
async def test_what_is_no_way_to_begin(town: Neighbourhood, data: Any) -> None:
    relay = await relay_in(town)
    async with rogues(town, relay, 1) as (one,):
        stream = one.open(StreamType.RELAY, data if isinstance(data, bytes) else b"")
        if isinstance(data, PunchDone):
            MessageStream(stream, RELAY_MESSAGES).send(data)
        elif data is MessageStream:
            MessageStream(stream, RELAY_MESSAGES).send(RelayEnd(RelayCode.DONE))
        with pytest.raises(StreamReset) as caught:
            await stream.read(100)
        assert caught.value.code == Reset.MALFORMED
        assert relay.mesh.counters["relay_malformed"] == 1


async def test_a_client_may_ask_and_be_refused_nothing(town: Neighbourhood) -> None:
    relay = await relay_in(town)
    async with rogues(town, relay, 1) as (host,), Rogue(town.resident(Role.CLIENT)) as client:
        await client.enter(relay, Role.CLIENT)
        await relay.until(lambda: relay.mesh._sessions.get(client.resident.id))
        await connected(client, host, relay)
