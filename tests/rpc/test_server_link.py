import asyncio
from functools import partial

import pytest

from meshnode.rpc.server_link import ServerLink
from meshnode.wire.ggml_rpc import Command
from tests.net.nodes import until
from tests.rpc.fake_rpc_server import fake_rpc_server
from tests.wire.rpc_frames import frame, get_tensor, reply, set_tensor

pytestmark = pytest.mark.anyio


class Owner:
    """What a link tells its owner."""

    def __init__(self) -> None:
        self.pieces: list[tuple[str, bytes, bool]] = []
        self.flushes = 0
        self.words: list[str] = []

    async def connect(self, port: int) -> ServerLink:
        return await ServerLink.connect(port, flush=self.flush, ended=self.words.append)

    def flush(self) -> None:
        self.flushes += 1

    def take(self, tag: str, piece: bytes, last: bool) -> None:
        self.pieces.append((tag, piece, last))


async def test_replies_go_to_whoever_asked() -> None:
    async with fake_rpc_server() as server:
        owner = Owner()
        link = await owner.connect(server.port)
        link.replies.expect(partial(owner.take, "one"), 3)
        link.replies.expect(partial(owner.take, "other"), 4)
        assert link.owes
        link.write(set_tensor(b"abcd") + get_tensor(3) + get_tensor(4))
        await until(lambda: len(owner.pieces) == 2)
        assert owner.pieces == [("one", reply(b"abc"), True), ("other", reply(b"abcd"), True)]
        assert owner.flushes >= 1 and not link.owes
        link.abort()
        await until(lambda: not server.writers)
        assert owner.words == []


async def test_a_paused_link_reads_nothing_and_its_server_owes_nothing() -> None:
    async with fake_rpc_server() as server:
        owner = Owner()
        link = await owner.connect(server.port)
        link.pause()
        link.pause()
        link.replies.expect(partial(owner.take, "one"), 3)
        link.write(get_tensor(3))
        await until(lambda: Command.GET_TENSOR in server.log)
        link.resume()
        assert not link.owes and owner.pieces == []
        link.resume()
        await until(lambda: len(owner.pieces) == 1)
        link.abort()
        link.resume()


@pytest.mark.parametrize("sent", [frame(63), get_tensor(8)], ids=["the server closes", "a reply nobody expects"])
async def test_the_end_is_told_once(sent: bytes) -> None:
    async with fake_rpc_server() as server:
        owner = Owner()
        link = await owner.connect(server.port)
        link.write(sent)
        await until(lambda: bool(owner.words))
        link.abort()
        await asyncio.sleep(0)
        assert len(owner.words) == 1 and "rpc-server" in owner.words[0]


async def test_a_server_that_is_not_there_or_does_not_speak() -> None:
    async with fake_rpc_server() as server:
        port = server.port
    with pytest.raises(OSError):
        await Owner().connect(port)


async def test_abort_reaches_a_second_handle_too() -> None:
    async with fake_rpc_server() as server:
        link = await Owner().connect(server.port)
        with link.socket() as second:
            link.abort()
            with pytest.raises(OSError):
                for _ in range(100):
                    second.send(b"x")
