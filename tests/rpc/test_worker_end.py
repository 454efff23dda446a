import asyncio

import pytest

from meshnode.wire.registry import Reset
from meshnode.wire.tunnel_blocks import Block, BlockReader, Option, PushFlag, block, options_block, push_head
from tests.net.nodes import until
from tests.rpc.tunnels import PUSH, TUNNEL, plan
from tests.wire.rpc_frames import get_tensor, push, receive, set_tensor

pytestmark = pytest.mark.anyio


async def test_a_second_tunnel_waits_for_the_end_of_the_first() -> None:
    async with plan() as made:
        stream = await made.open_stream(0, 1, TUNNEL)
        stream.write(options_block(Option(0)) + block(Block.BYTES, get_tensor(2)))
        client = await made.client()
        assert await client.ask(get_tensor(4)) == bytes(4)
        assert made.servers[0].connections == 1
        await made.ends[0].close()
        reader, found = BlockReader(), []
        async with asyncio.timeout(5):
            while not found:
                found += reader.feed(await stream.read(100))
        assert made.servers[0].connections == 2


async def test_a_push_of_one_that_is_not_of_the_plan_is_refused() -> None:
    """The host itself is none of the workers."""
    async with plan(2) as made:
        stream = await made.open_stream(0, 1, PUSH)
        stream.write(push_head(1, PushFlag(0), 1) + b"x")
        assert (await asyncio.wait_for(stream.broken(), 5)).code == Reset.REFUSED  # type: ignore[attr-defined]
        assert made.lost == []


async def test_a_worker_that_pushes_nonsense_ends_the_tunnel_and_is_named() -> None:
    async with plan(2) as made:
        client = await made.client(1)
        client.send(receive(1, 4))
        stream = await made.open_stream(1, 2, PUSH)
        stream.write(push_head(2, PushFlag(0), 1) + b"x" + push_head(1, PushFlag(0), 1))
        assert await client.ended()
        assert made.lost == ["the worker of stage 1 broke the rules: push 1 after 2"]
        assert (await asyncio.wait_for(stream.broken(), 5)).code == Reset.MALFORMED  # type: ignore[attr-defined]


async def test_the_loss_of_a_push_stream_ends_the_tunnels_of_both() -> None:
    async with plan(2) as made:
        first, second = await made.client(0), await made.client(1)
        first.send(set_tensor(b"ab"), push(1, 101, 2))
        second.send(receive(1, 2))
        assert await second.ask(get_tensor(2)) == b"ab"
        link = await made.nodes[1].dial(made.nodes[2])
        link.close(0x100)
        second.send(receive(2, 2))
        assert made.lost == [], "whom it has lost the host learns from the lost one, if it can"
        assert await second.ended()
        assert any("stage 1 is lost" in words for words in made.lost)


async def test_a_worker_that_leaves_says_so_and_serves_no_more() -> None:
    async with plan() as made:
        client = await made.client()
        await made.workers[0].close()
        assert await client.ended()
        assert made.lost == ["the worker takes no part any more"]
        await until(lambda: not made.servers[0].writers)
        for header in (TUNNEL, PUSH):
            stream = await made.open_stream(0, 1, header)
            assert (await asyncio.wait_for(stream.broken(), 5)).code == Reset.REFUSED  # type: ignore[attr-defined]
        assert made.failed == []


async def test_workers_do_not_wait_for_the_pushes_of_one_that_has_ended() -> None:
    """llama-server waits for a reply of the last stage, and would not look at the connection to the first."""
    async with plan(2) as made:
        first, second = await made.client(0), await made.client(1)
        first.send(push(1, 101, 2))
        second.send(receive(1, 2))
        assert await second.ask(get_tensor(2)) == bytes(2)
        second.send(receive(2, 2), get_tensor(2))
        for writer in list(made.servers[0].writers):
            writer.transport.abort()
        assert await second.ended()
        assert len(made.lost) == 2 and len(made.failed) == 1
