"""Bad lines and bad moments: every answer arrives whole.

A node that serves stands behind a relay that loses, mixes, damages, delays and cuts (tests/lab/udp_relay.py); another
one, which serves nothing, asks it for streams whose text is known. Then a second replica comes, and one of the two is
paused or told to stop in the middle of a stream.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from bench.counting import Streams, by_socket
from tests.conftest import NodeProcess, StartNode
from tests.e2e.meshes import SMALL, mesh_of, until_hosts
from tests.e2e.relayed import invite_through, relay_to, why_not
from tests.e2e.waiting import eventually
from tests.lab.udp_relay import Faults, UdpRelay

pytestmark = [pytest.mark.engine, pytest.mark.alone, pytest.mark.skipif(bool(why_not()), reason=why_not())]

LAST = 120
STREAMS = 4
BLACKOUT_S = 2.0
PAUSED_S = 5.0
GAP_BLACKOUT_S = BLACKOUT_S + 3.0
GAP_PAUSED_S = 3.0
GAP_LEAVING_S = 1.5


class Line:
    """A node that serves, one that asks, and the line between them."""

    def __init__(self, server: NodeProcess, asker: NodeProcess, relay: UdpRelay) -> None:
        self.server = server
        self.asker = asker
        self.relay = relay
        self._firsts = iter((150, 190))

    def streams(self, number: int = STREAMS, last: int = LAST) -> Streams:
        return Streams(by_socket(self.asker.base_url), [("demo", last)] * number)

    def strangers(self) -> Streams:
        """Questions that nobody has asked before, so that no host is preferred for what it remembers."""
        first = next(self._firsts)
        return Streams(by_socket(self.asker.base_url), [("demo", last) for last in range(first, first + 6)])

    @contextmanager
    def bad(self, faults: Faults) -> Iterator[None]:
        self.relay.faults = faults
        try:
            yield
        finally:
            self.relay.faults = Faults()


@pytest.fixture(scope="module")
def mended(start_shared_node: StartNode) -> Iterator[Line]:
    with relay_to(start_shared_node, "--model", "demo", "--parallel", "8") as (server, relay):
        asker = start_shared_node("--join", invite_through(server, relay), environment=SMALL)
        until_hosts(asker, {"demo": 1})
        yield Line(server, asker, relay)
        asker.end()
        server.end()


@pytest.fixture
def line(mended: Line) -> Iterator[Line]:
    """Every test finds both nodes connected and the line in order."""
    until_hosts(mended.asker, {"demo": 1})
    mended.relay.counts.clear()
    yield mended
    until_hosts(mended.asker, {"demo": 1})


@pytest.mark.parametrize(
    ("faults", "seen"),
    [
        (Faults(loss=0.02), "lost"),
        (Faults(loss=0.1), "lost"),
        (Faults(reorder=0.2, held_s=0.02), "reordered"),
        (Faults(corrupt=0.02), "corrupted"),
        (Faults(duplicate=0.2), "duplicated"),
        (Faults(delay_s=0.1), "passed"),
        (Faults(loss=0.05, corrupt=0.02, duplicate=0.05, reorder=0.1, delay_s=0.02), "lost"),
    ],
    ids=["2 % lost", "10 % lost", "reordered", "2 % damaged", "twice", "100 ms away", "all of it"],
)
def test_answers_are_whole_over_a_bad_line(line: Line, faults: Faults, seen: str) -> None:
    with line.bad(faults), line.streams() as streams:
        pass
    assert streams.faults() == []
    assert line.relay.counts[seen] > 0, f"the line was good: {line.relay.counts}"


def test_first_token_over_a_long_line_takes_one_round_trip(line: Line) -> None:
    with line.bad(Faults(delay_s=0.1)):
        begun = time.monotonic()
        with line.streams(1, last=5) as streams:
            pass
        (heard,) = streams.heard
        first_s = heard.arrived_at[0] - begun
    assert streams.faults() == [] and 0.2 <= first_s < 0.2 + 0.5, first_s


def test_stream_outlives_a_blackout_when_there_is_no_other_host(line: Line) -> None:
    with line.streams(2, last=200) as streams:
        streams.until_all_run()
        dark_at = time.monotonic()
        line.relay.black_out(BLACKOUT_S)
    assert streams.faults() == []
    assert line.relay.counts["blacked_out"] > 0
    gap_s = max(heard.gap_s(dark_at) for heard in streams.heard)
    assert gap_s > BLACKOUT_S / 2, "the streams were over before the blackout"
    print(f"blackout of {BLACKOUT_S} s: longest pause {gap_s:.2f} s")
    assert gap_s < GAP_BLACKOUT_S


def test_streams_outlive_a_nat_that_forgets(line: Line) -> None:
    """The asker comes from another port every half second; the server follows it."""
    before = address_of(line.asker, line.server)
    over = threading.Event()
    moves = 0

    def move() -> None:
        nonlocal moves
        while not over.wait(0.5):
            line.relay.rebind()
            moves += 1

    mover = threading.Thread(target=move)
    mover.start()
    try:
        deadline = time.monotonic() + 3
        while moves < 4 and time.monotonic() < deadline + 10:
            with line.streams(STREAMS, last=200) as streams:
                pass
            assert streams.faults() == []
    finally:
        over.set()
        mover.join()
    assert moves >= 4
    assert address_of(line.asker, line.server) != before, "the server saw no other port"


# --- two replicas -----------------------------------------------------------------------------------------------


@pytest.fixture
def replica(mended: Line, start_node: StartNode) -> Iterator[NodeProcess]:
    """A second replica, next to the asker: nearer than the one behind the line, which is made a long one."""
    mended.relay.faults = Faults(delay_s=0.02)
    environment = {**SMALL, "MESHNODE_PARALLEL": "8", "MESHNODE_DRAIN_TIMEOUT": "5"}
    node = start_node("--join", invite_through(mended.server, mended.relay), "--model", "demo", environment=environment)
    # By its id, as one that has just gone may still be listed.
    eventually(lambda: short_id(node) in ready_hosts(mended.asker), within_s=20)
    # Of whom it is only told counts as far, and all streams would run on the other.
    eventually(lambda: rtt_ms_of(node, mended.asker) < rtt_ms_of(mended.server, mended.asker), within_s=20)
    yield node
    mended.relay.faults = Faults()
    with suppress(ProcessLookupError):
        node.process.send_signal(signal.SIGCONT)
    node.end()


def short_id(node: NodeProcess) -> str:
    return str(node.status()["node"]["short"])


def ready_hosts(node: NodeProcess) -> set[str]:
    """The short ids of the hosts of the demo that are ready, as one node knows them."""
    with urllib.request.urlopen(f"{node.base_url}/v1/models", timeout=10) as answer:
        (model,) = json.load(answer)["data"]
    return {host["node"][:10] for host in model["meshnode"]["hosts"] if host["state"] == "ready"}


def state_of(node: NodeProcess, seen_by: NodeProcess) -> str:
    """In which state one node sees another."""
    own = short_id(node)
    return next((peer["state"] for peer in mesh_of(seen_by)["peers"] if peer["short"] == own), "unknown")


def rtt_ms_of(node: NodeProcess, seen_by: NodeProcess) -> float:
    """How far one node is by what another has measured; endlessly far before it has."""
    own = short_id(node)
    found = [peer["rtt_ms"] for peer in mesh_of(seen_by)["peers"] if peer["short"] == own]
    return math.inf if found in ([], [None]) else float(found[0])


def address_of(node: NodeProcess, seen_by: NodeProcess) -> str:
    """Where one node sees another."""
    own = short_id(node)
    (address,) = [peer["address"] for peer in mesh_of(seen_by)["peers"] if peer["short"] == own]
    return str(address)


def test_paused_node_is_replaced_and_comes_back(mended: Line, replica: NodeProcess) -> None:
    name = short_id(replica)
    with mended.strangers() as streams:
        streams.until_all_run()
        paused_at = time.monotonic()
        replica.process.send_signal(signal.SIGSTOP)
        there = [heard for heard in streams.heard if heard.node == name and not heard.finish]
        streams.wait()
        done_s = time.monotonic() - paused_at
        time.sleep(max(0.0, PAUSED_S - done_s))
        replica.process.send_signal(signal.SIGCONT)
    assert streams.faults() == []
    assert there, f"no stream ran on {name}, which was paused: {[heard.node for heard in streams.heard]}"
    gap_s = max(heard.gap_s(paused_at) for heard in streams.heard)
    print(f"paused: {len(there)} of {len(streams.heard)} streams were there, longest pause {gap_s:.2f} s")
    assert gap_s < GAP_PAUSED_S
    eventually(lambda: state_of(replica, mended.asker) == "alive", within_s=5)
    eventually(lambda: name in ready_hosts(mended.asker), within_s=5)


def test_node_that_is_told_to_stop_hands_its_streams_over(mended: Line, replica: NodeProcess) -> None:
    name = short_id(replica)
    with mended.strangers() as streams:
        streams.until_all_run()
        left_at = time.monotonic()
        replica.process.send_signal(signal.SIGTERM)
        there = [heard for heard in streams.heard if heard.node == name and not heard.finish]
    assert streams.faults() == []
    assert there, f"no stream ran on {name}, which left: {[heard.node for heard in streams.heard]}"
    gap_s = max(heard.gap_s(left_at) for heard in streams.heard)
    print(f"left: {len(there)} of {len(streams.heard)} streams were there, longest pause {gap_s:.2f} s")
    assert gap_s < GAP_LEAVING_S
    assert replica.process.wait(10) == 0
    until_hosts(mended.asker, {"demo": 1}, within_s=5)
