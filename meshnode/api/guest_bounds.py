"""What a request of a stranger may ask of the engine: a list of members per endpoint, and a bound for each of them.

The body is written anew from what is listed here, so that nothing else reaches llama-server: none of its knobs for
slots, adapters, caches or debugging, which its chat endpoint would take from any body. Other members are dropped, as
servers do with what they do not know; what would cost the owner more than one slot, one bounded answer and a bounded
grammar is refused in words. Nothing is fetched for a stranger: pictures and sounds come inside of the request. A prompt
is read anew every time (`cache_prompt`), so that the time of an answer does not tell whether somebody else asked the
same (PromptPeek, NDSS 2025).

Rules of this file: pure; whatever the body holds, the answer is a new body or a MeshnodeError.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from meshnode.api.body import JsonObject
from meshnode.api.prefix import estimate_tokens
from meshnode.api.resume import LIMIT_MEMBERS
from meshnode.errors import BadRequest, StrangerLimit

MOST_BODY_BYTES = 1 << 20
ABSURD_TOKENS = 1 << 18
"""No model gives answers of that length: who asks for so many means something else than an answer."""
PLAIN_TOKENS = 64
"""The longest answer that may come in one piece: llama-server works on at those whose caller has left."""
MOST_ALTERNATIVES = 20
"""Log-probabilities told for each token; OpenAI's bound as well."""
MOST_GRAMMAR_CHARACTERS = 8 << 10
MOST_SCHEMA_CHARACTERS = 32 << 10
MOST_TOOLS_CHARACTERS = 256 << 10
MOST_NESTING = 64
"""Of brackets in a grammar or pattern, and of the JSON itself: what reads them calls itself for each level."""
MOST_VALUES = 200_000
"""Of the JSON: a prompt as token ids has as many."""
MOST_STOPS = 16
MOST_STOP_CHARACTERS = 256
MOST_BIASES = 1024
MOST_KEYWORDS_CHARACTERS = 4 << 10

_SAMPLING = (
    "temperature top_k top_p min_p top_n_sigma typical_p xtc_probability xtc_threshold dynatemp_range"
    " dynatemp_exponent repeat_last_n repeat_penalty frequency_penalty presence_penalty dry_multiplier dry_base"
    " dry_allowed_length dry_penalty_last_n mirostat mirostat_tau mirostat_eta seed samplers ignore_eos logit_bias stop"
)
_ANSWER = "model stream stream_options n n_cmpl n_probs logprobs grammar json_schema post_sampling_probs"
_THINKING = "reasoning_format reasoning_effort reasoning_budget_tokens thinking_budget_tokens chat_template_kwargs"
_TOOLS = "tools tool_choice parallel_tool_calls"
_LIMITS = " ".join(LIMIT_MEMBERS[:3])
MEMBERS: Mapping[str, frozenset[str]] = {
    path: frozenset(" ".join(names).split())
    for path, names in {
        "/v1/chat/completions": (
            "messages response_format top_logprobs add_generation_prompt continue_final_message",
            *(_ANSWER, _SAMPLING, _THINKING, _TOOLS, _LIMITS),
        ),
        "/v1/completions": ("prompt", _ANSWER, _SAMPLING, _LIMITS),
        "/v1/responses": (
            "model stream input instructions text reasoning temperature top_p max_output_tokens chat_template_kwargs",
            _TOOLS,
        ),
        "/v1/messages": (
            "model stream system messages tools tool_choice stop_sequences max_tokens temperature top_p top_k thinking"
            " chat_template_kwargs",
        ),
        "/v1/embeddings": ("model input encoding_format",),
    }.items()
}
"""What is passed to the engine, by endpoint."""
COUNTED: Mapping[str, frozenset[str]] = {
    "/v1/chat/completions/input_tokens": MEMBERS["/v1/chat/completions"],
    "/v1/responses/input_tokens": MEMBERS["/v1/responses"],
    "/v1/messages/count_tokens": MEMBERS["/v1/messages"],
    "/tokenize": frozenset({"model", "content", "with_pieces", "parse_special", "add_special"}),
}
"""The same of the endpoints that only count."""
REFUSED = {
    "lora": "adapters are the owner's to choose",
    "id_slot": "slots are the owner's to give",
}
"""Members that are not dropped silently: whoever names them counts on them."""
LIMIT_OF = {"/v1/responses": "max_output_tokens"}
"""The member that bounds an answer; elsewhere it is max_tokens."""
_ONE = ("n", "n_cmpl", "best_of")
_TEXTS = {"/v1/completions": "prompt", "/v1/embeddings": "input"}
_MEDIA = frozenset({"image_url", "input_audio", "input_video", "video_url", "source"})
_FETCHED = ("http", "file:")
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
MOST_REPEATS = 2000
"""llama.cpp's own bound for one repetition (MAX_REPETITION_THRESHOLD)."""


