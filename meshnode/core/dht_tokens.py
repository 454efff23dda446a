"""Tokens: who wants to store must have asked before, under its own key and for that very key of the table.

A token costs its maker no memory: it is a keyed hash over the peer, the key and the time, of which only the maker has
the secret (as the tokens of BEP 5, but bound to a proven node id in place of an address).
"""

from __future__ import annotations

from hashlib import blake2s
from hmac import compare_digest

from meshnode.wire.dht import TOKEN_BYTES

EPOCH_S = 300.0
"""A token is good for the rest of its epoch and the whole next one."""


class Tokens:
    """Makes tokens and knows them again. `secret` has 16 to 32 random bytes."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def make(self, peer: bytes, key: bytes, now: float) -> bytes:
        """The token that lets a peer store under a key."""
        return self._of(peer, key, int(now // EPOCH_S))

    def is_good(self, token: bytes, peer: bytes, key: bytes, now: float) -> bool:
        """Whether this peer was given this token for this key, not too long ago."""
        epoch = int(now // EPOCH_S)
        return any(compare_digest(token, self._of(peer, key, each)) for each in (epoch, epoch - 1))

    def _of(self, peer: bytes, key: bytes, epoch: int) -> bytes:
        message = peer + key + epoch.to_bytes(8, "big", signed=True)
        return blake2s(message, key=self._secret, digest_size=TOKEN_BYTES).digest()
