"""What this node does with a request of another node: answer it with its own engine, or say at once that it cannot.

A request of a peer is never sent on to a third node, so no loop can form. It waits in the same queue as the requests
of our own callers, and its turn is counted against the peer, so that one busy node does not crowd out the others.
The bytes of the engine pass untouched: the gateway that asked reads them. Nothing is buffered beyond what one read of
the engine gave, as the next read waits until the peer's stream took it.

What a peer may ask for is a matter of Terms: those of members are here, those of strangers in guest_requests.py.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from meshnode.api.activity import Activity, Running
from meshnode.api.answer import encode
from meshnode.api.attempt import EngineRefused, Errand, HostFailed, exchange_with, is_part
from meshnode.api.body import parse_object
from meshnode.api.charging import Charge, Payer
from meshnode.api.endpoints import PEER_ENDPOINTS, Endpoint, allowed
from meshnode.api.gate import Gates
from meshnode.api.multipart import model_field
from meshnode.api.record import STATUS_CALLER_LEFT, Record, token_counts
from meshnode.api.request import Limits
from meshnode.api.served import Host, Served, find_served
from meshnode.api.upstream import Exchange, UpstreamBroken
from meshnode.core.guests import Stranger, Visit
from meshnode.errors import BodyTooLarge, EndpointNotFound, MeshnodeError, ModelLoading, ModelNotFound, NodeStopping

TAIL_BYTES = 2048
PASSED_HEADERS = (b"content-type", b"content-length")


class PeerRequest(Protocol):
    """A request as it came through a tunnel, already admitted. `peer` is the 32-byte id of the node that asks, which
    pays by `payment`, if at all.
    """

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
    @property
    def payment(self) -> Payer | None: ...


class Reply(Protocol):
    """Where the answer goes. Each call waits until the stream can take more, and raises OSError when it is gone."""

    async def head(self, status: int, headers: Sequence[tuple[str, str]], /) -> None: ...
    async def body(self, piece: bytes, /) -> None: ...
    async def finish(self) -> None: ...


class Digest(Protocol):
    """A hash of hashlib."""

    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


@dataclass(slots=True, eq=False)
class Admitted:
    """A request that may be answered: what is sent to the engine, and in whose turn. `model` is the name that it gives.

    Of a stranger: who it is, and the visit that was granted. `asked` says that its turn has come, `output` is the hash
    of what it got, and `charge` what it costs.
    """

    endpoint: Endpoint
    body: bytes
    model: object
    ahead: bool = False
    guest: Stranger | None = None
    visit: Visit | None = None
    asked: bool = False
    output: Digest | None = None
    charge: Charge | None = None


class Terms(Protocol):
    """On which terms peers are answered."""

    async def admit(self, request: PeerRequest) -> Admitted:
        """Judge a request. Raises MeshnodeError for one that gets no answer; waits no more once it is granted."""
        ...

    def ended(self, admitted: Admitted | None, record: Record, pieces: int) -> None:
        """A request is over: refused if it was never admitted. `pieces` are the events of its answer."""
        ...


class MemberTerms:
    """Those of the members of a private mesh: the endpoints of callers, and those that continue an answer."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    async def admit(self, request: PeerRequest) -> Admitted:
        """See Terms. Raises EndpointNotFound, BodyTooLarge, BadRequest."""
        if not allowed(request.method, request.path):
            raise EndpointNotFound(f"{request.method} {request.path[:200]}")
        endpoint = PEER_ENDPOINTS[request.path]
        if len(request.body) > self._limits.max_body_bytes:
            raise BodyTooLarge(f"at most {self._limits.max_body_bytes} bytes")
        if endpoint.multipart:
            name: object = model_field(request.body, request.content_type)
        else:
            name = (await parse_object(request.body)).members.get("model")
        return Admitted(endpoint, request.body, name, ahead=is_part(request.request_id))

    def ended(self, admitted: Admitted | None, record: Record, pieces: int) -> None:
        """Nothing is kept of it but its Record."""


