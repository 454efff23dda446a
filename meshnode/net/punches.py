"""What a punch looks like, and what is known of one attempt to find a way between two ends. Pure.

A punch is `0x01 | nonce 16 | end 1 | tag 8`, its answer the same with 0x02. The nonce was agreed on over an
authenticated link. `end` tells the two ends apart, as a node may meet itself at an address that both have on their own
networks. The tag depends on where a punch was sent: an answer that comes from there with the right one shows that the
address works in both directions. With another one, or with a punch, a new address has shown itself (a peer-reflexive
candidate, RFC 8445, 5.1.3), which is then tried as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2s

from meshnode.net.address import SocketAddress, from_socket, is_virtual_name
from meshnode.wire.traversal import NONCE_BYTES

PUNCH = 0x01
ANSWER = 0x02
TAG_BYTES = 8
PUNCH_BYTES = 1 + NONCE_BYTES + 1 + TAG_BYTES
MOST_TARGETS = 16
MOST_REFLEXIVE = 8
"""Addresses that show themselves and are tried."""
ANSWERS_PER_S = 100.0
MOST_ANSWERS_AT_ONCE = 50.0

_NO_TAG = bytes(TAG_BYTES)


@dataclass(frozen=True, slots=True)
class Reply:
    """What to do about a datagram: what to send back where it came from, and whether that address now works."""

    answers: tuple[bytes, ...] = ()
    confirmed: bool = False


class Attempt:
    """One end of one attempt. `key` is random and known to nobody else; `opens` is true at one of the two ends."""

    def __init__(self, nonce: bytes, key: bytes, targets: Iterable[SocketAddress], *, opens: bool, now: float) -> None:
        if len(nonce) != NONCE_BYTES:
            raise ValueError(f"a nonce has {NONCE_BYTES} bytes")
        self.nonce = nonce
        self._key = key
        self._opens = opens
        # IPv6 first: where both work, nothing translates it.
        ordered = sorted(dict.fromkeys(targets), key=lambda name: not is_ipv6_name(name))
        self._targets = dict.fromkeys(ordered[:MOST_TARGETS])
        self._most_targets = len(self._targets) + MOST_REFLEXIVE
        self._answers_left = MOST_ANSWERS_AT_ONCE
        self._answered_at = now

    @property
    def targets(self) -> tuple[SocketAddress, ...]:
        """Where punches go."""
        return tuple(self._targets)

    def punch(self, target: SocketAddress | None) -> bytes:
        """A punch to `target`; one whose answer proves nothing but brings itself to mind, where that has no name."""
        tag = _NO_TAG if target is None else self._tag(target)
        return b"%c%b%c%b" % (PUNCH, self.nonce, self._opens, tag)

    def concerns(self, datagram: bytes) -> bool:
        """Whether this comes from the other end of this attempt."""
        return (
            len(datagram) == PUNCH_BYTES
            and datagram[0] in (PUNCH, ANSWER)
            and nonce_of(datagram) == self.nonce
            and datagram[1 + NONCE_BYTES] == (not self._opens)
        )

    def receive(self, datagram: bytes, source: SocketAddress, now: float) -> Reply:
        """Take a datagram that `concerns` this attempt."""
        tag = datagram[-TAG_BYTES:]
        if datagram[0] == ANSWER and tag == self._tag(source):
            return Reply(confirmed=True)
        answers = []
        if datagram[0] == PUNCH and self._may_answer(now):
            answers.append(b"%c%b%c%b" % (ANSWER, self.nonce, self._opens, tag))
        if source not in self._targets and len(self._targets) < self._most_targets:
            self._targets[source] = None
            answers.append(self.punch(source))
        return Reply(tuple(answers))

    def _tag(self, target: SocketAddress) -> bytes:
        return blake2s(f"{target[0]} {target[1]}".encode(), key=self._key, digest_size=TAG_BYTES).digest()

    def _may_answer(self, now: float) -> bool:
        earned = (now - self._answered_at) * ANSWERS_PER_S
        self._answers_left = min(self._answers_left + earned, MOST_ANSWERS_AT_ONCE)
        self._answered_at = now
        if self._answers_left < 1:
            return False
        self._answers_left -= 1
        return True


def nonce_of(datagram: bytes) -> bytes:
    """The nonce of a punch or an answer."""
    return datagram[1 : 1 + NONCE_BYTES]


def is_ipv6_name(name: SocketAddress) -> bool:
    """Whether what is sent to this name travels as IPv6."""
    return not is_virtual_name(name) and from_socket(name).is_ipv6
