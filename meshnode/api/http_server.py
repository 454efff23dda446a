"""The HTTP listener: uvicorn with bounds on what an unauthenticated peer may hold.

llhttp, which uvicorn uses for parsing, refuses ambiguous framing (two lengths, `Transfer-Encoding` together with
`Content-Length`: RFC 9112, 6.1) but sets no limit on the size of a head or on the time it may take. Both are set
here, so that slow or endless heads cost one file descriptor for a few seconds and nothing more. Two more gaps are
closed: a caller that leaves while its requests are pipelined, and an offer to upgrade, which is declined.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import socket
from asyncio import TimerHandle
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from meshnode.errors import PortInUse, SettingsError

MAX_HEAD_BYTES = 64 << 10
"""nginx allows 32 KiB by default, node.js 16, Apache about 100 KiB."""
HEAD_TIMEOUT_S = 20
KEEP_ALIVE_S = 75
"""Longer than the pools of common clients keep a connection (5-60 s), so that they close first."""
MAX_IGNORED_BYTES = 16 << 20
"""Of a body that was refused: read on for a while, as many callers look at the answer only when all is sent."""
HEAD_TOO_LARGE = (431, "The head of the request is too large")
BACKLOG = 1024
MAX_PIPELINED = 16
"""Beyond this many unanswered requests on one connection nothing more is read from it."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with a limit on the size of a request head and on the time until it is complete."""

    _head_bytes = 0
    _unparsed_bytes = 0
    _ignored_bytes = 0
    _refusal = (400, "Not valid HTTP")
    _head_timer: TimerHandle | None = None
    _unanswered: tuple[RequestResponseCycle, ...] = ()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        # uvicorn tells only the request that was read last.
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        # The parser hands a header or trailer over when it is complete; what it holds until then is counted here.
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if self._unparsed_bytes > MAX_HEAD_BYTES:
            self._refuse(*HEAD_TOO_LARGE)

    def on_message_begin(self) -> None:
        self._head_bytes = self._unparsed_bytes = self._ignored_bytes = 0
        if self._head_timer is None:
            self._start_head_timer()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_head_timer()
        before = self.cycle
        offered = self.parser.should_upgrade()
        # The parser takes whatever follows this head for the other protocol, a body included.
        if offered and any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers):
            self._end_parsing(400, "This node speaks HTTP/1.1 only: send the request without `Upgrade`")
        super().on_headers_complete()
        if offered:
            self.cycle.keep_alive = False
        if before is not None and not before.response_complete:
            self._unanswered = (*(cycle for cycle in self._unanswered if not cycle.response_complete), before)
            if len(self._unanswered) < MAX_PIPELINED:
                self.flow.resume_reading()  # uvicorn stops, and so would not see the caller leave

    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes = 0
        if self.cycle.response_complete:
            self._ignored_bytes += len(body)
            if self._ignored_bytes > MAX_IGNORED_BYTES:
                self.transport.close()
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        self._refuse(*self._refusal)

    def _count(self, size_bytes: int) -> None:
        self._unparsed_bytes = 0
        self._head_bytes += size_bytes
        if self._head_bytes > MAX_HEAD_BYTES:
            self._end_parsing(*HEAD_TOO_LARGE)

    def _end_parsing(self, status: int, text: str) -> None:
        """Called while the parser runs: it stops, and data_received then calls send_400_response."""
        self._refusal = (status, text)
        raise ValueError(text)

    def _refuse(self, status: int, text: str) -> None:
        if self.transport.is_closing():
            return
        if self._owes_an_answer():
            self.transport.close()  # a refusal now would be taken for that answer, or for a part of it
            return
        body = json.dumps({"error": {"message": text, "type": "invalid_request_error", "code": "bad_request"}}).encode()
        head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + head.encode() + body)
        self.transport.close()

    def _owes_an_answer(self) -> bool:
        """Whether a request that was read is being answered, as distinct from one that is still coming in."""
        cycle = self.cycle
        if any(not earlier.response_complete for earlier in self._unanswered):
            return True
        return cycle is not None and not cycle.response_complete and (cycle.response_started or not cycle.more_body)

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_timed_out)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_timed_out(self) -> None:
        self._head_timer = None
        self._refuse(408, "The head of the request did not arrive in time")


class HttpServer(uvicorn.Server):
    """A uvicorn server that leaves the signals of the process to the node."""

    def __init__(self, app: Any) -> None:
        # uvicorn logs what any caller sends wrong, and faults that app.py has logged already; on stderr by default.
        logging.getLogger("uvicorn").handlers = [logging.NullHandler()]
        logging.getLogger("uvicorn").propagate = False
        super().__init__(
            uvicorn.Config(
                app,
                http=BoundedProtocol,
                ws="none",
                lifespan="off",
                loop="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                backlog=BACKLOG,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self, *, now: bool = False) -> None:
        """Stop accepting, let running answers finish; with `now` cut them."""
        self.should_exit = True
        self.force_exit = self.force_exit or now
        if now:
            for task in list(self.server_state.tasks):
                task.cancel()


def listen(port: int, *, public: bool, purpose: str) -> list[socket.socket]:
    """Bind the port on IPv4 and, where there is one, IPv6: on loopback, or on every address if `public`.

    `localhost` means either family, so both are needed. Raises PortInUse with a hint at who holds the port, and
    SettingsError for one that this user may not open.
    """
    hosts = [(socket.AF_INET, "0.0.0.0" if public else "127.0.0.1"), (socket.AF_INET6, "::" if public else "::1")]
    sockets: list[socket.socket] = []
    for family, host in hosts:
        try:
            # TRAP: asyncio turns Nagle's algorithm off only where the protocol is named; else answers wait for an ACK.
            listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        except OSError:
            continue
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            listener.bind((host, sockets[0].getsockname()[1] if sockets else port))
            listener.listen(BACKLOG)
        except OSError as reason:
            listener.close()
            if family == socket.AF_INET6 and sockets:
                continue  # no IPv6 here, or its port is taken: IPv4 alone serves
            for other in sockets:
                other.close()
            flag = f"--{'console' if purpose == 'console' else 'port'} N"
            if reason.errno == errno.EACCES:
                raise SettingsError(f"you may not open port {port}", fix=f"choose one above 1023: {flag}") from None
            raise PortInUse(
                f"{purpose} wants {host}:{port}{_holder(port)} ({reason.strerror})",
                fix=f"end that program, or choose another port: {flag}",
            ) from None
        listener.setblocking(False)
        sockets.append(listener)
    return sockets


def _holder(port: int) -> str:
    """`, held by NAME (pid N)` when the system tells."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f", held by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""
