"""The guard: what it becomes, what it inherits, and that nothing survives the death of the node."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from meshnode.engine import guard

LAUNCHER = [sys.executable, "-I", "-S", guard.__file__]
LINUX = sys.platform == "linux"
MODES = ["watch", pytest.param("parent", marks=pytest.mark.skipif(not LINUX, reason="prctl is of Linux"))]

# A node in miniature: starts the guard as process.Child does, says the pid of the program, and waits to be killed.
NODE = """
import os, subprocess, sys
mode, launcher, program = sys.argv[1], sys.argv[2].split("|"), sys.argv[3].split("|")
reading, writing = os.pipe()
tie = ["--watch", str(reading)] if mode == "watch" else ["--parent", str(os.getpid())]
child = subprocess.Popen([*launcher, *tie, "--", *program], start_new_session=True, pass_fds=[reading])
os.close(reading)
sys.stdin.read()
"""
# A program that tells its pid and then ignores polite requests.
STUBBORN = "import os, signal, sys; signal.signal(15, lambda *_: 0); print(os.getpid(), flush=True); sys.stdin.read()"


def is_alive(pid: int) -> bool:
    """Whether `pid` still runs; a zombie, which some init has yet to reap, does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    if LINUX:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def until(condition: Callable[[], bool], limit_s: float = 10.0) -> bool:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.005)
    return False


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for descriptor in (reading, writing):
        with contextlib.suppress(OSError):
            os.close(descriptor)


def run(mode: str, program: list[str], pipe: tuple[int, int], **options: object) -> subprocess.CompletedProcess[str]:
    tie = ["--watch", str(pipe[0])] if mode == "watch" else ["--parent", str(os.getpid())]
    return subprocess.run(
        [*LAUNCHER, *tie, "--", *program],
        capture_output=True,
        text=True,
        timeout=20,
        start_new_session=True,
        pass_fds=[pipe[0]],
        **options,
    )


@pytest.mark.parametrize("mode", MODES)
def test_exit_code_and_output_pass_through(mode: str, pipe: tuple[int, int]) -> None:
    done = run(mode, ["/bin/sh", "-c", "echo out; echo err >&2; exit 7"], pipe)
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV])
def test_ends_by_the_signal_that_ended_the_program(mode: str, number: signal.Signals, pipe: tuple[int, int]) -> None:
    assert run(mode, ["/bin/sh", "-c", f"kill -{number.value} $$"], pipe).returncode == -number


@pytest.mark.parametrize("mode", MODES)
def test_a_program_that_is_not_there(mode: str, pipe: tuple[int, int]) -> None:
    done = run(mode, ["/no/such/program"], pipe)
    assert done.returncode == guard.NOT_RUN
    assert "/no/such/program could not be run: No such file or directory" in done.stderr


@pytest.mark.parametrize("argv", [[], ["--parent"], ["--parent", "x", "--", "a"], ["--other", "1", "--", "a"]])
def test_wrong_usage(argv: list[str]) -> None:
    assert subprocess.run([*LAUNCHER, *argv], capture_output=True, timeout=20).returncode == 2


@pytest.mark.skipif(not LINUX, reason="prctl is of Linux")
def test_leaves_at_once_when_the_parent_is_another_one(pipe: tuple[int, int]) -> None:
    argv = [*LAUNCHER, "--parent", "1", "--", "/bin/sh", "-c", "echo ran"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (guard.NODE_GONE, "")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.skipif(not LINUX, reason="reads /proc")
def test_no_core_dumps_sigpipe_ignored_and_first_to_go(mode: str, pipe: tuple[int, int]) -> None:
    report = "cat /proc/self/status /proc/self/limits /proc/self/oom_score_adj"
    text = run(mode, ["/bin/sh", "-c", report], pipe, preexec_fn=_allow_core_dumps).stdout
    ignored = int(next(line.split()[1] for line in text.splitlines() if line.startswith("SigIgn:")), 16)
    assert ignored >> (signal.SIGPIPE - 1) & 1
    assert not ignored >> (signal.SIGTERM - 1) & 1
    core = next(line.split() for line in text.splitlines() if line.startswith("Max core file size"))
    assert core[4:6] == ["0", "0"]
    assert int(text.splitlines()[-1]) >= guard.OOM_SCORE_ADJ


def _allow_core_dumps() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))


@pytest.mark.parametrize("mode", MODES)
def test_kill_9_of_the_node_leaves_nothing(mode: str) -> None:
    program = [sys.executable, "-c", STUBBORN]
    node = subprocess.Popen(
        [sys.executable, "-c", NODE, mode, "|".join(LAUNCHER), "|".join(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert node.stdout is not None and node.stdin is not None
    pid = int(node.stdout.readline())
    assert is_alive(pid)
    node.kill()
    node.wait()
    try:
        assert until(lambda: not is_alive(pid)), "the program outlived its node"
    finally:
        node.stdin.close()
        node.stdout.close()


def test_the_watching_guard_takes_the_whole_group_along(pipe: tuple[int, int]) -> None:
    script = "sh -c 'echo $$; exec sleep 60' & echo $$; wait"
    argv = [*LAUNCHER, "--watch", str(pipe[0]), "--", "/bin/sh", "-c", script]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, text=True, start_new_session=True, pass_fds=[pipe[0]]
    ) as guarded:
        assert guarded.stdout is not None
        pids = [int(guarded.stdout.readline()) for _ in range(2)]
        assert all(is_alive(pid) for pid in pids)
        os.close(pipe[1])
        os.close(pipe[0])
        assert guarded.wait(timeout=20) == -signal.SIGKILL
        assert until(lambda: not any(is_alive(pid) for pid in pids))


def test_it_is_quick_and_needs_nothing_of_meshnode() -> None:
    text = Path(guard.__file__).read_text()
    assert "import meshnode" not in text and "from meshnode" not in text
    fastest_s = 9.9
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([*LAUNCHER, "--parent", str(os.getpid()), "--", "/bin/true"], timeout=20)
        fastest_s = min(fastest_s, time.perf_counter() - began)
    assert fastest_s < 0.25
