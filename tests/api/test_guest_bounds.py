import json
import random
import time
from typing import Any

import pytest

from meshnode.api.endpoints import COUNTING_ENDPOINTS, PUBLIC_ENDPOINTS
from meshnode.api.guest_bounds import (
    ABSURD_TOKENS,
    COUNTED,
    MEMBERS,
    MOST_ALTERNATIVES,
    MOST_BODY_BYTES,
    MOST_GRAMMAR_CHARACTERS,
    MOST_NESTING,
    MOST_TOOLS_CHARACTERS,
    MOST_VALUES,
    PLAIN_TOKENS,
    Bounded,
    bounded,
    counted,
)
from meshnode.api.resume import LIMIT_MEMBERS
from meshnode.errors import BadRequest, MeshnodeError, StrangerLimit

CHAT, COMPLETION, RESPONSES, MESSAGES, EMBEDDINGS = PUBLIC_ENDPOINTS
LONGEST = 4096
ASKED: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hello"}], "stream": True},
    COMPLETION: {"prompt": "hello", "stream": True},
    RESPONSES: {"input": "hello", "stream": True},
    MESSAGES: {"messages": [{"role": "user", "content": "hello"}], "stream": True},
    EMBEDDINGS: {"input": "hello"},
}
TEXTS = [path for path in PUBLIC_ENDPOINTS if path != EMBEDDINGS]


def read(path: str, body: Any = None, **more: Any) -> Bounded:
    value = body if body is not None else {"model": "demo", **ASKED[path], **more}
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return bounded(path, raw, answer_tokens=LONGEST)


def sent(path: str, answer_tokens: int = 100, **more: Any) -> dict[str, Any]:
    return dict(json.loads(read(path, **more).body(answer_tokens)))


def refusal(path: str, body: Any = None, **more: Any) -> MeshnodeError:
    with pytest.raises((StrangerLimit, BadRequest)) as caught:
        read(path, body, **more)
    assert len(caught.value.detail) > 10 and caught.value.http_status == 400
    return caught.value


def test_every_public_endpoint_has_its_members() -> None:
    assert set(MEMBERS) == set(PUBLIC_ENDPOINTS) and set(COUNTED) == set(COUNTING_ENDPOINTS)
    for members in MEMBERS.values():
        assert not members & {"lora", "id_slot", "cache_prompt", "n_discard", "n_keep", "chat_parser", "verbose"}


@pytest.mark.parametrize("path", TEXTS)
def test_the_engine_gets_what_is_listed_and_no_more(path: str) -> None:
    more = {
        "temperature": 0.5,
        "cache_prompt": True,
        "n_discard": -5,
        "n_keep": -1,
        "verbose": True,
        "timings_per_token": True,
        "response_fields": ["prompt"],
        "speculative.n_max": 99,
        "chat_parser": "x",
        "grammar_triggers": [],
        "message_delimiters": [],
        "backend_sampling": True,
        "sse_ping_interval": 1,
        "t_max_predict_ms": 1,
        "metadata": {"user_id": "x"},
        "__verbose": 1,
    }
    got = sent(path, **more)
    limit = "max_output_tokens" if path == RESPONSES else "max_tokens"
    assert got == {"model": "demo", **ASKED[path], "temperature": 0.5, limit: 100, "cache_prompt": False}


def test_an_embedding_is_sent_as_it_is() -> None:
    assert sent(EMBEDDINGS, user="x", truncate=True) == {"model": "demo", "input": "hello"}
    assert read(EMBEDDINGS).wanted == 0


@pytest.mark.parametrize("path", TEXTS)
@pytest.mark.parametrize(
    ("name", "reason"), [("lora", "adapters"), ("id_slot", "slots")], ids=["adapters of the owner", "slots"]
)
def test_what_belongs_to_the_owner_is_refused_in_words(path: str, name: str, reason: str) -> None:
    assert reason in refusal(path, **{name: 1}).detail


