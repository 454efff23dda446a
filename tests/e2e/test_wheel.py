"""A wheel, installed into an empty environment away from the checkout, brings all that the demo needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from meshnode.config import find_places
from meshnode.engine.source import read_upstream
from tests.loopback import LOOPBACK_ONLY

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]


def run(*argv: str | Path, cwd: Path, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MESHNODE_", "PYTHON"))}
    done = subprocess.run(
        [str(word) for word in argv], cwd=cwd, env=inherited | environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    (made,) = folder.glob("meshnode-*.whl")
    return made


def test_the_wheel_holds_what_is_not_python(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    wanted = {
        "meshnode/models/demo/target.gguf",
        "meshnode/models/demo/draft.gguf",
        "meshnode/models/catalog.json",
        "meshnode/engine/guard.py",
        "meshnode/engine/patches/UPSTREAM",
        "meshnode/engine/patches/series",
        *(f"meshnode/engine/patches/{patch.name}" for patch in read_upstream().patches),
        "meshnode/api/openapi.json",
        "meshnode/py.typed",
        *(str(file.relative_to(ROOT)) for file in (ROOT / "meshnode/console/static").rglob("*") if file.is_file()),
    }
    assert wanted <= names
    assert not [name for name in names if name.startswith(("tests/", "bench/", "docs/", "tools/", "docker/"))]
    assert wheel.stat().st_size < 16 << 20


def test_an_installed_wheel_serves_the_demo(wheel: Path, tmp_path: Path, engine_bin: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    run(python, "-m", "pip", "install", "--quiet", "--constraint", constraints, wheel, cwd=tmp_path)
    where = run(python, "-c", "import meshnode; print(meshnode.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(environment)
    node = subprocess.Popen(
        [environment / "bin" / "meshnode", "--json", "--model", "demo", "--port", "0", "--console", "0"],
        cwd=tmp_path,
        env={
            **os.environ,
            **LOOPBACK_ONLY,
            "MESHNODE_HOME": str(tmp_path / "home"),
            "MESHNODE_CACHE": str(find_places().cache),
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert node.stdout is not None
        ready = json.loads(node.stdout.readline())
        question = {"model": "demo", "messages": [{"role": "user", "content": "count from 1 to 20"}]}
        answer = run("curl", "-sS", f"{ready['api']}/chat/completions", "-d", json.dumps(question), cwd=tmp_path)
        text = json.loads(answer)["choices"][0]["message"]["content"]
        assert text == ", ".join(str(number) for number in range(1, 21))
    finally:
        node.terminate()
        node.communicate(timeout=30)
