"""The hash table over streams: whole meshes on loopback, and what hostile peers get from the shell."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from meshnode.core.dht import DhtOptions
from meshnode.core.dht_lookup import LookupLimits
from meshnode.core.effects import MembershipSnapshot
from meshnode.errors import PeerUnreachable
from meshnode.identity import ephemeral
from meshnode.mesh.dht import Dht
from meshnode.mesh.dht_stream import ANSWERS, receive, send
from meshnode.mesh.mesh import Mesh, MeshOptions
from meshnode.net.stream import MeshStream, StreamReset
from meshnode.wire.address import Address
from meshnode.wire.dht import DhtFind, DhtFound, DhtPeer, DhtStore, DhtStored, Provider, model_key, write_provider
from meshnode.wire.registry import Reset, Role, StreamType
from tests.mesh.memory_link import memory_links
from tests.mesh.neighbourhood import ADMITTED, Neighbourhood, Resident

pytestmark = pytest.mark.anyio

MODEL = b"model hash 16 by"
OTHER = b"another 16 bytes"
MESH = b"m" * 32
PATIENT = LookupLimits(lookup_s=20.0, question_s=10.0, slow_s=5.0)
"""A machine that is busy with other things makes nobody a liar."""
QUICK = DhtOptions(PATIENT, spread_s=0.02, rejoin_s=0.1, retry_s=0.2, check_s=0.3, record_ttl_s=600)
HOME = Address("127.0.0.1", 4000)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(15):
        while not condition():
            await asyncio.sleep(0.01)


# --- eight whole nodes --------------------------------------------------------------------------------------------


class Citizen(Resident):
    """A resident with a hash table; its wall clock can be put forward."""

    def __init__(self, home: Path, name: str, role: Role) -> None:
        super().__init__(home, name, role)
        self.ahead_s = 0.0
        self.dht = Dht(identity=self.identity, role=role, options=QUICK, clock=lambda: time.time() + self.ahead_s)
        self.task: asyncio.Task[None] | None = None

    async def start(self, port: int = 0) -> Citizen:
        self._mesh = await Mesh.start(
            vault=self.vault,
            identity=self.identity,
            role=self.role,
            options=MeshOptions("127.0.0.1", port, self.name, "test"),
            answer=self.echo,
            admitted=ADMITTED,
            changed=self.changes.set,
            handlers={StreamType.DHT: self.dht.serve},
        )
        self.dht.attach(self._mesh)
        return self

    def begin(self) -> None:
        mine = self.vault.credentials
        assert mine is not None
        self.task = asyncio.get_running_loop().create_task(self.dht.run(mine.mesh))

    async def stop(self, drain_s: float = 0.0) -> None:
        await self.dht.close()
        await super().stop(drain_s)


async def city(town: Neighbourhood, members: int) -> list[Citizen]:
    """So many members of one mesh, each with its hash table running."""
    found = [Citizen(town.folder / f"citizen{number}", f"citizen{number}", Role.MEMBER) for number in range(members)]
    town.residents += found
    found[0].vault.found("home")
    for citizen in found:
        await citizen.start()
        if citizen is not found[0]:
            await citizen.join(found[0])
    await town.acquainted(found)
    for citizen in found:
        citizen.begin()
    return found


async def test_eight_nodes_one_provides_another_finds_until_the_record_ends(town: Neighbourhood) -> None:
    everybody = await city(town, 8)
    provider, seeker = everybody[2], everybody[5]
    provider.dht.provide([(MODEL, 0, 0), (OTHER, 4, 12)])
    await until(lambda: provider.dht.facts()["published"] == 2)
    for citizen in everybody:
        found = await citizen.dht.providers(MODEL)
        assert [each.node for each in found] == ([] if citizen is provider else [provider.id])
    [found_one] = await seeker.dht.providers(OTHER, (4, 12))
    assert (found_one.addresses, found_one.mesh) == (provider.mesh.addresses, provider.vault.credentials.mesh)
    assert await seeker.dht.providers(OTHER) == []
    facts = seeker.dht.facts()
    assert facts["running"] and 0 < facts["peers"] <= 7
    assert sum(citizen.dht.facts()["records"] for citizen in everybody) >= 4, "each at several nodes"
    assert facts["counters"].get("dht_hostile", 0) == 0

    # A client-only node asks, and is in nobody's table.
    client = Citizen(town.folder / "client", "client", Role.CLIENT)
    town.residents.append(client)
    await (await client.start()).join(everybody[0])
    client.begin()
    client.dht.provide([(b"a client's model", 0, 0)])
    await until(lambda: client.dht.facts()["peers"])
    assert [each.node for each in await client.dht.providers(MODEL)] == [provider.id]
    assert all(client.id not in citizen.dht._machine.table for citizen in everybody)  # type: ignore[union-attr]
    assert client.dht.facts()["published"] == client.dht.facts()["records"] == 0

    # The provider leaves. Its record stays until it ends.
    await provider.stop()
    assert [each.node for each in await seeker.dht.providers(MODEL)] == [provider.id]
    for citizen in everybody:
        citizen.ahead_s = QUICK.record_ttl_s + 120
    assert await seeker.dht.providers(MODEL) == []
    await until(lambda: seeker.dht.facts()["records"] == 0)
    # Who comes back under another mesh id begins anew.
    await seeker.dht.close()
    assert await seeker.dht.providers(MODEL) == []
    assert seeker.dht.facts()["running"] is False


async def test_a_node_that_the_gossip_does_not_know_is_dialled_where_the_table_says(town: Neighbourhood) -> None:
    one, two, _ = await city(town, 3)
    stream = await one.dht._mesh.open_stream(two.id, StreamType.DHT, b"", addresses=two.mesh.addresses)  # type: ignore[union-attr]
    send(stream, DhtFind(model_key(MODEL)))
    answer = await receive(stream, ANSWERS)
    assert isinstance(answer, DhtFound)
    with pytest.raises(PeerUnreachable):
        nobody = ephemeral().node_id
        await one.dht._mesh.open_stream(nobody, StreamType.DHT, b"", addresses=(Address("127.0.0.1", 9),))  # type: ignore[union-attr]


# --- one node, and peers that are made up -----------------------------------------------------------------------------

Serve = Callable[[MeshStream], Awaitable[None]]


class Ways:
    """A mesh of one: every stream to a peer ends at what the test puts there."""

    def __init__(self, serve: Serve) -> None:
        self.addresses = (HOME,)
        self.serve = serve
        self.asked: list[tuple[bytes, tuple[Address, ...]]] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.refuses = False

    def members(self) -> MembershipSnapshot:
        return MembershipSnapshot(b"", {})

    async def open_stream(
        self, peer: bytes, kind: StreamType, header: bytes, *, addresses: Sequence[Address] = ()
    ) -> MeshStream:
        assert (kind, header) == (StreamType.DHT, b"")
        self.asked.append((peer, tuple(addresses)))
        if self.refuses:
            raise PeerUnreachable("nobody is there")
        near, _ = memory_links(self._opened)
        near.peer, near.address = peer, addresses[0]  # type: ignore[attr-defined]
        stream: MeshStream = near.open_stream()
        stream.write(b"")
        return stream

    def _opened(self, stream: MeshStream) -> None:
        async def quietly() -> None:
            with suppress(OSError):
                await self.serve(stream)

        task = asyncio.get_running_loop().create_task(quietly())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


class Alone:
    """A running Dht over made-up ways. `know` puts a peer into its table, as one that has asked it."""

    def __init__(self, serve: Serve, role: Role = Role.MEMBER, **limits: Any) -> None:
        lookup = LookupLimits(**{"question_s": 0.2, "slow_s": 0.1, "lookup_s": 1.0} | limits)
        self.ways = Ways(serve)
        self.dht = Dht(identity=ephemeral(), role=role, options=DhtOptions(lookup=lookup, refresh_s=1e6, check_s=1e6))
        self.dht.attach_to(self.ways)

    async def __aenter__(self) -> Alone:
        self.task = asyncio.get_running_loop().create_task(self.dht.run(MESH))
        await until(lambda: self.dht.facts()["running"])
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.dht.close()
        assert self.task.done() and not self.dht._tasks

    async def ask(self, data: bytes | Any, peer: bytes = b"p" * 32, role: Role | None = Role.MEMBER) -> Any:
        """What the Dht answers to a message, or to bare bytes, of a peer."""

        async def serve(stream: MeshStream) -> None:
            stream.link.peer, stream.link.address = peer, HOME  # type: ignore[misc]
            await self.dht.serve(stream, b"", role)

        tasks: list[asyncio.Task[None]] = []
        near, _ = memory_links(lambda stream: tasks.append(asyncio.get_running_loop().create_task(serve(stream))))
        stream: MeshStream = near.open_stream()
        try:
            if isinstance(data, bytes):
                stream.write(data)
                stream.write_eof()
            else:
                send(stream, data)
            return await receive(stream, ANSWERS)
        finally:
            await asyncio.gather(*tasks)

    def know(self, *nodes: bytes) -> None:
        machine = self.dht._machine
        assert machine is not None
        for node in nodes:
            machine.table.heard(node, HOME, (HOME,), asyncio.get_running_loop().time())


async def silence(stream: MeshStream) -> None:
    await stream.broken()


async def test_questions_are_answered_and_rules_are_kept() -> None:
    async with Alone(silence) as alone:
        alone.know(b"k" * 32)
        found = await alone.ask(DhtFind(model_key(MODEL)))
        assert found.peers == (DhtPeer(b"k" * 32, (HOME,)),) and len(found.token) == 16
        assert await alone.ask(DhtStore(found.token, (b"no record",))) == DhtStored(0)
        for bad in (b"", b"\0\0\0\x02\0\x64", b"\0" * 12, b"\0\0\0\3\0\x64\xc0", b"x" * 40_000):
            with pytest.raises(StreamReset) as caught:
                await alone.ask(bad)
            assert caught.value.code == Reset.MALFORMED
        with pytest.raises(StreamReset):
            await alone.ask(DhtStored(1))
        counters = alone.dht.facts()["counters"]
        assert (counters["dht_malformed"], counters["dht_stores_malformed"]) == (6, 1)


async def test_a_peer_stores_what_it_has_signed_and_no_more() -> None:
    async with Alone(silence) as alone:
        mine, other = ephemeral(), ephemeral()
        key = model_key(MODEL)
        token = (await alone.ask(DhtFind(key), mine.node_id)).token

        def record(signer: Any, **more: Any) -> bytes:
            values = {"key": key, "node": signer.node_id, "mesh": MESH, "expires_at": int(time.time()) + 600}
            return write_provider(Provider(**{**values, **more}), signer.sign)

        forged = bytes(64) + record(mine)[64:]
        records = (
            record(other),
            forged,
            record(mine, mesh=b"o" * 32),
            record(mine, expires_at=3 * 10**13),
            record(mine),
        )
        assert await alone.ask(DhtStore(token, records), mine.node_id) == DhtStored(1)
        assert await alone.ask(DhtStore(token, (record(other),)), other.node_id) == DhtStored(0)
        assert (await alone.ask(DhtFind(key, records=True))).records == (record(mine),)
        counters = alone.dht.facts()["counters"]
        for reason in ("of_another", "forged", "wrong_mesh", "future", "kept", "without_token"):
            assert counters[f"dht_stores_{reason}"] == 1, reason


async def test_who_is_not_served() -> None:
    async with Alone(silence, Role.CLIENT) as alone:
        with pytest.raises(StreamReset) as caught:
            await alone.ask(DhtFind(model_key(MODEL)))
        assert caught.value.code == Reset.REFUSED
    async with Alone(silence) as alone:
        answer = await alone.ask(DhtFind(model_key(MODEL)), role=Role.CLIENT)
        assert answer.token == b"" and alone.dht.facts()["peers"] == 0
        with pytest.raises(StreamReset) as caught:
            while True:
                await alone.ask(DhtFind(model_key(MODEL)))
        assert caught.value.code == Reset.OVERLOAD
        assert 90 <= alone.dht.facts()["counters"]["dht_finds"] < 200
    with pytest.raises(StreamReset):
        await alone.ask(DhtFind(model_key(MODEL)))


@pytest.mark.parametrize("kind", ["silent", "garbage", "another answer", "unreachable"])
async def test_a_search_among_those_who_do_not_answer_as_they_must_ends(kind: str) -> None:
    async def serve(stream: MeshStream) -> None:
        if kind == "silent":
            await silence(stream)
        elif kind == "garbage":
            stream.write(b"\xff" * 100)
            stream.write_eof()
        else:
            send(stream, DhtStored(3))

    async with Alone(serve) as alone:
        alone.ways.refuses = kind == "unreachable"
        alone.know(*(bytes((number,)) * 32 for number in range(1, 9)))
        began_at = time.monotonic()
        assert await alone.dht.providers(MODEL) == []
        assert time.monotonic() - began_at < 3
        assert len({peer for peer, _ in alone.ways.asked}) >= 8
        counters = alone.dht.facts()["counters"]
        name = {"garbage": "dht_malformed", "another answer": "dht_hostile"}.get(kind, "dht_failures")
        assert counters[name] >= 8


async def test_an_answer_full_of_records_keeps_the_loop_for_a_moment_only() -> None:
    """Sixteen providers each at sixty nodes: nearly a thousand signatures."""
    signers = [ephemeral() for _ in range(16)]
    expires_at = int(time.time()) + 900
    key = model_key(MODEL)
    records = tuple(write_provider(Provider(key, each.node_id, MESH, expires_at), each.sign) for each in signers)

    names = [bytes((number, 7)) * 16 for number in range(80)]

    async def serve(stream: MeshStream) -> None:
        question = await receive(stream, (DhtFind,))
        peers = tuple(DhtPeer(name, (HOME,)) for name in random.Random(1).sample(names, 20))
        send(stream, DhtFound(peers, records if question.records else ()))

    async with Alone(serve, at_once=20, enough=1000, replicas=60, question_s=2.0, slow_s=1.0, lookup_s=5.0) as alone:
        alone.know(*names)
        # Time of this thread: what other programs take of the processor is no block of ours.
        most_s, last = 0.0, time.thread_time()
        task = asyncio.get_running_loop().create_task(alone.dht.providers(MODEL))
        while not task.done():
            await asyncio.sleep(0)
            most_s, last = max(most_s, time.thread_time() - last), time.thread_time()
        assert len(await task) == 16
        assert alone.dht.facts()["counters"]["dht_answers"] >= 40
        assert most_s < 0.05, "the event loop stood still"


async def test_what_is_provided_and_looked_for_by_name() -> None:
    provider = ephemeral()
    key = model_key(MODEL)

    async def serve(stream: MeshStream) -> None:
        await receive(stream, (DhtFind,))
        values = Provider(key, provider.node_id, MESH, int(time.time()) + 900, (HOME,))
        send(stream, DhtFound((), (write_provider(values, provider.sign),)))

    async with Alone(serve) as alone:
        alone.know(b"k" * 32)
        for name in ("llama", MODEL.hex()):
            shown = await alone.dht.find_providers(name, {"llama": MODEL}.get)
            assert (shown["model"], shown["content_hash"], shown["asked"]) == (name, MODEL.hex(), 1)
            [one] = shown["providers"]
            assert (one["node"], one["addresses"]) == (provider.node_id.hex(), [str(HOME)])
            assert 890 < one["expires_in_s"] <= 900
        unknown = await alone.dht.find_providers("nothing", {"llama": MODEL}.get)
        assert (unknown["content_hash"], unknown["providers"], unknown["asked"]) == (None, [], 0)
        with pytest.raises(ValueError):
            alone.dht.provide([(b"short", 0, 0)])
        with pytest.raises(ValueError):
            await alone.dht.providers(b"short")


async def test_a_search_that_is_under_way_when_the_node_stops_ends_empty() -> None:
    async with Alone(silence) as alone:
        alone.know(b"k" * 32)
        task = asyncio.get_running_loop().create_task(alone.dht.providers(MODEL))
        await until(lambda: alone.ways.asked)
        await alone.dht.close()
        await alone.dht.close()
        assert await task == []
        assert await alone.dht.providers(MODEL) == []
