"""Runs scripts in place of agents: what they get, what becomes of signals, and what is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from meshnode.agents.launching import AgentMissing, arguments_for, environment_for, find, run
from meshnode.agents.recipe import Launch, Recipe

SECRET = "s3cret-canary"
LAUNCH = Launch(
    "agent",
    {"BASE": "http://x", "TOKEN": "$MESHNODE_API_KEY", "EMPTY": ""},
    arguments=("--file", "{a.json}"),
    without_arguments=("session",),
    scratch={"a.json": '{"a": 1}'},
)
RECIPE = Recipe("agent", "Agent", "", "", "m", install="get it", launch=LAUNCH)
REPORT = """\
import json, os, pathlib, stat, sys
file = pathlib.Path(sys.argv[2])
facts = {"argv": sys.argv[1:], "env": dict(os.environ), "content": file.read_text()}
facts["mode"] = stat.S_IMODE(file.parent.stat().st_mode)
pathlib.Path(os.environ["REPORT"]).write_text(json.dumps(facts))
raise SystemExit(7)
"""


def agent(folder: Path, code: str) -> dict[str, str]:
    """Put a program called `agent` into a folder; the environment that finds it."""
    script = folder / "agent"
    script.write_text(f"#!{sys.executable}\n{code}")
    script.chmod(0o755)
    return {"PATH": str(folder), "REPORT": str(folder / "report.json"), "MESHNODE_JOIN": "mn1secret"}


def test_it_gets_environment_arguments_and_a_private_file(tmp_path: Path) -> None:
    environment = agent(tmp_path, REPORT)
    assert run(RECIPE, ["-p", "hello there"], environment, key=SECRET) == 7
    facts = json.loads((tmp_path / "report.json").read_text())
    assert facts["argv"][0] == "--file" and facts["argv"][2:] == ["-p", "hello there"]
    assert facts["content"] == '{"a": 1}' and facts["mode"] == 0o700
    assert not Path(facts["argv"][1]).parent.exists(), "the folder goes with the run"
    assert facts["env"]["TOKEN"] == facts["env"]["MESHNODE_API_KEY"] == SECRET
    assert facts["env"]["EMPTY"] == "" and "MESHNODE_JOIN" not in facts["env"]
    assert SECRET not in " ".join(facts["argv"])


def test_without_a_key_its_place_is_filled() -> None:
    given = environment_for(LAUNCH, {"HOME": "/h"}, key=None)
    assert given["TOKEN"] == "meshnode" and given["HOME"] == "/h" and "MESHNODE_API_KEY" not in given


def test_arguments_of_the_user_replace_those_for_none() -> None:
    files = {"a.json": Path("/t/a.json")}
    assert arguments_for(LAUNCH, [], files) == ["--file", "/t/a.json", "session"]
    assert arguments_for(LAUNCH, ["run", "{a.json}"], files) == ["--file", "/t/a.json", "run", "{a.json}"]


def test_a_program_that_is_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(AgentMissing) as missing:
        find(RECIPE, {"PATH": str(tmp_path)})
    assert missing.value.fix == "install it: get it" and missing.value.exit_code == 1
    environment = agent(tmp_path, "")
    (tmp_path / "agent").write_text("#!/no/such/interpreter\n")
    with pytest.raises(AgentMissing, match="cannot be run"):
        run(RECIPE, [], environment, key=None)


def test_an_end_by_a_signal_is_told_as_shells_do(tmp_path: Path) -> None:
    environment = agent(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert run(RECIPE, [], environment, key=None) == 128 + signal.SIGKILL


def test_the_handlers_of_before_are_back_afterwards(tmp_path: Path) -> None:
    environment = agent(tmp_path, "import signal; raise SystemExit(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)")
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert run(RECIPE, [], environment, key=None) == 0, "the program can hear Ctrl-C"
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


LAUNCHER = """\
import sys
from meshnode.agents.launching import run
from meshnode.agents.recipe import Launch, Recipe
raise SystemExit(run(Recipe("agent", "", "", "", "", launch=Launch("agent")), [], {"PATH": sys.argv[1]}, key=None))
"""
WAITER = """\
import os, signal, time
def told(number, frame):
    os.write(1, f"{signal.Signals(number).name}\\n".encode())
    os._exit(5)
signal.signal(signal.SIGINT, told)
signal.signal(signal.SIGTERM, told)
print("up", flush=True)
while True:
    time.sleep(60)
"""


@pytest.mark.parametrize(("sent", "to_group"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_signals_reach_the_program_and_its_code_comes_back(
    sent: signal.Signals, to_group: bool, tmp_path: Path
) -> None:
    agent(tmp_path, WAITER)
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout and process.stdout.readline() == "up\n"
    if to_group:
        os.killpg(process.pid, sent)
    else:
        process.send_signal(sent)
    words, _ = process.communicate(timeout=20)
    assert (words, process.returncode) == (f"{sent.name}\n", 5)
