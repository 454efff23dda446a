"""The journal on a disk that fails, in a file that is damaged, and in the hands of two processes."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from meshnode.errors import DiskFull, HomeNotWritable, LedgerDamaged, WalletInUse
from meshnode.settlement.store import LOCK, NAME, RETRY_S, Store
from meshnode.settlement.store_schema import VERSION

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def opened(folder: Path, clock: Callable[[], float] | None = None) -> AsyncIterator[Store]:
    store = Store(folder, clock=clock) if clock else Store(folder)
    await store.start()
    try:
        yield store
    finally:
        await store.close()


def put(name: str, value: str = "x") -> Callable[[sqlite3.Connection], None]:
    def work(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO meta (name, value) VALUES (?, ?)", (name, value))

    return work


def names(db: sqlite3.Connection) -> list[str]:
    return [name for (name,) in db.execute("SELECT name FROM meta ORDER BY name")]


async def test_what_was_written_is_there_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path / "wallet") as store:
        assert store.trouble is None
        await store.run(put("a"))
    async with opened(tmp_path / "wallet") as store:
        assert await store.run(names) == ["a"]
    assert stat.S_IMODE((tmp_path / "wallet").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "wallet" / NAME).stat().st_mode) == 0o600


async def test_each_commit_is_synced(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        pragmas = await store.run(
            lambda db: [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
        )
    assert pragmas == ["wal", 2]


async def test_of_work_that_shares_a_transaction_only_that_is_undone_which_fails(tmp_path: Path) -> None:
    def fails(db: sqlite3.Connection) -> None:
        put("lost")(db)
        raise ValueError("no")

    async with opened(tmp_path) as store:
        work = [put("a"), fails, put("b"), put("a"), put("c")]
        found = await asyncio.gather(*map(store.run, work), return_exceptions=True)
        assert [type(item) for item in found] == [type(None), ValueError, type(None), LedgerDamaged, type(None)]
        assert await store.run(names) == ["a", "b", "c"]
        assert store.trouble is None


async def test_work_waits_in_order_and_shares_transactions(tmp_path: Path) -> None:
    seen: list[int] = []
    async with opened(tmp_path) as store:
        await asyncio.gather(*(store.run(lambda _, number=number: seen.append(number)) for number in range(500)))  # type: ignore[misc]
    assert seen == list(range(500))


async def test_work_of_a_caller_that_left_is_done_all_the_same(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        waiting = asyncio.ensure_future(store.run(put("a")))
        await asyncio.sleep(0)
        waiting.cancel()
        assert await store.run(names) == ["a"]
        with pytest.raises(asyncio.CancelledError):
            await waiting


async def test_a_second_process_is_told_who_has_the_wallet(tmp_path: Path) -> None:
    now = [100.0]
    async with opened(tmp_path):
        program = (
            "import asyncio, sys, pathlib\n"
            "from meshnode.settlement.store import Store\n"
            "async def main():\n"
            "    store = Store(pathlib.Path(sys.argv[1])); await store.start()\n"
            "    print(store.trouble.code, store.trouble.detail); await store.close()\n"
            "asyncio.run(main())\n"
        )
        told = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)
        assert told.stdout.startswith("wallet-in-use") and f"pid {os.getpid()}" in told.stdout
        second = Store(tmp_path, clock=lambda: now[0])
        await second.start()
        assert isinstance(second.trouble, WalletInUse)
    with pytest.raises(WalletInUse):  # not asked again at once
        await second.run(names)
    now[0] += RETRY_S
    assert await second.run(names) == []
    assert second.trouble is None
    await second.close()


async def test_a_full_disk_fails_what_is_written_and_nothing_else(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.run(put("before"))
        pages = await store.run(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
        await store.run(lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchone())
        with pytest.raises(DiskFull):
            await store.run(put("large", "x" * 100_000))
        assert await store.run(names) == ["before"]
        await store.run(lambda db: db.execute("PRAGMA max_page_count = 100000").fetchone())
        await store.run(put("large", "x" * 100_000))
        assert await store.run(names) == ["before", "large"]


async def test_a_folder_that_cannot_be_made_is_said_and_tried_again(tmp_path: Path) -> None:
    now = [0.0]
    (tmp_path / "wallet").write_text("a file in the way")
    async with opened(tmp_path / "wallet", lambda: now[0]) as store:
        assert isinstance(store.trouble, HomeNotWritable)
        (tmp_path / "wallet").unlink()
        now[0] += RETRY_S
        await store.run(put("a"))
        assert store.trouble is None


@pytest.mark.parametrize("kind", ["no database", "cut off", "overwritten", "of another program", "newer"])
async def test_a_file_that_is_not_what_was_written_is_left_as_it_is(tmp_path: Path, kind: str) -> None:
    async with opened(tmp_path) as store:
        for number in range(200):
            await store.run(put(f"name {number}", "x" * 200))
    file = tmp_path / NAME
    data = bytearray(file.read_bytes())
    if kind == "no database":
        data[:] = b"not SQLite at all" * 1000
    elif kind == "cut off":
        del data[len(data) // 2 :]
    elif kind == "overwritten":
        data[4096 : len(data) - 4096] = os.urandom(len(data) - 8192)
    file.write_bytes(data)
    if kind in ("of another program", "newer"):
        with sqlite3.connect(file) as db:
            db.execute("PRAGMA application_id = 7" if kind != "newer" else f"PRAGMA user_version = {VERSION + 1}")
        db.close()
    before = file.read_bytes()
    async with opened(tmp_path) as store:
        assert isinstance(store.trouble, LedgerDamaged) and store.trouble.fix
        with pytest.raises(LedgerDamaged):
            await store.run(names)
    assert file.read_bytes() == before


async def test_damage_that_is_met_while_it_runs_ends_it(tmp_path: Path) -> None:
    def damaged(_: sqlite3.Connection) -> None:
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error

    async with opened(tmp_path) as store:
        with pytest.raises(LedgerDamaged):
            await store.run(damaged)
        with pytest.raises(LedgerDamaged):
            await store.run(names)
        assert isinstance(store.trouble, LedgerDamaged)
        other = Store(tmp_path)  # the wallet was let go
        await other.start()
        assert other.trouble is None
        await other.close()


async def test_tables_of_others_are_made_at_each_start(tmp_path: Path) -> None:
    for _ in range(2):
        store = Store(tmp_path, more_tables=("CREATE TABLE IF NOT EXISTS more (name TEXT);",))
        await store.start()
        assert await store.run(lambda db: db.execute("SELECT count(*) FROM more").fetchone()) == (0,)
        await store.close()


async def test_a_closed_store_takes_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(LedgerDamaged):
        await store.run(names)
    await store.start()
    await store.close()
    await store.close()
    with pytest.raises(LedgerDamaged):
        await store.run(names)
    assert (tmp_path / LOCK).exists()


async def test_a_library_that_is_too_old_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 31, 1))
    async with opened(tmp_path) as store:
        assert isinstance(store.trouble, LedgerDamaged) and "SQLite" in store.trouble.fix
