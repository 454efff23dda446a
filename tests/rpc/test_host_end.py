import asyncio
import struct
from pathlib import Path
from time import monotonic

import pytest

from meshnode.rpc.facts import TunnelOptions
from meshnode.rpc.host_end import HostEnd
from meshnode.wire.ggml_rpc import Command
from meshnode.wire.registry import Reset
from meshnode.wire.tunnel_blocks import Block, base_block, block, failed_block
from tests.net.nodes import linked, until
from tests.rpc.fake_rpc_server import FACTS, HELLO
from tests.rpc.tunnels import SHA256, Client, FileReferences, plan
from tests.wire.rpc_frames import (
    FLASH_ATTENTION,
    allocate,
    allocation_size,
    compute,
    frame,
    get_base,
    get_tensor,
    push,
    receive,
    reference,
    reply,
    set_tensor,
    tensor,
)

pytestmark = pytest.mark.anyio


async def test_a_tunnel_carries_commands_and_replies() -> None:
    async with plan() as made:
        client = await made.client()
        buffer = await client.allocate(4096)
        assert await client.ask(get_base(buffer)) == struct.pack("<Q", buffer + 64)
        assert await client.ask(set_tensor(b"abcdefgh"), compute(), get_tensor(8)) == b"abcdefgh"
        large = bytes(range(256)) * 4096 * 3
        client.send(set_tensor(large, b"w", address=0x9000))
        assert await client.ask(get_tensor(len(large), b"w", address=0x9000)) == large
        counters = made.ends[0].counters
        assert (counters.round_trips, counters.restarts, counters.connections) == (3, 0, 1)
        assert made.servers[0].log[-3:] == [Command.GET_TENSOR, Command.SET_TENSOR, Command.GET_TENSOR]


async def test_what_is_known_is_answered_here_and_in_order() -> None:
    async with plan() as made:
        client = await made.client()
        device = struct.pack("<I", 0)
        made.servers[0].may_work.clear()
        client.send(get_tensor(4), frame(Command.GET_ALIGNMENT, device), frame(Command.DEVICE_COUNT))
        client.send(frame(Command.GET_DEVICE_MEMORY, device), frame(Command.GET_MAX_SIZE, device))
        await until(lambda: made.ends[0].counters.frames == 6)
        made.servers[0].may_work.set()
        assert [await client.reply() for _ in range(5)] == [
            bytes(4),
            struct.pack("<Q", 32),
            struct.pack("<I", 1),
            struct.pack("<QQ", 1 << 30, 1 << 31),
            struct.pack("<Q", 1 << 40),
        ]
        assert made.ends[0].counters.round_trips == 1
        assert made.servers[0].log == [Command.HELLO, Command.GET_TENSOR]


async def test_a_loader_that_comes_and_goes_keeps_the_far_connection() -> None:
    async with plan() as made:
        for _ in range(5):
            client = await made.client()
            await client.close()
        client = await made.client()
        assert await client.allocate(64)
        assert made.servers[0].connections == 1
        assert made.ends[0].counters.restarts == 0


async def test_what_a_client_leaves_behind_is_freed() -> None:
    async with plan() as made:
        first = await made.client()
        assert await first.allocate(64)
        assert len(made.servers[0].buffers) == 1
        await first.close()
        second = await made.client()
        assert await second.allocate(128)
        assert list(made.servers[0].buffers.values()) == [128]
        assert (made.servers[0].connections, made.ends[0].counters.restarts) == (2, 1)


async def test_replies_to_a_client_that_left_reach_nobody_else() -> None:
    async with plan() as made:
        first = await made.client()
        made.servers[0].may_work.clear()
        first.send(set_tensor(b"old!"), get_tensor(4))
        await until(lambda: made.ends[0].counters.round_trips == 1)
        await first.close()
        second = await Client.connect(made.ends[0].port)
        second.send(get_tensor(4, address=0x2000))
        made.servers[0].may_work.set()
        assert await second.reply() == bytes(4)
        await second.close()


async def test_a_second_client_waits_for_its_turn() -> None:
    async with plan() as made:
        first = await made.client()
        waiting = asyncio.create_task(Client.connect(made.ends[0].port))
        assert await first.ask(get_tensor(4)) == bytes(4)
        assert not waiting.done()
        await first.close()
        await (await waiting).close()


