"""Answers of strangers are looked at by a second node: which, by whom, what it is asked, and what follows."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest

from meshnode.api.attempt import Errand, exchange_with
from meshnode.api.body import JsonObject
from meshnode.api.endpoints import ENDPOINTS
from meshnode.api.gate import Gates
from meshnode.api.request import Request
from meshnode.api.sent import CONTENT
from meshnode.api.served import Host, Served
from meshnode.api.upstream import Connect
from meshnode.api.verifying import WAITING, Verifier, question, readable, scored_of, tokens_of
from meshnode.core.verification import PLACES, Reputations, Scored
from tests.api.fake_llama import FakeLlamaServer, plain, raw

pytestmark = pytest.mark.anyio

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "count from 1 to 20"}
WEIGHTS = "ab" * 16
STRANGER = Host("a" * 64, content_hash=WEIGHTS, radius="public")
COUNTED = ("1", ",", " 2", ",", " 3", ",", " 4", ",", " 5")


def request(path: str = CHAT, **members: Any) -> Request:
    body = json.dumps({"model": "demo", **members}).encode()
    return Request(ENDPOINTS[path], Served("demo", "ready"), "me", body, "a/b", True, False, JsonObject.parse(body))


def events(path: str, *texts: str) -> bytes:
    choices = [
        {"index": 0, "text": text} if path == COMPLETION else {"index": 0, "delta": {"content": text}} for text in texts
    ]
    return b"".join(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n" for choice in choices)


def told(*alternatives: tuple[str, float]) -> bytes:
    listed = [{"bytes": list(text.encode()), "logprob": logprob} for text, logprob in alternatives]
    return json.dumps({"choices": [{"logprobs": {"content": [{"top_logprobs": listed}]}}]}).encode()


def verifier(*hosts: Host, seed: int = 1) -> tuple[Verifier, Reputations, list[tuple[str, str, str]]]:
    chance = random.Random(seed)
    book = Reputations(chance)
    verdicts: list[tuple[str, str, str]] = []
    made = Verifier(
        hosts=lambda model: list(hosts),
        gates=Gates(capacity=8, timeout_s=5),
        reputations=book,
        random=chance,
        told=lambda node, before, after: verdicts.append((node, before, after)),
    )
    return made, book, verdicts


# --- which answers --------------------------------------------------------------------------------------------


def test_an_ordinary_answer_of_a_stranger_can_be_looked_at() -> None:
    for path, members in ((CHAT, {"messages": [USER]}), (COMPLETION, {"prompt": "1, 2"})):
        found = readable(request(path, **members), events(path, *COUNTED), STRANGER)
        assert found is not None and found.sent.texts[(0, CONTENT)] == list(COUNTED)


@pytest.mark.parametrize(
    ("path", "members"),
    [
        (CHAT, {"messages": [USER], "grammar": "root ::= [0-9]"}),
        (CHAT, {"messages": [USER], "response_format": {"type": "json_object"}}),
        (CHAT, {"messages": [USER], "logit_bias": {"5": 1}}),
        (CHAT, {"messages": [USER], "frequency_penalty": 0.5}),
        (CHAT, {"messages": [USER], "repeat_penalty": 1.1}),
        (CHAT, {"messages": [USER], "n": 2}),
        (COMPLETION, {"prompt": ["a", "b"]}),
        (COMPLETION, {"prompt": [1, 2, 3]}),
        ("/v1/messages", {"messages": [USER]}),
        ("/v1/embeddings", {"input": "a"}),
    ],
)
def test_of_others_nothing_is_said(path: str, members: dict[str, Any]) -> None:
    assert readable(request(path, **members), events(path, *COUNTED), STRANGER) is None


def test_neither_of_friends_nor_of_unnamed_weights_nor_of_a_word_nor_of_rubbish() -> None:
    asked = request(messages=[USER])
    whole = events(CHAT, *COUNTED)
    assert readable(asked, whole, replace(STRANGER, radius="trusted")) is None
    assert readable(asked, whole, replace(STRANGER, content_hash="")) is None
    assert readable(asked, events(CHAT, "1", ","), STRANGER) is None
    assert readable(asked, b"data: {\n\n", STRANGER) is None
    called = {"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "x", "function": {"name": "f"}}]}}
    assert readable(asked, whole + b"data: " + json.dumps({"choices": [called]}).encode() + b"\n\n", STRANGER) is None


# --- what is asked, what is answered --------------------------------------------------------------------------


def test_the_second_node_gets_the_same_prompt_and_the_beginning_of_the_answer() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    asked = request(messages=[USER], tools=tools, stream=True, max_tokens=99, temperature=1.5, user="me")
    found = readable(asked, events(CHAT, *COUNTED), STRANGER)
    assert found is not None
    assert json.loads(question(found, 3)) == {
        "model": "demo",
        "max_tokens": 1,
        "temperature": 0,
        "stream": False,
        "logprobs": True,
        "top_logprobs": 20,
        "tools": tools,
        "messages": [USER, {"role": "assistant", "content": "1, 2"}],
    }
    assert json.loads(question(found, 0))["messages"] == [USER]


def test_behind_a_prompt_stand_the_tokens_of_the_answer() -> None:
    found = readable(request(COMPLETION, prompt="0, "), events(COMPLETION, *COUNTED), STRANGER)
    assert found is not None
    tokens = tuple((100 + number, text.encode()) for number, text in enumerate(COUNTED))
    asked = json.loads(question(found, 2, tokens))
    assert asked["prompt"] == ["0, ", 100, 101] and asked["logprobs"] == 20 and "messages" not in asked
    assert json.loads(question(found, 0, tokens))["prompt"] == "0, "
    with pytest.raises(ValueError, match="inside of a token"):
        question(found, 1, ((7, b"1, 2"),))


@pytest.mark.parametrize(
    "reply", [b"", b"[]", b"{}", b'{"tokens":1}', b'{"tokens":[1]}', b'{"tokens":[{"id":"x","piece":"a"}]}']
)
def test_tokens_of_another_form_are_refused(reply: bytes) -> None:
    with pytest.raises(ValueError, match="without tokens"):
        tokens_of(reply)


def test_tokens_are_numbers_and_bytes() -> None:
    assert tokens_of(b'{"tokens":[{"id":5,"piece":"a"},{"id":6,"piece":[195]}]}') == ((5, b"a"), (6, b"\xc3"))


def test_alternatives_that_begin_the_rest_count_whatever_their_length() -> None:
    reply = told((" 2", -0.5), (" ", -1.0), (" 2, 3, 4", -2.0), ("x", -3.0), ("", -4.0))
    assert scored_of(reply, b" 2, 3") == Scored((-0.5, -1.0, -2.0, -3.0, -4.0), (0, 1, 2))
    assert scored_of(told(("b", -2.0), ("a", -0.1)), b"b") == Scored((-0.1, -2.0), (1,)), "the best first"


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"[]",
        b"{}",
        b'{"choices":[]}',
        told(),
        told(("a", 1.0)),
        b'{"choices":[{"logprobs":{"content":[{"top_logprobs":[{"bytes":[1],"logprob":NaN}]}]}}]}',
        b'{"choices":[{"logprobs":{"content":[{"top_logprobs":[{"bytes":[999],"logprob":-1}]}]}}]}',
        b'{"choices":[{"logprobs":{"content":[{"top_logprobs":[{"bytes":99999999999,"logprob":-1}]}]}}]}',
        b"[" * 100_000,
    ],
)
def test_other_answers_are_refused(reply: bytes) -> None:
    with pytest.raises(ValueError, match="alternatives"):
        scored_of(reply, b"a")


# --- who is asked ---------------------------------------------------------------------------------------------


async def test_the_nearest_with_the_same_weights_is_asked_and_never_the_stranger_itself(llama: FakeLlamaServer) -> None:
    near, far = FakeLlamaServer(llama.socket), llama
    llama.script = plain(200, told(("x", -0.1), ("y", -2.5)))
    hosts = (
        replace(STRANGER, connect=near.connect),
        Host("b" * 64, connect=None, content_hash=WEIGHTS, radius="local"),
        Host("c" * 64, connect=far.connect, content_hash="cd" * 16, radius="local"),
        Host("d" * 64, connect=far.connect, content_hash=WEIGHTS, radius="public", rtt_s=0.1),
        Host("e" * 64, connect=far.connect, content_hash=WEIGHTS, radius="public", rtt_s=0.01),
    )
    made, book, verdicts = verifier(*hosts)
    asked = request(messages=[USER], temperature=0)
    made.offer(asked, events(CHAT, *COUNTED), STRANGER)
    await made.settled()
    assert len(llama.requests) == made.counters["questions"] == PLACES
    assert verdicts == [(STRANGER.node, "unknown", "bad")], "none of its tokens is likely there"
    assert book.verdict(STRANGER.node) == "bad"


async def test_where_nobody_else_has_the_weights_nothing_is_said() -> None:
    made, book, verdicts = verifier(STRANGER)
    made.offer(request(messages=[USER]), events(CHAT, *COUNTED), STRANGER)
    await made.settled()
    assert made.counters == {"nobody_to_ask": 1}
    assert verdicts == [] and book.verdict(STRANGER.node) == "unknown"


async def test_a_second_node_that_fails_or_talks_rubbish_harms_nobody(llama: FakeLlamaServer) -> None:
    made, book, verdicts = verifier(Host("b" * 64, connect=llama.connect, content_hash=WEIGHTS))
    for script in (raw(b""), plain(500, b"{}"), plain(400, b"{}"), plain(200, b"{}"), plain(200, b"x" * (2 << 20))):
        llama.script = script
        made.offer(request(messages=[USER]), events(CHAT, *COUNTED), STRANGER)
        await made.settled()
    assert verdicts == [] and book.verdict(STRANGER.node) == "unknown" and made.counters["looked_at"] == 0


async def test_no_more_than_a_few_wait(llama: FakeLlamaServer) -> None:
    made, _, _ = verifier(Host("b" * 64, connect=llama.connect, content_hash=WEIGHTS))
    for _ in range(WAITING + 5):
        made.offer(request(messages=[USER]), events(CHAT, *COUNTED), STRANGER)
    assert made.counters["passed_over"] == 5
    await made.close()
    await made.settled()


# --- the real engine ------------------------------------------------------------------------------------------


async def answer_of(connect: Connect, asked: Request, **members: Any) -> bytes:
    body = json.dumps({**asked.members, "stream": True, **members}).encode()
    errand = Errand("demo", asked.endpoint, body, "application/json", "test")
    host = Host("f" * 64, connect=connect)
    async with exchange_with(lambda: host, errand, here=False, gates=Gates(capacity=1, timeout_s=1), slots=1) as found:
        return await found.read_all(1 << 20)


PROMPTS = ("count from 1 to 20", "say the alphabet", "what is meshnode?", "hello", "what is 7 plus 8?")


@pytest.mark.engine
@pytest.mark.parametrize(("path", "temperature"), [(CHAT, 0), (CHAT, 1), (COMPLETION, 0.8)])
async def test_a_node_with_the_weights_it_claims_keeps_its_name(
    real_llama: Connect, path: str, temperature: float
) -> None:
    made, book, verdicts = verifier(Host("b" * 64, connect=real_llama, content_hash=WEIGHTS), seed=3)
    for seed, prompt in enumerate(PROMPTS):
        given = {"prompt": prompt} if path == COMPLETION else {"messages": [{"role": "user", "content": prompt}]}
        asked = request(path, **given, temperature=temperature, max_tokens=40)
        made.offer(asked, await answer_of(real_llama, asked, seed=seed), STRANGER)
        await made.settled()
    assert made.counters["looked_at"] >= 2 and made.counters["places"] > 10
    assert book.verdict(STRANGER.node) != "bad" and all(after != "bad" for _, _, after in verdicts)


@pytest.mark.engine
async def test_a_node_that_makes_its_answers_up_loses_it(real_llama: Connect) -> None:
    made, book, verdicts = verifier(Host("b" * 64, connect=real_llama, content_hash=WEIGHTS), seed=4)
    made_up = ("Certainly", "!", " The", " sea", " is", " deep", " and", " blue", ".")
    for prompt in PROMPTS:
        made.offer(request(messages=[{"role": "user", "content": prompt}]), events(CHAT, *made_up), STRANGER)
        await made.settled()
    assert verdicts[0][2] == "bad" or book.verdict(STRANGER.node) == "bad"
