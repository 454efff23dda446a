from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from meshnode.mesh import reservations as module
from meshnode.mesh.message_stream import MessageStream
from meshnode.mesh.reservations import Reservations
from meshnode.net.link import Link
from meshnode.net.stream import MeshStream
from meshnode.wire.address import Address
from meshnode.wire.frames import HEADER_BYTES
from meshnode.wire.registry import Close, RelayCode, Reset, StreamType
from meshnode.wire.traversal import RELAY_MESSAGES, RelayEnd, RelayRefused, RelayReserve, RelayReserved
from tests.net.nodes import Node, node, until

pytestmark = pytest.mark.anyio
SEEN = Address("11.7.1.1", 5)
PATIENCE_S = 5.0


class Asking:
    """Reservations of a bare node, and what it is told."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self.observed: list[tuple[Address, Link]] = []
        self.refused: list[bytes] = []
        self.ended = 0
        self.places = Reservations(
            observed=lambda address, link: self.observed.append((address, link)),
            refused=self.refused.append,
            ended=self.end,
            counters=self.counters,
        )

    def end(self) -> None:
        self.ended += 1


@asynccontextmanager
async def relays(count: int) -> AsyncIterator[tuple[Asking, list[Link], list[Node]]]:
    """Somebody who asks, links to so many relays, and the relays, which do what the test does for them."""
    async with node(0) as here, node(1) as one, node(2) as two, node(3) as three:
        found = [one, two, three][:count]
        asking = Asking()
        yield asking, [await here.dial(relay) for relay in found], found
        await asking.places.close()


async def asked(relay: Node) -> MessageStream:
    stream: MeshStream = await relay.stream()
    assert (await stream.read_exactly(HEADER_BYTES))[0] == StreamType.RELAY
    messages = MessageStream(stream, RELAY_MESSAGES)
    assert await messages.receive(PATIENCE_S) == RelayReserve()
    return messages


async def test_a_place_is_asked_for_kept_and_given_back() -> None:
    async with relays(1) as (asking, [link], [relay]):
        asking.places.want([link])
        asking.places.want([link])
        messages = await asked(relay)
        assert (asking.places.held, asking.places.granted) == ({link.peer}, ())
        messages.send(RelayReserved(SEEN, 16, 1))
        await until(lambda: asking.places.granted == (link.peer,))
        assert asking.observed == [(SEEN, link)]
        asking.places.want([])
        with pytest.raises(OSError, match="reset"):
            await messages.receive(PATIENCE_S)
        await until(lambda: asking.places.held == frozenset())
        assert asking.places.granted == () and asking.ended == 1 and asking.refused == []


@pytest.mark.parametrize("how", ["leaving", "reset", "link"])
async def test_a_place_that_is_lost_is_told(how: str) -> None:
    async with relays(1) as (asking, [link], [relay]):
        asking.places.want([link])
        messages = await asked(relay)
        messages.send(RelayReserved())
        await until(lambda: asking.places.granted)
        if how == "leaving":
            messages.finish(RelayEnd(RelayCode.LEAVING))
        elif how == "reset":
            messages.stream.reset(Reset.CANCELLED)
        else:
            messages.stream.link.close(Close.DONE)  # type: ignore[attr-defined]
        await until(lambda: asking.ended == 1)
        assert asking.places.held == frozenset() and asking.places.granted == () and asking.observed == []


@pytest.mark.parametrize("how", ["refused", "nonsense", "nothing"])
async def test_a_relay_that_has_no_place_is_named(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_S", 0.1)
    async with relays(1) as (asking, [link], [relay]):
        asking.places.want([link])
        messages = await asked(relay)
        if how == "refused":
            messages.send(RelayRefused(RelayCode.TOO_MANY, "no"))
        elif how == "nonsense":
            messages.stream.write(b"\xff" * 8)
        await until(lambda: asking.ended == 1)
        assert asking.refused == [link.peer] and asking.places.granted == ()


async def test_others_are_asked_when_others_are_wanted() -> None:
    async with relays(3) as (asking, links, nodes):
        asking.places.want(links[:2])
        for relay in nodes[:2]:
            (await asked(relay)).send(RelayReserved())
        await until(lambda: len(asking.places.granted) == 2)
        asking.places.want(links[1:])
        (await asked(nodes[2])).send(RelayReserved())
        await until(lambda: asking.places.granted == tuple(sorted(link.peer for link in links[1:])))
        assert asking.counters == {"reservations_made": 3}
