"""Lending over real links: who is granted what, with which words others are refused, and what is freed when.

The rpc-server and the worker's end are made-up ones that write down what is done to them; the last test is with the
real program.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meshnode.config import Settings, find_places
from meshnode.engine.halves import Halves
from meshnode.engine.installed import Engine
from meshnode.engine.provision import find
from meshnode.engine.rpc_server import RpcServer
from meshnode.errors import EngineCrashed, LeaseDenied, ModelFileInvalid, WeightsUnavailable
from meshnode.hardware import Device, Inventory, Memory, Processor
from meshnode.lending import Lending, LendingParts
from meshnode.net.stream import MeshStream
from meshnode.rpc.held_lease import HeldLease
from meshnode.rpc.work import Progress
from meshnode.wire.registry import LeaseCode, RpcKind
from meshnode.wire.splits import DeviceNeed, LeaseAsk
from tests.engine.fake_rpc_server import DEVICE, HELLO, FakeRpcServer
from tests.net.nodes import node, until
from tests.rpc.lease_room import ASK, FAST, WORKER, Room

pytestmark = pytest.mark.anyio
GIB = 1 << 30
OTHER_PLAN = b"o" * 16
CPU = Device("CPU", "a processor", "cpu", "CPU", 16 * GIB, 12 * GIB)
MACHINE = Inventory((CPU,), Processor("a processor", 8, 4), Memory(16 * GIB, 12 * GIB))
GPUS = tuple(Device(f"CUDA{number}", "a GPU", "gpu", "CUDA", 8 * GIB, 8 * GIB) for number in range(2))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    FakeRpcServer.reset()
    yield
    FakeRpcServer.reset()


class FakeHeld:
    """Tensors of a model on this disk."""

    def __init__(self, sha256: bytes, whole: set[str]) -> None:
        self.sha256 = sha256
        self.tensors = tuple(f"blk.{layer}.{name}" for layer in range(16) for name in ("ffn.weight", "attn.weight"))
        self._whole = whole

    def is_whole(self, tensor: str) -> bool:
        return tensor in self._whole

    def find(self, tensor: str, offset: int, size: int) -> tuple[Path, int] | None:
        return None


LAYERS = {f"blk.{layer}.{name}" for layer in range(4, 12) for name in ("ffn.weight", "attn.weight")}


class FakeEnd:
    """A worker's end that echoes its tunnels."""

    made: list[FakeEnd] = []

    def __init__(self, **parts: Any) -> None:
        self.parts = parts
        self.closed = False
        FakeEnd.made.append(self)

    async def serve_tunnel(self, stream: MeshStream) -> None:
        while data := await stream.read(100):
            stream.write(data)
        stream.write_eof()

    async def serve_push(self, stream: MeshStream, peer: bytes) -> None:
        await self.serve_tunnel(stream)

    async def close(self) -> None:
        self.closed = True


class Lender:
    """A worker's lending behind its end of a real link, with what it was told to have."""

    def __init__(self, room: Room, folder: Path, **settings: Any) -> None:
        FakeEnd.made = []
        self.room = room
        self.taken: dict[str, int] = {}
        self.held: FakeHeld | None = FakeHeld(ASK.sha256, LAYERS)
        self.fetched: list[tuple[LeaseAsk, bytes]] = []
        self.fetch_error: Exception | None = None
        self.lending = Lending(
            LendingParts(
                node=WORKER,
                settings=Settings(**settings),
                places=replace(find_places({}), home=folder),
                environ={},
                open_stream=self._open,
                taken=lambda: self.taken,
                references=lambda sha256, manifest: self.held,
                fetch=self._fetch,
                name_of=lambda node: "anna",
                server=FakeRpcServer,
                end=FakeEnd,
                limits=FAST,
            )
        )
        room.book = self.lending.book
        self.engine = Engine(
            server=folder / "llama-server",
            rpc_server=folder / "rpc-server",
            quantize=None,
            bench=None,
            fit_params=None,
            version="x",
            rpc_version=(7, 0, 0),
            backend="cpu",
            patched=True,
            origin="built",
        )

    async def _open(self, node: bytes, header: bytes, priority: int) -> MeshStream:
        raise ConnectionError("no push in these tests")

    async def _fetch(self, ask: LeaseAsk, host: bytes, progress: Progress) -> None:
        self.fetched.append((ask, host))
        progress(1, 2)
        if self.fetch_error is not None:
            raise self.fetch_error
        self.held = FakeHeld(ask.sha256, LAYERS)

    async def lease(self, **changed: Any) -> HeldLease:
        return await self.room.lease(**changed)

    async def denied(self, **changed: Any) -> LeaseDenied:
        with pytest.raises(LeaseDenied) as caught:
            await self.lease(**changed)
        return caught.value