# --- tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", TEXTS)
def test_a_limit_that_is_absent_or_modest_is_cut(path: str) -> None:
    name = "max_output_tokens" if path == RESPONSES else "max_tokens"
    assert read(path).wanted is None
    assert read(path, **{name: 32_000}).wanted == 32_000
    assert sent(path, 77, **{name: 32_000})[name] == 77
    assert read(path, **{name: -1}).wanted is None  # llama-server's word for no limit
    assert sent(path, 77, **{name: -1})[name] == 77
    assert sent(path, 77, **{name: None})[name] == 77
    assert read(path, **{name: 10.0}).wanted == 10


@pytest.mark.parametrize("path", TEXTS)
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n_predict", "max_output_tokens"])
@pytest.mark.parametrize("number", [10**6, ABSURD_TOKENS + 1, 1e300])
def test_an_absurd_limit_is_refused_in_words_whatever_it_is_called(path: str, name: str, number: float) -> None:
    error = refusal(path, **{name: number})
    assert isinstance(error, StrangerLimit) and name in error.detail and f"{int(number):,}" in error.detail


def test_the_smallest_of_several_limits_counts_and_all_are_cut() -> None:
    asked = read(CHAT, max_tokens=500, n_predict=-1, max_completion_tokens=300)
    assert asked.wanted == 300
    got = json.loads(asked.body(200))
    assert (got["max_tokens"], got["n_predict"], got["max_completion_tokens"]) == (200, 200, 200)


@pytest.mark.parametrize("value", ["many", True, [5], {}])
def test_a_limit_that_is_no_number_is_a_bad_request(value: object) -> None:
    assert isinstance(refusal(CHAT, max_tokens=value), BadRequest)


@pytest.mark.parametrize("path", TEXTS)
def test_a_long_answer_is_streamed_as_the_engine_works_on_at_plain_ones(path: str) -> None:
    assert "streamed" in refusal(path, stream=False).detail
    name = "max_output_tokens" if path == RESPONSES else "max_tokens"
    assert "streamed" in refusal(path, stream=False, **{name: PLAIN_TOKENS + 1}).detail
    assert read(path, stream=False, **{name: PLAIN_TOKENS}).wanted == PLAIN_TOKENS


# --- slots ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", TEXTS)
@pytest.mark.parametrize("name", ["n", "n_cmpl", "best_of"])
def test_one_request_is_one_answer(path: str, name: str) -> None:
    assert "at most 1" in refusal(path, **{name: 2}).detail
    read(path, **{name: 1})


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        (COMPLETION, "prompt", ["a", "b"]),
        (COMPLETION, "prompt", [[1, 2], [3, 4]]),
        (COMPLETION, "prompt", ["a", 1 << 40]),  # no integer to llama-server, which would see two prompts
        (COMPLETION, "prompt", ["a", True]),
        (COMPLETION, "prompt", {"prompt_string": "a", "multimodal_data": ["http://x"]}),
        (COMPLETION, "prompt", [1, {"prompt_string": "a"}]),
        (EMBEDDINGS, "input", ["a"] * 100),
        (EMBEDDINGS, "input", [{"content": []}, {"content": []}]),
    ],
)
def test_one_request_is_one_slot(path: str, name: str, value: object) -> None:
    refusal(path, **{name: value})


@pytest.mark.parametrize("value", ["a", ["a"], [1, 2, 3], ["text of a prompt", 15339, 7]])
def test_a_prompt_of_texts_and_tokens_is_one(value: object) -> None:
    assert sent(COMPLETION, prompt=value)["prompt"] == value


def test_a_conversation_has_as_many_items_as_it_wants() -> None:
    items = [{"role": "user", "content": "a"}] * 50
    assert sent(RESPONSES, input=items)["input"] == items
    assert sent(CHAT, messages=items)["messages"] == items


