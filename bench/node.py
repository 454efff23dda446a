"""A real node for a benchmark, started as a person would start it, and the llama-server behind it.

That llama-server is also called directly: its address is in its command line and its key in its environment, both of
which the same user can read. So both sides of a comparison are answered by one process, and what differs between them
is the gateway alone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import psutil

from bench.load import Target
from bench.machine import ROOT
from meshnode.config import find_places

START_LIMIT_S = 300
UNIX_PATH_LIMIT_BYTES = 110


class BenchNode:
    """A node with fresh state that serves one model, or none. Use it as a context manager; `ready_s` is its time to
    start.

    With `loopback` its llama-server listens on a loopback port instead of a Unix socket, for programs that know
    no Unix sockets: the node does so where paths are too long for a socket. `within` is entered for all that is done to
    it, for a machine of its own (bench/place.py); `environment` is added to its own.
    """

    def __init__(
        self,
        model: str | None,
        *options: str,
        loopback: bool = False,
        within: Callable[[], AbstractContextManager[object]] = nullcontext,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._model = model
        self._options = options
        self._within = within
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")
        home = Path(self._folder.name)
        if loopback:
            home = home / ("long-" * 22)
            (home / "tmp").mkdir(parents=True)
            assert len(str(home)) > UNIX_PATH_LIMIT_BYTES
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MESHNODE_")},
            "MESHNODE_HOME": str(home),
            "MESHNODE_CACHE": str(find_places().cache),
            "MESHNODE_BIND_HOST": "127.0.0.1",
            "MESHNODE_BIND_PORT": "0",
            "MESHNODE_LAN": "off",
            **({"TMPDIR": str(home / "tmp")} if loopback else {}),
            **(environment or {}),
        }
        self.ready: dict[str, Any] = {}
        self.ready_s = 0.0

    def __enter__(self) -> Self:
        begun = time.monotonic()
        with self._within():
            self._process = subprocess.Popen(
                [sys.executable, "-m", "meshnode", "--json", "--port", "0", "--console", "0"]
                + ([] if self._model is None else ["--model", self._model])
                + list(self._options),
                cwd=ROOT,
                env=self.environment,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._process.stdout is not None
        timer = threading.Timer(START_LIMIT_S, self._process.kill)
        timer.start()
        line = self._process.stdout.readline()
        self.ready_s = time.monotonic() - begun
        timer.cancel()
        if not line:
            self.__exit__(None, None, None)
            raise RuntimeError("the node did not start; its own words stand above")
        self.ready = json.loads(line)
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._folder.cleanup()

    def status(self) -> dict[str, Any]:
        """What /api/status says now."""
        return self.control("status")

    def control(self, path: str, body: Mapping[str, object] | None = None, timeout_s: float = 300) -> dict[str, Any]:
        """Ask the control API: /api/PATH, with a body as a person who may change things. Raises urllib's errors."""
        token = json.loads(Path(self.environment["MESHNODE_HOME"], "runtime.json").read_text())["token"]
        headers = {"content-type": "application/json", "x-meshnode-token": token}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.ready['console']}/api/{path}", data, headers)
        with self._within(), urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return dict(json.load(answer))

    def models(self) -> list[dict[str, Any]]:
        """What /v1/models lists."""
        with self._within(), urllib.request.urlopen(f"{self.ready['api']}/models", timeout=30) as answer:
            return list(json.load(answer)["data"])

    @property
    def process(self) -> psutil.Process:
        """The node itself."""
        return psutil.Process(self._process.pid)

    def engine(self) -> psutil.Process:
        """Its llama-server."""
        return psutil.Process(self.status()["models"][0]["engine"]["pid"])

    def gateway_target(self) -> Target:
        """The way through the gateway."""
        name = self.status()["models"][0]["id"]
        return Target("meshnode", model=name, port=urlsplit(self.ready["api"]).port or 0)

    def direct_target(self) -> Target:
        """The way around it."""
        engine = self.engine()
        argv, name = engine.cmdline(), self.status()["models"][0]["id"]
        key = engine.environ()["LLAMA_API_KEY"]
        host = argv[argv.index("--host") + 1]
        if host.endswith(".sock"):
            return Target("direct", model=name, socket=host, key=key)
        return Target("direct", model=name, port=int(argv[argv.index("--port") + 1]), key=key)
