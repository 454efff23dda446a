"""Forty streams through a node that serves nothing, and one of the two replicas ends: nobody may notice.

Real nodes and engines on loopback. The figures that must be reached stand here; `python -m bench.mesh` measures them.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from bench.counting import Streams, by_socket
from bench.figures import quantile
from tests.conftest import NodeProcess, StartNode
from tests.e2e.meshes import SMALL, invite_for, until_hosts

pytestmark = [pytest.mark.engine, pytest.mark.alone]

STREAMS = 40
LAST = 200
OVER = STREAMS // 10
"""So many may have ended before the last one begins: a stream that runs alone is fast."""
GAP_KILLED_S = 2.0
GAP_CLOSED_S = 0.7


ENVIRONMENT = {**SMALL, "MESHNODE_PARALLEL": str(STREAMS), "MESHNODE_DRAIN_TIMEOUT": "5"}


@pytest.fixture(scope="module")
def founder(start_shared_node: StartNode) -> Iterator[NodeProcess]:
    """One replica of the demo, with room for all streams."""
    node = start_shared_node("--model", "demo", environment=ENVIRONMENT)
    yield node
    node.end()


@pytest.fixture(scope="module")
def token(founder: NodeProcess) -> str:
    """An invite for all the others."""
    return invite_for(founder, 10)


@pytest.fixture(scope="module")
def gateway(start_shared_node: StartNode, token: str) -> Iterator[NodeProcess]:
    """A member that serves nothing; two bystanders make the mesh one of five nodes."""
    nodes = [start_shared_node("--join", token, wait=False) for _ in range(3)]
    for node in nodes:
        node.wait_ready()
    yield nodes[0]
    for node in nodes:
        node.end()


@pytest.fixture
def replica(start_node: StartNode, token: str, gateway: NodeProcess) -> NodeProcess:
    """The other replica, which will not outlive the test."""
    until_hosts(gateway, {"demo": 1})
    node = start_node("--join", token, "--model", "demo", environment=ENVIRONMENT)
    until_hosts(gateway, {"demo": 2})
    with Streams(by_socket(gateway.base_url), [("demo", 10)] * STREAMS) as streams:
        pass  # all are warm now, so that the long answers begin together
    assert streams.faults() == []
    return node


@pytest.mark.parametrize(
    ("number", "limit_s"),
    [
        pytest.param(signal.SIGKILL, GAP_KILLED_S, id="killed"),
        pytest.param(signal.SIGTERM, GAP_CLOSED_S, id="leaving"),
    ],
)
def test_streams_outlive_the_node_that_serves_them(
    gateway: NodeProcess,
    replica: NodeProcess,
    number: signal.Signals,
    limit_s: float,
    record_property: Callable[[str, object], None],
) -> None:
    name = replica.status()["node"]["short"]
    with Streams(by_socket(gateway.base_url), [("demo", LAST)] * STREAMS) as streams:
        running = streams.until_all_run()
        ended_at = time.monotonic()
        replica.process.send_signal(number)
        streams.wait()
    assert streams.faults() == []
    shares = Counter(heard.node for heard in running)
    assert len(shares) == 2 and min(shares.values()) >= STREAMS // 5, shares
    resumed = [heard for heard in streams.heard if heard.resumed]
    assert {heard.node for heard in resumed} == {name}
    assert len(resumed) >= shares[name] - OVER, "all that were not over"
    assert len({heard.tokens for heard in streams.heard}) == 1, "tokens are counted once, whoever made them"
    gap_s = quantile([heard.gap_s(ended_at) for heard in running], 0.95)
    record_property("gap_p95_s", round(gap_s, 3))
    print(f"{number.name}: {len(resumed)} of {STREAMS} streams went on elsewhere, gap p95 {gap_s:.2f} s")
    assert gap_s < limit_s


def test_requests_that_begin_while_a_replica_dies_are_answered(gateway: NodeProcess, replica: NodeProcess) -> None:
    """Until the first byte there is nothing to resume: the next host answers."""
    replica.process.kill()
    begun = time.monotonic()
    with Streams(by_socket(gateway.base_url), [("demo", 10)] * STREAMS) as streams:
        pass
    assert streams.faults() == []
    assert time.monotonic() - begun < 10
