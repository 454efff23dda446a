import json

import pytest

from meshnode.api.joining import JOINERS, Differs, Seam
from meshnode.api.sent import read_sent
from tests.api.reading import read
from tests.api.streams import CHAT, COMPLETIONS, MESSAGES, RESPONSES, SAMPLES, chat, events, message_with_tool, named


def joined(path: str, first: bytes, second: bytes, *, counted: int = 0, repeats: bool = True) -> bytes:
    joiner = JOINERS[path](Seam(read_sent(path, first), repeats=repeats, counted=counted))
    return first + b"".join(joiner.take(event) for event in events(second))


@pytest.mark.parametrize("name", SAMPLES)
def test_a_replay_behind_any_part_of_the_answer_makes_it_whole(name: str) -> None:
    path, stream, again = SAMPLES[name]
    whole = read(path, stream)
    pieces = events(stream)
    for count in range(len(pieces) + 1):
        found = read(path, joined(path, b"".join(pieces[:count]), again))
        if count == len(pieces) and path in (CHAT, COMPLETIONS):
            found.form["DONE"] -= 1  # nobody joins behind [DONE]
        if count == len(pieces) and path in (MESSAGES, RESPONSES):
            continue
        assert found.told == whole.told, count
        assert read(path, b"".join(pieces[:count])).names <= found.names, count


@pytest.mark.parametrize("name", SAMPLES)
def test_the_pieces_of_the_new_stream_may_be_cut_in_any_way_between_events(name: str) -> None:
    path, stream, again = SAMPLES[name]
    first = b"".join(events(stream)[: len(events(stream)) // 2])
    joiner = JOINERS[path](Seam(read_sent(path, first)))
    assert first + joiner.take(b": ping\n\n" + again) == joined(path, first, again)


def test_an_echo_and_new_text_in_one_event_are_told_apart() -> None:
    first = b"".join(events(chat({"content": "one "}, {"content": "two"}))[:3])
    second = chat({"content": "one two three"}, name="other")
    body = joined(CHAT, first, second, counted=2)
    assert read(CHAT, body).texts == {0: "one two three"}
    last = json.loads(events(body)[-2].removeprefix(b"data: "))
    assert last["usage"] == {"completion_tokens": 11, "prompt_tokens": 3, "total_tokens": 14}
    assert last["id"] == "chatcmpl-1"


def test_a_continued_completion_repeats_nothing() -> None:
    def stream(*texts: str) -> bytes:
        choices = [{"text": text, "index": 0, "finish_reason": None} for text in texts]
        return b"".join(
            b"data: " + json.dumps({"id": "i", "choices": [choice]}).encode() + b"\n\n" for choice in choices
        )

    body = joined(COMPLETIONS, stream("a", "b"), stream("b", "", "c"), repeats=False)
    assert read(COMPLETIONS, body).texts == {0: "abbc"}
    assert len(events(body)) == 5  # a token that is held back has an event of its own


def test_timings_tell_of_the_whole_answer() -> None:
    first = b"".join(events(chat({"content": "a"}))[:2])
    timings = {"cache_n": 3, "prompt_n": 4, "predicted_n": 5}
    event = {"choices": [{"index": 0, "delta": {"content": "ab"}, "finish_reason": None}], "timings": timings}
    body = joined(CHAT, first, b"data: " + json.dumps(event).encode() + b"\n\n", counted=5)
    assert json.loads(events(body)[-1][6:])["timings"] == {"cache_n": 0, "prompt_n": 2, "predicted_n": 10}


@pytest.mark.parametrize(
    ("path", "first", "second"),
    [
        (CHAT, chat({"content": "one"}), chat({"content": "two"})),
        (CHAT, chat({"content": "one"}), chat({"content": "on"})),
        (CHAT, chat({"content": "one"}), chat({"reasoning_content": "one"})),
        (CHAT, chat({"reasoning_content": "a"}, {"content": "b"}), chat({"reasoning_content": "ac"}, {"content": "b"})),
        (CHAT, chat({"content": "one"}), chat({"tool_calls": [{"index": 0, "id": "1", "function": {"name": "f"}}]})),
        (CHAT, chat({"content": "one"}), b"data: [DONE]\n\n"),
        (CHAT, chat({"content": "one"}), b"data: {\n\n"),
        (CHAT, chat({"content": "one"}), b'data: {"choices":[{}]}\n\n'),
        (
            CHAT,
            chat({"tool_calls": [{"index": 0, "id": "1", "function": {"name": "add", "arguments": ""}}]}),
            chat({"tool_calls": [{"index": 0, "id": "2", "function": {"name": "sub", "arguments": ""}}]}),
        ),
        (MESSAGES, message_with_tool(), message_with_tool().replace(b'"yes "', b'"no "')),
        (MESSAGES, message_with_tool(), message_with_tool().replace(b'"name": "add"', b'"name": "sub"')),
        (MESSAGES, message_with_tool(), named({"type": "message_stop"})),
        (RESPONSES, SAMPLES["responses"][1], SAMPLES["responses, thinking and a call"][1]),
        (RESPONSES, SAMPLES["responses"][1], named({"type": "response.completed", "response": {}})),
    ],
)
def test_what_differs_is_never_joined(path: str, first: bytes, second: bytes) -> None:
    with pytest.raises(Differs):
        joined(path, b"".join(events(first)[:-1]), second)
