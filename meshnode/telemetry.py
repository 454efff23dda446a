"""What a node says about itself: logs, request ids, metrics, progress and problems.

Three kinds of talk, each with one shape. A *log line* is for whoever reads the log later. A *Progress* value is
for whoever waits now; layers below the CLI report it and never print. A *Problem* is something that stays wrong
until it is mended: the kinds are declared here as data, so that `doctor`, `/api/status` and the console use the
same words. No prompt, answer, token or key is ever passed to any of them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import queue
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

LOG = logging.getLogger("meshnode")

# --- progress -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Progress:
    """One report of a long task.

    `task` names it ("engine", "download"), `text` says what happens now, `done` and `total` count in `unit`
    ("steps", "bytes"); `total` is None where it is not known. `finished` marks the last report of a task.
    """

    task: str
    text: str
    done: float = 0
    total: float | None = None
    unit: Literal["steps", "bytes"] = "steps"
    finished: bool = False


Report = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """A Report that keeps quiet."""


# --- problems -------------------------------------------------------------------------------------------------

Severity = Literal["info", "warning", "failure"]


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """One kind of trouble, declared once. `{placeholders}` in text and fix are filled by `Problem.facts`.

    `hides` names kinds that this one explains, so that one cause is not reported as several problems.
    """

    code: str
    severity: Severity
    title: str
    text: str
    fix: str
    hides: tuple[str, ...] = ()


PROBLEM_KINDS = {
    kind.code: kind
    for kind in (
        ProblemKind(
            "engine-crash-loop",
            "failure",
            "The engine keeps crashing",
            "llama-server for {model} stopped {crashes} times in a row; the last words were: {last_line}",
            "read its log: meshnode logs --engine; try a smaller context (--ctx-size), then: meshnode load {model}",
            hides=("engine-restarting",),
        ),
        ProblemKind(
            "engine-restarting",
            "warning",
            "The engine stopped and is being restarted",
            "llama-server for {model} ended ({reason}); the next start is in {delay_s} s",
            "nothing to do unless it repeats; its log: meshnode logs --engine",
        ),
        ProblemKind(
            "model-load-failed",
            "failure",
            "A model could not be loaded",
            "{model}: {reason}",
            "{fix}",
        ),
        ProblemKind(
            "engine-missing",
            "failure",
            "There is no engine to run models with",
            "{reason}",
            "{fix}",
        ),
        ProblemKind(
            "engine-foreign",
            "warning",
            "The engine is not the one meshnode builds",
            "{path} is used as llama-server: {losses}",
            "leave --engine out to build the tested one",
        ),
        ProblemKind(
            "probe-failed",
            "info",
            "A device could not be asked for its memory",
            "{probe}: {reason}",
            "update the driver of this device, or set --max-vram",
        ),
        ProblemKind(
            "state-not-written",
            "warning",
            "A file of this node could not be written",
            "{path}: {reason}",
            "free some disk space or make the folder writable; serving goes on meanwhile",
        ),
        ProblemKind(
            "audit-not-written",
            "failure",
            "The audit log cannot be written",
            "{path}: {reason}; strangers are not served meanwhile",
            "free some disk space or make the folder writable; strangers are served again by themselves then",
        ),
        ProblemKind(
            "audit-broken",
            "warning",
            "The audit log is not what this node wrote",
            "{path}, {reason}",
            "keep the file as it is, and look at the line that is named: meshnode audit verify; a new file has begun",
        ),
        ProblemKind(
            "trust-damaged",
            "failure",
            "Who is trusted cannot be read",
            "{reason}; nobody is trusted more for it meanwhile",
            "{todo}",
        ),
        ProblemKind(
            "public-mesh-unfound",
            "warning",
            "This node has found no public mesh",
            "{reason}",
            "look at the network; other relays: --nostr-relay wss://...; without any: --bootstrap HOST:PORT",
        ),
        ProblemKind(
            "public-mesh-unlisted",
            "warning",
            "No relay lists the public mesh of this node",
            "{reason}",
            "it is tried again; meanwhile others come in by --bootstrap; other relays: --nostr-relay wss://...",
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Problem:
    """A kind of trouble that is present now, with its particulars. `subject` tells two of one kind apart."""

    kind: ProblemKind
    subject: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    since: float = 0.0

    def as_dict(self) -> dict[str, object]:
        """The form shown by `/api/status` and `doctor --json`; `since` is wall time in seconds."""
        return {
            "code": self.kind.code,
            "severity": self.kind.severity,
            "title": self.kind.title,
            "text": self.kind.text.format_map(_Facts(self.facts)),
            "fix": self.kind.fix.format_map(_Facts(self.facts)),
            "subject": self.subject,
            "since": round(self.since, 3),
        }


class _Facts(dict[str, str]):
    """A fact that was not given shows as its name instead of raising: a Problem must always be printable."""

    def __missing__(self, key: str) -> str:
        return f"({key})"


class ProblemBoard:
    """The problems of one node. Raising one again replaces it and keeps its start; safe from any thread."""

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self._problems: dict[tuple[str, str], Problem] = {}
        self._lock = threading.Lock()
        self._changed = changed

    def put(self, code: str, subject: str = "", **facts: str) -> None:
        """Declare that a problem is present. Raises KeyError for a kind that is not declared."""
        kind = PROBLEM_KINDS[code]
        with self._lock:
            known = self._problems.get((code, subject))
            since = known.since if known else time.time()
            self._problems[code, subject] = Problem(kind, subject, facts, since)
        if known is None:
            LOG.log(logging.ERROR if kind.severity == "failure" else logging.WARNING, "problem %s %s", code, subject)
        self._changed()

    def clear(self, code: str, subject: str = "") -> None:
        """Declare that a problem is gone; nothing happens when it was not there."""
        with self._lock:
            gone = self._problems.pop((code, subject), None)
        if gone:
            LOG.info("problem %s %s is gone", code, subject)
            self._changed()

    def __iter__(self) -> Iterator[Problem]:
        with self._lock:
            present = list(self._problems.values())
        hidden = {(code, problem.subject) for problem in present for code in problem.kind.hides}
        return iter([problem for problem in present if (problem.kind.code, problem.subject) not in hidden])


# --- logs -----------------------------------------------------------------------------------------------------


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and whatever `extra={"facts": {...}}` carried."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(getattr(record, "facts", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """`12:00:01 info  message key=value`: short enough for a terminal, plain enough for grep."""

    def format(self, record: logging.LogRecord) -> str:
        facts = " ".join(f"{key}={value}" for key, value in getattr(record, "facts", {}).items())
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{clock} {record.levelname.lower():<7} {record.getMessage()}{' ' + facts if facts else ''}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


LOG_FILE_BYTES = 4 << 20
LOG_LINES_WAITING = 10_000
"""More than that, and the disk stands still: further lines are dropped rather than kept in memory."""


class _Hand(logging.handlers.QueueHandler):
    """Passes records to the writing thread as they are: it is in this process and formats them itself."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record


