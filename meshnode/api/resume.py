"""How an answer that broke off goes on: by continuing its text, by replaying the request, or not at all. Pure.

    what was sent                                drawn by chance    greedy                        not known
    -------------------------------------------  -----------------  ----------------------------  ----------------
    nothing of the answer, only its form         replay             replay                        replay
    the end has begun                            close              replay, else close            close
    text or reasoning, one choice, free form     continue           continue if exact, or replay  continue, replay
    a tool call, JSON by a schema or grammar,    error              replay                        replay
    several choices, forced tools

*Continue* gives the text so far to another host as the beginning of the assistant's message (llama-server goes on with
a trailing assistant message), or, for /v1/completions, as token ids behind the prompt. It costs one prompt. It is exact
when the text falls into the same tokens as were drawn: each event carried one token, so the pieces tell. *Replay* sends
the request again as it was and leaves out what has been sent, after comparing it letter by letter. It is exact by
construction, costs as long as the first part took, and finds out by itself when the model was not greedy after all.
*Close* writes the end that is missing, as the text is complete.

A grammar's state, like a begun tool call, lives in the first host only, so nothing can continue it. A wrong text is
never sent: where no method is left, the stream ends with an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from meshnode.api.body import JsonObject
from meshnode.api.sent import CONTENT, REASONING, Sent

LIMIT_MEMBERS = ("max_tokens", "max_completion_tokens", "n_predict", "max_output_tokens")
MESSAGES_DEFAULT_TOKENS = 4096
"""llama-server's limit for a /v1/messages request that sets none."""
FREE_FORMATS = (None, "text")


class Method(StrEnum):
    """The ways to go on."""

    CONTINUE = "continue"
    REPLAY = "replay"
    CLOSE = "close"


class CannotContinue(Exception):
    """No way to end this answer without the risk of a wrong text; the message says why."""


class Sampling(StrEnum):
    """How the tokens of an answer are chosen, as far as the request tells."""

    GREEDY = "greedy"
    DRAWN = "drawn"
    UNKNOWN = "unknown"
    """The model's own settings decide, or a seed may bring the same draws again: a replay finds out."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What of a request decides how it can go on. `constrained`: the form is forced from the first token on."""

    sampling: Sampling
    constrained: bool
    choices: int


def read_asked(members: Mapping[str, object]) -> Asked:
    """What the request asks for."""
    number, prompt = members.get("n"), members.get("prompt")
    several = isinstance(prompt, list) and not any(isinstance(item, int) for item in prompt)
    choices = number if isinstance(number, int) else 1
    return Asked(
        _sampling(members),
        _constrained(members),
        max(choices, len(prompt) if several and isinstance(prompt, list) else 1),
    )


def _sampling(members: Mapping[str, object]) -> Sampling:
    temperature, seed = members.get("temperature"), members.get("seed")
    if temperature == 0 or members.get("top_k") == 1:
        return Sampling.GREEDY
    drawn = isinstance(temperature, int | float) and not (isinstance(seed, int) and seed >= 0)
    return Sampling.DRAWN if drawn else Sampling.UNKNOWN


def _constrained(members: Mapping[str, object]) -> bool:
    if any(members.get(name) for name in ("grammar", "json_schema")):
        return True
    for outer in (members.get("response_format"), members.get("text")):
        inner = outer.get("format", outer) if isinstance(outer, dict) else None
        if isinstance(inner, dict) and inner.get("type") not in FREE_FORMATS:
            return True
    choice = members.get("tool_choice")
    kind = choice.get("type") if isinstance(choice, dict) else choice
    return bool(members.get("tools")) and kind not in (None, "auto", "none")


def methods(asked: Asked, sent: Sent) -> list[Method]:
    """What to try, in this order; see the table above. Raises CannotContinue when there is nothing."""
    if not sent.visible:
        return [Method.REPLAY]
    again = [] if asked.sampling is Sampling.DRAWN else [Method.REPLAY]
    if sent.closing:
        found = [Method.REPLAY, Method.CLOSE] if asked.sampling is Sampling.GREEDY else [Method.CLOSE]
    elif asked.constrained or asked.choices > 1 or sent.calls:
        found = again
    else:
        found = [Method.CONTINUE, *again]
    if not found:
        raise CannotContinue("the node that answered is gone, and no other can end this answer exactly")
    return found


