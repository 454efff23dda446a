"""A command on a terminal of its own: what a person sees there, and what a person types."""

from __future__ import annotations

import codecs
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

LIMIT_S = 40.0


def at_terminal(
    *arguments: str,
    home: Path,
    answers: Sequence[tuple[str, str]] = (),
    environment: Mapping[str, str] | None = None,
    stdin_elsewhere: bool = False,
    stderr_elsewhere: bool = False,
) -> tuple[int, str]:
    """`meshnode ARGUMENTS` on a pseudo-terminal: its exit code, and all that stood there.

    `answers` are pairs: a text that is waited for, and the line that is typed then. With `stdin_elsewhere` or
    `stderr_elsewhere` that one is no terminal, as under a program that has caught it. Raises TimeoutError.
    """
    person, terminal = pty.openpty()
    given = {**os.environ, "MESHNODE_HOME": str(home), "NO_COLOR": "1", "TERM": "xterm", **(environment or {})}
    with subprocess.Popen(
        [sys.executable, "-m", "meshnode", *arguments],
        stdin=subprocess.DEVNULL if stdin_elsewhere else terminal,
        stdout=terminal,
        stderr=subprocess.PIPE if stderr_elsewhere else terminal,
        env=given,
        start_new_session=True,
    ) as process:
        os.close(terminal)
        try:
            shown = _typed(person, answers)
            caught = process.stderr.read().decode() if process.stderr is not None else ""
            return process.wait(timeout=LIMIT_S), shown.replace("\r\n", "\n") + caught
        finally:
            os.close(person)
            process.kill()


def _typed(person: int, answers: Sequence[tuple[str, str]]) -> str:
    """Type each line when its text has appeared; all that was shown until the command let go of the terminal."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    waiting, shown, at = list(answers), "", 0
    ends_at = time.monotonic() + LIMIT_S
    while True:
        if waiting and waiting[0][0] in shown[at:]:
            wanted, line = waiting.pop(0)
            at = shown.index(wanted, at) + len(wanted)
            os.write(person, line.encode() + b"\n")
            continue
        ready, _, _ = select.select([person], [], [], max(0.0, ends_at - time.monotonic()))
        if not ready:
            raise TimeoutError(f"the command does not end; it has shown {shown!r}")
        try:
            piece = os.read(person, 1 << 16)
        except OSError:  # EIO: what Linux says when nobody holds the other end any more
            piece = b""
        if not piece:
            return shown
        shown += decoder.decode(piece)
