"""How a host is prepared to go on: with the real engine, which alone knows its tokens; and with unhelpful ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from meshnode.api import continuation
from meshnode.api.attempt import HostFailed
from meshnode.api.body import JsonObject
from meshnode.api.continuation import can_continue, prepare
from meshnode.api.endpoints import ENDPOINTS
from meshnode.api.gate import Gates
from meshnode.api.request import Request
from meshnode.api.resume import CannotContinue, Method
from meshnode.api.served import Host, Served
from meshnode.api.upstream import Connect
from tests.api.fake_llama import FakeLlamaServer, Received, plain, raw, silent
from tests.api.streams import CHAT, COMPLETIONS, events

pytestmark = pytest.mark.anyio
USER = {"role": "user", "content": "count from 1 to 9"}


@dataclass
class Finder:
    connect: Connect

    def find(self, model: str, host: Host, /) -> Host | None:
        return Host("b" * 64, connect=self.connect)


def request(path: str = CHAT, **members: Any) -> Request:
    body = json.dumps({"model": "demo", **members}).encode()
    return Request(ENDPOINTS[path], Served("demo", "ready"), "me", body, "a/b", True, False, JsonObject.parse(body))


def chat(*texts: str) -> bytes:
    choices = [{"index": 0, "delta": {"content": text}, "finish_reason": None} for text in texts]
    return b"".join(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n" for choice in choices)


def completion(*texts: str) -> bytes:
    choices = [{"index": 0, "text": text, "finish_reason": None} for text in texts]
    return b"".join(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n" for choice in choices)


async def go_on(connect: Connect, asked: Request, stream: bytes) -> continuation.Continuation:
    gates = Gates(capacity=1, timeout_s=1)
    return await prepare(asked, stream, Host("b" * 64, connect=connect), finder=Finder(connect), gates=gates)


@pytest.mark.engine
async def test_a_greedy_answer_goes_on_by_its_text_only_in_its_own_tokens(real_llama: Connect) -> None:
    asked = request(messages=[USER], temperature=0, max_tokens=50)
    found = await go_on(real_llama, asked, chat("1", ",", " 2", ","))
    assert found.method is Method.CONTINUE and found.body is not None
    body = json.loads(found.body)
    assert body["messages"] == [USER, {"role": "assistant", "content": "1, 2,"}] and body["max_tokens"] == 46
    for odd in (("1, 2,",), ("1", ", ", "2", ",")):  # never drawn like that, so only a replay is exact
        found = await go_on(real_llama, asked, chat(*odd))
        assert found.method is Method.REPLAY and found.body is not None and json.loads(found.body) == asked.members
    # Where nothing says that it was greedy the text is good enough.
    assert (await go_on(real_llama, request(messages=[USER]), chat("1, 2,"))).method is Method.CONTINUE


@pytest.mark.engine
async def test_a_completion_goes_on_by_its_tokens(real_llama: Connect) -> None:
    asked = request(COMPLETIONS, prompt="1, 2", max_tokens=50, temperature=0)
    found = await go_on(real_llama, asked, completion(",", " 3", ",", " é"))
    assert found.body is not None and (found.method, json.loads(found.body)["max_tokens"] < 47) == (
        Method.CONTINUE,
        True,
    )
    prompt = json.loads(found.body)["prompt"]
    assert prompt[0] == "1, 2" and len(prompt) > 4 and all(isinstance(number, int) for number in prompt[1:])
    assert (await go_on(real_llama, asked, completion(", 3"))).method is Method.REPLAY
    asked = request(COMPLETIONS, prompt="1, 2", temperature=0, stop=["x"])
    assert (await go_on(real_llama, asked, completion(", 3"))).method is Method.CONTINUE  # may have been held back


@pytest.mark.engine
async def test_a_limit_that_is_used_up_closes_the_answer(real_llama: Connect) -> None:
    asked = request(messages=[USER], max_tokens=3, stream_options={"include_usage": True})
    found = await go_on(real_llama, asked, chat("1", ",", " 2"))
    assert (found.method, found.body) == (Method.CLOSE, None)
    finish, usage, done = events(found.join(b""))
    assert json.loads(finish[6:])["choices"][0]["finish_reason"] == "length"
    counts = json.loads(usage[6:])["usage"]
    assert (counts["completion_tokens"], counts["prompt_tokens"], done) == (3, 17, b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("members", "stream", "possible"),
    [
        ({"messages": [USER], "temperature": 0.5}, chat("a"), True),
        ({"messages": [USER], "temperature": 0.5, "n": 2}, chat("a"), False),
        ({"messages": [USER], "temperature": 0.5, "response_format": {"type": "json_object"}}, chat("{"), False),
        ({"messages": [USER], "temperature": 0.5, "n": 2}, b"", True),
        ({"messages": [USER]}, b"data: {\n\n", False),
    ],
)
def test_whether_there_is_a_way_is_known_without_asking(members: dict[str, Any], stream: bytes, possible: bool) -> None:
    assert can_continue(request(**members), stream) is possible


async def test_a_host_that_does_not_help_is_told_from_one_that_fails(
    llama: FakeLlamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(continuation, "QUESTION_S", 0.05)
    drawn = request(messages=[USER], temperature=0.5)
    for script, kind in (
        (plain(200, b"[]"), CannotContinue),
        (plain(200, b"{}"), CannotContinue),
        (plain(200, b'{"input_tokens": 5, "tokens": [{"id": "x"}]}'), CannotContinue),
        (plain(200, b'{"input_tokens": 5, "tokens": []}'), CannotContinue),
        (plain(200, b"{"), CannotContinue),
        (plain(400, b"{}"), CannotContinue),
        (plain(503, b"{}"), CannotContinue),
        (raw(b""), HostFailed),
        (silent, HostFailed),
    ):
        llama.script = script
        with pytest.raises(kind):
            await go_on(llama.connect, drawn, chat("a"))


async def test_where_the_text_cannot_be_used_the_request_is_replayed(llama: FakeLlamaServer) -> None:
    llama.script = plain(400, b"{}")
    found = await go_on(llama.connect, request(messages=[USER], model="gpt-4"), chat("a"))
    assert found.method is Method.REPLAY and found.body is not None
    assert json.loads(found.body) == {"model": "demo", "messages": [USER]}


async def test_questions_are_asked_side_by_side(llama: FakeLlamaServer) -> None:
    async def together(received: Received) -> None:
        await llama.request(2)  # the answer waits until all three have come
        count = 5 if received.path == "/tokenize" or len(received.json["messages"]) == 1 else 6  # type: ignore[arg-type]
        tokens = [{"id": 1, "piece": "a"}]
        await plain(200, json.dumps({"input_tokens": count, "tokens": tokens}).encode())(received)

    llama.script = together
    found = await go_on(llama.connect, request(messages=[USER], temperature=0), chat("a"))
    assert found.method is Method.CONTINUE and len(llama.requests) == 3
