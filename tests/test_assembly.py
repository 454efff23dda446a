"""One plan put into force, with books of leases on real links, and tunnels that end at a fake rpc-server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from meshnode import assembly
from meshnode.assembly import Assembly, Links, SplitModel
from meshnode.core.split import SplitPlan, Stage
from meshnode.errors import PeerUnreachable, WeightsUnavailable, WorkerLost
from meshnode.net.stream import MeshStream
from meshnode.rpc.work import LeaseRefusal
from meshnode.rpc.worker_end import WorkerEnd
from meshnode.wire.frames import encode_stream_header
from meshnode.wire.registry import LeaseCode, StreamType
from meshnode.wire.splits import LeaseAsk
from tests.net.nodes import Node, node, until
from tests.rpc.fake_rpc_server import FACTS, FakeRpcServer, fake_rpc_server
from tests.rpc.lease_room import FAST, FakeWork, Room
from tests.rpc.tunnels import Client

pytestmark = pytest.mark.anyio

MEBIBYTE = 1 << 20
GIBIBYTE = 1 << 30
LIMIT_S = 10.0


class TunnelWork(FakeWork):
    """A work whose tunnels are real ones, before a fake rpc-server."""

    def __init__(self, end: WorkerEnd, *, has_weights: bool = True) -> None:
        super().__init__(has_weights=has_weights)
        self.facts = FACTS
        self._end = end

    async def serve_tunnel(self, stream: MeshStream) -> None:
        self.events.append("tunnel")
        try:
            await self._end.serve_tunnel(stream)
        finally:
            self.events.append("end of tunnel")

    async def close(self) -> None:
        await self._end.close()
        await super().close()


class Street:
    """Node 0 is the host, the others are its workers, each with a room of its own: a book, and what it granted."""

    def __init__(self, host: Node, workers: list[Node], rooms: list[Room], servers: list[FakeRpcServer]) -> None:
        self.host, self.workers, self.rooms, self.servers = host, workers, rooms, servers
        self.lost: list[tuple[str, str]] = []
        self.left: list[str] = []
        self.progress: list[str] = []
        self.unreachable: set[bytes] = set()
        self.reached: list[tuple[bytes, int]] = []
        self.rtt_s: float | None = 0.0001
        self.references: Any = None
        for room, server in zip(rooms, servers, strict=True):
            room.make = lambda room=room, server=server: self.work(room, server)  # type: ignore[misc]

    def name(self, place: int) -> str:
        """The node id of the worker of a stage, in hex digits."""
        return self.workers[place].node_id.hex()

    def work(self, room: Room, server: FakeRpcServer, *, has_weights: bool = True) -> TunnelWork:
        _, ask, _ = room.asked[-1]

        async def no_push(peer: bytes) -> MeshStream:
            raise PeerUnreachable

        end = WorkerEnd(
            port=server.port,
            facts=FACTS,
            workers=ask.workers,
            stage=ask.stage,
            limit_bytes=ask.needed_bytes,
            references=None,
            open_push=no_push,
            working=lambda: True,
            to_half=None,
            from_half=None,
            failed=lambda words: None,
        )
        return TunnelWork(end, has_weights=has_weights)

    def lacks_weights(self, place: int) -> None:
        """That worker has to fetch them first."""
        room, server = self.rooms[place], self.servers[place]
        room.make = lambda: self.work(room, server, has_weights=False)

    def refuses(self, place: int, refusal: Exception) -> None:
        """That worker grants nothing."""

        def make() -> FakeWork:
            raise refusal

        self.rooms[place].make = make

    async def open(self, peer: bytes, header: bytes, priority: int) -> MeshStream:
        if peer in self.unreachable:
            raise PeerUnreachable("nobody there")
        self.reached.append((peer, priority))
        (room,) = [room for room in self.rooms if room.worker.node_id == peer]
        stream = room.link.open_stream()
        stream.write(encode_stream_header(StreamType.RPC, header))
        return stream

    async def assemble(self, *stages: Stage, **changed: Any) -> Assembly:
        options: dict[str, Any] = {"term": 3, "half": False, "patched": True} | changed
        return await Assembly.of(
            plan_of(*stages or [stage(self.name(place), 4 + 8 * place) for place in range(len(self.rooms))]),
            SplitModel(
                name="big", sha256=b"s" * 32, size_bytes=1 << 30, manifest=b"m" * 32, references=self.references
            ),
            Links(open_stream=self.open, rtt_s=lambda node: self.rtt_s, rpc_version=7 << 16),
            lost=lambda node, words: self.lost.append((node, words)),
            leaving=self.left.append,
            progress=self.progress.append,
            **options,
        )

    async def until_free(self) -> None:
        """Until no worker holds anything any more."""
        await until(lambda: not any(room.book.leases() for room in self.rooms))
        assert all(work.events[-1] == "closed" for room in self.rooms for work in room.works)


def stage(node: str, first_layer: int, layers: int = 8, *, device: int = 0) -> Stage:
    return Stage(
        node, "GPU", device, first_layer, layers, 100 * MEBIBYTE, 20 * MEBIBYTE, 5 * MEBIBYTE, GIBIBYTE, 0.01, 0.002
    )


def plan_of(*stages: Stage) -> SplitPlan:
    return SplitPlan("aa" * 32, 4, 0, (), stages, 2048, 1, "f16", 9, (8, 1), True, None)


@asynccontextmanager
async def street(workers: int = 2) -> AsyncIterator[Street]:
    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(node(0))
        nodes = [await stack.enter_async_context(node(number)) for number in range(1, workers + 1)]
        rooms, servers = [], []
        for worker in nodes:
            room = Room(host, worker, await host.dial(worker), FAST)
            stack.push_async_callback(room.close)
            rooms.append(room)
            servers.append(await stack.enter_async_context(fake_rpc_server()))
        yield Street(host, nodes, rooms, servers)


# --- what workers are asked for -------------------------------------------------------------------------------------


async def test_all_grant_and_the_engine_is_told_of_their_ports() -> None:
    async with street() as place:
        made = await place.assemble()
        try:
            assert len(made.options.servers) == len(set(made.options.servers)) == 2
            assert made.options.reference_sha256 == (b"s" * 32).hex()
            assert made.options.push and made.options.output_on_host
            clients = [await Client.connect(int(server.rpartition(":")[2])) for server in made.options.servers]
            assert await clients[1].allocate(64)
            assert [len(server.buffers) for server in place.servers] == [0, 1], "the ports are in the plan's order"
            assert [each["connections"] for each in made.counters()] == [1, 1]
            for client in clients:
                await client.close()
        finally:
            await made.close()
        assert place.lost == [] and place.left == []


async def test_each_worker_is_told_its_place_its_layers_and_the_bytes_of_its_devices() -> None:
    async with street() as place:
        one, two = place.name(0), place.name(1)
        made = await place.assemble(stage(one, 4, 3, device=1), stage(one, 7, 5, device=0), stage(two, 12, 2), term=9)
        await made.close()
        needed = stage(one, 4, 3).lease_bytes
        assert needed > 125 * MEBIBYTE
        (host, first, plan), (_, second, other) = place.rooms[0].asked[0], place.rooms[1].asked[0]
        assert host == place.host.node_id and plan == other == made.plan_id
        assert [(need.device, need.needed_bytes) for need in first.devices] == [(1, needed), (0, needed)]
        assert [(need.device, need.needed_bytes) for need in second.devices] == [(0, needed)]
        assert first == LeaseAsk(
            term=9,
            model="big",
            sha256=b"s" * 32,
            size_bytes=1 << 30,
            stage=0,
            first_layer=4,
            layers=8,
            needed_bytes=2 * needed,
            workers=(bytes.fromhex(one), bytes.fromhex(two)),
            rpc_version=7 << 16,
            devices=first.devices,
            manifest=b"m" * 32,
        )
        assert (second.stage, second.first_layer, second.layers, second.needed_bytes) == (1, 12, 2, needed)


async def test_every_plan_has_an_id_of_its_own() -> None:
    async with street(1) as place:
        first = await place.assemble()
        await first.close()
        second = await place.assemble()
        await second.close()
        assert first.plan_id != second.plan_id


@pytest.mark.parametrize(("rtt_s", "packed"), [(0.0001, False), (0.02, True), (None, True)])
async def test_bytes_are_packed_where_the_way_is_long(rtt_s: float | None, packed: bool) -> None:
    async with street(1) as place:
        place.rtt_s = rtt_s
        made = await place.assemble()
        try:
            assert (made._ends[0]._uplink._packer is not None) == packed
        finally:
            await made.close()


async def test_an_engine_without_patches_gets_no_references() -> None:
    async with street(1) as place:
        made = await place.assemble(patched=False)
        assert made.options.reference_sha256 == "" and not made.options.push
        await made.close()


async def test_pushes_between_stages_go_by_the_ports_of_this_plan() -> None:
    """What the engine says is for the port of the second tunnel is for the second worker, whatever its port is."""
    async with street() as place:
        made = await place.assemble()
        ports = [int(server.rpartition(":")[2]) for server in made.options.servers]
        routes = [end._boundaries._route for end in made._ends]
        assert [[route(port) for port in (*ports, 1)] for route in routes] == [[0, 1, None]] * 2
        await made.close()


# --- workers that do not take part ----------------------------------------------------------------------------------


@pytest.mark.parametrize("refusing", [0, 1])
async def test_one_refuses_and_the_others_are_given_back(refusing: int) -> None:
    async with street(3) as place:
        place.refuses(refusing, LeaseRefusal(LeaseCode.NO_MEMORY, "9 MB of main memory are free"))
        with pytest.raises(WorkerLost, match="9 MB") as caught:
            await place.assemble()
        assert caught.value.node == place.name(refusing)
        await place.until_free()
        assert place.lost == [], "nobody was lost that had been held"


async def test_a_worker_that_granted_before_another_refused_is_given_back_too() -> None:
    async with street() as place:
        held = asyncio.Event()

        async def late() -> FakeWork:
            await until(lambda: bool(place.rooms[0].book.leases()) and place.rooms[0].book.leases()[0].state == "ready")
            held.set()
            raise LeaseRefusal(LeaseCode.TOO_MANY)

        place.rooms[1].make = late
        with pytest.raises(WorkerLost):
            await place.assemble()
        assert held.is_set() and len(place.rooms[0].works) == 1
        await place.until_free()


async def test_one_cannot_be_reached() -> None:
    async with street() as place:
        place.unreachable.add(bytes(place.workers[1].node_id))
        with pytest.raises(WorkerLost, match="nobody there") as caught:
            await place.assemble()
        assert caught.value.node == place.name(1)
        await place.until_free()


async def test_one_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async with street() as place:
        monkeypatch.setattr(assembly, "ASK_S", 0.2)
        never = asyncio.Event()

        async def wait() -> FakeWork:
            await never.wait()
            raise AssertionError

        place.rooms[0].make = wait
        with pytest.raises(WorkerLost, match="no answer") as caught:
            await place.assemble()
        assert caught.value.node == place.name(0)
        await place.until_free()


async def test_weights_that_cannot_be_had_end_it() -> None:
    async with street() as place:
        place.lacks_weights(1)
        assembling = asyncio.create_task(place.assemble())
        await until(lambda: bool(place.rooms[1].works))
        place.rooms[1].works[0].fetched.put_nowait(WeightsUnavailable("no member has them"))
        with pytest.raises(WorkerLost, match="no member has them") as caught:
            await assembling
        assert caught.value.node == place.name(1)
        await place.until_free()


async def test_a_worker_that_fetches_is_waited_for_and_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async with street() as place:
        monkeypatch.setattr(assembly, "PAUSE_S", 0.5)
        place.lacks_weights(0)
        assembling = asyncio.create_task(place.assemble())
        await until(lambda: bool(place.rooms[0].works))
        work = place.rooms[0].works[0]
        for have in range(1, 5):
            await asyncio.sleep(0.2)  # all of it takes longer than one pause may
            work.fetched.put_nowait((have * 1_000_000, 8_000_000))
        work.fetched.put_nowait(None)
        made = await assembling
        assert place.progress[-1] == f"{place.name(0)[:10]} fetches its layers: 4 of 8 MB"
        await made.close()


async def test_a_worker_that_is_never_ready_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says again and again that it has what it had."""
    async with street() as place:
        monkeypatch.setattr(assembly, "PAUSE_S", 0.3)
        place.lacks_weights(0)

        async def repeat() -> None:
            await until(lambda: bool(place.rooms[0].works))
            while True:
                place.rooms[0].works[0].fetched.put_nowait((1, 8_000_000))
                await asyncio.sleep(0.05)

        repeating = asyncio.create_task(repeat())
        try:
            async with asyncio.timeout(LIMIT_S):
                with pytest.raises(WorkerLost, match="not ready") as caught:
                    await place.assemble()
        finally:
            repeating.cancel()
        assert caught.value.node == place.name(0)
        await place.until_free()


