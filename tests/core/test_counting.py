import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.core.counting import TokenCount, diverges, most_tokens_in


@given(st.lists(st.text(max_size=5), max_size=20), st.integers(1, 200), st.integers(-5, 10**6))
def test_no_more_is_believed_than_bytes_that_came_or_tokens_asked_for(
    texts: list[str], most_out: int, claimed: int
) -> None:
    count = TokenCount(most_out)
    for text in texts:
        count.feed(text)
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    assert count.bound == min(size + 8, most_out)
    assert count.accept(claimed) == min(max(claimed, 0), count.bound)
    if 0 <= claimed <= min(size, most_out):
        assert count.accept(claimed) == claimed and not count.diverges(claimed)


def test_letters_may_have_several_bytes_and_halves() -> None:
    count = TokenCount(1000)
    count.feed("über")
    count.feed(b"\xc3\xbcber")
    count.feed("\ud83d")
    assert count.received_bytes == 5 + 5 + 3


def test_a_provider_that_counts_too_much_is_noticed() -> None:
    count = TokenCount(1000)
    count.feed("x" * 100)
    assert not count.diverges(108)
    assert count.diverges(109)
    assert count.accept(10**9) == 108
    count.feed("x" * 10_000)
    assert count.diverges(1001)  # more than was asked for


@pytest.mark.parametrize(
    ("claimed", "own", "is_far"),
    [(8, 0, False), (9, 0, True), (408, 400, False), (409, 400, True), (1020, 1000, False), (1021, 1000, True)],
)
def test_eight_tokens_or_two_per_cent(claimed: int, own: int, is_far: bool) -> None:
    assert diverges(claimed, own) is is_far
    assert not diverges(own, claimed)  # to count too little is the provider's own loss


def test_a_prompt_has_at_most_a_token_a_byte_and_its_frame() -> None:
    assert most_tokens_in(0, 0) == 64
    assert most_tokens_in(1000, 3) == 1000 + 64 + 48
