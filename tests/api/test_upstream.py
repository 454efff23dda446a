import asyncio
from collections.abc import Callable

import pytest

from meshnode.api.upstream import Exchange, Pipe, UpstreamBroken, over_sockets
from meshnode.wire.registry import Reset
from tests.api.fake_llama import FakeLlamaServer, endless, plain, raw, silent, streaming

pytestmark = pytest.mark.anyio


async def send(llama: FakeLlamaServer, body: bytes = b"{}") -> Exchange:
    return await Exchange.send(llama.connect, "POST", "/v1/x", api_key="k", body=body, content_type="application/json")


async def test_a_request_as_it_is_sent(llama: FakeLlamaServer) -> None:
    llama.script = plain(200, b'{"a":1}', "application/json; charset=utf-8")
    exchange = await send(llama, b"x" * 1_000_000)
    assert (exchange.status, exchange.header(b"content-type")) == (200, b"application/json; charset=utf-8")
    assert exchange.header(b"x-none") is None
    assert await exchange.read_all(100) == b'{"a":1}'
    exchange.close()
    [received] = llama.requests
    assert (received.method, received.path, len(received.body)) == ("POST", "/v1/x", 1_000_000)
    assert received.headers["authorization"] == "Bearer k"
    assert received.headers["connection"] == "close"


async def test_pieces_come_as_they_arrive_without_their_frames(llama: FakeLlamaServer) -> None:
    pace: asyncio.Queue[None] = asyncio.Queue()
    llama.script = streaming([b"one", b"two", b"x" * 300_000], pace=pace)
    exchange = await send(llama)
    pieces = exchange.body()
    for wanted in (b"one", b"two"):
        pace.put_nowait(None)
        assert await anext(pieces) == wanted
    pace.put_nowait(None)
    assert b"".join([piece async for piece in pieces]) == b"x" * 300_000
    exchange.close()


async def test_an_answer_before_the_body_was_taken_is_read() -> None:
    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 413 X\r\nContent-Length: 2\r\n\r\nno")
        await done.wait()
        writer.close()

    done = asyncio.Event()
    server = await asyncio.start_server(early, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        exchange = await Exchange.send(
            over_sockets(lambda: asyncio.open_connection("127.0.0.1", port)),
            "POST",
            "/",
            api_key="",
            body=b"x" * 50_000_000,
            content_type="a/b",
        )
        assert (exchange.status, await exchange.read_all(10)) == (413, b"no")
        exchange.close()
        done.set()


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (b"", "without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-", "without an answer"),
        (b"garbage", "HttpParser"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", "HttpParser"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", "HttpParser"),
        (b"".join(b"X%d: a\r\n" % n for n in range(20_000)).join([b"HTTP/1.1 200 OK\r\n", b"\r\n"]), "HttpParser"),
    ],
)
async def test_a_head_that_is_none_is_broken(answer: bytes, part: str, llama: FakeLlamaServer) -> None:
    llama.script = raw(answer)
    with pytest.raises(UpstreamBroken, match=part):
        await send(llama)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nabc",  # its end cannot be told from a crash
    ],
)
async def test_a_body_that_is_cut_is_broken(answer: bytes, llama: FakeLlamaServer) -> None:
    llama.script = raw(answer)
    with pytest.raises(UpstreamBroken):
        exchange = await send(llama)
        try:
            await exchange.read_all(100)
        finally:
            exchange.close()


async def test_a_body_beyond_the_limit_is_not_kept(llama: FakeLlamaServer) -> None:
    llama.script = streaming([b"x" * 100] * 10)
    exchange = await send(llama)
    with pytest.raises(UpstreamBroken, match="too large"):
        await exchange.read_all(500)
    exchange.close()


async def test_no_connection_is_broken_too() -> None:
    async def refused() -> Pipe:
        raise FileNotFoundError(2, "No such file or directory")

    with pytest.raises(UpstreamBroken, match="no connection: No such file"):
        await Exchange.send(refused, "GET", "/", api_key="", body=b"", content_type="")


