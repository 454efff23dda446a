import pytest

from meshnode.api.closing import Ending, closing_events, usage_told
from meshnode.api.sent import read_sent
from tests.api.reading import read
from tests.api.streams import CHAT, COMPLETIONS, MESSAGES, RESPONSES, SAMPLES, events

END = Ending("demo", 7, prompt_tokens=5, answer_tokens=9, wants_usage=True)
LIMIT = Ending("demo", 7, limited=True)


@pytest.mark.parametrize(
    "name", ["chat, thinking and tools", "messages, thinking and a tool", "responses, thinking and a call"]
)
def test_an_answer_whose_end_has_begun_is_closed_as_it_would_have_been(name: str) -> None:
    path, stream, _ = SAMPLES[name]
    whole, pieces = read(path, stream), events(stream)
    for count in range(1, len(pieces)):
        part = b"".join(pieces[:count])
        sent = read_sent(path, part)
        if sent.closing:
            found = read(path, part + closing_events(path, sent, END))
            assert (found.texts, found.form, found.usages) == (whole.texts, whole.form, whole.usages), count


@pytest.mark.parametrize(
    ("path", "name", "reason"),
    [
        (CHAT, "chat", "length"),
        (COMPLETIONS, "completion", "length"),
        (MESSAGES, "messages", "message_delta None max_tokens"),
    ],
)
def test_a_limit_that_is_used_up_is_the_reason(path: str, name: str, reason: str) -> None:
    part = b"".join(events(SAMPLES[name][1])[:5])
    found = read(path, part + closing_events(path, read_sent(path, part), LIMIT))
    assert found.form[reason] == 1 and found.usages == ([] if path != MESSAGES else found.usages)


def test_counts_are_asked_for_only_where_they_are_missing() -> None:
    for name, path, at, wanted, told in (
        ("chat", CHAT, -2, True, False),
        ("chat", CHAT, -1, True, True),
        ("chat", CHAT, -3, False, True),
        ("completion", COMPLETIONS, -1, False, True),
        ("completion", COMPLETIONS, 2, False, False),
        ("messages", MESSAGES, -1, False, True),
        ("messages", MESSAGES, -2, False, False),
        ("responses", RESPONSES, -1, False, False),
    ):
        part = b"".join(events(SAMPLES[name][1])[:at])
        assert usage_told(path, read_sent(path, part), wanted=wanted) is told, (name, at)
