"""Hosts of their own on one Linux machine: network namespaces on a switch that can be split, healed and made lossy.

Each host has a loopback, an address and its own ports, so that nodes run there with their default settings. A split is
made by moving cables to another switch: packets vanish without an error, as they do when a line is cut somewhere.

    with Network("a", "b", "c") as network:
        with network.inside("a"):               # this thread's new sockets and processes belong to host a
            node = subprocess.Popen(...)
        network.split({"a"}, {"b", "c"})
        network.heal()

Nothing of the machine itself is touched: the switch is in a namespace too, and all of them carry the process id in
their names. Whatever still runs in them is killed at the end; what a killed run has left is removed by the next one.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

PREFIX = "meshlab"
SWITCH = "switch"
MOUNTED = Path("/run/netns")
CLONE_NEWNET = 0x40000000


def why_not() -> str:
    """Why namespaces cannot be used here, in words for a skipped test; empty when they can."""
    if sys.platform != "linux":
        return "network namespaces exist on Linux only"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the program ip (package iproute2)"
    try:
        with Network("probe"):
            return ""
    except subprocess.CalledProcessError as reason:
        return f"network namespaces are not allowed here: {reason.stderr.strip()}"


def why_not_lossy() -> str:
    """Why packets cannot be dropped at random."""
    return "" if shutil.which("nft") else "random loss needs the program nft (package nftables)"


class Network:
    """Hosts on one switch, 10.77.0.1 and up in the order given. Use it as a context manager.

    Raises subprocess.CalledProcessError with the words of `ip` when it cannot be built.
    """

    def __init__(self, *hosts: str) -> None:
        self._hosts = {host: f"10.77.0.{number}" for number, host in enumerate(hosts, 1)}
        self._switches = 1

    def __enter__(self) -> Self:
        remove_abandoned()
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._remove()

    def address(self, host: str) -> str:
        """The IPv4 address of a host."""
        return self._hosts[host]

    def namespace(self, host: str) -> str:
        """The name that `ip netns` knows a host by."""
        return f"{PREFIX}-{os.getpid()}-{host}"

    @contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """Sockets opened and processes started by this thread within the block belong to the host, and stay there."""
        with Path("/proc/thread-self/ns/net").open() as before, (MOUNTED / self.namespace(host)).open() as there:
            enter_namespace(there.fileno())
            try:
                yield
            finally:
                enter_namespace(before.fileno())

    def split(self, *groups: Iterable[str]) -> None:
        """From now on hosts reach only those of their own group; those that are not named form one group."""
        named = {host: number for number, group in enumerate(groups, 1) for host in group}
        lines = [f"link add br{number} type bridge" for number in range(self._switches, len(groups) + 1)]
        lines += [f"link set br{number} up" for number in range(self._switches, len(groups) + 1)]
        self._switches = max(self._switches, len(groups) + 1)
        lines += [f"link set {_port(host)} master br{named.get(host, 0)}" for host in self._hosts]
        run_ip(*lines, namespace=self.namespace(SWITCH))

    def heal(self) -> None:
        """All hosts reach each other again."""
        self.split()

    def lose(self, percent: int) -> None:
        """Drop that share of all packets on the switch; 0 stops it. Needs nft."""
        rules = "table bridge lab\ndelete table bridge lab\n"
        if percent:
            chain = "type filter hook forward priority 0; policy accept;"
            drop = f"ether type ip numgen random mod 100 < {percent} drop"
            rules += f"table bridge lab {{\nchain forward {{\n{chain}\n{drop}\n}}\n}}\n"
        with self.inside(SWITCH):
            subprocess.run(["nft", "-f", "-"], input=rules, check=True, capture_output=True, text=True)

    def _build(self) -> None:
        switch = self.namespace(SWITCH)
        lines = [f"netns add {switch}"]
        for host in self._hosts:
            there = self.namespace(host)
            lines += [
                f"netns add {there}",
                f"link add name eth0 netns {there} type veth peer name {_port(host)} netns {switch}",
            ]
        run_ip(*lines)
        ports = [f"link set {_port(host)} master br0 up" for host in self._hosts]
        run_ip("link add br0 type bridge", "link set br0 up", *ports, namespace=switch)
        self._configure()

    def _configure(self) -> None:
        """Give every host its loopback, its address and a route; the device eth0 is there."""
        for host, address in self._hosts.items():
            lines = ["link set lo up", f"addr add {address}/24 dev eth0", "link set eth0 up"]
            run_ip(*lines, "route add default dev eth0", namespace=self.namespace(host))

    def _remove(self) -> None:
        for name in (*self._hosts, SWITCH):
            remove_namespace(self.namespace(name))


def remove_abandoned() -> None:
    """Remove what runs that were killed have left behind."""
    for path in sorted(MOUNTED.glob(f"{PREFIX}-*")):
        owner = path.name.split("-")[1]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            remove_namespace(path.name)


def remove_namespace(name: str) -> None:
    """Kill what runs there, and remove it; nothing happens if it does not exist."""
    if not (MOUNTED / name).exists():
        return
    listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
    for pid in map(int, listed.stdout.split()):
        # A thread that is inside for a moment would show up as this very process.
        if pid != os.getpid():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _port(host: str) -> str:
    """The end of a host's cable in the switch; names of interfaces have at most 15 characters."""
    return f"p-{host}"[:15]


def run_ip(*lines: str, namespace: str = "") -> None:
    within = ["-netns", namespace] if namespace else []
    text = "\n".join(lines) + "\n"
    subprocess.run(["ip", *within, "-batch", "-"], input=text, check=True, capture_output=True, text=True)


def enter_namespace(descriptor: int) -> None:
    """setns(2) for this thread; `os.setns` exists from Python 3.12 on."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.setns(descriptor, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")
