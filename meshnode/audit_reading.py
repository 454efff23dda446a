"""Reading the audit log of a home folder: its files, its records, and whether its chain is whole.

A node that writes the log may run meanwhile: nothing is changed here, and a line that is not complete yet is left out.
The files are those of audit.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshnode.core.audit import Finding, Head, Verifier, read_line
from meshnode.errors import StateError

NAME, HEAD = "audit.log", "audit.head"
READ_BYTES = TAIL_BYTES = 1 << 20
_OLD = re.compile(r"audit-(\d{8,15})\.log")


@dataclass(frozen=True, slots=True)
class Verified:
    """What `verify` found: how many records in which files, the head of the chain, and what is wrong. `torn_bytes` of
    an unfinished line stand at the end; the next start of the node takes them away.
    """

    records: int
    files: tuple[str, ...]
    head: Head
    findings: tuple[Finding, ...] = ()
    torn_bytes: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "records": self.records,
            "files": list(self.files),
            "head": {"count": self.head.count, "digest": self.head.digest},
            "findings": [finding.as_dict() for finding in self.findings],
            "torn_bytes": self.torn_bytes,
            "whole": not self.findings,
        }


def verify(home: Path, kept: str = "") -> Verified:
    """Read the whole log of a home folder and check its chain. `kept` is the hash of a record, in hex, as it was once
    written down. Raises StateError when the log cannot be read.
    """
    names: list[str] | None = None
    found = Verified(0, (), Head())
    # A node that runs may put its file away meanwhile: then what was read is not the whole log.
    while names != (names := log_files(home)):
        found = _verify(home, names, kept)
        if not found.findings:
            break
    return found


def _verify(home: Path, names: list[str], kept: str) -> Verified:
    verifier = Verifier(known=_read_head(home))  # before the lines, as the log may grow
    torn, seen = 0, not kept
    for name in names:
        for number, line in _lines(home / name, unfinished=True):
            if line.endswith(b"\n"):
                torn = 0
                seen |= verifier.take(name, number, line[:-1]) == kept
            else:
                torn = len(line)
    findings = verifier.finish()
    if not seen:
        findings = [*findings, Finding(names[-1] if names else "", 0, "no record has the hash that was kept")]
    return Verified(verifier.records, tuple(names), verifier.head, tuple(findings), torn)


def records(home: Path) -> Iterator[dict[str, Any]]:
    """Every record of a home folder, the oldest first; lines that are none are passed over. Raises StateError."""
    for name in log_files(home):
        for _, line in _lines(home / name):
            try:
                yield read_line(line)
            except ValueError:
                continue


def last_records(home: Path, limit: int) -> list[dict[str, Any]]:
    """The last `limit` records, the newest first, as far as the ends of the files hold them (some 2,000 each); lines
    that are none are passed over. Raises StateError.
    """
    found: list[dict[str, Any]] = []
    for name in reversed(log_files(home)):
        for line in reversed(_last_lines(home / name)):
            if len(found) >= limit:
                return found
            try:
                found.append(read_line(line))
            except ValueError:
                continue
    return found


def log_files(home: Path) -> list[str]:
    """The names of the files of the log, the oldest first."""
    try:
        names = [path.name for path in home.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as reason:
        raise StateError(f"{home} cannot be read: {reason.strerror}") from None
    old = sorted((int(match[1]), name) for name in names if (match := _OLD.fullmatch(name)))
    return [name for _, name in old] + ([NAME] if NAME in names else [])


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest file as it was found: the number of its first record, its size without an unfinished line, and the
    head behind which the chain goes on: that of its last line, or a later one that the log is known to have had.
    """

    head: Head
    first: int
    size_bytes: int
    torn_bytes: int
    findings: tuple[Finding, ...]


def read_newest(home: Path) -> Newest:
    """Check the newest file against what is before it. Raises StateError when it cannot be read."""
    names, known = log_files(home), _read_head(home)
    old = [name for name in names if name != NAME]
    before = Verifier()
    if old:
        _take_all(before, home / old[-1])
    verifier = Verifier(before.head, known=known)
    torn = _take_all(verifier, home / NAME)
    findings = tuple(verifier.finish())
    head = verifier.head
    # Numbers are not used twice: where the end is missing, the next record tells how much of it.
    if known is not None and known.count > head.count:
        head = known
    return Newest(head, before.head.count, _size(home / NAME) - torn, torn, findings)


def first_number(file: Path) -> int:
    """The number of the first record of a file; 0 where that is none."""
    for _, line in _lines(file):
        try:
            return int(read_line(line)["n"])
        except ValueError:
            break
    return 0


def old_name(first: int) -> str:
    """What a file is called that was put away, by the number of its first record."""
    return f"audit-{first:08d}.log"


def _take_all(verifier: Verifier, file: Path) -> int:
    """Hand all lines of a file to the verifier; how many bytes of an unfinished one there are."""
    torn = 0
    for number, line in _lines(file, unfinished=True):
        if line.endswith(b"\n"):
            verifier.take(file.name, number, line[:-1])
        else:
            torn = len(line)
    return torn


def _lines(file: Path, *, unfinished: bool = False) -> Iterator[tuple[int, bytes]]:
    """The lines with their numbers, from 1. With `unfinished` each has its line feed, and the last one may lack it."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb", buffering=READ_BYTES) as opened:
            for number, line in enumerate(opened, 1):
                if unfinished:
                    yield number, line
                elif line.endswith(b"\n"):
                    yield number, line[:-1]
    except FileNotFoundError:
        return
    except OSError as reason:
        raise StateError(f"{file} cannot be read: {reason.strerror}") from None


def _last_lines(file: Path) -> list[bytes]:
    """The complete lines of the last TAIL_BYTES, without their line feeds."""
    try:
        with file.open("rb") as opened:
            start = max(0, opened.seek(0, os.SEEK_END) - TAIL_BYTES)
            opened.seek(start)
            lines = opened.read(TAIL_BYTES).split(b"\n")[:-1]
    except OSError as reason:
        raise StateError(f"{file} cannot be read: {reason.strerror}") from None
    return lines[1:] if start else lines


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _read_head(home: Path) -> Head | None:
    try:
        return Head.decode((home / HEAD).read_bytes())
    except (OSError, ValueError):
        return None
