"""Children: output within bounds, ends in words, polite and impolite stops, and an environment without secrets."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

import pytest

from meshnode.engine import guard
from meshnode.engine.process import LINE_BYTES, TAIL_LINES, BoundedLog, Child, child_environment, describe_exit

ENV = {"PATH": "/usr/bin:/bin"}
pytestmark = pytest.mark.anyio
WATCH = [False, True] if sys.platform == "linux" else [True]


def python(text: str) -> list[str]:
    return [sys.executable, "-u", "-c", text]


def test_environment_is_an_allow_list() -> None:
    source = {
        "HOME": "/home/ada", "PATH": "/bin", "LD_LIBRARY_PATH": "/opt/cuda", "LC_ALL": "C.UTF-8",
        "CUDA_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0", "ROCR_VISIBLE_DEVICES": "0",
        "GGML_VK_VISIBLE_DEVICES": "0",
        "HF_TOKEN": "s", "OPENAI_API_KEY": "s", "AWS_SECRET_ACCESS_KEY": "s", "MESHNODE_API_KEY": "s",
        "SSH_AUTH_SOCK": "s",
        "LLAMA_ARG_CTX_SIZE": "9", "LLAMA_API_KEY": "s", "NVIDIA_API_KEY": "s", "GPU_CLOUD_TOKEN": "s",
    }  # fmt: skip
    passed = child_environment(source, {"LLAMA_API_KEY": "ours"})
    assert sorted(passed) == [
        "CUDA_VISIBLE_DEVICES", "GGML_NO_BACKTRACE", "GGML_VK_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "HOME",
        "LC_ALL", "LD_LIBRARY_PATH", "LLAMA_API_KEY", "PATH", "ROCR_VISIBLE_DEVICES",
    ]  # fmt: skip
    assert "s" not in passed.values() and passed["GGML_NO_BACKTRACE"] == "1"


@pytest.mark.parametrize(
    ("returncode", "asked", "words"),
    [
        (0, False, "exit code 0"),
        (3, False, "exit code 3"),
        (guard.NOT_RUN, False, "could not be run"),
        (-9, False, "ended by SIGKILL, usually because the machine ran out of memory"),
        (-9, True, "ended by SIGKILL"),
        (-6, False, "ended by SIGABRT, it stopped itself after an internal error"),
        (-15, False, "ended by SIGTERM"),
        (-200, False, "ended by signal 200"),
    ],
)
def test_ends_in_words(returncode: int, asked: bool, words: str) -> None:
    assert describe_exit(returncode, asked=asked).words == words


def test_log_is_the_same_however_the_bytes_are_cut() -> None:
    data = b"one\r\n\n" + "zw\u00f6lf \U0001f600\n".encode() + b"bad \xff\n" + b"x" * 5000 + b"\nlast without newline"
    rng = random.Random(7)
    logs = []
    for size in (1, 3, 1000, len(data)):
        log = BoundedLog()
        rest = data
        while rest:
            count = rng.randint(1, size)
            log.feed(rest[:count])
            rest = rest[count:]
        log.close()
        logs.append(log.tail())
    assert logs[0] == ["one", "zwölf \U0001f600", "bad \ufffd", "x" * LINE_BYTES + " […]", "last without newline"]
    assert all(tail == logs[0] for tail in logs)


def test_tail_and_file_are_bounded(tmp_path: Path) -> None:
    file = tmp_path / "engine.log"
    log = BoundedLog(file, limit_bytes=10_000)
    for number in range(5000):
        log.feed(b"line %05d\n" % number)
    log.close()
    assert log.tail() == [f"line {number:05}" for number in range(5000 - TAIL_LINES, 5000)]
    older = tmp_path / "engine.log.1"
    assert file.stat().st_size <= 10_000 and older.stat().st_size <= 10_000
    assert file.stat().st_mode & 0o777 == 0o600
    kept = older.read_text() + file.read_text()
    assert kept.endswith("line 04999\n") and len(kept) > 10_000


def test_a_log_that_cannot_be_written_costs_only_the_file(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "missing" / "engine.log")
    log.feed(b"still here\n")
    assert log.tail() == ["still here"]
    assert log.error is not None and "No such file" in log.error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_costs_only_the_file() -> None:
    log = BoundedLog(Path("/dev/full"))
    log.feed(b"still here\n")
    log.close()
    assert log.tail() == ["still here"] and log.error is not None and "No space" in log.error


def test_redaction_and_control_characters(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "log", redact=lambda line: line.replace("secret", "***"))
    log.feed(b"a secret \x1b[2J\x07 here\n")
    log.close()
    assert log.tail() == ["a *** \ufffd[2J\ufffd here"]
    assert "secret" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("watch", WATCH)
async def test_runs_with_its_environment_and_ends(watch: bool, tmp_path: Path) -> None:
    text = "import os, sys; print(sorted(os.environ), os.getcwd()); print('to stderr', file=sys.stderr); sys.exit(5)"
    child = await Child.start(python(text), env={**ENV, "ONE": "1"}, cwd=tmp_path, watch=watch)
    end = await child.wait()
    assert (end.code, end.signal, end.asked) == (5, None, False)
    seen, error = child.log.tail()
    assert "'ONE'" in seen and str(tmp_path) in seen and "HOME" not in seen and error == "to stderr"
    assert not child.running
    assert await child.stop() == end


@pytest.mark.parametrize("watch", WATCH)
async def test_polite_stop(watch: bool) -> None:
    text = "import signal, sys; signal.signal(15, lambda *_: sys.exit(print('goodbye'))); print('up'); signal.pause()"
    child = await Child.start(python(text), env=ENV, watch=watch)
    await line(child, "up")
    end = await child.stop(20)
    assert (end.code, end.asked, child.log.tail()) == (0, True, ["up", "goodbye"])


@pytest.mark.parametrize("watch", WATCH)
async def test_stubborn_child_is_killed(watch: bool) -> None:
    text = "import signal; signal.signal(15, signal.SIG_IGN); print('up')\nwhile True: signal.pause()"
    child = await Child.start(python(text), env=ENV, watch=watch)
    await line(child, "up")
    end = await child.stop(0.1)
    assert (end.signal, end.asked, end.words) == ("SIGKILL", True, "ended by SIGKILL")


@pytest.mark.parametrize("watch", WATCH)
async def test_a_stopped_child_still_gets_the_polite_request(watch: bool) -> None:
    text = "import signal, sys; signal.signal(15, lambda *_: sys.exit(3)); print('up')\nwhile True: signal.pause()"
    child = await Child.start(python(text), env=ENV, watch=watch)
    await line(child, "up")
    child.signal(signal.SIGSTOP)
    assert (await child.stop(20)).code == 3


async def test_a_program_that_cannot_be_run(tmp_path: Path) -> None:
    child = await Child.start([tmp_path / "absent"], env=ENV)
    assert (await child.wait()).words == "could not be run"
    assert child.log.tail() == [f"{tmp_path}/absent could not be run: No such file or directory"]


async def test_a_grandchild_that_keeps_the_pipe_open_does_not_hold_us() -> None:
    child = await Child.start(["/bin/sh", "-c", "sleep 60 & echo $!"], env=ENV, watch=False)
    async with asyncio.timeout(10):
        assert (await child.wait()).code == 0
    os.kill(int(child.log.tail()[0]), signal.SIGKILL)


async def test_cancelling_a_wait_leaves_the_child_alone() -> None:
    child = await Child.start(["/bin/sleep", "60"], env=ENV)
    waiting = asyncio.create_task(child.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert waiting.cancelled() and child.running
    assert (await child.stop(20)).signal == "SIGTERM"


async def test_much_output_does_not_block_the_child() -> None:
    text = "import sys\nfor _ in range(200): sys.stdout.write('y' * 99_999 + '\\n')"
    child = await Child.start(python(text), env=ENV)
    async with asyncio.timeout(30):
        assert (await child.wait()).code == 0
    assert len(child.log.tail()) == TAIL_LINES and max(map(len, child.log.tail())) < LINE_BYTES + 10


async def line(child: Child, text: str) -> None:
    async with asyncio.timeout(20):
        while text not in child.log.tail():
            await asyncio.sleep(0.005)
