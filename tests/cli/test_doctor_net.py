"""`meshnode doctor --net` on this machine, without a node and with what one would say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from meshnode.cli import doctor_net
from meshnode.cli.client import RunningNode
from meshnode.cli.main import root
from meshnode.errors import NodeNotRunning
from tests.loopback import LOOPBACK_ONLY


def run(*arguments: str, home: Path) -> tuple[int, str]:
    environment = {**LOOPBACK_ONLY, "MESHNODE_HOME": str(home), "NO_COLOR": "1"}
    result = CliRunner().invoke(root, ["doctor", "--net", *arguments], env=environment)
    return result.exit_code, result.stdout


def test_without_a_node_no_router_is_asked_when_that_is_not_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_net, "mapping_offer", None)
    code, text = run("--json", home=tmp_path)
    facts = json.loads(text)
    assert code == 0 and facts["schema"] == 1 and facts["ok"]
    assert [finding["check"] for finding in facts["findings"]] == ["IPv4", "IPv6", "NAT", "port"]
    assert facts["net"]["running"] is False and facts["net"]["mapping"]["state"] == "off"
    assert "port_map is off" in facts["net"]["mapping"]["sentence"]
    assert not list(tmp_path.iterdir())


def test_without_a_node_the_router_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def offer(port: int) -> dict[str, Any]:
        return {"state": "mapped", "sentence": "", "way": "pcp", "external": f"11.7.1.2:{port}", "router": "10.0.0.1"}

    monkeypatch.setattr(doctor_net, "mapping_offer", offer)
    monkeypatch.setitem(LOOPBACK_ONLY, "MESHNODE_PORT_MAP", "auto")
    _, text = run(home=tmp_path)
    assert "ok   port       the router would forward 11.7.1.2:9338 to this machine (pcp)" in text.splitlines()


def test_people_see_a_line_for_each_and_what_would_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Node(RunningNode):
        def call(self, method: str, path: str, body: object = None, *, timeout_s: float = 30) -> Any:
            assert (method, path) == ("GET", "/api/status")
            view = {"kind": "symmetric", "observed": ["11.7.1.2:5"], "mapped": [], "relays": ["cd" * 32]}
            return {"swarm": {"nat": view, "peers": [{"path": "relayed"}]}, "mesh": None}

    node = Node(1, "http://127.0.0.1:1", "http://127.0.0.1:2", "token", tmp_path)
    monkeypatch.setattr(doctor_net, "find_node", lambda _: node)
    code, text = run(home=tmp_path)
    lines = text.splitlines()
    assert code == 0
    assert any(line.startswith("warn NAT        symmetric: ") and "11.7.1.2:5" in line for line in lines)
    assert any(line.strip().startswith("fix: turn on UPnP or PCP") for line in lines)
    assert "ok   relays     reachable through cdcdcdcdcd" in lines
    assert "ok   peers      0 reached directly, 1 through a relay" in lines


def test_a_node_that_does_not_answer_counts_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: object) -> RunningNode:
        raise NodeNotRunning("pid 1 does not answer")

    monkeypatch.setattr(doctor_net, "find_node", gone)
    code, text = run(home=tmp_path)
    assert code == 0 and "none runs here" in text