# --- grammars, schemas, lists ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["n_probs", "logprobs", "top_logprobs"])
def test_alternatives_are_bounded(name: str) -> None:
    assert str(MOST_ALTERNATIVES) in refusal(CHAT, **{name: 10**5}).detail
    assert sent(CHAT, **{name: MOST_ALTERNATIVES})[name] == MOST_ALTERNATIVES
    assert sent(CHAT, logprobs=True)["logprobs"] is True


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"items": value}
    return value


@pytest.mark.parametrize(
    "more",
    [
        {"grammar": "root ::= " + "a" * MOST_GRAMMAR_CHARACTERS},
        {"grammar": "root ::= " + "(" * (MOST_NESTING + 1)},
        {"grammar": ["root"]},
        {"json_schema": {"type": "array", "maxItems": 10**9}},
        {"json_schema": {"enum": ["x" * 100] * 1000}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"minLength": 1e99}}}},
        {"response_format": {"type": "json_object", "schema": {"pattern": "^" + "(" * 100}}},
        {"response_format": {"type": "json_object", "schema": {"pattern": "a" * 5000}}},
        {"tools": [{"type": "function", "function": {"parameters": {"properties": {"a": {"maxLength": 10**7}}}}}]},
        {"tools": [{"x": "y" * MOST_TOOLS_CHARACTERS}]},
        {"tool_choice": {"x": "y" * 5000}},
        {"chat_template_kwargs": {"x": "y" * 5000}},
        {"stop": ["a"] * 17},
        {"stop": "a" * 300},
        {"samplers": ["top_k"] * 17},
        {"logit_bias": [[token, 1] for token in range(1025)]},
        {"messages": [nested(MOST_NESTING + 1)]},
        {"messages": [[]] * (MOST_VALUES + 1)},
    ],
    ids=lambda more: "-".join(more) if isinstance(more, dict) else None,
)
def test_what_costs_more_than_an_answer_is_refused(more: dict[str, Any]) -> None:
    refusal(CHAT, **more)


def test_what_agents_send_passes() -> None:
    schema = {"type": "object", "properties": {"path": {"type": "string", "pattern": "^(/[a-z]+){1,9}$"}}}
    tool = {"type": "function", "function": {"name": "read", "description": "d" * 900, "parameters": schema}}
    got = sent(CHAT, tools=[tool] * 40, stop=["END"], response_format={"type": "text"}, logit_bias={"5": -100})
    assert len(got["tools"]) == 40 and got["stop"] == ["END"] and got["logit_bias"] == {"5": -100}
    got = sent(MESSAGES, system=[{"type": "text", "text": "s" * 9000}], stop_sequences=["X"], thinking={"type": "x"})
    assert {"system", "stop_sequences", "thinking"} <= set(got)


# --- nothing is fetched ---------------------------------------------------------------------------------------

PICTURES = [
    (CHAT, {"type": "image_url", "image_url": {"url": "%s"}}),
    (CHAT, {"type": "input_audio", "input_audio": {"data": "%s", "format": "mp3"}}),
    (CHAT, {"type": "video_url", "video_url": {"url": "%s"}}),
    (RESPONSES, {"type": "input_image", "image_url": "%s"}),
    (MESSAGES, {"type": "image", "source": {"type": "url", "url": "%s"}}),
    (
        MESSAGES,
        {
            "type": "tool_result",
            "tool_use_id": "t",
            "content": [{"type": "image", "source": {"type": "url", "url": "%s"}}],
        },
    ),
]


@pytest.mark.parametrize(("path", "part"), PICTURES, ids=lambda value: value["type"] if isinstance(value, dict) else "")
@pytest.mark.parametrize("address", ["http://127.0.0.1:1/x", "https://x.example", "file:///etc/passwd", " HTTP://x"])
def test_nothing_is_fetched_for_a_stranger(path: str, part: dict[str, Any], address: str) -> None:
    name = "input" if path == RESPONSES else "messages"

    def asked(text: str) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [json.loads(json.dumps(part) % text)]}]

    assert "nothing is fetched" in refusal(path, **{name: asked(address)}).detail
    read(path, **{name: asked("data:image/png;base64,AAAA")})


