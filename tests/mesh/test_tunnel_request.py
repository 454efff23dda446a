import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.mesh.tunnel_request import CutShort, Head, Refusal, RequestLimits, judge, read_body, read_head
from meshnode.wire.registry import LIMIT_HTTP_HEAD_BYTES

pytestmark = pytest.mark.anyio
ADMITTED = frozenset({("POST", "/v1/chat/completions")})
GOOD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: llama-server\r\nContent-Type: application/json\r\n"
    b"Content-Length: 5\r\nConnection: close\r\n\r\n"
)
LIMITS = RequestLimits(max_body_bytes=1000, head_s=0.05, pause_s=0.05)


class Pieces:
    """A stream that gives these pieces one by one, then its end; None waits for ever."""

    def __init__(self, *pieces: bytes | None) -> None:
        self.pieces = list(pieces)
        self.largest = 0

    async def read(self, limit_bytes: int, /) -> bytes:
        piece = self.pieces.pop(0) if self.pieces else b""
        if piece is None:
            await asyncio.Event().wait()
            raise AssertionError
        if len(piece) > limit_bytes:
            self.pieces.insert(0, piece[limit_bytes:])
        return piece[:limit_bytes]


def changed(old: bytes, new: bytes) -> bytes:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


def status(head: bytes) -> int:
    with pytest.raises(Refusal) as caught:
        judge(head, begun=b"", admitted=ADMITTED)
    return caught.value.status


def test_a_request_as_the_gateway_writes_it() -> None:
    head = judge(GOOD, begun=b"he", admitted=ADMITTED)
    assert (head.method, head.path, head.content_type) == ("POST", "/v1/chat/completions", "application/json")
    assert (head.length_bytes, head.begun) == (5, b"he")
    assert head.request_id.startswith("req_")


def test_the_request_id_of_the_caller_is_kept_if_it_can_be_shown() -> None:
    def found(value: bytes) -> str:
        head = changed(b"Connection", b"X-Meshnode-Request-Id: " + value + b"\r\nConnection")
        return judge(head, begun=b"", admitted=ADMITTED).request_id

    assert found(b"req_12.a-B") == "req_12.a-B"
    for bad in (b"a b", b"a" * 65, b"<img>", b"\xc3\xa4"):
        assert found(bad).startswith("req_") and len(found(bad)) == 28


@pytest.mark.parametrize(
    "target",
    [
        b"/slots",
        b"/props",
        b"/../v1/chat/completions",
        b"/v1/../v1/chat/completions",
        b"/v1/chat/completions/",
        b"/v1/chat/completions?a=1",
        b"/v1/chat%2fcompletions",
        b"//v1/chat/completions",
        b"/V1/chat/completions",
        b"http://169.254.169.254/latest/meta-data",
        b"http://llama-server/v1/chat/completions",
        b"127.0.0.1:22",
        b"*",
    ],
)
def test_other_targets_are_not_found(target: bytes) -> None:
    assert status(changed(b"/v1/chat/completions", target)) == 404


@pytest.mark.parametrize("method", [b"GET", b"PUT", b"CONNECT", b"OPTIONS", b"post", b"PRI"])
def test_other_methods_are_not_found(method: bytes) -> None:
    assert status(changed(b"POST", method)) == 404


@pytest.mark.parametrize("host", [b"localhost", b"127.0.0.1:22", b"169.254.169.254", b"llama-server:80", b""])
def test_other_hosts_are_misdirected(host: bytes) -> None:
    assert status(changed(b"Host: llama-server", b"Host: " + host)) == 421


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Host: llama-server\r\n", b""),
        (b"Host: llama-server", b"Host: llama-server\r\nHost: llama-server"),
        (b"Content-Length: 5", b"Content-Length: 5\r\nContent-Length: 5"),
        (b"Content-Length: 5", b"Content-Length: 5\r\nContent-Length: 6"),
        (b"Content-Length: 5", b"Content-Length: 5, 5"),
        (b"Content-Length: 5", b"Content-Length: +5"),
        (b"Content-Length: 5", b"Content-Length: -1"),
        (b"Content-Length: 5", b"Content-Length: 0x5"),
        (b"Content-Length: 5", b"Content-Length: 5\r\nTransfer-Encoding: chunked"),
        (b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        (b"Content-Length: 5", b"Transfer-Encoding:\x0bchunked"),
        (b"Content-Length: 5", b"Transfer-Encoding: gzip, chunked"),
        (b"Content-Length: 5", b"Content-Length : 5"),
        (b"Content-Length: 5", b"Content-\r\n Length: 5"),
        (b"Content-Length: 5", b"Content-Length: 5\r\n\tand more"),
        (b"Content-Length: 5", b"Content-Length: 5\nX: a"),
        (b"Content-Length: 5", b"Content-Length: 5\rX: a"),
        (b"Connection: close", b"Connection: upgrade\r\nUpgrade: h2c"),
        (b"Connection: close", b"Expect: 100-continue"),
        (b"Content-Type: application/json", b"Content-Type: a/b\r\nContent-Type: c/d"),
        (b"Content-Type: application/json", b"Content-Type: a/\xffb"),
        (b"Content-Type: application/json", b"Content-Type: a\x00b"),
        (b"Content-Type: application/json", b"no colon"),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"HTTP/1.1", b"HTTP/2.0"),
        (b"HTTP/1.1", b"HTTP/1.1 x"),
        (b"POST ", b"POST  "),
        (b"POST ", b"\x00POST "),
        (b"POST ", b" POST "),
    ],
)
def test_doubtful_heads_are_bad_requests(old: bytes, new: bytes) -> None:
    assert status(changed(old, new)) == 400


