"""Fixtures of the gateway tests: a fake llama-server, a real one, and the gateway in front of them."""

import asyncio
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

import pytest

from meshnode.api.upstream import Connect, over_sockets
from meshnode.models.catalog import DEMO_TARGET
from meshnode.telemetry import LOG
from tests.api import running
from tests.api.fake_llama import FakeLlamaServer


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ends of fake engines are noticed at once, or never."""
    monkeypatch.setattr("meshnode.api.comebacks.NOTICE_S", 0.05)


@pytest.fixture
async def llama() -> AsyncIterator[FakeLlamaServer]:
    async with FakeLlamaServer.running() as fake:
        yield fake


@pytest.fixture
async def gateway(llama: FakeLlamaServer) -> AsyncIterator[running.Gateway]:
    async with running.gateway(running.served(llama)) as started:
        yield started


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What goes to the log of meshnode, which does not propagate once it is configured."""
    monkeypatch.setattr(LOG, "propagate", True)
    return caplog


@pytest.fixture(scope="session")
def real_llama(engine_bin: Path) -> Iterator[Connect]:
    """A llama-server with the demo model, which four requests may use at a time."""
    with TemporaryDirectory(prefix="meshnode-") as folder, TemporaryFile() as words:
        file = str(Path(folder) / "llama.sock")
        model = ["-m", str(DEMO_TARGET), "--alias", "demo", "-c", "16384", "-np", "4", "-t", "1", "--jinja"]
        process = subprocess.Popen(
            [engine_bin / "llama-server", *model, "--no-slots", "--no-ui", "--host", file], stdout=words, stderr=words
        )
        try:
            deadline = time.monotonic() + 30
            while not _healthy(file):
                assert process.poll() is None and time.monotonic() < deadline, "llama-server did not start"
                time.sleep(0.02)  # no event tells of a program that is not ours
            yield over_sockets(partial(asyncio.open_unix_connection, file))
        finally:
            process.terminate()
            process.wait(10)


def _healthy(file: str) -> bool:
    with socket.socket(socket.AF_UNIX) as opened, suppress(OSError):
        opened.connect(file)
        opened.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return opened.recv(100).startswith(b"HTTP/1.1 200")
    return False
