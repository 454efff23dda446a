"""The endpoints that a model answers: read the request, order the hosts, try them, and deliver one whole answer.

The gateway forwards; it does not translate. A streamed answer passes byte for byte; a plain one is put together from
the stream (see aggregate.py for the reason). Until something of the answer has gone out the next host may be tried
(attempt.py says after what); afterwards the answer is continued where it broke off (resume.py says how).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from meshnode.api.access import cors_headers
from meshnode.api.activity import Activity
from meshnode.api.answer import Answer, CallerLeft, Send
from meshnode.api.answering import Answering
from meshnode.api.bill import Bill
from meshnode.api.candidates import Candidates
from meshnode.api.delivery import END_MARKS
from meshnode.api.dialects import dialect_of
from meshnode.api.endpoints import ENDPOINTS
from meshnode.api.gate import Gates
from meshnode.api.output_hash import OutputHash
from meshnode.api.paying import Affording, Purse
from meshnode.api.reaching import OF_OWNER, asked_radius
from meshnode.api.record import STATUS_CALLER_LEFT, Record, token_counts
from meshnode.api.request import Limits, Receive, Request, Scope, read_request, unless_caller_leaves
from meshnode.api.served import Host, Served
from meshnode.core.radius import HEADER, TRUSTED, Radius
from meshnode.core.routing import Router
from meshnode.errors import MeshnodeError
from meshnode.telemetry import LOG

Answered = Callable[[Request, bytes, Host], None]
"""Told of a whole stream of events that one host gave, after it has gone out."""
PREPARED_AT_ONCE = 4
"""Answers of a lost host whose continuation is being prepared: each asks the next host three questions."""


def trusted_by_default() -> Radius:
    """How far a request may go that says nothing of it, where nobody has said otherwise."""
    return TRUSTED


def nobody(request: Request, stream: bytes, host: Host) -> None:
    """Nobody wants to know who answered."""


class Inference:
    """Answers the requests to `ENDPOINTS`. `models` gives a fresh snapshot; `activity` knows each request as long as it
    is under way, and `finished` gets its Record at its end.

    `radius` tells how far a request may go that does not say it itself. A web page that a browser shows may ask for
    less, and for more only with `pages_may_widen`, where the Door has asked it for a key, or with the node's token (the
    console). `answered` is told of every whole stream that came of one host, with its events. `purse` pays strangers;
    without one those that want to be paid are not asked.
    """

    def __init__(
        self,
        *,
        models: Callable[[], Sequence[Served]],
        gates: Gates,
        limits: Limits,
        headers: Mapping[str, str],
        finished: Callable[[Record], None],
        router: Router | None = None,
        activity: Activity | None = None,
        radius: Callable[[], Radius] = trusted_by_default,
        pages_may_widen: bool = False,
        answered: Answered = nobody,
        purse: Purse | None = None,
    ) -> None:
        self._purse = purse
        self._affording = Affording(purse)
        self._models = models
        self._gates = gates
        self._limits = limits
        self._headers = headers
        self._finished = finished
        self._activity = activity or Activity()
        self._radius = radius
        self._pages_may_widen = pages_may_widen
        self._answered = answered
        self._candidates = Candidates(models, gates, router, self._affording)
        self._preparing = asyncio.Semaphore(PREPARED_AT_ONCE)

    async def handle(self, scope: Scope, receive: Receive, send: Send, *, request_id: str, origin: str | None) -> None:
        """Answer one POST. Never raises for what the caller or the engine did."""
        endpoint = ENDPOINTS[scope["path"]]
        record = Record(request_id, endpoint.path, time.monotonic())
        running = self._activity.begin(record)
        headers = {**self._headers, "x-meshnode-request-id": request_id, **cors_headers(origin)}
        headers.pop(HEADER, None)  # nobody has answered yet, and an answer may begin before that is known
        output = OutputHash(record, running.take)
        bill = Bill(self._purse, record)
        answer = Answer(
            send, dialect=dialect_of(endpoint.path), headers=headers, request_id=request_id, taken=output.take
        )
        try:
            request = await read_request(
                endpoint,
                scope,
                receive,
                models=self._models,
                limits=self._limits,
                missed=partial(setattr, record, "wanted"),
                radius=asked_radius(scope, self._radius(), may_widen=self._may_widen(scope, origin)),
                affording=self._affording,
            )
            answering = Answering(
                request,
                answer,
                record,
                gates=self._gates,
                candidates=self._candidates,
                limits=self._limits,
                preparing=self._preparing,
                bill=bill,
            )
            await unless_caller_leaves(receive, answering.run())
            if (found := answering.of_one_host) is not None:
                self._answered(request, *found)
        except CallerLeft:
            # Some programs hang up on the last event, before the stream itself has ended.
            mark = END_MARKS.get(endpoint.path)
            if mark is None or mark not in answer.tail:
                record.status = STATUS_CALLER_LEFT
        except MeshnodeError as error:
            record.error = error.code
            await answer.fail(error)
        except Exception:
            LOG.exception("request %s failed", request_id)
            record.error = "internal"
            await answer.fail(MeshnodeError("this is a fault of meshnode; its log has the details"))
        finally:
            answer.stop_watching()
            if bill.has_payments:
                await bill.settled()
            self._activity.end(running)
            output.close()
            self._close(record, answer)

    def _may_widen(self, scope: Scope, origin: str | None) -> bool:
        return origin is None or self._pages_may_widen or scope.get(OF_OWNER) is True

    def _close(self, record: Record, answer: Answer) -> None:
        record.status = record.status or answer.status or STATUS_CALLER_LEFT
        record.total_s = time.monotonic() - record.started_at
        if answer.first_byte_at is not None:
            record.first_byte_s = answer.first_byte_at - record.started_at
        record.tokens_in, record.tokens_out = token_counts(answer.lead + answer.tail)
        self._finished(record)
