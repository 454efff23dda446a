"""Fixtures of the model tests: sample GGUF files and a hub on loopback, from the modules beside this file."""

import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def fit_params(request: pytest.FixtureRequest) -> Path:
    """llama-fit-params of the built engine: MESHNODE_TEST_ENGINE, the session's engine folder, or PATH."""
    folder = os.environ.get("MESHNODE_TEST_ENGINE")
    if folder is None and "engine_bin" in request.session._fixturemanager._arg2fixturedefs:
        folder = str(request.getfixturevalue("engine_bin"))
    tool = shutil.which("llama-fit-params", path=folder)
    if tool is None:
        pytest.skip("llama-fit-params is not built")
    return Path(tool)
