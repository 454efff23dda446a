import asyncio
import socket

import pytest

from meshnode.api import http_server
from meshnode.api.http_server import MAX_HEAD_BYTES, listen
from meshnode.errors import PortInUse, SettingsError
from tests.api.fake_llama import FakeLlamaServer, endless, plain
from tests.api.raw_http import Connection, ask, request
from tests.api.running import CHAT, Gateway, serving

pytestmark = pytest.mark.anyio
HELLO = {"model": "demo", "messages": [], "stream": True}


async def raw(gateway: Gateway, data: bytes) -> int:
    """The status that these bytes get; the gateway still answers afterwards."""
    async with await Connection.open(gateway.port) as connection:
        await connection.send(data)
        status = (await connection.reply()).status
        if status >= 400:
            assert await connection.ended()
    assert (await ask(gateway.port, "/health")).status == 200
    return status


async def test_ambiguous_and_broken_framing_is_refused_before_the_application_sees_it(
    gateway: Gateway, llama: FakeLlamaServer
) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n"
    for name, data in {
        "TE with CL": head + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        "CL with TE": head + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "two lengths": head + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        "signed length": head + "Content-Length: +5\r\n\r\nabcde",
        "unknown coding": head + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "space before colon": head + "Content-Length : 5\r\n\r\nabcde",
        "folded header": head + "X-A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
        "NUL in a header": head + "X-A: b\0c\r\n\r\n",
        "bare LF in a header": head.replace("\r\n", "\n") + "Content-Length: 0\n\n",
        "no HTTP": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 GET\r\n\r\n",
        "bad chunk size": head + "Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    }.items():
        assert await raw(gateway, data.encode("latin-1")) == 400, name
    assert llama.requests == []


async def test_a_header_of_a_megabyte_is_refused_in_one_piece_and_in_many(gateway: Gateway) -> None:
    for data in (
        request("/health", headers={"X-A": "a" * (1 << 20)}),
        request("/health", headers={f"X-{n}": "a" * 4000 for n in range(300)}),
        request("/" + "a" * (1 << 20)),
    ):
        assert await raw(gateway, data) in (400, 431)
    # One that never ends: nothing is complete, so only the raw bytes can be counted.
    async with await Connection.open(gateway.port) as connection:
        await connection.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"a" * (1 << 20))
        assert (await connection.reply()).status == 431
        assert await connection.ended()


