"""The pinned source of llama.cpp: which one it is, where it comes from, and the patches on top.

`UPSTREAM` and `series` lie in `llama.cpp-patches/` of a checkout and in `meshnode/engine/patches/` of a wheel.
The result of `prepare_source` is a folder that appears complete or not at all, so that whatever was interrupted is
simply done again.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
import threading
import tomllib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from meshnode.engine.diff import DiffRefused, apply_diff
from meshnode.engine.packages import FetchFailed, fetch_sdist
from meshnode.errors import SourceUnavailable
from meshnode.telemetry import Progress, Report, silent

# Of no use to a build, and two thirds of the archive's weight.
_LEFT_OUT = {"models", "docs", "media", "benches", "gguf-py"}
UNPACKED_LIMIT_BYTES = 400 << 20
FILE_LIMIT_BYTES = 64 << 20
FILES_LIMIT = 20_000


@dataclass(frozen=True, slots=True)
class Patch:
    """One line of `series`. `loss` says what an engine without this patch loses."""

    name: str
    content: bytes
    loss: str


@dataclass(frozen=True, slots=True)
class Upstream:
    """The pinned source and its patches."""

    package: str
    version: str
    sha256: str
    size_bytes: int
    folder: str
    backend: str
    llama_cpp: str
    rpc: tuple[int, int, int]
    patches: tuple[Patch, ...]

    @property
    def patches_hash(self) -> str:
        """Ten hex digits over the names and contents of the patches, in order."""
        digest = hashlib.sha256()
        for patch in self.patches:
            digest.update(f"{patch.name}\0{len(patch.content)}\0".encode() + patch.content)
        return digest.hexdigest()[:10]

    @property
    def key(self) -> str:
        """Names this source with these patches: part of folder names."""
        return f"{self.version}-{self.sha256[:8]}-{self.patches_hash}"

    @property
    def mark(self) -> str:
        """What `llama-server --version` gives as its commit when it was built from this source."""
        return f"meshnode-{self.patches_hash}"


def patches_folder() -> Path:
    """`llama.cpp-patches/` of the checkout this module lies in, or its copy inside an installed wheel."""
    here = Path(__file__).resolve().parent
    installed, checkout = here / "patches", here.parent.parent / "llama.cpp-patches"
    return installed if (installed / "UPSTREAM").is_file() else checkout


def read_upstream(folder: Path | None = None) -> Upstream:
    """Read `UPSTREAM`, `series` and the patches it names. Raises SourceUnavailable."""
    folder = folder or patches_folder()
    try:
        fields = tomllib.loads((folder / "UPSTREAM").read_text("utf-8"))
        rpc = tuple(int(part) for part in fields.pop("rpc").split("."))
        if len(rpc) != 3:
            raise ValueError("rpc needs three numbers")
        patches = tuple(_series(folder))
        return Upstream(rpc=(rpc[0], rpc[1], rpc[2]), patches=patches, **fields)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise SourceUnavailable(
            f"{folder} does not describe it ({error})", fix="install meshnode again: its files are incomplete"
        ) from error


def _series(folder: Path) -> list[Patch]:
    patches = []
    for line in (folder / "series").read_text("utf-8").splitlines():
        name, _, loss = (part.strip() for part in line.partition("#"))
        if name:
            if Path(name).name != name:
                raise ValueError(f"series names {name!r}, which is not a file beside it")
            patches.append(Patch(name, (folder / name).read_bytes(), loss))
    return patches


def source_folder(cache: Path, upstream: Upstream) -> Path:
    """Where the patched source lies once it is prepared."""
    return cache / "source" / upstream.key


def prepare_source(
    cache: Path,
    upstream: Upstream,
    *,
    report: Report = silent,
    cancelled: threading.Event | None = None,
) -> Path:
    """Fetch, check, unpack and patch the source unless that is done; returns the folder of llama.cpp.

    Raises SourceUnavailable, JobCancelled, and OSError for a disk that is full or read-only.
    """
    folder = source_folder(cache, upstream)
    if folder.is_dir():
        return folder
    archive = _archive(cache, upstream, report, cancelled)
    folder.parent.mkdir(parents=True, exist_ok=True)
    report(Progress("engine-source", "unpacking the source of llama.cpp"))
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=folder.parent) as work:
        tree = Path(work) / "llama.cpp"
        tree.mkdir()
        try:
            _unpack(archive, upstream.folder, tree)
        except (tarfile.TarError, EOFError, ValueError) as error:
            raise SourceUnavailable(f"{archive.name} cannot be unpacked ({error})") from error
        _patch(tree, upstream)
        tree.replace(folder)
    report(Progress("engine-source", "the source is ready", finished=True))
    return folder


def _archive(cache: Path, upstream: Upstream, report: Report, cancelled: threading.Event | None) -> Path:
    """The checked archive: the one in `<cache>/download`, where anyone may put it, or a fresh one from the index."""
    downloads = cache / "download"
    downloads.mkdir(parents=True, exist_ok=True)
    name = f"{upstream.package.replace('-', '_')}-{upstream.version}.tar.gz"
    archive = downloads / name
    if archive.is_file():
        if _sha256(archive) == upstream.sha256:
            return archive
        archive.unlink()

    def on_bytes(count: int) -> None:
        report(Progress("engine-source", f"fetching {name}", count, upstream.size_bytes, "bytes"))

    on_bytes(0)
    by_hand = f"or put {name} into {downloads} yourself; then run: meshnode engine build"
    try:
        fetched = fetch_sdist(
            (upstream.package, upstream.version),
            sha256=upstream.sha256,
            build_backend=upstream.backend,
            folder=downloads,
            on_bytes=on_bytes,
            cancelled=cancelled,
        )
    except FetchFailed as error:
        if error.got_sha256:
            raise _another_file(name, upstream.sha256, error.got_sha256) from error
        raise SourceUnavailable(
            f"{name}: {error}", fix=f"check the connection and pip's configuration (pip config list), {by_hand}"
        ) from error
    if (got := _sha256(fetched)) != upstream.sha256:
        fetched.unlink()
        raise _another_file(name, upstream.sha256, got)
    return fetched


def _another_file(name: str, expected: str, got: str) -> SourceUnavailable:
    return SourceUnavailable(
        f"{name} has sha256 {got}, expected {expected}",
        fix="the package index or a proxy delivers a changed file: look at `pip config list`, then run: "
        "meshnode engine build",
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _unpack(archive: Path, inside: str, tree: Path) -> None:
    """Write the regular files below `*/inside/` of a .tar.gz into `tree`; links, devices and the rest stay out.

    Raises ValueError for a path that leaves the tree and for more data than any llama.cpp has.
    """
    left_bytes, files = UNPACKED_LIMIT_BYTES, 0
    wanted = PurePosixPath(inside).parts
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if not member.isreg() or parts[1 : 1 + len(wanted)] != wanted:
                continue
            inner = parts[1 + len(wanted) :]
            if not inner or ".." in parts or PurePosixPath(member.name).is_absolute():
                raise ValueError(f"it holds the path {member.name!r}")
            if inner[0] in _LEFT_OUT:
                continue
            left_bytes, files = left_bytes - member.size, files + 1
            if left_bytes < 0 or files > FILES_LIMIT or member.size > FILE_LIMIT_BYTES:
                raise ValueError("it holds more than a source tree should")
            target = tree.joinpath(*inner)
            target.parent.mkdir(parents=True, exist_ok=True)
            content = tar.extractfile(member)
            assert content is not None
            with content, target.open("xb") as out:
                shutil.copyfileobj(content, out, 1 << 20)
    if not (tree / "CMakeLists.txt").is_file():
        raise ValueError(f"it holds no {inside}")


def _patch(tree: Path, upstream: Upstream) -> None:
    for patch in upstream.patches:
        try:
            apply_diff(patch.content, tree)
        except (DiffRefused, UnicodeDecodeError) as error:
            raise SourceUnavailable(
                f"{patch.name} does not fit the pinned source: {error}",
                fix="restore the files of llama.cpp-patches, or install meshnode again",
            ) from error