# --- bodies ---------------------------------------------------------------------------------------------------


def with_text(path: str, parsed: JsonObject, sent: Sent, *, model: str) -> bytes:
    """The body with the answer so far as its last message, for counting and for continuing. Raises CannotContinue."""
    members = parsed.members
    text, reasoning = _joined(sent, CONTENT), _joined(sent, REASONING)
    if path == "/v1/responses":
        given = members.get("input")
        items = [{"role": "user", "content": given}] if isinstance(given, str) else _list(given)
        if reasoning:
            items = [
                *items,
                {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": reasoning}]},
            ]
        items = [*items, {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]
        return parsed.replaced(model=model, input=items)
    messages = _list(members.get("messages"))
    if path == "/v1/messages":
        thinking = [{"type": "thinking", "thinking": reasoning}] if reasoning else []
        last: dict[str, object] = {"role": "assistant", "content": [*thinking, {"type": "text", "text": text}]}
    else:
        last = {"role": "assistant", "content": text}
        if reasoning:
            last["reasoning_content"] = reasoning
    if messages and isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant":
        raise CannotContinue("the request itself ends with a message of the assistant")
    return parsed.replaced(model=model, messages=[*messages, last])


def with_tokens(parsed: JsonObject, tokens: Sequence[int], *, model: str) -> bytes:
    """The body of /v1/completions with the answer so far as token ids behind its prompt."""
    prompt = parsed.members.get("prompt")
    parts = prompt if isinstance(prompt, list) else [prompt]
    return parsed.replaced(model=model, prompt=[*parts, *tokens])


def limit_of(path: str, members: Mapping[str, object]) -> int | None:
    """How many tokens the answer may have; None where there is no limit."""
    limits = [value for name in LIMIT_MEMBERS if isinstance(value := members.get(name), int) and value > 0]
    return min(limits, default=MESSAGES_DEFAULT_TOKENS if path == "/v1/messages" else None)


def with_limit(path: str, body: JsonObject, used: int) -> bytes | None:
    """The body with its limit of new tokens lowered by those that went out; None when nothing is left of it."""
    changes: dict[str, object] = {}
    for name in LIMIT_MEMBERS:
        limit = body.members.get(name)
        if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0:
            changes[name] = limit - used
    if path == "/v1/messages" and not changes:
        changes["max_tokens"] = MESSAGES_DEFAULT_TOKENS - used
    if any(isinstance(left, int) and left <= 0 for left in changes.values()):
        return None
    return body.replaced(**changes) if changes else body.text.encode()


def _joined(sent: Sent, kind: str) -> str:
    return "".join(sent.text(channel) for channel in sent.texts if channel[1] == kind)


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise CannotContinue("the request has an unknown form")
    return value


# --- tokens ---------------------------------------------------------------------------------------------------


def same_tokens(deltas: Sequence[str], pieces: Sequence[bytes], held_back: Sequence[int] = (), *, stops: bool) -> bool:
    """Whether a text falls into the tokens in which it was drawn.

    `deltas` is the text as it was sent, one token an event; `pieces` the same text as the tokenizer cuts it. An event
    may hold several tokens only where llama-server joins them: the bytes of one character, or text that it held back
    because a stop string might have begun (`stops`; where known, `held_back` says how many it held before each delta).
    """
    at = 0
    for number, delta in enumerate(deltas):
        wanted = delta.encode("utf-8", "surrogatepass")
        begin = at
        got = b""
        while len(got) < len(wanted) and at < len(pieces):
            got += pieces[at]
            at += 1
        if got != wanted:
            return False
        count = at - begin
        held = held_back[number] if number < len(held_back) else 0
        joined = not wanted.isascii() or stops or count == held + 1
        if count > 1 and not joined:
            return False
    return at == len(pieces)


def piece_bytes(piece: object) -> bytes:
    """One piece of llama-server's /tokenize: a text, or the bytes of half a character."""
    if isinstance(piece, str):
        return piece.encode("utf-8", "surrogatepass")
    if isinstance(piece, list):
        return bytes(piece)
    raise ValueError("not a piece of text")
