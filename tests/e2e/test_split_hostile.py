"""Workers and hosts of splits that lie, stall and break the rules, against real nodes.

The rogues live in the test's process (tests/lab/rogue_member.py) and have real invites. Whatever they do, the node that
they work for goes on serving its other model, and the one that works for them is as it was.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from struct import pack, unpack
from typing import Any

import psutil
import pytest

from bench.counting import Streams, by_socket
from meshnode.config import find_places
from meshnode.engine.provision import ensure
from meshnode.errors import LeaseDenied
from meshnode.net.stream import MeshStream, StreamReset
from meshnode.wire.ggml_rpc import Command
from meshnode.wire.registry import LeaseCode, Reset, RpcKind
from meshnode.wire.tunnel_blocks import (
    Block,
    BlockReader,
    Option,
    PushFlag,
    bytes_block,
    options_block,
    push_head,
    read_base,
    read_failed,
)
from tests.conftest import NodeProcess, StartNode
from tests.e2e.canary import Canary
from tests.e2e.meshes import SMALL, hosts_of, invite_for
from tests.e2e.small_models import embedding_model
from tests.e2e.victims import until
from tests.e2e.waiting import eventually
from tests.fuzz.rpc_server import MAP_CUSTOM1, graph, placed
from tests.fuzz.rpc_server import tensor as graph_tensor
from tests.lab.rogue_conducts import (
    AnswersInAbsurdSizes,
    Babbles,
    Dawdles,
    GoesAway,
    HangsUp,
    Inflates,
    Pretends,
    Stalls,
    Stingy,
    TakesItBack,
)
from tests.lab.rogue_member import Conduct, RogueMember, rogue_member
from tests.wire.rpc_frames import allocate, frame, push, reference

pytestmark = [pytest.mark.engine, pytest.mark.anyio, pytest.mark.timeout(120)]

QUIET = {**SMALL, "MESHNODE_STANDBY": "off", "MESHNODE_PARALLEL": "1"}
WITHIN_S = 15.0
NAMES = (f"rogue{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def rpc_version(engine_bin: Path) -> int:
    version = ensure(find_places().cache).rpc_version
    assert version
    return int.from_bytes(bytes(version), "big")


def other_model_answers(node: NodeProcess) -> None:
    """The model that it holds alone."""
    body = json.dumps({"model": "file:embedder", "input": "hello"}).encode()
    asked = urllib.request.Request(f"{node.base_url}/v1/embeddings", body, {"content-type": "application/json"})
    with urllib.request.urlopen(asked, timeout=10) as answer:
        assert len(json.load(answer)["data"][0]["embedding"]) > 10


def counts(node: NodeProcess, last: int = 10) -> None:
    """The split model."""
    with Streams(by_socket(node.base_url), [("demo", last)]) as streams:
        pass
    assert streams.faults() == []


def split_of(node: NodeProcess) -> dict[str, Any]:
    """What the node says of the model that it serves with others."""
    (entry,) = [each for each in node.status()["models"] if each["id"] == "demo" and each["where"] == "here"]
    return dict(entry)


def avoided_by(node: NodeProcess) -> list[str]:
    """Which nodes it asks for nothing any more, for a while."""
    split = split_of(node)["split"]
    return list(split["avoided"]) if split else []


# --- rogue workers --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host(start_shared_node: StartNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """A node that may not hold the demo alone and waits for machines; it serves another model meanwhile."""
    other = embedding_model(tmp_path_factory.mktemp("models") / "embedder.gguf")
    node = start_shared_node("--model", str(other), "--model", "demo", "--split", environment=QUIET)
    yield node
    node.end()


@asynccontextmanager
async def at_work(node: NodeProcess, folder: Path, version: int, conduct: Any) -> AsyncIterator[RogueMember]:
    """A rogue that has been asked to work for that node."""
    async with rogue_member(folder, invite_for(node, 1), rpc_version=version, name=next(NAMES)) as member:
        member.worker(conduct)
        await until(lambda: bool(member.asked), WITHIN_S)
        yield member


@pytest.mark.parametrize(
    "conduct", [Stingy, Pretends, Inflates, Babbles, AnswersInAbsurdSizes, Stalls, HangsUp, GoesAway, TakesItBack]
)
async def test_a_bad_worker_is_left_out_and_harms_nothing_else(
    host: NodeProcess, tmp_path: Path, rpc_version: int, conduct: type[Conduct]
) -> None:
    engine = host.engine_pids()[:1]
    async with at_work(host, tmp_path, rpc_version, conduct) as member:
        node = member.node.hex()
        await until(lambda: node in avoided_by(host), WITHIN_S)
        await asyncio.to_thread(other_model_answers, host)
        # As no other machine is there the model waits again, and says so.
        await until(lambda: "waits for machines" in split_of(host)["detail"], WITHIN_S)
        assert len(member.asked) <= 2 and not member.book.leases()
    assert split_of(host)["state"] == "loading" and host.engine_pids()[:1] == engine


async def test_a_worker_that_is_never_ready_holds_up_nothing_else(
    host: NodeProcess, tmp_path: Path, rpc_version: int
) -> None:
    async with at_work(host, tmp_path, rpc_version, Dawdles) as member:
        await until(lambda: "fetches its layers" in split_of(host)["detail"], WITHIN_S)
        await asyncio.to_thread(other_model_answers, host)
        node = member.node.hex()
    await until(lambda: node in avoided_by(host), WITHIN_S)


async def test_streams_that_no_plan_of_the_host_asked_for(host: NodeProcess, tmp_path: Path, rpc_version: int) -> None:
    """The host works for nobody: a rogue pushes to it, and opens tunnels, for the plan in which it works itself."""
    node = bytes.fromhex(host.status()["node"]["id"])
    async with at_work(host, tmp_path, rpc_version, Dawdles) as member:
        plan = member.book.leases()[0].plan
        for kind in (RpcKind.PUSH, RpcKind.TUNNEL):
            stream = await member.open(node, kind, plan)
            stream.write(push_head(1, PushFlag(0), 4) + b"data")
            assert await reset_code(stream) == Reset.REFUSED
    await asyncio.to_thread(other_model_answers, host)


async def test_an_honest_worker_is_taken_after_all_of_them(
    host: NodeProcess, start_shared_node: StartNode, tmp_path: Path, rpc_version: int
) -> None:
    """It answers with it, and when that one goes too, with what it has itself."""
    async with at_work(host, tmp_path, rpc_version, Stalls):
        honest = start_shared_node("--join", invite_for(host, 1), environment=QUIET)
        await until(lambda: split_of(host)["state"] == "ready", 2 * WITHIN_S)
        await asyncio.to_thread(counts, host)
        (stage,) = split_of(host)["plan"]["stages"]
        assert stage["node"] == honest.status()["node"]["id"]
        kill(honest)
        await until(lambda: split_of(host)["state"] == "ready" and "stages" not in split_of(host)["plan"], WITHIN_S)
        await asyncio.to_thread(counts, host)
        await asyncio.to_thread(other_model_answers, host)


def kill(node: NodeProcess) -> None:
    """The power goes."""
    process = psutil.Process(node.process.pid)
    for each in (*process.children(recursive=True), process):
        with suppress(psutil.NoSuchProcess):
            each.kill()
    node.process.wait()


# --- rogue hosts ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lender(start_shared_node: StartNode) -> Iterator[NodeProcess]:
    """A node that serves nothing and lends its memory."""
    node = start_shared_node(environment=QUIET)
    eventually(lambda: node.status()["pool"]["lending"]["lends"], within_s=WITHIN_S)
    yield node
    node.end()


@pytest.fixture
def canary() -> Iterator[Canary]:
    """A service of the worker's machine, which no host may reach."""
    with closing(Canary()) as found:
        yield found
        assert found.heard == 0, "the node went where a peer sent it"


