"""One exchange with one Nostr relay: a question and its answers, or an event and its receipt (NIP-01), all bounded.

The library that makes and checks events has a client as well, but that client drops forged events without a word and
takes a connection that breaks for an empty answer; so a relay that lies, one that is gone and one that knows nothing
look alike. Here every message is seen: `websockets` carries them, with bounds on each message and on what waits.

Nothing here waits without an end but for its caller, who cancels: `late` then says what a relay was up to.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import secrets
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from meshnode.wire.schema import showable

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

MOST_EVENTS = 2000
MOST_OF_ALL = 10_000
"""Events of all relays of one look: of many relays each gets its share, so that some cannot crowd out the others."""
MOST_BYTES = 8 << 20
MOST_MESSAGE_BYTES = 128 << 10
"""Relays hold events of 64 KiB at most; anything larger ends the connection."""
MOST_ODD = 64
"""Messages that mean nothing here, such as events of other questions."""
BATCH = 64
FLUSH_S = 0.02
"""So long events wait for others, so that one that stalls still gives what it has."""
GOODBYE_S = 1.0
TOO_BIG = 1009
"""The code with which a websocket is closed after a message above the bound (RFC 6455, 7.4.1)."""
TEXT_CHARS = 120
_QUIET = logging.getLogger("meshnode.discovery.websocket")
_QUIET.addHandler(logging.NullHandler())
_QUIET.propagate = False
_QUIET.setLevel(logging.CRITICAL)

State = Literal["ok", "empty", "slow", "down", "lying", "refused"]
Outcome = tuple[State, str]
Take = Callable[[list[Any]], Awaitable[None]]
"""Takes the events of some messages, as parsed JSON. While it works, the relay is not read."""


@dataclass(frozen=True, slots=True)
class RelayReport:
    """How a relay behaved. `count` are the listings that it gave and that hold, or 1 for an event that it took.

    ok: it did what it was asked. empty: it answered, and has nothing. slow: it did not answer in time. down: there is
    no connection, or it broke. lying: it sent what it should not have. refused: it said no; `text` has its words.
    """

    url: str
    state: State
    text: str
    count: int
    elapsed_s: float

    @property
    def answered(self) -> bool:
        """Whether it can be said that the relay was asked."""
        return self.state in ("ok", "empty", "lying")

    def as_dict(self) -> dict[str, Any]:
        """As status and `--json` show it."""
        return asdict(self) | {"elapsed_s": round(self.elapsed_s, 3)}


class Exchange:
    """See the module; good for one question or one event. `goodbyes` gets the tasks that close connections."""

    def __init__(
        self, url: str, tls: ssl.SSLContext | None, goodbyes: set[asyncio.Task[None]], *, most_events: int = MOST_EVENTS
    ) -> None:
        self.url = url
        self._tls = tls
        self._goodbyes = goodbyes
        self._most_events = most_events
        self._connected = False
        self._events = 0
        self._bytes = 0
        self._odd = 0
        self._notice = ""

    async def ask(self, condition: Mapping[str, Any], take: Take) -> Outcome:
        """All stored events that meet a condition (a NIP-01 filter), given to `take` as they come.

        "ok" says no more than that the relay came to an end; what it sent is the caller's to judge.
        """
        return await self._exchange(lambda connection: self._read_events(connection, condition, take))

    async def send(self, event: Mapping[str, Any]) -> Outcome:
        """Give the relay an event; "ok" when it has taken it."""
        return await self._exchange(lambda connection: self._read_receipt(connection, event))

    def late(self, seconds: float) -> Outcome:
        """What is to be said when the caller waits no longer."""
        if self._notice:
            return "refused", self._notice
        what = "the end of its answer" if self._events else "an answer" if self._connected else "a connection"
        return "slow", f"{what} did not come within {seconds:.1f} s"

    # --- the connection -----------------------------------------------------------------------------------------------

    async def _exchange(self, work: Callable[[ClientConnection], Awaitable[Outcome]]) -> Outcome:
        from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

        try:
            connection = await self._connect()
        except InvalidStatus as reason:
            return "refused", f"answered with the HTTP status {reason.response.status_code}"
        except ssl.SSLError as reason:
            return "down", f"no secure connection: {_shown(reason.reason or reason)}"
        except (WebSocketException, EOFError) as reason:
            return "down", f"is no relay: {_shown(reason)}"
        except ConnectionRefusedError:
            return "down", "nobody listens there"
        except (OSError, ImportError, ValueError) as reason:  # of names that are none, and proxies of unknown kinds
            return "down", _shown(getattr(reason, "strerror", None) or reason) or type(reason).__name__
        try:
            return await work(connection)
        except ConnectionClosed as reason:
            if reason.sent is not None and reason.sent.code == TOO_BIG:
                return "lying", f"sent a message of more than {MOST_MESSAGE_BYTES >> 10} KiB"
            if self._notice:
                return "refused", self._notice
            return "down", "the connection broke before the end of the answer"
        finally:
            task = asyncio.create_task(_goodbye(connection))
            self._goodbyes.add(task)
            task.add_done_callback(self._goodbyes.discard)

    async def _connect(self) -> ClientConnection:
        from websockets.asyncio.client import connect

        connecting: Any = connect(
            self.url,
            ssl=self._tls if self.url.startswith("wss:") else None,
            proxy=None if _is_loopback(self.url) else True,
            compression=None,
            user_agent_header="meshnode",
            open_timeout=None,
            ping_interval=None,
            close_timeout=GOODBYE_S,
            max_size=MOST_MESSAGE_BYTES,
            logger=_QUIET,
        )
        # Where a relay is, its user says: no relay sends us elsewhere.
        connecting.process_redirect = lambda error: error
        connection: ClientConnection = await connecting
        self._connected = True
        return connection

    # --- what is said -------------------------------------------------------------------------------------------------

    async def _read_events(self, connection: ClientConnection, condition: Mapping[str, Any], take: Take) -> Outcome:
        name = secrets.token_hex(8)
        await connection.send(json.dumps(["REQ", name, condition]))
        batch: list[Any] = []
        try:
            while True:
                try:
                    async with asyncio.timeout(FLUSH_S if batch else None):
                        message = await connection.recv()
                except TimeoutError:
                    full, batch = batch, []
                    await take(full)
                    continue
                self._bytes += len(message)
                match _parsed(message):
                    case ["EVENT", str(asked), event] if asked == name:
                        self._events += 1
                        batch.append(event)
                    case ["EOSE", str(asked)] if asked == name:
                        return "ok", ""
                    case ["CLOSED", str(asked), str(reason)] if asked == name:
                        return "refused", _shown(reason)
                    case other:
                        self._heed(other)
                if self._events >= self._most_events or self._bytes > MOST_BYTES:
                    return "lying", f"sent {self._events} events, {self._bytes >> 10} KiB, without an end"
                if self._odd >= MOST_ODD:
                    return "lying", f"sent {self._odd} messages that answer nothing"
                if len(batch) >= BATCH:
                    full, batch = batch, []
                    await take(full)
        finally:
            if batch and not _is_cancelled():
                await take(batch)

    async def _read_receipt(self, connection: ClientConnection, event: Mapping[str, Any]) -> Outcome:
        await connection.send(json.dumps(["EVENT", event], ensure_ascii=False))
        while True:
            message = await connection.recv()
            self._bytes += len(message)
            match _parsed(message):
                case ["OK", str(number), bool(taken), *rest] if number == event["id"]:
                    text = _shown(rest[0]) if rest and isinstance(rest[0], str) else ""
                    return ("ok", text) if taken else ("refused", text or "gave no reason")
                case other:
                    self._heed(other)
            if self._odd >= MOST_ODD or self._bytes > MOST_BYTES:
                return "lying", f"sent {self._odd} messages that answer nothing"

    def _heed(self, message: Any) -> None:
        """What is not an answer: a notice is kept for `late`; an AUTH asks for what a listing does not need."""
        match message:
            case ["NOTICE", str(text), *_]:
                self._notice = _shown(text)
        self._odd += 1


async def _goodbye(connection: ClientConnection) -> None:
    try:
        with contextlib.suppress(Exception):  # it is over, whatever the other end makes of it
            await connection.close()
    finally:
        connection.transport.abort()


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _parsed(message: str | bytes) -> Any:
    """The JSON of a message; None for what is none."""
    try:
        return json.loads(message)
    except (ValueError, RecursionError):
        return None


def _shown(text: object) -> str:
    return showable(str(text), TEXT_CHARS)


def _is_loopback(url: str) -> bool:
    """No proxy leads to this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