async def test_one_is_lost_while_another_is_still_fetching() -> None:
    """The owner is told at once; when it gives up what it began, all of it is given back."""
    async with street() as place:
        place.lacks_weights(1)
        assembling = asyncio.create_task(place.assemble())
        await until(lambda: all(room.book.leases() and room.works for room in place.rooms))
        await until(lambda: place.rooms[0].book.leases()[0].state == "ready")
        place.rooms[0].works[0].broken.set_result("the rpc-server was killed")
        await until(lambda: bool(place.lost))
        ((lost, words),) = place.lost
        assert lost == place.name(0) and words.endswith("the rpc-server was killed")
        assembling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await assembling
        await place.until_free()


async def test_a_tunnel_that_cannot_be_opened_names_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    async with street() as place:
        opened = place.open

        async def sometimes(peer: bytes, header: bytes, priority: int) -> MeshStream:
            if priority == assembly.TUNNEL_PRIORITY and peer == place.workers[1].node_id:
                raise ConnectionResetError("the link is down")
            return await opened(peer, header, priority)

        place.open = sometimes  # type: ignore[method-assign]
        with pytest.raises(WorkerLost, match="the link is down") as caught:
            await place.assemble()
        assert caught.value.node == place.name(1)
        await place.until_free()


# --- while it is in force, and its end ------------------------------------------------------------------------------


