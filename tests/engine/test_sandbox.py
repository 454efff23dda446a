"""The sandbox: what a program inside it cannot do, what it still can, and what happens where the kernel has none."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from meshnode.engine import sandbox
from meshnode.engine.sandbox import landlock_abi, loader_of, missing, sandboxed

LINUX = sys.platform == "linux"
landlock = pytest.mark.skipif(landlock_abi() == 0, reason="this kernel has no Landlock")
network = pytest.mark.skipif(landlock_abi() < 4, reason="this kernel's Landlock knows no network")
FOLDERS = tuple(sorted({sys.prefix, sys.base_prefix, str(Path(sys.executable).resolve().parent.parent)}))


def run(program: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    argv = sandboxed([program, *arguments], **{"port": 1, "readable": FOLDERS, **options})  # type: ignore[arg-type]
    return subprocess.run(argv, capture_output=True, text=True, timeout=20)


def python(text: str, **options: object) -> subprocess.CompletedProcess[str]:
    return run(str(Path(sys.executable).resolve()), "-I", "-S", "-c", text, **options)


def test_a_program_runs_and_its_end_is_its_own() -> None:
    done = run("/bin/sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")


def test_a_program_that_is_not_there() -> None:
    done = run("/no/such/program")
    assert done.returncode == sandbox.NOT_RUN
    assert "/no/such/program could not be run: No such file or directory" in done.stderr


@pytest.mark.parametrize(
    "argv", [[], ["--port"], ["--port", "x", "--", "a"], ["--other", "1", "--", "a"], ["--gpu", "--"]]
)
def test_wrong_usage(argv: list[str]) -> None:
    done = subprocess.run([sys.executable, "-I", "-S", sandbox.__file__, *argv], capture_output=True, timeout=20)
    assert done.returncode == 2 and b"usage" in done.stderr


@landlock
@pytest.mark.parametrize("gpu", [False, True])
def test_nothing_can_be_written(tmp_path: Path, gpu: bool) -> None:
    (tmp_path / "there").write_text("as it was")
    text = f"""
import os
for action in (
    lambda: open({str(tmp_path / "new")!r}, "w"),
    lambda: open({str(tmp_path / "there")!r}, "a"),
    lambda: os.truncate({str(tmp_path / "there")!r}, 0),
    lambda: os.unlink({str(tmp_path / "there")!r}),
    lambda: os.mkdir({str(tmp_path / "folder")!r}),
    lambda: os.rename({str(tmp_path / "there")!r}, {str(tmp_path / "other")!r}),
):
    try:
        action()
        print("done")
    except OSError as error:
        print(type(error).__name__)
open("/dev/null", "w").write("x")
"""
    done = python(text, gpu=gpu, readable=(*FOLDERS, str(tmp_path)))
    answers = done.stdout.split()
    assert len(answers) == 6 and set(answers) <= {"PermissionError", "OSError"}, done.stderr
    assert (tmp_path / "there").read_text() == "as it was" and len(list(tmp_path.iterdir())) == 1


@landlock
def test_homes_cannot_be_read_and_given_folders_can(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "file").write_text("read me")
    (tmp_path / "secret").write_text("the key")
    text = f"print(open({str(tmp_path / 'given' / 'file')!r}).read()); open({str(tmp_path / 'secret')!r})"
    done = python(text, readable=(*FOLDERS, str(tmp_path / "given")))
    assert done.stdout == "read me\n" and "PermissionError" in done.stderr


@landlock
def test_no_other_program_can_be_executed() -> None:
    done = run("/bin/sh", "-c", "echo before; /bin/ls; /bin/sh -c 'echo inner' ; exec /usr/bin/env")
    assert done.stdout.startswith("before\n") and "PATH=" not in done.stdout
    assert "Permission denied" in done.stderr


@landlock
def test_other_processes_stay_closed() -> None:
    with subprocess.Popen(["/bin/sleep", "20"], env={"SECRET": "the key"}) as other:
        done = python(f"open('/proc/{other.pid}/environ', 'rb').read()")
        other.kill()
    assert "PermissionError" in done.stderr
    assert python("open('/proc/self/status').read(); open('/proc/cpuinfo').read()").returncode == 0


@network
def test_it_listens_on_its_port_and_connects_nowhere() -> None:
    with socket.socket() as listener, socket.socket() as free:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        free.bind(("127.0.0.1", 0))
        port, other = free.getsockname()[1], listener.getsockname()[1]
        free.close()
        text = f"""
import socket
def attempt(name, action):
    try:
        action()
        print(name, "done")
    except OSError as error:
        print(name, type(error).__name__)
attempt("connect", lambda: socket.create_connection(("127.0.0.1", {other}), timeout=5))
attempt("another", lambda: socket.socket().bind(("127.0.0.1", 0)))
server = socket.socket()
attempt("own", lambda: server.bind(("127.0.0.1", {port})))
server.listen()
"""
        done = python(text, port=port)
    assert done.stdout.split("\n")[:3] == ["connect PermissionError", "another PermissionError", "own done"], (
        done.stderr
    )


@pytest.mark.skipif(not LINUX, reason="reads /proc")
@pytest.mark.parametrize("gpu", [False, True])
def test_limits(gpu: bool) -> None:
    text = run("/bin/cat", "/proc/self/limits", gpu=gpu, memory_bytes=100 << 20).stdout
    limits = {line[:26].strip(): line[26:47].strip() for line in text.splitlines()}
    assert limits["Max core file size"] == "0" and int(limits["Max open files"]) <= sandbox.OPEN_FILES
    bounded = str((200 << 20) + sandbox.PROGRAM_BYTES)
    assert limits["Max address space"] == ("unlimited" if gpu else bounded)
    assert limits["Max file size"] == ("unlimited" if gpu else "0")


@pytest.mark.skipif(not LINUX, reason="ELF")
def test_the_loader_of_a_program(tmp_path: Path) -> None:
    assert Path(loader_of("/bin/sh")).is_file() and "ld" in loader_of("/bin/sh")
    cases = [
        b"",
        b"#!/bin/sh\n",
        b"\x7fELF\x02" + bytes(59),
        Path("/bin/sh").read_bytes()[:64],
        b"\x7fELF\x02" + b"\xff" * 59,
    ]
    for number, content in enumerate(cases):
        file = tmp_path / str(number)
        file.write_bytes(content)
        assert loader_of(str(file)) == ""


def test_what_a_kernel_lacks_in_words() -> None:
    assert "no Landlock" in missing(0) and "no network" in missing(3)
    assert missing(4) == missing(7) == ""


def test_without_landlock_the_program_runs_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "landlock_abi", lambda: 0)
    sandbox.confine("/bin/sh", port=1, gpu=False, readable=[])
    assert Path(__file__).read_text()
