"""The two programs that keep a node running, systemd's user manager and launchd, behind the same few commands.

Only their own commands are used (systemctl --user, launchctl). Where those do not work, as in a container or over ssh
to a Mac that nobody is logged in to, the file is still written, and the commands are told.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from meshnode import durable
from meshnode.errors import StateError
from meshnode.service.units import LABEL, UNIT, Service, is_ours, launchd_plist, secrets_text, systemd_unit

LIMIT_S = 30
STOP_LIMIT_S = 4000
"""A node may finish its answers for as long as its drain timeout says, an hour at most."""


@dataclass(frozen=True, slots=True)
class State:
    """What a supervisor knows of the service. `since` is wall time in seconds, `pid` 0 while nothing runs."""

    enabled: bool = False
    active: str = "inactive"
    pid: int = 0
    since: float | None = None


class Supervisor(Protocol):
    """One of the two. `file` is what it reads; `start_words` and `stop_words` are its commands for a person."""

    name: str
    file: Path

    def works(self) -> bool:
        """Its commands can be used in this session."""
        ...

    def start_words(self) -> list[str]:
        """What a person types to start the service now and at every login."""
        ...

    def hint(self) -> str:
        """What else a person may want to do."""
        ...

    def write(self, service: Service) -> None:
        """Put its files in place. Raises StateError, HomeNotWritable."""
        ...

    def start(self) -> None:
        """Start the service, or start it again with the new file; and from now on at every login. Raises StateError."""
        ...

    def stop(self) -> None:
        """Stop it, and no more start it. Raises StateError."""
        ...

    def remove(self) -> None:
        """Remove the files. Raises HomeNotWritable."""
        ...

    def state(self) -> State:
        """What it knows."""
        ...


class Systemd:
    """The manager of the user's own units. `secrets_file` is read by it, and by nobody else."""

    name = "systemd"

    def __init__(self, config: Path, secrets_file: Path) -> None:
        """`config` is $XDG_CONFIG_HOME."""
        self.file = config / "systemd" / "user" / UNIT
        self._secrets_file = secrets_file

    def works(self) -> bool:
        """Whether a user manager answers."""
        return shutil.which("systemctl") is not None and self._ask("show-environment").returncode == 0

    def start_words(self) -> list[str]:
        """Two commands."""
        return ["systemctl --user daemon-reload", f"systemctl --user enable --now {UNIT}"]

    def hint(self) -> str:
        """Units of a user end with his last session, unless he lingers."""
        return "to keep it running when you are logged out: loginctl enable-linger"

    def write(self, service: Service) -> None:
        """The secrets first, as the unit names them."""
        try:
            unit = systemd_unit(service)
            secrets = secrets_text(service.secrets)
        except ValueError as reason:
            raise StateError(f"{reason}") from None
        if service.secrets:
            durable.write(self._secrets_file, secrets.encode())
        else:
            durable.remove(self._secrets_file)
        durable.write(self.file, unit.encode(), mode=0o644)

    def start(self) -> None:
        """Does not wait until the node is ready: that may take as long as a download."""
        self._do("daemon-reload")
        self._do("enable", UNIT)
        self._do("restart", "--no-block", UNIT)

    def stop(self) -> None:
        """Waits until the node has ended."""
        self._do("disable", "--now", UNIT, limit_s=STOP_LIMIT_S)

    def remove(self) -> None:
        """The unit, the secrets, and what the manager remembers of a failure."""
        durable.remove(self.file)
        durable.remove(self._secrets_file)
        if self.works():
            self._do("daemon-reload")
            self._ask("reset-failed", UNIT)

    def state(self) -> State:
        """From `systemctl show`."""
        if not self.works():
            return State()
        names = "ActiveState,UnitFileState,MainPID,ActiveEnterTimestamp"
        done = self._ask("show", UNIT, f"--property={names}", "--timestamp=unix")
        if done.returncode != 0:  # systemd before 247 has no --timestamp
            done = self._ask("show", UNIT, f"--property={names}")
        facts = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
        pid = facts.get("MainPID", "0")
        return State(
            enabled=facts.get("UnitFileState") == "enabled",
            active=facts.get("ActiveState", "inactive"),
            pid=int(pid) if pid.isdigit() else 0,
            since=_time_of(facts.get("ActiveEnterTimestamp", "")),
        )

    def _ask(self, *words: str, limit_s: float = LIMIT_S) -> subprocess.CompletedProcess[str]:
        return _run(["systemctl", "--user", *words], limit_s)

    def _do(self, *words: str, limit_s: float = LIMIT_S) -> None:
        done = self._ask(*words, limit_s=limit_s)
        if done.returncode != 0:
            raise StateError(f"systemctl --user {shlex.join(words)}: {_last_line(done)}")


