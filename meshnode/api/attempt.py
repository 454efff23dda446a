"""One attempt at one host: wait for a slot where it is ours to give, send, and judge the head of the answer.

What a failed attempt means is decided here and nowhere else. Until something of the answer has gone to the caller,
another host may be asked: after a broken connection, a full queue or an engine that starts (`HostFailed`), and after an
answer that a healthy host would not give (`EngineRefused`, `elsewhere`). A refusal that is the caller's own doing is
passed on.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from meshnode.api.aggregate import StreamFailed
from meshnode.api.endpoints import Endpoint
from meshnode.api.gate import Gates
from meshnode.api.joining import Differs
from meshnode.api.paid_pipe import Payment
from meshnode.api.served import Host
from meshnode.api.upstream import Exchange, UpstreamBroken, never
from meshnode.core.guests import Stranger
from meshnode.errors import EngineCrashed, MeshnodeError, ModelLoading, PublicPaused, TooManyRequests

MAX_REFUSAL_BYTES = 1 << 20
REMOTE_RETRIES = frozenset({402, 404, 408, 429})
"""4xx of a peer that say something of the peer and not of the request: it wants to be paid, the model is gone, or its
queue is full."""
CALLERS_FAULT_5XX = 501
"""The engine cannot do this at all: no other host of the model can."""
ENGINE_FAULT = 500
"""May be caused by the request itself: asked elsewhere, but no reason to avoid the host."""

PART_MARK = ".part"


class HostFailed(Exception):
    """This host gave no answer. `error` is for the caller if nobody else does; `cool_down` says to avoid the host."""

    def __init__(self, error: MeshnodeError, *, cool_down: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.busy = isinstance(error, TooManyRequests) or isinstance(error, UpstreamBroken) and error.busy
        self.cool_down = cool_down and not self.busy


class EngineRefused(Exception):
    """The engine answered with an error: `error` is its error object. `elsewhere`: another host may do better."""

    def __init__(self, status: int, error: dict[str, Any], *, elsewhere: bool = False, retry_after: str = "") -> None:
        super().__init__(str(error.get("message", "the engine gave no reason")))
        self.status = status
        self.error = error
        self.retry_after = retry_after
        self.elsewhere = elsewhere

    @property
    def busy(self) -> bool:
        """The host is well, and has too much to do."""
        return self.status == TooManyRequests.http_status

    @property
    def cool_down(self) -> bool:
        """The host is better avoided for a while."""
        return self.elsewhere and self.status != ENGINE_FAULT


FAILURES = (HostFailed, EngineRefused, StreamFailed, UpstreamBroken, Differs)
"""All that an attempt may end with, before and after its answer has begun."""
Failure = HostFailed | EngineRefused | StreamFailed | UpstreamBroken | Differs


@dataclass(frozen=True, slots=True)
class Errand:
    """What is sent to a host, and for whom. The rest of an answer that another host began `continues` it; `guest` is
    the stranger that asks, if one does.
    """

    model: str
    endpoint: Endpoint
    body: bytes
    content_type: str
    caller: str
    request_id: str = ""
    continues: bool = False
    guest: Stranger | None = None


@asynccontextmanager
async def exchange_with(
    find_host: Callable[[], Host | None],
    errand: Errand,
    *,
    here: bool,
    gates: Gates,
    slots: int,
    may_leave: Callable[[], bool] = never,
    payment: Payment | None = None,
) -> AsyncIterator[Exchange]:
    """An exchange whose answer has begun well, for the length of the block. Our own engine is asked in turn.

    `find_host` is called once the turn has come: meanwhile the engine may have moved to another address. `may_leave`
    tells whether a host that falls silent can be left for another. With a `payment` the host is paid for the answer.
    Raises HostFailed or EngineRefused.
    """
    async with AsyncExitStack() as held:
        if here and errand.endpoint.takes_slot:
            try:
                await held.enter_async_context(
                    gates.slot(
                        errand.model, slots=slots, caller=errand.caller, ahead=errand.continues, guest=errand.guest
                    )
                )
            except (TooManyRequests, PublicPaused) as error:
                raise HostFailed(error, cool_down=False) from None
        host = find_host()
        connect = None if host is None else host.connect if payment is None else host.connect_paid
        if host is None or connect is None:
            state = host.state if host else "gone"
            raise HostFailed(ModelLoading(f"{errand.model} is {state}", retry_after_s=2), cool_down=not here)
        try:
            exchange = await Exchange.send(
                connect if payment is None else payment.over(connect),
                "POST",
                errand.endpoint.path,
                api_key=host.api_key,
                body=errand.body,
                content_type=errand.content_type,
                request_id="" if here else part_id(errand.request_id, continues=errand.continues),
                may_leave=may_leave,
            )
        except UpstreamBroken as error:
            refusal = None if payment is None else payment.refusal
            raise HostFailed(refusal or error, cool_down=True) from None
        held.callback(exchange.close)
        if exchange.status >= 400:
            failure = await _refusal(exchange, here=here)
            refusal = None if payment is None else payment.refusal
            raise failure if refusal is None else HostFailed(refusal, cool_down=True)
        yield exchange


def part_id(request_id: str, *, continues: bool) -> str:
    """The id under which a peer gets a request: one that continues an answer is marked by its end."""
    return request_id + PART_MARK if request_id and continues else request_id


def is_part(request_id: str) -> bool:
    """Whether a request of a peer continues an answer that another host began."""
    return request_id.endswith(PART_MARK)


async def _refusal(exchange: Exchange, *, here: bool) -> Exception:
    """What an error status means."""
    status = exchange.status
    try:
        raw = await exchange.read_all(MAX_REFUSAL_BYTES)
    except UpstreamBroken as error:
        return HostFailed(error, cool_down=True)
    if status == 503 and here:  # while it starts again; that is ours to word
        return HostFailed(ModelLoading("the engine has just been started again", retry_after_s=2), cool_down=True)
    if status in (401, 403):
        return HostFailed(EngineCrashed(f"llama-server refused the gateway with status {status}"), cool_down=True)
    elsewhere = status >= 500 and status != CALLERS_FAULT_5XX or (not here and status in REMOTE_RETRIES)
    retry_after = (exchange.header(b"retry-after") or b"").decode("latin-1")
    return EngineRefused(status, error_of(raw), elsewhere=elsewhere, retry_after=retry_after)


def error_of(raw: bytes) -> dict[str, Any]:
    """The error object of llama-server's answer; whatever else it said becomes the message."""
    try:
        error = json.loads(raw)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        error = None
    return error if isinstance(error, dict) else {"message": raw[:500].decode("utf-8", "replace")}


def may_go_elsewhere(failure: Failure) -> bool:
    """Whether another host may do better."""
    match failure:
        case EngineRefused():
            return failure.elsewhere
        case StreamFailed():
            return failure.status >= 500
    return True


def tells_against(failure: Failure) -> bool:
    """The host is better avoided for a while."""
    match failure:
        case HostFailed() | EngineRefused():
            return failure.cool_down
    return not isinstance(failure, Differs)
