"""A switch in user space between network namespaces: every packet takes as long as the line between its two hosts.

    python -m tests.lab.slow_switch < orders

The first order describes the network, further ones change it; each is one JSON object a line and is answered by one:

    {"hosts": {"a": ["/run/netns/a", "10.77.0.1"], ...}, "shape": {"delay_s": 0.02}, "seed": 1, "mtu_bytes": 1500}
    {"between": ["a", "b"], "shape": {"delay_s": 0.005, "loss": 0.01}}     null for a shape: the line is cut
    {"carried": true}                                       bytes so far, "a>b": 123; what went to all does not count

It goes on until its stdin ends. In every namespace it opens a TUN device, eth0, and reads IPv4 packets from one and
writes them to another when a `Line` (bench/line.py) says that they are due. So no checksum is left to hardware that is
not there, and no ARP takes part. Multicast and broadcast go to all others; other protocols than IPv4 are dropped.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import heapq
import json
import os
import select
import struct
import sys
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from bench.line import Line, LineShape
from tests.lab.namespaces import enter_namespace

DEVICE = b"eth0"
BATCH = 64
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
PR_SET_TIMERSLACK = 29
SHORTEST_PACKET_BYTES = 20


@dataclass(eq=False, slots=True)
class Way:
    """One direction between two hosts. Without a line it is cut."""

    target: int
    line: Line | None
    carried_bytes: int = 0


class SlowSwitch:
    """The hosts, the ways between them, and what is under way."""

    def __init__(self, hosts: dict[str, tuple[str, str]], shape: LineShape, *, seed: int, mtu_bytes: int) -> None:
        self._random = Random(seed)
        self._mtu_bytes = mtu_bytes
        self._devices = {name: open_device(Path(place)) for name, (place, _) in hosts.items()}
        self._ways: dict[int, dict[bytes, Way]] = {}
        self._between: dict[tuple[str, str], Way] = {}
        for name, device in self._devices.items():
            self._ways[device] = {}
            for other, (_, address) in hosts.items():
                if other != name:
                    way = Way(self._devices[other], Line(shape, Random(self._random.random())))
                    self._ways[device][bytes(map(int, address.split(".")))] = self._between[name, other] = way
        self._held: list[tuple[float, int, int, bytes]] = []
        self._numbers = count()

    def order(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Do what an order says, and answer it."""
        if "carried" in wanted:
            return {f"{one}>{other}": way.carried_bytes for (one, other), way in self._between.items()}
        one, other = wanted["between"]
        shape = wanted["shape"]
        for pair in ((one, other), (other, one)):
            line = None if shape is None else Line(LineShape(**shape), Random(self._random.random()))
            self._between[pair].line = line
        return {}

    def run(self) -> None:
        """Carry packets and take orders until stdin ends."""
        devices, orders = list(self._ways), sys.stdin.fileno()
        while True:
            wait_s = max(0.0, self._held[0][0] - time.monotonic()) if self._held else None
            ready, _, _ = select.select([orders, *devices], [], [], wait_s)
            for readable in ready:
                if readable != orders:
                    self._read(readable)
                    continue
                line = sys.stdin.readline()
                if not line:
                    return
                print(json.dumps(self.order(json.loads(line))), flush=True)
            self._write_due()

    def _read(self, device: int) -> None:
        ways, now = self._ways[device], time.monotonic()
        for _ in range(BATCH):
            try:
                packet = os.read(device, self._mtu_bytes)
            except BlockingIOError:
                return
            if len(packet) < SHORTEST_PACKET_BYTES or packet[0] >> 4 != 4:
                continue
            target = packet[16:20]
            way = ways.get(target)
            if way is not None:
                way.carried_bytes += self._hold(way, now, packet)
            elif target[0] >= 224 or target[3] == 255:
                for each in ways.values():
                    self._hold(each, now, packet)

    def _hold(self, way: Way, now: float, packet: bytes) -> int:
        """Send it on its way; the bytes that are under way, 0 when it was lost."""
        due = None if way.line is None else way.line.due(now, len(packet))
        if due is None:
            return 0
        heapq.heappush(self._held, (due, next(self._numbers), way.target, packet))
        return len(packet)

    def _write_due(self) -> None:
        held, now = self._held, time.monotonic()
        while held and held[0][0] <= now:
            _, _, target, packet = heapq.heappop(held)
            try:
                os.write(target, packet)
            except OSError:  # the device is down, or its host has no room: lost, as on any line
                continue


def open_device(namespace: Path) -> int:
    """A TUN device in that namespace, as a descriptor that does not block. It is there for as long as we are."""
    with namespace.open() as there:
        enter_namespace(there.fileno())
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", DEVICE, IFF_TUN | IFF_NO_PI))
    return device


def main() -> None:
    """Take the first order, build what it describes, and run."""
    # By default the kernel may wake us 50 us late; a line of 5 ms is to be exact to one hundredth.
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    first = json.loads(sys.stdin.readline())
    hosts = {name: (place, address) for name, (place, address) in first["hosts"].items()}
    switch = SlowSwitch(hosts, LineShape(**first["shape"]), seed=first["seed"], mtu_bytes=first["mtu_bytes"])
    print(json.dumps({}), flush=True)
    gc.freeze()
    gc.disable()  # nothing here makes circles, and a collection would hold packets up
    switch.run()


if __name__ == "__main__":
    main()
