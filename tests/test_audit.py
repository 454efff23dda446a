"""The audit log on a disk: what survives a crash, a full disk, a stranger's hand."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from meshnode import audit as module
from meshnode import durable
from meshnode.audit import Audit
from meshnode.audit_reading import log_files, records, verify
from meshnode.errors import HomeNotWritable
from meshnode.telemetry import ProblemBoard

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def opened(home: Path, problems: ProblemBoard | None = None) -> AsyncIterator[Audit]:
    audit = Audit(home, problems=problems if problems is not None else ProblemBoard(), gather_s=0.01)
    await audit.start()
    try:
        yield audit
    finally:
        await audit.close()


def kinds(home: Path) -> list[str]:
    return [record["kind"] for record in records(home)]


def codes(problems: ProblemBoard) -> list[str]:
    return [problem.kind.code for problem in problems]


async def until(condition: Callable[[], bool], limit_s: float = 5.0) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.01)


async def test_what_was_recorded_is_on_the_disk_and_in_a_chain_also_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as audit:
        for number in range(100):
            audit.record("served", request=f"req_{number}", tokens_out=number)
        assert await audit.flush()
        assert verify(tmp_path).records == 100
        assert audit.facts() | {"head": ""} == {
            "records": 100,
            "head": "",
            "writable": True,
            "waiting": 0,
            "dropped": 0,
        }
    async with opened(tmp_path) as audit:
        audit.record("asked", request="last")
    found = verify(tmp_path)
    assert (found.records, found.findings, found.torn_bytes) == (101, (), 0)
    assert [record["n"] for record in records(tmp_path)] == list(range(101))
    assert list(records(tmp_path))[-1]["request"] == "last"


async def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    async with opened(tmp_path / "home") as audit:
        audit.record("served", request="1")
        await audit.flush()
    for file in (tmp_path / "home").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


async def test_an_address_prefix_is_masked_by_a_key_of_this_home(tmp_path: Path) -> None:
    async with opened(tmp_path / "a") as first, opened(tmp_path / "b") as second:
        mask = first.mask("203.0.113.0/24")
        assert mask == first.mask("203.0.113.0/24") != first.mask("203.0.114.0/24")
        assert mask != second.mask("203.0.113.0/24") and len(mask) == 16 and first.mask("") == ""
    async with opened(tmp_path / "a") as again:
        assert again.mask("203.0.113.0/24") == mask


async def test_records_are_gathered_so_that_a_thousand_cost_a_few_syncs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs: list[str] = []
    real = os.fsync

    def counted(descriptor: int) -> None:
        syncs.append(threading.current_thread().name)
        real(descriptor)

    audit = Audit(tmp_path, problems=ProblemBoard(), gather_s=0.2)
    await audit.start()
    monkeypatch.setattr(os, "fsync", counted)
    for number in range(1000):
        audit.record("served", request=str(number))
    await until(lambda: audit.facts()["records"] == 1000)
    await audit.close()
    assert set(syncs) == {"audit"}  # never the event loop's
    assert len(syncs) <= 12


# --- crashes --------------------------------------------------------------------------------------------------

WRITER = """
import asyncio, sys
from pathlib import Path
from meshnode.audit import Audit
from meshnode.telemetry import ProblemBoard

async def main():
    audit = Audit(Path(sys.argv[1]), problems=ProblemBoard(), gather_s=0.0)
    await audit.start()
    number = 0
    while True:
        for _ in range(50):
            audit.record("served", request=f"req_{number}", model="demo", tokens_out=number)
            number += 1
        if await audit.flush():
            print(audit.facts()["records"], flush=True)