class Launchd:
    """The agents of the user who is logged in."""

    name = "launchd"

    def __init__(self, home: Path, uid: int) -> None:
        self.file = home / "Library" / "LaunchAgents" / f"{LABEL}.plist"
        self._domain = f"gui/{uid}"

    @property
    def _target(self) -> str:
        return f"{self._domain}/{LABEL}"

    def works(self) -> bool:
        """Whether the user is logged in at the screen."""
        return shutil.which("launchctl") is not None and _run(["launchctl", "print", self._domain]).returncode == 0

    def start_words(self) -> list[str]:
        """One command."""
        return [f"launchctl bootstrap {self._domain} {shlex.quote(str(self.file))}"]

    def hint(self) -> str:
        """Agents run while their user is logged in."""
        return "it runs while you are logged in"

    def write(self, service: Service) -> None:
        """With mode 0600, as the key may stand in it."""
        if service.log_file is not None:
            service.log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        durable.write(self.file, launchd_plist(service).encode(), mode=0o600)

    def start(self) -> None:
        """A new file counts from the next bootstrap on."""
        _run(["launchctl", "bootout", self._target], STOP_LIMIT_S)
        self._do("enable", self._target)
        self._do("bootstrap", self._domain, str(self.file))

    def stop(self) -> None:
        """Fails for an agent that is not loaded, which is no failure here."""
        if _run(["launchctl", "print", self._target]).returncode == 0:
            self._do("bootout", self._target)

    def remove(self) -> None:
        """The file."""
        durable.remove(self.file)

    def state(self) -> State:
        """From `launchctl print`."""
        done = _run(["launchctl", "print", self._target])
        if done.returncode != 0:
            return State()
        facts = [line.strip().partition(" = ") for line in done.stdout.splitlines()]
        found = {name: value for name, _, value in reversed(facts)}
        pid = found.get("pid", "0")
        active = "active" if found.get("state") == "running" else "inactive"
        return State(enabled=True, active=active, pid=int(pid) if pid.isdigit() else 0)

    def _do(self, *words: str) -> None:
        done = _run(["launchctl", *words], STOP_LIMIT_S)
        if done.returncode != 0:
            raise StateError(f"launchctl {shlex.join(words)}: {_last_line(done)}")


def supervisor_here(secrets_file: Path, platform: str = sys.platform) -> Supervisor:
    """That of this system. Raises StateError where there is none."""
    if platform == "darwin":
        return Launchd(Path.home(), os.getuid())
    if platform.startswith("linux"):
        config = os.environ.get("XDG_CONFIG_HOME", "")
        return Systemd(Path(config) if config.startswith("/") else Path.home() / ".config", secrets_file)
    raise StateError(f"no way to run a service is known on {platform}")


def read_installed(supervisor: Supervisor) -> tuple[bool, bool]:
    """Whether the file is there, and whether somebody edited it. Raises StateError for one that cannot be read."""
    try:
        return True, not is_ours(supervisor.file.read_text("utf-8"))
    except FileNotFoundError:
        return False, False
    except UnicodeDecodeError:
        return True, True
    except OSError as reason:
        raise StateError(f"{supervisor.file}: {reason.strerror}") from None


def _run(command: Sequence[str], limit_s: float = LIMIT_S) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""}
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=limit_s, env=environment
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {limit_s:.0f} s")
    except OSError as reason:
        return subprocess.CompletedProcess(command, 127, "", str(reason.strerror))


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def _time_of(text: str) -> float | None:
    """`@1767225600`, or `Thu 2026-01-01 00:00:00 UTC` of older ones, in seconds; None for anything else."""
    if text.startswith("@") and text[1:].isdigit():
        return float(text[1:]) or None
    words = text.split()
    try:
        return datetime.fromisoformat(" ".join(words[1:3])).timestamp() if len(words) == 4 else None
    except ValueError:
        return None
