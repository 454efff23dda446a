"""Two nodes that are linked through a third one, on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from meshnode.net.address import Address
from meshnode.net.link import Link
from tests.net.nodes import Node, node, until

FLOW = b"the flow"
PLENTY_BYTES_S = 1e9
PLENTY_BYTES = 1 << 30


@dataclass(slots=True)
class Relayed:
    """The nodes 0 and 1, the relay (node 2), both links to it, the way of 0 to 1, and both ends of the link over it."""

    one: Node
    other: Node
    relay: Node
    one_to_relay: Link
    other_to_relay: Link
    way: Address
    way_back: Address
    here: Link
    there: Link


@asynccontextmanager
async def legs(**options: Any) -> AsyncIterator[tuple[Node, Node, Node, Link, Link]]:
    """The three nodes, and the links of the first two to the third."""
    async with node(0, **options) as one, node(1, **options) as other, node(2, **options) as relay:
        links = await asyncio.gather(one.dial(relay), other.dial(relay))
        await until(lambda: len(relay.recorder.up) == 2)
        yield one, other, relay, links[0], links[1]


def carry(
    relay: Node, one: Node, other: Node, *, bytes_per_s: float = PLENTY_BYTES_S, burst: int = PLENTY_BYTES
) -> None:
    """Have the relay carry FLOW between two nodes that are linked to it."""
    ends = [relay.endpoint.link(each.node_id) for each in (one, other)]
    assert ends[0] is not None and ends[1] is not None
    relay.endpoint.forwarder.open(FLOW, ends[0], ends[1], bytes_per_s=bytes_per_s, burst_bytes=burst)


@asynccontextmanager
async def relayed(
    *, bytes_per_s: float = PLENTY_BYTES_S, burst: int = PLENTY_BYTES, **options: Any
) -> AsyncIterator[Relayed]:
    """All of it, up."""
    async with legs(**options) as (one, other, relay, one_to_relay, other_to_relay):
        carry(relay, one, other, bytes_per_s=bytes_per_s, burst=burst)
        way_back = other.endpoint.open_flow(FLOW, other_to_relay)
        way = one.endpoint.open_flow(FLOW, one_to_relay)
        here = await one.endpoint.dial([way], expected=other.node_id)
        await until(lambda: other.endpoint.link(one.node_id) is not None)
        there = other.endpoint.link(one.node_id)
        assert there is not None
        yield Relayed(one, other, relay, one_to_relay, other_to_relay, way, way_back, here, there)
