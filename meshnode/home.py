"""The home folder of a running node: who holds it, and where the node that does can be reached."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from typing import Any

from meshnode import durable
from meshnode.config import Places
from meshnode.errors import AlreadyRunning, HomeNotWritable


@contextlib.contextmanager
def home_lock(places: Places) -> Iterator[None]:
    """Hold the home folder for this process. Raises AlreadyRunning or HomeNotWritable."""
    try:
        places.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        opened = places.lock_file.open("a+b")
    except OSError as reason:
        raise HomeNotWritable(f"{reason.filename or places.home}: {reason.strerror}") from None
    with opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = ""
            with contextlib.suppress(OSError, ValueError, KeyError):
                pid = f" (pid {json.loads(places.runtime_file.read_text())['pid']})"
            raise AlreadyRunning(f"home {places.home}{pid}") from None
        yield


def write_runtime_file(places: Places, facts: dict[str, Any]) -> None:
    """Tell the commands of this user, and nobody else, where the node answers. Raises HomeNotWritable."""
    durable.write(places.runtime_file, json.dumps(facts).encode(), mode=0o600)
