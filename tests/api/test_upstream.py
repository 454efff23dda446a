import asyncio

import pytest

from meshnode.api.upstream import Exchange, UpstreamBroken
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
            lambda: asyncio.open_connection("127.0.0.1", port),
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
    async def refused() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
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