async def test_the_end_is_tunnels_first_and_leases_then() -> None:
    async with street() as place:
        made = await place.assemble()
        client = await Client.connect(int(made.options.servers[0].rpartition(":")[2]))
        assert await client.allocate(64)
        await until(lambda: all(room.works[0].events == ["tunnel"] for room in place.rooms))
        await made.close()
        await place.until_free()
        assert [room.works[0].events for room in place.rooms] == [["tunnel", "end of tunnel", "closed"]] * 2
        assert await client.ended()
        assert place.lost == [], "its owner wanted it"
        await made.close()
        await client.close()


async def test_a_worker_that_is_lost_is_named() -> None:
    async with street() as place:
        made = await place.assemble()
        place.rooms[1].works[0].broken.set_result("the rpc-server ran out of memory")
        await until(lambda: any(words.endswith("ran out of memory") for _, words in place.lost))
        assert {node for node, _ in place.lost} == {place.name(1)}
        await made.close()


async def test_a_worker_that_wants_to_leave_is_named() -> None:
    async with street() as place:
        made = await place.assemble()
        place.rooms[0].book.announce_leaving()
        await until(lambda: bool(place.left))
        assert place.left == [place.name(0)] and place.lost == []
        await made.close()


async def test_a_worker_that_does_not_give_what_it_granted_is_known() -> None:
    async with street() as place:
        made = await place.assemble()
        assert made.stingy() == ""
        client = await Client.connect(int(made.options.servers[1].rpartition(":")[2]))
        assert await client.allocate(1 << 40) == 0
        assert made.stingy() == place.name(1)
        await client.close()
        await made.close()


async def test_leases_and_tunnels_have_their_priorities() -> None:
    async with street(1) as place:
        made = await place.assemble()
        assert [priority for _, priority in place.reached] == [assembly.LEASE_PRIORITY, assembly.TUNNEL_PRIORITY]
        await made.close()
