"""What the worker's end does with commands, seen from the host's client, and where that is too far away, directly."""

import asyncio
import struct
from pathlib import Path

import pytest

from meshnode.rpc.facts import TunnelOptions
from meshnode.wire.ggml_rpc import Command
from meshnode.wire.registry import Reset
from meshnode.wire.tunnel_blocks import Block, BlockReader, Option, block, options_block
from tests.net.nodes import read_all, until
from tests.rpc.tunnels import SHA256, TUNNEL, FileReferences, Plan, plan
from tests.wire.rpc_frames import (
    allocate,
    compute,
    frame,
    free,
    get_tensor,
    push,
    receive,
    reference,
    reply,
    set_tensor,
)

pytestmark = pytest.mark.anyio


async def test_allocations_stay_within_the_lease() -> None:
    async with plan(limit_bytes=1000) as made:
        client = await made.client()
        first = await client.allocate(600)
        assert first and await client.allocate(401) == 0
        second = await client.allocate(400)
        assert second
        client.send(get_tensor(4), allocate(1), get_tensor(5))
        assert [await client.reply() for _ in range(3)] == [bytes(4), bytes(16), bytes(5)]
        client.send(free(first))
        assert await client.allocate(600)
        assert sorted(made.servers[0].buffers.values()) == [400, 600]
        assert made.lost == []


async def test_the_host_is_told_where_a_buffer_begins_before_it_asks() -> None:
    async with plan() as made:
        client = await made.client()
        buffer = await client.allocate(64)
        rounds = made.ends[0].counters.round_trips
        base = await client.ask(frame(Command.BUFFER_GET_BASE, struct.pack("<Q", buffer)))
        assert base == struct.pack("<Q", buffer + 64)
        assert made.ends[0].counters.round_trips == rounds
        assert made.servers[0].log.count(Command.BUFFER_GET_BASE) == 1


async def test_commands_behind_a_receive_wait_for_its_push() -> None:
    async with plan(2) as made:
        first, second = await made.client(0), await made.client(1)
        second.send(receive(1, 4, address=0x50), set_tensor(b"B", address=0x50), get_tensor(4, address=0x50))
        large = bytes(3 << 20)
        second.send(set_tensor(large, address=0x90))
        await until(lambda: made.ends[1].counters.frames == 5)
        assert made.servers[1].log == [Command.HELLO]
        first.send(set_tensor(b"abcd"), push(1, 101, 4))
        assert await second.reply() == b"Bbcd"
        assert len(await second.ask(get_tensor(len(large), address=0x90))) == len(large)
        assert made.servers[1].log[1:4] == [Command.SET_TENSOR, Command.SET_TENSOR, Command.GET_TENSOR]


async def test_a_push_of_another_size_than_was_announced_ends_the_tunnel() -> None:
    async with plan(2) as made:
        first, second = await made.client(0), await made.client(1)
        first.send(push(1, 101, 8))
        second.send(receive(1, 4))
        assert await second.ended()
        assert "8 bytes where 4 were due" in made.lost[0]


async def test_boundaries_in_halves() -> None:
    def halve(data: bytes) -> bytes:
        return b"".join(data[at : at + 2] for at in range(0, len(data), 4))

    def double(data: bytes) -> bytes:
        return b"".join(data[at : at + 2] * 2 for at in range(0, len(data), 2))

    options = TunnelOptions(stage=0, stages=2, half=True)
    async with plan(2, options=options, converters=(halve, double)) as made:
        first, second = await made.client(0), await made.client(1)
        first.send(set_tensor(b"abcdefgh"), push(1, 101, 8))
        second.send(receive(1, 8))
        assert await second.ask(get_tensor(8)) == b"ababefef"


async def test_a_reference_keeps_its_place_among_other_commands(tmp_path: Path) -> None:
    weights = {"w": bytes(range(256)) * 8192}
    async with plan(references=FileReferences(tmp_path / "weights", weights)) as made:
        client = await made.client()
        client.send(set_tensor(b"1"), reference(SHA256, b"w", 2 << 20), set_tensor(b"2"))
        client.send(reference(SHA256, b"w", 5, offset=3, address=0x77), get_tensor(6))
        assert await client.reply() == b"2" + weights["w"][1:6]
        assert await client.ask(get_tensor(5, address=0x77)) == bytes(range(3, 8))


# --- hosts that break the rules -----------------------------------------------------------------------------------


async def tunnel(made: Plan, *sent: bytes) -> bytes:
    """Open a second tunnel in the place of the first, send blocks, and read what comes until the worker ends it."""
    await made.ends[0].close()
    stream = await made.open_stream(0, 1, TUNNEL)
    stream.write(options_block(Option(0)) + b"".join(block(Block.BYTES, each) for each in sent))
    return await asyncio.wait_for(read_all(stream), 5)


@pytest.mark.parametrize(
    "sent",
    [
        frame(Command.HELLO, bytes(24)),
        frame(99),
        struct.pack("<BQ", Command.SET_TENSOR, 1 << 63),
        struct.pack("<BQ", Command.GRAPH_COMPUTE, 304 * 10**6),
        get_tensor(1 << 63),
        push(1, 0, 8),
        push(1, 5, 8),
        push(1, 1 << 63, 8),
        push(1, 1, 0),
        push(1, 1, 1 << 30),
        receive(1, 1 << 63),
        reference(SHA256, b"w", 1 << 63),
    ],
    ids=[
        "hello",
        "unknown",
        "2^63",
        "10^6 nodes",
        "large get",
        "push to itself",
        "push to nobody",
        "push to 2^63",
        "empty push",
        "large push",
        "large receive",
        "large reference",
    ],
)
async def test_a_host_that_breaks_the_rules_is_cut_off(sent: bytes) -> None:
    async with plan(2) as made:
        with pytest.raises(ConnectionResetError) as caught:
            await tunnel(made, compute(), sent)
        assert caught.value.code == Reset.MALFORMED  # type: ignore[attr-defined]
        assert made.failed == []


async def test_a_breach_behind_something_that_waits_is_found_as_well() -> None:
    async with plan(2) as made:
        with pytest.raises(ConnectionResetError) as caught:
            await tunnel(made, allocate(8) + push(1, 0, 8))
        assert caught.value.code == Reset.MALFORMED  # type: ignore[attr-defined]


async def test_a_server_that_ends_the_connection_is_told_to_both_sides() -> None:
    async with plan() as made:
        for writer in list(made.servers[0].writers):
            writer.transport.abort()
        await until(lambda: bool(made.lost))
        assert "rpc-server" in made.lost[0] and made.failed == made.lost


async def test_replies_are_blocks_of_their_frames() -> None:
    async with plan() as made:
        await made.ends[0].close()
        stream = await made.open_stream(0, 1, TUNNEL)
        stream.write(options_block(Option(0)) + block(Block.BYTES, set_tensor(b"ab") + get_tensor(2)))
        reader, found = BlockReader(), []
        async with asyncio.timeout(5):
            while Block.BYTES not in [kind for kind, _ in found]:
                found += reader.feed(await stream.read(1000))
        assert [body for kind, body in found if kind == Block.BYTES] == [reply(b"ab")]
