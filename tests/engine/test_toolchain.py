"""Compilers that compile, compilers that only look like one, and the wheels of cmake and ninja."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from meshnode.engine import toolchain
from meshnode.engine.packages import FetchFailed
from meshnode.engine.toolchain import find_compiler, find_toolchain, install_line
from meshnode.errors import SourceUnavailable, ToolchainMissing
from meshnode.telemetry import Progress

OS_RELEASE = {
    "debian": ('ID=debian\nVERSION_ID="12"\n', "apt-get install -y build-essential"),
    "mint": ('ID=linuxmint\nID_LIKE="ubuntu debian"\n', "apt-get install -y build-essential"),
    "rocky": ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "dnf install -y gcc gcc-c++"),
    "manjaro": ("ID=manjaro\nID_LIKE=arch\n", "pacman -S --needed base-devel"),
    "tumbleweed": ('ID="opensuse-tumbleweed"\nID_LIKE="opensuse suse"\n', "zypper install -y gcc gcc-c++"),
    "alpine": ("ID=alpine\n", "apk add build-base linux-headers"),
}


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(stat.S_IRWXU)
    return path


def test_the_compiler_of_this_machine_is_found_and_named() -> None:
    compiler = find_compiler({"PATH": os.environ["PATH"]})
    assert Path(compiler.cc).is_file() and Path(compiler.cxx).is_file()
    family, version = compiler.name.split()
    assert family in ("gcc", "clang", "appleclang")
    if family == "gcc":
        assert version == subprocess.check_output([compiler.cxx, "-dumpfullversion"], text=True).strip()


def test_cc_and_cxx_go_first() -> None:
    gcc, gxx = shutil.which("gcc"), shutil.which("g++")
    if gcc is None or gxx is None:
        pytest.skip("needs gcc")
    compiler = find_compiler({"PATH": os.environ["PATH"], "CC": gcc, "CXX": "g++"})
    assert (compiler.cc, compiler.cxx) == (gcc, gxx)
    assert find_compiler({"PATH": os.environ["PATH"], "CXX": "g++"}).cc == gcc, "the sibling is found"


def test_a_cxx_that_is_not_there_is_not_replaced_behind_the_users_back() -> None:
    with pytest.raises(ToolchainMissing, match="g\\+\\+-99 .from CC and CXX. is not there"):
        find_compiler({"PATH": os.environ["PATH"], "CXX": "g++-99"})


def test_a_broken_compiler_is_passed_over(tmp_path: Path) -> None:
    real = find_compiler({"PATH": os.environ["PATH"]})
    script(tmp_path / "c++", "echo 'fatal error: no standard library here' >&2; exit 1")
    script(tmp_path / "cc", "exit 0")
    (tmp_path / "g++").symlink_to(real.cxx)
    (tmp_path / "gcc").symlink_to(real.cc)
    assert find_compiler({"PATH": f"{tmp_path}:{os.environ['PATH']}"}).cxx == str(tmp_path / "g++")


@pytest.mark.parametrize("text", ["exit 0", "echo 'error: cannot do that'; exit 1", "kill -9 $$"])
def test_a_compiler_that_makes_nothing_is_no_compiler(tmp_path: Path, text: str) -> None:
    script(tmp_path / "c++", text)
    script(tmp_path / "cc", text)
    with pytest.raises(ToolchainMissing, match="c\\+\\+ cannot compile C\\+\\+17"):
        find_compiler({"PATH": str(tmp_path)})


def test_a_compiler_that_hangs_is_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "PROBE_TIMEOUT_S", 0.3)
    script(tmp_path / "c++", "exec sleep 1000")
    script(tmp_path / "cc", "exec sleep 1000")
    with pytest.raises(ToolchainMissing, match="no end after"):
        find_compiler({"PATH": f"{tmp_path}:/bin"} | {"CXX": "c++"})


@pytest.mark.parametrize("system", OS_RELEASE)
def test_a_machine_without_a_compiler_is_told_the_one_line(tmp_path: Path, system: str) -> None:
    text, line = OS_RELEASE[system]
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text(text)
    with pytest.raises(ToolchainMissing) as caught:
        find_compiler({"PATH": str(tmp_path)}, root=tmp_path)
    assert line in caught.value.fix and "meshnode engine build" in caught.value.fix
    assert caught.value.fix.startswith("sudo ") == (os.geteuid() != 0)


def test_an_unknown_system_is_told_what_to_look_for(tmp_path: Path) -> None:
    assert "C++17 compiler" in install_line(tmp_path)


def test_tools_on_path_are_used_and_old_ones_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "bin" / "ninja", "echo 1.12.1")
    script(tmp_path / "bin" / "cmake", "echo cmake version 3.10.2")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    installed: list[str] = []

    def install(requirements: list[str], *, folder: Path, cancelled: object) -> None:
        installed.extend(requirements)
        script(folder / "cmake" / "data" / "bin" / "cmake", "echo cmake version 4.0.1")
        script(folder / "bin" / "cmake", "exit 1")

    monkeypatch.setattr(toolchain, "install_wheels", install)
    reports: list[Progress] = []
    for _ in range(2):
        tools = find_toolchain(tmp_path / "cache", report=reports.append)
        assert tools.ninja == str(tmp_path / "bin" / "ninja")
        assert Path(tools.cmake).is_relative_to(tmp_path / "cache" / "tools") and "data" in tools.cmake
    assert installed == [toolchain.CMAKE_WHEEL], "fetched once"
    assert [report.finished for report in reports] == [False, True]


def test_a_wheel_that_cannot_be_fetched_or_run_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise FetchFailed("the package index cannot be reached")

    monkeypatch.setattr(toolchain, "NINJA_MINIMUM", (99, 0))
    monkeypatch.setattr(toolchain, "install_wheels", fail)
    with pytest.raises(SourceUnavailable, match="ninja is missing here .* cannot be reached"):
        find_toolchain(tmp_path)
    monkeypatch.setattr(
        toolchain, "install_wheels", lambda _, folder, cancelled: script(folder / "bin/ninja", "exit 1")
    )
    with pytest.raises(SourceUnavailable, match="does not run here"):
        find_toolchain(tmp_path)
