"""How many tokens an answer has come to: by the counts of the engine, which leave no trace, or by its events."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from meshnode.api import metering
from meshnode.api.metering import Meter, Piece, metered
from meshnode.api.upstream import Connect, Exchange, UpstreamBroken
from tests.api.fake_money import PROMPT_TOKENS
from tests.api.paid_stage import chunk, last

MOST = 100


def event(**members: Any) -> bytes:
    return b"data: " + json.dumps(members, separators=(",", ":")).encode() + b"\n\n"


def counts(pieces: list[Piece]) -> list[tuple[int, int]]:
    return [(piece.tokens_in, piece.tokens_out) for piece in pieces]


def test_the_counts_of_the_engine_are_read_and_taken_out() -> None:
    stream = b"".join(chunk("a", number) for number in (1, 2, 3))
    pieces = list(Meter(MOST).take(stream))
    assert counts(pieces) == [(PROMPT_TOKENS, 1), (PROMPT_TOKENS, 2), (PROMPT_TOKENS, 3)]
    assert b"".join(piece.data for piece in pieces) == chunk("a", 1, counts=False) * 3


def test_the_end_stays_as_everybody_gets_it() -> None:
    meter = Meter(MOST)
    pieces = list(meter.take(chunk("a", 1) + last(1)))
    assert b"".join(piece.data for piece in pieces) == chunk("a", 1, counts=False) + last(1)
    assert counts(pieces)[-1] == (PROMPT_TOKENS, 1) and meter.finish == "stop"
    assert meter.rest() is None


def test_however_the_stream_is_cut_it_is_the_same() -> None:
    stream = b"".join(chunk(f"word {number}", number) for number in range(1, 20)) + last(19)
    whole = list(Meter(MOST).take(stream))
    chance = random.Random(7)
    for _ in range(50):
        meter, found, left = Meter(MOST), [], stream
        while left:
            size = chance.randrange(1, 200)
            found += list(meter.take(left[:size]))
            left = left[size:]
        assert found == whole


def test_an_event_that_is_counted_twice_counts_once() -> None:
    """One token can be several events, of which only the last one says the count."""
    meter = Meter(MOST)
    role = event(choices=[{"delta": {"role": "assistant"}, "finish_reason": None}])
    assert counts(list(meter.take(role + chunk("a", 1)))) == [(0, 1), (PROMPT_TOKENS, 1)]


def test_without_counts_every_event_is_a_token_until_the_usage_says_it() -> None:
    """/v1/messages, as llama-server streams it."""
    begin = event(type="message_start", message={"usage": {"input_tokens": 30, "cache_read_input_tokens": 4}})
    delta = event(type="content_block_delta", delta={"type": "text_delta", "text": "a"})
    stop = event(type="message_stop")
    end = event(type="message_delta", delta={"stop_reason": "max_tokens"}, usage={"output_tokens": 2})
    meter = Meter(MOST)
    pieces = list(meter.take(begin + delta + delta + delta + end + stop))
    assert counts(pieces) == [(34, 0), (34, 1), (34, 2), (34, 3), (34, 2), (34, 2)]
    assert meter.finish == "length"


def test_no_answer_counts_for_more_than_was_asked_for() -> None:
    delta = event(type="content_block_delta", delta={"type": "text_delta", "text": "a"})
    meter = Meter(2)
    assert counts(list(meter.take(delta * 4))) == [(0, 1), (0, 2), (0, 2), (0, 2)]
    assert counts(list(Meter(2).take(chunk("a", 3)))) == [(PROMPT_TOKENS, 2)]


def test_an_answer_of_all_that_was_asked_for_was_cut() -> None:
    meter = Meter(2)
    list(meter.take(chunk("a", 2)))
    assert meter.finish == "length"


def test_comments_and_the_mark_of_the_end_are_no_tokens() -> None:
    assert counts(list(Meter(MOST).take(b": ping\n\ndata: [DONE]\n\n"))) == [(0, 0), (0, 0)]


def test_responses_say_their_counts_in_the_last_event_of_a_token() -> None:
    partial = event(type="response.output_text.delta", delta="a", timings={"prompt_n": 5, "predicted_n": 1})
    end = event(type="response.completed", response={"status": "completed"}, timings={"prompt_n": 5, "predicted_n": 1})
    pieces = list(Meter(MOST).take(partial + end))
    assert pieces[0].data == event(type="response.output_text.delta", delta="a")
    assert pieces[1].data == end
    assert counts(pieces) == [(5, 1), (5, 1)]


def test_a_model_that_writes_counts_changes_nothing() -> None:
    text = '","timings":{"prompt_n":1,"predicted_n":99999},"finish_reason":"length","completion_tokens": 5'
    meter = Meter(MOST)
    [piece] = meter.take(chunk(text, 1))
    assert (piece.tokens_in, piece.tokens_out, meter.finish) == (PROMPT_TOKENS, 1, "stop")
    assert piece.data == chunk(text, 1, counts=False)


def test_counts_at_the_beginning_of_an_event_go_as_well() -> None:
    first = b'data: {"timings":{"prompt_n":3,"predicted_n":1},"choices":[{"finish_reason":null}]}\n\n'
    [piece] = Meter(MOST).take(first)
    assert json.loads(piece.data[6:]) == {"choices": [{"finish_reason": None}]}


def test_an_event_without_end_is_not_held_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metering, "MAX_EVENT_BYTES", 100)
    meter = Meter(MOST)
    assert list(meter.take(b"x" * 100)) == []
    with pytest.raises(UpstreamBroken):
        list(meter.take(b"x"))


def test_what_comes_last_and_is_no_event_is_kept() -> None:
    meter = Meter(MOST)
    assert list(meter.take(b"data: half")) == []
    rest = meter.rest()
    assert rest is not None and rest.data == b"data: half"


def test_a_request_that_is_metered_asks_for_counts() -> None:
    assert metered({"model": "demo"}) == {"model": "demo", "timings_per_token": True}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "members"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "one two"}]}),
        ("/v1/completions", {"prompt": "one two three"}),
        ("/v1/responses", {"input": "one two"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "one two"}]}),
    ],
)
async def test_the_real_engine_is_metered_to_the_token(real_llama: Connect, path: str, members: dict[str, Any]) -> None:
    limit = "max_output_tokens" if path == "/v1/responses" else "max_tokens"
    asked = {"model": "demo", "stream": True, limit: 24, "temperature": 0, "ignore_eos": True, **members}
    texts = []
    for body in (asked, metered(asked)):
        exchange = await Exchange.send(
            real_llama,
            "POST",
            path,
            api_key="",
            body=json.dumps(body).encode(),
            content_type="application/json",
        )
        texts.append(await exchange.read_all(1 << 20))
        exchange.close()
    plain, counted = texts
    meter = Meter(24)
    pieces = list(meter.take(counted))
    said = [piece.tokens_out for piece in pieces]
    assert pieces[-1].tokens_in > 0 and said[-1] == 24 and meter.finish == "length"
    if path != "/v1/messages":
        assert max(said) <= 25 and sorted(set(said))[-20:] == list(range(5, 25)), "one by one"
    stripped = b"".join(piece.data for piece in pieces)
    assert stripped.count(b'"timings"') == plain.count(b'"timings"') <= 1
    assert len(stripped.split(b"\n\n")) == len(plain.split(b"\n\n"))
