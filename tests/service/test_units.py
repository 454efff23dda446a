"""The files of a service: what systemd and launchd would make of them, and whether somebody edited them."""

from __future__ import annotations

import plistlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from meshnode.service.units import LABEL, UNIT, Service, is_ours, launchd_plist, secrets_text, systemd_unit

PLAIN = Service(command=("/opt/mesh node/bin/meshnode", "--quiet", "--model", "demo"), stop_s=60)
ODD = ("--name", 'a "b" c', "--x", "$HOME 50% \\ \t;", "it's", "")


def values(unit: str, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", unit, re.MULTILINE)


def words(command: str) -> list[str]:
    """The words of an ExecStart line, as systemd.syntax(7) and systemd.service(5) say."""
    found = re.findall(r'"((?:[^"\\]|\\.)*)"|(\S+)', command)
    plain = []
    for number, (quoted, bare) in enumerate(found):
        text = bare if bare else re.sub(r"\\(.)", lambda m: {"n": "\n", "t": "\t", "r": "\r"}.get(m[1], m[1]), quoted)
        text = text.replace("%%", "%")
        plain.append(text.replace("$$", "$") if number else text)
    return plain


def test_the_unit_of_a_node() -> None:
    unit = systemd_unit(PLAIN)
    assert words(*values(unit, "ExecStart")) == list(PLAIN.command)
    assert values(unit, "Type") == ["notify"] and values(unit, "Restart") == ["on-failure"]
    assert values(unit, "TimeoutStopSec") == ["90"], "above the drain timeout"
    assert values(unit, "KillMode") == ["mixed"] and values(unit, "NoNewPrivileges") == ["yes"]
    assert values(unit, "Environment") == values(unit, "EnvironmentFile") == []
    assert values(unit, "WantedBy") == ["default.target"]


def test_words_of_any_kind_come_through() -> None:
    unit = systemd_unit(Service(command=("/usr/bin/mesh%node", *ODD)))
    assert words(*values(unit, "ExecStart")) == ["/usr/bin/mesh%node", *ODD]


@pytest.mark.parametrize("program", ["meshnode", "/opt/$x/meshnode", "/opt/a\nb", "/a\0"])
def test_programs_that_systemd_cannot_hold(program: str) -> None:
    with pytest.raises(ValueError, match="cannot start"):
        systemd_unit(Service(command=(program,)))


def test_no_secret_stands_in_the_unit(tmp_path: Path) -> None:
    service = Service(
        command=PLAIN.command,
        environment={"MESHNODE_HOME": "/home/a b/50%"},
        secrets={"MESHNODE_API_KEY": "canary"},
        secrets_file=tmp_path / "service.env",
    )
    unit = systemd_unit(service)
    assert "canary" not in unit and "canary" not in repr(service)
    assert values(unit, "Environment") == ['"MESHNODE_HOME=/home/a b/50%%"']
    assert values(unit, "EnvironmentFile") == [f"-{tmp_path / 'service.env'}"]


def test_secrets_are_quoted_as_an_environment_file_wants() -> None:
    assert secrets_text({"B": "2", "A": 'x"y\\z$w `'}) == 'A="x\\"y\\\\z\\$w \\`"\nB="2"\n'
    with pytest.raises(ValueError, match="line end"):
        secrets_text({"A": "x\ny"})


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("options", [(), ODD])
def test_systemd_accepts_it(options: tuple[str, ...], tmp_path: Path) -> None:
    secrets = tmp_path / "service.env"
    secrets.write_text(secrets_text({"MESHNODE_API_KEY": "k"}))
    service = Service(
        command=("/bin/true", *options), environment={"MESHNODE_HOME": "/home/a b/50%"}, secrets_file=secrets
    )
    file = tmp_path / UNIT
    file.write_text(systemd_unit(service))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(file)], capture_output=True, text=True
    )
    if "Failed to initialize manager" in done.stderr:
        pytest.skip(done.stderr)
    assert (done.returncode, [line for line in done.stderr.splitlines() if UNIT in line]) == (0, [])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_would_find_a_mistake(tmp_path: Path) -> None:
    """What the test above rests on."""
    file = tmp_path / UNIT
    file.write_text(systemd_unit(Service(command=("/bin/true",))).replace("Restart=on-failure", "Restart=perhaps"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(file)], capture_output=True, text=True)
    if "Failed to initialize manager" in done.stderr:
        pytest.skip(done.stderr)
    assert "perhaps" in done.stderr


def test_the_agent_of_a_node(tmp_path: Path) -> None:
    service = Service(
        command=("/opt/a b/meshnode", *ODD),
        environment={"MESHNODE_HOME": "/Users/a & b"},
        secrets={"MESHNODE_API_KEY": "k"},
        log_file=tmp_path / "service.log",
    )
    facts = plistlib.loads(launchd_plist(service).encode())
    assert facts["Label"] == LABEL and facts["ProgramArguments"] == list(service.command)
    assert facts["EnvironmentVariables"] == {"MESHNODE_HOME": "/Users/a & b", "MESHNODE_API_KEY": "k"}
    assert facts["RunAtLoad"] is True and facts["KeepAlive"] == {"SuccessfulExit": False}
    assert facts["ExitTimeOut"] == 90 and facts["StandardErrorPath"] == str(tmp_path / "service.log")


@pytest.mark.parametrize("text", [systemd_unit(PLAIN), launchd_plist(PLAIN)], ids=["systemd", "launchd"])
def test_a_file_that_was_edited_is_known(text: str) -> None:
    assert is_ours(text)
    assert not is_ours(text.replace("demo", "qwen"))
    assert not is_ours(text + "\n")
    assert not is_ours(text.replace("meshnode wrote this", "somebody wrote this"))
    assert not is_ours("") and not is_ours("[Unit]\n")
