"""A UDP relay in user space: a bad line between two nodes, where the kernel has no netem or nobody is root.

    client ──> front socket ── faults ──> one back socket for each client ──> server
           <──              <── faults ──

The back socket is what a NAT makes of a client: `rebind` gives every client a new one, and what comes back to the old
one is lost, as behind a router that has forgotten a mapping. Front and back may be of different address families; then
the two nodes cannot reach each other but through the relay.

    with UdpRelay(server=("::1", 9337), front=("127.0.0.1", 0)) as relay:
        relay.faults = Faults(loss=0.02, delay_s=0.1)
        relay.black_out(2.0)
        relay.rebind()

One thread does the work; everything a test calls may be called from any other. Chance is seeded.
"""

from __future__ import annotations

import heapq
import random
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from types import TracebackType
from typing import Any, Self

DATAGRAM_BYTES = 65535
BATCH = 64
BUFFER_BYTES = 4 << 20

HostAndPort = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Faults:
    """What happens to each datagram, in both directions. Shares are between 0 and 1, times in seconds.

    `corrupt` flips one bit; `reorder` holds a datagram back for `held_s`, so that later ones overtake it; `delay_s` is
    one way.
    """

    loss: float = 0.0
    corrupt: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    held_s: float = 0.01
    delay_s: float = 0.0


@dataclass(eq=False, slots=True)
class _Client:
    """One client as the server sees it. `former` sockets stay open unread: nobody refuses what comes to them."""

    address: Any
    back: socket.socket
    former: list[socket.socket] = field(default_factory=list)


@dataclass(order=True, slots=True)
class _Held:
    """A datagram on its way."""

    due: float
    number: int
    data: bytes = field(compare=False)
    send: Callable[[bytes], object] = field(compare=False)


class UdpRelay:
    """See the module. `counts` tells what was done: passed, lost, corrupted, duplicated, reordered, blacked_out.

    With `record` every datagram is kept in `recorded`, as it came in.
    """

    def __init__(self, *, server: HostAndPort, front: HostAndPort, seed: int = 1, record: bool = False) -> None:
        self.faults = Faults()
        self.counts: Counter[str] = Counter()
        self.recorded: list[bytes] = []
        self._record = record
        self._server = server
        self._random = random.Random(seed)
        self._clients: dict[Any, _Client] = {}
        self._held: list[_Held] = []
        self._numbers = count()
        self._dark_until = 0.0
        self._jobs: list[Callable[[], None]] = []
        self._over = False
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._front = _socket(front)
        self._thread = threading.Thread(target=self._run, name="udp relay", daemon=True)

    @property
    def address(self) -> HostAndPort:
        """Where clients send to."""
        host, port = self._front.getsockname()[:2]
        return host, port

    @property
    def clients(self) -> int:
        """How many clients there have been."""
        return len(self._clients)

    def __enter__(self) -> Self:
        for reading in (self._front, self._woken):
            reading.setblocking(False)
            self._selector.register(reading, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._over = True
        self._wake.send(b"x")
        self._thread.join()
        self._selector.close()
        for client in self._clients.values():
            for back in (client.back, *client.former):
                back.close()
        for end in (self._front, self._wake, self._woken):
            end.close()

    def black_out(self, duration_s: float) -> None:
        """Nothing passes for so long, and what is under way is lost."""
        self._do(lambda: self._darken(duration_s))

    def rebind(self) -> None:
        """From now on every client comes from another port; what is sent to the former ones is lost."""
        self._do(self._move_all)

    # --- in the thread ----------------------------------------------------------------------------------------------

    def _do(self, job: Callable[[], None]) -> None:
        """Have the thread do it, and wait until it has."""
        done = threading.Event()

        def run() -> None:
            job()
            done.set()

        self._jobs.append(run)
        self._wake.send(b"x")
        if not done.wait(10):
            raise TimeoutError("the relay does not answer")

    def _run(self) -> None:
        while not self._over:
            wait_s = max(0.0, self._held[0].due - time.monotonic()) if self._held else None
            for key, _ in self._selector.select(wait_s):
                if key.fileobj is self._woken:
                    self._woken.recv(64)
                elif key.fileobj is self._front:
                    self._read_front()
                else:
                    self._read_back(key.data)
            while self._jobs:
                self._jobs.pop(0)()
            self._send_due()

    def _read_front(self) -> None:
        for _ in range(BATCH):
            try:
                data, source = self._front.recvfrom(DATAGRAM_BYTES)
            except BlockingIOError:
                return
            client = self._clients.get(source)
            if client is None:
                client = self._clients[source] = _Client(source, self._open_back())
                self._listen(client)
            self._pass(data, _to_server(client))

    def _read_back(self, client: _Client) -> None:
        for _ in range(BATCH):
            try:
                data = client.back.recv(DATAGRAM_BYTES)
            except BlockingIOError:
                return
            except ConnectionRefusedError:  # the server is not there: what a client hears of that is silence
                continue
            self._pass(data, lambda data: self._front.sendto(data, client.address))

    def _pass(self, data: bytes, send: Callable[[bytes], object]) -> None:
        if self._record:
            self.recorded.append(data)
        faults, chance, now = self.faults, self._random.random, time.monotonic()
        if now < self._dark_until:
            self.counts["blacked_out"] += 1
            return
        if chance() < faults.loss:
            self.counts["lost"] += 1
            return
        if chance() < faults.corrupt:
            self.counts["corrupted"] += 1
            data = self._with_a_bit_flipped(data)
        due = now + faults.delay_s
        if chance() < faults.reorder:
            self.counts["reordered"] += 1
            due += faults.held_s
        copies = 1
        if chance() < faults.duplicate:
            self.counts["duplicated"] += 1
            copies = 2
        for _ in range(copies):
            heapq.heappush(self._held, _Held(due, next(self._numbers), data, send))

    def _send_due(self) -> None:
        now = time.monotonic()
        while self._held and self._held[0].due <= now:
            held = heapq.heappop(self._held)
            try:
                held.send(held.data)
                self.counts["passed"] += 1
            except OSError:  # nobody there, or no room: lost, as on any line
                self.counts["lost"] += 1

    def _with_a_bit_flipped(self, data: bytes) -> bytes:
        changed = bytearray(data)
        changed[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)
        return bytes(changed)

    def _darken(self, duration_s: float) -> None:
        self.counts["blacked_out"] += len(self._held)
        self._held.clear()
        self._dark_until = time.monotonic() + duration_s

    def _move_all(self) -> None:
        for client in self._clients.values():
            self._selector.unregister(client.back)
            client.former.append(client.back)
            client.back = self._open_back()
            self._listen(client)

    def _open_back(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._server[0] else socket.AF_INET
        back = _socket(("::" if family == socket.AF_INET6 else "0.0.0.0", 0))
        back.connect(self._server)
        return back

    def _listen(self, client: _Client) -> None:
        client.back.setblocking(False)
        self._selector.register(client.back, selectors.EVENT_READ, client)


def _to_server(client: _Client) -> Callable[[bytes], object]:
    """Sends from the port that the client has when the datagram leaves."""
    return lambda data: client.back.send(data)


def _socket(address: HostAndPort) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_DGRAM)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        opened.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
    opened.bind(address)
    return opened
