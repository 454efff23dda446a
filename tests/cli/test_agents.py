"""launch and config against a node that answers as it is told to, with scripts in place of agents."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from meshnode.errors import ModelNotFound
from tests.cli.conftest import Run, ScriptedNode

SECRET = "s3cret-canary"
MODEL = {
    "id": "owner/repo:Q4_K_M",
    "canonical": "owner/repo:Q4_K_M",
    "state": "ready",
    "detail": "",
    "context_length": 40960,
    "capabilities": ["completion", "chat"],
}
REPORT = """\
import json, os, pathlib, sys
names = ("OPENCODE_CONFIG_CONTENT", "MESHNODE_API_KEY")
facts = {"argv": sys.argv[1:], "env": {name: os.environ.get(name) for name in names}}
pathlib.Path(os.environ["REPORT"]).write_text(json.dumps(facts))
raise SystemExit(9)
"""


def serve(node: ScriptedNode, *, key_required: bool = False) -> None:
    api = {"url": "http://localhost:9337/v1", "key_required": key_required, "listen_all": False}
    node.answer_with("/api/status", {"api": api, "models": [MODEL]})
    node.answer_with("/v1/models", {"data": [{"id": MODEL["id"], "aliases": ["short"]}]})


@pytest.fixture
def node(scripted: ScriptedNode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ScriptedNode:
    """One that serves a model, and a home folder of the user with nothing in it."""
    serve(scripted)
    for name in ("CODEX_HOME", "PI_CODING_AGENT_DIR", "CLAUDE_CONFIG_DIR", "XDG_CONFIG_HOME", "MESHNODE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return scripted


@pytest.fixture
def opencode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name that writes down what it got; where it does so."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "opencode"
    script.write_text(f"#!{sys.executable}\n{REPORT}")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("REPORT", str(folder / "report"))
    return folder / "report"


# --- launch ---------------------------------------------------------------------------------------------------


def test_launch_runs_the_agent_with_this_node(node: ScriptedNode, opencode: Path, run: Run, tmp_path: Path) -> None:
    result = run("launch", "opencode", "--", "run", "--flag", "do it")
    assert (result.exit_code, result.stdout) == (9, "")
    assert "opencode with owner/repo:Q4_K_M on http://localhost:9337/v1" in result.stderr
    facts = json.loads(opencode.read_text())
    assert facts["argv"] == ["run", "--flag", "do it"]
    assert json.loads(facts["env"]["OPENCODE_CONFIG_CONTENT"])["model"] == "meshnode/owner/repo:Q4_K_M"
    assert facts["env"]["MESHNODE_API_KEY"] is None
    assert not (tmp_path / ".config").exists(), "no file is touched"


def test_launch_takes_an_alias_and_options_of_the_agent_without_dashes(
    node: ScriptedNode, opencode: Path, run: Run
) -> None:
    assert run("launch", "opencode", "--model", "short", "run", "--print-logs").exit_code == 9
    assert json.loads(opencode.read_text())["argv"] == ["run", "--print-logs"]


def test_the_key_goes_by_environment(node: ScriptedNode, opencode: Path, run: Run) -> None:
    serve(node, key_required=True)
    result = run("launch", "opencode", MESHNODE_API_KEY=SECRET)
    facts = json.loads(opencode.read_text())
    assert facts["env"]["MESHNODE_API_KEY"] == SECRET
    assert SECRET not in facts["env"]["OPENCODE_CONFIG_CONTENT"] + result.output + str(facts["argv"])


def test_a_node_that_wants_a_key_that_we_do_not_have(node: ScriptedNode, opencode: Path, run: Run) -> None:
    serve(node, key_required=True)
    result = run("launch", "opencode")
    assert result.exit_code == 1 and "asks for an API key" in result.stderr and not opencode.exists()


def test_an_agent_that_is_not_installed(node: ScriptedNode, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    result = run("launch", "codex")
    assert result.exit_code == 1
    assert "no codex in PATH (agent-missing)" in result.stderr and "npm install -g @openai/codex" in result.stderr


def test_unknown_agents_and_models(node: ScriptedNode, opencode: Path, run: Run) -> None:
    assert run("launch", "vim").exit_code == 2
    result = run("launch", "opencode", "--model", "nosuch")
    assert result.exit_code == ModelNotFound.exit_code and "nosuch" in result.stderr


def test_without_a_node_and_without_a_model_both_ways_are_said(opencode: Path, run: Run) -> None:
    result = run("launch", "opencode")
    assert result.exit_code == 3
    assert "--model demo" in result.stderr and "meshnode --model NAME" in result.stderr


# --- config ---------------------------------------------------------------------------------------------------


def test_config_prints_what_a_shell_can_take(node: ScriptedNode, run: Run) -> None:
    result = run("config", "aider")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert "export OPENAI_API_BASE=http://localhost:9337/v1" in lines
    assert "aider --model openai/owner/repo:Q4_K_M" in lines
    assert "~/.aider.model.metadata.json" in result.stderr
    assert "meshnode config aider --write" in result.stderr and "meshnode launch aider" in result.stderr


def test_config_leaves_the_key_to_the_shell(node: ScriptedNode, run: Run) -> None:
    serve(node, key_required=True)
    result = run("config", "claude", MESHNODE_API_KEY=SECRET)
    [line] = [line for line in result.stdout.splitlines() if "ANTHROPIC_AUTH_TOKEN" in line]
    done = subprocess.run(
        ["/bin/sh", "-c", f'{line}; printf %s "$ANTHROPIC_AUTH_TOKEN"'],
        env={"MESHNODE_API_KEY": SECRET},
        capture_output=True,
        text=True,
    )
    assert done.stdout == SECRET and SECRET not in result.output


def test_config_as_json_is_the_recipe(node: ScriptedNode, run: Run) -> None:
    facts = json.loads(run("config", "pi", "--json", "--model", "short").stdout)
    assert (facts["schema"], facts["id"], facts["model"]) == (1, "pi", "owner/repo:Q4_K_M")
    assert facts["files"][0]["path"] == "~/.pi/agent/models.json" and facts["launchable"] is True
    assert shlex.join(facts["command"]) == "pi --provider meshnode --model owner/repo:Q4_K_M"


def test_write_merges_with_a_backup_and_twice_is_once(node: ScriptedNode, run: Run, tmp_path: Path) -> None:
    file = tmp_path / ".pi/agent/models.json"
    file.parent.mkdir(parents=True)
    before = '{\n    "providers": {\n        "mine": {}\n    }\n}\n'
    file.write_text(before)
    shown = run("config", "pi", "--dry-run")
    assert shown.exit_code == 0 and '+        "meshnode": {' in shown.stdout and file.read_text() == before
    result = run("config", "pi", "--write")
    backup = file.with_name("models.json.bak")
    assert result.exit_code == 0 and f"{file} changed; as it was: {backup}" in result.stderr
    assert backup.read_text() == before
    assert list(json.loads(file.read_text())["providers"]) == ["mine", "meshnode"]
    again = json.loads(run("config", "pi", "--write", "--json").stdout)
    assert again["files"] == [{"path": str(file), "changed": False, "backup": None, "diff": ""}]
    assert len(list(file.parent.iterdir())) == 2


@pytest.mark.parametrize("agent", ["goose", "opencode", "pi", "claude", "codex", "aider", "continue"])
def test_each_file_is_made_where_it_belongs(agent: str, node: ScriptedNode, run: Run) -> None:
    facts: dict[str, Any] = json.loads(run("config", agent, "--write", "--json").stdout)
    assert facts["written"] is True
    for file in facts["files"]:
        assert file["changed"] and Path(file["path"]).read_text() and file["diff"].startswith("--- /dev/null")
        assert Path(file["path"]).stat().st_mode & 0o077 == 0


def test_a_file_that_cannot_be_understood_stays(node: ScriptedNode, run: Run, tmp_path: Path) -> None:
    file = tmp_path / ".config/opencode/opencode.jsonc"
    file.parent.mkdir(parents=True)
    file.write_text('{\n  // mine\n  "model": "x"\n}\n')
    result = run("config", "opencode", "--write")
    assert result.exit_code == 1
    assert "has comments" in result.stderr and "put this into" in result.stderr and '"meshnode": {' in result.stderr
    assert file.read_text() == '{\n  // mine\n  "model": "x"\n}\n' and len(list(file.parent.iterdir())) == 1


def test_what_has_no_file_says_so(node: ScriptedNode, run: Run) -> None:
    result = run("config", "openai-python", "--write")
    assert result.exit_code == 1 and "meshnode config openai-python" in result.stderr


def test_config_needs_a_node(run: Run) -> None:
    for arguments in (["config", "pi"], ["config", "pi", "--write"], ["config", "pi", "--json"]):
        result = run(*arguments)
        assert result.exit_code == 3
        assert "MODEL" not in result.output
