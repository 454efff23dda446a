"""The endpoints that a model answers: read the request, find the model, wait for a slot, pass the answer on.

The gateway forwards; it does not translate. A streamed answer passes byte for byte; a plain one is put together from
the stream (see aggregate.py for the reason). Everything a caller may reach stands in `ENDPOINTS`: llama-server has
more (slots, adapters, its router), and none of that is reachable from here.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from meshnode.api.aggregate import AGGREGATES, EventReader, StreamFailed
from meshnode.api.answer import SSE_HEADERS, TAIL_BYTES, Answer, CallerLeft, Send, encode
from meshnode.api.body import JsonObject, parse_object
from meshnode.api.dialects import dialect_of, foreign_error_body
from meshnode.api.gate import Gates
from meshnode.api.multipart import model_field
from meshnode.api.served import Served, find_served
from meshnode.api.upstream import Exchange, UpstreamBroken
from meshnode.errors import BadRequest, BodyTooLarge, EngineCrashed, MeshnodeError, ModelLoading, RequestTimeout
from meshnode.telemetry import LOG

Receive = Callable[[], Awaitable[dict[str, Any]]]
Scope = dict[str, Any]

BODY_PAUSE_S = 30
MAX_ANSWER_BYTES = 64 << 20
MAX_EVENT_BYTES = 16 << 20
STATUS_CALLER_LEFT = 499
"""nginx's number for a caller that left; it appears in the log and the metrics only."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path that is forwarded. `takes_slot` is False for those that only count or format; `needs` is what a
    model must be able to do, in the words of its capabilities.
    """

    path: str
    takes_slot: bool = True
    multipart: bool = False
    needs: str = ""


ENDPOINTS = {
    endpoint.path: endpoint
    for endpoint in (
        Endpoint("/v1/chat/completions", needs="completion"),
        Endpoint("/v1/completions", needs="completion"),
        Endpoint("/v1/responses", needs="completion"),
        Endpoint("/v1/messages", needs="completion"),
        Endpoint("/v1/embeddings", needs="embedding"),
        Endpoint("/v1/rerank", needs="rerank"),
        Endpoint("/v1/audio/transcriptions", multipart=True),
        Endpoint("/v1/messages/count_tokens", takes_slot=False),
        Endpoint("/v1/chat/completions/input_tokens", takes_slot=False),
        Endpoint("/v1/responses/input_tokens", takes_slot=False),
    )
}


@dataclass(frozen=True, slots=True)
class Request:
    """A request that was read. `rebuild` says that a plain answer is put together from a stream."""

    endpoint: Endpoint
    model: Served
    caller: str
    body: bytes
    content_type: str
    stream: bool
    rebuild: bool


@dataclass(slots=True)
class Record:
    """What is remembered of one request, for the log, the metrics and the console. Never a prompt or an answer."""

    id: str
    endpoint: str
    started_at: float
    model: str = ""
    status: int = 0
    stream: bool = False
    error: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    queued_s: float = 0.0
    first_byte_s: float | None = None
    total_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the gateway; see the settings of the same names."""

    max_body_bytes: int
    ping_interval_s: float
    aliases: Mapping[str, str] = field(default_factory=dict)


