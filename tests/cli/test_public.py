"""Commands for the public mesh say what they did, and hand the node's answer on as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from meshnode.cli import public
from meshnode.cli.main import root

NODE = "ab" * 32


class FakeNode:
    """Answers as it is told; `asked` keeps the calls."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.answer = answer
        self.asked: list[tuple[object, ...]] = []

    def call(self, *given: object, **_: object) -> dict[str, Any]:
        self.asked.append(given)
        return self.answer


def run(monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any], *arguments: str) -> tuple[FakeNode, Result]:
    node = FakeNode(answer)
    monkeypatch.setattr(public, "find_node", lambda: node)
    return node, CliRunner().invoke(root, list(arguments))


@pytest.mark.parametrize(("command", "paused"), [("pause", True), ("resume", False)])
def test_strangers_are_paused_and_served_again(monkeypatch: pytest.MonkeyPatch, command: str, paused: bool) -> None:
    node, result = run(monkeypatch, {"paused": paused}, command)
    assert node.asked == [("POST", "/api/swarm/pause", {"paused": paused})]
    assert result.exit_code == 0 and "strangers" in result.stderr and result.stdout == ""
    _, result = run(monkeypatch, {"paused": paused}, command, "--json")
    assert json.loads(result.stdout)["paused"] is paused


def found(**more: Any) -> dict[str, Any]:
    return {"model": "demo", "content_hash": "ab" * 16, "running": True, "providers": [], "asked": 7} | more


def test_providers_are_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    providers = [{"node": NODE, "addresses": ["11.7.0.2:9338", "[2001:db8::1]:9338"], "expires_in_s": 1500}]
    node, result = run(monkeypatch, found(providers=providers), "providers", "qwen 3/b")
    assert node.asked == [("GET", "/api/providers?model=qwen%203%2Fb")]
    assert (
        NODE[:10] in result.stdout
        and "25 min" in result.stdout
        and "11.7.0.2:9338, [2001:db8::1]:9338" in result.stdout
    )
    _, result = run(monkeypatch, found(providers=providers), "providers", "x", "--json")
    assert json.loads(result.stdout)["providers"] == providers


@pytest.mark.parametrize(
    ("answer", "words"),
    [(found(), "of 7 nodes that were asked, none knows"), (found(content_hash=None), "nobody here knows")],
)
def test_where_there_are_none_it_says_so(monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any], words: str) -> None:
    _, result = run(monkeypatch, answer, "providers", "x\u202ey")
    assert result.exit_code == 0 and result.stdout == "" and words in result.stderr and "\u202e" not in result.stderr
