from pathlib import Path

import pytest

from meshnode.api.record import token_counts

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("name", ["chat", "chat_choices", "completion", "responses", "messages"])
def test_token_counts_are_read_in_every_dialect(name: str) -> None:
    stream = (DATA / f"{name}.sse").read_bytes()
    plain_answer = (DATA / f"{name}.json").read_bytes()
    assert token_counts(stream[:2048] + stream[-2048:]) == token_counts(plain_answer[-2048:])
    assert token_counts(plain_answer)[0] == (5 if name == "completion" else 17)


def test_what_came_from_the_cache_counts_and_nonsense_does_not() -> None:
    assert token_counts(b'"timings":{"cache_n":16,"prompt_n":1,"predicted_n":6}') == (17, 6)
    assert token_counts(b'"input_tokens": 3, "cache_read_input_tokens": 4, "output_tokens": 5') == (7, 5)
    assert token_counts(b"") == (0, 0)
    assert token_counts(b'"prompt_tokens": ' + b"9" * 50) == (0, 0)
