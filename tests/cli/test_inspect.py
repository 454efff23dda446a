"""What /api/status looks like to a person, and the logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from meshnode.cli.inspect import _was_rotated, mesh_sentence, show_models, show_status
from meshnode.cli.main import root

SHARES = [{"device": "CUDA0", "layers": 25}, {"device": "host", "layers": 8}]
MODEL: dict[str, Any] = {
    "id": "qwen",
    "where": "here",
    "size_bytes": 4_700_000_000,
    "plan": {"gpu_layers": 25, "shares": SHARES},
    "context_length": 32768,
    "parallel": 4,
    "busy": 3,
    "waiting": 2,
    "state": "ready",
    "detail": "",
    "since": 1_790_000_000.0,
}
FACTS: dict[str, Any] = {
    "ready": True,
    "state": "ready",
    "version": "0.1.0",
    "pid": 42,
    "node": {"short": "3f9a1c02be", "name": "studio"},
    "api": {"url": "http://localhost:9337/v1", "key_required": True},
    "console": {"url": "http://localhost:3131"},
    "engine": {"version": "0.5.0", "backend": "cuda"},
    "requests": {"finished": 9, "active": 3, "waiting": 2},
    "mesh": None,
    "swarm": None,
    "models": [MODEL],
    "problems": [{"severity": "warning", "title": "T", "code": "c", "text": "what", "fix": "do this"}],
}


def test_models_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    show_models([MODEL, {**MODEL, "id": "x", "plan": None, "waiting": 0, "state": "failed", "detail": "no memory"}])
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["MODEL", "WHERE", "SIZE", "GPU", "CONTEXT", "BUSY", "STATE", "SINCE"]
    assert "4.7 GB" in first and "76 %" in first and "3/4 +2" in first
    assert "failed: no memory" in second and "+" not in second
    assert header.index("STATE") == first.index("ready")


def test_a_split_model_shows_over_how_many_machines_it_runs(capsys: pytest.CaptureFixture[str]) -> None:
    plan = {"gpu_layers": 8, "stages": [{"node": "aa", "layers": 4}, {"node": "bb", "layers": 4}]}
    show_models([MODEL | {"plan": plan}])
    assert "split (here + 2)" in capsys.readouterr().out


def test_status_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    show_status(FACTS)
    told = capsys.readouterr().out
    assert told.startswith('ready   node 3f9a1c02be "studio"')
    assert "http://localhost:9337/v1   (key required)" in told
    assert "9 finished, 3 running, 2 waiting" in told
    assert "warning: T (c)" in told and "fix: do this" in told


def test_status_says_in_one_line_how_the_mesh_is(capsys: pytest.CaptureFixture[str]) -> None:
    show_status(FACTS)
    assert "\nmesh     none\n" in capsys.readouterr().out
    peers = [
        {"state": "alive", "reachable": True},
        {"state": "alive", "reachable": False},
        {"state": "dead", "reachable": False},
        {"state": "left", "reachable": False},
    ]
    mesh = {"name": "home\x1b[2J", "role": "member", "peers": peers, "addresses": ["192.0.2.1:9337", "[::1]:9337"]}
    show_status(FACTS | {"mesh": mesh})
    assert "1 of 3 other nodes answer; reachable at 192.0.2.1:9337, [::1]:9337\n" in capsys.readouterr().out
    assert mesh_sentence(mesh | {"peers": [], "addresses": []}) == '"home [2J" as member; no other node yet'


def test_status_says_in_one_line_what_strangers_may_do(capsys: pytest.CaptureFixture[str]) -> None:
    peers = [{"state": "alive", "reachable": True}, {"state": "dead", "reachable": False}]
    swarm = {
        "state": "joined",
        "sentence": 'in "gar\x1b[2Jden" as member',
        "peers": peers,
        "publishing": True,
        "paused": False,
        "strangers": {"served": 7},
    }
    show_status(FACTS | {"swarm": swarm})
    told = capsys.readouterr().out
    assert "1 of 2 other nodes answer; 7 requests of strangers served" in told and "\x1b" not in told
    show_status(FACTS | {"swarm": swarm | {"paused": True}})
    assert "strangers are paused" in capsys.readouterr().out
    show_status(FACTS | {"swarm": {"state": "failed", "sentence": "no port"}})
    assert "public   no port\n" in capsys.readouterr().out


def test_names_from_other_machines_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b[2J\u202e"
    problem = FACTS["problems"][0] | {"text": hostile}
    show_status(FACTS | {"models": [MODEL | {"id": hostile, "detail": hostile}], "problems": [problem]})
    assert all(line.isprintable() for line in capsys.readouterr().out.splitlines())


def test_status_of_a_node_that_is_starting(capsys: pytest.CaptureFixture[str]) -> None:
    show_status({**FACTS, "ready": False, "state": "starting", "engine": None, "models": [], "problems": []})
    told = capsys.readouterr().out
    assert told.startswith("starting") and "engine" not in told


@pytest.mark.parametrize("command", ["status", "ps"])
def test_no_node_is_exit_code_3(command: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(root, [command], env={"MESHNODE_HOME": str(tmp_path)})
    assert result.exit_code == 3 and "meshnode --model demo" in result.output
    result = CliRunner().invoke(root, [command, "--json"], env={"MESHNODE_HOME": str(tmp_path)})
    assert result.exit_code == 3 and '"code": "no-node"' in result.stdout


def test_logs_show_the_end_of_the_right_file(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "node.log").write_text("".join(f"line {number}\n" for number in range(500)))
    (logs / "engine-demo.log").write_text("from the engine\n")
    runner = CliRunner()
    result = runner.invoke(root, ["logs", "-n", "3"], env={"MESHNODE_HOME": str(tmp_path)})
    assert result.stdout == "line 497\nline 498\nline 499\n"
    result = runner.invoke(root, ["logs", "--engine"], env={"MESHNODE_HOME": str(tmp_path)})
    assert result.stdout == "from the engine\n"


def test_logs_before_any_node(tmp_path: Path) -> None:
    result = CliRunner().invoke(root, ["logs"], env={"MESHNODE_HOME": str(tmp_path)})
    assert result.exit_code == 1 and "there is no log" in result.output


def test_a_rotated_log_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "node.log"
    file.write_text("a")
    with file.open() as opened:
        assert not _was_rotated(file, opened.fileno())
        file.rename(tmp_path / "node.log.1")
        assert _was_rotated(file, opened.fileno()) is False
        file.write_text("b")
        assert _was_rotated(file, opened.fileno())
