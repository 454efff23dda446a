"""Guessing ports where punching alone cannot work: one end is behind a symmetric translator, the other behind one that
lets in only whom it has sent something to.

The first, the *opener*, opens many sockets and has each punch the other's address: as many outer ports are open for it
then. The *prober* sends to ports at random until it hits one of them. With 256 of 64,512 ports open and 200 tries a
second, half of the attempts hit within 0.9 s and 99.9 % within 9 s (the birthday problem, with one side fixed).

Each try costs a state in the translators on the way, so there are few of these at a time, and they end.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from time import monotonic
from typing import Literal

from meshnode.net.address import Address, SocketAddress
from meshnode.net.detours import Received, Transmit
from meshnode.net.punches import Attempt
from meshnode.net.sides import SideSockets, files_to_spare

SOCKETS = 256
LEAST_SOCKETS = 32
"""With fewer, guessing would hardly ever succeed in time."""
MOST_GUESSED_TARGETS = 4
AGAIN_S = 2.5
"""How often the opener punches again: punches get lost, and translators forget."""
SLICE = 32
"""Sockets that are opened or written to in one turn of the event loop."""
MOST_HITS = 4
READS_A_TURN = 8
DATAGRAM_BYTES = 2048

FIRST_PORT, END_PORT = 1024, 1 << 16
PROBES_PER_S = 200
PROBE_TURN_S = 0.01
GUESS_S = 10.0


@dataclass(frozen=True, slots=True)
class Guess:
    """How ports are to be guessed: the `opener` is behind a translator that gives each destination another port, the
    `prober` is not; `host` is the public IPv4 address of the other end's translator."""

    role: Literal["opener", "prober"]
    host: str

    @property
    def is_possible(self) -> bool:
        """Whether there is one host to guess at."""
        try:
            host = IPv4Address(self.host)
        except AddressValueError:
            return False
        return not (host.is_multicast or host.is_unspecified or host.is_reserved)


async def probe(
    attempt: Attempt, host: str, *, transmit: Transmit, name_of: Callable[[Address], SocketAddress | None]
) -> None:
    """Try ports of `host` at random, none twice, for GUESS_S. Whoever hears an answer ends this."""
    ports = random.SystemRandom().sample(range(FIRST_PORT, END_PORT), int(PROBES_PER_S * GUESS_S))
    began_at, sent = monotonic(), 0
    while sent < len(ports):
        due = min(int((monotonic() - began_at) * PROBES_PER_S) + 1, len(ports))
        # A loop that was busy for long must not make up for it all at once.
        for port in ports[max(sent, due - SLICE) : due]:
            name = name_of(Address(host, port))
            if name is None:
                return
            transmit([attempt.punch(name)], name)
        sent = due
        await asyncio.sleep(PROBE_TURN_S)


class Opener:
    """The sockets of one guess. `received` is told what the other end sends to one of them, under its new address."""

    def __init__(self, attempt: Attempt, host: str, *, sides: SideSockets, received: Received) -> None:
        named = [_ipv4(name) for name in attempt.targets]
        found = [name for name in named if name is not None]
        self._targets = ([name for name in found if name[0] == host] or found)[:MOST_GUESSED_TARGETS]
        self._attempt = attempt
        self._sides = sides
        self._received = received
        self._sockets: dict[int, socket.socket] = {}
        self._hits = 0
        self._loop = asyncio.get_running_loop()

    def __len__(self) -> int:
        return len(self._sockets)

    async def run(self, pause: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Open the sockets, and punch from each of them for GUESS_S. Does nothing where too few can be had."""
        count = min(SOCKETS, files_to_spare())
        if count < LEAST_SOCKETS or not self._targets:
            return
        until = monotonic() + GUESS_S
        try:
            for start in range(0, count, SLICE):
                self._open(min(SLICE, count - start))
                await pause(0)
            while monotonic() < until:
                for start in range(0, len(self._sockets), SLICE):
                    self._punch(list(self._sockets.values())[start : start + SLICE])
                    await pause(0)
                await pause(min(AGAIN_S, max(until - monotonic(), 0.0)))
        finally:
            self.close()

    def close(self) -> None:
        """Close all sockets but those that became ways."""
        for opened in self._sockets.values():
            self._loop.remove_reader(opened.fileno())
            opened.close()
        self._sockets.clear()

    def _open(self, count: int) -> None:
        for _ in range(count):
            opened = self._sides.open()
            if opened is None:
                return
            number = opened.fileno()
            self._sockets[number] = opened
            self._loop.add_reader(number, self._readable, number)

    def _punch(self, sockets: Sequence[socket.socket]) -> None:
        punch = self._attempt.punch(None)
        for each in sockets:
            if each.fileno() < 0:
                continue  # it became a way or was closed since
            for target in self._targets:
                try:
                    each.sendto(punch, target)
                except OSError:  # not reachable from here, an ICMP message of before, no room: lost
                    continue

    def _readable(self, number: int) -> None:
        opened = self._sockets[number]
        for _ in range(READS_A_TURN):
            try:
                datagram, source = opened.recvfrom(DATAGRAM_BYTES)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:  # an ICMP message about a punch
                continue
            if source[1] and self._attempt.concerns(datagram) and self._hits < MOST_HITS:
                self._hits += 1
                del self._sockets[number]
                name = self._sides.keep(opened, source)
                if name is not None:
                    self._received([datagram], name)
                return


def _ipv4(name: SocketAddress) -> SocketAddress | None:
    """The name for an IPv4 socket of what a dual-stack one calls an IPv4-mapped address."""
    host = name[0].removeprefix("::ffff:")
    return None if ":" in host else (host, name[1])
