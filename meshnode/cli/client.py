"""Talks to the node that runs on this machine with this home folder, over its control API."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from meshnode.config import Places, find_places
from meshnode.errors import MeshnodeError, NodeNotRunning

MAX_ANSWER_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class RunningNode:
    """What runtime.json says of a running node."""

    pid: int
    api: str
    console: str
    token: str = field(repr=False)
    home: Path

    def call(
        self,
        method: str,
        path: str,
        body: dict[str, object] | None = None,
        *,
        timeout_s: float = 30,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """One request to the control API, with the token and with further headers; the parsed JSON of its answer.

        Raises NodeNotRunning when nothing answers, and the error that the node reported otherwise.
        """
        target = urlsplit(self.console)
        connection = http.client.HTTPConnection(target.hostname or "127.0.0.1", target.port, timeout=timeout_s)
        try:
            payload = None if body is None else json.dumps(body)
            sent = {"x-meshnode-token": self.token, "content-type": "application/json", **(headers or {})}
            connection.request(method, path, payload, sent)
            answer = connection.getresponse()
            value = json.loads(answer.read(MAX_ANSWER_BYTES))
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as reason:
            raise NodeNotRunning(f"pid {self.pid} does not answer on {self.console} ({reason})") from None
        finally:
            connection.close()
        if answer.status >= 400:
            inner = value.get("error") if isinstance(value, dict) else None
            raise reported(inner if isinstance(inner, dict) else {"message": f"status {answer.status}"})
        return value


class ReportedError(MeshnodeError):
    """The node refused."""

    @property
    def message(self) -> str:
        return self.detail


def reported(facts: dict[str, Any]) -> ReportedError:
    """An error of the node as an error of the command, with the exit code that belongs to its code."""
    error = ReportedError(str(facts.get("message", "")), fix=str(facts.get("fix", "")))
    error.code = str(facts.get("code", "error")).replace("_", "-")
    error.exit_code = _exit_code(error.code)
    return error


def _exit_code(code: str) -> int:
    """The exit code that belongs to an error code; the classes of errors.py are the table."""
    pending = [MeshnodeError]
    while pending:
        kind = pending.pop()
        if kind.code == code:
            return kind.exit_code
        pending.extend(kind.__subclasses__())
    return 1


def find_node(places: Places | None = None) -> RunningNode:
    """The node of this home folder. Raises NodeNotRunning."""
    places = places or find_places()
    try:
        facts = json.loads(places.runtime_file.read_text("utf-8"))
        node = RunningNode(
            int(facts["pid"]), str(facts["api"]), str(facts["console"]), str(facts["token"]), places.home
        )
    except FileNotFoundError:
        raise NodeNotRunning(f"home {places.home}") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as reason:
        raise NodeNotRunning(f"{places.runtime_file} cannot be read ({reason})") from None
    if not is_held(places.lock_file):
        raise NodeNotRunning(f"the node with pid {node.pid} has ended without saying goodbye")
    return node


def is_held(lock_file: Path) -> bool:
    """Whether a living node holds the lock of its home folder: a pid alone may belong to someone else by now."""
    import fcntl

    try:
        with lock_file.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
