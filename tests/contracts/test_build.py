"""What is in the checkout is what the sources give."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import pytest

from tests.lab.evm import artifact
from tools import build_contracts, install_evm

CONTRACTS = [(source, name) for source, names in build_contracts.SOURCES.items() for name in names]
ROOT = build_contracts.ROOT


@pytest.mark.skipif(
    install_evm.compiler() is None and os.environ.get("CI") != "true",
    reason="no compiler: python tools/install_evm.py",
)
def test_the_sources_give_these_artifacts() -> None:
    package = install_evm.compiler()
    assert package is not None
    files = build_contracts.compiled(package)
    assert build_contracts.differing(files) == [], "python -m tools.build_contracts writes them anew"
    folders = {path.parent for path in files}
    there = {path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).glob("*.json")}
    assert there == set(files)


@pytest.mark.parametrize(("source", "name"), CONTRACTS)
def test_an_artifact_says_what_it_is_made_of(source: str, name: str) -> None:
    """Seen without a compiler: a source that was changed and not compiled again."""
    made = artifact(name)
    assert made["source"] == source
    assert made["sourceSha256"] == hashlib.sha256((ROOT / source).read_bytes()).hexdigest()
    wanted = json.loads((ROOT / "tools" / "evm" / "package.json").read_text("utf-8"))["dependencies"]["solc"]
    assert made["compiler"].startswith(f"{wanted}+commit.")
    assert made["bytecode"].startswith("0x") and made["deployedBytecode"][2:64] in made["bytecode"]


@pytest.mark.parametrize("source", build_contracts.SOURCES)
def test_a_source_imports_nothing_and_names_its_compiler(source: str) -> None:
    text = (ROOT / source).read_text("utf-8")
    assert not re.search(r"^\s*import\b", text, re.MULTILINE)
    assert "pragma solidity 0.8.37;" in text
    assert max(map(len, text.splitlines())) <= 120


def test_every_package_is_locked_by_its_hash_and_no_registry_is_named() -> None:
    lock = json.loads((ROOT / "tools" / "evm" / "package-lock.json").read_text("utf-8"))["packages"]
    assert set(lock) > {"node_modules/solc", "node_modules/@foundry-rs/anvil-linux-amd64"}
    for name, package in lock.items():
        if name:
            assert package["integrity"].startswith("sha512-") and "resolved" not in package


def test_a_changed_source_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_contracts, "ROOT", tmp_path)
    (tmp_path / "same.json").write_text("1", "utf-8")
    (tmp_path / "other.json").write_text("2", "utf-8")
    files = {Path("same.json"): "1", Path("other.json"): "1", Path("missing.json"): "1"}
    assert build_contracts.differing(files) == [Path("other.json"), Path("missing.json")]


def test_without_the_installed_programs_it_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert install_evm.compiler() is None and install_evm.anvil() is None
    assert build_contracts.main([]) == 1 and "install_evm.py" in capsys.readouterr().err
    assert install_evm.main() == 1 and "npm is needed" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()
    own = tmp_path / "anvil"
    own.touch(0o700)
    assert install_evm.anvil() == own


def test_a_half_done_installation_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "node").touch(0o700)
    program = install_evm.folder() / install_evm.ANVIL
    program.parent.mkdir(parents=True)
    program.touch()
    assert install_evm.anvil() is None and install_evm.compiler() is None
    (install_evm.folder() / install_evm.STAMP).touch()
    assert install_evm.anvil() == program and install_evm.compiler() == install_evm.folder() / "node_modules/solc"
