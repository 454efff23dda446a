"""The doctor looks at this very machine, and at ones that are made to be wrong."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from meshnode.cli.doctor import EXIT_FAILED
from meshnode.cli.main import root

pytestmark = pytest.mark.engine


def run(*arguments: str, home: Path, **environment: str) -> tuple[int, dict[str, dict[str, str]]]:
    result = CliRunner().invoke(root, [*arguments, "doctor", "--json"], env={"MESHNODE_HOME": str(home), **environment})
    facts = json.loads(result.stdout)
    assert facts["schema"] == 1
    assert facts["ok"] == (result.exit_code == 0)
    return result.exit_code, {finding["check"]: finding for finding in facts["findings"]}


def test_a_machine_with_a_built_engine_is_well(tmp_path: Path, engine_bin: Path) -> None:
    code, found = run("--port", "0", "--console", "0", home=tmp_path)
    assert code == 0
    assert found["engine"]["verdict"] == "ok" and "llama.cpp" in found["engine"]["seen"]
    assert found["devices"]["verdict"] == "ok" and found["home"]["verdict"] in ("ok", "warn")
    assert not list(tmp_path.iterdir())


def test_a_taken_port_fails_with_a_fix(tmp_path: Path, engine_bin: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        code, found = run("--port", str(holder.getsockname()[1]), "--console", "0", home=tmp_path)
    assert code == EXIT_FAILED
    assert found["API port"]["verdict"] == "fail" and "--port" in found["API port"]["fix"]


def test_no_compiler_and_no_engine_fail_with_the_line_that_installs_one(tmp_path: Path) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    code, found = run(
        "--port", "0", "--console", "0", home=tmp_path / "home", MESHNODE_CACHE=str(tmp_path / "cache"),
        PATH=str(empty), CC="", CXX="",
    )  # fmt: skip
    assert code == EXIT_FAILED
    assert found["engine"]["verdict"] == "fail" and found["engine"]["fix"]


def test_people_see_a_line_for_each_check_and_a_verdict(tmp_path: Path, engine_bin: Path) -> None:
    result = CliRunner().invoke(
        root, ["--port", "0", "--console", "0", "doctor"], env={"MESHNODE_HOME": str(tmp_path), "NO_COLOR": "1"}
    )
    assert result.output.splitlines()[-1] == "nothing failed"
    assert "ok   python" in result.output and "\x1b" not in result.output
