"""The hash of what strangers gave: SHA-256 of the bytes of an answer as they came, for the audit log.

The stranger that served has the same hash in its own log (guest_requests.py). Where an answer was begun by a nearer
node, or by several strangers in turn, it is that of all that came from strangers. Other answers are not hashed.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

from meshnode.api.peer_requests import Digest
from meshnode.api.record import Record

PUBLIC = "public"


class OutputHash:
    """Hands pieces of an answer on to `taken`, and hashes those that come while `record.radius` is public."""

    __slots__ = ("_hash", "_record", "_taken")

    def __init__(self, record: Record, taken: Callable[[bytes], None]) -> None:
        self._record = record
        self._taken = taken
        self._hash: Digest | None = None

    def take(self, piece: bytes) -> None:
        """The next piece."""
        self._taken(piece)
        if self._record.radius == PUBLIC:
            if self._hash is None:
                self._hash = sha256()
            self._hash.update(piece)

    def close(self) -> None:
        """The answer is over: the record gets the hash."""
        if self._hash is not None:
            self._record.output_sha256 = self._hash.hexdigest()