@asynccontextmanager
async def lender(
    folder: Path, *, gpus: int = 0, equipped: bool = True, memory: Memory | None = None, **settings: Any
) -> AsyncIterator[Lender]:
    async with node(0) as host, node(1) as worker:
        room = Room(host, worker, await host.dial(worker), FAST)
        made = Lender(room, folder, **settings)
        if equipped:
            inventory = replace(MACHINE, devices=(*GPUS[:gpus], CPU), memory=memory or MACHINE.memory)
            made.lending.equip(made.engine, inventory)
        try:
            yield made
        finally:
            await made.lending.stop(0.0)
            await room.close()


async def test_a_lease_gets_a_server_and_an_end_of_its_own(tmp_path: Path) -> None:
    async with lender(tmp_path, threads=3) as made:
        lease = await made.lease()
        assert lease.granted.facts.hello == HELLO and lease.granted.has_weights
        assert (await lease.ready()).has_weights
        (server,), (end,) = FakeRpcServer.made, FakeEnd.made
        assert (server.parts.devices, server.parts.threads) == ((), 3)
        assert server.parts.memory_limit_bytes == ASK.needed_bytes == end.parts["limit_bytes"]
        assert (end.parts["port"], end.parts["stage"], end.parts["workers"]) == (server.port, 0, (WORKER,))
        assert end.parts["references"] is made.held and made.fetched == []
        tunnel = await made.room.open(RpcKind.TUNNEL)
        tunnel.write(b"hello")
        assert await tunnel.read_exactly(5) == b"hello"
        began = time.monotonic()
        await lease.release()
        assert time.monotonic() - began < 1
        assert end.closed and not server.runs and made.lending.taken_bytes() == {}


async def test_facts(tmp_path: Path) -> None:
    async with lender(tmp_path) as made:
        assert made.lending.facts() == {"lends": True, "why_not": "", "rpc_version": "7.0.0", "leases": []}
        assert made.lending.rpc_version == 7 << 16
        lease = await made.lease()
        await lease.ready()
        (facts,) = made.lending.facts()["leases"]
        assert facts["host_name"] == "anna" and facts["model"] == "big" and facts["state"] == "ready"
        assert (facts["first_layer"], facts["layers"], facts["bytes"]) == (4, 8, ASK.needed_bytes)
        assert facts["devices"] == {"host": ASK.needed_bytes} == made.lending.taken_bytes()
        assert abs(facts["since"] - time.time()) < 60
        await lease.release()


async def test_main_memory_counts_after_own_models_and_other_leases(tmp_path: Path) -> None:
    """12 GiB are available, of which a tenth is left to the machine."""
    async with lender(tmp_path) as made:
        whole = made.lending.usable_bytes()["host"]
        assert 10 * GIB < whole < 11 * GIB
        made.taken = {"host": 4 * GIB}
        await made.lease(needed_bytes=6 * GIB)
        error = await made.denied(plan=OTHER_PLAN, needed_bytes=GIB)
        assert error.lease_code == LeaseCode.NO_MEMORY and error.free_bytes == whole - 10 * GIB
        assert "1.1 GB of main memory are needed, 0.9 GB are free" in error.message
        assert len(FakeRpcServer.made) == 1, "nothing was started for it"


async def test_max_vram_bounds_what_is_lent(tmp_path: Path) -> None:
    async with lender(tmp_path, max_vram=2 * GIB) as made:
        error = await made.denied(needed_bytes=2 * GIB + 1)
        assert (error.lease_code, error.free_bytes) == (LeaseCode.NO_MEMORY, 2 * GIB)
        await made.lease(needed_bytes=2 * GIB)


