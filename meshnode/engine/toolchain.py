"""The tools that build the engine: a C and a C++ compiler of the system, cmake and ninja.

A compiler counts when it really compiles. cmake and ninja come from PyPI wheels where the machine has none or
too old ones; a compiler cannot be had that way, so its absence ends in the one line that installs it.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from meshnode.engine.job import JobTimeout, run_job
from meshnode.engine.packages import FetchFailed, install_wheels
from meshnode.errors import SourceUnavailable, ToolchainMissing
from meshnode.telemetry import Progress, Report, silent

CMAKE_MINIMUM = (3, 24)
NINJA_MINIMUM = (1, 10)
CMAKE_WHEEL = "cmake==4.3.4"
NINJA_WHEEL = "ninja==1.13.0"
PROBE_TIMEOUT_S = 60.0

_ANSWER_BYTES = 256 << 10
_PROGRAM_CXX = """
#include <filesystem>
#include <optional>
#include <string_view>
#include <thread>
int main(int argc, char ** argv) {
    std::optional<std::string_view> name = argv[0];
    std::thread idle([] {});
    idle.join();
    if constexpr (sizeof(void *) == 8) { return std::filesystem::path(*name).empty() + argc - argc; }
}
"""
_PROGRAM_C = "#include <stdatomic.h>\n#include <math.h>\nint main(void) { atomic_int n = 0; return (int) sqrt(n); }\n"
_SIBLINGS = {"c++": "cc", "g++": "gcc", "clang++": "clang"}
_INSTALL_LINES = (
    (("debian", "ubuntu"), "apt-get update && {sudo}apt-get install -y build-essential"),
    (("fedora", "rhel", "centos", "amzn"), "dnf install -y gcc gcc-c++"),
    (("arch",), "pacman -S --needed base-devel"),
    (("suse", "opensuse"), "zypper install -y gcc gcc-c++"),
    (("alpine",), "apk add build-base linux-headers"),
    (("void",), "xbps-install -S base-devel"),
    (("gentoo",), "emerge sys-devel/gcc"),
)


@dataclass(frozen=True, slots=True)
class Compiler:
    """A pair of compilers that compile. `name` is "gcc 12.2.0": part of the engine's cache key."""

    cc: str
    cxx: str
    name: str


@dataclass(frozen=True, slots=True)
class Toolchain:
    """Everything that a build starts."""

    compiler: Compiler
    cmake: str
    ninja: str


def find_toolchain(
    cache: Path,
    *,
    environ: Mapping[str, str] = os.environ,
    report: Report = silent,
    cancelled: threading.Event | None = None,
) -> Toolchain:
    """Find the compiler (CC and CXX of `environ` first), cmake and ninja; fetch the last two if need be.

    Raises ToolchainMissing, SourceUnavailable (a wheel could not be fetched) and JobCancelled.
    """
    compiler = find_compiler(environ, cancelled=cancelled)
    cmake = _tool("cmake", CMAKE_MINIMUM, CMAKE_WHEEL, cache, report, cancelled)
    ninja = _tool("ninja", NINJA_MINIMUM, NINJA_WHEEL, cache, report, cancelled)
    return Toolchain(compiler, cmake, ninja)


def find_compiler(
    environ: Mapping[str, str] = os.environ, *, root: Path = Path("/"), cancelled: threading.Event | None = None
) -> Compiler:
    """The first pair of compilers that builds a C++17 program with threads. Raises ToolchainMissing."""
    named = environ.get("CXX") or environ.get("CC")
    pairs = [(cc, cxx) for cxx, cc in _SIBLINGS.items()]
    if named:
        pairs = [(environ.get("CC") or _SIBLINGS.get(environ["CXX"], "cc"), environ.get("CXX") or "c++")]
    complaint = ""
    for cc, cxx in pairs:
        found_cc = shutil.which(cc, path=environ.get("PATH"))
        found_cxx = shutil.which(cxx, path=environ.get("PATH"))
        if found_cc is None or found_cxx is None:
            if named:
                complaint = f"{cc if found_cc is None else cxx} (from CC and CXX) is not there"
            continue
        trouble = _compiles(found_cxx, "probe.cpp", _PROGRAM_CXX, ("-std=c++17", "-pthread"), cancelled)
        trouble = trouble or _compiles(found_cc, "probe.c", _PROGRAM_C, ("-lm",), cancelled)
        if trouble is None:
            return Compiler(found_cc, found_cxx, _compiler_name(found_cxx, cancelled))
        complaint = complaint or f"{cxx} cannot compile C++17: {trouble}"
    raise ToolchainMissing(complaint, fix=f"{install_line(root)}   then run: meshnode engine build")


