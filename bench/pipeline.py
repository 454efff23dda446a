"""Real nodes that run one model together, for a benchmark: a host, its workers, and the way to the host's llama-server.

The workers found the mesh and lend what they have; the host joins last and spreads its model over them as it was told
(`--tensor-split`). What the same placement does with llama.cpp's own RPC is `stock_line`: the command lines of the
processes that the nodes have started.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from http.client import HTTPException
from types import TracebackType
from typing import Any, Self

import psutil

from bench.disk import home
from bench.line import LineShape
from bench.llama import Decoded, Llama
from bench.node import BenchNode
from bench.place import Place
from bench.stock import Line

RPC_SERVER = "ggml-rpc-server"
CHANGED_WITHIN_S = 60
LOOK_EVERY_S = 0.005
CONTEXT_TOKENS = 8192
ENGINE_OPTIONS = ("--parallel", "1", "--threads", "1")
LAYERS = 12


def far(delay_ms: float) -> LineShape:
    """A line with that delay one way, and nothing else."""
    return LineShape(delay_s=delay_ms / 1000)


def machines(workers: int) -> list[str]:
    """The host, and that many workers."""
    return ["host", *(f"w{number}" for number in range(1, workers + 1))]


def spread(stages: int, layers: int = LAYERS) -> tuple[int, ...]:
    """All layers over so many workers, as evenly as whole layers go."""
    return tuple(layers * (stage + 1) // stages - layers * stage // stages for stage in range(stages))


class Pipeline:
    """A host and its workers on the machines of a place, for a `with` block; the model is ready when it begins.

    The first machine is the host's. `layers` are those of each worker; () leaves all to the planner. Further machines
    get workers too, which are spare then. On a single machine it is a node alone.
    """

    def __init__(
        self, place: Place, model: str, layers: Sequence[int] = (), *options: str, context: int = CONTEXT_TOKENS
    ) -> None:
        self._place = place
        self._model = model
        self._options = ["--ctx-size", str(context), *ENGINE_OPTIONS, *options]
        if len(place.names) > 1:
            self._options += ["--split"]
        if layers:
            self._options += ["--tensor-split", ",".join(map(str, layers))]
        self._stack = ExitStack()
        self._worker_stacks: dict[str, ExitStack] = {}
        self.workers: dict[str, BenchNode] = {}
        self.host: BenchNode

    def __enter__(self) -> Self:
        host, *workers = self._place.names
        try:
            for name in workers:
                self.start_worker(name)
            self.host = self._stack.enter_context(self._node(host, self._model, *self._options, "--no-draft"))
            # A host that has just joined does not know the others yet: until then its model waits for machines.
            self._until(lambda: self.entry()["state"] in ("ready", "failed"))
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _node(self, name: str, model: str | None, *options: str) -> BenchNode:
        known = next(iter(self.workers.values()), None)
        joining = [] if known is None else ["--join", str(known.control("invite", {"may_invite": True})["token"])]
        if "--draft" in options:
            options = tuple(option for option in options if option != "--no-draft")
        return BenchNode(
            model,
            *options,
            *joining,
            within=partial(self._place.inside, name),
            environment={
                "MESHNODE_BIND_HOST": self._place.address(name),
                "MESHNODE_NAME": name,
                "HF_HOME": str(home()),
            },
        )

    def start_worker(self, name: str) -> BenchNode:
        """One more worker, or the same again after it was killed."""
        node = self._node(name, None, *ENGINE_OPTIONS, "--no-standby")
        own = self._worker_stacks[name] = self._stack.enter_context(ExitStack())
        self.workers[name] = own.enter_context(node)
        return node

    def end_worker(self, name: str) -> None:
        """Clear away what is left of a worker."""
        del self.workers[name]
        self._worker_stacks.pop(name).close()

    # --- what it is now -------------------------------------------------------------------------------------

    def entry(self) -> dict[str, Any]:
        """What the host says of its model."""
        return dict(self.host.status()["models"][0])

    def llama(self) -> Llama:
        """The host's llama-server itself."""
        process = self.host.engine()
        argv = process.cmdline()
        return Llama.at_socket(argv[argv.index("--host") + 1], process.environ()["LLAMA_API_KEY"])

    def decode(self, tokens: int) -> Decoded:
        """One answer of the host's llama-server.

        Asked around the gateway the host takes itself for idle, and may put a better plan into force in the middle of
        it: then it is asked once more.
        """
        try:
            return self.llama().decode(tokens)
        except (OSError, HTTPException, RuntimeError):
            self._until(lambda: self.entry()["state"] == "ready")
            return self.llama().decode(tokens)

    def stages(self) -> list[str]:
        """The names of the workers that are in the plan, in its order."""
        names = {node.status()["node"]["id"]: name for name, node in self.workers.items()}
        return [names[stage["node"]] for stage in self.entry()["plan"]["stages"]]

    def rpc_server(self, name: str) -> psutil.Process:
        """The rpc-server of a worker that works. Raises RuntimeError where there is none."""
        for child in self.workers[name].process.children(recursive=True):
            if child.name() == RPC_SERVER:
                return child
        raise RuntimeError(f"{name} runs no {RPC_SERVER}")

    def stock_line(self) -> Line:
        """The same placement for llama.cpp's own RPC."""
        engine, stages = self.host.engine(), self.stages()
        workers = [self.rpc_server(name).cmdline() for name in stages]
        return Line(engine.cmdline(), workers, engine.environ(), [self._place.names[0], *stages])

    # --- what is done to it ---------------------------------------------------------------------------------

    def reload_s(self) -> tuple[float, float]:
        """Unload the model and load it again: the seconds from the command until it is ready, and those of them from
        the start of llama-server on.
        """
        name = self.entry()["id"]
        self.host.control("unload", {"model": name})
        self._until(lambda: not self.host.status()["models"])
        begun = time.monotonic()
        self.host.control("load", {"model": self._model})
        self._until(lambda: self.entry()["state"] in ("ready", "failed"))
        taken_s = time.monotonic() - begun
        if self.entry()["state"] == "failed":
            raise RuntimeError(f"the model was not loaded: {self.entry()}")
        return taken_s, float(self.entry()["engine"]["load_s"])

    def until_ready(self, workers: int) -> None:
        """Wait until the plan in force has so many workers, and the host knows of all that there are."""
        ids = {node.status()["node"]["id"] for node in self.workers.values()}

        def ready() -> bool:
            entry = self.entry()
            alive = {peer["id"] for peer in self.host.status()["mesh"]["peers"] if peer["state"] == "alive"}
            return (
                ids <= alive and entry["state"] == "ready" and len((entry["plan"] or {}).get("stages", ())) == workers
            )

        self._until(ready)

    def _until(self, check: Callable[[], bool]) -> None:
        deadline = time.monotonic() + CHANGED_WITHIN_S
        while not check():
            if time.monotonic() > deadline:
                raise RuntimeError(f"after {CHANGED_WITHIN_S} s the host says {self.host.status()['models']}")
            time.sleep(LOOK_EVERY_S)
