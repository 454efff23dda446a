import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from meshnode.cli.main import root
from meshnode.config import setting_fields

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`meshnode ARGUMENTS` in a fresh home, with nothing set but what the test sets."""
    for name in os.environ:
        if name.startswith("MESHNODE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MESHNODE_HOME", str(tmp_path))
    return lambda *arguments: CliRunner().invoke(root, arguments, prog_name="meshnode")


def test_every_value_is_shown_with_its_source(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.toml").write_text("parallel = 3\n")
    monkeypatch.setenv("MESHNODE_QUEUE", "9")
    result = run("--port", "1234", "config", "show", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    facts = json.loads(result.stdout)
    assert facts["schema"] == 1
    assert set(facts["settings"]) == {item.name for item in setting_fields()}
    config = str(tmp_path / "config.toml")
    for name, value, source in (
        ("port", "1234", "--port"),
        ("queue", "9", "MESHNODE_QUEUE"),
        ("parallel", "3", config),
        ("console", "3131", "built-in"),
    ):
        assert facts["settings"][name] == {"value": value, "source": source}
    assert (facts["paths"]["home"], facts["paths"]["file"]) == (str(tmp_path), config)


def test_the_table_names_the_places_and_hides_secrets(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESHNODE_API_KEY", "canary")
    result = run("config", "show")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["SETTING", "VALUE", "SOURCE", "MEANING"]
    [key] = [line for line in lines if line.startswith("api_key")]
    assert key.split()[1:3] == ["(set)", "MESHNODE_API_KEY"]
    assert f"home {tmp_path}" in lines
    assert "canary" not in result.output


def test_another_file_and_a_bad_one(run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text("port = 4321\n")
    facts = json.loads(run("--config", str(other), "config", "show", "--json").stdout)
    assert facts["settings"]["port"] == {"value": "4321", "source": str(other)}
    other.write_text("prot = 4321\n")
    result = run("--config", str(other), "config", "show")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "unknown key 'prot'" in result.stderr
    assert "did you mean port?" in result.stderr
    assert run("--config", str(tmp_path / "none"), "config", "show").exit_code == 2
    result = run("--port", "x", "config", "show", "--json")
    assert (result.exit_code, json.loads(result.stdout)["error"]["code"]) == (2, "bad-setting")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_on_stdout_and_talk_on_stderr(shell: str, run: Run) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert "_MESHNODE_COMPLETE" in result.stdout
    assert "add this line to" in result.stderr
    assert shell in result.stderr
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=result.stdout, text=True, check=True)


def test_completion_for_no_known_shell(run: Run) -> None:
    result = run("completion", "cmd")
    assert result.exit_code == 2
    assert "'bash', 'zsh', 'fish'" in result.stderr


def test_agents_stand_beside_show(run: Run) -> None:
    result = run("config", "--help")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in ("show", "codex", "opencode", "continue", "curl"))
    result = run("config", "nosuch")
    assert result.exit_code == 2 and "No such command 'nosuch'" in result.stderr
