import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from meshnode.api.upstream import Exchange, UpstreamBroken
from meshnode.mesh.tunnel import Answer, TunnelLimits, TunnelReply, TunnelServer, head_bytes, open_tunnel
from meshnode.mesh.tunnel_request import RequestLimits, TunnelRequest
from meshnode.net.quic import STREAMS_ADVERTISED
from meshnode.net.stream import MeshStream
from meshnode.wire.frames import HEADER_BYTES, FrameReader, encode_frame
from meshnode.wire.messages import decode_message, encode_message, message_id
from meshnode.wire.payments import PAID_HEADER, PayAsk, PayHttp
from meshnode.wire.registry import LIMIT_STREAMS_A_LINK, Reset, StreamType
from tests.mesh.memory_link import MemoryLink, code_of, memory_links
from tests.mesh.neighbourhood import PATH as MESH_PATH
from tests.mesh.neighbourhood import Neighbourhood

pytestmark = pytest.mark.anyio
LIMITS = TunnelLimits()
PATH = "/v1/chat/completions"
ADMITTED = {("POST", PATH)}
TOKEN = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
HEAD = b"POST %s HTTP/1.1\r\nHost: llama-server\r\nContent-Length: %d\r\n\r\n"


class Running:
    """A tunnel server behind a link in memory."""

    def __init__(self, answer: Answer, limits: TunnelLimits = LIMITS) -> None:
        self.counters: Counter[str] = Counter()
        self.server = TunnelServer(answer, admitted=ADMITTED, limits=limits, counters=self.counters)
        self.tasks: list[asyncio.Task[None]] = []
        self.link: MemoryLink
        self.link, self.far = memory_links(self.opened)

    def opened(self, stream: MeshStream) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(self.serve(stream)))

    async def serve(self, stream: MeshStream) -> None:
        await stream.read_exactly(HEADER_BYTES)
        await self.server.serve(stream)

    async def connect(self) -> MeshStream:
        return open_tunnel(self.link)  # type: ignore[arg-type]

    async def send(self, body: bytes = b"{}", path: str = PATH) -> Exchange:
        return await Exchange.send(self.connect, "POST", path, api_key="secret", body=body, content_type="a/b")

    async def over(self) -> None:
        """Wait until no stream is served any more."""
        async with asyncio.timeout(2):
            await asyncio.gather(*self.tasks)


def echo(requests: list[TunnelRequest]) -> Answer:
    async def answer(request: TunnelRequest, reply: TunnelReply) -> None:
        requests.append(request)
        await reply.head(200, [("content-type", request.content_type), ("transfer-encoding", "chunked")])
        await reply.body(request.body)
        await reply.finish()

    return answer


def until(release: asyncio.Event, ended: Callable[[BaseException], None] = lambda _: None) -> Answer:
    """Answers with one token, waits for `release`, and answers with a last one."""

    async def answer(_: TunnelRequest, reply: TunnelReply) -> None:
        try:
            await reply.head(200, [])
            await reply.body(TOKEN)
            await release.wait()
            await reply.body(TOKEN)
            await reply.finish()
        except BaseException as reason:
            ended(reason)
            raise

    return answer


async def pieces(exchange: Exchange) -> bytes:
    return b"".join([piece async for piece in exchange.body()])


async def test_a_request_and_its_answer() -> None:
    requests: list[TunnelRequest] = []
    running = Running(echo(requests))
    exchange = await running.send(b"x" * 3_000_000)
    assert (exchange.status, exchange.header(b"content-type")) == (200, b"a/b")
    assert exchange.header(b"transfer-encoding") is None
    assert await pieces(exchange) == b"x" * 3_000_000
    exchange.close()
    await running.over()
    [request] = requests
    assert (request.method, request.path, request.content_type) == ("POST", PATH, "a/b")
    assert request.peer == b"c" * 32
    assert b"secret" not in repr(request).encode()
    assert running.counters == {"http_answered": 1}


async def test_many_answers_at_once_each_get_their_own() -> None:
    running = Running(echo([]))
    exchanges = await asyncio.gather(*(running.send(b"%d" % number) for number in range(50)))
    assert [await pieces(exchange) for exchange in exchanges] == [b"%d" % number for number in range(50)]
    for exchange in exchanges:
        exchange.close()
    await running.over()
    assert running.server.running == 0


@pytest.mark.parametrize("path", ["/slots", "/../", "http://169.254.169.254/", "/v1/models"])
async def test_what_is_not_admitted_reaches_nobody(path: str) -> None:
    requests: list[TunnelRequest] = []
    running = Running(echo(requests))
    exchange = await running.send(path=path)
    assert exchange.status == 404
    assert json.loads(await pieces(exchange))["error"]["type"] == "endpoint_not_found"
    exchange.close()
    await running.over()
    assert (requests, running.counters["http_refused"]) == ([], 1)


