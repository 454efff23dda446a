"""Jobs: what they print, how they end, and that nothing of them is left."""

import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from meshnode.engine.job import LINE_BYTES, TAIL_LINES, JobCancelled, JobTimeout, run_job


def python(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def is_alive(pid: int) -> bool:
    """Whether `pid` runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pid: int, limit_s: float = 10) -> None:
    deadline = time.monotonic() + limit_s
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.01)


def test_both_outputs_are_read_line_by_line_and_logged() -> None:
    log, lines = io.BytesIO(), []
    result = run_job(
        python("import sys; print('one', flush=True); sys.stderr.write('two\\nthree'); sys.exit(7)"),
        log=log,
        on_line=lines.append,
    )
    assert result.returncode == 7
    assert lines == list(result.tail) == ["one", "two", "three"]
    assert log.getvalue() == b"one\ntwo\nthree"


def test_bytes_that_are_not_text_and_endless_lines_are_bounded() -> None:
    result = run_job(python(f"import os; os.write(1, b'\\xff\\xfe\\n' + b'x' * {3 * LINE_BYTES})"))
    assert result.tail[0] == "\ufffd\ufffd"
    assert sum(map(len, result.tail[1:])) == 3 * LINE_BYTES
    assert max(map(len, result.tail)) <= LINE_BYTES


def test_only_the_last_lines_are_kept() -> None:
    result = run_job(python(f"for i in range({TAIL_LINES + 50}): print(i)"))
    assert (result.tail[0], result.tail[-1], len(result.tail)) == ("50", str(TAIL_LINES + 49), TAIL_LINES)


def test_a_time_limit_ends_the_whole_group(tmp_path: Path) -> None:
    script = f"sleep 1000 & echo $! > {tmp_path}/pid; wait"
    with pytest.raises(JobTimeout, match="no end after 1 s"):
        run_job(["sh", "-c", script], timeout_s=0.6)
    wait_until_gone(int((tmp_path / "pid").read_text()))


def test_endless_output_is_cut_off() -> None:
    with pytest.raises(JobTimeout, match="endless output"):
        run_job(["yes"], output_limit_bytes=100_000, timeout_s=30)


def test_a_child_that_ignores_the_polite_signal_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("meshnode.engine.job.STOP_GRACE_S", 0.2)
    cancelled = threading.Event()
    text = (
        "import os, pathlib, signal, time; signal.signal(15, signal.SIG_IGN); "
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid())); print('up', flush=True); time.sleep(99)"
    )
    with pytest.raises(JobCancelled):
        run_job(python(text), on_line=lambda _: cancelled.set(), cancelled=cancelled)
    wait_until_gone(int((tmp_path / "pid").read_text()))


def test_a_grandchild_that_holds_the_pipe_does_not_hold_the_job(tmp_path: Path) -> None:
    started = time.monotonic()
    result = run_job(["sh", "-c", f"sleep 1000 & echo $! > {tmp_path}/pid; echo done"])
    assert result.tail == ("done",)
    assert time.monotonic() - started < 8
    wait_until_gone(int((tmp_path / "pid").read_text()))


def test_a_child_that_closes_its_output_is_still_waited_for() -> None:
    result = run_job(python("import os, time; os.close(1); os.close(2); time.sleep(0.3); os._exit(5)"))
    assert result.returncode == 5


def test_a_program_that_is_not_there_is_an_os_error() -> None:
    with pytest.raises(FileNotFoundError):
        run_job(["/nowhere/program"])
    with pytest.raises(FileNotFoundError):
        run_job(["no-such-program-anywhere"])


def test_low_priority_reaches_the_program() -> None:
    text = "import os; print(os.getpriority(os.PRIO_PROCESS, 0))"
    usual, low = (int(run_job(python(text), low_priority=low).tail[0]) for low in (False, True))
    assert low == min(19, usual + 10)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
@pytest.mark.parametrize("tool", ["sh", "ninja"])
def test_a_job_does_not_outlive_a_node_that_is_killed(tmp_path: Path, tool: str) -> None:
    script = f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; exec sleep 1000"
    argv = ["sh", "-c", script]
    if tool == "ninja":  # which starts each compiler as the leader of a group of its own
        if shutil.which("ninja") is None:
            pytest.skip("needs ninja")
        rule = f"rule slow\n  command = {script.replace('$', '$$')}\nbuild out: slow\n"
        (tmp_path / "build.ninja").write_text(rule)
        argv = ["ninja", "-C", str(tmp_path)]
    node = subprocess.Popen(
        python(f"from meshnode.engine.job import run_job; run_job({argv!r})"),
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        while not (tmp_path / "pid").exists():
            assert node.poll() is None
            time.sleep(0.01)
    finally:
        node.send_signal(signal.SIGKILL)
        node.wait()
    wait_until_gone(int((tmp_path / "pid").read_text()))