asyncio.run(main())
"""


def test_a_process_that_is_killed_while_it_writes_leaves_a_whole_log(tmp_path: Path) -> None:
    chance, promised = random.Random(11), 0
    for _ in range(4):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(chance.randrange(3, 12)):
                promised = int(writer.stdout.readline())
            time.sleep(chance.random() * 0.01)  # where in a batch it is hit
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            promised = max([promised, *(int(line) for line in writer.stdout if line.endswith("\n"))])
        found = verify(tmp_path)
        assert found.findings == () and found.records >= promised > 0
    assert [record["n"] for record in records(tmp_path)] == list(range(found.records))


@pytest.mark.parametrize("torn", [b"{", b'{"n":3,"prev":"' + b"0" * 40, b"\x00" * 4096])
async def test_a_line_that_was_cut_off_is_taken_away_and_noted(tmp_path: Path, torn: bytes) -> None:
    async with opened(tmp_path) as audit:
        for number in range(3):
            audit.record("served", request=str(number))
    with (tmp_path / "audit.log").open("ab") as file:
        file.write(torn)
    assert verify(tmp_path).torn_bytes == len(torn) and not verify(tmp_path).findings
    problems = ProblemBoard()
    async with opened(tmp_path, problems) as audit:
        audit.record("served", request="3")
    assert kinds(tmp_path) == ["served", "served", "served", "repaired", "served"]
    assert list(records(tmp_path))[3]["cut_bytes"] == len(torn)
    assert not verify(tmp_path).findings and not verify(tmp_path).torn_bytes and codes(problems) == []


async def test_a_crash_between_the_records_and_their_head_is_no_finding(tmp_path: Path) -> None:
    async with opened(tmp_path) as audit:
        audit.record("served", request="0")
        await audit.flush()
        head = (tmp_path / "audit.head").read_bytes()
        audit.record("served", request="1")
    (tmp_path / "audit.head").write_bytes(head)
    assert verify(tmp_path).findings == ()
    (tmp_path / "audit.head").unlink()
    async with opened(tmp_path) as audit:
        audit.record("served", request="2")
    assert verify(tmp_path).records == 3 and verify(tmp_path).findings == ()


# --- a foreign hand -------------------------------------------------------------------------------------------


async def test_a_log_that_was_changed_is_kept_as_it_is_and_the_chain_goes_on_behind_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as audit:
        for number in range(5):
            audit.record("served", request=str(number))
    file = tmp_path / "audit.log"
    changed = file.read_bytes().replace(b'"request":"2"', b'"request":"9"')
    file.write_bytes(changed)
    problems = ProblemBoard()
    async with opened(tmp_path, problems) as audit:
        assert audit.writable
        audit.record("served", request="5")
    assert codes(problems) == ["audit-broken"]
    [problem] = problems
    assert "line 3" in problem.facts["reason"] and "audit-00000000.log" in problem.facts["path"]
    assert (tmp_path / "audit-00000000.log").read_bytes() == changed
    assert log_files(tmp_path) == ["audit-00000000.log", "audit.log"]
    [found] = verify(tmp_path).findings
    assert (found.file, found.line) == ("audit-00000000.log", 3)
    assert kinds(tmp_path)[-2:] == ["broken", "served"]


@pytest.mark.parametrize("rest", [b"", None])
async def test_an_end_that_was_removed_stays_visible(tmp_path: Path, rest: bytes | None) -> None:
    async with opened(tmp_path) as audit:
        for number in range(5):
            audit.record("served", request=str(number))
    if rest is None:
        (tmp_path / "audit.log").unlink()
    else:
        (tmp_path / "audit.log").write_bytes(rest)
    problems = ProblemBoard()
    async with opened(tmp_path, problems) as audit:
        audit.record("served", request="5")
    assert codes(problems) == ["audit-broken"]
    [found] = verify(tmp_path).findings
    assert "records 0 to 4 are missing" in found.text


async def test_a_file_that_is_taken_away_under_a_running_node_is_begun_anew(tmp_path: Path) -> None:
    async with opened(tmp_path) as audit:
        audit.record("served", request="0")
        assert await audit.flush()
        (tmp_path / "audit.log").rename(tmp_path / "elsewhere")
        audit.record("served", request="1")
        assert await audit.flush()
    [found] = verify(tmp_path).findings
    assert "record 0 is missing" in found.text
    assert [record["n"] for record in records(tmp_path)] == [1]


# --- rotation -------------------------------------------------------------------------------------------------


async def test_a_full_file_is_put_away_and_the_chain_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILE_BYTES", 4000)
    for _ in range(2):
        async with opened(tmp_path) as audit:
            for number in range(60):
                audit.record("served", request=str(number), model="demo")
                if number % 7 == 0:
                    await audit.flush()
    found = verify(tmp_path)
    assert (found.records, found.findings) == (120, ())
    assert len(found.files) >= 4 and found.files[-1] == "audit.log"
    for name in found.files[1:-1]:
        first = json.loads((tmp_path / name).read_text("ascii").splitlines()[0])
        assert name == f"audit-{first['n']:08d}.log"
    removed = found.files[1]
    (tmp_path / removed).unlink()
    [missing] = verify(tmp_path).findings
    assert missing.file == found.files[2] and missing.line == 1


async def test_a_crash_between_putting_away_and_beginning_anew_is_no_finding(tmp_path: Path) -> None:
    async with opened(tmp_path) as audit:
        audit.record("served", request="0")
    (tmp_path / "audit.log").rename(tmp_path / "audit-00000000.log")
    problems = ProblemBoard()
    async with opened(tmp_path, problems) as audit:
        audit.record("served", request="1")
    assert verify(tmp_path).findings == () and codes(problems) == []
    assert [record["n"] for record in records(tmp_path)] == [0, 1]


# --- disks ----------------------------------------------------------------------------------------------------


class Disk:
    """A disk that may have no room: as much as `free_bytes` can be added to any file."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        self.full = False
        self._home = home
        self._write, self._durable = os.write, durable.write
        monkeypatch.setattr(os, "write", self.write)
        monkeypatch.setattr(durable, "write", self.durable)

    @property
    def has_room(self) -> bool:
        """The reserve was given up, and nothing took its room."""
        return not self.full or not (self._home / "audit.reserve").exists()

    def write(self, descriptor: int, data: Any) -> int:
        if not self.has_room:
            self._write(descriptor, bytes(data[:7]))
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._write(descriptor, data)

    def durable(self, file: Path, data: bytes, *more: Any) -> None:
        if not self.has_room or (self.full and file.name == "audit.reserve"):
            raise HomeNotWritable(f"{file}: No space left on device")
        self._durable(file, data, *more)


