"""What a node tells the service manager that started it: sd_notify(3), without a library.

systemd passes the address of a datagram socket in NOTIFY_SOCKET. Without it, as in a terminal or under launchd, every
call does nothing. Nothing is ever raised: a manager that does not listen must not end a node.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping

MOST_STATUS_CHARS = 400
SEND_LIMIT_S = 1.0
WATCHED_SHARE = 2
"""A sign of life comes so many times in the interval that the manager demands, as sd_watchdog_enabled(3) advises."""


def ready(environment: Mapping[str, str] = os.environ) -> bool:
    """The node does what it was started for. Whether a manager was told."""
    return _tell(environment, "READY=1")


def stopping(environment: Mapping[str, str] = os.environ) -> bool:
    """The node has begun to end: running answers may take up to its drain timeout."""
    return _tell(environment, "STOPPING=1")


def status(text: str, environment: Mapping[str, str] = os.environ) -> bool:
    """One line for `systemctl status`, such as "serving demo"; line ends and what cannot be printed become spaces."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text[:MOST_STATUS_CHARS])
    return _tell(environment, f"STATUS={plain}")


def alive(environment: Mapping[str, str] = os.environ) -> bool:
    """A sign of life, due every `watchdog_s`."""
    return _tell(environment, "WATCHDOG=1")


def watchdog_s(environment: Mapping[str, str] = os.environ) -> float | None:
    """How often the manager wants `alive`, in seconds; None where it does not, or asks another process."""
    asked, of = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not (asked.isascii() and asked.isdigit() and int(asked)) or (of and of != str(os.getpid())):
        return None
    return int(asked) / 1e6 / WATCHED_SHARE


def _tell(environment: Mapping[str, str], message: str) -> bool:
    address = environment.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return False
    if address[0] == "@":
        address = f"\0{address[1:]}"
    # Nobody can be told of a failure here, and the node goes on all the same.
    with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.settimeout(SEND_LIMIT_S)
        sender.sendto(message.encode("utf-8", "replace"), address)
        return True
    return False