class PeerRequests:
    """Answers the requests of peers. `models` gives a fresh snapshot; `activity` knows each request as long as it is
    under way, and `finished` gets its Record at its end. Without `terms` they are those of members, with `limits`.
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
        terms: Terms | None = None,
    ) -> None:
        self._models = models
        self._gates = gates
        self._finished = finished
        self._stopping = stopping
        self._activity = activity or Activity()
        self._terms = terms or MemberTerms(limits)

    async def answer(self, request: PeerRequest, reply: Reply) -> None:
        """Answer one request.

        Raises UpstreamBroken when the engine fails after the head went out: the caller of this method resets the
        stream then, and the asking gateway continues elsewhere. OSError and cancellation pass through.
        """
        record = Record(request.request_id, request.path, time.monotonic(), peer=request.peer.hex())
        running = self._activity.begin(record)
        began = _Counted(reply, running)
        admitted: Admitted | None = None
        try:
            if self._stopping():
                raise NodeStopping(retry_after_s=5)
            admitted = await self._terms.admit(request)
            began.output = admitted.output
            if admitted.charge is None:
                await self._answer(request, admitted, began, record)
            else:
                await self._sell(request, admitted, admitted.charge, began, record)
        except (MeshnodeError, EngineRefused, HostFailed) as reason:
            record.error = _code(reason)
            if began.status:
                raise
            began.output = None
            await _refuse(began, reason)
        except asyncio.CancelledError:
            record.error = "cancelled"
            raise
        finally:
            record.status = began.status or STATUS_CALLER_LEFT
            record.total_s = time.monotonic() - record.started_at
            record.tokens_in, record.tokens_out = token_counts(began.lead + began.tail)
            self._terms.ended(admitted, record, running.pieces)
            self._activity.end(running)
            self._finished(record)

    async def _sell(
        self, request: PeerRequest, admitted: Admitted, charge: Charge, began: _Counted, record: Record
    ) -> None:
        model, host = self.find(admitted.model)
        try:
            async with charge.open(model.id, bytes.fromhex(host.content_hash)):
                await self._answer(request, admitted, charge.over(began), record)
        finally:
            record.cost_micros = charge.charged_micros

    async def _answer(self, request: PeerRequest, admitted: Admitted, reply: Reply, record: Record) -> None:
        model, host = self.find(admitted.model)
        record.model = model.id
        errand = Errand(
            model.id,
            admitted.endpoint,
            admitted.body,
            request.content_type,
            request.peer.hex(),
            continues=admitted.ahead,
            guest=admitted.guest,
        )

        def here() -> Host | None:
            admitted.asked = True
            return next((found.local for found in self._models() if found.id == model.id), None)

        async with exchange_with(here, errand, here=True, gates=self._gates, slots=host.slots) as exchange:
            record.queued_s = time.monotonic() - record.started_at
            await _pass(exchange, reply)

    def find(self, name: object) -> tuple[Served, Host]:
        """The model of that name and our own host of it. Other hosts do not count: nothing is sent on.

        Raises what find_served raises.
        """
        own = [
            Served(model.id, model.state, model.names, host.slots, capabilities=model.capabilities, hosts=(host,))
            for model in self._models()
            if (host := model.local) is not None
        ]
        if not own:  # what others of the mesh have is for the asking node to know
            raise ModelNotFound("this node serves no model")
        model = find_served(name, own, {})
        host = model.local
        if host is None:
            raise ModelNotFound(f"{model.id} is not served here")
        return model, host


class _Counted:
    """A Reply that remembers its status and its first and last bytes, and tells `running` what goes out: an event that
    begins in one read and ends in the next may be missed there. `output` is told all of it."""

    def __init__(self, reply: Reply, running: Running) -> None:
        self._reply = reply
        self._running = running
        self.status = 0
        self.lead = self.tail = b""
        self.output: Digest | None = None

    async def head(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        self.status = status
        await self._reply.head(status, headers)

    async def body(self, piece: bytes) -> None:
        if not self.lead:
            self.lead = piece[:TAIL_BYTES]
        self.tail = piece[-TAIL_BYTES:] if len(piece) >= TAIL_BYTES else (self.tail + piece)[-TAIL_BYTES:]
        self._running.take(piece)
        await self._reply.body(piece)
        if self.output is not None:
            self.output.update(piece)

    async def finish(self) -> None:
        await self._reply.finish()


async def _pass(exchange: Exchange, reply: Reply) -> None:
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
