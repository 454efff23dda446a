"""The only engine of a model dies in the middle of its answers: they go on in the next one, with the same text."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from bench.counting import Streams, by_socket
from bench.figures import quantile
from tests.conftest import NodeProcess, StartNode
from tests.e2e.meshes import SMALL, invite_of, until_hosts
from tests.e2e.waiting import eventually

pytestmark = [pytest.mark.engine, pytest.mark.alone]

STREAMS = 8
LAST = 200
GAP_S = 3.0
ENVIRONMENT = {**SMALL, "MESHNODE_PARALLEL": str(STREAMS)}


def engine_of(node: NodeProcess) -> int:
    """The process of the only engine, once it is ready."""

    def ready() -> int:
        (entry,) = [entry for entry in node.status()["models"] if entry["where"] == "here"]
        return int(entry["engine"]["pid"]) if entry["state"] == "ready" and entry["engine"]["pid"] else 0

    return eventually(ready)


def kill_in_mid_answer(server: NodeProcess, asked: NodeProcess) -> tuple[Streams, float]:
    """Several answers through `asked`, of which none is over when the engine of `server` dies; and their gap p95."""
    pid = engine_of(server)
    with Streams(by_socket(asked.base_url), [("demo", LAST)] * STREAMS) as streams:
        running = streams.until_all_run()
        killed_at = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        streams.wait()
    return streams, quantile([heard.gap_s(killed_at) for heard in running], 0.95)


@pytest.mark.parametrize("through", ["the same node", "a client"])
def test_answers_go_on_in_the_engine_that_comes_back(
    through: str, start_node: StartNode, record_property: Callable[[str, object], None]
) -> None:
    server = asked = start_node("--model", "demo", environment=ENVIRONMENT)
    if through == "a client":
        asked = start_node("--client", "--join", invite_of(server))
        until_hosts(asked, {"demo": 1})
    with Streams(by_socket(asked.base_url), [("demo", 5)]):
        pass
    streams, gap_s = kill_in_mid_answer(server, asked)
    assert streams.faults() == [], "each text is the one that was never cut"
    assert sum(heard.resumed for heard in streams.heard) >= STREAMS - 1
    record_property("gap_p95_s", round(gap_s, 3))
    print(f"through {through}: gap p95 {gap_s:.2f} s")
    assert gap_s < GAP_S


def test_an_answer_that_never_began_is_given_by_the_next_engine(start_node: StartNode) -> None:
    """A request whose prompt was being read: its caller notices nothing but the time."""
    node = start_node("--model", "demo", "--parallel", "1", environment=SMALL)
    pid = engine_of(node)
    os.kill(pid, signal.SIGSTOP)  # or it would be through with all four before anybody looks
    with Streams(by_socket(node.base_url), [("demo", LAST), *[("demo", 5)] * 3]) as streams:
        eventually(lambda: node.status()["requests"]["waiting"] == 3)
        os.kill(pid, signal.SIGKILL)
    assert streams.faults() == []
    assert engine_of(node) != pid