async def test_a_full_disk_takes_what_is_under_way_and_stops_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.02)
    disk, problems = Disk(monkeypatch, tmp_path), ProblemBoard()
    async with opened(tmp_path, problems) as audit:
        audit.record("served", request="0")
        assert await audit.flush() and audit.writable
        disk.full = True
        audit.record("served", request="1")  # it ran while the disk became full
        await until(lambda: codes(problems) == ["audit-not-written"])
        assert not audit.writable
        assert [record["request"] for record in records(tmp_path)] == ["0", "1"]
        assert verify(tmp_path).findings == () and verify(tmp_path).torn_bytes == 0
        audit.record("served", request="2")
        disk.full = False
        await until(lambda: audit.writable)
        assert codes(problems) == [] and await audit.flush()
    assert [record["request"] for record in records(tmp_path)] == ["0", "1", "2"]
    assert verify(tmp_path).findings == ()


async def test_a_disk_that_fails_altogether_loses_no_record_and_writes_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.02)
    broken = False
    real = os.fsync

    def fails(descriptor: int) -> None:
        if broken:
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fails)
    problems = ProblemBoard()
    async with opened(tmp_path, problems) as audit:
        for turn in range(3):
            broken = True
            audit.record("served", request=f"{turn}")
            await until(lambda: not audit.writable)
            assert not await audit.flush()
            assert codes(problems) == ["audit-not-written"]
            broken = False
            await until(lambda: audit.writable)
    assert [record["request"] for record in records(tmp_path)] == ["0", "1", "2"]
    assert verify(tmp_path).findings == ()


async def test_a_home_that_cannot_be_written_is_a_problem_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    problems = ProblemBoard()
    async with opened(tmp_path / "file" / "home", problems) as audit:
        assert not audit.writable and codes(problems) == ["audit-not-written"]
        audit.record("served", request="0")


async def test_what_waits_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 10)
    audit = Audit(tmp_path, problems=ProblemBoard())
    for number in range(25):
        audit.record("served", request=str(number))
    assert (audit.facts()["waiting"], audit.facts()["dropped"], audit.writable) == (10, 15, False)
    await audit.start()
    assert await audit.flush() and audit.writable
    await audit.close()
    assert [record["request"] for record in records(tmp_path)] == [str(number) for number in range(10)]


def test_a_fact_that_is_not_kept_is_our_own_fault(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not kept"):
        Audit(tmp_path, problems=ProblemBoard()).record("served", prompt="hello")
