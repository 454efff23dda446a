"""The public swarm by the command line: real nodes, the real engine, and an embedded relay."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.conftest import NodeProcess, StartNode
from tests.e2e.meshes import SMALL, hosts_of, until_hosts
from tests.e2e.nostr import relay_in_a_thread
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.engine

NOBODY = "ws://127.0.0.1:9"
PUBLIC = {"x-meshnode-radius": "public"}
FIRST_TOKEN_S = 10.0
"""From the start of the process, on a machine that does other things; `python -m bench.swarm` measures it."""


@pytest.fixture(scope="module")
def relay() -> Iterator[str]:
    with relay_in_a_thread() as url:
        yield url


@pytest.fixture(scope="module")
def publisher(start_shared_node: StartNode, relay: str) -> Iterator[NodeProcess]:
    """A node that offers the demo to strangers."""
    node = start_shared_node("--model", "demo", "--publish", "--nostr-relay", relay, environment=SMALL)
    eventually(lambda: (swarm_of(node) or {}).get("listing"), 20)
    yield node
    node.end()


def swarm_of(node: NodeProcess) -> dict[str, Any]:
    """What the node says of its public mesh now."""
    found: dict[str, Any] = node.status()["swarm"]
    return found


def until_state(node: NodeProcess, state: str, within_s: float = 20) -> dict[str, Any]:
    eventually(lambda: swarm_of(node)["state"] == state, within_s)
    return swarm_of(node)


def said_by(node: NodeProcess, words: str = "count from 1 to 5", **headers: str) -> str:
    """The whole of a streamed answer."""
    client = openai.OpenAI(base_url=f"{node.base_url}/v1", api_key="none", max_retries=0, timeout=60)
    stream = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": words}],
        stream=True,
        extra_headers={**PUBLIC, **headers},
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def meshes_on(node: NodeProcess, relay: str) -> list[str]:
    """What `meshnode discover` finds on a relay."""
    found = node.command("--nostr-relay", relay, "discover", "--json")
    return [mesh["name"] for mesh in json.loads(found.stdout)["meshes"]]


def test_auto_takes_a_strangers_machine_to_an_answer(start_node: StartNode, publisher: NodeProcess, relay: str) -> None:
    began = time.monotonic()
    node = start_node("--auto", "--nostr-relay", relay)
    until_hosts(node, {"demo": 1})
    assert "1, 2, 3, 4, 5" in said_by(node)
    assert time.monotonic() - began < FIRST_TOKEN_S
    swarm = until_state(node, "joined")
    assert swarm["mesh"]["name"] == "meshnode" and not swarm["publishing"]
    assert [(peer["radius"], peer["path"]) for peer in swarm["peers"]] == [("public", "direct")]


def test_what_only_strangers_serve_needs_leave_to_go_there(
    start_node: StartNode, publisher: NodeProcess, relay: str
) -> None:
    node = start_node("--client", "--auto", "--nostr-relay", relay)
    until_hosts(node, {"demo": 1})
    with pytest.raises(openai.PermissionDeniedError) as refused:
        said_by(node, **{"x-meshnode-radius": "trusted"})
    assert "x-meshnode-radius" in str(refused.value)
    assert "1, 2, 3" in said_by(node)
    assert swarm_of(node)["role"] == "client"
    counters = swarm_of(publisher)["counters"]
    assert counters["inquiries_answered"] >= 1


def test_everybody_runs_the_same_command(start_node: StartNode, relay: str) -> None:
    command = ("--mesh-name", "Reading Club", "--nostr-relay", relay)
    first = start_node(*command, "--model", "demo", environment=SMALL)
    second = start_node(*command)
    until_hosts(second, {"demo": 1}, within_s=60)
    assert swarm_of(first)["mesh"] == swarm_of(second)["mesh"]
    assert swarm_of(first)["mesh"]["name"] == "reading-club"
    assert "1, 2, 3" in said_by(second)


def test_with_every_relay_down_a_node_comes_back(start_node: StartNode, publisher: NodeProcess, relay: str) -> None:
    node = start_node("--auto", "--nostr-relay", relay)
    until_state(node, "joined")
    eventually(lambda: (node.home / "public" / "peers").exists(), 10)
    node.end(signal.SIGKILL)
    arguments = ("--json", "--port", "0", "--console", "0", "--auto", "--nostr-relay", NOBODY)
    again = NodeProcess(*arguments, home=node.home).wait_ready()
    try:
        until_hosts(again, {"demo": 1})
        assert "1, 2, 3" in said_by(again)
    finally:
        again.end()


def test_an_address_is_enough(start_node: StartNode, publisher: NodeProcess) -> None:
    at = swarm_of(publisher)["addresses"][0]
    node = start_node("--client", "--auto", "--nostr-relay", NOBODY, "--bootstrap", at)
    until_hosts(node, {"demo": 1})
    assert "1, 2, 3" in said_by(node)


def test_without_anybody_it_says_why(start_node: StartNode) -> None:
    node = start_node("--client", "--auto", "--nostr-relay", NOBODY)
    swarm = until_state(node, "failed")
    assert "no Nostr relay answers" in swarm["sentence"]
    assert "public-mesh-unfound" in [problem["code"] for problem in node.status()["problems"]]


def test_a_pause_and_the_end_take_the_offer_back(start_node: StartNode, relay: str) -> None:
    with relay_in_a_thread() as own:
        node = start_node("--model", "demo", "--publish", "--nostr-relay", own, environment=SMALL)
        eventually(lambda: swarm_of(node)["listing"], 20)
        guest = start_node("--client", "--auto", "--nostr-relay", own)
        until_hosts(guest, {"demo": 1})
        assert node.command("pause").returncode == 0
        eventually(lambda: not hosts_of(guest), 20)
        assert swarm_of(node)["paused"]
        assert node.command("resume").returncode == 0
        until_hosts(guest, {"demo": 1})
        eventually(lambda: meshes_on(node, own) == ["meshnode"], 20)
        node.end()
        guest.end()
        gone = node.command("--nostr-relay", own, "discover", "--json")
        assert gone.returncode == 5
