"""A node in the hash table of an open mesh: streams of the mesh for the machine of core/dht, and back.

    DHT streams of peers ──> serve ──> DhtMachine ── Ask ──> a stream to a peer, which is dialled if need be
    provide, providers ────────────────────┘

One Dht lives as long as the node; a machine, with its table and records, as long as the node is in one mesh (`run`).
Nothing here decides. Messages with records cost signatures: they go to the machine one a turn of the loop, sixteen
records at most, so that the loop is never kept for longer than these take.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from meshnode.core.dht import DhtMachine, DhtOptions
from meshnode.core.dht_events import (
    Answer,
    Answered,
    Ask,
    Asked,
    Effect,
    Event,
    Failed,
    Found,
    Here,
    Offer,
    Search,
    Seen,
    TimerFired,
)
from meshnode.core.effects import Counted, Member, SetTimer
from meshnode.errors import MeshnodeError
from meshnode.identity import Identity, verify
from meshnode.mesh.dht_stream import ANSWERS, QUESTIONS, receive, send
from meshnode.mesh.dht_ways import InMesh, OverMesh
from meshnode.mesh.mesh import Mesh
from meshnode.net.stream import MeshStream
from meshnode.telemetry import LOG
from meshnode.wire.address import Address
from meshnode.wire.dht import DhtFound, DhtPeer, DhtStored, Provider, model_key
from meshnode.wire.registry import LIMIT_DHT_PEERS, Reset, Role, StreamType
from meshnode.wire.values import WireError

LOOK_S = 10.0
"""So often the machine hears who is in the mesh, and where this node is."""
FIRST_LOOKS_S = 0.5
FIRST_LOOKS = 20
ASK_S = 5.0
SERVED_AT_ONCE = 256
WHOLE = (0, 0)

Content = tuple[bytes, int, int]
"""Content hash (16 bytes), first layer, layers; the layers are 0 and 0 for a whole model."""


class Dht:
    """See the module. `serve` is a StreamHandler for the Mesh, which is given to `attach` when it has started.

    `role` is that of this node: a client asks only. `reachable` says whether others can dial this node; if not, they
    keep it out of their tables. `clock` is wall time. `counters` gets those of DhtMachine, and dht_malformed,
    dht_not_running, dht_overload, dht_too_slow.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        role: Role,
        counters: Counter[str] | None = None,
        reachable: Callable[[], bool] = lambda: True,
        options: DhtOptions | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._identity = identity
        self._node = bytes(identity.node_id)
        self._role = role
        self._counters = Counter() if counters is None else counters
        self._reachable = reachable
        self._options = options or DhtOptions()
        self._clock = clock
        self._mesh: InMesh | None = None
        self._machine: DhtMachine | None = None
        self._contents: tuple[Content, ...] = ()
        self._answers: dict[object, DhtFound | DhtStored | None] = {}
        self._searches: dict[object, asyncio.Future[Found]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._runner: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._turn = asyncio.Lock()
        self._serving = 0

    # --- life -----------------------------------------------------------------------------------------------------

    def attach(self, mesh: Mesh) -> None:
        """Over this mesh peers are asked."""
        self.attach_to(OverMesh(mesh))

    def attach_to(self, mesh: InMesh) -> None:
        """The same for anything that can do what is needed."""
        self._mesh = mesh

    async def run(self, mesh_id: bytes) -> None:
        """Take part in the hash table of the mesh with this id, until cancelled. A table and records begin anew."""
        assert self._mesh is not None and self._machine is None, "attached, and not running yet"
        loop = asyncio.get_running_loop()
        self._runner = asyncio.current_task()
        self._machine = DhtMachine(
            node=self._node,
            mesh=mesh_id,
            serves=self._role is Role.MEMBER,
            sign=self._identity.sign,
            verify=verify,
            clock=self._clock,
            random=random.Random(),
            secret=secrets.token_bytes(32),
            now=loop.time(),
            options=self._options,
        )
        try:
            self._handle(Offer(self._contents))
            looks = 0
            while True:
                self._look_around(self._mesh)
                # A mesh that has just been entered shows its members one by one.
                looks += 1
                alone = not len(self._machine.table) and looks < FIRST_LOOKS
                await asyncio.sleep(FIRST_LOOKS_S if alone else LOOK_S)
        finally:
            self._machine = None
            await self._end()

    async def close(self) -> None:
        """End `run`, and everything that is under way. Idempotent."""
        runner, self._runner = self._runner, None
        if runner is not None and runner is not asyncio.current_task():
            runner.cancel()
            await asyncio.gather(runner, return_exceptions=True)

    async def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for number, waiting in self._searches.items():
            if not waiting.done():
                waiting.set_result(Found(number, ()))
        self._searches.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _look_around(self, mesh: InMesh) -> None:
        """Tell the machine where this node is, and whom it could ask: linked members first."""
        self._handle(Here(tuple(mesh.addresses), self._reachable()))
        members = [member for member in mesh.members().members.values() if member.node != self._node]
        alive = [member for member in members if member.state == "alive" and _addresses(member)]
        linked = [member for member in alive if member.linked]
        few = [*linked[:LIMIT_DHT_PEERS], *random.sample(alive, min(len(alive), LIMIT_DHT_PEERS))]
        peers = {member.node: DhtPeer(member.node, _addresses(member)) for member in few}
        self._handle(Seen(tuple(peers.values())[:LIMIT_DHT_PEERS]))

    # --- what the composer uses -----------------------------------------------------------------------------------

    def provide(self, contents: Collection[Content]) -> None:
        """Offer this content, and nothing else any more. Raises ValueError for a hash of another length."""
        found = tuple(sorted(set(contents)))
        for content in found:
            model_key(*content)
        if found != self._contents:
            self._contents = found
            self._handle(Offer(found))

    async def providers(self, content_hash: bytes, layers: tuple[int, int] = WHOLE) -> list[Provider]:
        """Who offers a model, or these layers (first, count) of it; best first. What they say is signed, and a claim.

        Takes as long as one lookup. Raises ValueError for a hash of another length.
        """
        found = await self._search(model_key(content_hash, *layers))
        return [provider for provider in found.providers if provider.node != self._node]

    async def _search(self, key: bytes) -> Found:
        number = object()
        if self._machine is None:
            return Found(number, ())
        waiting: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self._searches[number] = waiting
        try:
            self._handle(Search(number, key))
            return await waiting
        finally:
            self._searches.pop(number, None)

    async def find_providers(self, name: str, hash_of: Callable[[str], bytes | None]) -> dict[str, Any]:
        """Who offers a model, in plain values. `name` is a content hash in 32 hex digits, or a name that `hash_of`
        turns into one (None: unknown).

        Gives {"model", "content_hash", "running", "providers": [{"node", "addresses", "expires_in_s"}], "asked",
        "elapsed_s"}, without this node; "content_hash" is None for a name that nobody knows: then nobody was asked.
        """
        content_hash = _hash_in(name) or hash_of(name)
        began_at = time.monotonic()
        found = Found(name, ()) if content_hash is None else await self._search(model_key(content_hash))
        return {
            "model": name,
            "content_hash": None if content_hash is None else content_hash.hex(),
            "running": self._machine is not None,
            "providers": [
                {
                    "node": provider.node.hex(),
                    "addresses": [str(address) for address in provider.addresses],
                    "expires_in_s": max(0, round(provider.expires_at - self._clock())),
                }
                for provider in found.providers
                if provider.node != self._node
            ],
            "asked": found.asked,
            "elapsed_s": round(time.monotonic() - began_at, 3),
        }

    def facts(self) -> dict[str, Any]:
        """How the table stands, for the status."""
        machine = self._machine
        counted = {name: count for name, count in sorted(self._counters.items()) if name.startswith("dht_")}
        return {
            "running": machine is not None,
            "peers": 0 if machine is None else len(machine.table),
            "records": 0 if machine is None else len(machine.records),
            "keys": 0 if machine is None else machine.records.keys,
            "providing": len(self._contents),
            "published": 0 if machine is None else machine.offers.kept,
            "searches": len(self._searches),
            "counters": counted,
        }

    # --- questions of peers ---------------------------------------------------------------------------------------

    async def serve(self, stream: MeshStream, header: bytes, role: Role | None) -> None:
        """Answer one question: a handler of StreamDispatch. Returns when the answer is written or has failed."""
        if self._machine is None or self._role is not Role.MEMBER or role is None:
            return self._refuse(stream, "dht_not_running", Reset.REFUSED)
        if self._serving >= SERVED_AT_ONCE:
            return self._refuse(stream, "dht_overload", Reset.OVERLOAD)
        self._serving += 1
        try:
            if header:
                raise WireError("a stream of the hash table has no header")
            async with asyncio.timeout(ASK_S):
                message = await receive(stream, QUESTIONS)
            answer = await self._answer(stream, role, message)
            if answer is None:
                self._refuse(stream, "dht_overload", Reset.OVERLOAD)
            else:
                send(stream, answer)
        except WireError:
            self._refuse(stream, "dht_malformed", Reset.MALFORMED)
        except TimeoutError:
            self._refuse(stream, "dht_too_slow", Reset.TOO_SLOW)
        finally:
            self._serving -= 1

    async def _answer(self, stream: MeshStream, role: Role, message: Any) -> DhtFound | DhtStored | None:
        number = object()
        peer = bytes(stream.link.peer)
        is_member = role is Role.MEMBER
        try:
            await self._paced(Asked(number, peer, stream.link.address, self._named(peer), is_member, message))
        finally:
            answer = self._answers.pop(number, None)
        return answer

    def _named(self, node: bytes) -> tuple[Address, ...]:
        """Where a node says, in a statement of its own, that it can be dialled."""
        known = None if self._mesh is None else self._mesh.members().members.get(node)
        return () if known is None else _addresses(known)

    def _refuse(self, stream: MeshStream, counter: str, code: Reset) -> None:
        self._counters[counter] += 1
        stream.reset(code)

    # --- the machine ----------------------------------------------------------------------------------------------

    async def _paced(self, event: Asked | Answered) -> None:
        """Hand over an event that may cost signatures: one a turn of the loop."""
        async with self._turn:
            self._handle(event)
            await asyncio.sleep(0)

    def _handle(self, event: Event) -> None:
        if self._machine is not None:
            for effect in self._machine.handle(event, asyncio.get_running_loop().time()):
                self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Counted(what):
                self._counters[what] += 1
            case Answer(number, message):
                self._answers[number] = message
            case Ask():
                self._start(self._ask(effect))
            case Found(number):
                waiting = self._searches.get(number)
                if waiting is not None and not waiting.done():
                    waiting.set_result(effect)
            case SetTimer(at=at):
                if self._timer is not None:
                    self._timer.cancel()
                self._timer = asyncio.get_running_loop().call_at(at, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._handle(TimerFired())

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, ask: Ask) -> None:
        """Ask one peer, and tell the machine what became of it."""
        try:
            async with asyncio.timeout(self._options.lookup.question_s):
                event: Answered | Failed = await self._answer_to(ask)
        except (OSError, MeshnodeError, TimeoutError):
            event = Failed(ask.number)
        except WireError as reason:
            LOG.debug("the hash table of %s: %s", ask.peer.hex()[:10], reason)
            self._counters["dht_malformed"] += 1
            event = Failed(ask.number)
        if isinstance(event, Answered):
            await self._paced(event)
        else:
            self._handle(event)

    async def _answer_to(self, ask: Ask) -> Answered:
        assert self._mesh is not None, "a machine runs only where a mesh is attached"
        stream = await self._mesh.open_stream(ask.peer, StreamType.DHT, b"", addresses=ask.addresses)
        try:
            send(stream, ask.message)
            answer = await receive(stream, ANSWERS)
            return Answered(ask.number, stream.link.address, answer, self._named(ask.peer))
        finally:
            if not stream.is_finished:
                stream.abort()


def _addresses(member: Member) -> tuple[Address, ...]:
    """Where a member says that it can be dialled."""
    return () if member.identity is None else member.identity.addresses


def _hash_in(name: str) -> bytes | None:
    """The content hash that a text of 32 hex digits is."""
    try:
        found = bytes.fromhex(name)
    except ValueError:
        return None
    return found if len(found) == 16 and len(name) == 32 else None
