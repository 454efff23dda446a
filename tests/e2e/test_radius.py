"""How far requests of a real node travel: two machines of one person, joined, signed, and trusted no more."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

import pytest

from tests.conftest import NodeProcess, StartNode
from tests.e2e.meshes import SMALL, invite_of, until_hosts
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.engine

HELLO = {"model": "demo", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


def post(url: str, body: Mapping[str, Any], **headers: str) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, JSON and headers of an answer; underscores in names of headers become dashes."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json", **named})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error), dict(error.headers)


def ask(node: NodeProcess, **headers: str) -> tuple[int, str]:
    """The status of an answer, and its radius or the code of its error."""
    status, body, told = post(f"{node.base_url}/v1/chat/completions", HELLO, **headers)
    return status, told["x-meshnode-radius"] if status == 200 else body["error"]["code"]


def control(node: NodeProcess, path: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """A call of the control API, with the token of the node."""
    token = json.loads((node.home / "runtime.json").read_text())["token"]
    status, answer, _ = post(f"{node.console_url}{path}", body, x_meshnode_token=token)
    return status, answer


def owner(node: NodeProcess, *arguments: str) -> str:
    """What `meshnode owner` prints."""
    done = node.command("owner", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_machine_that_is_signed_is_local_until_it_is_trusted_no_more(start_node: StartNode) -> None:
    desk = start_node("--model", "demo", environment=SMALL)
    laptop = start_node("--join", invite_of(desk), "--client")
    until_hosts(laptop, {"demo": 1})
    assert ask(laptop) == (200, "trusted")
    assert ask(laptop, x_meshnode_radius="local") == (403, "out_of_radius")
    assert ask(desk, x_meshnode_radius="local") == (200, "local")
    assert ask(laptop, x_meshnode_radius="everywhere") == (400, "bad_request")
    assert ask(laptop, x_meshnode_radius="public", origin="http://localhost:1") == (403, "forbidden")

    key = owner(desk, "init")
    desk_id, laptop_id = (json.loads(owner(node, "show", "--json"))["node"] for node in (desk, laptop))
    owner(laptop, "accept", owner(desk, "sign", laptop_id))
    assert f"owner  {key}" in owner(laptop, "show")
    eventually(lambda: ask(laptop, x_meshnode_radius="local") == (200, "local"), 15)
    assert laptop.status()["trust"]["owner"] == key.removeprefix("owner-")[:10]
    (peer,) = laptop.status()["mesh"]["peers"]
    assert (peer["id"], peer["radius"]) == (desk_id, "local")

    owner(laptop, "untrust", desk_id)
    eventually(lambda: ask(laptop, x_meshnode_radius="local") == (403, "out_of_radius"), 5)
    assert ask(laptop) == (200, "trusted"), "a member of the mesh stays one"

    assert control(laptop, "/api/radius", {"radius": "local"}) == (200, {"radius": "local", "before": "trusted"})
    assert ask(laptop) == (403, "out_of_radius") and laptop.status()["trust"]["radius"] == "local"
    assert ask(laptop, x_meshnode_radius="trusted") == (200, "trusted")
    assert control(laptop, "/api/radius", {"radius": "everywhere"})[0] == 400
    status, _, _ = post(f"{laptop.console_url}/api/radius", {"radius": "public"})
    assert status == 403 and laptop.status()["trust"]["radius"] == "local"


def test_a_damaged_list_is_told_and_starts_no_node(start_node: StartNode) -> None:
    node = start_node("--model", "demo", environment=SMALL)
    owner(node, "trust", "ab" * 32, "--radius", "local")
    node.end()
    (node.home / "trust.json").write_text("[{")
    refused = node.command("--model", "demo", "--port", "0", "--console", "0")
    assert refused.returncode == 1 and "trust.json is damaged" in refused.stderr


def test_a_stranger_is_asked_only_where_the_request_says_so(start_node: StartNode) -> None:
    far = start_node("--model", "demo", "--mesh-name", "crowd", environment=SMALL)
    (address,) = far.status()["swarm"]["addresses"]
    near = start_node("--mesh-name", "crowd", "--bootstrap", address)
    until_hosts(near, {"demo": 1})
    assert ask(near) == (403, "out_of_radius")
    assert ask(near, x_meshnode_radius="trusted") == (403, "out_of_radius")
    assert ask(near, x_meshnode_radius="public") == (200, "public")
    far_id = far.status()["node"]["id"]
    (recent,) = eventually(lambda: [each for each in near.status()["requests"]["recent"] if each["radius"] == "public"])
    assert (recent["node"], recent["where"], recent["reached"]) == (far_id, far_id[:10], "public")
    owner(near, "trust", far_id, "--name", "far")
    eventually(lambda: ask(near) == (200, "trusted"), 5)
    owner(near, "untrust", "far")
    eventually(lambda: ask(near) == (403, "out_of_radius"), 5)
