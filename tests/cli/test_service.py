"""`meshnode service` with the commands of a supervisor that are scripts, or none at all."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from meshnode.service.units import UNIT
from tests.cli.conftest import Run, ScriptedNode

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it runs a systemctl of its own")

SHOWN = "ActiveState=active\\nUnitFileState=enabled\\nMainPID=42\\nActiveEnterTimestamp=@1767225600\\n"
Calls = Callable[[], list[str]]


@pytest.fixture
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither settings nor secrets of whoever runs the tests."""
    for name in os.environ:
        if name.startswith(("MESHNODE_", "HF_", "HTTPS_PROXY")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


@pytest.fixture
def calls(nothing_set: None, tmp_path: Path) -> Calls:
    """A user manager that does what it is told; what it was told."""
    log = tmp_path / "calls"
    program = tmp_path / "bin" / "systemctl"
    program.write_text(f'#!/bin/sh\necho "$*" >>{log}\ncase "$2" in show) printf "{SHOWN}";; esac\n')
    program.chmod(0o755)
    return lambda: [line for line in log.read_text().splitlines() if " show" not in line] if log.exists() else []


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    return tmp_path / "config" / "systemd" / "user" / UNIT


def command_of(unit: Path) -> list[str]:
    (line,) = re.findall("^ExecStart=(.*)$", unit.read_text(), re.MULTILINE)
    return shlex.split(line)


def install(run: Run, *options: str, flags: tuple[str, ...] = (), **environment: str) -> Result:
    return run("service", "install", *flags, "--", *options, **environment)


def test_a_node_is_installed_and_started(run: Run, unit: Path, calls: Calls, tmp_path: Path) -> None:
    result = install(run, "--model", "demo", "--max-vram", "8", MESHNODE_DRAIN_TIMEOUT="7")
    assert result.exit_code == 0, result.output
    program, *options = command_of(unit)
    assert Path(program).is_absolute() and os.access(program, os.X_OK)
    assert options[-5:] == ["--quiet", "--model", "demo", "--max-vram", "8"]
    text = unit.read_text()
    assert f"MESHNODE_HOME={tmp_path}" in text and "TimeoutStopSec=90" in text
    assert calls() == ["--user daemon-reload", f"--user enable {UNIT}", f"--user restart --no-block {UNIT}"]
    assert "enable-linger" in result.stderr and "not passed on: MESHNODE_DRAIN_TIMEOUT" in result.stderr
    assert install(run, "--model", "demo").exit_code == 0, "the same again is no edit"


@pytest.mark.parametrize("model", ["owner/repo/file.gguf", "hf://owner/repo/file.gguf", "~/x.gguf", "/x.gguf", "demo"])
def test_models_that_are_found_from_anywhere(model: str, run: Run, unit: Path, calls: Calls) -> None:
    assert install(run, "--model", model).exit_code == 0
    assert command_of(unit)[-1] == model


def test_settings_of_the_file_count(run: Run, unit: Path, calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("drain_timeout = 100\n")
    assert install(run, "--client").exit_code == 0
    assert "TimeoutStopSec=130" in unit.read_text()


def test_keys_go_to_a_private_file(run: Run, unit: Path, calls: Calls, tmp_path: Path) -> None:
    result = install(run, "--listen-all", "--model", "demo", MESHNODE_API_KEY="canary", HF_TOKEN="hf_canary")
    assert result.exit_code == 0, result.output
    secrets = tmp_path / "service.env"
    assert secrets.read_text() == 'HF_TOKEN="hf_canary"\nMESHNODE_API_KEY="canary"\n'
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o600
    assert "canary" not in unit.read_text() + result.output and f"EnvironmentFile=-{secrets}" in unit.read_text()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--join", "mn1canary"], "join once by hand"),
        (["--join", "-"], "join once by hand"),
        (["--modle", "demo"], "--modle"),
        (["--port"], "--port"),
        (["--port", "x"], "expected a whole number"),
        (["--client", "--model", "demo"], "--client serves no models"),
        (["--listen-all"], "API key"),
        (["--model", "demo", "status"], "starts no node"),
        (["--version"], "starts no node"),
        (["--help"], "starts no node"),
        (["--model", "./model.gguf"], "no absolute path"),
        (["--config", "other.toml"], "no absolute path"),
        (["--engine", "build/llama-server"], "no absolute path"),
        (["--draft", "../small.gguf"], "no absolute path"),
        (["--config", "/nowhere/other.toml"], "does not exist"),
    ],
)
def test_what_a_node_would_not_start_with_is_refused(
    options: list[str], words: str, run: Run, unit: Path, calls: Calls
) -> None:
    result = install(run, *options)
    assert result.exit_code == 2 and words in result.stderr, result.output
    assert "canary" not in result.output
    assert not unit.exists() and calls() == []


