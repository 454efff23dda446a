"""Byte-level BPE tokenizer of the demo models, identical to what llama.cpp does for `gpt2`/`gpt-2`.

Every number from 0 to 200 is a single token, with and without a leading space. The merges that lead there come
first, the merges learned from the corpus follow; the order matters because the lowest rank is always applied first.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

LARGEST_NUMBER = 200
END_OF_TEXT = "<|endoftext|>"
MESSAGE_START = "<|im_start|>"
MESSAGE_END = "<|im_end|>"
PADDING = "<|pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, MESSAGE_START, MESSAGE_END, PADDING)
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
SPACE = "\u0120"  # the printable stand-in of the space byte

Pair = tuple[str, str]


def printable_bytes() -> list[str]:
    """One printable character for each byte: GPT-2 keeps the visible ones and moves the others past 255."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in visible]
    moved = {byte: chr(256 + position) for position, byte in enumerate(hidden)}
    return [moved.get(byte, chr(byte)) for byte in range(256)]


BYTE_CHARACTERS = printable_bytes()
CHARACTER_BYTES = {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}


def character_kind(character: str) -> str:
    """Return "L" for letters, "N" for numbers, "S" for white space and "P" for everything else."""
    if character.isspace() and character not in "\x1c\x1d\x1e\x1f":
        return "S"
    category = unicodedata.category(character)[0]
    return category if category in "LN" else "P"


def split_words(text: str) -> list[str]:
    """Cut a text the way the GPT-2 regular expression does."""
    words: list[str] = []
    position = 0
    kinds = [character_kind(character) for character in text]
    while position < len(text):
        end = word_end(text, kinds, position)
        words.append(text[position:end])
        position = end
    return words


def word_end(text: str, kinds: list[str], start: int) -> int:
    """Return where the word that starts at `start` ends."""
    if text[start] == "'":
        for contraction in CONTRACTIONS:
            if text.startswith(contraction, start):
                return start + len(contraction)
    first = start + 1 if text[start] == " " and start + 1 < len(text) else start
    if kinds[first] != "S":
        return run_end(kinds, first)
    end = run_end(kinds, start)
    # White space in front of a word leaves its last character to that word.
    return end if end == len(text) or end - start == 1 else end - 1


def run_end(kinds: list[str], start: int) -> int:
    """Return the end of the run of equal kinds that begins at `start`."""
    end = start
    while end < len(kinds) and kinds[end] == kinds[start]:
        end += 1
    return end


def to_symbols(word: str) -> tuple[str, ...]:
    return tuple(BYTE_CHARACTERS[byte] for byte in word.encode("utf-8"))


def number_merges() -> list[Pair]:
    """Merges that turn each of 0..200 into one token.

    "1x" ranks before the other two-digit pairs ("11" first of all), so that 1xy always meets as "1x" + "y".
    """
    first = ["11"] + [f"1{digit}" for digit in range(10) if digit != 1]
    pairs = first + [str(number) for number in range(20, 100)]
    merges = [(pair[0], pair[1]) for pair in pairs]
    merges += [(str(number)[:2], str(number)[2]) for number in range(100, LARGEST_NUMBER + 1)]
    merges += [(SPACE, str(number)) for number in range(LARGEST_NUMBER, -1, -1)]
    return merges


def apply_merge(symbols: tuple[str, ...], pair: Pair) -> tuple[str, ...]:
    merged: list[str] = []
    position = 0
    while position < len(symbols):
        if symbols[position : position + 2] == pair:
            merged.append(pair[0] + pair[1])
            position += 2
        else:
            merged.append(symbols[position])
            position += 1
    return tuple(merged)


def learn_merges(texts: Iterable[str], count: int) -> list[Pair]:
    """Learn `count` merges from the words without digits in `texts`."""
    occurrences = Counter(word for text in texts for word in split_words(text))
    words = {to_symbols(word): times for word, times in occurrences.items() if not any(map(str.isdigit, word))}
    merges: list[Pair] = []
    while len(merges) < count:
        pairs: Counter[Pair] = Counter()
        for symbols, times in words.items():
            for pair in zip(symbols, symbols[1:], strict=False):
                pairs[pair] += times
        if not pairs:
            raise ValueError("the corpus is too small for that many merges")
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        changed: Counter[tuple[str, ...]] = Counter()
        for symbols, times in words.items():
            changed[apply_merge(symbols, best) if best[0] in symbols else symbols] += times
        words = dict(changed)
    return merges


class Tokenizer:
    """Encodes and decodes text with a list of merges."""

    def __init__(self, merges: list[Pair]) -> None:
        self.merges = merges
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.tokens = [*BYTE_CHARACTERS, *(left + right for left, right in merges), *SPECIAL_TOKENS]
        self.identifiers = {token: identifier for identifier, token in enumerate(self.tokens)}
        if len(self.identifiers) != len(self.tokens):
            raise ValueError("two merges build the same token")
        self.encode_word = lru_cache(maxsize=200_000)(self._encode_word)

    def special(self, token: str) -> int:
        return self.identifiers[token]

    def encode(self, text: str) -> list[int]:
        """Encode plain text; special tokens inside it are not recognised."""
        return [identifier for word in split_words(text) for identifier in self.encode_word(word)]

    def _encode_word(self, word: str) -> tuple[int, ...]:
        symbols = to_symbols(word)
        unknown = len(self.ranks)
        while len(symbols) > 1:
            ranked = [self.ranks.get(pair, unknown) for pair in zip(symbols, symbols[1:], strict=False)]
            lowest = min(ranked)
            if lowest == unknown:
                break
            position = ranked.index(lowest)
            symbols = (*symbols[:position], symbols[position] + symbols[position + 1], *symbols[position + 2 :])
        return tuple(self.identifiers[symbol] for symbol in symbols)

    def decode(self, identifiers: Iterable[int]) -> str:
        symbols = "".join(self.tokens[i] for i in identifiers if self.tokens[i] not in SPECIAL_TOKENS)
        return bytes(CHARACTER_BYTES[symbol] for symbol in symbols).decode("utf-8", "replace")
