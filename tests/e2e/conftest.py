"""Fixtures of the tests against real nodes: small models, a node that serves several, and llama-server by itself."""

from __future__ import annotations

import os
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from tests.conftest import NodeProcess, StartNode
from tests.e2e.small_models import embedding_model, long_model, rerank_model, tools_model
from tests.e2e.waiting import eventually


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with embedder.gguf, reranker.gguf, tools.gguf and long.gguf."""
    folder = tmp_path_factory.mktemp("models")
    embedding_model(folder / "embedder.gguf")
    rerank_model(folder / "reranker.gguf")
    tools_model(folder / "tools.gguf")
    long_model(folder / "long.gguf")
    return folder


@pytest.fixture(scope="session")
def several_server(start_shared_node: StartNode, small_models: Path) -> NodeProcess:
    """One node for the whole session with models that embed, rerank and call tools."""
    names = ("embedder", "reranker", "tools")
    flags = [flag for name in names for flag in ("--model", str(small_models / f"{name}.gguf"))]
    return start_shared_node(*flags, "--parallel", "2", "--ctx-size", "2048")


@pytest.fixture(scope="session")
def twin() -> Iterator[Callable[[NodeProcess, str], str]]:
    """`twin(node, model)` is the base URL of a llama-server with the very flags of the node's own; it needs no key."""
    known: dict[tuple[str, str], str] = {}
    with ExitStack() as stack:

        def start(node: NodeProcess, model: str) -> str:
            key = (node.base_url, model)
            if key not in known:
                known[key] = stack.enter_context(_llama_server(node, model))
            return known[key]

        yield start


@contextmanager
def _llama_server(node: NodeProcess, model: str) -> Iterator[str]:
    (pid,) = [entry["engine"]["pid"] for entry in node.status()["models"] if entry["id"] == model]
    argv = psutil.Process(pid).cmdline()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    at = argv.index("--host")
    argv[at : at + 2] = ["--host", "127.0.0.1", "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA")}
    with subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            eventually(lambda: _is_healthy(url), within_s=30)
            yield url
        finally:
            process.kill()


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False
