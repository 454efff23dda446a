"""A neighbourhood for every test that asks for one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.mesh.neighbourhood import Neighbourhood, neighbourhood


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Neighbourhood]:
    """Nodes that are stopped after the test."""
    async with neighbourhood(tmp_path) as found:
        yield found
