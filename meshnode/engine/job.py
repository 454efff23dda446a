"""One child process that does a step of work and ends: pip, cmake, ninja, `llama-server --version`.

Its output is read line by line, bounded, and copied to a log; it can be cancelled from another thread and has a
time limit. It leads its own process group, and the whole group is ended with it. Servers that keep running are
not started here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from meshnode.engine import guard

POLL_S = 0.2
STOP_GRACE_S = 3.0
LINE_BYTES = 64 << 10
TAIL_LINES = 400
NICENESS = 10


class JobCancelled(Exception):
    """The caller's event was set; the process group has ended."""


class JobTimeout(Exception):
    """The time limit passed; the process group has ended."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a job ended. `tail` holds its last lines (stdout and stderr together), decoded."""

    returncode: int
    tail: tuple[str, ...]
    seconds: float

    @property
    def text(self) -> str:
        return "\n".join(self.tail)


def run_job(
    argv: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    log: BinaryIO | None = None,
    on_line: Callable[[str], None] | None = None,
    on_tick: Callable[[], None] | None = None,
    cancelled: threading.Event | None = None,
    timeout_s: float | None = None,
    output_limit_bytes: int | None = None,
    low_priority: bool = False,
) -> JobResult:
    """Run `argv` to its end. `on_tick` is called about every 0.2 s, `on_line` for each line of output.

    Raises JobCancelled, JobTimeout (also when the output passes `output_limit_bytes`), and OSError when the
    program cannot be started.
    """
    started = time.monotonic()
    # The guard ends the whole group when the writing end of this pipe closes, so when this process dies too. (Its
    # other mode follows the thread that forked, and a job may run in a thread that does not last.)
    watched, held = os.pipe()
    try:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, "--watch", str(watched), "--", *_absolute(argv, low_priority)],
            cwd=cwd,
            env=None if env is None else dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(watched,),
        )
    except BaseException:
        os.close(held)
        raise
    finally:
        os.close(watched)
    reader = _Reader(child, log, on_line, output_limit_bytes)
    try:
        while reader.step():
            if on_tick:
                on_tick()
            if cancelled is not None and cancelled.is_set():
                raise JobCancelled
            if timeout_s is not None and time.monotonic() - started > timeout_s:
                raise JobTimeout(f"no end after {timeout_s:.0f} s")
    finally:
        end_group(child)
        os.close(held)
        reader.close()
    return JobResult(child.returncode, tuple(reader.tail), time.monotonic() - started)


def _absolute(argv: Sequence[str], low_priority: bool) -> list[str]:
    """`argv` with its program found on PATH, behind `nice` if asked; raises FileNotFoundError where there is none."""
    program = shutil.which(argv[0])
    if program is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), argv[0])
    nice = shutil.which("nice") if low_priority else None
    return [*([nice, "-n", str(NICENESS)] if nice else []), str(Path(program).absolute()), *argv[1:]]


class _Reader:
    """Reads the pipe of one child into lines."""

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        log: BinaryIO | None,
        on_line: Callable[[str], None] | None,
        limit_bytes: int | None,
    ) -> None:
        assert child.stdout is not None
        self._child, self._pipe, self._log, self._on_line = child, child.stdout, log, on_line
        self._left = limit_bytes
        self._pending = b""
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        os.set_blocking(self._pipe.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._pipe, selectors.EVENT_READ)

    def step(self) -> bool:
        """Wait at most POLL_S and take what came; False once the child has ended and its output is read.

        A grandchild may hold the pipe open for ever, so the end of the child counts, not the end of the pipe.
        """
        gone = has_ended(self._child)
        if not self._selector.get_map():
            if not gone:
                time.sleep(POLL_S / 10)
            return not gone
        if not self._selector.select(0 if gone else POLL_S):
            return not gone
        data = self._pipe.read(LINE_BYTES)
        if data:
            self._take(data)
        elif data == b"":
            self._selector.unregister(self._pipe)
        return True

    def _take(self, data: bytes) -> None:
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise JobTimeout("endless output")
        if self._log:
            self._log.write(data)
        *lines, self._pending = (self._pending + data).split(b"\n")
        while len(self._pending) > LINE_BYTES:
            lines.append(self._pending[:LINE_BYTES])
            self._pending = self._pending[LINE_BYTES:]
        for line in lines:
            self._line(line)

    def _line(self, raw: bytes) -> None:
        text = raw[:LINE_BYTES].decode("utf-8", "replace").rstrip("\r")
        self.tail.append(text)
        if self._on_line:
            self._on_line(text)

    def close(self) -> None:
        if self._pending:
            self._line(self._pending)
        self._selector.close()
        self._pipe.close()


def end_group(child: subprocess.Popen[bytes]) -> None:
    """End the process group that `child` leads, politely and then not, and reap the child."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        # The leader is not reaped before its group is gone: until then nobody else can be given its number.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)
        deadline = time.monotonic() + (STOP_GRACE_S if number == signal.SIGTERM else 0)
        while not has_ended(child) and time.monotonic() < deadline:
            time.sleep(0.01)
    child.wait()


def has_ended(child: subprocess.Popen[bytes]) -> bool:
    """Whether `child` has ended, leaving it unreaped where the system can tell without reaping."""
    if child.returncode is not None or not hasattr(os, "waitid"):
        return child.poll() is not None
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