async def test_closing_and_cancelling_are_noticed_on_the_other_side(llama: FakeLlamaServer) -> None:
    llama.script = endless()
    exchange = await send(llama)
    exchange.close()
    exchange.close()
    llama.script = silent
    task = asyncio.create_task(send(llama))
    await llama.request(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(1):
        for received in llama.requests:
            await received.left.wait()


class MeshPipe:
    """A stream of the mesh in miniature: gives these pieces, then its end or an error."""

    def __init__(self, *pieces: bytes, error: OSError | None = None) -> None:
        self.pieces = list(pieces)
        self.error = error
        self.sent = b""
        self.aborted = 0

    async def read(self, limit_bytes: int, /) -> bytes:
        if not self.pieces and self.error:
            raise self.error
        return self.pieces.pop(0) if self.pieces else b""

    def write(self, data: bytes, /) -> None:
        self.sent += data

    def abort(self) -> None:
        self.aborted += 1


async def over(pipe: MeshPipe, body: bytes = b"{}") -> Exchange:
    async def connect() -> Pipe:
        return pipe

    return await Exchange.send(connect, "POST", "/v1/x", api_key="", body=body, content_type="a/b")


async def test_over_the_mesh_a_body_ends_with_its_stream_and_no_key_is_sent() -> None:
    pipe = MeshPipe(b"HTTP/1.1 200 OK\r\nContent-", b"Type: a/b\r\n\r\none", b"two")
    exchange = await over(pipe, b"x" * 100_000)
    assert await exchange.read_all(100) == b"onetwo"
    assert pipe.sent.endswith(b"\r\n\r\n" + b"x" * 100_000)
    assert b"authorization" not in pipe.sent.lower()
    exchange.close()
    assert pipe.aborted == 1


@pytest.mark.parametrize(
    ("pipe", "part"),
    [
        (MeshPipe(b"HTTP/1.1 200 OK\r\n\r\none", error=ConnectionResetError()), "ConnectionReset"),
        (MeshPipe(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\none"), "cut short"),
        (MeshPipe(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n"), "cut short"),
        (MeshPipe(b"HTTP/1.1 200 OK\r\n"), "without an answer"),
        (MeshPipe(error=ConnectionResetError()), "ConnectionReset"),
    ],
)
async def test_over_the_mesh_a_reset_or_a_short_body_is_broken(pipe: MeshPipe, part: str) -> None:
    with pytest.raises(UpstreamBroken, match=part):
        await (await over(pipe)).read_all(100)


async def test_a_reset_because_of_overload_is_told_apart() -> None:
    class StreamReset(ConnectionResetError):
        code = int(Reset.OVERLOAD)

    for error, busy in ((StreamReset(), True), (ConnectionResetError(), False)):
        with pytest.raises(UpstreamBroken) as caught:
            await over(MeshPipe(error=error))
        assert caught.value.busy is busy


async def test_a_pipe_that_breaks_while_it_is_written_to_is_broken() -> None:
    class Broken(MeshPipe):
        def write(self, data: bytes, /) -> None:
            raise BrokenPipeError

    pipe = Broken()
    with pytest.raises(UpstreamBroken, match="BrokenPipe"):
        await over(pipe)
    assert pipe.aborted == 1


class QuietPipe:
    """A fake peer that says nothing, and whose link may fall silent."""

    def __init__(self) -> None:
        self.silent = False
        self._aborted = asyncio.Event()

    async def read(self, limit_bytes: int, /) -> bytes:
        await self._aborted.wait()
        raise ConnectionResetError

    def write(self, data: bytes, /) -> None:
        self.silent = True

    def abort(self) -> None:
        self._aborted.set()


async def send_over(pipe: QuietPipe, may_leave: Callable[[], bool]) -> None:
    async def connect() -> QuietPipe:
        return pipe

    await Exchange.send(connect, "POST", "/", api_key="", body=b"", content_type="", may_leave=may_leave)


async def test_a_silent_pipe_is_left_when_there_is_another_way() -> None:
    async with asyncio.timeout(5):
        with pytest.raises(UpstreamBroken):
            await send_over(QuietPipe(), lambda: True)


async def test_a_silent_pipe_is_waited_for_when_there_is_none() -> None:
    asked = asyncio.Event()

    def may_leave() -> bool:
        asked.set()
        return False

    sending = asyncio.create_task(send_over(QuietPipe(), may_leave))
    async with asyncio.timeout(5):
        await asked.wait()
    assert not sending.done()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
