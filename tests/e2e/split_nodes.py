"""Nodes that hold one model together: a host that has the file, workers that lend memory, and what can befall them.

Each has so little memory (`MESHNODE_MAX_VRAM`) that the model fits on none alone. They stand on loopback, or each on a
machine of its own (bench/place.py), with their default ports there.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil

from bench.counting import Heard, Streams, Take, by_socket
from bench.place import Place
from bench.wide_demo import Width, write_wide_demo
from meshnode.config import find_places
from tests.conftest import NodeProcess
from tests.e2e.meshes import invite_for
from tests.e2e.waiting import eventually

Value = TypeVar("Value")

MODEL = Width(times=6, hidden_times=6, layers=12)
"""184 MB of weights. With its context that is more than LIMIT; half of it is less, and so two workers are enough."""
LIMIT = "200MB"
SETTINGS = {
    "MESHNODE_THREADS": "1",
    "MESHNODE_CTX_SIZE": "2048",
    "MESHNODE_PARALLEL": "1",
    "MESHNODE_MAX_VRAM": LIMIT,
    "MESHNODE_DRAIN_TIMEOUT": "10",
}
RPC_SERVER = "ggml-rpc-server"
READY_S = 40


def heavy_model(folder: Path) -> str:
    """The file of a model that counts and fits on no node of these tests, in a Hugging Face cache at `folder`."""
    repository, commit = folder / "hub" / "models--counting--heavy", "c0" * 20
    path = repository / "snapshots" / commit / "heavy.gguf"
    path.parent.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    write_wide_demo(path, MODEL)
    return str(path)


class SplitMesh:
    """Nodes by name, on machines of the same names. `end` ends them all.

    Each has a cache of its own, with nothing but the engine in it; `models` is the Hugging Face cache of every disk.
    """

    def __init__(self, place: Place, folder: Path, models: Path) -> None:
        self._place = place
        self._folder = folder
        self._models = models
        self.nodes: dict[str, NodeProcess] = {}
        self._names: dict[str, str] = {}

    def start(self, name: str, *arguments: str, wait: bool = True, **environment: str) -> NodeProcess:
        """`meshnode ARGUMENTS` on that machine, in the mesh of the others; the same again after it has ended."""
        by_default = {"MESHNODE_BIND_HOST": "::", "MESHNODE_BIND_PORT": "9337", "MESHNODE_LAN": "auto"}
        ports = ["--port", "0", "--console", "0"]
        if self._place.is_far:
            ports = []
            environment = {**by_default, **environment}
        home, cache = self._folder / name, self._folder / f"cache-{name}"
        for kept in ("engine", "benchmarks"):
            cache.mkdir(exist_ok=True)
            if not (cache / kept).exists():
                (cache / kept).symlink_to(find_places().cache / kept)
        environment = {"MESHNODE_CACHE": str(cache), "HF_HOME": str(self._models), **environment}
        joining: list[str] = []
        if self._names and not home.exists():
            founder = next(iter(self._names.values()))
            joining = ["--join", self.at(founder, partial(invite_for, uses=1))]
        with self._place.inside(name):
            node = NodeProcess(
                *("--json", "--name", name, *ports, *joining, *arguments),
                home=home,
                environment={**SETTINGS, "MESHNODE_STANDBY": "off", **environment},
            )
            self.nodes[name] = node
            (node.wait_ready if wait else node.wait_listening)()
            self._names[node.status()["node"]["id"]] = name
            return node

    def see(self, node: NodeProcess, look: Callable[[NodeProcess], Value]) -> Value:
        """What `look` finds at a node, from inside its machine."""
        name = next(name for name, each in self.nodes.items() if each is node)
        with self._place.inside(name):
            return look(node)

    def at(self, name: str, look: Callable[[NodeProcess], Value]) -> Value:
        """The same, by the name of the node."""
        return self.see(self.nodes[name], look)

    def command(self, name: str, *arguments: str) -> tuple[int, str]:
        """Status and output of `meshnode ARGUMENTS` there; what it says of errors comes after what it prints."""
        done = self.at(name, lambda node: node.command(*arguments))
        return done.returncode, done.stdout + done.stderr

    def end(self) -> None:
        """All nodes, also those that stand still."""
        for name in list(self.nodes):
            self.kill(name)

    def kill(self, name: str) -> None:
        """The power goes: the node and its engines."""
        node = self.nodes.pop(name)
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(node.process.pid)
            for each in (*process.children(recursive=True), process):
                with suppress(psutil.NoSuchProcess):
                    each.kill()
        node.process.communicate()

    # --- the model ------------------------------------------------------------------------------------------

    def entry(self, host: str = "host") -> dict[str, Any]:
        """What the host says of its model."""
        return dict(self.at(host, NodeProcess.status)["models"][0])

    def workers(self, host: str = "host") -> list[str]:
        """The names of the workers in the plan in force, in its order."""
        entry = self.entry(host)
        stages = (entry["plan"] or {}).get("stages", ()) if entry["state"] == "ready" else ()
        return [self._names[stage["node"]] for stage in stages]

    def decision(self, model: str, host: str = "host") -> dict[str, Any]:
        """What `meshnode plan MODEL --json` would say at the host now, without the start of a program."""
        node = self.nodes[host]
        token = json.loads((node.home / "runtime.json").read_text())["token"]
        headers = {"content-type": "application/json", "x-meshnode-token": token}
        request = urllib.request.Request(f"{node.console_url}/api/plan", json.dumps({"model": model}).encode(), headers)
        with self._place.inside(host), urllib.request.urlopen(request, timeout=30) as answer:
            return dict(json.load(answer)["decision"])

    def until_known(self, model: str, workers: Collection[str], host: str = "host") -> None:
        """Wait until the host counts on each of these, as a worker or as a spare."""

        def known() -> bool:
            verdicts = {each["name"]: each["verdict"] for each in self.decision(model, host)["candidates"]}
            return all(verdicts.get(name) in ("worker", "spare") for name in workers)

        eventually(known, within_s=READY_S)

    def until_split(self, count: int, host: str = "host") -> list[str]:
        """Wait until the model is served by that many workers, none of which has gone; their names, in order."""

        def found() -> list[str]:
            workers = self.workers(host)
            return workers if len(workers) == count and set(workers) <= set(self.nodes) else []

        return eventually(found, within_s=READY_S)

    def rpc_server(self, name: str) -> psutil.Process:
        """The rpc-server of a worker."""

        def find() -> psutil.Process | None:
            for child in psutil.Process(self.nodes[name].process.pid).children(recursive=True):
                if child.name() == RPC_SERVER:
                    return child
            return None

        found = eventually(find)
        assert found is not None
        return found

    def streams(self, name: str, model: str, last: int, count: int = 1) -> Streams:
        """Answers that count, asked of that node."""

        def listen(heard: Heard, take: Take) -> None:
            with self._place.inside(name):
                by_socket(self.nodes[name].base_url)(heard, take)

        return Streams(listen, [(model, last)] * count)


def decision_of(output: str) -> dict[str, Any]:
    """The decision in what `meshnode plan --json` prints."""
    return dict(json.loads(output)["decision"])
