"""The `meshnode` command as people and scripts meet it: exit codes, the shapes of --json, and what is said when."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meshnode.config import find_places
from tests.conftest import NodeProcess, StartNode
from tests.e2e.waiting import eventually
from tests.loopback import LOOPBACK_ONLY

pytestmark = pytest.mark.engine

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def environment_of(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MESHNODE_", "HF_"))}
    return {**kept, **LOOPBACK_ONLY, "MESHNODE_HOME": str(home), "MESHNODE_CACHE": str(find_places().cache), **more}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run `meshnode ARGUMENTS` with a home of its own, where no node runs."""

    def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "meshnode", *arguments],
            env=environment_of(tmp_path / "home", **environment),
            capture_output=True,
            text=True,
            timeout=60,
        )

    return command


def one_object(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What was printed, which must be one JSON object on one line, with nothing beside it."""
    assert done.stdout.count("\n") == 1 and done.stderr == ""
    value = json.loads(done.stdout)
    assert value["schema"] == 1
    return dict(value)


# --- without a node -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["status"], ["ps"], ["load", "demo"], ["unload", "demo"], ["stop"]])
def test_commands_that_need_a_node_say_so(command: list[str], run: Run) -> None:
    said = run(*command)
    assert said.returncode == 3 and said.stdout == ""
    assert "No node is running here" in said.stderr and "meshnode --model demo" in said.stderr
    told = run(*command, "--json")
    assert told.returncode == 3
    assert one_object(told)["error"]["code"] == "no-node"


def test_misspelt_command(run: Run) -> None:
    done = run("sttus")
    assert done.returncode == 2 and "Did you mean 'status'?" in done.stderr
    assert run("frobnicate").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "99999", "--model", "demo"], "whole number from 0 to 65535"),
        (["--port", "4000", "--console", "4000"], "cannot share port 4000"),
        (["--listen-all", "--model", "demo"], "MESHNODE_API_KEY"),
        (["--kv-type", "q9", "--model", "demo"], "f16, q8_0, q4_0"),
        (["--nonsense"], "No such option"),
        (["--model"], "requires an argument"),
        (["--config", "nowhere.toml", "--model", "demo"], "does not exist"),
        (["completion", "powershell"], "bash"),
    ],
)
def test_wrong_usage_is_2_and_starts_nothing(arguments: list[str], words: str, run: Run, tmp_path: Path) -> None:
    done = run(*arguments)
    assert done.returncode == 2 and words in done.stderr and done.stdout == ""
    assert not (tmp_path / "home" / "node.key").exists()


@pytest.mark.parametrize("name", ["qwen3-0.7b", "deemo"])
def test_unknown_model_is_4_with_the_nearest_names_before_any_engine_work(name: str, run: Run, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    done = run("--port", "0", "--console", "0", "--model", name, MESHNODE_CACHE=str(cache))
    assert done.returncode == 4
    assert ("qwen3-0.6b" if "qwen" in name else "demo") in done.stderr.partition("did you mean")[2]
    assert not cache.exists()
    told = run("--json", "--port", "0", "--console", "0", "--model", name, MESHNODE_CACHE=str(cache))
    assert told.returncode == 4 and one_object(told)["error"]["code"] == "model-not-found"


@pytest.mark.parametrize("engine", ["/bin/true", "/nowhere/llama-server"])
def test_useless_engine_is_6(engine: str, run: Run) -> None:
    done = run("--engine", engine, "--model", "demo", "--port", "0", "--console", "0")
    assert done.returncode == 6 and engine.rpartition("/")[2] in done.stderr
    assert "leave --engine out" in done.stderr


def test_engine_commands(run: Run, tmp_path: Path) -> None:
    built = one_object(run("engine", "status", "--json"))
    assert built["engine"]["patched"] is True and built["building"] is False and built["size_bytes"] > 0
    assert Path(run("engine", "path").stdout.strip(), "llama-server").is_file()
    assert one_object(run("engine", "build", "--json"))["already_built"] is True
    nothing = str(tmp_path / "nothing")
    assert one_object(run("engine", "status", "--json", MESHNODE_CACHE=nothing))["engine"] is None
    missing = run("engine", "path", "--json", MESHNODE_CACHE=nothing)
    assert missing.returncode == 6 and one_object(missing)["error"]["code"] == "engine-not-built"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_alone_on_stdout(shell: str, run: Run) -> None:
    done = run("completion", shell)
    assert done.returncode == 0 and "_MESHNODE_COMPLETE" in done.stdout
    assert f"meshnode completion {shell}" in done.stderr


# --- settings -------------------------------------------------------------------------------------------------


def test_each_setting_shows_where_it_came_from(run: Run, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    file = home / "config.toml"
    file.write_text('port = 4001\nqueue = 7\nparallel = 2\naliases = { fast = "demo" }\n')
    done = run(
        *("--parallel", "3", "config", "show", "--json"),
        MESHNODE_QUEUE="9",
        MESHNODE_PARALLEL="5",
        MESHNODE_API_KEY="correct horse",
    )
    found = one_object(done)
    settings = {name: (item["value"], item["source"]) for name, item in found["settings"].items()}
    assert settings["port"] == ("4001", str(file))
    assert settings["queue"] == ("9", "MESHNODE_QUEUE")
    assert settings["parallel"] == ("3", "--parallel")
    assert settings["console"] == ("3131", "built-in")
    assert settings["aliases"] == ("fast=demo", str(file))
    assert settings["api_key"] == ("(set)", "MESHNODE_API_KEY") and "correct horse" not in done.stdout
    assert found["paths"]["home"] == str(home) and found["paths"]["file"] == str(file)


@pytest.mark.parametrize(
    ("text", "words"), [("prot = 1\n", "did you mean port"), ("port = \n", "not valid TOML"), ("port = 'x'\n", "whole")]
)
def test_wrong_config_file(text: str, words: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "config.toml").write_text(text)
    done = run("--model", "demo")
    assert done.returncode == 2 and words in done.stderr and "config.toml" in done.stderr


# --- doctor ---------------------------------------------------------------------------------------------------


def test_doctor_has_a_fix_for_each_failure(run: Run, demo_server: NodeProcess) -> None:
    taken = str(demo_server.ready["api"]).rpartition(":")[2].partition("/")[0]
    found = one_object(run("--port", taken, "--console", "0", "doctor", "--json"))
    failures = [finding for finding in found["findings"] if finding["verdict"] == "fail"]
    assert [finding["check"] for finding in failures] == ["API port"] and found["ok"] is False
    assert taken in failures[0]["seen"] and "--port" in failures[0]["fix"]
    assert run("--port", taken, "--console", "0", "doctor").returncode == 7
    well = run("--port", "0", "--console", "0", "doctor", "--json")
    assert well.returncode == 0 and one_object(well)["ok"] is True
    assert {"python", "home", "cache", "models", "engine", "devices"} <= {item["check"] for item in found["findings"]}


def test_doctor_beside_a_running_node(demo_server: NodeProcess) -> None:
    done = demo_server.command("doctor", "--json")
    assert done.returncode == 0
    seen = {finding["check"]: finding["seen"] for finding in one_object(done)["findings"]}
    assert f"pid {demo_server.process.pid}" in seen["node"]


# --- with a node ----------------------------------------------------------------------------------------------


def test_status_and_ps(demo_server: NodeProcess) -> None:
    facts = one_object(demo_server.command("status", "--json"))
    assert facts["pid"] == demo_server.process.pid and facts["ready"] is True
    assert one_object(demo_server.command("ps", "--json"))["models"] == facts["models"]
    said = demo_server.command("status")
    assert said.returncode == 0 and facts["api"]["url"] in said.stdout and said.stderr == ""
    assert "demo" in demo_server.command().stdout
    assert re.search(r"^demo +here +[\d.]+ MB +", demo_server.command("ps").stdout, re.MULTILINE)


def test_logs(demo_server: NodeProcess) -> None:
    node = demo_server.command("logs", "--lines", "1000000")
    assert node.returncode == 0 and "node ready" in node.stdout
    assert demo_server.command("logs", "-n", "3").stdout.count("\n") == 3
    engine = demo_server.command("logs", "--engine")
    assert engine.returncode == 0 and "engine-demo.log" in engine.stderr


def test_files_are_for_their_owner_alone(demo_server: NodeProcess) -> None:
    def mode(name: str) -> int:
        return stat.S_IMODE((demo_server.home / name).stat().st_mode)

    assert mode(".") == 0o700 and mode("logs") == 0o700
    assert mode("runtime.json") == 0o600 and mode("node.key") == 0o600
    (pid,) = demo_server.engine_pids()
    argv = Path(f"/proc/{pid}/cmdline")
    if argv.exists():
        words = argv.read_bytes().split(b"\0")
        folder = Path(os.fsdecode(words[words.index(b"--host") + 1])).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_stop_without_a_model_to_wait_for(start_node: StartNode) -> None:
    node = start_node("--model", "demo")
    stopped = one_object(node.command("stop", "--json"))
    assert stopped["stopped"] is True and stopped["pid"] == node.process.pid
    assert node.process.wait(2) == 0
    assert node.command("logs").returncode == 0


def test_output_to_a_reader_that_leaves(run: Run, tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m meshnode config show | head -n 1"],
        env=environment_of(tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.startswith("SETTING") and done.stderr == ""


# --- what a person sees ---------------------------------------------------------------------------------------


def test_start_ends_with_a_command_that_works(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "meshnode", "--model", "demo", "--port", "0", "--console", "0"],
        env=environment_of(tmp_path / "home"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "try:" in line:
            break
    shown = "".join(said)
    assert "only this machine can reach it; Ctrl-C stops" in shown and "ready in" in shown
    found = re.search(r"curl -N (\S+) -d '(.*)'$", said[-1])
    assert found, shown
    with urllib.request.urlopen(found[1], found[2].encode(), timeout=30) as answer:
        events = answer.read().decode().splitlines()
    assert events[-2] == "data: [DONE]"
    process.send_signal(signal.SIGINT)
    stdout, rest = process.communicate(timeout=20)
    assert process.returncode == 0 and stdout == "" and rest.endswith("stopped\n")


def test_ctrl_c_while_the_engine_is_being_built_elsewhere(tmp_path: Path) -> None:
    from meshnode.engine.lock import build_lock

    cache, home = tmp_path / "cache", tmp_path / "home"
    with build_lock(cache):
        process = subprocess.Popen(
            [sys.executable, "-m", "meshnode", "--model", "demo", "--port", "0", "--console", "0"],
            env=environment_of(home, MESHNODE_CACHE=str(cache)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        eventually((home / "runtime.json").exists)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode in (0, 130) and "Traceback" not in said
    assert not (home / "runtime.json").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_start_that_is_ended_half_way(
    start_node: StartNode, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Held up by the lock of the engine's build. Ctrl-C is an interruption; a polite kill is what a service gets."""
    from meshnode.engine.lock import build_lock

    cache = tmp_path / "cache"
    with build_lock(cache):
        node = start_node("--model", "demo", wait=False, environment={"MESHNODE_CACHE": str(cache)}).wait_listening()
        node.end(number)
    assert node.process.returncode == code
