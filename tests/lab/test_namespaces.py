"""The laboratory itself: hosts reach each other, splits are silent, and nothing is left behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.waiting import eventually
from tests.lab.namespaces import MOUNTED, PREFIX, Network, remove_abandoned, why_not, why_not_lossy

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())
SILENCE_S = 0.2


@pytest.fixture
def network() -> Iterator[Network]:
    with Network("a", "b", "c") as built:
        yield built


def udp(network: Network, host: str) -> socket.socket:
    with network.inside(host):
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.bind((network.address(host), 7))
    return opened


def hears(network: Network, listener: socket.socket, speaker: socket.socket, host: str, times: int = 1) -> int:
    """How many of the datagrams to `host` arrive there."""
    for number in range(times):
        speaker.sendto(bytes([number % 256]), (network.address(host), 7))
    listener.settimeout(SILENCE_S)
    heard = 0
    try:
        while heard < times:
            listener.recv(1)
            heard += 1
    except TimeoutError:
        pass
    return heard


def test_hosts_reach_each_other_and_nobody_else_reaches_them(network: Network) -> None:
    with closing(udp(network, "a")) as one, closing(udp(network, "b")) as other:
        assert hears(network, other, one, "b") == 1
        assert hears(network, one, other, "a") == 1
    outside = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with closing(outside), pytest.raises(OSError, match="assign"):
        outside.bind((network.address("a"), 0))


def test_ports_are_those_of_the_host(network: Network) -> None:
    """Three programs listen on the same port of their own loopback."""
    opened = []
    for host in "abc":
        with network.inside(host):
            opened.append(socket.create_server(("127.0.0.1", 9337)))
    with network.inside("b"), closing(socket.create_connection(("127.0.0.1", 9337), timeout=5)) as caller:
        accepted, address = opened[1].accept()
        assert address == caller.getsockname()
        accepted.close()
    for server in opened:
        server.close()


def test_processes_run_where_they_were_started(network: Network) -> None:
    code = "import socket; s = socket.create_server(('10.77.0.2', 80)); print(*s.getsockname())"
    with network.inside("b"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert done.stdout.split() == ["10.77.0.2", "80"], done.stderr


def test_a_split_is_silent_and_heals(network: Network) -> None:
    with closing(udp(network, "a")) as a, closing(udp(network, "b")) as b, closing(udp(network, "c")) as c:
        assert hears(network, b, a, "b") == hears(network, c, a, "c") == 1
        network.split({"a"}, {"b", "c"})
        assert hears(network, b, a, "b") == hears(network, a, c, "a") == 0
        assert hears(network, c, b, "c") == 1
        network.split({"c"})
        assert hears(network, b, a, "b") == 1
        assert hears(network, c, b, "c") == 0
        network.heal()
        assert hears(network, c, a, "c") == hears(network, b, c, "b") == 1


@pytest.mark.skipif(bool(why_not_lossy()), reason=why_not_lossy())
def test_a_share_of_all_packets_is_lost(network: Network) -> None:
    with closing(udp(network, "a")) as a, closing(udp(network, "b")) as b:
        assert hears(network, b, a, "b", 200) == 200
        network.lose(30)
        assert 100 <= hears(network, b, a, "b", 200) <= 175
        network.lose(0)
        assert hears(network, b, a, "b", 200) == 200


def test_leaving_restores_the_own_network() -> None:
    before = Path("/proc/thread-self/ns/net").readlink()
    with Network("a") as network:
        with pytest.raises(RuntimeError), network.inside("a"):
            assert Path("/proc/thread-self/ns/net").readlink() != before
            raise RuntimeError
        assert Path("/proc/thread-self/ns/net").readlink() == before


def test_nothing_is_left_behind() -> None:
    with Network("a") as network:
        with network.inside("a"):
            process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
        assert [path.name for path in MOUNTED.glob(f"{PREFIX}-{os.getpid()}-a")] == [network.namespace("a")]
    assert process.wait(timeout=10) < 0
    assert list(MOUNTED.glob(f"{PREFIX}-{os.getpid()}-*")) == []


def test_what_a_killed_run_left_is_removed() -> None:
    code = "import os; from tests.lab.namespaces import Network; Network('x').__enter__(); os._exit(0)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    assert process.wait(timeout=30) == 0
    left = f"{PREFIX}-{process.pid}-*"
    assert len(list(MOUNTED.glob(left))) == 2
    remove_abandoned()
    eventually(lambda: not list(MOUNTED.glob(left)))