async def test_heads_up_to_the_limit_pass_and_are_counted_for_each_request(gateway: Gateway) -> None:
    async with await Connection.open(gateway.port) as connection:
        for _ in range(4):
            assert (await connection.ask("/health", x_a="a" * (MAX_HEAD_BYTES // 2))).status == 200


async def test_endless_trailers_and_chunk_extensions_end_the_connection(
    gateway: Gateway, llama: FakeLlamaServer
) -> None:
    chunked = request(CHAT, b"", headers={"Transfer-Encoding": "chunked"})
    for flood in (b"2\r\n{}\r\n0\r\nX-A: " + b"a" * (1 << 20), b"2;a=" + b"b" * (1 << 20)):
        async with await Connection.open(gateway.port) as connection:
            await connection.send(chunked + flood)
            assert (await connection.reply()).status in (400, 431)
            assert await connection.ended()
    assert llama.requests == []


async def test_a_slow_head_times_out_and_an_idle_connection_after_an_answer_does_not(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await Connection.open(gateway.port) as patient:
        assert (await patient.ask("/health")).status == 200
        monkeypatch.setattr(http_server, "HEAD_TIMEOUT_S", 0.05)
        async with await Connection.open(gateway.port) as slow:
            await slow.send(b"GET /health HTTP/1.1\r\nHost: local")
            reply = await slow.reply()
            assert (reply.status, reply.error["type"]) == (408, "invalid_request_error")
            assert await slow.ended()
        assert (await patient.ask("/health")).status == 200


async def test_half_open_connections_cost_nobody_else(gateway: Gateway) -> None:
    opened = await asyncio.gather(*(Connection.open(gateway.port) for _ in range(200)))
    try:
        for connection in opened:
            await connection.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost:")
        begin = asyncio.get_running_loop().time()
        assert (await ask(gateway.port, "/health")).status == 200
        assert asyncio.get_running_loop().time() - begin < 2
    finally:
        for connection in opened:
            await connection.leave()


async def test_pipelined_requests_are_answered_in_order(gateway: Gateway, llama: FakeLlamaServer) -> None:
    llama.script = plain(200, b'{"data":[]}')
    async with await Connection.open(gateway.port) as connection:
        await connection.send(
            request("/health") + request("/v1/embeddings", {"model": "demo", "input": "a"}) + request("/v1/models")
        )
        bodies = [(await connection.reply()).json for _ in range(3)]
    assert bodies[0] == {"status": "ok"}
    assert bodies[1] == {"data": []}
    assert bodies[2]["object"] == "list"


@pytest.mark.parametrize("later", [False, True], ids=["in one piece", "later"])
async def test_a_caller_that_leaves_with_a_request_pipelined_behind_it_is_noticed(
    later: bool, gateway: Gateway, llama: FakeLlamaServer
) -> None:
    llama.script = endless()
    async with await Connection.open(gateway.port) as connection:
        await connection.send(request(CHAT, HELLO) + (b"" if later else request("/health")))
        await connection.head()
        received = await llama.request(0)
        if later:
            await connection.send(request("/health"))
            assert (await ask(gateway.port, "/health")).status == 200  # by now the other has been read as well
    async with asyncio.timeout(1):
        await received.left.wait()


async def test_a_flood_of_pipelined_requests_is_read_no_further(gateway: Gateway, llama: FakeLlamaServer) -> None:
    llama.script = endless()
    async with await Connection.open(gateway.port) as connection:
        await connection.send(request(CHAT, HELLO))
        await connection.head()
        filler = request("/health", headers={"X-A": "a" * 60_000})
        with pytest.raises(TimeoutError):
            for _ in range(1000):  # 60 MB: far more than the buffers of both sockets hold
                connection.writer.write(filler)
                async with asyncio.timeout(1):
                    await connection.writer.drain()


async def test_rubbish_behind_a_running_request_never_lands_inside_its_answer(
    gateway: Gateway, llama: FakeLlamaServer
) -> None:
    llama.script = endless()
    async with await Connection.open(gateway.port) as connection:
        await connection.send(request(CHAT, HELLO) + b"\0\0\0\r\n\r\n")
        rest = await asyncio.wait_for(connection.reader.read(), 5)
    assert b"400" not in rest


async def test_an_offer_to_upgrade_is_declined_and_no_body_is_lost_in_silence(
    gateway: Gateway, llama: FakeLlamaServer
) -> None:
    offers = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAARAAAAAAAIAAAAA"}
    async with await Connection.open(gateway.port) as connection:
        await connection.send(request("/v1/embeddings", {"model": "demo", "input": "a"}, headers=offers))
        reply = await connection.reply()
        assert (reply.status, reply.headers["connection"]) == (400, "close")
        assert "without `Upgrade`" in reply.error["message"]
        assert await connection.ended()
    assert llama.requests == []
    async with await Connection.open(gateway.port) as connection:
        await connection.send(request("/health", headers={"Connection": "Upgrade", "Upgrade": "websocket"}))
        reply = await connection.reply()
        assert (reply.status, reply.headers["connection"]) == (200, "close")


async def test_a_refused_body_is_read_on_for_a_while_but_not_for_ever(gateway: Gateway) -> None:
    async with await Connection.open(gateway.port) as connection:
        await connection.send(request(CHAT, b"", headers={"Content-Length": "5000000"}))
        assert (await connection.reply()).status == 413
        await connection.send(b"a" * 5_000_000)
        assert (await connection.ask("/health")).status == 200
        await connection.send(request(CHAT, b"", headers={"Content-Length": "100000000000"}))
        assert (await connection.reply()).status == 413
        with pytest.raises(ConnectionError):
            for _ in range(100):
                connection.writer.write(b"a" * (1 << 20))
                await connection.writer.drain()


async def test_what_callers_send_wrong_is_not_talked_about(gateway: Gateway, capfd: pytest.CaptureFixture[str]) -> None:
    assert await raw(gateway, b"rubbish\r\n\r\n") == 400
    assert capfd.readouterr() == ("", "")


async def test_stop_lets_a_running_answer_finish_and_now_cuts_it() -> None:
    release = asyncio.Event()
    begun = asyncio.Event()

    async def app(scope: dict, receive: object, send: object) -> None:
        begun.set()
        await release.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    for now in (False, True):
        release.clear()
        begun.clear()
        sockets = listen(0, public=False, purpose="the test")
        server = http_server.HttpServer(app)
        task = asyncio.create_task(server.serve(sockets))
        async with await Connection.open(sockets[0].getsockname()[1]) as connection:
            await connection.send(request("/"))
            await begun.wait()
            server.stop(now=now)
            if now:
                async with asyncio.timeout(2):
                    await task
            else:
                release.set()
                assert (await connection.reply()).body == b"ok"
                async with asyncio.timeout(2):
                    await task


async def test_listen_serves_both_families_on_one_port() -> None:
    async def app(scope: dict, receive: object, send: object) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async with serving(app) as port:
        for host in ("127.0.0.1", "::1") if socket.has_ipv6 else ("127.0.0.1",):
            try:
                connection = Connection(*await asyncio.open_connection(host, port))
            except OSError:
                assert host == "::1"  # a machine without IPv6 on loopback
                continue
            async with connection:
                assert (await connection.ask("/")).status == 204


def test_a_taken_port_is_named_with_the_flag_that_changes_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for purpose, flag in (("the API", "--port"), ("console", "--console")):
            with pytest.raises(PortInUse) as caught:
                listen(port, public=False, purpose=purpose)
            assert f"{purpose} wants 127.0.0.1:{port}" in str(caught.value)
            assert flag in caught.value.fix
        assert "pid" in str(caught.value)


def test_a_port_that_only_an_administrator_may_open_is_not_called_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", denied)
    with pytest.raises(SettingsError, match="port 80") as caught:
        listen(80, public=False, purpose="console")
    assert "--console" in caught.value.fix


async def test_what_is_written_leaves_at_once() -> None:
    """With Nagle's algorithm the second write of an answer waits up to 40 ms for the caller's delayed ACK."""
    (listener, *others) = listen(0, public=False, purpose="the API")
    for other in others:
        other.close()
    seen: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async with await asyncio.start_server(answer, sock=listener):
        _, writer = await asyncio.open_connection(*listener.getsockname())
        assert await asyncio.wait_for(seen, 5) != 0
        writer.close()
        await writer.wait_closed()
