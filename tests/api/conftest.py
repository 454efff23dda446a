"""Fixtures of the gateway tests: a fake llama-server, and the gateway in front of it."""

from collections.abc import AsyncIterator

import pytest

from meshnode.telemetry import LOG
from tests.api import running
from tests.api.fake_llama import FakeLlamaServer


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
