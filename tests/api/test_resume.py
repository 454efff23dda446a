import json

import pytest

from meshnode.api.body import JsonObject
from meshnode.api.resume import (
    Asked,
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
from meshnode.api.sent import CONTENT, REASONING, Sent

GREEDY, DRAWN, UNKNOWN = Sampling.GREEDY, Sampling.DRAWN, Sampling.UNKNOWN
CONTINUE, REPLAY, CLOSE = Method.CONTINUE, Method.REPLAY, Method.CLOSE
CHAT, COMPLETIONS, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"


def sent(*, text: str = "", reasoning: str = "", call: bool = False, finish: str = "") -> Sent:
    found = Sent()
    if text:
        found.add((0, CONTENT), text)
    if reasoning:
        found.add((0, REASONING), reasoning)
    if call:
        found.calls[0, "call-0"] = {"name": "add"}
    if finish:
        found.finish[0] = finish
    return found


@pytest.mark.parametrize(
    ("members", "wanted"),
    [
        ({}, (UNKNOWN, False, 1)),
        ({"temperature": 0}, (GREEDY, False, 1)),
        ({"temperature": 0.0, "seed": 5}, (GREEDY, False, 1)),
        ({"temperature": 0.7, "top_k": 1}, (GREEDY, False, 1)),
        ({"temperature": 0.7}, (DRAWN, False, 1)),
        ({"temperature": 0.7, "seed": 5}, (UNKNOWN, False, 1)),
        ({"temperature": 0.7, "seed": -1}, (DRAWN, False, 1)),
        ({"temperature": "hot", "n": 3}, (UNKNOWN, False, 3)),
        ({"prompt": ["a", "b"]}, (UNKNOWN, False, 2)),
        ({"prompt": ["a", 5]}, (UNKNOWN, False, 1)),
        ({"prompt": [5, 6]}, (UNKNOWN, False, 1)),
        ({"grammar": "root ::= x"}, (UNKNOWN, True, 1)),
        ({"json_schema": {"type": "object"}}, (UNKNOWN, True, 1)),
        ({"response_format": {"type": "json_object"}}, (UNKNOWN, True, 1)),
        ({"response_format": {"type": "text"}}, (UNKNOWN, False, 1)),
        ({"text": {"format": {"type": "json_schema"}}}, (UNKNOWN, True, 1)),
        ({"text": {"format": {"type": "text"}}}, (UNKNOWN, False, 1)),
        ({"tools": [{}]}, (UNKNOWN, False, 1)),
        ({"tools": [{}], "tool_choice": {"type": "auto"}}, (UNKNOWN, False, 1)),
        ({"tools": [{}], "tool_choice": "required"}, (UNKNOWN, True, 1)),
        ({"tools": [{}], "tool_choice": {"type": "any"}}, (UNKNOWN, True, 1)),
        ({"tool_choice": "required"}, (UNKNOWN, False, 1)),
    ],
)
def test_what_a_request_asks_for(members: dict[str, object], wanted: tuple[Sampling, bool, int]) -> None:
    assert read_asked(members) == Asked(*wanted)


TEXT, CALLS, END = sent(text="a"), sent(call=True), sent(text="a", finish="stop")


@pytest.mark.parametrize(
    ("state", "constrained", "drawn", "greedy", "unknown"),
    [
        (sent(), False, [REPLAY], [REPLAY], [REPLAY]),
        (sent(), True, [REPLAY], [REPLAY], [REPLAY]),
        (END, True, [CLOSE], [REPLAY, CLOSE], [CLOSE]),
        (TEXT, False, [CONTINUE], [CONTINUE, REPLAY], [CONTINUE, REPLAY]),
        (sent(reasoning="a"), False, [CONTINUE], [CONTINUE, REPLAY], [CONTINUE, REPLAY]),
        (TEXT, True, None, [REPLAY], [REPLAY]),
        (CALLS, False, None, [REPLAY], [REPLAY]),
    ],
)
def test_the_table(state: Sent, constrained: bool, drawn: object, greedy: object, unknown: object) -> None:
    for sampling, wanted in ((DRAWN, drawn), (GREEDY, greedy), (UNKNOWN, unknown)):
        for choices in (1, 2):
            asked = Asked(sampling, constrained, choices)
            expected = wanted
            if choices > 1 and state in (TEXT,) and not constrained or choices > 1 and wanted and CONTINUE in wanted:  # type: ignore[operator]
                expected = None if sampling is DRAWN else [REPLAY]
            if expected is None:
                with pytest.raises(CannotContinue):
                    methods(asked, state)
            else:
                assert methods(asked, state) == expected


# --- bodies ---------------------------------------------------------------------------------------------------


def parsed(**members: object) -> JsonObject:
    return JsonObject.parse(json.dumps(members).encode())


USER = {"role": "user", "content": "hi"}


def test_the_text_so_far_becomes_the_last_message_of_every_dialect() -> None:
    state = sent(text="é", reasoning="hm")
    body = json.loads(with_text(CHAT, parsed(model="gpt-4", messages=[USER], seed=3), state, model="demo"))
    last = {"role": "assistant", "content": "é", "reasoning_content": "hm"}
    assert body == {"model": "demo", "messages": [USER, last], "seed": 3}
    assert json.loads(with_text(CHAT, parsed(messages=[USER]), sent(text="a"), model="demo"))["messages"][1] == {
        "role": "assistant",
        "content": "a",
    }
    body = json.loads(with_text(MESSAGES, parsed(messages=[USER]), state, model="demo"))
    assert body["messages"][1]["content"] == [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "é"}]
    for given, first in (("hi", USER), ([USER], USER)):
        body = json.loads(with_text(RESPONSES, parsed(input=given), state, model="demo"))
        assert body["input"][0] == first
        assert [item["type"] for item in body["input"][1:]] == ["reasoning", "message"]
        assert body["input"][2]["content"] == [{"type": "output_text", "text": "é"}]


