"""One supervised child process: started through the guard, its output kept within bounds, its end put into words.

Nothing here knows what the program is. A child is only ever signalled through the process group that this module
created for it; no process is looked up by name. Secrets belong into `env`: a command line is public on a machine.

TRAP: on Linux the parent-death signal follows the *thread* that forked. `Child.start` forks in the thread of the
running event loop, so that thread must live as long as its children.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from meshnode.engine import guard

TAIL_LINES = 200
LINE_BYTES = 2048
LOG_FILE_BYTES = 8 << 20
DRAIN_S = 1.0

_PASSED = {
    "HOME", "PATH", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "LIBRARY_PATH", "XDG_RUNTIME_DIR",
    "XDG_CACHE_HOME", "DISPLAY", "WAYLAND_DISPLAY",
}  # fmt: skip
_PASSED_PREFIXES = (
    "LC_", "CUDA", "NVIDIA_", "HIP_", "ROCR_", "ROCM_", "HSA_", "GPU_", "AMD_", "GGML_", "DYLD_", "METAL_", "MTL_",
    "VK_", "MESA_", "RADV_", "ONEAPI_", "SYCL_", "ZES_", "ZE_", "OMP_", "GOMP_", "KMP_", "OPENBLAS_",
)  # fmt: skip
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|API_?KEY|CREDENTIAL", re.IGNORECASE)


def child_environment(source: Mapping[str, str], extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The few variables of `source` that an engine needs (paths, locale, GPU runtimes), and `extra` on top.

    An allow-list, because llama-server turns every LLAMA_ARG_* into a flag and HF_TOKEN or a cloud key is none of
    its business. GGML_NO_BACKTRACE spares an abort the 4 s in which ggml starts a debugger on itself.
    """
    kept = {
        name: value
        for name, value in source.items()
        if (name in _PASSED or name.startswith(_PASSED_PREFIXES)) and not _SECRET.search(name)
    }
    return {**kept, "GGML_NO_BACKTRACE": "1", **(extra or {})}


@dataclass(frozen=True, slots=True)
class Exit:
    """How a child ended: an exit code or a signal name, and the same in words. `asked` is true after `stop`."""

    code: int | None
    signal: str | None
    words: str
    asked: bool = False


_SIGNAL_HINTS = {
    "SIGKILL": "usually because the machine ran out of memory",
    "SIGILL": "this engine was built for another processor",
    "SIGBUS": "a file it had mapped became shorter, or the disk failed",
    "SIGSEGV": "a fault in the engine",
    "SIGABRT": "it stopped itself after an internal error",
}


def describe_exit(returncode: int, *, asked: bool = False) -> Exit:
    """Turn a return code as `subprocess` gives it (negative for a signal) into an `Exit`."""
    if returncode >= 0:
        words = {guard.NOT_RUN: "could not be run", guard.NODE_GONE: "was started by a node that is gone"}
        return Exit(returncode, None, words.get(returncode, f"exit code {returncode}"), asked)
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    hint = "" if asked else _SIGNAL_HINTS.get(name, "")
    return Exit(None, name, f"ended by {name}" + (f", {hint}" if hint else ""), asked)


class BoundedLog:
    """The last lines of a child in memory and all of them in a file of at most twice `limit_bytes`.

    The older half is kept beside the file with the suffix `.1`. A file that cannot be written costs the file, not
    the child: `error` then says why. `redact` sees every line before it is kept or written.
    """

    def __init__(
        self,
        file: Path | None = None,
        *,
        limit_bytes: int = LOG_FILE_BYTES,
        redact: Callable[[str], str] | None = None,
    ) -> None:
        self.error: str | None = None
        self._file = file
        self._limit_bytes = limit_bytes
        self._redact = redact or (lambda line: line)
        self._lines: deque[str] = deque(maxlen=TAIL_LINES)
        self._partial = bytearray()
        self._overlong = False
        self._written_bytes = 0
        self._descriptor: int | None = None
        if file is not None:
            self._guarded(self._open, file)

    def feed(self, data: bytes) -> None:
        """Take the next bytes of output, in whatever pieces they come."""
        complete: list[str] = []
        *ended, rest = data.split(b"\n")
        for piece in ended:
            self._extend(piece)
            if line := self._take():
                complete.append(line)
        self._extend(rest)
        self._store(complete)

    def close(self) -> None:
        """Keep a last line that lacks its newline, and close the file."""
        if line := self._take():
            self._store([line])
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def tail(self) -> list[str]:
        """The last 200 lines, oldest first, each of at most 2 kB."""
        return list(self._lines)

    def _extend(self, piece: bytes) -> None:
        room = LINE_BYTES - len(self._partial)
        self._partial += piece[:room]
        self._overlong = self._overlong or len(piece) > room

    def _take(self) -> str:
        text = self._partial.decode("utf-8", "replace").rstrip() + (" […]" if self._overlong else "")
        self._partial.clear()
        self._overlong = False
        # Control characters would let a model's text drive the terminal that shows the log.
        return self._redact("".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in text))

    def _store(self, lines: list[str]) -> None:
        self._lines.extend(lines)
        if lines and self._descriptor is not None:
            self._guarded(self._write, ("\n".join(lines) + "\n").encode())

    def _guarded(self, action: Callable[..., None], argument: object) -> None:
        try:
            action(argument)
        except OSError as error:
            self.error = f"{self._file}: {error.strerror or error}"

    def _open(self, file: Path) -> None:
        self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._written_bytes = os.fstat(self._descriptor).st_size

    def _write(self, data: bytes) -> None:
        assert self._file is not None and self._descriptor is not None
        if self._written_bytes + len(data) > self._limit_bytes:
            os.close(self._descriptor)
            self._descriptor = None
            self._file.replace(self._file.with_name(self._file.name + ".1"))
            self._open(self._file)
        assert self._descriptor is not None
        self._written_bytes += os.write(self._descriptor, data)


