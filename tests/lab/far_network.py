"""Hosts of their own that are far from each other: network namespaces on a switch in user space that delays packets.

    with FarNetwork("a", "b", "c", shape=LineShape(delay_s=0.02)) as network:   # ping takes 40 ms
        network.shape("a", "b", LineShape(delay_s=0.005, loss=0.01))
        with network.inside("a"):
            node = subprocess.Popen(...)

All else is as in tests/lab/namespaces.py. The switch is a process of its own (tests/lab/slow_switch.py) and ends with
the one that started it, however that ends: its orders then end too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.line import LineShape
from tests.lab import namespaces
from tests.lab.namespaces import MOUNTED, Network, run_ip

TUN = Path("/dev/net/tun")
MTU_BYTES = 1500
QUEUE_PACKETS = 10_000
"""What the kernel keeps for the switch; beyond the default of 500 it drops, as if the line had."""


def why_not() -> str:
    """Why that cannot be done here, in words for a skipped test; empty when it can."""
    if reason := namespaces.why_not():
        return reason
    try:
        TUN.open("rb+", buffering=0).close()
    except OSError as error:
        return f"a switch in user space needs {TUN}: {error.strerror}"
    return ""


class FarNetwork(Network):
    """Hosts 10.77.0.1 and up, with a line of `shape` between any two. Use it as a context manager."""

    def __init__(self, *hosts: str, shape: LineShape, seed: int = 1, mtu_bytes: int = MTU_BYTES) -> None:
        super().__init__(*hosts)
        self._shape = shape
        self._seed = seed
        self._mtu_bytes = mtu_bytes
        self._switch: subprocess.Popen[str] | None = None

    def shape(self, one: str, other: str, shape: LineShape | None) -> None:
        """From now on the line between those two is like this, both ways; None cuts it."""
        self._order({"between": [one, other], "shape": None if shape is None else asdict(shape)})

    def shape_all(self, shape: LineShape) -> None:
        """From now on all lines are like this; those that a split cuts stay cut until it is healed."""
        self._shape = shape
        self.heal()

    def split(self, *groups: Iterable[str]) -> None:
        """From now on hosts reach only those of their own group; those that are not named form one group."""
        named = {host: number for number, group in enumerate(groups, 1) for host in group}
        hosts = list(self._hosts)
        for place, one in enumerate(hosts):
            for other in hosts[place + 1 :]:
                together = named.get(one, 0) == named.get(other, 0)
                self.shape(one, other, self._shape if together else None)

    def lose(self, percent: int) -> None:
        """Lose that share of all packets; 0 stops it."""
        shape = asdict(self._shape) | {"loss": percent / 100}
        self.shape_all(LineShape(**shape))

    def carried_bytes(self) -> dict[tuple[str, str], int]:
        """What each way has carried so far, from the first host to the second: whole IP packets, multicast aside."""
        answer = self._order({"carried": True})
        return {(one, other): size for way, size in answer.items() for one, _, other in [way.partition(">")]}

    def _build(self) -> None:
        run_ip(*(f"netns add {self.namespace(host)}" for host in self._hosts))
        self._switch = subprocess.Popen(
            [sys.executable, "-m", "tests.lab.slow_switch"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        places = {host: [str(MOUNTED / self.namespace(host)), address] for host, address in self._hosts.items()}
        shape = asdict(self._shape)
        self._order({"hosts": places, "shape": shape, "seed": self._seed, "mtu_bytes": self._mtu_bytes})
        for host in self._hosts:
            line = f"link set eth0 mtu {self._mtu_bytes} txqueuelen {QUEUE_PACKETS}"
            run_ip(line, namespace=self.namespace(host))
        self._configure()

    def _order(self, order: dict[str, Any]) -> dict[str, int]:
        assert self._switch is not None and self._switch.stdin is not None and self._switch.stdout is not None
        self._switch.stdin.write(json.dumps(order) + "\n")
        self._switch.stdin.flush()
        line = self._switch.stdout.readline()
        if not line:
            raise RuntimeError(f"the switch ended with status {self._switch.wait()}; its own words stand above")
        return dict(json.loads(line))

    def _remove(self) -> None:
        if self._switch is not None:
            self._switch.communicate(timeout=10)
            self._switch = None
        super()._remove()
