"""Programs that claim to be llama-server: scripts that answer well, badly, for ever or not at all."""

import socket
import stat
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from meshnode.engine.foreign import ask_rpc_version, inspect, locate, on_search_path
from meshnode.engine.installed import Engine
from meshnode.engine.job import JobCancelled
from meshnode.engine.source import Upstream, read_upstream
from meshnode.errors import EngineIncompatible

VERSION = "echo 'version: 0.5.0 (build 1, commit 0123abc)'; echo 'built with GNU 12.2.0'"
# A FakeRpcServer: listens where it is told and answers the handshake with the bytes of ANSWER.
FAKE_RPC_SERVER = """#!{python}
import socket, struct, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[sys.argv.index("-p") + 1])))
while True:
    connection, _ = server.accept()
    connection.recv(33, socket.MSG_WAITALL)
    connection.sendall({answer})
    connection.close()
"""
ANSWER = "struct.pack('<QBBB', 28, {}, {}, {}) + bytes(25)"


@pytest.fixture(scope="module")
def upstream() -> Upstream:
    return replace(read_upstream(), rpc=(7, 0, 0))


def program(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
    path.chmod(stat.S_IRWXU)
    return path


def rpc_server(folder: Path, answer: str) -> Path:
    return program(folder, "ggml-rpc-server", FAKE_RPC_SERVER.format(python=sys.executable, answer=answer))


def look(server: Path, upstream: Upstream, *, version_timeout_s: float = 10, rpc_timeout_s: float = 10) -> Engine:
    return inspect(server, upstream, origin="given", version_timeout_s=version_timeout_s, rpc_timeout_s=rpc_timeout_s)


def test_a_complete_foreign_engine(tmp_path: Path, upstream: Upstream) -> None:
    server = program(tmp_path, "llama-server", VERSION)
    rpc_server(tmp_path, ANSWER.format(7, 0, 9))
    bench = program(tmp_path, "llama-bench", "exit 0")
    engine = look(server, upstream)
    assert (engine.version, engine.rpc_version, engine.origin) == ("0.5.0", (7, 0, 9), "given")
    assert (engine.bench, engine.quantize, engine.patched) == (bench, None, False)
    assert engine.losses == tuple(patch.loss for patch in upstream.patches)


def test_a_server_alone_serves_but_does_not_split(tmp_path: Path, upstream: Upstream) -> None:
    engine = look(program(tmp_path, "llama-server", VERSION), upstream)
    assert (engine.rpc_server, engine.rpc_version) == (None, None)
    assert any("split" in loss for loss in engine.losses)


def test_our_own_mark_in_the_version_means_patched(tmp_path: Path, upstream: Upstream) -> None:
    text = VERSION.replace("0123abc", upstream.mark)
    engine = look(program(tmp_path, "llama-server", text), upstream)
    assert engine.patched and not any(patch.loss in engine.losses for patch in upstream.patches)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("echo hello", "answered 'hello' with status 0"),
        ("exit 0", "answered 'nothing'"),
        (f"{VERSION}; exit 3", "with status 3"),
        ("head -c 5000 /dev/urandom", "answered"),
        ("printf '\\033[2Jversion'", "answered '\\?\\[2Jversion'"),
        ("exec yes version", "endless output"),
        ("kill -SEGV $$", "status -11"),
        ("#!/nowhere/interpreter", "status 127"),
    ],
)
def test_what_is_no_llama_server_is_told(tmp_path: Path, upstream: Upstream, text: str, reason: str) -> None:
    server = program(tmp_path, "llama-server", text)
    with pytest.raises(EngineIncompatible, match=reason) as caught:
        look(server, upstream)
    assert caught.value.message.isprintable() and str(server) in caught.value.message


def test_a_server_that_hangs_is_given_up(tmp_path: Path, upstream: Upstream) -> None:
    with pytest.raises(EngineIncompatible, match="--version gave no end after"):
        look(program(tmp_path, "llama-server", "exec sleep 1000"), upstream, version_timeout_s=0.3)


@pytest.mark.parametrize(("major", "minor"), [(6, 0), (8, 0), (7, 1), (0, 0)])
def test_another_rpc_protocol_is_refused(tmp_path: Path, upstream: Upstream, major: int, minor: int) -> None:
    server = program(tmp_path, "llama-server", VERSION)
    rpc_server(tmp_path, ANSWER.format(major, minor, 1))
    with pytest.raises(EngineIncompatible, match=f"speaks RPC protocol {major}.{minor}.1, meshnode 7.0.0"):
        look(server, upstream)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("exit 1", "ended with status 1"),
        ("exec sleep 1000", "no end after"),
        (FAKE_RPC_SERVER.format(python=sys.executable, answer="b''"), "no end after"),
        (FAKE_RPC_SERVER.format(python=sys.executable, answer="b'x' * 100"), "no end after"),
        (
            FAKE_RPC_SERVER.format(python=sys.executable, answer="struct.pack('<Q', 1 << 60) + bytes(28)"),
            "no end after",
        ),
    ],
)
def test_a_neighbour_that_does_not_shake_hands_is_told(
    tmp_path: Path, upstream: Upstream, text: str, reason: str
) -> None:
    server = program(tmp_path, "llama-server", VERSION)
    program(tmp_path, "ggml-rpc-server", text)
    with pytest.raises(EngineIncompatible, match=f"asked for its RPC protocol and .*{reason}"):
        look(server, upstream, rpc_timeout_s=0.8)


def test_nothing_of_the_neighbour_is_left(tmp_path: Path) -> None:
    text = FAKE_RPC_SERVER.format(python=sys.executable, answer=ANSWER.format(7, 0, 0))
    noted = text.replace("while True:", f"open({str(tmp_path / 'port')!r}, 'w').write(sys.argv[4])\nwhile True:")
    assert ask_rpc_version(program(tmp_path, "ggml-rpc-server", noted)) == (7, 0, 0)
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", int((tmp_path / "port").read_text())), 2):
        pytest.fail("it still listens")


def test_looking_can_be_cancelled(tmp_path: Path) -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(JobCancelled):
        ask_rpc_version(program(tmp_path, "ggml-rpc-server", "exec sleep 1000"), cancelled=cancelled)


def test_a_folder_or_a_file_may_be_given(tmp_path: Path) -> None:
    server = program(tmp_path / "bin", "llama-server", VERSION)
    assert locate(server) == locate(tmp_path / "bin") == locate(tmp_path) == server
    with pytest.raises(EngineIncompatible, match="there is no llama-server at"):
        locate(tmp_path / "elsewhere")
    server.chmod(0o644)
    with pytest.raises(EngineIncompatible, match="may not be executed") as caught:
        locate(server)
    assert f"chmod +x {server}" in caught.value.fix


def test_path_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert on_search_path() is None
    server = program(tmp_path, "llama-server", VERSION)
    assert on_search_path() == locate(Path("llama-server")) == server
