import asyncio

import pytest

from meshnode.net.stream import MeshStream
from meshnode.wire.registry import Reset
from meshnode.wire.tunnel_blocks import Block, BlockReader, Option, block, generation_block, options_block, read_failed
from tests.net.nodes import read_all, until
from tests.rpc.tunnels import TUNNEL, Plan, plan
from tests.wire.rpc_frames import allocate, compute, get_tensor, reply, set_tensor

pytestmark = pytest.mark.anyio


async def opened(made: Plan, *sent: bytes) -> MeshStream:
    """A tunnel without a host's end, in the place of that of the plan."""
    await made.ends[0].close()
    stream = await made.open_stream(0, 1, TUNNEL)
    stream.write(b"".join(sent))
    return stream


async def blocks(stream: MeshStream, until_kind: Block) -> list[tuple[int, bytes]]:
    reader, found = BlockReader(), []
    async with asyncio.timeout(5):
        while until_kind not in [kind for kind, _ in found]:
            found += reader.feed(await stream.read(1 << 16))
    return found


@pytest.mark.parametrize(
    "sent",
    [
        block(Block.BYTES, compute()),
        block(Block.OPTIONS, b"\2\0"),
        options_block(Option(0)) + options_block(Option(0)),
        options_block(Option(0)) + block(Block.ALIVE),
        options_block(Option(0)) + block(Block.PACKED, bytes(3) + b"\5" + b"\xff\xff"),
        b"\xff" * 5,
    ],
    ids=["no options", "another version", "options twice", "block of a worker", "bad DEFLATE", "unknown block"],
)
async def test_blocks_that_break_the_rules_are_malformed(sent: bytes) -> None:
    async with plan() as made:
        stream = await opened(made, sent)
        with pytest.raises(ConnectionResetError) as caught:
            await asyncio.wait_for(read_all(stream), 5)
        assert caught.value.code == Reset.MALFORMED  # type: ignore[attr-defined]
        assert made.failed == []


async def test_a_restart_frees_everything_and_is_told() -> None:
    async with plan() as made:
        stream = await opened(made, options_block(Option(0)) + block(Block.BYTES, allocate(64)))
        await blocks(stream, Block.BYTES)
        assert list(made.servers[0].buffers.values()) == [64]
        stream.write(generation_block(Block.RESTART, 7) + block(Block.BYTES, get_tensor(2)))
        found = await blocks(stream, Block.BYTES)
        assert [each for each in found if each[0] != Block.ALIVE] == [
            (Block.RESTARTED, b"\0\0\0\7"),
            (Block.BYTES, reply(bytes(2))),
        ]
        assert made.servers[0].buffers == {}


async def test_the_end_of_the_host_is_the_end_of_the_connection() -> None:
    async with plan() as made:
        stream = await opened(made, options_block(Option(0)))
        await until(lambda: len(made.servers[0].writers) == 1)
        stream.write_eof()
        await until(lambda: not made.servers[0].writers)
        assert made.failed == []


async def test_while_there_is_work_the_worker_says_so() -> None:
    async with plan() as made:
        made.servers[0].may_work.clear()
        client = await made.client()
        client.send(set_tensor(b"ab"), get_tensor(2))
        before = made.ends[0].counters.bytes_down
        await until(lambda: made.ends[0].counters.bytes_down >= before + 2 * len(block(Block.ALIVE)))
        made.servers[0].may_work.set()
        assert await client.reply() == b"ab"
        assert made.lost == []


async def test_a_server_that_does_not_work_is_called_stalled() -> None:
    async with plan(working=lambda: False) as made:
        client = await made.client()
        assert await client.ask(get_tensor(2)) == bytes(2)
        made.servers[0].may_work.clear()
        begun = asyncio.get_running_loop().time()
        client.send(get_tensor(2))
        assert await client.ended()
        assert asyncio.get_running_loop().time() - begun < 3.0
        assert made.lost == made.failed == ["the rpc-server has stalled"]


async def test_a_server_that_cannot_be_reached_is_told() -> None:
    async with plan() as made:
        await made.ends[0].close()
        await until(lambda: not made.servers[0].writers)
        made.workers[0]._lent = type(made.workers[0]._lent)(
            **{name: getattr(made.workers[0]._lent, name) for name in made.workers[0]._lent.__slots__} | {"port": 1}
        )
        stream = await opened(made, options_block(Option(0)))
        found = await blocks(stream, Block.FAILED)
        assert "cannot be reached" in read_failed(found[-1][1])
        assert len(made.failed) == 1
