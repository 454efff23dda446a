"""From the log of a failed build to the first error and the command that mends it.

The patterns are the words of gcc, clang, nvcc, GNU ld, ld64, cmake and ninja.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from meshnode.engine.toolchain import install_line
from meshnode.errors import BuildFailed, DiskFull, MeshnodeError

LOG_LIMIT_BYTES = 64 << 20
_DETAIL_CHARACTERS = 300

_FIRST_ERRORS = tuple(
    re.compile(pattern)
    for pattern in (
        r"^(?P<place>[^\s:][^:\n]*:\d+(?::\d+)?): (?:fatal )?error: (?P<text>.+)",  # gcc, clang
        r"^(?P<place>[^\s(][^(\n]*\(\d+\)): (?:fatal |catastrophic )?error(?: #?[\w-]+)?: (?P<text>.+)",  # nvcc
        r"^(?P<place>nvcc) (?:fatal|error)\s*: (?P<text>.+)",
        r"^(?P<place>[\w./+-]+): (?:fatal )?error: (?P<text>.+)",  # c++: fatal error: Killed signal ...
        r"^(?P<place>[\w./+-]*ld[\w.-]*): (?P<text>(?:error: )?(?:cannot find|undefined|unable|final link|library).+)",
        r"(?P<place>[\w./+-]+\.(?:o|a|cpp|c)):(?:.*: )?(?P<text>undefined reference to .+)",
        r"^(?P<place>ninja): (?:error|fatal): (?P<text>.+)",
    )
)
_CMAKE_ERROR = re.compile(r"^CMake Error(?: at (?P<place>[^\s:]+:\d+))?[^:]*:\s*(?P<text>.*)")

_CPU_INSTEAD = "build for the processor instead: meshnode engine build --backend cpu"
# (words in the log, the fix); the first that matches counts
_FIXES = (
    (r"unsupported GNU version|unsupported clang version|unsupported compiler", "this CUDA needs an older compiler:"
     " set CC and CXX to one (for example CC=gcc-12 CXX=g++-12), or " + _CPU_INSTEAD),
    (r"Unsupported gpu architecture", "update CUDA to one that knows this GPU, or "
     + _CPU_INSTEAD),
    (r"Could NOT find Vulkan|Could not find .*SPIRV|Findhip|hip-config|Could NOT find CUDA|No CMAKE_CUDA_COMPILER"
     r"|links to: (?:CUDA|Vulkan|hip|roc)",
     "install what is missing, or " + _CPU_INSTEAD),
    (r"Killed signal|out of memory|virtual memory exhausted|bad_alloc|Cannot allocate memory",
     "memory ran out: close other programs, then run: meshnode engine build --jobs 1"),
    (r"unrecognized (?:command.line )?option|unknown argument|bad value .* for .-march",
     "update the compiler, or name another one with CC and CXX, then run: meshnode engine build"),
)  # fmt: skip
_HEADER_MISSING = re.compile(
    r"[\w./+-]+\.h(?:pp)?['\"]?[: ]+(?:No such file|file not found)|'[\w./+-]+' file not found"
)


def failure_from_log(log: Path, *, step: str, returncode: int, kind: str = "cpu") -> MeshnodeError:
    """The error to raise for a `step` ("configure", "compile") that ended with `returncode`, from its log."""
    lines = _lines(log)
    text = "\n".join(lines)
    if "No space left on device" in text or "Disk quota exceeded" in text:
        return DiskFull(f"while the engine was being built (log: {log})")
    first = first_error(lines) or f"the {step} step ended with status {returncode}"
    return BuildFailed(f"{first[:_DETAIL_CHARACTERS]} (full log: {log})", fix=_fix(first, kind))


def first_error(lines: Iterable[str]) -> str | None:
    """The first error in the output of compilers, linkers, cmake and ninja, as "place: text"."""
    begun = ""  # cmake breaks its sentences: a line that ends in a colon goes on in the next
    for line in filter(str.strip, lines):
        if begun:
            begun += f" {line.strip()}"
        elif found := _CMAKE_ERROR.match(line):
            begun = f"{found['place'] or 'cmake'}: {found['text'].strip()}".rstrip()
        else:
            for pattern in _FIRST_ERRORS:
                if found := pattern.search(line):
                    return f"{_short(found['place'])}: {found['text'].strip()}"
        if begun and not begun.endswith(":"):
            return begun
    return begun or None


def _short(place: str) -> str:
    """A path inside the source tree without what comes before the tree."""
    parts = place.split("/")
    for marker in ("ggml", "src", "common", "tools", "vendor"):
        if marker in parts:
            return "/".join(parts[parts.index(marker) :])
    return place


def _fix(error: str, kind: str) -> str:
    for words, fix in _FIXES:
        if re.search(words, error):
            return fix
    if _HEADER_MISSING.search(error):
        return f"a system header is missing: {install_line()}   then run: meshnode engine build"
    again = "look at the log, try another compiler with CC and CXX, or start afresh: meshnode engine clean"
    return again if kind == "cpu" else f"{again}; or {_CPU_INSTEAD}"


def _lines(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            return file.read(LOG_LIMIT_BYTES).decode("utf-8", "replace").splitlines()
    except OSError:
        return []
