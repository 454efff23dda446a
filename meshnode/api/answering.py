"""One request on its way to a whole answer, over as many hosts as it takes.

Each turn of the loop is one attempt at one host. As long as nothing of the answer has gone out, an attempt sends the
request as it is, and at most MAX_HOSTS are tried. Once something has gone out, an attempt continues the answer from
there, on a host with the very same weights. A plain answer is collected from the same stream, so it loses nothing
either; where it cannot be continued it begins anew, as its caller has seen nothing yet. When no host is left, but one
of them is being rebuilt, the request waits for it (comebacks.py).

No attempt leaves the radius of the request. The caller is told the furthest radius of all hosts that took part: in the
head, or where that went out before (a sign of life, or a host that was lost since), in a comment of the stream. So it
is with what the answer cost, if hosts were paid for it (bill.py).
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from meshnode.api.aggregate import StreamFailed
from meshnode.api.answer import Answer
from meshnode.api.attempt import (
    FAILURES,
    EngineRefused,
    Errand,
    Failure,
    HostFailed,
    exchange_with,
    may_go_elsewhere,
    tells_against,
)
from meshnode.api.bill import Bill
from meshnode.api.candidates import Candidates
from meshnode.api.comebacks import Comebacks
from meshnode.api.continuation import Continuation, can_continue, end_without_host, prepare
from meshnode.api.delivery import END_MARKS, Collecting, Journal, Passing, StallWatch, whole_events
from meshnode.api.dialects import foreign_error_body
from meshnode.api.gate import Gates
from meshnode.api.joining import Differs
from meshnode.api.record import Record
from meshnode.api.request import Limits, Request
from meshnode.api.resume import CannotContinue, Method
from meshnode.api.served import Host
from meshnode.api.upstream import Exchange, UpstreamBroken
from meshnode.core.radius import furthest
from meshnode.errors import BadRequest, EngineCrashed, ModelLoading
from meshnode.telemetry import LOG

MAX_HOSTS = 3
"""Before the first byte. A request that three hosts could not answer is likely to be at fault itself; those that only
had too much to do are not counted.
"""
MAX_HOSTS_EVER = 10
"""With those that continue it. None is asked again that has failed this request, unless it was rebuilt since."""
MAX_ANSWER_BYTES = 64 << 20
BUSY_PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
"""Waits for the last host that can end an answer while it is busy: all answers of a lost node come to it at once."""
NODE_DIGITS = 10


class Answering:
    """The run of one request. `run` returns when the caller has its answer, be it an error of the engine."""

    def __init__(
        self,
        request: Request,
        answer: Answer,
        record: Record,
        *,
        gates: Gates,
        candidates: Candidates,
        limits: Limits,
        preparing: asyncio.Semaphore,
        bill: Bill,
    ) -> None:
        self._request = request
        self._bill = bill
        self._answer = answer
        self._record = record
        self._gates = gates
        self._candidates = candidates
        self._limits = limits
        self._preparing = preparing
        self._path = request.endpoint.path
        self._sink = Collecting(answer, self._path) if request.rebuild else Passing(answer)
        self._journal = Journal()
        self._tried: set[str] = set()
        self._too_busy: set[str] = set()
        self._told_radius = ""
        self._comebacks = Comebacks(lambda: candidates.hosts(request))
        self._weights = ""
        self._only_host: Host | None = None
        self._method: Method | None = None
        self._useless: set[Method] = set()
        self._pauses = iter(BUSY_PAUSES_S)

    async def run(self) -> None:
        """Answer the request. Raises MeshnodeError when no host could, CallerLeft when nobody takes the answer."""
        self._record.model, self._record.stream = self._request.model.id, self._request.stream
        if self._request.stream:
            self._answer.start_heartbeat(self._limits.ping_interval_s)
        failure: Failure | None = None
        while (host := self._next_host() or await self._host_that_comes_back()) is not None:
            had_bytes = self._journal.size_bytes
            begun = had_bytes > 0
            if failure is not None and not begun:
                self._record.retries += 1
            self._tried.add(host.node)
            try:
                with self._candidates.trying(self._request, host):
                    await self._attempt(host)
                self._candidates.succeeded(self._request, host)
                self._only_host = None if begun else host
                return
            except FAILURES as failed:
                reason = self._reason(failed)
                if begun and isinstance(reason, EngineRefused | Differs) and self._other_method(host):
                    continue
                if begun and await self._waited_for(host, reason):
                    continue
                if getattr(reason, "busy", False):
                    self._too_busy.add(host.node)
                news = self._comebacks.failed(host, reason, gave=self._journal.size_bytes > had_bytes)
                # A refusal to go on is no answer to the request: what counts is that the first host broke off.
                if not (begun and isinstance(reason, EngineRefused)):
                    failure = reason
                    if not may_go_elsewhere(reason):
                        break
                if not news:
                    continue
                if tells_against(reason):
                    self._candidates.failed(self._request, host)
                # Words of an engine may quote the prompt, which is in no log.
                what = f"{type(reason).__name__} {getattr(reason, 'status', '')}".rstrip()
                LOG.info("%s failed request %s: %s", host.node[:NODE_DIGITS] or "this node", self._record.id, what)
            finally:
                self._bill.leave("cancelled")
        if ending := self._journal.size_bytes and end_without_host(self._request, self._journal.read()):
            await self._sink.take(ending)
            if self._bill.has_payments:
                await self._tell_cost()
            await self._sink.end()
            return
        self._record.resume_failed = bool(self._journal.size_bytes)
        await self._give_up(failure)

    @property
    def of_one_host(self) -> tuple[bytes, Host] | None:
        """The whole stream of events, and the one host that gave it; None where it was another kind of answer."""
        if self._only_host is None or not self._journal.size_bytes or not self._journal.whole:
            return None
        return self._journal.read(), self._only_host

    def _next_host(self) -> Host | None:
        """Whom to ask now: anyone who serves the model, or once the answer has begun anyone with the same weights."""
        if self._journal.size_bytes:
            if found := self._successors():
                return found[0]
            if not (self._request.rebuild and (host := self._untried())):
                return None
            self._begin_anew()
            return host
        return self._untried()

    def _untried(self) -> Host | None:
        """Whoever serves the model, and was not asked yet."""
        if not self._may_try_another():
            return None
        return next(iter(self._candidates.order(self._request, without=self._tried)), None)

    def _may_try_another(self) -> bool:
        return len(self._tried - self._too_busy) < MAX_HOSTS and len(self._tried) < MAX_HOSTS_EVER

    async def _host_that_comes_back(self) -> Host | None:
        """No host is left: one that is being rebuilt, with the same weights once the answer has begun."""
        if not self._journal.size_bytes:
            return await self._comebacks.next()
        may_go_on = self._weights and self._journal.whole and can_continue(self._request, self._journal.read())
        if may_go_on and (host := await self._comebacks.next(self._weights)):
            return host
        if not self._request.rebuild:
            return None
        if host := await self._comebacks.next():
            self._begin_anew()
        return host

    def _successors(self) -> list[Host]:
        if not self._weights or not self._journal.whole or len(self._tried) >= MAX_HOSTS_EVER:
            return []
        return self._candidates.order(self._request, without=self._tried, content_hash=self._weights)

    def _other_method(self, host: Host) -> bool:
        """The text so far was no use to this engine: whether the same host may be asked in another way."""
        if self._method is not Method.CONTINUE:
            return False
        self._useless.add(self._method)
        self._tried.discard(host.node)
        return True

    async def _waited_for(self, host: Host, reason: Failure) -> bool:
        """Pause if this host is busy and no other can end the answer; whether it is worth asking again."""
        if not getattr(reason, "busy", False) or self._successors():
            return False
        pause_s = next(self._pauses, None)
        if pause_s is None:
            return False
        await asyncio.sleep(pause_s)
        self._tried.discard(host.node)
        return True

    def _begin_anew(self) -> None:
        assert isinstance(self._sink, Collecting)
        self._sink.restart()
        self._journal.clear()

    # --- one attempt ----------------------------------------------------------------------------------------

    async def _attempt(self, host: Host) -> None:
        request = self._request
        # Whoever is asked can read the prompt, whether or not an answer comes of it.
        self._record.reached = furthest((self._record.reached or host.radius, host.radius))
        continuation = await self._continuation(host) if self._journal.size_bytes else None
        if continuation is not None and continuation.body is None:  # nothing but the end is missing
            return await self._take_all(continuation)
        body = continuation.body if continuation and continuation.body else request.body_for(host)
        payment = None
        if host.connect_paid is not None and request.endpoint.takes_slot:
            payment = await self._bill.begin(request, host, body)
        errand = Errand(
            request.model.id,
            request.endpoint,
            body,
            request.content_type,
            request.caller,
            self._record.id,
            continues=continuation is not None,
        )
        async with exchange_with(
            lambda: self._candidates.find(request, host),
            errand,
            here=host.here,
            gates=self._gates,
            slots=host.slots,
            may_leave=self._may_leave_silent,
            payment=payment,
        ) as exchange:
            if continuation is None:
                self._record.queued_s = time.monotonic() - self._record.started_at
            self._name(host)
            if (exchange.header(b"content-type") or b"").startswith(b"text/event-stream"):
                await self._stream(exchange, continuation)
            else:
                await self._one_piece(exchange)

    def _name(self, host: Host) -> None:
        """Tell who answers, in the head if that has not gone yet."""
        self._weights = host.content_hash
        record = self._record
        record.node, record.here = host.node, host.here
        record.radius = furthest((record.radius or host.radius, host.radius))
        if self._answer.started:
            return
        if not host.here:
            self._answer.add_headers(x_meshnode_node=host.node[:NODE_DIGITS])
        self._answer.add_headers(x_meshnode_radius=record.radius)
        self._told_radius = record.radius

    async def _one_piece(self, exchange: Exchange) -> None:
        """An answer that is no stream of events."""
        content_type = (exchange.header(b"content-type") or b"application/json").decode("latin-1")
        body = await exchange.read_all(MAX_ANSWER_BYTES)
        if self._answer.started:
            raise UpstreamBroken("a stream was asked for, and none came")
        if self._request.rebuild:
            raise UpstreamBroken("the answer has an unknown form")
        self._answer.taken(body)
        if self._bill.has_payments:
            await self._tell_cost()
        await self._answer.whole(exchange.status, body, content_type)

    async def _stream(self, exchange: Exchange, continuation: Continuation | None) -> None:
        watch = StallWatch(exchange, self._limits.stall_s, self._may_leave)
        mark = END_MARKS.get(self._path, b"")
        whole = False
        try:
            async for events in whole_events(exchange, watch.touch):
                whole = whole or mark in events
                await self._take(events, continuation)
        except UpstreamBroken:
            if not whole:
                raise
        finally:
            watch.close()
        if not whole:
            raise UpstreamBroken("the stream ended before the answer was complete")
        if self._bill.has_payments:
            await self._tell_cost()
        await self._sink.end()

    async def _tell_cost(self) -> None:
        """What the answer cost: in the head, or at the end of a stream."""
        self._bill.leave("whole")
        await self._bill.settled()
        cost = self._record.cost_micros
        if not self._answer.started:
            self._answer.add_headers(x_meshnode_cost_micros=str(cost))
        elif not self._request.rebuild:
            await self._answer.write(b": meshnode-cost-micros %d\n\n" % cost)

    def _reason(self, failed: Failure) -> Failure:
        """Why an attempt failed. What broke because it is not paid is no fault of the line."""
        refusal = self._bill.refusal
        self._bill.leave("broken")
        return failed if refusal is None else HostFailed(refusal, cool_down=True)

    def _may_leave_silent(self) -> bool:
        """As `_may_leave`, also while nothing has come yet."""
        if self._journal.size_bytes:
            return self._may_leave()
        return self._may_try_another() and bool(self._candidates.order(self._request, without=self._tried))

    def _may_leave(self) -> bool:
        """Whether a silent host can be left for another that goes on with the answer."""
        return bool(self._successors()) and can_continue(self._request, self._journal.read())

    async def _take(self, events: bytes, continuation: Continuation | None) -> None:
        if continuation is not None:
            events = continuation.join(events)
            if not events:
                return
            await self._mark(continuation)
        if self._told_radius != self._record.radius and not self._request.rebuild:
            self._told_radius = self._record.radius
            await self._answer.write(b": meshnode-radius %s\n\n" % self._told_radius.encode())
        self._journal.keep(events)
        await self._sink.take(events)

    # --- going on elsewhere ---------------------------------------------------------------------------------

    async def _continuation(self, host: Host) -> Continuation:
        """How this host goes on where the last one broke off. Raises HostFailed when it cannot."""
        try:
            async with self._preparing:
                found = await prepare(
                    self._request,
                    self._journal.read(),
                    host,
                    finder=self._candidates,
                    gates=self._gates,
                    without=self._useless,
                )
        except CannotContinue as reason:
            raise HostFailed(EngineCrashed(str(reason)), cool_down=False) from None
        self._method = found.method
        return found

    async def _mark(self, continuation: Continuation) -> None:
        """Before the first event of another host: a comment in a stream, a header of a plain answer."""
        if continuation.marked:
            return
        continuation.marked = True
        self._record.resumed += 1
        if self._request.rebuild:
            self._answer.add_headers(x_meshnode_resumed=str(self._record.resumed))
            return
        farther = ""
        if self._told_radius != self._record.radius:
            self._told_radius = self._record.radius
            farther = f" radius={self._told_radius}"
        await self._answer.write(f": meshnode-resumed {self._record.resumed}{farther}\n\n".encode())

    async def _take_all(self, continuation: Continuation) -> None:
        """The end of an answer that was complete but for its form."""
        await self._take(b"", continuation)
        if self._bill.has_payments:
            await self._tell_cost()
        await self._sink.end()

    # --- the end of all hosts -------------------------------------------------------------------------------

    async def _give_up(self, failure: Failure | None) -> None:
        """Tell the caller, in its dialect, what the last host said."""
        if self._record.reached and not self._answer.started:
            self._answer.add_headers(x_meshnode_radius=self._record.reached)
        match failure:
            case None if beyond := self._candidates.refusal(self._request):
                raise beyond
            case None:
                raise ModelLoading(f"no node serves {self._request.model.id} now", retry_after_s=2)
            case EngineRefused():
                await self._report(failure.status, failure.error, failure.retry_after)
            case StreamFailed() if self._answer.started and not self._request.rebuild:
                self._record.error = EngineCrashed.code
                await self._answer.write(failure.event)
                await self._answer.finish()
            case StreamFailed():
                await self._report(failure.status, failure.error)
            case HostFailed():
                raise failure.error
            case _:
                raise failure

    async def _report(self, status: int, error: dict[str, Any], retry_after: str = "") -> None:
        answer = self._answer
        message = str(error.get("message", "the engine gave no reason"))
        if answer.started:
            fault = BadRequest(message) if status < 500 else EngineCrashed(message)
            self._record.error = fault.code
            await answer.fail(fault)
            return
        code = str(error.get("type", "error"))
        body = foreign_error_body(message, status, code, answer.dialect, answer.request_id)
        extra = {name: error[name] for name in ("n_prompt_tokens", "n_ctx") if name in error}
        inner = body["error"]
        if extra and isinstance(inner, dict):
            inner |= extra
        await answer.json(status, body, {"retry-after": retry_after} if retry_after else {})
