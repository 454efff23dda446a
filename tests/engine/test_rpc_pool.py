import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshnode.engine.rpc_pool import PoolParts, RpcPool, Wanted
from meshnode.errors import EngineCrashed
from tests.engine.fake_rpc_server import FakeRpcServer

pytestmark = pytest.mark.anyio
ANNA, BERT = b"anna", b"bert"


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    FakeRpcServer.reset()
    yield
    FakeRpcServer.reset()


def pool(folder: Path, spare_s: float = 60.0) -> RpcPool:
    return RpcPool(
        PoolParts(run_dir=folder / "run", logs=folder / "logs", environ={}, server=FakeRpcServer, spare_s=spare_s)
    )


def wanted(*devices: str) -> Wanted:
    return Wanted(Path("/opt/rpc"), devices, 4, None if devices else 1000)


async def turns(count: int = 200) -> None:
    for _ in range(count):
        await asyncio.sleep(0.001)
        if len(FakeRpcServer.made) > 1:
            return


async def test_each_has_its_place_and_is_used_once(tmp_path: Path) -> None:
    mine = pool(tmp_path)
    first, second = await mine.take(ANNA, wanted()), await mine.take(BERT, wanted())
    parts = FakeRpcServer.made[0].parts
    assert (parts.run_dir, parts.log_file) == (tmp_path / "run" / "rpc-0", tmp_path / "logs" / "engine-rpc-0.log")
    assert (parts.binary, parts.devices, parts.threads, parts.memory_limit_bytes) == (Path("/opt/rpc"), (), 4, 1000)
    assert parts.run_dir.is_dir() and parts.run_dir.stat().st_mode & 0o777 == 0o700
    assert (first.slot, second.slot) == (0, 1)
    await mine.end(first, ANNA)
    third = await mine.take(ANNA, wanted())
    assert third.slot == 0 and third is not first and len(FakeRpcServer.made) == 3, "a processor starts fast"
    await mine.end(second, BERT)
    await mine.end(third, ANNA)
    assert not any(server.runs for server in FakeRpcServer.made)
    await mine.close()


async def test_after_gpus_a_fresh_one_is_kept_for_the_same_user(tmp_path: Path) -> None:
    mine = pool(tmp_path)
    await mine.end(await mine.take(ANNA, wanted("CUDA0")), ANNA)
    await turns()
    old, fresh = FakeRpcServer.made
    assert not old.runs and fresh.runs
    again = await mine.take(ANNA, wanted("CUDA0"))
    assert again.server is fresh
    await mine.end(again, ANNA)
    await mine.close()
    assert not any(server.runs for server in FakeRpcServer.made)


@pytest.mark.parametrize("change", ["user", "devices", "broken"])
async def test_what_was_kept_for_something_else_goes_first(tmp_path: Path, change: str) -> None:
    mine = pool(tmp_path)
    await mine.end(await mine.take(ANNA, wanted("CUDA0")), ANNA)
    await turns()
    kept = FakeRpcServer.made[1]
    if change == "broken":
        kept.parts.on_exit("signal 9")
    user, devices = (BERT if change == "user" else ANNA), ("CUDA1" if change == "devices" else "CUDA0")
    running = await mine.take(user, wanted(devices))
    assert running.server is FakeRpcServer.made[2] and not kept.runs
    await mine.end(running, user)
    await mine.close()
    assert not any(server.runs for server in FakeRpcServer.made)


async def test_it_is_kept_for_a_while_only(tmp_path: Path) -> None:
    mine = pool(tmp_path, spare_s=0.02)
    await mine.end(await mine.take(ANNA, wanted("CUDA0")), ANNA)
    async with asyncio.timeout(5):
        while len(FakeRpcServer.made) < 2 or FakeRpcServer.made[1].events[-1] != "stop":
            await asyncio.sleep(0.002)
    await mine.close()


async def test_closing_while_one_is_started(tmp_path: Path) -> None:
    mine = pool(tmp_path)
    running = await mine.take(ANNA, wanted("CUDA0"))
    FakeRpcServer.hold = asyncio.Event()
    await mine.end(running, ANNA)
    await turns()
    async with asyncio.timeout(5):
        await mine.close()
    assert not any(server.runs for server in FakeRpcServer.made)


async def test_a_server_that_does_not_start_leaves_its_place(tmp_path: Path) -> None:
    mine = pool(tmp_path)
    FakeRpcServer.error = EngineCrashed("no")
    with pytest.raises(EngineCrashed):
        await mine.take(ANNA, wanted())
    FakeRpcServer.error = None
    assert (await mine.take(ANNA, wanted())).slot == 0


async def test_one_that_cannot_be_kept_is_no_error(tmp_path: Path) -> None:
    mine = pool(tmp_path)
    running = await mine.take(ANNA, wanted("CUDA0"))
    FakeRpcServer.error = EngineCrashed("no")
    await mine.end(running, ANNA)
    await turns()
    FakeRpcServer.error = None
    assert (await mine.take(ANNA, wanted("CUDA0"))).slot == 0
    await mine.close()


async def test_the_first_reason_of_a_break_counts(tmp_path: Path) -> None:
    mine = pool(tmp_path)
    running = await mine.take(ANNA, wanted())
    running.server.parts.on_exit("signal 9")  # type: ignore[attr-defined]
    running.fail("the tunnel broke")
    assert running.broken.result() == "signal 9" == await running.failure()
    await mine.end(running, ANNA)


async def test_how_it_ended_says_more_than_that_it_is_gone(tmp_path: Path) -> None:
    mine = pool(tmp_path)
    running, stalled = await mine.take(ANNA, wanted()), await mine.take(BERT, wanted())
    running.fail("the connection is closed")
    failure = asyncio.create_task(running.failure())
    await asyncio.sleep(0)
    running.server.parts.on_exit("signal 9")  # type: ignore[attr-defined]
    stalled.fail("it stalls")
    async with asyncio.timeout(5):
        assert await failure == "signal 9"
        assert await stalled.failure() == "it stalls"
