"""What can be wrong on the way to a served model: files, ports, folders, disks, hubs, compilers.

Each ends in a sentence, the right exit code, and a node that goes on where one was running.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from meshnode.config import find_places
from tests.conftest import NodeProcess, StartNode
from tests.e2e.bad_models import BAD_MODELS
from tests.loopback import LOOPBACK_ONLY
from tests.models.loopback_hub import LoopbackHub

pytestmark = pytest.mark.engine

QUESTION: Any = [{"role": "user", "content": "hello"}]


def start(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A start that is expected to end by itself."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MESHNODE_", "HF_"))}
    return subprocess.run(
        [sys.executable, "-m", "meshnode", "--port", "0", "--console", "0", *arguments],
        env={
            **kept,
            **LOOPBACK_ONLY,
            "MESHNODE_HOME": str(home),
            "MESHNODE_CACHE": str(find_places().cache),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
    )


def assert_ordinary_request_works(node: NodeProcess) -> None:
    with openai.OpenAI(base_url=f"{node.base_url}/v1", api_key="unused", max_retries=0) as client:
        assert client.chat.completions.create(model="demo", messages=QUESTION, max_tokens=2).usage


def assert_no_traceback(text: str) -> None:
    assert "Traceback" not in text and "fault of meshnode" not in text


# --- model files ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(start_shared_node: StartNode) -> Iterator[NodeProcess]:
    """A node with the demo that is asked to load one bad thing after another."""
    node = start_shared_node("--model", "demo", environment={"HF_ENDPOINT": "http://127.0.0.1:9"})
    yield node
    node.end()


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_bad_model_is_refused_by_a_running_node(kind: str, running: NodeProcess, tmp_path: Path) -> None:
    write, code, pattern = BAD_MODELS[kind]
    file = tmp_path / "bad.gguf"
    write(file)
    done = running.command("load", str(file), "--json")
    error = json.loads(done.stdout)["error"]
    assert done.returncode == 4 and error["code"] == code, error
    assert re.search(pattern, error["message"]) and len(error["fix"]) > 10
    assert_no_traceback(error["message"])
    assert_ordinary_request_works(running)
    (problem,) = running.status()["problems"]
    assert problem["code"] == "model-load-failed" and problem["fix"] == error["fix"]
    assert running.command("unload", "file:bad").returncode == 0
    assert running.status()["problems"] == []


@pytest.mark.parametrize("kind", ["truncated", "too large"])
def test_bad_model_ends_a_start_with_4(kind: str, tmp_path: Path) -> None:
    write, code, pattern = BAD_MODELS[kind]
    file = tmp_path / "bad.gguf"
    write(file)
    done = start(tmp_path / "home", "--model", str(file))
    assert done.returncode == 4 and done.stdout == ""
    assert f"({code})" in done.stderr and re.search(pattern, done.stderr)
    assert_no_traceback(done.stderr)
    shown = start(tmp_path / "home", "show", str(file))
    assert_no_traceback(shown.stderr)
    assert shown.returncode == (4 if kind == "truncated" else 0)
    assert kind == "truncated" or "does not fit here" in shown.stdout


def test_context_beyond_all_memory(tmp_path: Path) -> None:
    done = start(tmp_path / "home", "--model", "demo", "--ctx-size", "16000000", "--parallel", "64")
    assert done.returncode == 4 and "(model-does-not-fit)" in done.stderr and "GiB short" in done.stderr


@pytest.mark.parametrize("name", ["nosuch.gguf", "owner/repo/too/long", "../../etc/passwd", "demo\x07", "", "a" * 3000])
def test_names_that_mean_nothing(name: str, running: NodeProcess) -> None:
    done = running.command("load", name, "--json")
    assert done.returncode in (1, 4) and len(json.loads(done.stdout)["error"]["message"]) > 10
    assert_ordinary_request_works(running)


# --- ports and folders ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--port", "--console"])
def test_port_in_use_names_its_holder(flag: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        done = start(tmp_path / "home", flag, str(port), "--model", "demo")
    assert done.returncode == 1 and "(port-in-use)" in done.stderr
    assert str(port) in done.stderr and f"choose another port: {flag} N" in done.stderr
    if sys.platform == "linux":
        assert f"(pid {os.getpid()})" in done.stderr
    assert start(tmp_path / "home", "status").returncode == 3


def test_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("not a folder")
    done = start(tmp_path / "home", "--model", "demo")
    assert done.returncode == 1 and "(home-not-writable)" in done.stderr and "MESHNODE_HOME" in done.stderr
    assert start(tmp_path / "home", "status").returncode == 3


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that not even root can write")
def test_home_that_cannot_be_written() -> None:
    done = start(Path("/proc/meshnode"), "--model", "demo")
    assert done.returncode == 1 and "(home-not-writable)" in done.stderr
    assert_no_traceback(done.stderr)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    done = start(home, "--model", "demo")
    assert done.returncode == 1 and "(home-not-writable)" in done.stderr


@pytest.mark.parametrize("name", ["node.key", "config.toml", "node.lock", "runtime.json"])
def test_home_whose_files_are_folders(name: str, tmp_path: Path) -> None:
    (tmp_path / "home" / name).mkdir(parents=True)
    done = start(tmp_path / "home", "--model", "demo")
    assert done.returncode in (1, 2) and "error:" in done.stderr and name in done.stderr
    assert_no_traceback(done.stderr)


@pytest.mark.parametrize("content", [b"", b"\x00\xff" * 50, b'{"schema": 1}', b"[]", b'{"pid": "x"}'])
def test_damaged_runtime_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "runtime.json").write_bytes(content)
    done = start(tmp_path / "home", "status")
    assert done.returncode == 3 and "(no-node)" in done.stderr
    assert_no_traceback(done.stderr)


# --- disks ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_logs_that_cannot_be_written_cost_only_the_logs(start_node: StartNode, tmp_path: Path) -> None:
    logs = tmp_path / "home0" / "logs"
    logs.mkdir(parents=True)
    for name in ("node.log", "engine-demo.log"):
        (logs / name).symlink_to("/dev/full")
    node = start_node("--model", "demo")
    for _ in range(3):
        assert_ordinary_request_works(node)
    _, said = node.end()
    assert node.process.returncode == 0 and said == ""


def _can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    with contextlib.suppress(subprocess.SubprocessError):
        done = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "x", "/mnt"], capture_output=True, timeout=10)
        return done.returncode == 0
    return False


@pytest.mark.skipif(not _can_mount(), reason="may not mount a small file system of its own")
def test_home_on_a_full_disk(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    script = (
        f"mount -t tmpfs -o size=64k full {home} && (dd if=/dev/zero of={home}/filler bs=4k 2>/dev/null; "
        f"exec {sys.executable} -m meshnode --model demo --port 0 --console 0)"
    )
    environment = {
        **os.environ,
        **LOOPBACK_ONLY,
        "MESHNODE_HOME": str(home),
        "MESHNODE_CACHE": str(find_places().cache),
    }
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "No space left on device" in done.stderr
    assert_no_traceback(done.stderr)


@pytest.mark.skipif(not _can_mount(), reason="may not mount a small file system of its own")
def test_download_to_a_full_disk(tmp_path: Path, small_models: Path) -> None:
    cache = tmp_path / "hub"
    cache.mkdir()
    hub = LoopbackHub()
    hub.add("some/model-GGUF", {"model-Q8_0.gguf": (small_models / "tools.gguf").read_bytes()})
    script = (
        f"mount -t tmpfs -o size=2m full {cache} && "
        f"exec {sys.executable} -m meshnode --model some/model-GGUF --port 0 --console 0"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MESHNODE_", "HF_"))}
    places = {**LOOPBACK_ONLY, "MESHNODE_HOME": str(tmp_path / "home"), "MESHNODE_CACHE": str(find_places().cache)}
    try:
        done = subprocess.run(
            ["unshare", "-m", "bash", "-c", script],
            env={**kept, **places, "HF_HOME": str(cache), "HF_ENDPOINT": hub.endpoint},
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        hub.close()
    assert done.returncode == 1 and "(disk-full)" in done.stderr and "free some space" in done.stderr


# --- hubs -----------------------------------------------------------------------------------------------------


def test_dead_hub(running: NodeProcess, tmp_path: Path) -> None:
    done = start(
        tmp_path / "home",
        *("--model", "qwen3-0.6b"),
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_HOME=str(tmp_path / "hub"),
    )
    assert done.returncode == 5 and "(hub-unreachable)" in done.stderr and "HF_ENDPOINT" in done.stderr
    told = running.command("load", "someone/some-GGUF:Q4_K_M", "--json")
    assert told.returncode == 5 and json.loads(told.stdout)["error"]["code"] == "hub-unreachable"
    assert_ordinary_request_works(running)
    running.command("unload", "someone/some-GGUF:Q4_K_M")


def test_offline_mode(tmp_path: Path) -> None:
    done = start(tmp_path / "home", "--model", "qwen3-0.6b", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hub"))
    assert done.returncode == 5 and "(hub-offline)" in done.stderr and "HF_HUB_OFFLINE" in done.stderr


def test_model_is_fetched_and_served_while_another_answers(
    start_node: StartNode, tmp_path: Path, small_models: Path
) -> None:
    """The download stands still for as long as the test wants: meanwhile its callers are told 503, others served."""
    go_on = threading.Event()
    hub = LoopbackHub()
    hub.add("some/model-GGUF", {"model-Q8_0.gguf": (small_models / "tools.gguf").read_bytes()})
    hub.before_chunk = lambda: go_on.wait(20)
    node = start_node("--model", "demo", environment={"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hub")})
    try:
        loading = node.command("load", "some/model-GGUF", "--no-wait")
        assert loading.returncode == 0
        assert_ordinary_request_works(node)
        with openai.OpenAI(base_url=f"{node.base_url}/v1", api_key="unused", max_retries=0) as client:
            with pytest.raises(openai.InternalServerError) as refusal:
                client.chat.completions.create(model="some/model-GGUF", messages=QUESTION)
            assert refusal.value.status_code == 503 and refusal.value.code == "model_loading"
        go_on.set()
        # A patient client, with its own retries, gets there without help.
        with openai.OpenAI(base_url=f"{node.base_url}/v1", api_key="unused", max_retries=10) as client:
            assert client.chat.completions.create(model="some/model-GGUF", messages=QUESTION, max_tokens=2).usage
            assert client.models.retrieve("some/model-GGUF").id
    finally:
        go_on.set()
        hub.close()


# --- compilers ------------------------------------------------------------------------------------------------


def test_no_compiler(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    done = start(
        tmp_path / "home",
        *("--model", "demo"),
        PATH=str(tmp_path / "bin"),
        MESHNODE_CACHE=str(tmp_path / "cache"),
        CC="",
        CXX="",
    )
    assert done.returncode == 6 and "(toolchain-missing)" in done.stderr
    assert "install" in done.stderr and "meshnode engine build" in done.stderr
    assert_no_traceback(done.stderr)


def test_compiler_that_fails(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    compiler = tmp_path / "bin" / "c++"
    compiler.write_text(
        "#!/bin/sh\necho 'probe.cpp:1:10: fatal error: filesystem: No such file or directory' >&2\nexit 1\n"
    )
    compiler.chmod(0o755)
    done = start(
        tmp_path / "home",
        *("--model", "demo"),
        CXX=str(compiler),
        CC="cc",
        MESHNODE_CACHE=str(tmp_path / "cache"),
    )
    assert done.returncode == 6 and "fatal error: filesystem: No such file" in done.stderr
    assert_no_traceback(done.stderr)
