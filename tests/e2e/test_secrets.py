"""Keys, tokens, prompts and answers stay out of logs, command lines, status and metrics."""

from __future__ import annotations

import http.client
import json
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from tests.conftest import NodeProcess, StartNode

pytestmark = pytest.mark.engine

KEY = "key-of-the-caller-4f1c"
HUB_TOKEN = "hf_token-of-the-user-77aa"
CANARY = "canary in the coal mine"


def send(node: NodeProcess, path: str, body: bytes, **headers: str) -> int:
    target = urlsplit(node.base_url)
    connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=30)
    try:
        connection.request("POST", path, body, {"authorization": f"Bearer {KEY}", **headers})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def talk(node: NodeProcess) -> list[int]:
    """Ordinary and faulty requests that all carry the canary; their statuses."""
    messages = [{"role": "user", "content": CANARY}]
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {"messages": messages, "max_tokens": 3}),
        ("/v1/chat/completions", {"messages": messages, "max_tokens": 3, "stream": True}),
        ("/v1/completions", {"prompt": CANARY, "max_tokens": 3}),
        ("/v1/responses", {"input": CANARY, "max_output_tokens": 3}),
        ("/v1/messages", {"messages": messages, "max_tokens": 3}),
        ("/v1/messages/count_tokens", {"messages": messages, "system": f"x-anthropic-billing-header: {CANARY}"}),
        ("/v1/chat/completions", {"messages": messages, "model": CANARY}),
        ("/v1/chat/completions", {"messages": CANARY}),
        ("/v1/chat/completions", {"messages": messages, "tools": CANARY}),
        ("/v1/chat/completions", {"messages": messages, "grammar": f"root ::= (\n{CANARY}"}),
        ("/v1/chat/completions", {"messages": messages * 2000}),
    ]
    statuses = [send(node, path, json.dumps({"model": "demo", **body}).encode()) for path, body in bodies]
    statuses.append(send(node, "/v1/chat/completions", b'{"model": "demo", "messages": "' + CANARY.encode()))
    statuses.append(send(node, "/v1/chat/completions", CANARY.encode() + b"\xff"))
    statuses.append(send(node, f"/v1/{CANARY.replace(' ', '-')}", b"{}"))
    statuses.append(send(node, "/v1/chat/completions", b"{}", authorization=f"Bearer {CANARY}"))
    return statuses


def test_nothing_secret_is_told(start_node: StartNode) -> None:
    environment = {"MESHNODE_API_KEY": KEY, "MESHNODE_LOG_LEVEL": "debug", "HF_TOKEN": HUB_TOKEN}
    node = start_node("--model", "demo", environment=environment)
    runtime = json.loads((node.home / "runtime.json").read_text())
    (engine,) = (psutil.Process(pid) for pid in node.engine_pids())
    engine_key = engine.environ()["LLAMA_API_KEY"]
    statuses = talk(node)
    assert statuses[:6] == [200] * 6
    assert all(status >= 400 for status in statuses[6:]) and statuses[-1] == 401

    told = {"status": json.dumps(node.status())}
    for path in ("/metrics", "/health", "/"):
        with urllib.request.urlopen(f"{node.console_url}{path}", timeout=10) as answer:
            told[path] = answer.read().decode()
    with urllib.request.urlopen(f"{node.console_url}/api/events", timeout=10) as answer:
        told["/api/events"] = b"".join(iter(answer.readline, b"\n")).decode()
    for process in (psutil.Process(node.process.pid), *psutil.Process(node.process.pid).children(recursive=True)):
        told[f"command line of {process.pid}"] = " ".join(process.cmdline())
    told["environment of the engine"] = "".join(
        f"{name}={value}\n" for name, value in engine.environ().items() if name != "LLAMA_API_KEY"
    )
    told["status command"] = node.command("status").stdout + node.command("doctor", "--json").stdout
    told["config show"] = node.command("config", "show").stdout
    told["stdout"], told["stderr"] = node.end()
    for file in node.home.rglob("*"):
        if file.is_file() and file.name not in ("node.key",):
            told[str(file)] = file.read_text("utf-8", "replace")
    # The page, which only its own origin can read, is where the page gets the token.
    assert told["/"].count(runtime["token"]) == 1
    told["/"] = told["/"].replace(runtime["token"], "")
    told["the log of the node"] = Path(node.home / "logs" / "node.log").read_text()

    assert "request" in told["the log of the node"]
    secrets = {"key": KEY, "token": runtime["token"], "engine's key": engine_key, "hub token": HUB_TOKEN}
    found = [(what, where) for what, secret in secrets.items() for where, text in told.items() if secret in text]
    found += [("prompt", where) for where, text in told.items() if "canary" in text.casefold()]
    assert found == []
