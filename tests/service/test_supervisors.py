"""The commands of systemd and launchd, as scripts that write down what they were asked."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from meshnode.errors import StateError
from meshnode.service.supervisors import Launchd, State, Systemd, read_installed, supervisor_here
from meshnode.service.units import LABEL, UNIT, Service

SERVICE = Service(command=("/bin/true",), secrets={"MESHNODE_API_KEY": "k"})
Script = Callable[[str, str], Callable[[], list[str]]]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """`script(name, body)` puts a program on an otherwise empty PATH; what it gives lists how it was called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def make(name: str, body: str) -> Callable[[], list[str]]:
        calls = tmp_path / f"{name}.calls"
        program = folder / name
        program.write_text(f'#!/bin/sh\necho "$*" >>{calls}\n{body}\n')
        program.chmod(0o755)
        return lambda: calls.read_text().splitlines() if calls.exists() else []

    return make


def systemd(tmp_path: Path) -> Systemd:
    return Systemd(tmp_path / "config", tmp_path / "config" / "meshnode" / "service.env")


def test_systemd_starts_and_stops(tmp_path: Path, script: Script) -> None:
    calls = script("systemctl", "")
    found = systemd(tmp_path)
    found.write(SERVICE)
    assert found.file == tmp_path / "config" / "systemd" / "user" / UNIT
    assert stat.S_IMODE((tmp_path / "config" / "meshnode" / "service.env").stat().st_mode) == 0o600
    assert read_installed(found) == (True, False)
    found.start()
    assert calls() == [
        "--user daemon-reload",
        f"--user enable {UNIT}",
        f"--user restart --no-block {UNIT}",
    ]
    found.stop()
    assert calls()[-1] == f"--user disable --now {UNIT}"
    found.remove()
    assert not found.file.exists() and not (tmp_path / "config" / "meshnode" / "service.env").exists()
    assert calls()[-2:] == ["--user daemon-reload", f"--user reset-failed {UNIT}"]
    found.remove()


def test_a_secret_that_is_no_more_given_goes(tmp_path: Path) -> None:
    found = systemd(tmp_path)
    found.write(SERVICE)
    found.write(Service(command=("/bin/true",)))
    assert list((tmp_path / "config" / "meshnode").iterdir()) == []


@pytest.mark.parametrize(
    ("said", "state"),
    [
        (
            "ActiveState=active\nUnitFileState=enabled\nMainPID=42\nActiveEnterTimestamp=@1767225600",
            State(enabled=True, active="active", pid=42, since=1767225600.0),
        ),
        ("ActiveState=inactive\nUnitFileState=\nMainPID=0\nActiveEnterTimestamp=@0", State()),
        ("ActiveState=failed\nUnitFileState=disabled\nMainPID=x\nActiveEnterTimestamp=n/a", State(active="failed")),
        ("nonsense", State()),
    ],
)
def test_what_systemd_knows(said: str, state: State, tmp_path: Path, script: Script) -> None:
    script("systemctl", f"cat <<END\n{said}\nEND".replace("cat", 'while read line; do echo "$line"; done'))
    assert systemd(tmp_path).state() == state


def test_times_of_an_older_systemd(tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "ActiveState=active\\nUnitFileState=enabled\\nMainPID=42\\nActiveEnterTimestamp=Thu 2026-01-01 00:00:00 UTC"
    script("systemctl", f'case "$*" in *--timestamp*) exit 1;; esac; printf "{said}\\n"')
    state = systemd(tmp_path).state()
    assert state.pid == 42 and state.since is not None and abs(state.since - 1767225600) <= 14 * 3600


def test_systemd_that_refuses_or_is_not_there(tmp_path: Path, script: Script) -> None:
    assert not systemd(tmp_path).works() and systemd(tmp_path).state() == State()
    with pytest.raises(StateError, match="No such file"):
        systemd(tmp_path).start()
    script("systemctl", "echo Failed to connect to bus: No medium found >&2; exit 1")
    assert not systemd(tmp_path).works()
    with pytest.raises(StateError, match="daemon-reload: Failed to connect to bus"):
        systemd(tmp_path).start()
    with pytest.raises(StateError, match="cannot start"):
        systemd(tmp_path).write(Service(command=("relative",)))
    assert read_installed(systemd(tmp_path)) == (False, False)


def test_launchd_starts_and_stops(tmp_path: Path, script: Script) -> None:
    calls = script(
        "launchctl",
        'case "$1" in print) printf "x = {\\n\\tstate = running\\n\\tpid = 42\\n\\tsub = {\\n\\t\\tpid = 7\\n";; esac',
    )
    found = Launchd(tmp_path, 501)
    found.write(SERVICE)
    assert found.file == tmp_path / "Library" / "LaunchAgents" / f"{LABEL}.plist"
    assert stat.S_IMODE(found.file.stat().st_mode) == 0o600, "it may hold the key"
    assert read_installed(found) == (True, False)
    found.start()
    target = f"gui/501/{LABEL}"
    assert calls() == [f"bootout {target}", f"enable {target}", f"bootstrap gui/501 {found.file}"]
    assert found.works() and found.state() == State(enabled=True, active="active", pid=42)
    found.stop()
    assert calls()[-1] == f"bootout {target}"
    found.remove()
    assert read_installed(found) == (False, False)


def test_launchd_that_knows_nothing_of_it(tmp_path: Path, script: Script) -> None:
    calls = script("launchctl", "echo Could not find service >&2; exit 113")
    found = Launchd(tmp_path, 501)
    assert found.state() == State() and not found.works()
    found.stop()
    assert len(calls()) == 3
    with pytest.raises(StateError, match="Could not find service"):
        found.start()


def test_files_that_somebody_touched(tmp_path: Path) -> None:
    found = systemd(tmp_path)
    found.write(SERVICE)
    found.file.write_bytes(found.file.read_bytes() + b"# mine\n")
    assert read_installed(found) == (True, True)
    found.file.write_bytes(b"\xff")
    assert read_installed(found) == (True, True)
    found.file.unlink()
    found.file.mkdir()
    with pytest.raises(StateError):
        read_installed(found)


def test_the_supervisor_of_each_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "x"))
    assert supervisor_here(tmp_path, "linux").file == tmp_path / "x" / "systemd" / "user" / UNIT
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    assert supervisor_here(tmp_path, "linux").file == tmp_path / ".config" / "systemd" / "user" / UNIT
    assert supervisor_here(tmp_path, "darwin").file == tmp_path / "Library" / "LaunchAgents" / f"{LABEL}.plist"
    with pytest.raises(StateError):
        supervisor_here(tmp_path, "win32")