@dataclass(frozen=True, slots=True)
class Bounded:
    """A request that may be let in. `wanted` is the limit of tokens that it sets, None where it sets none."""

    path: str
    members: Mapping[str, object]
    prompt_tokens: int
    wanted: int | None

    def body(self, answer_tokens: int) -> bytes:
        """What the engine gets, for an answer of so many tokens at most. Raises BadRequest."""
        members = dict(self.members)
        if self.path != "/v1/embeddings":
            # By whatever name: an engine takes the one it knows, and the first of several in an order of its own.
            members[LIMIT_OF.get(self.path, "max_tokens")] = answer_tokens
            members |= {name: answer_tokens for name in LIMIT_MEMBERS if name in members}
            members["cache_prompt"] = False
        try:
            return json.dumps(members, separators=(",", ":"), allow_nan=False).encode()
        except ValueError:  # 1e999
            raise BadRequest("a number of the body is too large") from None


def bounded(path: str, raw: bytes, *, answer_tokens: int) -> Bounded:
    """Judge the body of a request; `answer_tokens` is the longest answer that any stranger may have.

    Takes some 100 ms for a body of MOST_BODY_BYTES. Raises BadRequest or StrangerLimit, with what is wrong in words.
    """
    given = JsonObject.parse(raw).members
    _check_shape(given)
    for name, reason in REFUSED.items():
        if name in given:
            raise BadRequest(f"`{name}` is not for strangers: {reason}")
    members = {name: value for name, value in given.items() if name in MEMBERS[path] and value is not None}
    wanted = _wanted(given, max(answer_tokens, ABSURD_TOKENS))
    if path == "/v1/embeddings":
        wanted = 0
    elif members.get("stream") is not True and (wanted is None or wanted > PLAIN_TOKENS):
        raise BadRequest(f"an answer for a stranger is streamed, or has at most {PLAIN_TOKENS} tokens")
    _check_one_slot(path, given)
    _check_alternatives(members)
    _check_grammars(members)
    _check_lists(members)
    _check_media(members)
    return Bounded(path, members, estimate_tokens(members, len(raw)), wanted)


def counted(path: str, raw: bytes) -> tuple[object, bytes]:
    """The model that a request to count tokens names, and what the engine gets. Raises BadRequest or StrangerLimit."""
    given = JsonObject.parse(raw).members
    _check_shape(given)
    members = {name: value for name, value in given.items() if name in COUNTED[path] and value is not None}
    _check_grammars(members)
    _check_lists(members)
    _check_media(members)
    try:
        return members.get("model"), json.dumps(members, separators=(",", ":"), allow_nan=False).encode()
    except ValueError:
        raise BadRequest("a number of the body is too large") from None


# --- each bound -----------------------------------------------------------------------------------------------


def _wanted(members: Mapping[str, object], absurd: int) -> int | None:
    """The smallest limit that the request sets. A negative one means none to llama-server."""
    found = []
    for name in LIMIT_MEMBERS:
        value = members.get(name)
        if value is None:
            continue
        number = _number(name, value)
        if number > absurd:
            raise _beyond(
                f"`{name}` asks for {number:,} tokens, and no answer is as long", "ask for fewer, or for no limit"
            )
        if number >= 0:
            found.append(number)
    return min(found, default=None)


def _check_one_slot(path: str, given: Mapping[str, object]) -> None:
    """The engine takes a slot for each choice, and for each text of a list."""
    for name in _ONE:
        if given.get(name) is not None and _number(name, given[name]) > 1:
            raise _beyond(f"`{name}` is at most 1 for a stranger", "send one request for each answer")
    name = _TEXTS.get(path, "")
    value = given.get(name)
    if isinstance(value, list) and len(value) > 1 and not any(_is_token(item) for item in value):
        text = f"`{name}` holds {len(value)} texts, and a stranger gets one slot a request"
        raise _beyond(text, "send one request for each text")
    parts = value if isinstance(value, list) else [value]
    if name == "prompt" and any(isinstance(item, dict | list) for item in parts):
        raise BadRequest("`prompt` is a text, or token ids")


