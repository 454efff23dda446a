"""Fixtures shared by all tests: the real engine, and real nodes in processes of their own.

The engine comes from the cache of this user (MESHNODE_CACHE), where `meshnode engine build` puts it; each node gets
a fresh home folder and free ports. Everything is ended by process id.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from meshnode.config import find_places
from meshnode.engine.provision import ensure
from tests.loopback import LOOPBACK_ONLY
from tests.turns import turn

START_LIMIT_S = 60
ONE_AFTER_ANOTHER = ("e2e lab bench", "console")
"""Folders of tests that start programs and look at the clock: those of one text on one worker."""


DEEPEST = sys.getrecursionlimit()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The Python EVM that some tests use raises the limit of recursion; nodes have the usual one, and so do tests."""
    if "contracts" not in item.path.parts:
        sys.setrecursionlimit(DEEPEST)


def pytest_collection_finish() -> None:
    """What thousands of collected tests are made of stays: looking it through at each full collection stops everything
    for 0.4 s, which is what some tests measure.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test that is marked `alone` runs when no other worker runs one."""
    with turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several workers (`-n`), a file stays with one of them. What starts programs and looks at the clock stays
    together on one, so that no two such tests are in each other's way; the rest goes on beside.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            folder, _, _ = nodeid.removeprefix("tests/").partition("/")
            together = next((names for names in ONE_AFTER_ANOTHER if folder in names.split()), "")
            return together or nodeid.partition("::")[0]

    return ByFile(config, log)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def engine_bin() -> Path:
    """The folder with llama-server and its companions; built now if it never was (some minutes)."""
    return ensure(find_places().cache).server.parent


class NodeProcess:
    """A node started from the command line. `ready` is the JSON object that it prints when it answers."""

    def __init__(self, *arguments: str, home: Path, environment: dict[str, str] | None = None) -> None:
        self.home = home
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MESHNODE_")},
            "MESHNODE_HOME": str(home),
            "MESHNODE_CACHE": str(find_places().cache),
            **LOOPBACK_ONLY,
            **(environment or {}),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "meshnode", *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.ready: dict[str, Any] = {}

    @property
    def base_url(self) -> str:
        """Without the /v1."""
        return str(self.ready["api"]).removesuffix("/v1")

    @property
    def console_url(self) -> str:
        return str(self.ready["console"])

    def wait_ready(self) -> NodeProcess:
        """Read the line that says it is ready; fails with the node's own words when it ends or takes too long."""
        assert self.process.stdout is not None
        timer = threading.Timer(START_LIMIT_S, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if not line:
            _, words = self.process.communicate()
            pytest.fail(f"the node did not start (exit {self.process.returncode}): {words}")
        self.ready = json.loads(line)
        if "error" in self.ready:
            pytest.fail(f"the node did not start: {self.ready['error']}")
        return self

    def wait_listening(self) -> NodeProcess:
        """Wait only until the ports are open, which is before any model is loaded; `ready` then has their addresses."""
        file = self.home / "runtime.json"
        deadline = time.monotonic() + START_LIMIT_S
        while not file.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the node does not listen: {self.process.communicate()}")
            time.sleep(0.01)
        facts = json.loads(file.read_text())
        self.ready = {"api": f"{facts['api']}/v1", "console": facts["console"]}
        return self

    def status(self) -> dict[str, Any]:
        """What /api/status says now."""
        with urllib.request.urlopen(f"{self.console_url}/api/status", timeout=10) as answer:
            return dict(json.load(answer))

    def command(self, *arguments: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run `meshnode ARGUMENTS` against this node."""
        return subprocess.run(
            [sys.executable, "-m", "meshnode", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def engine_pids(self) -> list[int]:
        """The processes of llama-server."""
        return [model["engine"]["pid"] for model in self.status()["models"] if model["engine"]]

    def end(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 20) -> tuple[str, str]:
        """Send a signal, wait for the end, and return what was printed."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            words = self.process.communicate()
            pytest.fail(f"the node did not end within {timeout_s} s of {number.name}: {words}")


StartNode = Callable[..., NodeProcess]


def _starter(folder: Path) -> Iterator[StartNode]:
    nodes: list[NodeProcess] = []

    def start(*arguments: str, wait: bool = True, environment: dict[str, str] | None = None) -> NodeProcess:
        home = folder / f"home{len(nodes)}"
        node = NodeProcess("--json", "--port", "0", "--console", "0", *arguments, home=home, environment=environment)
        nodes.append(node)
        return node.wait_ready() if wait else node

    yield start
    for node in nodes:
        node.end()


@pytest.fixture
def start_node(tmp_path: Path, engine_bin: Path) -> Iterator[StartNode]:
    """`start_node("--model", "demo")` starts a node and waits until it is ready; all are ended after the test."""
    yield from _starter(tmp_path)


@pytest.fixture(scope="session")
def start_shared_node(tmp_path_factory: pytest.TempPathFactory, engine_bin: Path) -> Iterator[StartNode]:
    """As `start_node`, for nodes that many tests share; these must be left as they were found."""
    yield from _starter(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="session")
def demo_server(start_shared_node: StartNode) -> NodeProcess:
    """One node for the whole session that serves the demo model."""
    return start_shared_node("--model", "demo", "--parallel", "4")
