"""One request to a web application (ASGI 3.0) in this process: without a socket, but with what a socket gives.

A reader that is slow holds the application up once BUFFER_BYTES wait for it, and one that goes away is a caller that
has left, which the application hears of at once.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import quote

from meshnode.errors import EngineCrashed, MeshnodeError, NodeStopping, RequestError
from meshnode.sdk.refusals import refusal_of

Application = Callable[[MutableMapping[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Any]

BUFFER_BYTES = 256 << 10
"""About as much as the buffers of a loopback connection hold: a program may look away for a while."""
MAX_BODY_BYTES = 64 << 20
CALLER = ("in-process", 0)
PATIENCE_S = 2.0
"""How long an application may clean up behind an answer."""


class Exchange:
    """One request and its answer. `status` and `headers` are there once `begin` returns; `read` gives the body."""

    def __init__(self, app: Application, method: str, path: str, body: bytes) -> None:
        """`path` is without escapes. Must be made in the event loop; nothing runs before `begin`."""
        self._app = app
        self._body = body
        self._scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": quote(path).encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [
                (b"host", b"localhost"),
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
            ],
            "client": CALLER,
            "server": None,
        }
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._asked = False
        self._gone = asyncio.Event()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._pieces: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._whole = False
        self._fault: Exception | None = None
        self.status = 0
        self.headers: dict[str, str] = {}

    async def begin(self, ended: Callable[[Exchange], None] = lambda exchange: None) -> None:
        """Ask, and wait for the head of the answer; `ended` is called when the application has done with it.

        Raises NodeStopping when `abandon` comes first, MeshnodeError when the application fails.
        """
        self._task = asyncio.create_task(self._run(), name=f"ask {self._scope['path']}")
        self._task.add_done_callback(lambda _: ended(self))
        try:
            while not self.status:
                await self._next_news()
        except BaseException:
            self.abandon()
            raise

    async def _run(self) -> None:
        try:
            await self._app(self._scope, self._receive, self._send)
        except Exception as fault:
            self._fault = fault
        finally:
            self._news.set()

    # --- what the application sees ---------------------------------------------------------------------------

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        if self._gone.is_set():
            return
        if message["type"] == "http.response.start":
            self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            if piece := message.get("body", b""):
                self._pieces.append(piece)
                self._waiting_bytes += len(piece)
            self._whole = not message.get("more_body", False)
        self._news.set()
        while self._waiting_bytes > BUFFER_BYTES and not self._whole and not self._gone.is_set():
            self._room.clear()
            await self._room.wait()

    # --- what the reader sees --------------------------------------------------------------------------------

    async def read(self) -> bytes:
        """Some of the body, or b"" at its end, when the application has done with it.

        Raises NodeStopping after `abandon`, RequestError or MeshnodeError when it is cut off.
        """
        while not self._pieces:
            if self._whole:
                await self.ended(PATIENCE_S)
                return b""
            await self._next_news()
        piece = b"".join(self._pieces)
        self._pieces.clear()
        self._waiting_bytes = 0
        self._room.set()
        return piece

    async def read_all(self) -> bytes:
        """The rest of the body. Raises as `read`, and EngineCrashed beyond MAX_BODY_BYTES."""
        pieces = []
        size = 0
        while piece := await self.read():
            size += len(piece)
            if size > MAX_BODY_BYTES:
                self.abandon()
                raise EngineCrashed(f"its answer has more than {MAX_BODY_BYTES} bytes", fix="ask for less")
            pieces.append(piece)
        return b"".join(pieces)

    async def _next_news(self) -> None:
        if self._gone.is_set():
            raise NodeStopping("this client is closed, or has given up the answer", fix="ask again")
        if self._fault is not None:
            raise MeshnodeError("this is a fault of meshnode") from self._fault
        if self._task is None or self._task.done():
            raise RequestError("the answer was given up, as nothing of it was taken for a while", fix="ask again")
        self._news.clear()
        await self._news.wait()

    # --- the end ---------------------------------------------------------------------------------------------

    def abandon(self) -> None:
        """Leave, as a caller who hangs up. May be called from a finaliser, in any thread, and again."""
        if runs_here(self._loop):
            self._gone.set()
            self._news.set()
            self._room.set()
            self._pieces.clear()
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.abandon)

    async def ended(self, patience_s: float) -> None:
        """Wait until the application has cleaned up; one that takes longer is cancelled."""
        if self._task is not None and not self._task.done():
            await asyncio.wait({self._task}, timeout=patience_s)
            self._task.cancel()
            await asyncio.wait({self._task})


def runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether this code runs in the loop: a finaliser may run in any thread."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


class Api:
    """An application that is asked from this process. `close` ends every answer that is under way."""

    def __init__(self, app: Application) -> None:
        self._app = app
        self._running: set[Exchange] = set()

    async def open(self, method: str, path: str, body: dict[str, Any] | None = None) -> Exchange:
        """Ask; the answer has begun, and is none of an error. Raises what the application refuses with."""
        exchange = Exchange(self._app, method, path, b"" if body is None else _encoded(body))
        self._running.add(exchange)
        await exchange.begin(self._running.discard)
        if exchange.status >= 400:
            raise refusal_of(exchange.status, await exchange.read_all(), exchange.headers)
        return exchange

    async def json(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[Any, dict[str, str]]:
        """Ask for an answer in one piece: its value and its headers. Raises as `open`."""
        exchange = await self.open(method, path, body)
        try:
            return json.loads(await exchange.read_all()), exchange.headers
        except (ValueError, RecursionError):
            raise EngineCrashed("its answer is not JSON", fix="ask again") from None
        finally:
            exchange.abandon()

    async def close(self) -> None:
        """Leave every answer, and wait until the application has cleaned up."""
        running = list(self._running)
        for exchange in running:
            exchange.abandon()
        for exchange in running:
            await exchange.ended(PATIENCE_S)


def _encoded(body: dict[str, Any]) -> bytes:
    """`body` as JSON. Raises RequestError for what JSON cannot say."""
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return json.dumps(body, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as reason:
        raise RequestError(f"it cannot be written as JSON: {reason}") from None
