"""Answers of strangers, looked at by a second node: `verify = "spot"`.

After an answer of a stranger is complete, a second node that holds the same weights is asked, for some random places of
it, which tokens it finds likely there (core/verification.py says what follows from that). One answer is looked at at a
time, in the background; callers never wait for it. The second node is one that is near if there is one: this one, then
a friend's, then another stranger's. It sees the prompt as the first one did.

Looked at are answers of /v1/chat/completions and /v1/completions that were drawn freely: no grammar, no penalties, one
choice, no tool calls. Of all others nothing is said.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from meshnode.api.attempt import EngineRefused, Errand, HostFailed, exchange_with
from meshnode.api.body import JsonObject
from meshnode.api.endpoints import PEER_ENDPOINTS
from meshnode.api.gate import Gates
from meshnode.api.request import Request
from meshnode.api.resume import CannotContinue, piece_bytes, read_asked, with_text
from meshnode.api.sent import CONTENT, Sent, read_sent
from meshnode.api.served import Host
from meshnode.api.upstream import UpstreamBroken
from meshnode.core.randomness import Randomness
from meshnode.core.verification import SHORTEST, Reputations, Scored, Verdict, places_of
from meshnode.telemetry import LOG

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
PUBLIC = "public"
RADII = ("local", "trusted", PUBLIC)
WAITING = 8
"""Answers that wait to be looked at; of more the newest are passed over."""
QUESTION_S = 15.0
MAX_REPLY_BYTES = 1 << 20
ALTERNATIVES = 20
MOST_TOKEN_BYTES = 1024
DEFAULT_TEMPERATURE = 0.8
"""That of llama-server for a request that names none."""
CALLER = "verification"
BENDING = (
    "logit_bias",
    "frequency_penalty",
    "presence_penalty",
    "dry_multiplier",
    "xtc_probability",
    "mirostat",
    "dynatemp_range",
    "adaptive_target",
    "ignore_eos",
)
"""Members that change how tokens are drawn in ways the second node does not see; so does a repeat_penalty but 1."""
FRAMING = ("tools", "tool_choice", "chat_template_kwargs", "parallel_tool_calls")
"""Members that change what stands before the answer."""
_CHANNEL = (0, CONTENT)

FAILURES = (HostFailed, EngineRefused, UpstreamBroken, TimeoutError, ValueError, CannotContinue)
"""What can go wrong with asking a second node: it says nothing of the first."""

Tokens = tuple[tuple[int, bytes], ...]
Told = Callable[[str, Verdict, Verdict], None]
"""Told of each look: the node in hex digits, its verdict before and after."""


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer that could be looked at. `sent` is what came, in the pieces in which it came."""

    request: Request
    sent: Sent
    host: Host


def readable(request: Request, stream: bytes, host: Host) -> Answered | None:
    """The answer, if it is one of those that can be looked at; `stream` are its events as they came."""
    members = request.members
    if host.radius != PUBLIC or not host.content_hash or request.endpoint.path not in (CHAT, COMPLETION):
        return None
    asked = read_asked(members)
    bent = any(members.get(name) for name in BENDING) or members.get("repeat_penalty", 1) != 1
    if asked.constrained or asked.choices != 1 or bent:
        return None
    if request.endpoint.path == COMPLETION and not isinstance(members.get("prompt"), str):
        return None
    try:
        sent = read_sent(request.endpoint.path, stream)
    except ValueError:
        return None
    if sent.calls or len(sent.texts.get(_CHANNEL, ())) < SHORTEST:
        return None
    return Answered(request, sent, host)


class Verifier:
    """See the module. `hosts` gives those of a model, as they are now."""

    def __init__(
        self,
        *,
        hosts: Callable[[str], Sequence[Host]],
        gates: Gates,
        reputations: Reputations,
        random: Randomness,
        told: Told = lambda node, before, after: None,
    ) -> None:
        self._hosts = hosts
        self._gates = gates
        self._reputations = reputations
        self._random = random
        self._told = told
        self._waiting: deque[Answered] = deque()
        self._worker: asyncio.Task[None] | None = None
        self.counters: Counter[str] = Counter()

    def offer(self, request: Request, stream: bytes, host: Host) -> None:
        """An answer is complete. Returns at once; whether it is looked at is left to chance and to what is known."""
        answered = readable(request, stream, host)
        if answered is None or not self._reputations.wants(host.node, host.content_hash):
            return
        if len(self._waiting) >= WAITING:
            self.counters["passed_over"] += 1
            return
        self._waiting.append(answered)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work(), name="verify")

    async def settled(self) -> None:
        """Wait until nothing waits to be looked at."""
        while self._worker is not None and not self._worker.done():
            await asyncio.wait({self._worker})

    async def close(self) -> None:
        """Stop looking."""
        self._waiting.clear()
        if self._worker is not None:
            self._worker.cancel()
            with suppress(asyncio.CancelledError):
                await self._worker

    async def _work(self) -> None:
        while self._waiting:
            answered = self._waiting.popleft()
            try:
                await self._look(answered)
            except Exception:
                LOG.exception("an answer of a stranger could not be looked at")

    async def _look(self, answered: Answered) -> None:
        host = answered.host
        second = self._second(answered)
        if second is None:
            self.counters["nobody_to_ask"] += 1
            return
        pieces = answered.sent.texts[_CHANNEL]
        temperature = _temperature(answered.request.members)
        scored: list[Scored] = []
        with suppress(*FAILURES):
            tokens = await self._tokens(answered, second)
            for place in places_of(len(pieces), self._random):
                with suppress(*FAILURES):
                    rest = "".join(pieces[place:]).encode("utf-8", "surrogatepass")
                    reply = await self._ask(answered, second, question(answered, place, tokens))
                    scored.append(scored_of(reply, rest))
                    self.counters["questions"] += 1
        self.counters["places"] += len(scored)
        self.counters["looked_at"] += bool(scored)
        before = self._reputations.verdict(host.node)
        after = self._reputations.add(host.node, host.content_hash, scored, temperature)
        if scored:
            self._told(host.node, before, after)

    def _second(self, answered: Answered) -> Host | None:
        """Whom to ask: somebody else with the same weights, the nearest."""
        host = answered.host
        able = [
            other
            for other in self._hosts(answered.request.model.id)
            if other.ready
            and other.node != host.node
            and other.content_hash == host.content_hash
            and self._reputations.verdict(other.node) != "bad"
        ]
        return min(able, key=lambda other: (RADII.index(other.radius), not other.here, other.rtt_s), default=None)

    async def _tokens(self, answered: Answered, second: Host) -> Tokens:
        """The tokens of an answer that stands right behind its prompt: as one text the two may fall into others."""
        if answered.request.endpoint.path != COMPLETION:
            return ()
        asked = {"model": answered.request.model.id, "content": answered.sent.texts[_CHANNEL], "with_pieces": True}
        return tokens_of(await self._ask(answered, second, json.dumps(asked).encode(), "/tokenize"))

    async def _ask(self, answered: Answered, second: Host, body: bytes, path: str = "") -> bytes:
        """The whole answer to a question. Raises what can go wrong with asking: FAILURES."""
        endpoint = PEER_ENDPOINTS[path or answered.request.endpoint.path]
        errand = Errand(answered.request.model.id, endpoint, body, "application/json", CALLER)
        async with (
            asyncio.timeout(QUESTION_S),
            exchange_with(lambda: second, errand, here=second.here, gates=self._gates, slots=second.slots) as exchange,
        ):
            return await exchange.read_all(MAX_REPLY_BYTES)


