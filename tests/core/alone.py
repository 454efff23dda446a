"""One machine among peers that exist only as signatures: what tests of the parts of membership have in common."""

import random
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

from meshnode.core.effects import Close, Counted, Effect, Send, SetTimer
from meshnode.core.events import PeerUp, Publish, Received, TimerFired
from meshnode.core.membership import Membership, MembershipOptions
from meshnode.wire.address import Address
from meshnode.wire.messages import Statements
from meshnode.wire.registry import Role
from meshnode.wire.statements import SHORT_ID_BYTES, Dynamic, Identity, Statement, make

ME = b"\x10" * 32


def name(index: int) -> bytes:
    """The id of a peer; all are greater than that of the machine."""
    return b"\x20" + index.to_bytes(31, "big")[::-1]


def sign_as(key: bytes, message: bytes) -> bytes:
    return blake2b(message, key=key, digest_size=64).digest()


def say(origin: bytes, body: Any, number: int = 1, incarnation: int = 1, signer: bytes | None = None) -> Statement:
    """A statement, signed by its origin unless another one forges it."""
    key = signer or origin
    return make(body, origin=origin, incarnation=incarnation, number=number, sign=lambda message: sign_as(key, message))


def identity(index: int = 0) -> Identity:
    return Identity(b"c" * 80, (Address("192.0.2.1", 1000 + index),), f"n{index}")


def monitored_by(*names: bytes) -> Dynamic:
    return Dynamic(monitors=tuple(sorted(each[:SHORT_ID_BYTES] for each in names)))


class Alone:
    """The machine with its clock. Effects of the last call are in `effects`, all counts in `counts`."""

    def __init__(self, *, options: MembershipOptions | None = None, seed: int = 1) -> None:
        self.now = 100.0
        self.timer_at: float | None = None
        self.effects: list[Effect] = []
        self.counts: dict[str, int] = {}
        self.machine = Membership(
            node=ME,
            incarnation=1,
            sign=lambda message: sign_as(ME, message),
            verify=lambda key, given, message: given == sign_as(key, message),
            admit=lambda statement: Role.MEMBER if statement.body.certificate[:1] == b"c" else None,
            random=random.Random(seed),
            now=self.now,
            options=options,
        )
        self.give(Publish(identity()))

    def give(self, event: Any) -> list[Effect]:
        self.effects = self.machine.handle(event, self.now)
        for effect in self.effects:
            if isinstance(effect, SetTimer):
                self.timer_at = effect.at
            elif isinstance(effect, Counted):
                self.counts[effect.what] = self.counts.get(effect.what, 0) + 1
        return self.effects

    def hear(self, peer: bytes, *statements: Statement) -> list[Effect]:
        return self.give(Received(peer, Statements(tuple(each.signed for each in statements))))

    def wait(self, for_s: float) -> list[Effect]:
        """Let time pass; returns all effects on the way."""
        until, found = self.now + for_s, []
        while self.timer_at is not None and self.timer_at <= until:
            self.now, self.timer_at = max(self.now, self.timer_at), None
            found += self.give(TimerFired("membership"))
        self.now = until
        return found

    def meet(self, count: int, *, monitors: Iterable[int] | None = None) -> list[bytes]:
        """Link peers that have said who they are, and who may accuse them: this machine and some of each other."""
        names = [name(index) for index in range(count)]
        for index, peer in enumerate(names):
            self.give(PeerUp(peer, 0.02))
            others = [names[at] for at in (range(count) if monitors is None else monitors) if at != index]
            self.hear(peer, say(peer, identity(index)), say(peer, monitored_by(ME, *others[:7]), 2))
        return names

    def state(self, peer: bytes) -> str | None:
        member = self.machine.snapshot().members.get(peer)
        return None if member is None else member.state

    def sent(self, kind: type, effects: list[Effect] | None = None) -> list[tuple[bytes, Any]]:
        found = self.effects if effects is None else effects
        return [
            (each.peer, each.message) for each in found if isinstance(each, Send) and isinstance(each.message, kind)
        ]

    def closed(self) -> dict[bytes, int]:
        return {each.peer: each.code for each in self.effects if isinstance(each, Close)}