async def test_sizes_of_one_operation_are_guessed_and_checked() -> None:
    async with plan() as made:
        client = await made.client()
        for width in (4, 8, 12, 16, 4):
            asked = allocation_size(tensor(shape=(width, 1, 1, 1), operation=FLASH_ATTENTION))
            assert await client.ask(asked) == struct.pack("<Q", 4 * width)
        counters = made.ends[0].counters
        assert counters.round_trips == 1
        assert await client.ask(get_tensor(4)) == bytes(4)
        assert made.servers[0].log.count(Command.GET_ALLOC_SIZE) == 4
        assert made.lost == []


async def test_a_wrong_guess_ends_the_tunnel_and_is_not_made_again() -> None:
    async with plan() as made:
        client = await made.client()
        operation = 4711
        assert await client.ask(allocation_size(tensor(operation=operation))) == struct.pack("<Q", 16)
        made.servers[0].extra_bytes = 32
        client.send(allocation_size(tensor(shape=(8, 1, 1, 1), operation=operation)))
        assert await client.reply() == struct.pack("<Q", 32)
        assert await client.ended()
        assert "needs more memory" in made.lost[0]
    async with plan() as made:
        client = await made.client()
        await client.ask(allocation_size(tensor(operation=operation)))
        made.servers[0].extra_bytes = 32
        asked = allocation_size(tensor(shape=(8, 1, 1, 1), operation=operation))
        assert await client.ask(asked) == struct.pack("<Q", 64)
        assert made.lost == []


# --- boundaries and weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("size", [4096, 3 << 20])
async def test_a_boundary_of_a_patched_engine_goes_from_worker_to_worker(size: int, compress: bool) -> None:
    boundary = bytes(range(256)) * (size // 256)
    async with plan(2, options=TunnelOptions(stage=0, stages=2, compress=compress)) as made:
        first, second = await made.client(0), await made.client(1)
        first.send(set_tensor(boundary, b"l_out-3"), compute())
        for number in range(1, 4):
            second.send(receive(number, size, b"l_out-3", address=0x7000 + number), compute())
            first.send(push(number, 101, size, b"l_out-3"))
            assert await second.ask(get_tensor(size, address=0x7000 + number)) == boundary
        assert made.ends[0].counters.round_trips == 0
        assert made.ends[0].counters.pushed == 3


@pytest.mark.parametrize("size", [4096, 3 << 20])
async def test_a_boundary_of_a_stock_engine_is_answered_with_a_placeholder(size: int) -> None:
    boundary = bytes(range(256)) * (size // 256)
    async with plan(2, options=TunnelOptions(stage=0, stages=2, push="placeholder")) as made:
        first, second = await made.client(0), await made.client(1)
        held = await first.ask(set_tensor(boundary, b"l_out-3"), compute(), get_tensor(size, b"l_out-3"))
        assert len(held) == size and held != boundary
        second.send(set_tensor(held, b"l_out-3#0", address=0x7000), compute())
        assert await second.ask(get_tensor(size, b"result_output", address=0x7000)) == boundary
        assert await first.ask(get_tensor(size, b"cache_k_l0")) == boundary
        assert [end.counters.round_trips for end in made.ends] == [1, 1]


async def test_a_push_to_nowhere_ends_the_client() -> None:
    for destination in (99, 100, 102):
        async with plan(2) as made:
            client = await made.client(0)
            client.send(push(1, destination, 64))
            assert await client.ended()
            assert made.lost == []


@pytest.mark.parametrize("at_worker", [True, False])
async def test_weights_by_reference(tmp_path: Path, at_worker: bool) -> None:
    weights = {f"blk.{each}.w": bytes([each]) * (each * 400_000 + 1) for each in range(5)}
    references = FileReferences(tmp_path / "weights", weights)
    options = TunnelOptions(stage=0, stages=1, worker_has_weights=at_worker)
    held = references if at_worker else None
    async with plan(options=options, references=held, host_references=references) as made:
        client = await made.client()
        for number, (name, data) in enumerate(weights.items()):
            client.send(reference(SHA256, name.encode(), len(data), address=0x100 * (number + 1)))
            client.send(set_tensor(b"after" + bytes([number]), address=0x100 * (number + 1)))
        for number, data in enumerate(weights.values()):
            found = await client.ask(get_tensor(len(data) + 10, address=0x100 * (number + 1)))
            expected = (b"after" + bytes([number]) + data[6:]).ljust(len(data) + 10, b"\0")
            assert found == expected
        counters = made.ends[0].counters
        assert (counters.references, counters.expanded) == ((5, 0) if at_worker else (0, 5))
        assert (counters.bytes_up < 10_000) is at_worker


@pytest.mark.parametrize("at_worker", [True, False])
async def test_a_reference_to_what_is_not_there_ends_the_tunnel_in_words(tmp_path: Path, at_worker: bool) -> None:
    references = FileReferences(tmp_path / "weights", {"here": b"x" * 64}, sha256=bytes(32))
    options = TunnelOptions(stage=0, stages=1, worker_has_weights=at_worker)
    for sha256, name in ((bytes(32), b"elsewhere"), (SHA256, b"here"), (bytes(32), b"\xff/../\0")):
        async with plan(options=options, references=references, host_references=references) as made:
            client = await made.client()
            client.send(reference(sha256, name, 64))
            assert await client.ended()
            assert "weights of" in made.lost[0]


# --- bad input and loss -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        frame(63, b""),
        struct.pack("<BQ", Command.SET_TENSOR, 1 << 63),
        struct.pack("<BQ", Command.GRAPH_COMPUTE, 304 * 10**6),
        frame(Command.GET_ALIGNMENT, b"\1\0\0\0"),
        frame(Command.HELLO, b""),
        get_tensor(1 << 62),
    ],
    ids=["unknown", "2^63", "10^6 nodes", "no device", "short", "large reply"],
)
async def test_a_client_that_breaks_the_rules_is_closed_and_the_next_is_served(bad: bytes) -> None:
    async with plan() as made:
        client = await made.client()
        client.send(bad)
        assert await client.ended()
        assert await (await made.client()).ask(get_tensor(4)) == bytes(4)
        assert made.lost == []