def _compiles(
    program: str, name: str, text: str, flags: tuple[str, ...], cancelled: threading.Event | None
) -> str | None:
    """Compile and link `text`; None when that works, else the compiler's first error."""
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / name).write_text(text)
        try:
            result = run_job(
                [program, name, "-o", "probe", *flags],
                cwd=Path(work),
                cancelled=cancelled,
                timeout_s=PROBE_TIMEOUT_S,
                output_limit_bytes=_ANSWER_BYTES,
            )
        except (OSError, JobTimeout) as error:
            return str(error)
        if result.returncode == 0 and (Path(work) / "probe").is_file():
            return None
        errors = [line for line in result.tail if "error" in line.lower()] or list(result.tail)
        return errors[0].strip()[:200] if errors else f"exit status {result.returncode}"


def _compiler_name(cxx: str, cancelled: threading.Event | None) -> str:
    banner = _first_answer([cxx, "--version"], cancelled)
    version = re.search(r"\d+(?:\.\d+)+", _first_answer([cxx, "-dumpfullversion", "-dumpversion"], cancelled))
    version = re.search(r"clang version (\d+(?:\.\d+)+)", banner) or version
    family = "appleclang" if "Apple" in banner else "clang" if "clang" in banner else "gcc"
    return f"{family} {version[version.lastindex or 0] if version else 'unknown'}"


def _first_answer(argv: list[str], cancelled: threading.Event | None) -> str:
    try:
        result = run_job(argv, cancelled=cancelled, timeout_s=PROBE_TIMEOUT_S, output_limit_bytes=_ANSWER_BYTES)
    except (OSError, JobTimeout):
        return ""
    return result.tail[0] if result.returncode == 0 and result.tail else ""


def install_line(root: Path = Path("/")) -> str:
    """The command that installs a C++ compiler on this system, from /etc/os-release."""
    if sys.platform == "darwin" and root == Path("/"):
        return "xcode-select --install"
    try:
        text = (root / "etc/os-release").read_text("utf-8", "replace")[: 16 << 10]
    except OSError:
        text = ""
    words = re.findall(r"^ID(?:_LIKE)?=[\"']?([^\"'\n]*)", text, re.MULTILINE)
    names = " ".join(words).lower().replace("-", " ").split()
    sudo = "" if os.geteuid() == 0 else "sudo "
    for systems, line in _INSTALL_LINES:
        if any(system in names for system in systems):
            return sudo + line.format(sudo=sudo)
    return "install a C++17 compiler (g++ 9, clang 10 or newer) with this system's package tool,"


def _tool(
    name: str,
    minimum: tuple[int, int],
    wheel: str,
    cache: Path,
    report: Report,
    cancelled: threading.Event | None,
) -> str:
    """The program `name` of PATH if it is new enough, else the one from its wheel."""
    found = shutil.which(name)
    if found and _version([found, "--version"], cancelled) >= minimum:
        return found
    folder = cache / "tools" / wheel.replace("==", "-")
    program = _in_wheel(folder, name)
    if program is None:
        report(Progress("engine-tools", f"fetching {name}"))
        try:
            install_wheels([wheel], folder=folder, cancelled=cancelled)
        except FetchFailed as error:
            raise SourceUnavailable(
                f"{name} is missing here and its wheel {wheel} could not be fetched: {error}",
                fix=f"install {name} with this system's package tool, or mend the connection",
            ) from error
        report(Progress("engine-tools", f"{name} is ready", finished=True))
        program = _in_wheel(folder, name)
    if program is None or _version([program, "--version"], cancelled) < minimum:
        raise SourceUnavailable(
            f"{name} from the wheel {wheel} does not run here", fix=f"install {name} with this system's package tool"
        )
    return program


def _in_wheel(folder: Path, name: str) -> str | None:
    """The real program inside an installed wheel; `bin/` may hold only a Python script that looks for its package."""
    for place in (folder / name / "data" / "bin" / name, folder / "bin" / name):
        if place.is_file() and os.access(place, os.X_OK):
            return str(place)
    return None


def _version(argv: list[str], cancelled: threading.Event | None) -> tuple[int, ...]:
    match = re.search(r"(\d+)\.(\d+)", _first_answer(argv, cancelled))
    return (int(match[1]), int(match[2])) if match else (0, 0)
