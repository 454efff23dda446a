"""One HTTP/1.1 request of a peer, read from a stream with suspicion.

h11 parses the head; what it lets pass for the sake of the web (bare line feeds, folded lines, repeated lengths) is
refused here, as are all forms of framing but one Content-Length. Only method, path, content type and body leave this
module, so nothing of a peer's head is ever forwarded: no key, no cookie, no other host.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import h11

from meshnode.mesh.paid_stream import PaidStream
from meshnode.telemetry import new_request_id
from meshnode.wire.registry import LIMIT_HTTP_HEAD_BYTES

HOST = b"llama-server"
"""The one host that a tunnel leads to. It names no machine: what stands behind it is the serving node's affair."""
REQUEST_ID_HEADER = b"x-meshnode-request-id"
READ_BYTES = 64 << 10
END_OF_HEAD = b"\r\n\r\n"

_REFUSED_HEADERS = frozenset({b"transfer-encoding", b"upgrade", b"expect", b"te", b"trailer", b"http2-settings"})
_ONCE = (b"content-length", b"content-type", b"host")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.-]{1,64}")
_CONTENT_TYPE = re.compile(rb"[\x20-\x7e]{1,200}")
_LENGTH = re.compile(rb"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Bounds of one request: `head_s` for its whole head, `pause_s` between two pieces of the body, and the whole body
    within `pause_s` and the time that it takes at `slowest_bytes_per_s`.
    """

    max_body_bytes: int = 64 << 20
    head_s: float = 10.0
    pause_s: float = 10.0
    slowest_bytes_per_s: int = 64 << 10


@dataclass(frozen=True, slots=True)
class TunnelRequest:
    """A request that was admitted. `peer` is the 32-byte id of the node that asks; `payment` is how it pays, if it
    does.
    """

    method: str
    path: str
    content_type: str
    body: bytes
    peer: bytes
    request_id: str
    payment: PaidStream | None = None


class Refusal(Exception):
    """A request that is answered with an error status and goes no further."""

    def __init__(self, status: int, code: str, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s

    def headers(self) -> list[tuple[str, str]]:
        """Of the answer."""
        retry = [] if self.retry_after_s is None else [("retry-after", str(self.retry_after_s))]
        return [("content-type", "application/json"), *retry]

    def body(self) -> bytes:
        """The error in llama-server's form, which the asking gateway words for its caller."""
        error = {"code": self.status, "message": self.message, "type": self.code}
        return json.dumps({"error": error}).encode()


class Readable(Protocol):
    """The reading half of a stream."""

    async def read(self, limit_bytes: int, /) -> bytes:
        """Some bytes, or b"" at the end. Raises OSError when the stream is broken."""
        ...


@dataclass(frozen=True, slots=True)
class Head:
    """What counts of a head that passed. `begun` is what came of the body in the same read."""

    method: str
    path: str
    content_type: str
    length_bytes: int
    request_id: str
    begun: bytes


class CutShort(Exception):
    """The stream ended before the request did."""


async def read_head(stream: Readable, *, admitted: Collection[tuple[str, str]], limits: RequestLimits) -> Head:
    """Read and judge the head. `admitted` holds the (method, path) that may be asked for, taken literally.

    Raises Refusal, CutShort, TimeoutError, and OSError when the stream breaks.
    """
    data = bytearray()
    async with asyncio.timeout(limits.head_s):
        while (end := data.find(END_OF_HEAD)) < 0:
            if len(data) > LIMIT_HTTP_HEAD_BYTES:
                raise Refusal(431, "head_too_large", f"the head has more than {LIMIT_HTTP_HEAD_BYTES} bytes")
            piece = await stream.read(READ_BYTES)
            if not piece:
                raise CutShort("the stream ended in the head of its request")
            data += piece
    end += len(END_OF_HEAD)
    if end > LIMIT_HTTP_HEAD_BYTES:
        raise Refusal(431, "head_too_large", f"the head has more than {LIMIT_HTTP_HEAD_BYTES} bytes")
    head = judge(bytes(data[:end]), begun=bytes(data[end:]), admitted=admitted)
    if head.length_bytes > limits.max_body_bytes:
        raise Refusal(413, "body_too_large", f"at most {limits.max_body_bytes} bytes")
    if len(head.begun) > head.length_bytes:
        raise Refusal(400, "bad_request", "bytes after the end of the request")
    return head


def judge(head: bytes, *, begun: bytes, admitted: Collection[tuple[str, str]]) -> Head:
    """What counts of a whole head, its empty line included. Raises Refusal."""
    lines = head.split(b"\r\n")[1:-2]
    if head.count(b"\n") != head.count(b"\r\n") or head.count(b"\r") != head.count(b"\r\n"):
        raise Refusal(400, "bad_request", "a line does not end with CR LF")
    if any(line[:1] in (b" ", b"\t") for line in lines):
        raise Refusal(400, "bad_request", "a header is folded")
    names = [line.partition(b":")[0].lower() for line in lines]
    if any(names.count(name) > 1 for name in _ONCE):
        raise Refusal(400, "bad_request", "a header that counts appears twice")
    if refused := _REFUSED_HEADERS.intersection(names):
        raise Refusal(400, "bad_request", f"{min(refused).decode()} is not used here")
    request = _parsed(head)
    method, path = request.method.decode("ascii"), request.target.decode("ascii")
    headers = dict(request.headers)
    if headers[b"host"] != HOST:
        raise Refusal(421, "wrong_host", "a tunnel leads to one host only")
    if (method, path) not in admitted:
        raise Refusal(404, "endpoint_not_found", f"peers may not ask for {method} {path[:100]}")
    length = headers.get(b"content-length")
    if length is None:
        raise Refusal(411, "length_required", "a request has a Content-Length")
    if any(line[:15].lower() == b"content-length:" and b"," in line for line in lines):  # h11 makes one of "5, 5"
        raise Refusal(400, "bad_request", "a header that counts appears twice")
    if not _LENGTH.fullmatch(length):
        raise Refusal(413, "body_too_large", "the announced length cannot be meant")
    content_type = headers.get(b"content-type", b"application/json")
    if not _CONTENT_TYPE.fullmatch(content_type):
        raise Refusal(400, "bad_request", "the content type cannot be read")
    request_id = headers.get(REQUEST_ID_HEADER, b"")
    known = request_id.decode("ascii") if _REQUEST_ID.fullmatch(request_id) else new_request_id()
    return Head(method, path, content_type.decode("ascii"), int(length), known, begun)


def _parsed(head: bytes) -> h11.Request:
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=LIMIT_HTTP_HEAD_BYTES)
    try:
        parser.receive_data(head)
        event = parser.next_event()
    except h11.RemoteProtocolError as reason:
        raise Refusal(400, "bad_request", f"not HTTP: {reason}"[:200]) from None
    if not isinstance(event, h11.Request):
        raise Refusal(400, "bad_request", "not a request")
    if event.http_version != b"1.1":
        raise Refusal(400, "bad_request", "only HTTP/1.1 is spoken here")
    return event


async def read_body(stream: Readable, head: Head, limits: RequestLimits) -> bytes:
    """The body that `head` announces. Raises CutShort, TimeoutError, and OSError when the stream breaks."""
    pieces = [head.begun]
    missing = head.length_bytes - len(head.begun)
    loop = asyncio.get_running_loop()
    end = loop.time() + limits.pause_s + missing / limits.slowest_bytes_per_s
    async with asyncio.timeout(limits.pause_s) as pause:
        while missing:
            piece = await stream.read(min(missing, READ_BYTES))
            if not piece:
                raise CutShort("the stream ended in the body of its request")
            pieces.append(piece)
            missing -= len(piece)
            pause.reschedule(min(loop.time() + limits.pause_s, end))
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