@pytest.fixture
def worker(lender: NodeProcess, canary: Canary) -> Iterator[NodeProcess]:
    """The same; after each test it holds nothing, no process is left, and it answers as before."""
    yield lender
    eventually(lambda: lender.status()["pool"]["lending"]["leases"] == [], within_s=WITHIN_S)
    eventually(lambda: not psutil.Process(lender.process.pid).children(recursive=True), within_s=WITHIN_S)
    done = lender.command("status", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["problems"] == []
    assert json.loads(done.stdout)["pool"]["lending"]["lends"]


@asynccontextmanager
async def rogue_host(node: NodeProcess, folder: Path, version: int) -> AsyncIterator[RogueMember]:
    async with rogue_member(folder, invite_for(node, 1), rpc_version=version, name=next(NAMES)) as member:
        yield member


def id_of(node: NodeProcess) -> bytes:
    return bytes.fromhex(node.status()["node"]["id"])


class Tunnel:
    """A tunnel that a test holds in its hands."""

    def __init__(self, stream: MeshStream) -> None:
        self.stream = stream
        self._blocks = BlockReader()
        self._heard: list[tuple[int, bytes]] = []
        stream.write(options_block(Option(0)))

    def send(self, *frames: bytes) -> None:
        data = b"".join(frames)
        self.stream.write(bytes_block([data], len(data)))

    async def hear(self, kind: Block) -> bytes:
        """The body of the next block of a kind; others are passed over. Raises OSError, EOFError."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                while self._heard:
                    found, body = self._heard.pop(0)
                    if found == kind:
                        return body
                data = await self.stream.read(1 << 16)
                if not data:
                    raise EOFError
                self._heard += self._blocks.feed(data)

    async def allocate(self, size: int) -> tuple[int, int]:
        """(buffer, base); nothing but zeros where there is no room."""
        self.send(allocate(size))
        async with asyncio.timeout(WITHIN_S):
            while not self._heard:
                self._heard += self._blocks.feed(await self.stream.read(1 << 16))
        base = read_base(await self.hear(Block.BASE))[1] if self._heard[0][0] == Block.BASE else 0
        buffer, _ = unpack("<QQ", (await self.hear(Block.BYTES))[8:24])
        return buffer, base


async def reset_code(stream: MeshStream) -> int:
    async with asyncio.timeout(WITHIN_S):
        reason = await stream.broken()
    assert isinstance(reason, StreamReset), reason
    return reason.code


@asynccontextmanager
async def leased(member: RogueMember, node: NodeProcess) -> AsyncIterator[tuple[Tunnel, bytes, list[str]]]:
    """A tunnel to that node under a lease of its own; what is told of the lease's end."""
    plan, lost = os.urandom(16), list[str]()
    lease = await member.ask(id_of(node), plan, lost.append)
    try:
        yield Tunnel(await member.open(id_of(node), RpcKind.TUNNEL, plan)), plan, lost
    finally:
        await lease.release()


@pytest.mark.parametrize("kind", [RpcKind.TUNNEL, RpcKind.PUSH])
async def test_streams_for_a_plan_that_is_not_theirs(
    worker: NodeProcess, tmp_path: Path, rpc_version: int, kind: RpcKind
) -> None:
    """Of a plan that nobody knows, and of one that is another host's."""
    async with (
        rogue_host(worker, tmp_path, rpc_version) as owner,
        rogue_host(worker, tmp_path, rpc_version) as thief,
        leased(owner, worker) as (tunnel, plan, lost),
    ):
        for named in (plan, os.urandom(16)):
            assert await reset_code(await thief.open(id_of(worker), kind, named)) == Reset.REFUSED
        with pytest.raises(LeaseDenied) as caught:
            await thief.ask(id_of(worker), plan, lost.append)
        assert caught.value.lease_code == LeaseCode.TAKEN
        assert (await tunnel.allocate(64))[0] and lost == []


MALFORMED: dict[str, Callable[[int], bytes]] = {
    "a size of 2^63": lambda port: pack("<BQ", Command.SET_TENSOR, 1 << 63),
    "a graph of 2^40 bytes": lambda port: pack("<BQ", Command.GRAPH_COMPUTE, 1 << 40),
    "an unknown command": lambda port: frame(40, bytes(8)),
    "a command of tomorrow": lambda port: frame(255),
    "a second HELLO": lambda port: frame(Command.HELLO, bytes(24)),
    "a push to a port of this machine": lambda port: push(1, port, 64),
    "a push to itself": lambda port: push(1, 0, 64),
    "a reply of 2^62 bytes": lambda port: frame(Command.GET_TENSOR, bytes(296) + pack("<QQ", 0, 1 << 62)),
}


@pytest.mark.parametrize("words", MALFORMED)
async def test_frames_that_cannot_be(
    worker: NodeProcess, canary: Canary, tmp_path: Path, rpc_version: int, words: str
) -> None:
    """The tunnel ends with a code; the lease, and what is behind it, go on."""
    made = MALFORMED[words](canary.port)
    async with rogue_host(worker, tmp_path, rpc_version) as member, leased(member, worker) as (tunnel, plan, lost):
        tunnel.send(made)
        assert await reset_code(tunnel.stream) == Reset.MALFORMED
        again = Tunnel(await member.open(id_of(worker), RpcKind.TUNNEL, plan))
        assert (await again.allocate(64))[0] and lost == []


@pytest.mark.parametrize("tensor", [b"blk.0.attn_q.weight", b"../../../../etc/passwd", b"/etc/passwd"])
async def test_weights_of_another_model(worker: NodeProcess, tmp_path: Path, rpc_version: int, tensor: bytes) -> None:
    async with rogue_host(worker, tmp_path, rpc_version) as member, leased(member, worker) as (tunnel, _, lost):
        tunnel.send(reference(b"x" * 32, tensor, 4))
        assert "does not have the weights" in read_failed(await tunnel.hear(Block.FAILED))
        assert lost == []


async def test_more_memory_than_was_leased(worker: NodeProcess, tmp_path: Path, rpc_version: int) -> None:
    async with rogue_host(worker, tmp_path, rpc_version) as member:
        async with leased(member, worker) as (tunnel, _, lost):
            assert (await tunnel.allocate(16 << 20))[0]
            assert await tunnel.allocate(1 << 20) == await tunnel.allocate(1 << 62) == (0, 0)
            assert lost == []
        with pytest.raises(LeaseDenied) as caught:
            await member.ask(id_of(worker), os.urandom(16), lost.append, needed_bytes=1 << 45)
        assert caught.value.lease_code == LeaseCode.NO_MEMORY


async def test_a_graph_with_an_address_to_call(worker: NodeProcess, tmp_path: Path, rpc_version: int) -> None:
    """The rpc-server ends the connection rather than calling it; the host hears why, and may come again."""
    async with rogue_host(worker, tmp_path, rpc_version) as member:
        async with leased(member, worker) as (tunnel, _, lost):
            buffer, base = await tunnel.allocate(1 << 20)
            call = graph_tensor(2, op=MAP_CUSTOM1, sources=(1,), parameters=pack("<Q", 0x41414141))
            tunnel.send(placed(graph([2], [graph_tensor(1), call]), buffer, base))
            assert "rpc-server" in read_failed(await tunnel.hear(Block.FAILED))
            await until(lambda: bool(lost))
            assert "rpc-server" in lost[0]
        async with leased(member, worker) as (tunnel, _, _):
            assert (await tunnel.allocate(64))[0]


async def test_leases_in_a_loop(worker: NodeProcess, tmp_path: Path, rpc_version: int) -> None:
    """Asked for and dropped, again and again: soon with no rpc-server started for it, and others are not kept out."""
    async with (
        rogue_host(worker, tmp_path, rpc_version) as member,
        rogue_host(worker, tmp_path, rpc_version) as other,
    ):
        codes = []
        for _ in range(15):
            try:
                lease = await member.ask(id_of(worker), os.urandom(16), lambda words: None)
                await lease.release()
            except LeaseDenied as refusal:
                codes.append(refusal.lease_code)
        assert codes and set(codes) == {LeaseCode.TOO_OFTEN}
        async with leased(other, worker) as (tunnel, _, _):
            assert (await tunnel.allocate(64))[0]


async def test_a_host_that_is_gone_leaves_nothing(worker: NodeProcess, tmp_path: Path, rpc_version: int) -> None:
    async with rogue_host(worker, tmp_path, rpc_version) as member, leased(member, worker) as (tunnel, _, _):
        assert (await tunnel.allocate(8 << 20))[0]
        await member.mesh.close()
        await until(lambda: worker.status()["pool"]["lending"]["leases"] == [], WITHIN_S)


# --- two hosts ------------------------------------------------------------------------------------------------------


def test_two_nodes_that_both_want_to_host_and_then_meet(start_node: StartNode) -> None:
    """One of them hosts, the other one works for it; callers of both are answered."""
    one, two = (start_node("--model", "demo", "--split", environment=QUIET) for _ in range(2))
    assert [split_of(node)["state"] for node in (one, two)] == ["loading", "loading"]
    done = two.command("join", invite_for(one, 1))
    assert done.returncode == 0, done.stderr
    for node in (one, two):
        eventually(lambda node=node: hosts_of(node).get("demo") == 1, within_s=30)  # type: ignore[misc]
        counts(node)
    states = [split_of(node)["state"] for node in (one, two)]
    assert sorted(states) == ["loading", "ready"]
    waiting = (one, two)[states.index("loading")]
    assert any(words in split_of(waiting)["detail"] for words in ("hosts it", "waits for machines"))
    assert [lease["model"] for lease in waiting.status()["pool"]["lending"]["leases"]] == ["demo"]
