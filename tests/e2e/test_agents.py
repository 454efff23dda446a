"""Real agents from the npm registry against real nodes: each is given a small task, without a terminal or a network.

Launched, an agent is to do what a file says: it has to send its tools, understand a call in the streamed answer, read
the file, send back what it read, and print the answer. With the file that `config --write` made it is asked a question.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NodeProcess, StartNode
from tests.e2e import agent_models
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.engine

TASK = ["do", "what", "task.txt", "says"]
QUESTION = ["count", "from", "1", "to", "5"]
KEY = "correct-horse-battery"
PACKAGES = {
    "codex": "@openai/codex",
    "opencode": "opencode-ai",
    "pi": "@earendil-works/pi-coding-agent",
    "claude": "@anthropic-ai/claude-code",
}
ENDPOINTS = {
    "codex": "/v1/responses",
    "opencode": "/v1/chat/completions",
    "pi": "/v1/chat/completions",
    "claude": "/v1/messages",
}
ONCE = {
    # Its sandbox needs rights that a container does not have; all it runs here is `cat`.
    "codex": ["exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"],
    "opencode": ["run"],
    "pi": ["-p"],
    "claude": ["-p"],
}
"""What makes each answer one question and end."""
CHOICE = {
    "codex": ["--profile", "meshnode"],
    "opencode": ["--model", "meshnode/file:agent"],
    "pi": ["--provider", "meshnode", "--model", "file:agent"],
    "claude": ["--settings", "{home}/.claude/meshnode.json"],
}
"""What makes each use the file that `config --write` made."""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which agents run, with the file that holds their task."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "task.txt").write_text("count from 1 to 7\n")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, work: Path) -> Path:
    return agent_models.agent_model(tmp_path_factory.mktemp("model") / "agent.gguf", work / "task.txt")


@pytest.fixture(scope="module")
def node(start_shared_node: StartNode, model: Path) -> NodeProcess:
    return start_shared_node("--model", str(model), "--ctx-size", "65536", "--parallel", "2")


@pytest.fixture(scope="module")
def keyed(start_shared_node: StartNode, model: Path) -> NodeProcess:
    flags = ["--model", str(model), "--ctx-size", "65536", "--parallel", "2"]
    return start_shared_node(*flags, environment={"MESHNODE_API_KEY": KEY})


def requests_of(node: NodeProcess, known: set[str]) -> list[dict[str, Any]]:
    return [item for item in node.status()["requests"]["recent"] if item["id"] not in known]


def known_requests(node: NodeProcess) -> set[str]:
    return {item["id"] for item in node.status()["requests"]["recent"]}


def check_answered(node: NodeProcess, known: set[str], agent: str, *, least: int) -> None:
    """Every request that came was answered in full, `least` of them at the endpoint that this agent speaks.

    Codex hangs up as soon as it has read the last event; the node may notice that before it has ended the stream.
    """
    made = eventually(lambda: requests_of(node, known))
    assert {item["model"] for item in made} == {"file:agent"}
    assert {(item["status"], item["outcome"]) for item in made} <= {(200, "ok"), (499, "left")}, made
    asked = [item for item in made if item["endpoint"] == ENDPOINTS[agent]]
    assert len(asked) >= least and all(item["stream"] and item["tokens_out"] > 0 for item in asked), made
    assert max(item["tokens_out"] for item in asked) > 5 and not any(item["error"] for item in asked), made


@pytest.mark.parametrize("agent", PACKAGES)
def test_a_launched_agent_reads_a_file_and_does_what_it_says(
    agent: str, node: NodeProcess, work: Path, tmp_path: Path
) -> None:
    programs = agent_models.need(PACKAGES[agent])
    environment = agent_models.environment_of(node, tmp_path, programs)
    known = known_requests(node)
    # opencode puts quotes around an argument with spaces; the others take one.
    task = TASK if agent == "opencode" else [" ".join(TASK)]
    command = [sys.executable, "-m", "meshnode", "launch", agent, "--", *ONCE[agent], *task]
    done = agent_models.run(command, environment, work)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1, 2, 3, 4, 5, 6, 7", done.stderr
    check_answered(node, known, agent, least=2)
    assert [path.name for path in work.iterdir()] == ["task.txt"]
    written = [path for path in tmp_path.rglob("*") if path.name.startswith(("models.json", "meshnode"))]
    assert written == [], "launch changes no file"


@pytest.mark.parametrize("agent", PACKAGES)
def test_an_agent_reads_what_config_has_written(agent: str, keyed: NodeProcess, work: Path, tmp_path: Path) -> None:
    programs = agent_models.need(PACKAGES[agent])
    environment = agent_models.environment_of(keyed, tmp_path, programs)
    written = agent_models.run([sys.executable, "-m", "meshnode", "config", agent, "--write"], environment, work)
    assert written.returncode == 0, written.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and all(KEY not in path.read_text() for path in files)
    known = known_requests(keyed)
    choice = [part.replace("{home}", str(tmp_path)) for part in CHOICE[agent]]
    question = QUESTION if agent == "opencode" else [" ".join(QUESTION)]
    first, *rest = ONCE[agent]
    command = [agent, *choice, first, *rest] if first.startswith("-") else [agent, first, *choice, *rest]
    done = agent_models.run([*command, *question], environment, work)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "1, 2, 3, 4, 5", done.stderr
    check_answered(keyed, known, agent, least=1)


def test_a_launched_agent_passes_on_its_failure(node: NodeProcess, tmp_path: Path) -> None:
    programs = agent_models.need(PACKAGES["codex"])
    environment = agent_models.environment_of(node, tmp_path / "home", programs)
    command = [sys.executable, "-m", "meshnode", "launch", "codex", "--", "exec", "--no-such-option"]
    done = agent_models.run(command, environment, tmp_path)
    assert done.returncode == 2 and "--no-such-option" in done.stderr