def test_the_address_in_a_call_of_a_tool_is_its_own_affair() -> None:
    call = {
        "type": "tool_use",
        "id": "1",
        "name": "fetch",
        "input": {"source": "https://x.example", "image_url": "http"},
    }
    read(MESSAGES, messages=[{"role": "assistant", "content": [call]}])
    read(CHAT, messages=[{"role": "user", "content": "see http://x.example"}])


# --- anything -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [b"", b"[]", b"null", b"{", b'{"a":1,"a":2}', b'{"a":NaN}', b"[" * 99_999, b"\xff"])
@pytest.mark.parametrize("path", PUBLIC_ENDPOINTS)
def test_a_body_that_is_no_object_is_a_bad_request(path: str, raw: bytes) -> None:
    assert isinstance(refusal(path, raw), BadRequest)


def test_a_number_that_json_has_no_form_for_goes_no_further() -> None:
    asked = read(CHAT, b'{"messages":[],"stream":true,"temperature":1e999}')
    with pytest.raises(BadRequest, match="too large"):
        asked.body(10)


def anything(chance: random.Random, depth: int = 0) -> Any:
    kind = chance.randrange(8 if depth < 4 else 6)
    if kind < 6:
        return chance.choice([None, True, -1, 0, 10**6, 10**30, 0.5, 1e308, "", "http://x", "\ud800", "x" * 300])
    if kind == 6:
        return [anything(chance, depth + 1) for _ in range(chance.randrange(4))]
    names = [*("type", "image_url", "pattern", "maxItems", "content", "role", "function"), "x"]
    return {chance.choice(names): anything(chance, depth + 1) for _ in range(chance.randrange(4))}


@pytest.mark.parametrize("path", PUBLIC_ENDPOINTS)
def test_any_value_anywhere_is_bounded_or_refused(path: str) -> None:
    chance = random.Random(path)
    names = sorted(MEMBERS[path] | {"lora", "n", "max_tokens"})
    passed = 0
    for _ in range(1500):
        body = {"model": "m", **ASKED[path], **{chance.choice(names): anything(chance) for _ in range(3)}}
        try:
            got = json.loads(read(path, body).body(50))
        except (BadRequest, StrangerLimit):
            continue
        passed += 1
        assert set(got) <= MEMBERS[path] | {"cache_prompt"}
        if path != EMBEDDINGS:
            limits = [got[name] for name in LIMIT_MEMBERS if name in got]
            assert limits and set(limits) == {50} and got["cache_prompt"] is False
    assert passed > 50


def test_the_largest_body_is_judged_in_time() -> None:
    tokens = list(range(100_000, 100_000 + 140_000))
    raw = json.dumps({"model": "m", "stream": True, "prompt": tokens}).encode()
    assert len(raw) > MOST_BODY_BYTES
    begin = time.process_time()
    assert read(COMPLETION, raw).prompt_tokens > 100_000
    assert time.process_time() - begin < 1.0


# --- counting -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", COUNTED)
def test_a_count_asks_the_engine_for_nothing_else(path: str) -> None:
    given = {"model": "demo", "content": ["a"], "input": "a", "messages": [], "lora": [], "id_slot": 1, "timings": True}
    model, body = counted(path, json.dumps(given).encode())
    assert model == "demo" and set(json.loads(body)) <= COUNTED[path] and "model" in json.loads(body)


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"[" * 1000, b'{"content":1e999}', b'{"content":' + b"[" * 500 + b"]" * 500 + b"}"]
)
def test_a_count_that_breaks_the_rules_is_refused(raw: bytes) -> None:
    with pytest.raises((BadRequest, StrangerLimit)):
        counted("/tokenize", raw)