class Inference:
    """Answers the requests to `ENDPOINTS`. `models` gives a fresh snapshot; `finished` gets each Record at its end."""

    def __init__(
        self,
        *,
        models: Callable[[], Sequence[Served]],
        gates: Gates,
        limits: Limits,
        headers: Mapping[str, str],
        finished: Callable[[Record], None],
    ) -> None:
        self._models = models
        self._gates = gates
        self._limits = limits
        self._headers = headers
        self._finished = finished

    async def handle(self, scope: Scope, receive: Receive, send: Send, *, request_id: str, origin: str | None) -> None:
        """Answer one POST. Never raises for what the caller or the engine did."""
        endpoint = ENDPOINTS[scope["path"]]
        record = Record(request_id, endpoint.path, time.monotonic())
        headers = {**self._headers, "x-meshnode-request-id": request_id}
        if origin:
            headers |= {"access-control-allow-origin": origin, "vary": "origin"}
        answer = Answer(send, dialect=dialect_of(endpoint.path), headers=headers, request_id=request_id)
        try:
            request = await self._read(endpoint, scope, receive)
            await unless_caller_leaves(receive, self._answer(request, answer, record))
        except CallerLeft:
            record.status = STATUS_CALLER_LEFT
        except MeshnodeError as error:
            record.error = error.code
            await answer.fail(error)
        except Exception:
            LOG.exception("request %s failed", request_id)
            record.error = "internal"
            await answer.fail(MeshnodeError("this is a fault of meshnode; its log has the details"))
        finally:
            answer.stop_heartbeat()
            self._close(record, answer)

    def _close(self, record: Record, answer: Answer) -> None:
        record.status = record.status or answer.status or STATUS_CALLER_LEFT
        record.total_s = time.monotonic() - record.started_at
        if answer.first_byte_at is not None:
            record.first_byte_s = answer.first_byte_at - record.started_at
        record.tokens_in, record.tokens_out = token_counts(answer.lead + answer.tail)
        self._finished(record)

    # --- reading --------------------------------------------------------------------------------------------

    async def _read(self, endpoint: Endpoint, scope: Scope, receive: Receive) -> Request:
        headers = dict(scope["headers"])
        raw = await read_body(receive, headers.get(b"content-length"), self._limits.max_body_bytes)
        content_type = headers.get(b"content-type", b"").decode("latin-1")
        caller = f"{(scope.get('client') or ('',))[0]} {hash(headers.get(b'authorization', headers.get(b'x-api-key')))}"
        if endpoint.multipart:
            name = model_field(raw, content_type)
            return Request(endpoint, self._find(name, endpoint), caller, raw, content_type, stream=False, rebuild=False)
        found = await parse_object(raw)
        stream = found.members.get("stream") is True
        rebuild = not stream and endpoint.path in AGGREGATES
        request = Request(
            endpoint, self._find(found.members.get("model"), endpoint), caller, raw, "application/json", stream, rebuild
        )
        return replace(request, body=_as_stream(found, endpoint)) if rebuild else request

    def _find(self, name: object, endpoint: Endpoint) -> Served:
        model = find_served(name, self._models(), self._limits.aliases)
        if endpoint.needs and model.capabilities and endpoint.needs not in model.capabilities:
            able = ", ".join(model.capabilities)
            fix = f"send it to a model that can do {endpoint.needs}: GET /v1/models shows what each one can"
            raise BadRequest(f"{endpoint.path} needs {endpoint.needs}, and {model.id} can do {able}", fix=fix)
        return model

    # --- answering ------------------------------------------------------------------------------------------

    async def _answer(self, request: Request, answer: Answer, record: Record) -> None:
        record.model, record.stream = request.model.id, request.stream
        if request.stream:
            answer.start_heartbeat(self._limits.ping_interval_s)
        if not request.endpoint.takes_slot:
            return await self._forward(request, answer)
        async with self._gates.slot(request.model.id, slots=request.model.slots, caller=request.caller):
            record.queued_s = time.monotonic() - record.started_at
            await self._forward(request, answer)

    async def _forward(self, request: Request, answer: Answer) -> None:
        # Looked up again: while the request waited, the engine may have moved to another address.
        model = find_served(request.model.id, self._models(), {})
        if model.connect is None:
            raise ModelLoading(f"{model.id} is {model.state}", retry_after_s=2)
        exchange = await Exchange.send(
            model.connect,
            "POST",
            request.endpoint.path,
            api_key=model.api_key,
            body=request.body,
            content_type=request.content_type,
        )
        try:
            if exchange.status >= 400:
                await self._pass_error(exchange, answer)
            elif request.rebuild:
                await _rebuild(exchange, answer, request.endpoint)
            else:
                await _pass(exchange, answer)
        finally:
            exchange.close()

    async def _pass_error(self, exchange: Exchange, answer: Answer) -> None:
        """The engine's refusal, in the caller's dialect. While it starts again it says 503: that is ours to word."""
        raw = await exchange.read_all(MAX_ANSWER_BYTES)
        if exchange.status == 503:
            raise ModelLoading("the engine has just been started again", retry_after_s=2)
        if exchange.status in (401, 403):
            raise EngineCrashed(f"llama-server refused the gateway with status {exchange.status}")
        try:
            error = json.loads(raw)["error"]
        except (ValueError, KeyError, TypeError, RecursionError):
            error = None
        if not isinstance(error, dict):
            error = {"message": raw[:500].decode("utf-8", "replace")}
        await _report(answer, exchange.status, error)


async def _pass(exchange: Exchange, answer: Answer) -> None:
    """Forward status, content type and body as they come."""
    content_type = (exchange.header(b"content-type") or b"application/json").decode("latin-1")
    if content_type.startswith("text/event-stream"):
        if not answer.started:
            await answer.start(exchange.status, SSE_HEADERS)
    elif not answer.started:
        await answer.whole(exchange.status, await exchange.read_all(MAX_ANSWER_BYTES), content_type)
        return
    async for piece in _whole_events(exchange):
        await answer.write(piece)
    await answer.finish()


