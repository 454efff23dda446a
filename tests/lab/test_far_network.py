"""The far network itself: packets are late by as much as was said, all else arrives, and nothing is left behind."""

from __future__ import annotations

import os
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bench.line import LineShape
from tests.e2e.waiting import eventually
from tests.lab.far_network import FarNetwork, why_not
from tests.lab.namespaces import MOUNTED, PREFIX

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())
ROOT = Path(__file__).parents[2]
FAR = LineShape(delay_s=0.02)
NEAR = LineShape(delay_s=0.001)


@pytest.fixture(scope="module")
def built() -> Iterator[FarNetwork]:
    with FarNetwork("a", "b", "c", shape=FAR) as network:
        yield network


@pytest.fixture
def network(built: FarNetwork) -> FarNetwork:
    """As it was built."""
    built.shape_all(FAR)
    return built


def pings_s(network: FarNetwork, one: str, other: str, count: int = 10) -> list[float]:
    """Round trips of ICMP echoes, answered by the kernel of the other host."""
    with network.inside(one):
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    found = []
    with closing(raw):
        raw.settimeout(2)
        for number in range(count):
            head = struct.pack("!BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, number)
            total = sum(struct.unpack(f"!{len(head) // 2}H", head))
            folded = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
            begun = time.monotonic()
            raw.sendto(head[:2] + struct.pack("!H", folded) + head[4:], (network.address(other), 0))
            while raw.recv(100)[20] != 0:  # 0: an echo reply
                pass
            found.append(time.monotonic() - begun)
    return found


def udp(network: FarNetwork, host: str) -> socket.socket:
    with network.inside(host):
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.bind((network.address(host), 7))
    opened.settimeout(0.3)
    return opened


def hears(network: FarNetwork, listener: socket.socket, speaker: socket.socket, host: str, times: int = 1) -> int:
    """How many of the datagrams to `host` arrive there."""
    for number in range(times):
        speaker.sendto(bytes([number % 256]), (network.address(host), 7))
    for heard in range(times):
        try:
            listener.recv(1)
        except TimeoutError:
            return heard
    return times


def test_a_ping_takes_forty_milliseconds(network: FarNetwork) -> None:
    for one, other in (("a", "b"), ("b", "a"), ("c", "a")):
        found = pings_s(network, one, other)
        assert min(found) >= 0.04
        assert statistics.median(found) == pytest.approx(0.041, abs=0.001)


def test_each_pair_may_have_its_own_line(network: FarNetwork) -> None:
    network.shape("a", "b", NEAR)
    assert 0.002 <= statistics.median(pings_s(network, "a", "b")) < 0.01
    assert statistics.median(pings_s(network, "a", "c", 3)) > 0.04


def test_tcp_comes_whole(network: FarNetwork) -> None:
    sent = os.urandom(1 << 20) * 16
    with network.inside("b"):
        server = socket.create_server((network.address("b"), 5001))
    with network.inside("a"):
        client = socket.create_connection((network.address("b"), 5001), timeout=10)
    with closing(server), closing(client):
        accepted, _ = server.accept()
        with closing(accepted):
            sender = threading.Thread(target=client.sendall, args=(sent,))
            sender.start()
            got = bytearray()
            while len(got) < len(sent):
                got += accepted.recv(1 << 20)
            sender.join()
    assert got == sent


def test_a_share_is_lost(network: FarNetwork) -> None:
    with closing(udp(network, "a")) as a, closing(udp(network, "b")) as b:
        assert hears(network, b, a, "b", 200) == 200
        network.lose(30)
        assert 100 <= hears(network, b, a, "b", 200) <= 175


@pytest.mark.alone
def test_a_rate_is_kept(network: FarNetwork) -> None:
    network.shape("a", "b", LineShape(rate_bytes_per_s=100_000))
    with closing(udp(network, "a")) as a, closing(udp(network, "b")) as b:
        begun = time.monotonic()
        for _ in range(30):
            a.sendto(bytes(972), (network.address("b"), 7))  # with the headers of IP and UDP 1000 bytes
        for _ in range(30):
            b.recv(2000)
        assert 0.29 < time.monotonic() - begun < 0.4


def test_a_split_is_silent_and_heals(network: FarNetwork) -> None:
    with closing(udp(network, "a")) as a, closing(udp(network, "b")) as b, closing(udp(network, "c")) as c:
        network.split({"a"}, {"b", "c"})
        assert hears(network, b, a, "b") == hears(network, a, c, "a") == 0
        assert hears(network, c, b, "c") == 1
        network.heal()
        assert hears(network, b, a, "b") == hears(network, a, c, "a") == 1


def test_multicast_goes_to_all_others(network: FarNetwork) -> None:
    group = "224.0.0.251"
    members = []
    for host in "bc":
        with network.inside(host):
            opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.bind(("", 5353))
        place = socket.inet_aton(group) + socket.inet_aton(network.address(host))
        opened.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, place)
        opened.settimeout(2)
        members.append(opened)
    with closing(udp(network, "a")) as a:
        a.sendto(b"hello", (group, 5353))
        assert [member.recv(10) for member in members] == [b"hello"] * 2
    for member in members:
        member.close()


def test_what_was_carried_is_counted(network: FarNetwork) -> None:
    before = network.carried_bytes()
    with closing(udp(network, "a")) as a, closing(udp(network, "b")) as b:
        a.sendto(bytes(1000), (network.address("b"), 7))
        assert b.recv(2000) == bytes(1000)
    after = network.carried_bytes()
    assert after["a", "b"] - before["a", "b"] == 1028
    assert after["c", "a"] == before["c", "a"]


def quic_mb_per_s(network: FarNetwork, size_bytes: int) -> float:
    """Bulk from b to a over one link of ours."""
    command = [sys.executable, "-m", "tests.lab.quic_ends"]
    with network.inside("a"):
        server = subprocess.Popen(
            [*command, "serve", network.address("a")],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    assert server.stdout is not None
    place = server.stdout.readline().split()
    with network.inside("b"):
        client = subprocess.run(
            [*command, "dial", network.address("b"), network.address("a"), *place, str(size_bytes)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
    server.communicate(timeout=10)
    assert client.returncode == 0, client.stderr
    return size_bytes / float(client.stdout) / 1e6


def test_quic_gets_through_at_speed(network: FarNetwork) -> None:
    """With 40 ms of round trip this is the window growing; without delay, what the switch itself carries."""
    network.shape_all(LineShape())
    assert quic_mb_per_s(network, 20 << 20) > 10


def test_nothing_is_left_behind() -> None:
    before = Path("/proc/thread-self/ns/net").readlink()
    with FarNetwork("x", shape=NEAR) as network:
        process = network._switch
        assert process is not None and (MOUNTED / network.namespace("x")).exists()
        assert Path("/proc/thread-self/ns/net").readlink() == before
    assert process.returncode == 0
    assert list(MOUNTED.glob(f"{PREFIX}-{os.getpid()}-x")) == []


def test_the_switch_of_a_killed_run_ends() -> None:
    code = (
        "import os; from bench.line import LineShape; from tests.lab.far_network import FarNetwork;"
        "n = FarNetwork('x', shape=LineShape()); n.__enter__(); print(n._switch.pid, flush=True); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    eventually(lambda: not Path(f"/proc/{int(done.stdout)}").exists())


def test_words_when_the_switch_fails() -> None:
    network = FarNetwork("x", shape=NEAR, mtu_bytes=1500)
    with network, pytest.raises(RuntimeError, match="the switch ended"):
        network._order({"between": ["x", "nobody"], "shape": None})
