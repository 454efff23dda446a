"""Nodes that form a mesh: invites, and waiting until they know each other."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest

from tests.conftest import NodeProcess
from tests.e2e.waiting import eventually

SMALL = {"MESHNODE_THREADS": "1", "MESHNODE_CTX_SIZE": "1024"}
"""Settings by which several engines share two processors."""


def invite_of(node: NodeProcess) -> str:
    """The invite that the node printed when it was ready."""
    token = node.ready["mesh"]["invite"]
    assert token, "the node printed no invite"
    return str(token)


def invite_for(node: NodeProcess, uses: int) -> str:
    """A further invite of the node, for that many others."""
    token = json.loads((node.home / "runtime.json").read_text())["token"]
    request = urllib.request.Request(
        f"{node.console_url}/api/invite",
        json.dumps({"uses": uses}).encode(),
        {"content-type": "application/json", "x-meshnode-token": token},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(json.load(answer)["token"])


def mesh_of(node: NodeProcess) -> dict[str, Any]:
    """What the node says of its mesh now."""
    return dict(node.status()["mesh"])


def hosts_of(node: NodeProcess) -> dict[str, int]:
    """How many ready hosts the node knows for each model."""
    with urllib.request.urlopen(f"{node.base_url}/v1/models", timeout=10) as answer:
        models = json.load(answer)["data"]
    return {model["id"]: sum(host["state"] == "ready" for host in model["meshnode"]["hosts"]) for model in models}


def until_hosts(node: NodeProcess, wanted: dict[str, int], within_s: float = 20) -> None:
    """Wait until the node knows that many hosts for each model."""

    def known() -> bool:
        found = hosts_of(node)
        return all(found.get(model, 0) == count for model, count in wanted.items())

    try:
        eventually(known, within_s)
    except pytest.fail.Exception:
        pytest.fail(f"after {within_s} s it knows {hosts_of(node)} instead of {wanted}: {mesh_of(node)}")
