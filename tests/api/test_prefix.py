import time

import pytest

from meshnode.api.prefix import MAX_MESSAGES, TOKENS_PER_MEDIUM, estimate_tokens, prefix_hashes


def say(*texts: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text} for text in texts]}


def test_conversations_share_hashes_as_long_as_they_share_messages() -> None:
    short, longer, other = (prefix_hashes(say(*texts), 100) for texts in (("a", "b"), ("a", "b", "c"), ("a", "x", "c")))
    assert longer[:2] == short and len(longer) == 3
    assert other[0] == short[0] and not set(other[1:]) & set(longer)
    assert all(0 <= number < 1 << 64 for number in longer)
    assert prefix_hashes(say("ab"), 10)[0] != prefix_hashes(say("a", "b"), 10)[1]


@pytest.mark.parametrize("name", ["tools", "system", "instructions"])
def test_what_stands_before_the_messages_counts(name: str) -> None:
    plain, more = prefix_hashes(say("a"), 10), prefix_hashes({**say("a"), name: "x"}, 10)
    assert len(more) == 2 and not set(plain) & set(more)


def test_every_form_of_a_prompt() -> None:
    assert len(prefix_hashes({"input": "x" * 2000}, 2000)) == 2
    assert prefix_hashes({"prompt": "x" * 2000}, 2000)[0] == prefix_hashes({"prompt": "x" * 9000}, 9000)[0]
    assert len(prefix_hashes({"input": [{"role": "user", "content": "a"}, 7]}, 10)) == 2
    for members in ({}, {"messages": 7}, {"messages": None}, {"prompt": 5}):
        assert prefix_hashes(members, 10) == ()
    assert prefix_hashes(say("\ud800"), 10)


def test_the_work_is_bounded() -> None:
    many = say(*(["x"] * 10_000))
    assert len(prefix_hashes(many, 500_000)) == MAX_MESSAGES
    large = say("x" * 900_000)
    begin = time.perf_counter()
    assert prefix_hashes(large, 900_000) == () and prefix_hashes(say("x" * 5_000_000), 5_000_000) == ()
    assert time.perf_counter() - begin < 0.5


def test_tokens_are_a_quarter_of_the_bytes_but_for_media() -> None:
    assert estimate_tokens(say("x" * 4000), 4000) == 1000
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    sound = {"type": "input_audio", "input_audio": {"data": "A" * 50_000, "format": "wav"}}
    members = {"messages": [{"role": "user", "content": [image, sound, {"type": "text", "text": "x" * 400}]}]}
    assert abs(estimate_tokens(members, 150_500) - (2 * TOKENS_PER_MEDIUM + 120)) < 30
