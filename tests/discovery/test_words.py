from itertools import combinations

from meshnode.discovery.words import WORDS


def distance(one: str, other: str) -> int:
    """Letters to insert, delete or change to make one the other (V. Levenshtein, 1965)."""
    row = list(range(len(other) + 1))
    for at, letter in enumerate(one, 1):
        above = row
        row = [at]
        for place, wanted in enumerate(other, 1):
            row.append(min(above[place] + 1, row[-1] + 1, above[place - 1] + (letter != wanted)))
    return row[-1]


def test_the_measure_itself() -> None:
    assert [distance(*pair) for pair in (("", "abc"), ("kitten", "sitting"), ("wool", "wool"), ("ab", "ba"))] == [
        3,
        3,
        0,
        2,
    ]


def test_sixteen_bits_for_two_words() -> None:
    assert len(WORDS) == len(set(WORDS)) == 256


def test_words_can_be_typed_anywhere() -> None:
    assert all(word.isascii() and word.isalpha() and word.islower() and 4 <= len(word) <= 8 for word in WORDS)


def test_the_list_is_in_order() -> None:
    assert list(WORDS) == sorted(WORDS)


def test_the_first_four_letters_tell_words_apart() -> None:
    assert len({word[:4] for word in WORDS}) == 256


def test_no_slip_makes_another_word() -> None:
    close = [pair for pair in combinations(WORDS, 2) if distance(*pair) < 3]
    assert close == []


def test_no_word_is_inside_another() -> None:
    assert [pair for pair in combinations(WORDS, 2) if pair[0] in pair[1] or pair[1] in pair[0]] == []