def question(answered: Answered, place: int, tokens: Tokens = ()) -> bytes:
    """The request that has the second node tell which tokens it finds likely after the first `place` pieces, which are
    some of the `tokens` of an answer behind a prompt.

    Raises CannotContinue for a conversation that ends with words of the assistant, ValueError for a place that is not
    between two tokens.
    """
    request, sent = answered.request, answered.sent
    path, members = request.endpoint.path, request.members
    begun = sent.texts[_CHANNEL][:place]
    common: dict[str, object] = {"model": request.model.id, "max_tokens": 1, "temperature": 0, "stream": False}
    if path == COMPLETION:
        prompt = [str(members["prompt"]), *_before(tokens, len("".join(begun).encode("utf-8", "surrogatepass")))]
        return json.dumps({**common, "prompt": prompt if begun else prompt[0], "logprobs": ALTERNATIVES}).encode()
    framing = {name: members[name] for name in FRAMING if name in members}
    body: dict[str, object] = {
        **common,
        **framing,
        "messages": members.get("messages"),
        "logprobs": True,
        "top_logprobs": ALTERNATIVES,
    }
    if not begun and not any(kind != CONTENT for _, kind in sent.texts):
        return json.dumps(body).encode()
    shorter = replace(sent, texts={**sent.texts, _CHANNEL: begun})
    return with_text(path, JsonObject.parse(json.dumps(body).encode()), shorter, model=request.model.id)


def _before(tokens: Tokens, size_bytes: int) -> list[int]:
    """The tokens of the first `size_bytes`."""
    found = []
    for number, text in tokens:
        if size_bytes <= 0:
            break
        found.append(number)
        size_bytes -= len(text)
    if size_bytes != 0:
        raise ValueError("the place is inside of a token")
    return found


def tokens_of(reply: bytes) -> Tokens:
    """The tokens in an answer of /tokenize: number and bytes of each. Raises ValueError for another form."""
    try:
        return tuple((int(token["id"]), piece_bytes(token["piece"])) for token in json.loads(reply)["tokens"])
    except (KeyError, TypeError, ValueError, RecursionError, OverflowError):
        raise ValueError("an answer without tokens") from None


def scored_of(reply: bytes, rest: bytes) -> Scored:
    """The alternatives in an answer of the second node, and which of them begin `rest`.

    Raises ValueError for an answer of another form.
    """
    try:
        value = json.loads(reply)
        told = value["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        found = [(float(each["logprob"]), _bytes(each["bytes"])) for each in told[: 4 * ALTERNATIVES]]
    except (KeyError, IndexError, TypeError, ValueError, RecursionError, OverflowError):
        raise ValueError("an answer without alternatives") from None
    if not found or not all(math.isfinite(logprob) and logprob <= 0.001 for logprob, _ in found):
        raise ValueError("alternatives that are no probabilities")
    found.sort(key=lambda each: -each[0])
    # The text may fall into other tokens than those it was drawn in: all that begin it count together.
    came = tuple(
        index for index, (_, text) in enumerate(found) if text and (rest.startswith(text) or text.startswith(rest))
    )
    return Scored(tuple(logprob for logprob, _ in found), came)


def _bytes(value: object) -> bytes:
    """Those of one token; a number here would mean as many zeros. Raises ValueError."""
    if not isinstance(value, list) or len(value) > MOST_TOKEN_BYTES:
        raise ValueError("not the bytes of a token")
    return bytes(value)


def _temperature(members: Mapping[str, Any]) -> float:
    if members.get("top_k") == 1:
        return 0.0
    value = members.get("temperature", DEFAULT_TEMPERATURE)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return DEFAULT_TEMPERATURE
    return float(max(0.0, value))
