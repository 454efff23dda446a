"""What a person does first: start the demo, ask it, look at it, stop it."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NodeProcess, StartNode

pytestmark = pytest.mark.engine

COUNT = ", ".join(str(number) for number in range(1, 21))


def post(url: str, body: dict[str, Any]) -> bytes:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return bytes(answer.read())


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return b"\nState:\tZ" not in Path(f"/proc/{pid}/status").read_bytes() if Path("/proc/self").exists() else True


def test_demo_counts_in_a_stream(demo_server: NodeProcess) -> None:
    body = {"model": "demo", "stream": True, "messages": [{"role": "user", "content": "count from 1 to 20"}]}
    raw = post(f"{demo_server.base_url}/v1/chat/completions", body)
    events = [line[6:] for line in raw.decode().splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    pieces = [choice["delta"].get("content") or "" for event in events[:-1] for choice in json.loads(event)["choices"]]
    assert "".join(pieces) == COUNT
    assert len(pieces) > 20


def test_status_tells_the_whole_story(demo_server: NodeProcess) -> None:
    facts = demo_server.status()
    assert facts["schema"] == 1 and facts["ready"] is True and facts["problems"] == []
    (model,) = facts["models"]
    assert model["id"] == "demo" and model["state"] == "ready" and model["parallel"] == 4
    assert facts["engine"]["patched"] is True
    done = demo_server.command("status", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["node"] == facts["node"]
    assert "demo" in demo_server.command("ps").stdout


def test_ctrl_c_ends_everything(start_node: StartNode) -> None:
    node = start_node("--model", "demo")
    (pid,) = node.engine_pids()
    node.end(signal.SIGINT)
    assert node.process.returncode == 0
    assert not is_alive(pid)
    assert not (node.home / "runtime.json").exists()
    assert node.command("status").returncode == 3


def test_engine_does_not_outlive_a_killed_node(start_node: StartNode) -> None:
    node = start_node("--model", "demo")
    (pid,) = node.engine_pids()
    node.process.kill()
    node.process.wait()
    for _ in range(2_000):
        if not is_alive(pid):
            break
        os.sched_yield()
    else:
        import time

        deadline = time.monotonic() + 5
        while is_alive(pid) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert not is_alive(pid)
    # The home folder of the killed node can be used again at once.
    assert node.command("status").returncode == 3


def test_second_node_with_one_home_is_refused(start_node: StartNode) -> None:
    node = start_node("--model", "demo")
    done = node.command("--model", "demo", "--port", "0", "--console", "0")
    assert done.returncode == 1
    assert "already running" in done.stderr and str(node.process.pid) in done.stderr
