"""The `openai` package for JavaScript against a real node that asks for a key: what its users do, and its errors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from meshnode.agents.recipe import AgentModel
from meshnode.agents.recipes import recipe
from tests.conftest import NodeProcess, StartNode
from tests.e2e.agent_models import need
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.engine

COUNT = ", ".join(str(number) for number in range(1, 21))
KEY = "correct-horse-battery"
SCRIPT = Path(__file__).with_name("openai_javascript.mjs")


@pytest.fixture(scope="module")
def node(start_shared_node: StartNode) -> NodeProcess:
    return start_shared_node("--model", "demo", environment={"MESHNODE_API_KEY": KEY})


@pytest.fixture(scope="module")
def told(node: NodeProcess) -> dict[str, dict[str, Any]]:
    """What the script has found, by the name of the check."""
    command = ["node", str(SCRIPT), str(need("openai")), f"{node.base_url}/v1", KEY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    checks = [json.loads(line) for line in done.stdout.splitlines()]
    assert checks[-1]["check"] == "end"
    return {check.pop("check"): check for check in checks}


def test_models(told: dict[str, dict[str, Any]]) -> None:
    assert told["models"] == {"listed": [{"id": "demo", "context": 4096}], "one": "demo"}


def test_chat_with_its_headers(told: dict[str, dict[str, Any]], node: NodeProcess) -> None:
    chat = told["chat"]
    assert (chat["text"], chat["reason"]) == (COUNT, "stop")
    assert chat["usage"]["total_tokens"] == chat["usage"]["prompt_tokens"] + chat["usage"]["completion_tokens"] > 20
    assert chat["headers"]["x-meshnode-node"] == node.status()["node"]["short"]
    assert chat["headers"]["x-meshnode-radius"] == "local"
    assert chat["headers"]["x-meshnode-request-id"].startswith("req_")


def test_a_stream_is_the_same_in_pieces(told: dict[str, dict[str, Any]]) -> None:
    stream = told["stream"]
    assert stream["text"] == COUNT and stream["pieces"] > 10
    assert stream["usage"]["completion_tokens"] == told["chat"]["usage"]["completion_tokens"]


def test_an_aborted_stream_frees_its_slot(told: dict[str, dict[str, Any]], node: NodeProcess) -> None:
    # What had come already is still handed out; without the abort there would be 3,000.
    assert told["abort"]["aborted"] and 5 <= told["abort"]["heard"] < 1500
    eventually(lambda: node.status()["requests"]["active"] == 0)
    eventually(lambda: "left" in {request["outcome"] for request in node.status()["requests"]["recent"]})


def test_tools_and_responses(told: dict[str, dict[str, Any]]) -> None:
    assert 0 < told["tools"]["usage"]["completion_tokens"] <= 5
    assert told["responses"] == {"text": COUNT, "status": "completed"}


def test_errors_are_those_that_programs_catch(told: dict[str, dict[str, Any]]) -> None:
    refused = told["embeddings"]
    assert (refused["name"], refused["status"]) == ("BadRequestError", 400)
    assert "GET /v1/models shows what each one can" in refused["message"]
    unknown = told["unknown"]
    assert (unknown["name"], unknown["status"], unknown["code"]) == ("NotFoundError", 404, "model_not_found")
    assert "did you mean demo" in unknown["message"]
    assert (told["key"]["name"], told["key"]["status"]) == ("AuthenticationError", 401)


@pytest.mark.parametrize(("name", "program"), [("openai-javascript", "node"), ("openai-python", sys.executable)])
def test_the_example_that_is_printed_runs_as_it_is(name: str, program: str, node: NodeProcess, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(need("openai") / "node_modules")
    made = recipe(name, node.base_url, [AgentModel("demo", 4096, ("chat",))], key=KEY)
    file = tmp_path / "ask.mjs"
    file.write_text(made.files[0].content)
    environment = {"PATH": os.environ["PATH"], "MESHNODE_API_KEY": KEY}
    done = subprocess.run([program, str(file)], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, COUNT), done.stderr


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_the_lines_for_curl_run_as_they_are(node: NodeProcess) -> None:
    made = recipe("curl", node.base_url, [AgentModel("demo", 4096, ("chat",))], key=KEY)
    environment = {"PATH": os.environ["PATH"], "MESHNODE_API_KEY": KEY}
    done = subprocess.run(["sh", "-c", made.files[0].content], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and '"id":"demo"' in done.stdout.replace(" ", "") and "[DONE]" in done.stdout
