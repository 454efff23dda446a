"""llama.cpp's RPC as it comes, beside ours in one run: the library without any patch, over plain TCP.

    python -m bench.stock        compiles the library once and prints its folder

Only the RPC library is another one: the engine's own programs load it instead of the patched one when LD_LIBRARY_PATH
names its folder, as they find their libraries through RUNPATH, which comes after it. Everything else (llama-server,
ggml, the processor's code) is the same on both sides. The library is kept in the cache, named after the engine that it
belongs to and after its source.
"""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.llama import Llama
from bench.place import Place
from meshnode.config import find_places
from meshnode.engine.source import prepare_source, read_upstream

SOURCES = ("ggml-rpc.cpp", "transport.cpp")
LIBRARY = "libggml-rpc.dylib" if sys.platform == "darwin" else "libggml-rpc.so"
PATH = "DYLD_LIBRARY_PATH" if sys.platform == "darwin" else "LD_LIBRARY_PATH"
FLAGS = (
    *("-O3", "-DNDEBUG", "-std=gnu++17", "-fPIC", "-shared"),
    # As ggml_add_backend_library() sets them for a shared build.
    *("-DGGML_BACKEND_BUILD", "-DGGML_BACKEND_SHARED", "-DGGML_BUILD", "-DGGML_SHARED", "-D_GNU_SOURCE"),
)
LISTENS_WITHIN_S = 10


def stock_folder(engine: Path) -> Path:
    """The folder with the library for the programs in `engine`; compiled when it is not there (about 5 s).

    Raises subprocess.CalledProcessError with the compiler's words, and SourceUnavailable.
    """
    cache = find_places().cache
    source = prepare_source(cache, replace(read_upstream(), patches=())) / "ggml"
    parts = [source / "src" / "ggml-rpc" / name for name in SOURCES]
    mark = hashlib.sha256(engine.name.encode() + b"".join(part.read_bytes() for part in parts)).hexdigest()[:12]
    folder = cache / "bench" / f"stock-rpc-{mark}"
    if not (folder / LIBRARY).exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            made = Path(aside) / LIBRARY
            _compile(source, engine, parts, made)
            made.replace(folder / LIBRARY)
    return folder


def _compile(source: Path, engine: Path, parts: list[Path], made: Path) -> None:
    named = f"-Wl,-install_name,@rpath/{LIBRARY}" if sys.platform == "darwin" else f"-Wl,-soname,{LIBRARY}"
    includes = [f"-I{folder}" for folder in (source / "include", source / "src", source / "src" / "ggml-rpc")]
    command = [os.environ.get("CXX", "c++"), *FLAGS, *includes, *map(str, parts)]
    command += [f"-L{engine}", "-lggml-base", named, "-o", str(made)]
    subprocess.run(command, check=True, capture_output=True, text=True)


@dataclass(frozen=True, slots=True)
class Line:
    """What a stock run takes over from ours: the command lines of llama-server and of each worker's rpc-server.

    Of these only the addresses change. `environment` is that of llama-server; `hosts` are the machine of llama-server
    and those of the rpc-servers, in order.
    """

    server: Sequence[str]
    workers: Sequence[Sequence[str]]
    environment: Mapping[str, str]
    hosts: Sequence[str]

    def without_draft(self) -> Line:
        """The same without what makes it draft; each such option of llama-server has one value."""
        argv = list(self.server)
        for place in range(len(argv) - 1, 0, -1):
            if argv[place].startswith("--spec-"):
                del argv[place : place + 2]
        return replace(self, server=argv)


class StockSplit:
    """llama-server and its rpc-servers over plain TCP, for a `with` block; ready when it begins.

    `load_s` is the time from the start of llama-server until it is healthy; the rpc-servers run already then.
    """

    def __init__(self, line: Line, place: Place) -> None:
        self._line = line
        self._place = place
        self._stack = ExitStack()
        self.load_s = 0.0
        self.llama: Llama

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self) -> None:
        line, place = self._line, self._place
        engine = Path(line.server[0]).parent
        environment = {name: value for name, value in line.environment.items() if not name.startswith("GGML_RPC_")}
        environment[PATH] = str(stock_folder(engine))
        host, *workers = line.hosts
        addresses = []
        for name, argv in zip(workers, line.workers, strict=True):
            port = _free_port(place, name)
            own = {"-H": place.address(name), "--host": place.address(name), "-p": str(port), "--port": str(port)}
            self._run(name, with_values(argv, own), environment)
            _until_listening(place, name, port)
            addresses.append(f"{place.address(name)}:{port}")
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="stock-")))
        path = str(folder / "llama.sock")
        begun = time.monotonic()
        argv = with_values(line.server, {"--rpc": ",".join(addresses), "--host": path})
        self._run(host, argv, environment, log=folder / "log")
        self.llama = Llama.at_socket(path, environment.get("LLAMA_API_KEY", ""))
        self.llama.until_healthy()
        self.load_s = time.monotonic() - begun

    def _run(self, name: str, argv: Sequence[str], environment: Mapping[str, str], log: Path | None = None) -> None:
        with self._place.inside(name), (log or Path(os.devnull)).open("wb") as output:
            process = subprocess.Popen(argv, env=environment, stdout=output, stderr=subprocess.STDOUT)

        def end() -> None:
            process.kill()
            process.wait()

        self._stack.callback(end)


def with_values(argv: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """A command line with other values for those of its options that are named."""
    changed = list(argv)
    for place, argument in enumerate(argv[:-1]):
        if argument in values:
            changed[place + 1] = values[argument]
    return changed


def _free_port(place: Place, name: str) -> int:
    with place.inside(name), closing(socket.socket()) as probe:
        probe.bind((place.address(name), 0))
        return int(probe.getsockname()[1])


def _until_listening(place: Place, name: str, port: int) -> None:
    """Until the port is taken. Not by connecting: that would take the turn of the one client that it serves."""
    deadline = time.monotonic() + LISTENS_WITHIN_S
    while time.monotonic() < deadline:
        with place.inside(name), closing(socket.socket()) as probe:
            try:
                probe.bind((place.address(name), port))
            except OSError:
                return
        time.sleep(0.01)
    raise RuntimeError("an rpc-server does not listen")


if __name__ == "__main__":
    from meshnode.engine.provision import ensure

    try:
        print(stock_folder(ensure(find_places().cache).server.parent))
    except subprocess.CalledProcessError as reason:
        sys.exit(f"stock: {reason.stderr}")
