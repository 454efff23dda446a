"""llama-quantize under supervision: a model file with fewer bits, whole under its name or not there at all.

It is written beside its place under a temporary name, checked, synced, and only then given its name. What an
interrupted run left is written over by the next. Room on the disk is checked before a byte is written; which type each
tensor gets, and so how large the file becomes, is decided elsewhere (core/quantisation.py).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from meshnode.engine.job import JobCancelled, JobResult, run_job
from meshnode.engine.process import child_environment
from meshnode.errors import CacheNotWritable, DiskFull, EngineError, ModelError
from meshnode.telemetry import Progress, Report, silent

SPARE_BYTES = 256 << 20
"""Left free on the disk beside the file."""
OUTPUT_LIMIT_BYTES = 64 << 20
_STEP = re.compile(r"^\[\s*(\d{1,6})/\s*(\d{1,6})\] (\S{1,256})\s+- \[")
_FAILED = re.compile(r"failed to quantize: (.{1,300})|error: (.{1,300})|requires an imatrix", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeJob:
    """One file to make. `source` is the first part of a split model; the result is always one file.

    `nominal` is the mix that llama-quantize is told, `overrides` the lines `PATTERN=TYPE` for its tensors.
    `needed_bytes` is the predicted size, `weights` the bytes of each source tensor, for the progress.
    """

    source: Path
    target: Path
    nominal: str
    overrides: Sequence[str]
    needed_bytes: int
    weights: Mapping[str, int]
    requantise: bool = False
    threads: int = 1


def quantize(
    program: Path,
    job: QuantizeJob,
    *,
    environ: Mapping[str, str],
    check: Callable[[Path], None] = lambda _: None,
    report: Report = silent,
    cancelled: threading.Event | None = None,
) -> JobResult:
    """Make the file; blocking. `check` is given the finished file before it gets its name, and raises if it is wrong.

    Raises ModelError when the target exists or is being written by another run, DiskFull, CacheNotWritable for a folder
    that cannot be written, EngineError with llama-quantize's own words, JobCancelled, and what `check` raises. Nothing
    is left behind then.
    """
    if not os.access(program, os.X_OK):
        raise EngineError(f"{program} cannot be run", fix="build the engine again: meshnode engine build")
    with _disk_errors(job.target):
        if job.target.exists():
            raise ModelError(f"{job.target} is there already", fix="choose another --output, or remove it first")
        job.target.parent.mkdir(parents=True, exist_ok=True)
        _check_room(job.target.parent, job.needed_bytes)
        with _alone(job.target) as (partial, types):
            types.write_text("\n".join(job.overrides) + "\n", encoding="utf-8")
            done = _run(program, job, partial, types, environ, report, cancelled)
            check(partial)
            _put_in_place(partial, job.target)
    report(Progress("quantize", job.target.name, job.needed_bytes, job.needed_bytes, "bytes", finished=True))
    return done


def quantize_argv(program: Path, job: QuantizeJob, partial: Path, types: Path) -> list[str]:
    """The command line of llama-quantize."""
    argv = [str(program), "--tensor-type-file", str(types)]
    argv += ["--allow-requantize"] if job.requantise else []
    return [*argv, str(job.source), str(partial), job.nominal, str(job.threads)]


def _run(
    program: Path,
    job: QuantizeJob,
    partial: Path,
    types: Path,
    environ: Mapping[str, str],
    report: Report,
    cancelled: threading.Event | None,
) -> JobResult:
    progress = _Steps(job, report)
    done = run_job(
        quantize_argv(program, job, partial, types),
        env=child_environment(environ),
        on_line=progress,
        cancelled=cancelled,
        output_limit_bytes=OUTPUT_LIMIT_BYTES,
        low_priority=True,
    )
    if cancelled is not None and cancelled.is_set():
        raise JobCancelled
    if done.returncode != 0 or not partial.is_file():
        if shutil.disk_usage(partial.parent).free < SPARE_BYTES // 16:
            raise DiskFull(f"{partial.parent} was full before {job.target.name} was whole")
        raise EngineError(f"llama-quantize: {_reason(done)}", fix="choose another --type, or another source file")
    return done


class _Steps:
    """Counts the bytes of the tensors that llama-quantize names as it comes to them."""

    def __init__(self, job: QuantizeJob, report: Report) -> None:
        self._weights = job.weights
        self._total = sum(job.weights.values())
        self._text = f"{job.target.name} as {job.nominal}"
        self._report = report
        self._done = 0

    def __call__(self, line: str) -> None:
        match = _STEP.match(line)
        if match is None:
            return
        # A line is whole only when its tensor is written.
        self._done = min(self._total, self._done + self._weights.get(match[3], 0))
        self._report(Progress("quantize", self._text, self._done, self._total, "bytes"))


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[tuple[Path, Path]]:
    """The temporary names of a target, for one run at a time; both files are gone afterwards."""
    partial, types = target.with_name(f".{target.name}.partial"), target.with_name(f".{target.name}.types")
    with types.open("a+b") as held:
        try:
            fcntl.flock(held.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have removed it since it was opened here: then it locks nothing any more.
            mine = types.exists() and os.path.samestat(os.fstat(held.fileno()), types.stat())
        except BlockingIOError:
            mine = False
        if not mine:
            raise ModelError(f"{target} is being written by another run", fix="wait for it, or stop it")
        try:
            partial.unlink(missing_ok=True)
            yield partial, types
        finally:
            partial.unlink(missing_ok=True)
            types.unlink(missing_ok=True)


def _check_room(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed_bytes + SPARE_BYTES > free:
        raise DiskFull(f"{needed_bytes / 1e9:.1f} GB are needed, {folder} has {free / 1e9:.1f} GB free")


def _put_in_place(partial: Path, target: Path) -> None:
    for path in (partial, partial.parent):
        _sync(path)
    # Unlike a rename, a link never replaces what somebody put there meanwhile.
    try:
        target.hardlink_to(partial)
    except FileExistsError:
        raise ModelError(f"{target} is there already", fix="choose another --output, or remove it first") from None
    except OSError:
        partial.replace(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"{target.parent}: {error.strerror}") from error
        raise CacheNotWritable(
            f"{error.filename or target}: {error.strerror or error}", fix="choose another folder with --output"
        ) from error


def _reason(done: JobResult) -> str:
    """What llama-quantize said last of a failure, or how it ended."""
    for line in reversed(done.tail):
        if match := _FAILED.search(line):
            return next((group for group in match.groups() if group), "it requires an importance matrix").strip()
    return f"it ended with code {done.returncode}"
