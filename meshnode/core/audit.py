"""The lines of the audit log: a chain in which each record names the SHA-256 of the line before it.

    {"n":17,"prev":"9f2c...","at":1795277000.123,"kind":"served","request":"req_...","node":"ab12...",...}

Whoever changes, removes, inserts or moves a line breaks the chain at that place, and `Verifier` names it (Haber and
Stornetta, 1991). Whoever writes all that follows anew, or cuts the end off, is found by the head alone: number and hash
of the last record, which the log keeps in a file of its own. `meshnode audit verify` prints it, to be written down
elsewhere.

Rules of this file: pure; a record holds the facts of FIELDS and no others, so no prompt and no answer can get into it;
a line is ASCII, ends with a line feed, and has less than MOST_LINE_BYTES; whatever stands in a file, reading it gives
findings and never an error.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

GENESIS = "0" * 64
"""What the first record of a log names as the line before it."""
FIELDS = frozenset(
    {
        *("request", "node", "prefix", "model", "endpoint", "radius", "stream"),
        *("status", "outcome", "error", "retries", "resumed", "duration_s"),
        *("tokens_in", "tokens_out", "cost_micros", "output_sha256", "verdict", "places"),
        *("reason", "file", "cut_bytes"),
        *("channel", "amount_micros", "transaction", "purpose"),
    }
)
MOST_TEXT_CHARACTERS = 200
MOST_LINE_BYTES = 16 << 10
MOST_FINDINGS = 100
_KIND = re.compile(r"[a-z][a-z_]{0,19}")
_HASH = re.compile(r"[0-9a-f]{64}")

Fact = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a chain: how many records it has, and the hash of the last line."""

    count: int = 0
    digest: str = GENESIS

    def encode(self) -> bytes:
        """As the file of its own."""
        return json.dumps({"count": self.count, "digest": self.digest}).encode()

    @classmethod
    def decode(cls, raw: bytes) -> Head:
        """Raises ValueError for what `encode` did not write."""
        value = _object(raw)
        count, digest = value.get("count"), value.get("digest")
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise ValueError("no count of records")
        if not isinstance(digest, str) or not _HASH.fullmatch(digest):
            raise ValueError("no hash")
        return cls(count, digest)


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a log, and where: the name of the file and the number of the line, from 1."""

    file: str
    line: int
    text: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"file": self.file, "line": self.line, "text": self.text}


def checked(kind: str, facts: Mapping[str, object]) -> dict[str, Fact]:
    """The facts as they are written: long texts cut, fractions rounded.

    Raises ValueError for a kind, a fact or a value that has no place in the log, which is a fault of the program.
    """
    if not _KIND.fullmatch(kind):
        raise ValueError(f"{kind!r} is no kind of record")
    found: dict[str, Fact] = {}
    for name, value in facts.items():
        if name not in FIELDS:
            raise ValueError(f"{name!r} is not kept in the audit log")
        if isinstance(value, str):
            found[name] = value[:MOST_TEXT_CHARACTERS]
        elif isinstance(value, float):
            found[name] = round(value, 4) if math.isfinite(value) else None
        elif value is None or isinstance(value, int):
            found[name] = value
        else:
            raise ValueError(f"{name} is {type(value).__name__}")
    return found


def extended(head: Head, kind: str, at: float, facts: Mapping[str, Fact]) -> tuple[bytes, Head]:
    """The line of the next record, with its line feed, and the head that it makes. `at` is wall time in seconds."""
    record = {"n": head.count, "prev": head.digest, "at": round(at, 3), "kind": kind, **facts}
    line = json.dumps(record, separators=(",", ":")).encode()
    return line + b"\n", Head(head.count + 1, digest_of(line))


def digest_of(line: bytes) -> str:
    """The SHA-256 of a line without its line feed, in hex."""
    return sha256(line).hexdigest()


def read_line(line: bytes) -> dict[str, Any]:
    """The record of a line. Raises ValueError for one that is none."""
    if len(line) > MOST_LINE_BYTES:
        raise ValueError("too long")
    record = _object(line)
    number, prev = record.get("n"), record.get("prev")
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 53:
        raise ValueError("it has no number")
    if not isinstance(prev, str) or not _HASH.fullmatch(prev):
        raise ValueError("it does not name the line before it")
    at, kind = record.get("at"), record.get("kind")
    if not isinstance(at, int | float) or not 0 <= at < 1e11 or not isinstance(kind, str):
        raise ValueError("it has no kind or no time")
    return record


@dataclass(slots=True)
class _Line:
    """A line that was taken. `number` is that of its record, or the one that belongs there if it has none that counts;
    `named` says that there is a finding about it.
    """

    file: str
    line: int
    number: int
    prev: str
    digest: str
    named: bool = False


class Verifier:
    """Takes the lines of a log in their order, over all its files, and finds where the chain is broken.

    `findings` holds the first MOST_FINDINGS; a whole log has none. A line that was changed is told from one whose
    successor was: a line that is as it was written has a successor that vouches for it.
    """

    def __init__(self, head: Head = Head(), *, known: Head | None = None) -> None:
        """`head` is that of what came before the first line; `known` one that the log is known to have had."""
        self.findings: list[Finding] = []
        self.records = 0
        self._start = head
        self._known = known if known is not None and known.count > head.count else None
        self._known_seen = False
        self._before: _Line | None = None
        self._last: _Line | None = None
        self._suspects: tuple[_Line, _Line] | None = None

    @property
    def head(self) -> Head:
        """That of the lines taken so far."""
        return self._start if self._last is None else Head(self._last.number + 1, self._last.digest)

    def take(self, file: str, line: int, raw: bytes) -> str:
        """The next line, without its line feed; its hash."""
        self.records += 1
        expected = self.head
        try:
            record = read_line(raw)
        except ValueError as reason:
            taken = _Line(file, line, expected.count, "", digest_of(raw))
            self._resolve(None)
            self._name(taken, f"it is no record: {reason}")
        else:
            taken = _Line(file, line, record["n"], record["prev"], digest_of(raw))
            self._resolve(taken)
            self._check(taken, expected)
        self._compare_with_known(taken)
        self._before, self._last = self._last, taken
        return taken.digest

    def finish(self) -> list[Finding]:
        """All lines were taken. The findings."""
        self._resolve(None)
        if self._known is not None and not self._known_seen:
            file, line = (self._last.file, self._last.line) if self._last else ("", 0)
            text = f"the end is missing behind it: there were records up to number {self._known.count - 1}"
            self._find(file, line, text)
        return self.findings

    # --- where it broke -------------------------------------------------------------------------------------

    def _check(self, taken: _Line, expected: Head) -> None:
        if taken.prev == expected.digest:
            if taken.number != expected.count:
                self._name(taken, f"it was changed: its number is {taken.number} and not {expected.count}")
                taken.number = expected.count
            return
        last = self._last
        if last is not None and last.named:
            return  # nothing vouches any more for what stood there
        before = self._before.digest if self._before is not None else self._start.digest
        if taken.number == expected.count and last is not None:
            self._suspects = (last, taken)
        elif last is not None and taken.digest == last.digest:
            self._name(taken, "it stands there twice")
        elif last is not None and taken.prev == before:
            self._name(last, "it was inserted")
        elif taken.number > expected.count:
            missing = _numbers(expected.count, taken.number - 1)
            self._name(taken, f"{missing} missing before it: removed, or moved")
        else:
            text = f"record {taken.number} stands where record {expected.count} belongs: inserted, changed or moved"
            self._name(taken, text)

    def _resolve(self, following: _Line | None) -> None:
        """Two lines do not fit together: the later one was changed unless what follows vouches for it."""
        if self._suspects is None:
            return
        earlier, later = self._suspects
        self._suspects = None
        if following is not None:
            vouched = following.prev == later.digest
        else:
            known = self._known
            vouched = known is None or known.count != later.number + 1 or known.digest == later.digest
        if vouched:
            self._name(earlier, "it was changed")
        else:
            self._name(earlier, "nothing vouches for it any more, as the line after it was changed")
            self._name(later, "it was changed")

    def _compare_with_known(self, taken: _Line) -> None:
        known = self._known
        if known is None or taken.number + 1 != known.count or self._known_seen:
            return
        self._known_seen = True
        if taken.digest != known.digest and not self.findings and self._suspects is None:
            self._name(taken, "it is not what the head of the log names: it was changed, or all was written anew")

    def _name(self, line: _Line, text: str) -> None:
        line.named = True
        self._find(line.file, line.line, text)

    def _find(self, file: str, line: int, text: str) -> None:
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(Finding(file, line, text))


def _numbers(first: int, last: int) -> str:
    return f"record {first} is" if first == last else f"records {first} to {last} are"


def _object(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode("ascii"))
    except (ValueError, RecursionError):
        raise ValueError("not JSON in ASCII") from None
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value
