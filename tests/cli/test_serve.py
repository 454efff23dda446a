"""Starting from the terminal: what is said, and what is said when nothing was asked for."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from meshnode.cli.main import root
from meshnode.cli.serve import QUICK_START, _say_ready, with_pasted_invite
from meshnode.config import Settings
from meshnode.errors import SettingsError

URLS = {"api": "http://localhost:9337/v1", "console": "http://localhost:3131"}


def test_the_quick_start_fits_on_a_screen_and_names_what_runs_here() -> None:
    lines = QUICK_START.format(version="1.2.3", **URLS).splitlines()
    assert len(lines) <= 13 and max(map(len, lines)) <= 100
    assert URLS["console"] in lines[2] and any("meshnode load demo" in line for line in lines)
    assert any(f"{URLS['api']}/chat/completions" in line for line in lines)


def test_listening_to_everybody_needs_a_key(tmp_path: Path) -> None:
    result = CliRunner().invoke(root, ["--listen-all"], env={"MESHNODE_HOME": str(tmp_path)})
    assert result.exit_code == 2
    assert "API key" in result.output and "MESHNODE_API_KEY" in result.output


def test_the_last_line_is_what_to_do_next(capsys: pytest.CaptureFixture[str]) -> None:
    _say_ready(Settings(model=("demo",)), URLS, 1.25)
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[0] == "ready in 1.2 s"
    command = lines[-1]
    assert command.strip().startswith("try:") and "http://localhost:9337/v1/chat/completions" in command
    body = json.loads(command.partition("-d '")[2].rstrip("'"))
    assert body["model"] == "demo" and body["stream"] is True


def test_the_key_itself_is_never_shown(capsys: pytest.CaptureFixture[str]) -> None:
    _say_ready(Settings(model=("demo",), listen_all=True, api_key="sekret"), URLS, 1.0)
    told = capsys.readouterr().err
    assert "sekret" not in told and "$MESHNODE_API_KEY" in told and "other machines" in told


def test_without_a_model_the_next_step_is_to_load_one(capsys: pytest.CaptureFixture[str]) -> None:
    _say_ready(Settings(), URLS, 1.0)
    assert "meshnode load" in capsys.readouterr().err.splitlines()[-1]


def test_the_invite_is_the_last_line_of_one_who_may_give_it(capsys: pytest.CaptureFixture[str]) -> None:
    _say_ready(Settings(model=("demo",)), {**URLS, "mesh": {"name": "home", "invite": "mn1abc"}}, 1.0)
    *_, private, others, last = capsys.readouterr().err.splitlines()
    assert last == "  On another machine:  meshnode --join mn1abc"
    assert '"home" is private' in private and "meshnode invite --qr" in others and "meshnode pair" in others
    _say_ready(Settings(client=True), {**URLS, "mesh": {"name": "home", "invite": None}}, 1.0)
    told = capsys.readouterr().err
    assert "--join" not in told and f"curl {URLS['api']}/models" in told


@pytest.mark.parametrize("pasted", ["mn1abc\n", "  mn1abc \nmore"])
def test_an_invite_can_come_by_stdin(monkeypatch: pytest.MonkeyPatch, pasted: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(pasted))
    assert with_pasted_invite(Settings(join="-")).join == "mn1abc"
    assert with_pasted_invite(Settings(join="mn1x")).join == "mn1x"


def test_an_empty_stdin_is_no_invite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(SettingsError, match="no invite on stdin"):
        with_pasted_invite(Settings(join="-"))
