"""Apply unified diffs, strictly: a patch fits the pinned source exactly or it is refused.

A machine without `git` and `patch` must be able to build the engine, hence this small applier. It knows
what `git diff` writes for text files (change, add, delete) and nothing else: no fuzz, no offsets, no renames, no
binary patches, no path that leaves the tree. Nothing is written before every hunk of the patch has been found to fit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

_HUNK = re.compile(rb"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_REFUSED = (b"rename ", b"copy ", b"old mode ", b"new mode ", b"GIT binary patch", b"Binary files ")


class DiffRefused(Exception):
    """The patch cannot be read or does not fit; the text says which file and line."""


@dataclass(slots=True)
class _Hunk:
    old_start: int
    old: list[bytes] = field(default_factory=list)
    new: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class _FileDiff:
    old_name: str | None
    new_name: str | None
    hunks: list[_Hunk] = field(default_factory=list)


def apply_diff(patch: bytes, tree: Path) -> list[str]:
    """Apply `patch` below `tree` and return the names of the files it touched. Raises DiffRefused."""
    diffs = _parse(patch)
    if not diffs:
        raise DiffRefused("it changes no file")
    results: dict[str, bytes | None] = {}
    for diff in diffs:
        name = diff.new_name or diff.old_name or ""
        if name in results:
            raise DiffRefused(f"{name} appears twice")
        results[name] = _patched(diff, tree / name)
    for name, content in results.items():
        path = tree / name
        if content is None:
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return list(results)


def _patched(diff: _FileDiff, path: Path) -> bytes | None:
    if diff.old_name is None:
        if path.exists():
            raise DiffRefused(f"{diff.new_name} exists already")
        lines: list[bytes] = []
    else:
        if not path.is_file() or path.is_symlink():
            raise DiffRefused(f"{diff.old_name} is not in the source")
        lines = _split(path.read_bytes())
    output: list[bytes] = []
    position = 0
    for hunk in diff.hunks:
        start = hunk.old_start - 1 if hunk.old else hunk.old_start
        if start < position or lines[start : start + len(hunk.old)] != hunk.old:
            raise DiffRefused(f"{diff.old_name or diff.new_name} differs at line {hunk.old_start}")
        output += lines[position:start] + hunk.new
        position = start + len(hunk.old)
    output += lines[position:]
    if diff.new_name is None:
        if output:
            raise DiffRefused(f"{diff.old_name} is to be deleted but has other lines")
        return None
    return b"".join(output)


def _split(raw: bytes) -> list[bytes]:
    """Lines that end in a line feed only: `splitlines` would also cut at a lone carriage return."""
    parts = raw.split(b"\n")
    lines = [part + b"\n" for part in parts[:-1]]
    return [*lines, parts[-1]] if parts[-1] else lines


def _parse(patch: bytes) -> list[_FileDiff]:
    lines = _split(patch)
    diffs: list[_FileDiff] = []
    index = 0
    while index < len(lines):
        line = lines[index]
        if line.startswith(_REFUSED):
            raise DiffRefused(f"line {index + 1}: {line.decode(errors='replace').strip()} is not supported")
        if line.startswith(b"--- ") and index + 1 < len(lines) and lines[index + 1].startswith(b"+++ "):
            old, new = _name(line), _name(lines[index + 1])
            if (old is None and new is None) or (old and new and old != new):
                raise DiffRefused(f"line {index + 1}: {old} becomes {new}")
            diffs.append(_FileDiff(old, new))
            index += 2
        elif line.startswith(b"@@"):
            if not diffs:
                raise DiffRefused(f"line {index + 1}: a hunk without a file")
            hunk, index = _hunk(lines, index)
            diffs[-1].hunks.append(hunk)
        else:
            index += 1
    for diff in diffs:
        if not diff.hunks:
            raise DiffRefused(f"{diff.new_name or diff.old_name} has no hunk")
    return diffs


def _name(line: bytes) -> str | None:
    """The path of a `---` or `+++` line below the tree, None for /dev/null."""
    text = line[4:].decode("utf-8", "strict").split("\t")[0].strip()
    if text == "/dev/null":
        return None
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or len(path.parts) < 2 or path.parts[0] not in ("a", "b"):
        raise DiffRefused(f"the path {text!r} is not allowed")
    return str(PurePosixPath(*path.parts[1:]))


def _hunk(lines: list[bytes], index: int) -> tuple[_Hunk, int]:
    match = _HUNK.match(lines[index])
    if match is None:
        raise DiffRefused(f"line {index + 1}: a damaged hunk header")
    old_left, new_left = (int(match[group] or b"1") for group in (2, 4))
    hunk = _Hunk(int(match[1]))
    index += 1
    while old_left or new_left or (index < len(lines) and lines[index].startswith(b"\\")):
        line = lines[index] if index < len(lines) else b""
        kind, text = line[:1], line[1:]
        if kind == b"\\":  # "\ No newline at end of file" speaks of the line before it
            _drop_newline(hunk, lines[index - 1][:1])
        elif kind == b"-" and old_left:
            hunk.old.append(text)
            old_left -= 1
        elif kind == b"+" and new_left:
            hunk.new.append(text)
            new_left -= 1
        elif (kind == b" " or line == b"\n") and old_left and new_left:
            context = text if kind == b" " else line
            hunk.old.append(context)
            hunk.new.append(context)
            old_left, new_left = old_left - 1, new_left - 1
        else:
            raise DiffRefused(f"line {index + 1}: the hunk is cut short")
        index += 1
    return hunk, index


def _drop_newline(hunk: _Hunk, kind: bytes) -> None:
    if kind in (b"-", b" ") and hunk.old:
        hunk.old[-1] = hunk.old[-1].removesuffix(b"\n")
    if kind in (b"+", b" ") and hunk.new:
        hunk.new[-1] = hunk.new[-1].removesuffix(b"\n")