def test_what_somebody_edited_is_not_overwritten(run: Run, unit: Path, calls: Calls) -> None:
    install(run, "--model", "demo")
    edited = unit.read_text().replace("UMask=0077", "UMask=0027")
    unit.write_text(edited)
    result = install(run, "--model", "other")
    assert result.exit_code == 1 and "--force" in result.stderr and unit.read_text() == edited
    assert install(run, "--model", "other", flags=("--force",)).exit_code == 0
    assert unit.with_name(f"{UNIT}.bak").read_text() == edited and "other" in unit.read_text()


def test_without_a_user_manager_the_commands_are_told(run: Run, unit: Path, nothing_set: None) -> None:
    result = install(run, "--model", "demo")
    assert result.exit_code == 0 and unit.exists()
    assert result.stdout.splitlines() == ["systemctl --user daemon-reload", f"systemctl --user enable --now {UNIT}"]
    facts = json.loads(install(run, "--model", "demo", flags=("--json",)).stdout)
    assert facts["started"] is False and facts["commands"] == result.stdout.splitlines()


def test_a_node_that_runs_by_hand_is_in_the_way(
    run: Run, unit: Path, scripted: ScriptedNode, nothing_set: None
) -> None:
    result = install(run, "--model", "demo")
    assert result.exit_code == 1 and "meshnode stop" in result.stderr and not unit.exists()


def test_status_in_words_and_as_json(run: Run, unit: Path, calls: Calls, scripted: ScriptedNode) -> None:
    scripted.answer_with(
        "/api/status",
        {
            "state": "ready",
            "api": {"url": "http://localhost:9337/v1"},
            "models": [{"id": "demo", "state": "ready"}, {"id": "big", "state": "loading"}],
        },
    )
    assert install(run, "--model", "demo").exit_code == 0, "what runs is the service itself"
    said = run("service", "status").stdout
    assert str(unit) in said and "enabled, active for " in said and "pid 42" in said
    assert "node     ready, serving demo" in said
    facts = json.loads(run("service", "status", "--json").stdout)
    assert (facts["installed"], facts["edited"], facts["enabled"], facts["active"]) == (True, False, True, "active")
    assert (facts["pid"], facts["since"], facts["node"]["models"]) == (42, 1767225600.0, ["demo"])


def test_status_of_nothing(run: Run, nothing_set: None) -> None:
    result = run("service", "status")
    assert (result.exit_code, result.stdout) == (0, "not installed\n")
    facts = json.loads(run("service", "status", "--json").stdout)
    assert facts["installed"] is False and facts["node"] is None and facts["pid"] is None


def test_uninstalling_leaves_nothing_but_what_was_edited(run: Run, unit: Path, calls: Calls, tmp_path: Path) -> None:
    install(run, "--model", "demo", MESHNODE_API_KEY="k")
    assert run("service", "uninstall").exit_code == 0
    assert not unit.exists() and not (tmp_path / "service.env").exists()
    assert f"--user disable --now {UNIT}" in calls()
    install(run, "--model", "demo")
    unit.write_text(unit.read_text() + "# mine\n")
    facts = json.loads(run("service", "uninstall", "--json").stdout)
    assert facts["removed"] is True and Path(facts["kept"]).read_text().endswith("# mine\n")
    assert json.loads(run("service", "uninstall", "--json").stdout)["removed"] is False