def _is_token(value: object) -> bool:
    """With one of them a list is a single prompt. A larger number is no integer to llama-server."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def _check_alternatives(members: Mapping[str, object]) -> None:
    for name in ("n_probs", "logprobs", "top_logprobs"):
        value = members.get(name)
        if isinstance(value, bool) or value is None:
            continue
        if _number(name, value) > MOST_ALTERNATIVES:
            raise _beyond(f"`{name}` is at most {MOST_ALTERNATIVES} for a stranger", "ask for fewer")


def _check_grammars(members: Mapping[str, object]) -> None:
    grammar = members.get("grammar")
    if grammar is not None:
        if not isinstance(grammar, str):
            raise BadRequest("`grammar` must be a text")
        _check_length("grammar", len(grammar), MOST_GRAMMAR_CHARACTERS)
        _check_nesting("grammar", grammar)
    for name, most in (
        ("json_schema", MOST_SCHEMA_CHARACTERS),
        ("response_format", MOST_SCHEMA_CHARACTERS),
        ("text", MOST_SCHEMA_CHARACTERS),
        ("tools", MOST_TOOLS_CHARACTERS),
        ("tool_choice", MOST_KEYWORDS_CHARACTERS),
        ("chat_template_kwargs", MOST_KEYWORDS_CHARACTERS),
    ):
        if name in members:
            _check_length(name, len(json.dumps(members[name])), most)
            _check_schema(name, members[name])


def _check_schema(name: str, value: object) -> None:
    """Counts and patterns become repetitions of a grammar."""
    for _, found in _walk(value):
        if not isinstance(found, dict):
            continue
        for count in _COUNTS:
            number = found.get(count)
            if isinstance(number, int | float) and number > MOST_REPEATS:
                raise _beyond(f"`{count}` in `{name}` is at most {MOST_REPEATS} for a stranger", "lower it")
        pattern = found.get("pattern")
        if isinstance(pattern, str):
            _check_length(f"pattern in {name}", len(pattern), MOST_STOP_CHARACTERS)
            _check_nesting(f"pattern in {name}", pattern)


def _check_lists(members: Mapping[str, object]) -> None:
    for name in ("stop", "stop_sequences", "samplers"):
        value = members.get(name)
        items = value if isinstance(value, list) else [value]
        if len(items) > MOST_STOPS or any(isinstance(item, str) and len(item) > MOST_STOP_CHARACTERS for item in items):
            text = f"`{name}` has at most {MOST_STOPS} texts of {MOST_STOP_CHARACTERS} characters for a stranger"
            raise _beyond(text, "send fewer")
    biases = members.get("logit_bias")
    if isinstance(biases, list | dict) and len(biases) > MOST_BIASES:
        raise _beyond(f"`logit_bias` has at most {MOST_BIASES} entries for a stranger", "send fewer")


def _check_media(members: Mapping[str, object]) -> None:
    """llama-server would fetch a picture that is named by its address."""
    for name in ("messages", "input"):
        for key, value in _walk(members.get(name), without="tool_use"):
            if key not in _MEDIA:
                continue
            texts = [text for _, text in _walk(value) if isinstance(text, str)]
            if any(text.lstrip()[:5].lower().startswith(_FETCHED) for text in texts):
                raise BadRequest(
                    "nothing is fetched for a stranger; a picture or sound comes inside of the request (data:)"
                )


def _check_shape(members: Mapping[str, object]) -> None:
    """How deep the JSON goes, and how much there is in it."""
    level: list[object] = [members]
    count = 0
    for _ in range(MOST_NESTING):
        below: list[object] = []
        for value in level:
            inner: Collection[object] = value.values() if isinstance(value, dict) else value  # type: ignore[assignment]
            count += len(inner)
            if count > MOST_VALUES:
                raise _beyond(f"a request has at most {MOST_VALUES:,} values for a stranger", "send less")
            below += [item for item in inner if isinstance(item, dict | list)]
        if not below:
            return
        level = below
    raise BadRequest(f"the JSON of the body is nested more than {MOST_NESTING} deep")


def _walk(value: object, *, without: str = "") -> Iterator[tuple[str, object]]:
    """Every value inside of a value, itself included, with the name under which it stands ("" in a list). Objects of
    the type `without` are passed over with all that is in them.
    """
    left: list[tuple[str, object]] = [("", value)]
    while left:
        key, found = left.pop()
        if isinstance(found, dict):
            if without and found.get("type") == without:
                continue
            left += found.items()
        elif isinstance(found, list):
            left += [("", item) for item in found]
        yield key, found


def _beyond(text: str, todo: str) -> StrangerLimit:
    """As it is the same at every stranger's, the request is at fault: it is not sent to the next one."""
    error = StrangerLimit(f"{text}; {todo}", fix=todo)
    error.http_status = BadRequest.http_status
    return error


def _check_length(name: str, length: int, most: int) -> None:
    if length > most:
        raise _beyond(f"`{name}` has {length:,} characters; a stranger may send {most:,}", "send less")


def _check_nesting(name: str, text: str) -> None:
    depth = 0
    for letter in text:
        if letter == "(":
            depth += 1
            if depth > MOST_NESTING:
                raise _beyond(f"`{name}` is nested more than {MOST_NESTING} deep", "make it simpler")
        elif letter == ")":
            depth -= 1


def _number(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise BadRequest(f"`{name}` must be a number")
    try:
        return int(value)
    except OverflowError:  # 1e999
        raise BadRequest(f"`{name}` must be a number") from None
