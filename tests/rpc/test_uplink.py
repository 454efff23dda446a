import asyncio
import random
from collections.abc import Sequence

import pytest

from meshnode.rpc.codec import Unpacker
from meshnode.rpc.facts import TunnelCounters
from meshnode.rpc.uplink import FULL_BYTES, Uplink
from meshnode.wire.ggml_rpc import BODY, OPENING, RUN, Command
from meshnode.wire.tunnel_blocks import Block, BlockReader, block
from tests.net.nodes import until
from tests.wire.rpc_frames import compute, set_tensor

pytestmark = pytest.mark.anyio


class Sent:
    """In place of a Flow: what was written."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    @property
    def kinds(self) -> list[int]:
        return [kind for kind, _ in BlockReader().feed(b"".join(self.writes))]

    def rpc(self) -> bytes:
        """The RPC bytes of all blocks."""
        unpacker = Unpacker()
        return b"".join(
            unpacker.unpack(body) if kind == Block.PACKED else body
            for kind, body in BlockReader().feed(b"".join(self.writes))
        )


class Up:
    """An uplink that writes to memory."""

    def __init__(self, *, compress: bool) -> None:
        self.sent = Sent()
        self.counters = TunnelCounters()
        self.ready = 0
        self.uplink = Uplink(self.sent, self.counters, compress=compress, ready=self._ready)  # type: ignore[arg-type]

    def _ready(self) -> None:
        self.ready += 1

    def add(self, cuts: Sequence[tuple[int, bytes]], *, now: bool = False) -> None:
        for kind, data in cuts:
            self.uplink.add(kind, data)
        self.uplink.flush(now=now)


INPUT = (int(Command.SET_TENSOR), set_tensor(b"input"))
STEP = (RUN, compute())


@pytest.mark.parametrize("compress", [False, True])
async def test_a_step_is_one_block(compress: bool) -> None:
    up = Up(compress=compress)
    up.add([INPUT])
    up.add([INPUT])
    assert up.sent.writes == []
    up.add([STEP])
    assert up.sent.kinds == [Block.PACKED if compress else Block.BYTES]
    assert up.sent.rpc() == INPUT[1] * 2 + STEP[1]
    assert up.counters.bytes_up == len(up.sent.writes[0])
    up.uplink.close()


async def test_an_input_that_nothing_follows_goes_out_shortly() -> None:
    up = Up(compress=False)
    up.add([INPUT])
    await until(lambda: up.sent.rpc() == INPUT[1])
    up.uplink.close()


async def test_what_must_go_now_goes_now() -> None:
    up = Up(compress=False)
    up.add([INPUT], now=True)
    assert up.sent.rpc() == INPUT[1]
    up.add([], now=True)
    assert len(up.sent.writes) == 1
    large = (int(Command.SET_TENSOR), set_tensor(bytes(FULL_BYTES)))
    up.uplink.add(*large)
    assert up.uplink.is_full
    up.uplink.flush()
    assert up.sent.rpc() == INPUT[1] + large[1]
    up.uplink.send_block(block(Block.ALIVE))
    assert up.sent.kinds[-1] == Block.ALIVE


async def test_large_batches_are_packed_in_a_thread_in_order() -> None:
    up = Up(compress=True)
    frames = [(RUN, bytes([number]) * 200_000) for number in range(12)]
    up.add(frames)
    assert up.uplink.busy
    async with asyncio.timeout(5):
        while not up.ready:
            await asyncio.sleep(0.001)
    assert not up.uplink.busy
    assert up.sent.rpc() == b"".join(data for _, data in frames)
    assert len(up.sent.writes) > 2 and up.counters.bytes_up < 100_000
    up.add([INPUT, STEP])
    assert up.sent.rpc().endswith(INPUT[1] + STEP[1])


async def test_weights_are_not_packed_and_what_follows_is() -> None:
    up = Up(compress=True)
    noise = random.Random(1).randbytes(3 << 20)
    up.add([(OPENING, set_tensor(noise)[:300_000])], now=True)
    up.add([(BODY, set_tensor(noise)[300_000:])])
    up.add([INPUT, STEP])
    assert set(up.sent.kinds[:-1]) == {Block.BYTES} and up.sent.kinds[-1] == Block.PACKED
    assert up.sent.rpc() == set_tensor(noise) + INPUT[1] + STEP[1]


async def test_what_is_forgotten_is_not_sent() -> None:
    up = Up(compress=False)
    up.add([INPUT])
    up.uplink.forget()
    up.add([STEP])
    assert up.sent.rpc() == STEP[1]
    up.uplink.close()
