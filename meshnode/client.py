"""A client-only node inside a program: the models of a mesh without a server, a port to listen on, or an engine.

It is made of the same parts as a node (meshing, serving without models, the door of the API), so that what a request
meets, from the choice of a host to going on after its loss, is what it meets on a node. The door is asked in this
process (sdk/exchange.py); the only socket is the UDP one to the peers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from meshnode.api.gate import Gates
from meshnode.api.record import Record
from meshnode.config import Places, Settings, load
from meshnode.doors import DoorParts, api_door, gateway_door, peer_door
from meshnode.errors import NotInMesh, PeerUnreachable, WrongUse
from meshnode.home import home_lock
from meshnode.identity import load_or_create
from meshnode.meshing import Meshing
from meshnode.sdk.chat import ANY_MODEL, Chat, EmbeddingRequests, Models
from meshnode.sdk.conversation import Conversation
from meshnode.sdk.counting import TokenCounts
from meshnode.sdk.exchange import Api
from meshnode.serving import Serving
from meshnode.telemetry import LOG, ProblemBoard, silent
from meshnode.trust import Trust
from meshnode.wire.statements import Dynamic

OBEYED = ("name", "bind_host", "lan", "aliases", "max_body", "queue", "queue_timeout", "ping_interval", "stall_timeout")
"""Settings that a program takes from its environment (MESHNODE_*); all others are a matter of nodes."""
HEARD_WITHIN_S = 15.0
"""A member says what it serves within a second after it was reached."""

# A library writes no log unless its program wants one: logging.getLogger("meshnode").
LOG.addHandler(logging.NullHandler())


class Client:
    """The models of a mesh, in a program.

        import asyncio, meshnode

        async def main() -> None:
            async with meshnode.Client.join("mn1...") as mesh:
                async for piece in mesh.chat("count from 1 to 20", model="demo"):
                    print(piece, end="", flush=True)

        asyncio.run(main())

    Made by `join` or `open`, used with `async with`, once. Several may run in one program. What goes wrong is raised as
    an exception of `meshnode.errors`, each with `code`, `message` and `fix`.
    """

    def __init__(self, *, token: str | None, home: Path | None, name: str | None) -> None:
        """See `join` and `open`."""
        self._token = token
        self._home = home
        self._name = name
        self._stack: AsyncExitStack | None = None
        self._meshing: Meshing | None = None
        self._desk: _Desk | None = None
        self._stopping = False
        self._news = asyncio.Event()
        self.node = ""
        """The id of this client in hex digits, once it is in the mesh."""
        self.mesh_name = ""
        """What the mesh is called, once it is in it."""

    @classmethod
    def join(cls, token: str, *, home: str | os.PathLike[str] | None = None, name: str | None = None) -> Client:
        """A client that becomes part of the mesh of an invite (`meshnode invite --client`).

        Its key and certificate are kept in `home` for `open`; without it they live as long as the block. `name` is what
        other nodes call it. Entering raises InviteInvalid, PeerUnreachable, PeerRefused, AlreadyInMesh, AlreadyRunning,
        HomeNotWritable, SettingsError.
        """
        return cls(token=token, home=None if home is None else Path(home), name=name)

    @classmethod
    def open(cls, home: str | os.PathLike[str], *, name: str | None = None) -> Client:
        """A client that has joined before with this `home`, and comes back without an invite.

        Entering raises as for `join`, and NotInMesh for a home that belongs to no mesh.
        """
        return cls(token=None, home=Path(home), name=name)

    # --- life -----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Client:
        if self._stack is not None:
            raise WrongUse("a client can be entered once", fix="make another one")
        async with AsyncExitStack() as stack:
            self._stack = stack
            settings = self._settings()
            if self._home is None:
                folder = tempfile.TemporaryDirectory(prefix="meshnode-", ignore_cleanup_errors=True)
                home = Path(stack.enter_context(folder))
            else:
                home = self._home.absolute()
            places = Places(home, home / "cache", home / "config.toml")
            stack.enter_context(home_lock(places))
            api = await self._start(settings, places, stack)
            self._desk = _Desk(Chat(api), Models(api), EmbeddingRequests(api), TokenCounts(api))
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stack is not None
        await self._stack.aclose()

    def _settings(self) -> Settings:
        """Raises SettingsError."""
        given = {f"MESHNODE_{name.upper()}" for name in OBEYED}
        environment = {name: value for name, value in os.environ.items() if name in given}
        flags = {"client": True, "join": self._token, "name": self._name, "bind_port": 0}
        # What looks for others on the local network is for machines, not for programs.
        quiet = {} if "MESHNODE_LAN" in environment else {"lan": "off"}
        return load({**flags, **quiet}, environment=environment, file=Path(os.devnull))

    async def _start(self, settings: Settings, places: Places, stack: AsyncExitStack) -> Api:
        identity = load_or_create(places.home / "node.key")
        self.node = identity.node_id.hex()
        problems = ProblemBoard()
        gates = Gates(capacity=settings.queue, timeout_s=settings.queue_timeout)
        serving = Serving(
            settings=settings,
            places=places,
            problems=problems,
            gates=gates,
            report=silent,
            tell=_tell,
            changed=_nothing,
        )
        self._meshing = meshing = Meshing(
            settings=settings,
            places=places,
            identity=identity,
            serving=serving,
            problems=problems,
            tell=_tell,
            changed=self._news.set,
            handlers={},
            has=Dynamic,
            trust=Trust(places.home, bytes(identity.node_id)),
        )
        parts = DoorParts(
            settings=settings,
            gates=gates,
            here=serving.served,
            models=meshing.served,
            stopping=lambda: self._stopping,
        )
        gateway = gateway_door(parts, node=self.node, finished=self._finished)
        api = Api(api_door(parts, gateway=gateway))
        stack.push_async_callback(_undisturbed, partial(self._end, meshing, api))
        await meshing.start(peer_door(parts, finished=self._finished).answer)
        await self._until_heard(meshing)
        self.mesh_name = str((meshing.facts() or {}).get("name", ""))
        return api

    async def _until_heard(self, meshing: Meshing) -> None:
        """Wait until a member has said what it serves. Raises PeerUnreachable when none does."""
        try:
            async with asyncio.timeout(HEARD_WITHIN_S):
                while not any(member.dynamic for member in meshing.snapshot().members.values()):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise PeerUnreachable("no node of the mesh answers at the addresses where they were") from None

    async def _end(self, meshing: Meshing, api: Api) -> None:
        self._stopping = True
        await api.close()
        await meshing.stop(now=True)

    def _finished(self, record: Record) -> None:
        assert self._meshing is not None
        self._meshing.learn(record, asked_here=True)

    # --- what a program does ---------------------------------------------------------------------------------

    @property
    def chat(self) -> Chat:
        """Ask for text, or `chat.completions.create(...)`."""
        return self._entered().chat

    @property
    def models(self) -> Models:
        """`await mesh.models.list()`."""
        return self._entered().models

    @property
    def embeddings(self) -> EmbeddingRequests:
        """`await mesh.embeddings.create(...)`."""
        return self._entered().embeddings

    def conversation(
        self,
        *,
        model: str = ANY_MODEL,
        system: str | None = None,
        keep_tokens: int | None = None,
        max_tokens: int | None = None,
        messages: Sequence[Mapping[str, Any]] = (),
        **parameters: Any,
    ) -> Conversation:
        """A conversation that keeps itself within the context of its model.

        The oldest turns are dropped, never the `system` prompt, so that a prompt and an answer of `max_tokens` (or a
        quarter of the context) fit. `keep_tokens` sets a lower limit for the prompt. `messages` begin it with turns of
        an earlier one, `parameters` go along with each question.
        """
        desk = self._entered()
        return Conversation(
            desk.chat,
            desk.models,
            desk.counts,
            model=model,
            system=system,
            keep_tokens=keep_tokens,
            max_tokens=max_tokens,
            messages=messages,
            parameters=parameters,
        )

    def _entered(self) -> _Desk:
        if self._desk is None:
            raise NotInMesh("the client is not entered", fix="async with meshnode.Client.join(TOKEN) as mesh: ...")
        return self._desk


@dataclass(frozen=True, slots=True)
class _Desk:
    """What a client in its mesh asks with."""

    chat: Chat
    models: Models
    embeddings: EmbeddingRequests
    counts: TokenCounts


def _tell(label: str, text: str) -> None:
    LOG.info("%s: %s", label, text)


def _nothing() -> None:
    pass


async def _undisturbed(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run to the end what must not be left half done; a cancellation that comes meanwhile follows."""
    task = asyncio.create_task(work())
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as reason:
            cancelled = reason
    if cancelled is not None:
        raise cancelled
    task.result()