def test_what_cannot_be_continued_as_a_message() -> None:
    begun = [USER, {"role": "assistant", "content": "1,"}]
    for members in ({"messages": begun}, {"messages": 7}, {}):
        with pytest.raises(CannotContinue):
            with_text(CHAT, parsed(**members), TEXT, model="demo")


def test_tokens_go_behind_every_form_of_a_prompt() -> None:
    for prompt, wanted in (
        ("ab", ["ab", 7, 8]),
        ([1, 2], [1, 2, 7, 8]),
        (["a", 1], ["a", 1, 7, 8]),
        (["a"], ["a", 7, 8]),
    ):
        assert json.loads(with_tokens(parsed(prompt=prompt), [7, 8], model="demo"))["prompt"] == wanted


@pytest.mark.parametrize(
    ("path", "members", "used", "wanted"),
    [
        (CHAT, {"max_tokens": 10}, 3, {"max_tokens": 7}),
        (CHAT, {"max_completion_tokens": 10, "max_tokens": 20}, 3, {"max_completion_tokens": 7, "max_tokens": 17}),
        (CHAT, {"max_tokens": 10}, 10, None),
        (CHAT, {"max_tokens": 10}, 11, None),
        (CHAT, {"max_tokens": -1}, 3, {"max_tokens": -1}),
        (CHAT, {"max_tokens": None}, 3, {"max_tokens": None}),
        (CHAT, {}, 3, {}),
        (COMPLETIONS, {"n_predict": 10}, 3, {"n_predict": 7}),
        (RESPONSES, {"max_output_tokens": 10}, 3, {"max_output_tokens": 7}),
        (MESSAGES, {"max_tokens": 10}, 3, {"max_tokens": 7}),
        (MESSAGES, {}, 96, {"max_tokens": 4000}),
    ],
)
def test_a_limit_is_lowered_by_what_went_out(
    path: str, members: dict[str, object], used: int, wanted: dict[str, object] | None
) -> None:
    body = with_limit(path, parsed(**members), used)
    assert (None if body is None else json.loads(body)) == wanted
    limit = limit_of(path, members)
    assert (limit is not None and used >= limit) is (wanted is None)


# --- tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deltas", "pieces", "held", "stops", "same"),
    [
        (["a", " b"], [b"a", b" b"], [], False, True),
        (["a", " b"], [b"a b"], [], False, False),
        (["ab"], [b"a", b"b"], [], False, False),
        (["ab"], [b"a", b"b"], [], True, True),
        (["ab"], [b"a", b"b"], [1], False, True),
        (["ab"], [b"a", b"b"], [2], False, False),
        (["é"], [b"\xc3", b"\xa9"], [], False, True),
        (["é"], [b"\xc3\xa9"], [], False, True),
        (["🦙", "a"], [b"\xf0\x9f", b"\xa6\x99a"], [], False, False),
        (["a"], [b"a", b"b"], [], False, False),
        (["a", "b"], [b"a"], [], False, False),
        (["a"], [b" a"], [], False, False),
        ([], [], [], False, True),
        (["\ud800"], [b"\xed\xa0\x80"], [], False, True),
    ],
)
def test_whether_a_text_falls_into_the_tokens_in_which_it_was_drawn(
    deltas: list[str], pieces: list[bytes], held: list[int], stops: bool, same: bool
) -> None:
    assert same_tokens(deltas, pieces, held, stops=stops) is same


def test_pieces_are_texts_or_bytes() -> None:
    assert (piece_bytes("é"), piece_bytes([195]), piece_bytes("")) == (b"\xc3\xa9", b"\xc3", b"")
    for wrong in (None, 7, [300], {}):
        with pytest.raises((ValueError, TypeError)):
            piece_bytes(wrong)
