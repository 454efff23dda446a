"""Messages to a service manager, heard by a real socket."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from meshnode.service import notify

ADDRESSES = ["path", pytest.param("abstract", marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux only"))]


class Listener:
    """The manager's end."""

    def __init__(self, address: str) -> None:
        self.environment = {"NOTIFY_SOCKET": address}
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0"))
        self.socket.settimeout(5)

    def heard(self) -> str:
        return self.socket.recv(4096).decode()


@pytest.fixture(params=ADDRESSES)
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    abstract = request.param == "abstract"
    made = Listener(f"@meshnode-test-{secrets.token_hex(8)}" if abstract else str(tmp_path / "notify"))
    with closing(made.socket):
        yield made


def test_each_message_is_heard(listener: Listener) -> None:
    assert notify.ready(listener.environment) and listener.heard() == "READY=1"
    assert notify.stopping(listener.environment) and listener.heard() == "STOPPING=1"
    assert notify.alive(listener.environment) and listener.heard() == "WATCHDOG=1"
    assert notify.status("serving demo", listener.environment) and listener.heard() == "STATUS=serving demo"


def test_a_status_is_one_short_line(listener: Listener) -> None:
    notify.status("serving\nREADY=0\x1b[31m \u202e" + "é" * 1000, listener.environment)
    heard = listener.heard()
    assert "\n" not in heard and heard.startswith("STATUS=serving READY=0 [31m  é")
    assert len(heard) == len("STATUS=") + notify.MOST_STATUS_CHARS


def test_the_address_comes_from_the_environment_of_the_process(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", listener.environment["NOTIFY_SOCKET"])
    assert notify.ready() and listener.heard() == "READY=1"


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1234", "/nowhere/at/all", "/" + "x" * 200, "@", "/a\0b"])
def test_nobody_listens(address: str) -> None:
    assert not notify.ready({"NOTIFY_SOCKET": address})
    assert not notify.status("x", {})


def test_a_manager_that_reads_nothing_holds_nobody_up(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "SEND_LIMIT_S", 0.01)
    assert notify.ready(listener.environment)
    assert any(not notify.ready(listener.environment) for _ in range(100_000))


def test_the_watchdog_wants_twice_as_many_signs_as_it_needs() -> None:
    assert notify.watchdog_s({"WATCHDOG_USEC": "30000000"}) == 15
    assert notify.watchdog_s({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}) == 15
    for nobody in ({}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}):
        assert notify.watchdog_s(nobody) is None