def configure_logging(
    *, level: str = "info", form: str = "text", file: Path | None = None, terminal: bool = False
) -> Callable[[], None]:
    """Send the logs of meshnode to `file` (rotated at 4 MiB, three kept) and, if `terminal`, to stderr too.

    A thread writes them, so that a slow disk holds up nobody. Returns what writes the rest and ends the logging.
    A file that cannot be written costs the log, not the node.
    """
    formatter: logging.Formatter = JsonFormatter() if form == "json" else TextFormatter()
    handlers: list[logging.Handler] = []
    if file is not None:
        handlers.append(logging.handlers.RotatingFileHandler(file, maxBytes=LOG_FILE_BYTES, backupCount=3, delay=True))
    if terminal:
        handlers.append(logging.StreamHandler(sys.stderr))
    for handler in handlers:
        handler.setFormatter(formatter)
    lines: queue.Queue[logging.LogRecord] = queue.Queue(LOG_LINES_WAITING)
    hand = _Hand(lines)
    listener = logging.handlers.QueueListener(lines, *handlers)
    LOG.addHandler(hand)
    LOG.setLevel(level.upper())
    LOG.propagate = False
    # A full disk must not turn every log line into a traceback on the user's terminal.
    logging.raiseExceptions = False
    listener.start()

    def end() -> None:
        LOG.removeHandler(hand)
        listener.stop()
        for handler in handlers:
            # What a full disk did not take is lost; that is no reason to end in an error.
            with contextlib.suppress(OSError):
                handler.close()

    return end


def new_request_id() -> str:
    """A fresh id for one request: `req_` and 24 hex digits."""
    return f"req_{secrets.token_hex(12)}"
