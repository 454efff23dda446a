"""A llama-server that meshnode did not build: is it one, which one, and what does the node lose with it?

The program may be anything (a script that hangs, one that prints for ever), so each question has a time limit and a
bound. The RPC protocol version is asked of the ggml-rpc-server that lies beside it, over that protocol itself.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import struct
import threading
import time
from pathlib import Path

from meshnode.engine.installed import Engine, Origin, read_built
from meshnode.engine.job import JobCancelled, JobTimeout, run_job
from meshnode.engine.source import Upstream
from meshnode.errors import EngineIncompatible

VERSION_TIMEOUT_S = 10.0
RPC_TIMEOUT_S = 20.0
_OUTPUT_BYTES = 64 << 10
_VERSION = re.compile(r"^version: (\S{1,40})(.*)$", re.MULTILINE)

# ggml-rpc.cpp: command 14, the length of the request as u64, 24 bytes of capabilities; the answer is the length of
# the response as u64 and then major, minor, patch, one byte of padding and 24 bytes of capabilities.
_CAPABILITIES_BYTES = 24
_HELLO = struct.pack("<BQ", 14, _CAPABILITIES_BYTES) + bytes(_CAPABILITIES_BYTES)
_HELLO_ANSWER = struct.Struct(f"<QBBB{_CAPABILITIES_BYTES + 1}x")
_NO_SPLIT = "this node cannot take part in a split of a large model"


def locate(given: Path) -> Path:
    """The llama-server meant by `--engine`: the file itself, the one in that folder or its bin/, or a name on PATH.

    Raises EngineIncompatible.
    """
    places = [given, given / "llama-server", given / "bin" / "llama-server"]
    if len(given.parts) == 1 and (named := shutil.which(given.name)):
        places.append(Path(named))
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise EngineIncompatible(f"there is no llama-server at {given}")
    if not os.access(found, os.X_OK):
        raise EngineIncompatible(f"{found} may not be executed", fix=f"chmod +x {found}, or leave --engine out")
    return found.resolve()


def inspect(
    server: Path,
    upstream: Upstream,
    *,
    origin: Origin,
    cancelled: threading.Event | None = None,
    version_timeout_s: float = VERSION_TIMEOUT_S,
    rpc_timeout_s: float = RPC_TIMEOUT_S,
) -> Engine:
    """Describe the llama-server at `server` after it and its neighbour have been tried.

    Raises EngineIncompatible when it does not answer like a llama-server or speaks another RPC protocol, and
    JobCancelled.
    """
    version, mark = _ask_version(server, version_timeout_s, cancelled)
    built = read_built(server.parent)
    patched = mark == upstream.mark
    losses = [] if patched else [patch.loss for patch in upstream.patches if patch.loss]
    rpc_server = _neighbour(server, "ggml-rpc-server") or _neighbour(server, "rpc-server")
    rpc_version = None
    if rpc_server is None:
        losses.append(f"it has no ggml-rpc-server beside it: {_NO_SPLIT}")
    else:
        rpc_version = ask_rpc_version(rpc_server, timeout_s=rpc_timeout_s, cancelled=cancelled)
        if rpc_version[:2] != upstream.rpc[:2]:
            theirs, ours = (".".join(map(str, version)) for version in (rpc_version, upstream.rpc))
            raise EngineIncompatible(f"{rpc_server.name} beside it speaks RPC protocol {theirs}, meshnode {ours}")
    quantize, bench, fit_params = (
        _neighbour(server, name) for name in ("llama-quantize", "llama-bench", "llama-fit-params")
    )
    if bench is None:
        losses.append("it has no llama-bench beside it: the speed of the devices is estimated, not measured")
    backend = built.engine.backend if built else "unknown"
    return Engine(
        server, rpc_server, quantize, bench, fit_params, version, rpc_version, backend, patched, origin, tuple(losses)
    )


def _ask_version(server: Path, timeout_s: float, cancelled: threading.Event | None) -> tuple[str, str | None]:
    """The version that `llama-server --version` names, and its commit. Raises EngineIncompatible."""
    try:
        result = run_job(
            [str(server), "--version"], timeout_s=timeout_s, output_limit_bytes=_OUTPUT_BYTES, cancelled=cancelled
        )
    except JobTimeout as error:
        raise EngineIncompatible(f"{server} --version gave {error}") from error
    except OSError as error:
        raise EngineIncompatible(f"{server} cannot be started: {error.strerror}") from error
    found = _VERSION.search(result.text)
    if result.returncode != 0 or found is None:
        words = next((line.strip() for line in result.tail if line.strip()), "nothing")[:80]
        shown = "".join(character if character.isprintable() else "?" for character in words)
        raise EngineIncompatible(f"{server} --version answered {shown!r} with status {result.returncode}")
    commit = re.search(r"commit ([\w-]{1,60})", found[2])
    return found[1], commit[1] if commit else None


def _neighbour(server: Path, name: str) -> Path | None:
    path = server.with_name(name)
    return path if path.is_file() and os.access(path, os.X_OK) else None


def ask_rpc_version(
    program: Path, *, timeout_s: float = RPC_TIMEOUT_S, cancelled: threading.Event | None = None
) -> tuple[int, int, int]:
    """Start `program` on a free port of loopback for a moment and read the protocol version from its HELLO.

    Raises EngineIncompatible and JobCancelled.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    answered = threading.Event()
    answer: list[tuple[int, int, int]] = []
    deadline = time.monotonic() + timeout_s

    def on_tick() -> None:
        if cancelled is not None and cancelled.is_set():
            answered.set()
        elif (version := _hello(port, deadline)) is not None:
            answer.append(version)
            answered.set()

    failure = "ended without answering"
    try:
        result = run_job(
            [str(program), "-H", "127.0.0.1", "-p", str(port)],
            timeout_s=timeout_s,
            output_limit_bytes=_OUTPUT_BYTES,
            on_tick=on_tick,
            cancelled=answered,
        )
        failure = f"ended with status {result.returncode}"
    except JobCancelled:
        if answer:
            return answer[0]
        raise
    except JobTimeout as error:
        failure = f"gave {error}"
    except OSError as error:
        failure = f"cannot be started: {error.strerror}"
    raise EngineIncompatible(f"{program} was asked for its RPC protocol and {failure}")


def _hello(port: int, deadline: float) -> tuple[int, int, int] | None:
    """One try at the handshake; None while nobody listens or the answer is not one."""
    left_s = min(2.0, deadline - time.monotonic())
    if left_s <= 0:
        return None
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=left_s) as connection:
            connection.sendall(_HELLO)
            data = b""
            while len(data) < _HELLO_ANSWER.size and (more := connection.recv(_HELLO_ANSWER.size - len(data))):
                data += more
    except OSError:
        return None
    if len(data) != _HELLO_ANSWER.size:
        return None
    length, major, minor, patch = _HELLO_ANSWER.unpack(data)
    return (major, minor, patch) if length == _HELLO_ANSWER.size - 8 else None


def on_search_path() -> Path | None:
    """A llama-server on PATH."""
    found = shutil.which("llama-server")
    return Path(found).resolve() if found else None