async def test_the_caller_leaves_while_nothing_is_written() -> None:
    ends: list[BaseException] = []
    release = asyncio.Event()
    running = Running(until(release, ends.append))
    exchange = await running.send()
    assert await anext(exchange.body()) == TOKEN
    exchange.close()
    await running.over()
    assert isinstance(ends[0], asyncio.CancelledError)
    assert running.counters == {"http_cancelled": 1}


async def test_a_caller_that_ended_its_side_is_answered_and_may_still_leave() -> None:
    release = asyncio.Event()
    running = Running(until(release))
    first, second = await running.send(), await running.send()
    for exchange in (first, second):
        exchange._pipe.write_eof()  # type: ignore[attr-defined]
    bodies = first.body(), second.body()
    assert [await anext(body) for body in bodies] == [TOKEN, TOKEN]
    second.close()
    await running.tasks[1]
    release.set()
    assert await anext(bodies[0]) == TOKEN
    first.close()
    await running.over()
    assert running.counters == {"http_answered": 1, "http_cancelled": 1}


async def test_bytes_after_the_request_end_it() -> None:
    running = Running(until(asyncio.Event()))
    exchange = await running.send()
    body = exchange.body()
    assert await anext(body) == TOKEN
    exchange._pipe.write(b"GET /slots HTTP/1.1\r\n\r\n")
    with pytest.raises(UpstreamBroken):
        await anext(body)
    await running.over()
    assert running.counters == {"http_malformed": 1}


@pytest.mark.parametrize("fault", [RuntimeError("no"), ConnectionResetError("engine"), None])
async def test_an_answer_that_breaks_resets_the_stream(fault: Exception | None) -> None:
    async def answer(_: TunnelRequest, reply: TunnelReply) -> None:
        await reply.head(200, [])
        await reply.body(TOKEN)
        await asyncio.sleep(0)
        if fault:
            raise fault

    running = Running(answer)
    stream = await running.connect()
    stream.write(HEAD % (PATH.encode(), 0))
    assert await code_of(stream) == Reset.UPSTREAM_BROKEN
    await running.over()
    assert running.counters.total() == 1


async def test_half_a_request_is_reset() -> None:
    limits = TunnelLimits(RequestLimits(head_s=0.02, pause_s=0.02))
    running = Running(echo([]), limits)
    for data, end, code in [
        (b"POST /v1/chat", False, Reset.TOO_SLOW),
        (HEAD % (PATH.encode(), 9) + b"half", False, Reset.TOO_SLOW),
        (b"POST /v1/chat", True, Reset.MALFORMED),
        (HEAD % (PATH.encode(), 9) + b"half", True, Reset.MALFORMED),
    ]:
        stream = await running.connect()
        stream.write(data)
        if end:
            stream.write_eof()
        assert await code_of(stream) == code
    await running.over()
    assert running.counters == {"http_too_slow": 2, "http_malformed": 2}


def endless(written: list[int]) -> Answer:
    async def answer(_: TunnelRequest, reply: TunnelReply) -> None:
        await reply.head(200, [])
        while True:
            await reply.body(b"x" * 16384)
            written.append(16384)

    return answer


async def test_a_caller_that_never_reads_holds_little_memory_and_is_reset() -> None:
    written: list[int] = []
    running = Running(endless(written), TunnelLimits(stall_s=0.1))
    stream = await running.connect()
    stream.write(HEAD % (PATH.encode(), 0))
    await stream.broken()
    await running.over()
    assert sum(written) < 1 << 20
    assert running.counters == {"http_too_slow": 1}


async def test_a_slow_caller_slows_only_its_own_answer() -> None:
    written: list[int] = []
    running = Running(endless(written))
    slow = await running.connect()
    slow.write(HEAD % (PATH.encode(), 0))
    await slow.read(1)
    running.server._answer = echo([])
    for _ in range(20):
        exchange = await running.send(b"hello")
        assert await pieces(exchange) == b"hello"
        exchange.close()
    assert sum(written) < 1 << 20
    slow.abort()
    await running.over()


async def test_a_peer_has_room_for_so_many_streams() -> None:
    release = asyncio.Event()
    running = Running(until(release), TunnelLimits(streams=4))
    exchanges = [await running.send() for _ in range(4)]
    refused = await running.send()
    assert (refused.status, refused.header(b"retry-after")) == (429, b"2")
    refused.close()
    release.set()
    for exchange in exchanges:
        assert await pieces(exchange) == TOKEN * 2
        exchange.close()
    again = await running.send()
    assert again.status == 200
    again.close()
    await running.over()


def test_the_tunnel_says_no_before_the_link_does() -> None:
    """With room for the control stream and for those that are told why, and for what else a peer may open."""
    assert LIMITS.streams + 32 <= LIMIT_STREAMS_A_LINK <= STREAMS_ADVERTISED


