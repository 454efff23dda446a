"""Two processes and one cache folder."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from meshnode.engine import lock
from meshnode.engine.job import JobCancelled
from meshnode.engine.lock import build_lock, is_building
from meshnode.telemetry import Progress

HOLDER = """
import sys
from pathlib import Path
from meshnode.engine.lock import build_lock
with build_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Another process that holds the lock until its input is closed."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_free_lock_is_taken_at_once(tmp_path: Path) -> None:
    reports: list[Progress] = []
    assert not is_building(tmp_path / "cache")
    with build_lock(tmp_path / "cache", report=reports.append):
        assert is_building(tmp_path / "cache")
    assert not is_building(tmp_path / "cache")
    assert reports == []


def test_the_second_waits_and_tells_how_far_the_first_is(
    tmp_path: Path, holder: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "POLL_S", 0.01)
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "key.log").write_bytes(b"-- cmake\n[1/223] one\nwarning [9/9] no\n[57/223] two\n")
    reports: list[Progress] = []

    def report(progress: Progress) -> None:
        reports.append(progress)
        if len(reports) == 2:
            holder.kill()  # a lock is free when its holder dies, however it dies

    with build_lock(tmp_path, report=report):
        pass
    assert (reports[0].done, reports[0].total) == (57, 223)
    assert f"process {holder.pid}" in reports[0].text
    assert reports[-1].finished


def test_waiting_can_be_cancelled(tmp_path: Path, holder: subprocess.Popen[bytes]) -> None:
    cancelled = threading.Event()
    with pytest.raises(JobCancelled), build_lock(tmp_path, report=lambda _: cancelled.set(), cancelled=cancelled):
        pytest.fail("the lock was taken twice")
    assert is_building(tmp_path)


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError), build_lock(tmp_path / "file" / "cache"):
        pytest.fail("there is no such folder")