def test_lengths() -> None:
    assert status(changed(b"Content-Length: 5\r\n", b"")) == 411
    assert status(changed(b"Content-Length: 5", b"Content-Length: " + b"9" * 19)) == 413


def test_a_refusal_has_the_form_of_llama_server() -> None:
    refusal = Refusal(429, "too_many_requests", "wait", retry_after_s=2)
    assert refusal.headers() == [("content-type", "application/json"), ("retry-after", "2")]
    assert json.loads(refusal.body()) == {"error": {"code": 429, "message": "wait", "type": "too_many_requests"}}


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, len(GOOD)), st.integers(0, 20))
def test_any_head_is_judged_or_refused(noise: bytes, at: int, cut: int) -> None:
    head = GOOD[:at] + noise + GOOD[at + cut :]
    try:
        found = judge(head, begun=b"", admitted=ADMITTED)
    except Refusal as refusal:
        assert 400 <= refusal.status < 500
    else:
        assert (found.method, found.path) in ADMITTED


async def read(stream: Pieces, limits: RequestLimits = LIMITS) -> tuple[Head, bytes]:
    head = await read_head(stream, admitted=ADMITTED, limits=limits)
    return head, await read_body(stream, head, limits)


async def test_a_request_in_every_cut() -> None:
    whole = GOOD + b"hello"
    for cut in range(1, len(whole)):
        _, body = await read(Pieces(whole[:cut], whole[cut:]))
        assert body == b"hello"
    _, body = await read(Pieces(*(bytes((byte,)) for byte in whole)))
    assert body == b"hello"


async def test_a_body_of_many_pieces() -> None:
    body = bytes(range(256)) * 1000
    head = changed(b"Length: 5", f"Length: {len(body)}".encode())
    assert (await read(Pieces(head + body), RequestLimits()))[1] == body


async def test_what_ends_too_early_is_cut_short() -> None:
    for data in (b"", GOOD[:50], GOOD, GOOD + b"hell"):
        with pytest.raises(CutShort):
            await read(Pieces(data))


async def test_what_waits_too_long_times_out() -> None:
    for pieces in ([], [GOOD[:50]], [GOOD], [GOOD + b"hell"]):
        with pytest.raises(TimeoutError):
            await read(Pieces(*pieces, None))


async def test_a_body_that_drips_times_out_as_a_whole() -> None:
    limits = RequestLimits(pause_s=0.05, slowest_bytes_per_s=1 << 30)

    class Drip(Pieces):
        async def read(self, limit_bytes: int, /) -> bytes:
            await asyncio.sleep(0.02)
            return b"x"

    with pytest.raises(TimeoutError):
        await read_body(Drip(), judge(GOOD, begun=b"", admitted=ADMITTED), limits)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"x" * (LIMIT_HTTP_HEAD_BYTES + 1), 431),
        (GOOD.replace(b"Connection", b"X: " + b"a" * LIMIT_HTTP_HEAD_BYTES + b"\r\nConnection"), 431),
        (GOOD + b"hello and more", 400),
        (changed(b"Length: 5", b"Length: 1001"), 413),
    ],
)
async def test_what_is_too_large(data: bytes, status: int) -> None:
    with pytest.raises(Refusal) as caught:
        await read(Pieces(data))
    assert caught.value.status == status
