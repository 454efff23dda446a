"""Fixtures of the model tests: sample GGUF files and a hub on loopback, from the modules beside this file."""

import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from meshnode.models import transfer
from meshnode.models.catalog import load_catalog
from meshnode.models.hub import Hub
from meshnode.models.store import ModelStore

if TYPE_CHECKING:
    from loopback_hub import LoopbackHub

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def fit_params(request: pytest.FixtureRequest) -> Path:
    """llama-fit-params: from the folder MESHNODE_TEST_ENGINE, from PATH, or beside the session's llama-server."""
    folder = os.environ.get("MESHNODE_TEST_ENGINE")
    if folder is None and shutil.which("llama-fit-params") is None:
        folder = str(request.getfixturevalue("engine_bin"))
    tool = shutil.which("llama-fit-params", path=folder)
    if tool is None:
        pytest.skip("llama-fit-params is not built")
    return Path(tool)


@pytest.fixture
def hub_server() -> Iterator["LoopbackHub"]:
    """A hub on loopback with no repositories yet."""
    from loopback_hub import LoopbackHub

    server = LoopbackHub()
    yield server
    server.close()


@pytest.fixture
def store(hub_server: "LoopbackHub", tmp_path: Path) -> ModelStore:
    """A store with an empty cache that talks to the hub on loopback."""
    return ModelStore(tmp_path / "hub", Hub(hub_server.endpoint, timeout_s=5), load_catalog())


@pytest.fixture
def benchmark_s() -> Callable[[Callable[[], object]], float]:
    """The best of three runs, in seconds of this process (other work on the machine does not count)."""

    def measure(work: Callable[[], object]) -> float:
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            work()
            best = min(best, time.process_time() - start)
        return best

    return measure


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""
    monkeypatch.setattr(transfer, "FIRST_WAIT_S", 0.01)


@pytest.fixture(scope="session")
def model_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A whole, readable model of about 2 MB."""
    import gguf_samples

    path = gguf_samples.llama(tmp_path_factory.mktemp("model") / "m.gguf", layers=1, kind="Q4_0")
    header = path.read_bytes()[:60_000]
    return header + random.Random(7).randbytes(path.stat().st_size - len(header))