async def test_a_peer_has_room_for_so_many_bytes() -> None:
    running = Running(echo([]), TunnelLimits(body_bytes=100))
    first = await running.connect()
    first.write(HEAD % (PATH.encode(), 60))
    await asyncio.sleep(0.01)
    second = await running.send(b"x" * 60)
    assert second.status == 429
    second.close()
    first.abort()
    await running.over()
    third = await running.send(b"x" * 60)
    assert third.status == 200
    third.close()
    await running.over()


async def test_a_stop_lets_answers_finish_and_takes_no_new_ones() -> None:
    release = asyncio.Event()
    running = Running(until(release))
    exchange = await running.send()
    running.server.refuse_new()
    late = await running.send()
    assert (late.status, late.header(b"retry-after")) == (503, b"5")
    late.close()
    assert not await running.server.drained(0.01)
    release.set()
    assert await running.server.drained(2)
    assert await pieces(exchange) == TOKEN * 2
    exchange.close()
    await running.over()


async def test_a_hand_over_ends_every_answer_so_that_it_is_continued_elsewhere() -> None:
    running = Running(until(asyncio.Event()))
    streams = [await running.connect() for _ in range(3)]
    for stream in streams:
        stream.write(HEAD % (PATH.encode(), 0))
        await stream.read(1 << 16)
    running.server.hand_over()
    assert [await code_of(stream) for stream in streams] == [Reset.UPSTREAM_BROKEN] * 3
    await running.over()
    assert await running.server.drained(0)
    assert running.counters["http_handed_over"] == 3


async def test_the_loss_of_the_link_cancels_its_answers() -> None:
    ends: list[BaseException] = []
    running = Running(until(asyncio.Event(), ends.append))
    exchange = await running.send()
    running.far.close(0)
    with pytest.raises(UpstreamBroken):
        await pieces(exchange)
    await running.over()
    assert isinstance(ends[0], asyncio.CancelledError)


async def test_a_cancelled_server_ends_its_answers() -> None:
    ends: list[BaseException] = []
    running = Running(until(asyncio.Event(), ends.append))
    stream = await running.connect()
    stream.write(HEAD % (PATH.encode(), 0))
    await stream.read(1 << 16)
    running.tasks[0].cancel()
    assert await code_of(stream) == Reset.UPSTREAM_BROKEN
    with suppress(asyncio.CancelledError):
        await running.tasks[0]
    assert len(ends) == 1


async def test_a_caller_that_does_not_take_the_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnode.mesh.tunnel.LINGER_S", 0.02)
    running = Running(echo([]))
    await running.send()
    await running.over()
    assert running.counters == {"http_answered": 1}


async def test_a_refusal_reaches_a_caller_that_sends_on() -> None:
    running = Running(echo([]), TunnelLimits(RequestLimits(max_body_bytes=1000)))
    exchange = await running.send(b"x" * 5_000_000)
    assert (exchange.status, exchange.header(b"connection")) == (413, b"close")
    await asyncio.sleep(0.01)
    assert b"1000 bytes" in await pieces(exchange)
    exchange.close()
    await running.over()


@pytest.mark.parametrize(
    "misuse",
    [
        lambda reply: reply.body(b"x"),
        lambda reply: reply.finish(),
        lambda reply: reply.head(100, []),
        lambda reply: reply.head(200, [("a b", "c")]),
        lambda reply: reply.head(200, [("a", "c\r\nx: y")]),
    ],
)
async def test_an_answer_out_of_order_is_our_own_mistake(
    misuse: Callable[[TunnelReply], Awaitable[None]],
) -> None:
    _, far = memory_links()
    with pytest.raises((AssertionError, ValueError)):
        await misuse(TunnelReply(far.open_stream()))


def test_heads() -> None:
    assert head_bytes(200, [("A", "b"), ("Connection", "keep-alive")]) == (
        b"HTTP/1.1 200 OK\r\nA: b\r\nconnection: close\r\n\r\n"
    )
    assert head_bytes(599, []).startswith(b"HTTP/1.1 599 Unknown\r\n")


async def test_the_header_of_a_stream_says_whether_it_is_paid(town: Neighbourhood) -> None:
    """Over a real mesh: what is opened with another header reaches whoever answers as a paid request."""
    one, other = await town.members(2)
    exchange = await one.send(other)
    exchange.close()
    stream = await one.mesh.open_stream(other.id, StreamType.HTTP, PAID_HEADER)
    ask = PayAsk("req_1", "demo", 5, 84532)
    request = b"POST %s HTTP/1.1\r\nHost: llama-server\r\nContent-Length: 2\r\n\r\nhi" % MESH_PATH.encode()
    for message in (ask, PayHttp(request)):
        stream.write(encode_frame(message_id(message), encode_message(message)))
    frames = FrameReader()
    answer = b""
    while data := await stream.read(1 << 16):
        answer += b"".join(decode_message(number, body).data for number, body in frames.feed(data))
    stream.abort()
    assert answer.endswith(b"\r\n\r\n" + other.name.encode() + b":hi")
    free, paid = other.requests
    assert free.payment is None and paid.payment is not None and paid.payment.ask == ask
