"""What this node does with a request of another node: answer it with its own engine, or say at once that it cannot.

A request of a peer is never sent on to a third node, so no loop can form. It waits in the same queue as the requests
of our own callers, and its turn is counted against the peer, so that one busy node does not crowd out the others.
The bytes of the engine pass untouched: the gateway that asked reads them. Nothing is buffered beyond what one read of
the engine gave, as the next read waits until the peer's stream took it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from meshnode.api.activity import Activity, Running
from meshnode.api.answer import encode
from meshnode.api.attempt import EngineRefused, Errand, HostFailed, exchange_with, is_part
from meshnode.api.body import parse_object
from meshnode.api.endpoints import PEER_ENDPOINTS, Endpoint, allowed
from meshnode.api.gate import Gates
from meshnode.api.multipart import model_field
from meshnode.api.record import STATUS_CALLER_LEFT, Record, token_counts
from meshnode.api.request import Limits
from meshnode.api.served import Host, Served, find_served
from meshnode.api.upstream import Exchange, UpstreamBroken
from meshnode.errors import BodyTooLarge, EndpointNotFound, MeshnodeError, ModelLoading, ModelNotFound, NodeStopping

TAIL_BYTES = 2048
PASSED_HEADERS = (b"content-type", b"content-length")


class PeerRequest(Protocol):
    """A request as it came through a tunnel, already admitted. `peer` is the 32-byte id of the node that asks."""

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def content_type(self) -> str: ...
    @property
    def body(self) -> bytes: ...
    @property
    def peer(self) -> bytes: ...
    @property
    def request_id(self) -> str: ...


class Reply(Protocol):
    """Where the answer goes. Each call waits until the stream can take more, and raises OSError when it is gone."""

    async def head(self, status: int, headers: Sequence[tuple[str, str]], /) -> None: ...
    async def body(self, piece: bytes, /) -> None: ...
    async def finish(self) -> None: ...


class PeerRequests:
    """Answers the requests of peers. `models` gives a fresh snapshot; `activity` knows each request as long as it is
    under way, and `finished` gets its Record at its end.
    """

    def __init__(
        self,
        *,
        models: Callable[[], Sequence[Served]],
        gates: Gates,
        limits: Limits,
        finished: Callable[[Record], None],
        stopping: Callable[[], bool],
        activity: Activity | None = None,
    ) -> None:
        self._models = models
        self._gates = gates
        self._limits = limits
        self._finished = finished
        self._stopping = stopping
        self._activity = activity or Activity()

    async def answer(self, request: PeerRequest, reply: Reply) -> None:
        """Answer one request.

        Raises UpstreamBroken when the engine fails after the head went out: the caller of this method resets the
        stream then, and the asking gateway continues elsewhere. OSError and cancellation pass through.
        """
        record = Record(request.request_id, request.path, time.monotonic(), peer=request.peer.hex())
        running = self._activity.begin(record)
        began = _Counted(reply, running)
        try:
            await self._answer(request, began, record)
        except (MeshnodeError, EngineRefused, HostFailed) as reason:
            record.error = _code(reason)
            if began.status:
                raise
            await _refuse(began, reason)
        except asyncio.CancelledError:
            record.error = "cancelled"
            raise
        finally:
            record.status = began.status or STATUS_CALLER_LEFT
            record.total_s = time.monotonic() - record.started_at
            record.tokens_in, record.tokens_out = token_counts(began.lead + began.tail)
            self._activity.end(running)
            self._finished(record)

    async def _answer(self, request: PeerRequest, reply: _Counted, record: Record) -> None:
        if self._stopping():
            raise NodeStopping(retry_after_s=5)
        if not allowed(request.method, request.path):
            raise EndpointNotFound(f"{request.method} {request.path[:200]}")
        endpoint = PEER_ENDPOINTS[request.path]
        if len(request.body) > self._limits.max_body_bytes:
            raise BodyTooLarge(f"at most {self._limits.max_body_bytes} bytes")
        model, host = await self._find(endpoint, request)
        record.model = model.id
        errand = Errand(
            model.id,
            endpoint,
            request.body,
            request.content_type,
            request.peer.hex(),
            continues=is_part(request.request_id),
        )
        async with exchange_with(
            lambda: self._here(model.id), errand, here=True, gates=self._gates, slots=model.slots
        ) as exchange:
            record.queued_s = time.monotonic() - record.started_at
            await _pass(exchange, reply)

    async def _find(self, endpoint: Endpoint, request: PeerRequest) -> tuple[Served, Host]:
        """The model and our own host of it. Other hosts do not count: nothing is sent on."""
        own = [
            Served(model.id, model.state, model.names, host.slots, capabilities=model.capabilities, hosts=(host,))
            for model in self._models()
            if (host := model.local) is not None
        ]
        if endpoint.multipart:
            name: object = model_field(request.body, request.content_type)
        else:
            name = (await parse_object(request.body)).members.get("model")
        if not own:  # what others of the mesh have is for the asking node to know
            raise ModelNotFound("this node serves no model")
        model = find_served(name, own, {})
        host = model.local
        if host is None:
            raise ModelNotFound(f"{model.id} is not served here")
        return model, host

    def _here(self, model: str) -> Host | None:
        return next((found.local for found in self._models() if found.id == model), None)


class _Counted:
    """A Reply that remembers its status and its first and last bytes, and tells `running` what goes out: an event that
    begins in one read and ends in the next may be missed there."""

    def __init__(self, reply: Reply, running: Running) -> None:
        self._reply = reply
        self._running = running
        self.status = 0
        self.lead = self.tail = b""

    async def head(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        self.status = status
        await self._reply.head(status, headers)

    async def body(self, piece: bytes) -> None:
        if not self.lead:
            self.lead = piece[:TAIL_BYTES]
        self.tail = piece[-TAIL_BYTES:] if len(piece) >= TAIL_BYTES else (self.tail + piece)[-TAIL_BYTES:]
        self._running.take(piece)
        await self._reply.body(piece)

    async def finish(self) -> None:
        await self._reply.finish()


async def _pass(exchange: Exchange, reply: _Counted) -> None:
    headers = [
        (name.decode("latin-1"), value.decode("latin-1")) for name, value in exchange.headers if name in PASSED_HEADERS
    ]
    await reply.head(exchange.status, headers)
    async for piece in exchange.body():
        await reply.body(piece)
    await reply.finish()


def _code(reason: Exception) -> str:
    if isinstance(reason, HostFailed):
        return reason.error.code
    return reason.code if isinstance(reason, MeshnodeError) else "engine-refused"


async def _refuse(reply: _Counted, reason: Exception) -> None:
    """The error in llama-server's own form: the asking gateway words it for its caller."""
    retry_after = ""
    if isinstance(reason, EngineRefused):
        status, error, retry_after = reason.status, reason.error, reason.retry_after
    else:
        fault = reason.error if isinstance(reason, HostFailed) else reason
        assert isinstance(fault, MeshnodeError)
        if isinstance(fault, UpstreamBroken) and not fault.reached:
            # It has died a moment ago, and is started again: the asking gateway may wait for that.
            fault = ModelLoading("the engine has to be started again", retry_after_s=2)
        status = fault.http_status
        error = {"code": status, "message": fault.message, "type": fault.code.replace("-", "_")}
        if fault.retry_after_s is not None:
            retry_after = str(max(1, math.ceil(fault.retry_after_s)))
    body = encode({"error": error})
    headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
    await reply.head(status, [*headers, *([("retry-after", retry_after)] if retry_after else [])])
    await reply.body(body)
    await reply.finish()