async def test_gpus_are_lent_where_there_are_any(tmp_path: Path) -> None:
    async with lender(tmp_path, gpus=2) as made:
        needs = (DeviceNeed(1, 2 * GIB), DeviceNeed(0, 3 * GIB))
        lease = await made.lease(needed_bytes=5 * GIB, devices=needs)
        (server,) = FakeRpcServer.made
        assert server.parts.devices == ("CUDA1", "CUDA0") and server.parts.memory_limit_bytes is None
        assert len(lease.granted.facts.devices) == 2
        assert made.lending.taken_bytes() == {"CUDA1": 2 * GIB, "CUDA0": 3 * GIB}
        error = await made.denied(plan=OTHER_PLAN, needed_bytes=5 * GIB, devices=(DeviceNeed(0, 5 * GIB),))
        assert "of CUDA0 are needed" in error.message
        error = await made.denied(plan=OTHER_PLAN, needed_bytes=GIB, devices=(DeviceNeed(2, GIB),))
        assert error.lease_code == LeaseCode.BAD_ASK


async def test_device_settings_count(tmp_path: Path) -> None:
    async with lender(tmp_path, gpus=2, device=("CUDA1",)) as made:
        assert set(made.lending.usable_bytes()) == {"CUDA1", "host"}
        await made.lease(devices=(DeviceNeed(0, ASK.needed_bytes),))
        assert FakeRpcServer.made[0].parts.devices == ("CUDA1",)


async def test_a_gpu_with_less_than_was_believed(tmp_path: Path) -> None:
    FakeRpcServer.device = replace(DEVICE, free_bytes=GIB)
    async with lender(tmp_path, gpus=1) as made:
        error = await made.denied(needed_bytes=2 * GIB)
        assert (error.lease_code, error.free_bytes) == (LeaseCode.NO_MEMORY, GIB)
        assert not FakeRpcServer.made[0].runs and made.lending.taken_bytes() == {}


async def test_who_does_not_lend_says_so(tmp_path: Path) -> None:
    async with lender(tmp_path, lend=False) as made:
        error = await made.denied()
        assert error.lease_code == LeaseCode.NOT_LENT and "does not lend its memory" in error.message
        assert made.lending.rpc_version == 0 and "--no-lend" in made.lending.facts()["why_not"]


async def test_an_engine_that_is_not_there_yet(tmp_path: Path) -> None:
    async with lender(tmp_path, equipped=False) as made:
        error = await made.denied()
        assert (error.lease_code, error.retry_after_s) == (LeaseCode.NO_ENGINE, 5.0)
        assert made.lending.usable_bytes() == {} and made.lending.rpc_version == 0
        made.lending.equip(replace(made.engine, rpc_server=None), MACHINE)
        error = await made.denied()
        assert error.lease_code == LeaseCode.NO_ENGINE and "has no rpc-server" in error.message


async def test_engines_that_do_not_understand_each_other(tmp_path: Path) -> None:
    async with lender(tmp_path) as made:
        error = await made.denied(rpc_version=7 << 16 | 1)
        assert error.lease_code == LeaseCode.OTHER_VERSION
        assert "speaks llama.cpp RPC 7.0.0, the host's 7.0.1" in error.message
        FakeRpcServer.hello = bytes([6, 0, 0])
        error = await made.denied()
        assert error.lease_code == LeaseCode.OTHER_VERSION and not FakeRpcServer.made[0].runs


async def test_an_rpc_server_that_does_not_start(tmp_path: Path) -> None:
    FakeRpcServer.error = EngineCrashed("no such device")
    async with lender(tmp_path) as made:
        error = await made.denied()
        assert error.lease_code == LeaseCode.NO_ENGINE and "no such device" in error.message
        assert made.lending.taken_bytes() == {}


async def test_missing_layers_are_fetched(tmp_path: Path) -> None:
    async with lender(tmp_path) as made:
        made.held = FakeHeld(ASK.sha256, LAYERS - {"blk.11.attn.weight"})
        lease = await made.lease()
        assert not lease.granted.has_weights
        assert (await lease.ready()).has_weights
        ((asked, host),) = made.fetched
        assert asked == ASK and host == bytes(made.room.host.node_id)
        assert FakeEnd.made[0].parts["references"] is made.held