class Child:
    """A running program and what became of it. Made by `Child.start`; lives on one event loop."""

    def __init__(
        self, process: asyncio.subprocess.Process, log: BoundedLog, output: int, node_pipe: int | None
    ) -> None:
        self.pid = process.pid
        self.log = log
        self._process = process
        self._output = output
        self._node_pipe = node_pipe
        self._asked = False
        self._drained = asyncio.Event()
        os.set_blocking(output, False)
        asyncio.get_running_loop().add_reader(output, self._read)
        self._end = asyncio.create_task(self._follow(), name=f"child {process.pid}")

    @classmethod
    async def start(
        cls,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str],
        log: BoundedLog | None = None,
        cwd: Path | None = None,
        watch: bool = sys.platform != "linux",
    ) -> Child:
        """Run `argv` (an absolute program path and its arguments) under the guard, as leader of a new session.

        `env` is the whole environment (see `child_environment`). `watch` picks the guard that stays beside the
        program, the only kind outside Linux. A program that cannot be run shows as `Exit.code` 127 with the reason
        in the log; OSError is raised only if not even Python could be started.
        """
        # Own pipes rather than asyncio's: those cannot be closed while a grandchild holds the other end.
        with contextlib.ExitStack() as stack:
            output, theirs = os.pipe()
            stack.callback(os.close, theirs)
            ours = stack.enter_context(contextlib.ExitStack())
            ours.callback(os.close, output)
            node_pipe = None
            tie = ["--parent", str(os.getpid())]
            if watch:
                watched, node_pipe = os.pipe()
                stack.callback(os.close, watched)
                ours.callback(os.close, node_pipe)
                tie = ["--watch", str(watched)]
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", guard.__file__, *tie, "--", *map(str, argv)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=theirs,
                stderr=asyncio.subprocess.STDOUT,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
                pass_fds=[watched] if watch else [],
            )
            ours.pop_all()
            return cls(process, log or BoundedLog(), output, node_pipe)

    @property
    def running(self) -> bool:
        """Whether the program has not ended yet, as far as is known."""
        return self._process.returncode is None

    async def wait(self) -> Exit:
        """Wait until the program has ended and its output is read. Cancelling this leaves the program alone."""
        return await asyncio.shield(self._end)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the child's group; nothing happens when it has ended."""
        # asyncio sets `returncode` when it reaps; until then the number cannot belong to anybody else.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    async def stop(self, grace_s: float = 5.0) -> Exit:
        """Ask politely (SIGTERM), and kill the group if it has not ended after `grace_s` seconds."""
        self._asked = True
        if grace_s > 0:
            self.signal(signal.SIGTERM)
            # A stopped process would not even see the request.
            self.signal(signal.SIGCONT)
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(self.wait(), grace_s)
        self.signal(signal.SIGKILL)
        return await self.wait()

    async def _follow(self) -> Exit:
        returncode = await self._process.wait()
        if self._node_pipe is not None:
            # Should the guard itself have been killed, its program is still in the group and would live on.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            os.close(self._node_pipe)
        # A grandchild that keeps the pipe open must not keep us here.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._drained.wait(), DRAIN_S)
        asyncio.get_running_loop().remove_reader(self._output)
        os.close(self._output)
        self.log.close()
        return describe_exit(returncode, asked=self._asked)

    def _read(self) -> None:
        try:
            data = os.read(self._output, 1 << 16)
        except BlockingIOError:
            return
        self.log.feed(data)
        if not data:
            asyncio.get_running_loop().remove_reader(self._output)
            self._drained.set()
