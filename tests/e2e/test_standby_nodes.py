"""Nodes without models of their own take over what the mesh asks for, when nobody serves it any more."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.conftest import NodeProcess, StartNode
from tests.e2e.meshes import SMALL, invite_for, until_hosts
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.engine

WITHIN_S = 60.0
RETRY_S = 2.0
HELLO = {"model": "demo", "messages": [{"role": "user", "content": "count from 1 to 5"}], "temperature": 0}


def answer_of(node: NodeProcess) -> str:
    """What the demo says to a caller of that node; "" for a refusal."""
    request = urllib.request.Request(
        f"{node.base_url}/v1/chat/completions", json.dumps(HELLO).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(json.load(answer)["choices"][0]["message"]["content"])
    except urllib.error.HTTPError as refusal:
        assert refusal.code in (404, 502, 503)
        time.sleep(RETRY_S)  # as a patient caller does: a flood would be heat
        return ""


def taken_on(node: NodeProcess) -> list[dict[str, Any]]:
    return list(node.status()["standby"]["models"])


def test_a_standby_node_takes_over_what_its_callers_ask_for(start_node: StartNode) -> None:
    founder = start_node("--model", "demo", environment=SMALL)
    token = invite_for(founder, 5)
    standbys = [start_node("--join", token, environment=SMALL) for _ in range(2)]
    idle = start_node("--join", token, "--no-standby", environment=SMALL)
    until_hosts(idle, {"demo": 1})
    assert answer_of(idle) == "1, 2, 3, 4, 5"
    assert [taken_on(node) for node in standbys] == [[], []]
    founder.process.kill()
    killed_at = time.monotonic()
    eventually(lambda: answer_of(idle), WITHIN_S)
    print(f"served again after {time.monotonic() - killed_at:.1f} s")
    until_hosts(idle, {"demo": 1})
    (chosen,) = [node for node in standbys if taken_on(node)]
    ((model, reason),) = [(entry["model"], entry["reason"]) for entry in taken_on(chosen)]
    assert model == "demo" and "no node serves it" in reason
    (entry,) = [entry for entry in chosen.status()["models"] if entry["where"] == "here"]
    assert entry["reason"] == reason and idle.status()["standby"] is None
    chosen.end()
    eventually(lambda: answer_of(idle), WITHIN_S)