async def test_a_closed_connection_is_noticed_at_once() -> None:
    async with plan() as made:
        client = await made.client()
        client.send(compute(), get_tensor(4))
        begun = monotonic()
        made.streams[0].link.close(Reset.CANCELLED)
        assert await client.ended()
        assert monotonic() - begun < 0.5
        assert len(made.lost) == 1


async def test_a_worker_that_stops_answering_is_noticed() -> None:
    """The node is there, the link is good, and the tunnel says nothing."""
    async with linked() as (one, other, link, _):
        lost: list[str] = []

        async def connect() -> object:
            return link.open_stream()

        options = TunnelOptions(stage=0, stages=1, stall_s=0.4)
        end = await HostEnd.open(
            facts=FACTS,
            connect=connect,  # type: ignore[arg-type]
            route=lambda _: None,
            options=options,
            references=None,
            lost=lost.append,
        )
        far = await other.stream()
        client = await Client.connect(end.port)
        begun = monotonic()
        client.send(get_tensor(4))
        assert await client.ended()
        assert 0.4 <= monotonic() - begun < 3
        assert lost == ["the worker has stalled"]
        assert (await far.broken()).code == Reset.CANCELLED  # type: ignore[attr-defined]
        await end.close()
        assert len(lost) == 1
        await client.close()


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (failed_block("no room\non this machine"), "no room on this machine"),
        (b"\x09\0\0\0\0", "broke the rules"),
        (block(Block.RESTART, bytes(4)), "broke the rules"),
        (block(Block.BYTES, reply(b"12345678")), "broke the rules"),
        (base_block(1, 2) + b"", ""),
        (None, "has ended the tunnel"),
    ],
    ids=["words", "unknown block", "block of a host", "reply to nothing", "base", "end"],
)
async def test_what_a_worker_may_say(sent: bytes | None, words: str) -> None:
    async with linked() as (_, other, link, _far):
        lost: list[str] = []

        async def connect() -> object:
            return link.open_stream()

        end = await HostEnd.open(
            facts=FACTS,
            connect=connect,  # type: ignore[arg-type]
            route=lambda _: None,
            options=TunnelOptions(stage=0, stages=1),
            references=None,
            lost=lost.append,
        )
        far = await other.stream()
        if sent is None:
            far.write_eof()
        else:
            far.write(sent)
        if words:
            await until(lambda: bool(lost))
            assert words in lost[0]
        else:
            client = await Client.connect(end.port)
            assert await client.ask(get_base(1)) == struct.pack("<Q", 2)
            await client.close()
        await end.close()


async def test_hello_is_the_workers() -> None:
    async with plan() as made:
        client = Client(*await asyncio.open_connection("127.0.0.1", made.ends[0].port))
        assert await client.ask(frame(Command.HELLO, bytes(24))) == HELLO
        assert await client.ask(allocate(64))
        await client.close()
