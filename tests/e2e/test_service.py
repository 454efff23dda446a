"""The unit that `meshnode service install` writes, run as systemd would: its command, its environment, its socket."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from meshnode.config import find_places
from tests.loopback import LOOPBACK_ONLY

pytestmark = pytest.mark.engine

START_LIMIT_S = 60


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A user whose manager does not answer, so that nothing is started here but by the test."""
    (tmp_path / "bin").mkdir()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MESHNODE_", "XDG_"))}
    return {
        **inherited,
        "PATH": str(tmp_path / "bin"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "MESHNODE_HOME": str(tmp_path / "home"),
        "MESHNODE_CACHE": str(find_places().cache),
    }


def meshnode(environment: dict[str, str], *words: str) -> dict[str, object]:
    command = [sys.executable, "-m", "meshnode", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    return dict(json.loads(done.stdout))


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """What a node tells systemd arrives here."""
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as opened:
        opened.bind(str(tmp_path / "notify"))
        opened.settimeout(START_LIMIT_S)
        yield opened


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="systemd is of Linux")
def test_a_service_says_when_it_is_ready_and_when_it_stops(
    environment: dict[str, str], manager: socket.socket, engine_bin: Path
) -> None:
    options = ["--model", "demo", "--port", "0", "--console", "0", "--bind-host", "127.0.0.1", "--bind-port", "0"]
    installed = meshnode(environment, "service", "install", "--json", "--", *options, "--lan", "off")
    assert installed["started"] is False
    unit = Path(str(installed["file"])).read_text()
    (line,) = re.findall("^ExecStart=(.*)$", unit, re.MULTILINE)
    given = dict(shlex.split(pair)[0].split("=", 1) for pair in re.findall("^Environment=(.*)$", unit, re.MULTILINE))
    assert given["MESHNODE_HOME"] == environment["MESHNODE_HOME"]
    bare = {name: value for name, value in environment.items() if not name.startswith("MESHNODE_")}
    service = {**bare, **given, "PATH": os.defpath, "NOTIFY_SOCKET": str(manager.getsockname())}
    with subprocess.Popen(shlex.split(line), env=service, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as node:
        heard = []
        while "READY=1" not in heard:
            heard.append(manager.recv(4096).decode())
        facts = meshnode(environment, "service", "status", "--json")
        assert facts["installed"] is True and facts["node"] == {
            "state": "ready",
            "models": ["demo"],
            "api": facts["node"]["api"],  # type: ignore[index]
        }
        node.send_signal(signal.SIGTERM)
        while "STOPPING=1" not in heard:
            heard.append(manager.recv(4096).decode())
        said, complaints = node.communicate(timeout=30)
        assert (node.returncode, said, complaints) == (0, b"", b""), "no invite in the journal"
    assert meshnode(environment, "service", "uninstall", "--json")["removed"] is True
    assert not Path(str(installed["file"])).exists() and LOOPBACK_ONLY["MESHNODE_BIND_HOST"] in line