@pytest.mark.parametrize("held", [None, FakeHeld(ASK.sha256, {"blk.4.ffn.weight"})], ids=["nothing", "a part"])
async def test_what_cannot_be_fetched_the_host_sends(tmp_path: Path, held: FakeHeld | None) -> None:
    async with lender(tmp_path) as made:
        made.held, made.fetch_error = held, WeightsUnavailable("nobody has it")
        lease = await made.lease()
        assert not (await lease.ready()).has_weights
        assert FakeEnd.made[0].parts["references"] is held


@pytest.mark.parametrize("error", [ModelFileInvalid("part 2 is missing"), PermissionError("no")])
async def test_files_that_cannot_be_read_are_none(tmp_path: Path, error: Exception) -> None:
    def unreadable(sha256: bytes, manifest: bytes) -> FakeHeld:
        raise error

    async with lender(tmp_path) as made:
        made.lending.parts = replace(made.lending.parts, references=unreadable)
        made.fetch_error = OSError("the disk is gone")
        lease = await made.lease()
        assert not lease.granted.has_weights and not (await lease.ready()).has_weights


async def test_a_crash_ends_the_lease_with_words(tmp_path: Path) -> None:
    async with lender(tmp_path) as made:
        await (await made.lease()).ready()
        FakeRpcServer.made[0].parts.on_exit("killed by signal 9")
        await until(lambda: bool(made.room.lost))
        assert "killed by signal 9" in made.room.lost[0]
        await until(lambda: made.lending.taken_bytes() == {})
        await made.lease()


async def test_what_the_tunnel_finds_broken_ends_the_lease(tmp_path: Path) -> None:
    async with lender(tmp_path) as made:
        await (await made.lease()).ready()
        FakeEnd.made[0].parts["failed"]("the rpc-server stalls")
        await until(lambda: bool(made.room.lost))
        assert "the rpc-server stalls" in made.room.lost[0]


async def test_leaving_waits_for_the_host_and_then_ends_all(tmp_path: Path) -> None:
    async with lender(tmp_path) as made:
        lease = await made.lease()
        await lease.ready()
        stopping = asyncio.create_task(made.lending.stop(5.0))
        await until(lambda: made.room.left == 1)
        assert FakeRpcServer.made[0].runs and made.lending.rpc_version == 0
        assert (await made.denied(plan=OTHER_PLAN)).lease_code == LeaseCode.LEAVING
        await lease.release()
        async with asyncio.timeout(2):
            await stopping
        assert not FakeRpcServer.made[0].runs and made.room.lost == []


async def test_leaving_does_not_wait_for_ever(tmp_path: Path) -> None:
    async with lender(tmp_path) as made:
        await (await made.lease()).ready()
        await made.lending.stop(0.1)
        assert not FakeRpcServer.made[0].runs
        await until(lambda: bool(made.room.lost))
        assert "is leaving" in made.room.lost[0]


async def test_a_host_that_goes_while_the_server_starts(tmp_path: Path) -> None:
    FakeRpcServer.hold = asyncio.Event()
    async with lender(tmp_path) as made:
        asking = asyncio.create_task(made.lease())
        await until(lambda: bool(FakeRpcServer.made))
        assert made.lending.taken_bytes() == {"host": ASK.needed_bytes}
        asking.cancel()
        await until(lambda: made.lending.taken_bytes() == {})
        assert made.lending.book.leases() == ()


@pytest.mark.engine
async def test_the_real_rpc_server_is_lent_and_ended(tmp_path: Path, engine_bin: Path) -> None:
    engine = find(find_places().cache)
    assert engine is not None and engine.folder == engine_bin
    async with lender(tmp_path) as made:
        parts = replace(made.lending.parts, server=RpcServer)
        made.lending = Lending(parts)
        made.room.book = made.lending.book
        made.lending.equip(engine, MACHINE)
        assert made.lending.rpc_version
        lease = await made.lease(rpc_version=made.lending.rpc_version)
        await lease.ready()
        (device,) = lease.granted.facts.devices
        assert device.alignment >= 16 and device.total_bytes > GIB
        end = FakeEnd.made[0]
        assert isinstance(end.parts["to_half"].__self__, Halves) and end.parts["working"]()
        port = end.parts["port"]
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        await lease.release()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        lease = await made.lease(rpc_version=made.lending.rpc_version)
        await lease.ready()
        await made.lending.stop(0.0)
        await until(lambda: bool(made.room.lost))
