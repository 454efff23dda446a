"""Preparing another host to go on with an answer: count, compare, and build the request and the seam.

resume.py decides and knows no IO; here the new host is asked what only it can tell: how many tokens the prompt has,
and into which tokens the text so far falls. The questions run side by side, so they cost one round trip.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Collection, Mapping
from typing import Any, Protocol

from meshnode.api.attempt import EngineRefused, Errand, HostFailed, exchange_with
from meshnode.api.body import JsonObject, parse_object
from meshnode.api.closing import Ending, closing_events, usage_told
from meshnode.api.comebacks import is_loading
from meshnode.api.endpoints import PEER_ENDPOINTS
from meshnode.api.gate import Gates
from meshnode.api.joining import JOINERS, Joiner, Seam
from meshnode.api.request import Request
from meshnode.api.resume import (
    CannotContinue,
    Method,
    Sampling,
    limit_of,
    methods,
    piece_bytes,
    read_asked,
    same_tokens,
    with_limit,
    with_text,
    with_tokens,
)
from meshnode.api.sent import CONTENT, Sent, read_sent
from meshnode.api.served import Host
from meshnode.api.upstream import UpstreamBroken

QUESTION_S = 5.0
MAX_REPLY_BYTES = 64 << 20
COUNTERS = {
    "/v1/chat/completions": "/v1/chat/completions/input_tokens",
    "/v1/messages": "/v1/messages/count_tokens",
    "/v1/responses": "/v1/responses/input_tokens",
}
STOP_MEMBERS = ("stop", "stop_sequences")


class Finder(Protocol):
    """Tells where a host is now, if the request may still go there."""

    def find(self, request: Request, host: Host, /) -> Host | None: ...


class Continuation:
    """How a host goes on: the `body` to send it (None: nothing more is needed), and what its stream becomes.

    `marked` is set once the caller was told of the change.
    """

    def __init__(self, method: Method, body: bytes | None, joiner: Joiner | None, ending: bytes = b"") -> None:
        self.method = method
        self.body = body
        self.marked = False
        self._joiner = joiner
        self._ending = ending

    def join(self, events: bytes) -> bytes:
        """What goes out for these events of the new host. Raises Differs."""
        return self._joiner.take(events) if self._joiner else self._ending


def can_continue(request: Request, stream: bytes) -> bool:
    """Whether there is a way to go on at all, as far as can be told without asking."""
    try:
        methods(read_asked(request.members), read_sent(request.endpoint.path, stream))
    except (CannotContinue, ValueError):
        return False
    return True


def end_without_host(request: Request, stream: bytes) -> bytes:
    """The end of an answer that had said its reason to finish, where no host is left to ask; empty for all others."""
    path = request.endpoint.path
    try:
        sent = read_sent(path, stream)
    except ValueError:
        return b""
    finished = len(sent.finish) == read_asked(request.members).choices or ("message_delta", 0) in sent.form
    return closing_events(path, sent, Ending(request.model.id, int(time.time()))) if finished else b""


async def prepare(
    request: Request,
    stream: bytes,
    host: Host,
    *,
    finder: Finder,
    gates: Gates,
    without: Collection[Method] = (),
) -> Continuation:
    """How `host` goes on with an answer of which `stream` has gone out, by a method that is not in `without`.

    Raises CannotContinue, HostFailed when the host does not answer, and EngineRefused when it has too much to do or is
    still loading.
    """
    path = request.endpoint.path
    try:
        sent = read_sent(path, stream)
    except ValueError as fault:
        raise CannotContinue(f"what was sent cannot be read: {fault}") from None
    body = await parse_object(request.body)
    preparation = _Preparation(path, body, request, sent, host, finder, gates)
    asked = read_asked(body.members)
    options = [method for method in methods(asked, sent) if method not in without]
    failure = CannotContinue("another node would have given another answer")
    for method in options:
        try:
            match method:
                case Method.REPLAY:
                    return preparation.replay()
                case Method.CONTINUE:
                    exact = asked.sampling is Sampling.GREEDY and Method.REPLAY in options
                    return await preparation.go_on(exact=exact)
                case Method.CLOSE:
                    return await preparation.close()
        except CannotContinue as reason:
            failure = reason
    raise failure


class _Preparation:
    """The questions to one host about one answer."""

    def __init__(
        self, path: str, body: JsonObject, request: Request, sent: Sent, host: Host, finder: Finder, gates: Gates
    ) -> None:
        self._path = path
        self._body = body
        self._request = request
        self._model = request.model.id
        self._sent = sent
        self._host = host
        self._finder = finder
        self._gates = gates

    def replay(self) -> Continuation:
        """The request as it was."""
        body = self._body.replaced(model=self._model)
        return Continuation(Method.REPLAY, body, JOINERS[self._path](Seam(self._sent)))

    async def go_on(self, *, exact: bool) -> Continuation:
        """The text so far, given as the beginning of the answer. With `exact` only if it falls into the same tokens."""
        if self._path == "/v1/completions":
            longer, used, same = await self._behind_the_prompt()
        else:
            longer, used, same = await self._as_last_message()
        if exact and not same:
            raise CannotContinue("the text does not fall into the tokens in which it was drawn")
        limited = with_limit(self._path, await parse_object(longer), used)
        if limited is None:
            return await self.close(limited=True)
        repeats = self._path != "/v1/completions"
        joiner = JOINERS[self._path](Seam(self._sent, repeats=repeats, counted=used))
        return Continuation(Method.CONTINUE, limited, joiner)

    async def _as_last_message(self) -> tuple[bytes, int, bool]:
        longer = with_text(self._path, self._body, self._sent, model=self._model)
        counter = COUNTERS[self._path]
        deltas = self._deltas()
        before, after, pieces = await asyncio.gather(
            self._count(counter, self._body.replaced(model=self._model)),
            self._count(counter, longer),
            self._pieces("".join(deltas)),
        )
        used = after - before
        if used <= 0:
            raise CannotContinue("the template of the model drops the text so far")
        only_text = all(kind == CONTENT for _, kind in self._sent.texts)
        same = (
            only_text
            and used == len(pieces)
            and same_tokens(deltas, [bytes_ for _, bytes_ in pieces], stops=self._stops())
        )
        return longer, used, same

    async def _behind_the_prompt(self) -> tuple[bytes, int, bool]:
        deltas = self._deltas()
        pieces = await self._pieces(deltas)
        if b"".join(text for _, text in pieces) != "".join(deltas).encode("utf-8", "surrogatepass"):
            raise CannotContinue("the tokenizer of the model changes the text")
        longer = with_tokens(self._body, [number for number, _ in pieces], model=self._model)
        same = same_tokens(deltas, [text for _, text in pieces], self._sent.held_back, stops=self._stops())
        return longer, len(pieces), same

    async def close(self, *, limited: bool = False) -> Continuation:
        """Write the end here, with the counts that the host can tell."""
        options = self._body.members.get("stream_options")
        wants = isinstance(options, dict) and options.get("include_usage") is True
        prompt = answer = None
        if not usage_told(self._path, self._sent, wanted=wants):
            prompt, drawn = await asyncio.gather(self._count_prompt(), self._count_answer())
            limit = limit_of(self._path, self._body.members)
            limited = limited or (limit is not None and drawn >= limit)
            # The token that ends an answer has no text.
            answer = drawn if limited else drawn + 1
        ending = Ending(self._model, int(time.time()), limited, prompt, answer, wants)
        return Continuation(Method.CLOSE, None, None, closing_events(self._path, self._sent, ending))

    async def _count_prompt(self) -> int:
        if self._path in COUNTERS:
            return await self._count(COUNTERS[self._path], self._body.replaced(model=self._model))
        return len(await self._pieces(self._body.members.get("prompt"), special=True))

    async def _count_answer(self) -> int:
        if any(kind != CONTENT for _, kind in self._sent.texts):
            return sum(len(pieces) for pieces in self._sent.texts.values())
        return len(await self._pieces("".join(self._deltas())))

    # --- questions ------------------------------------------------------------------------------------------

    def _deltas(self) -> list[str]:
        return [text for (_, kind), texts in self._sent.texts.items() if kind == CONTENT for text in texts]

    def _stops(self) -> bool:
        return any(self._body.members.get(name) for name in STOP_MEMBERS)

    async def _count(self, path: str, body: bytes) -> int:
        count = (await self._ask(path, body)).get("input_tokens")
        if not isinstance(count, int):
            raise CannotContinue("the new host does not count tokens")
        return count

    async def _pieces(self, content: object, *, special: bool = False) -> list[tuple[int, bytes]]:
        """The tokens of a text, or of each of a list of texts by itself: id and bytes. `special` as for a prompt."""
        question = {"model": self._model, "content": content, "with_pieces": True}
        question |= {"parse_special": special, "add_special": special}
        found = (await self._ask("/tokenize", json.dumps(question).encode())).get("tokens")
        try:
            return [(int(token["id"]), piece_bytes(token["piece"])) for token in found or ()]
        except (TypeError, KeyError, ValueError):
            raise CannotContinue("the new host does not tell its tokens") from None

    async def _ask(self, path: str, body: bytes) -> Mapping[str, Any]:
        errand = Errand(self._model, PEER_ENDPOINTS[path], body, "application/json", self._request.caller)
        try:
            async with (
                asyncio.timeout(QUESTION_S),
                exchange_with(
                    lambda: self._finder.find(self._request, self._host),
                    errand,
                    here=self._host.here,
                    gates=self._gates,
                    slots=self._host.slots,
                ) as exchange,
            ):
                value = json.loads(await exchange.read_all(MAX_REPLY_BYTES))
        except UpstreamBroken as reason:
            raise HostFailed(reason, cool_down=True) from None
        except TimeoutError:
            raise HostFailed(UpstreamBroken("no answer to a question"), cool_down=True) from None
        except EngineRefused as reason:
            if reason.busy or is_loading(reason):
                raise
            raise CannotContinue(f"the new host refuses to tell: {reason}") from None
        except (ValueError, RecursionError):
            raise CannotContinue("the new host answers in an unknown form") from None
        if not isinstance(value, dict):
            raise CannotContinue("the new host answers in an unknown form")
        return value
