"""Tokens are good for one peer, one key and some minutes."""

from __future__ import annotations

from meshnode.core.dht_tokens import EPOCH_S, Tokens
from meshnode.wire.dht import TOKEN_BYTES

PEER, OTHER, KEY = b"p" * 32, b"q" * 32, b"k" * 32


def test_a_token_is_good_for_whom_and_what_it_was_made() -> None:
    tokens = Tokens(b"s" * 32)
    token = tokens.make(PEER, KEY, 1000.0)
    assert len(token) == TOKEN_BYTES
    assert tokens.is_good(token, PEER, KEY, 1000.0)
    assert not tokens.is_good(token, OTHER, KEY, 1000.0)
    assert not tokens.is_good(token, PEER, OTHER, 1000.0)
    assert not tokens.is_good(bytes(TOKEN_BYTES), PEER, KEY, 1000.0)
    assert not tokens.is_good(b"", PEER, KEY, 1000.0)
    assert not Tokens(b"t" * 32).is_good(token, PEER, KEY, 1000.0)


def test_a_token_ends() -> None:
    tokens = Tokens(b"s" * 16)
    token = tokens.make(PEER, KEY, 2 * EPOCH_S - 1)
    assert tokens.is_good(token, PEER, KEY, 3 * EPOCH_S - 1)
    assert not tokens.is_good(token, PEER, KEY, 3 * EPOCH_S)
    assert not tokens.is_good(token, PEER, KEY, EPOCH_S - 1), "nor was it good before"
    early = tokens.make(PEER, KEY, 0.0)
    assert tokens.is_good(early, PEER, KEY, 0.0)