async def _whole_events(exchange: Exchange) -> AsyncIterator[bytes]:
    """The stream cut only between events: one that never becomes whole would spoil the error event that follows."""
    rest = b""
    async for piece in exchange.body():
        events, end, rest = (rest + piece).rpartition(b"\n\n")
        if end:
            yield events + end
        if len(rest) > MAX_EVENT_BYTES:
            raise UpstreamBroken("an event of the stream is too large")
    if rest:
        yield rest


async def _rebuild(exchange: Exchange, answer: Answer, endpoint: Endpoint) -> None:
    """Put a plain answer together from the stream."""
    aggregate = AGGREGATES[endpoint.path]()
    events = EventReader(MAX_EVENT_BYTES)
    try:
        async for piece in exchange.body():
            for event in events.feed(piece):
                aggregate.take(event)
    except StreamFailed as failure:
        status = failure.error.get("code")
        await _report(answer, status if isinstance(status, int) and 400 <= status < 600 else 500, failure.error)
        return
    except (KeyError, TypeError, AttributeError) as fault:
        raise UpstreamBroken(f"an event of the stream has an unknown shape ({fault})") from None
    body = encode(aggregate.result())
    answer.tail = body[-TAIL_BYTES:]
    await answer.whole(200, body, "application/json")


async def _report(answer: Answer, status: int, error: dict[str, Any]) -> None:
    message = str(error.get("message", "the engine gave no reason"))
    code = str(error.get("type", "error"))
    if answer.started:
        fault = BadRequest(message) if status < 500 else EngineCrashed(message)
        await answer.fail(fault)
        return
    body = foreign_error_body(message, status, code, answer.dialect, answer.request_id)
    extra = {name: error[name] for name in ("n_prompt_tokens", "n_ctx") if name in error}
    inner = body["error"]
    if extra and isinstance(inner, dict):
        inner |= extra
    await answer.json(status, body)


# --- pieces that know nothing of the gateway ------------------------------------------------------------------


async def read_body(receive: Receive, announced: bytes | None, limit_bytes: int) -> bytes:
    """The whole body of a request.

    Raises BodyTooLarge beyond the limit, before reading when the length was announced; RequestTimeout when the
    caller pauses for too long; CallerLeft when the connection ends.
    """
    too_large = announced is not None and announced.isdigit() and int(announced) > limit_bytes
    pieces: list[bytes] = []
    size = 0
    while not too_large:
        try:
            async with asyncio.timeout(BODY_PAUSE_S):
                message = await receive()
        except TimeoutError:
            raise RequestTimeout(f"{size} bytes came, then nothing for {BODY_PAUSE_S} s") from None
        if message["type"] == "http.disconnect":
            raise CallerLeft
        pieces.append(message["body"])
        size += len(message["body"])
        too_large = size > limit_bytes
        if not message["more_body"]:
            break
    if too_large:
        raise BodyTooLarge(f"at most {limit_bytes} bytes", fix="send less, or raise MESHNODE_MAX_BODY on the node")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def unless_caller_leaves(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Run `work`; cancel it and raise CallerLeft as soon as the caller's connection ends."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise CallerLeft
        task.result()
    finally:
        watcher.cancel()
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _as_stream(found: JsonObject, endpoint: Endpoint) -> bytes:
    changes: dict[str, object] = {"stream": True}
    if endpoint.path == "/v1/chat/completions":
        given = found.members.get("stream_options")
        changes["stream_options"] = {**(given if isinstance(given, dict) else {}), "include_usage": True}
    return found.replaced(**changes)


_COUNT = re.compile(
    rb'"(prompt_tokens|input_tokens|cache_read_input_tokens|prompt_n|cache_n'
    rb'|completion_tokens|output_tokens|predicted_n)":\s*(\d{1,9})\b'
)


def token_counts(text: bytes) -> tuple[int, int]:
    """(in, out) as an answer reports them, in whichever dialect; 0 where it says nothing.

    Tokens that came from the prompt cache are counted: /v1/messages and llama-server's own timings list them apart.
    """
    last = {name: int(value) for name, value in _COUNT.findall(text)}

    def sum_of(*names: bytes) -> int:
        return sum(last.get(name, 0) for name in names)

    tokens_in = sum_of(b"prompt_tokens") or sum_of(b"input_tokens", b"cache_read_input_tokens")
    tokens_out = sum_of(b"completion_tokens") or sum_of(b"output_tokens") or sum_of(b"predicted_n")
    return tokens_in or sum_of(b"prompt_n", b"cache_n"), tokens_out
