"""Who is connected, and as what: from a link with proven keys to an admitted peer, and back.

The dialler opens the control stream and greets; the acceptor waits for it only so long. Of a peer with several links,
as after both have dialled, one session is in use and the others are spare: all are read, one is written. A peer that
breaks the rules in a way that is no accident is kept out for a while.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Protocol

from meshnode.errors import MeshnodeError, PeerRefused, PeerUnreachable
from meshnode.mesh.control import Control, ControlLimits, Stalled, frame_of, message_in
from meshnode.mesh.session import NotLetIn, Session, greet, receive
from meshnode.mesh.vault import Vault
from meshnode.net.link import Link
from meshnode.net.stream import MeshStream
from meshnode.telemetry import LOG
from meshnode.wire.address import Address
from meshnode.wire.messages import Hello
from meshnode.wire.registry import (
    CLOSE_TEXTS,
    LIMIT_ADMISSION_TIMEOUT_S,
    LIMIT_BAN_S,
    Close,
    Reset,
    Role,
)
from meshnode.wire.values import WireError

BANNED_FOR = frozenset({Close.PROTOCOL_ERROR, Close.FLOOD})
"""What a peer does not do by accident, as keys and integrity are the transport's."""
BANS = 1024
FAILURES = 64
TRUSTED_BYTES = 8 << 20
"""An admitted peer has the credit of one from whom so much was taken: four times that in all, unread."""
MOST_UNADMITTED = 64


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Bounds of the sessions; `admission_s` is how long a stranger may take to say who it is.

    `clients` may be connected at a time: the other links are kept for members.
    """

    control: ControlLimits = ControlLimits()
    admission_s: float = LIMIT_ADMISSION_TIMEOUT_S
    ban_s: float = LIMIT_BAN_S
    clients: int = 192


@dataclass(eq=False, slots=True)
class Peer:
    """An admitted peer on one link. `used_at` is when it was last wanted, in monotonic seconds."""

    session: Session
    link: Link
    control: Control
    used_at: float = field(default_factory=monotonic)

    @property
    def node(self) -> bytes:
        """Its 32-byte id."""
        return self.link.peer

    @property
    def role(self) -> Role:
        """What it may do here."""
        return self.session.role

    def send(self, message: Any) -> None:
        """Queue a message on the control stream. Raises WireError for one that is too large."""
        self.control.send(frame_of(message))


@dataclass(eq=False, slots=True)
class _Entry:
    """What is known of one link. `admission` gives the peer's role, or None when it was not admitted; `counted` says
    that the policy of an open mesh knows of it.
    """

    link: Link
    admission: asyncio.Future[Role | None]
    peer: Peer | None = None
    counted: bool = False
    control_seen: bool = False
    held: int = 0
    timer: asyncio.TimerHandle | None = None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def settle(self, role: Role | None) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if not self.admission.done():
            self.admission.set_result(role)


class Listener(Protocol):
    """What is told of sessions. Called from the event loop."""

    def peer_up(self, peer: Peer) -> None:
        """A peer was admitted. Messages of it follow."""

    def peer_down(self, peer: Peer) -> None:
        """It has no session any more, or a new one follows at once."""

    def received(self, peer: Peer, message: Any) -> None:
        """A message of the peer. Raises WireError for one that it may not send."""


class Sessions:
    """All links and sessions of a node.

    `hello` makes our greeting with a certificate, None while there is none: then a link that we dialled waits until
    `join` is called for it. `counters` gets: sessions_opened, admissions_refused, clients_refused,
    admissions_timed_out, bans, messages_in, messages_malformed, datagrams_dropped, control_overflows; in an open mesh
    also what its policy refuses: open_prefix_full, open_clients_full, open_members_full, open_too_often, open_banned.
    """

    def __init__(
        self,
        vault: Vault,
        listener: Listener,
        *,
        hello: Callable[[], Hello | None],
        kept: Callable[[bytes], Link | None],
        name: str,
        software: str,
        counters: Counter[str],
        limits: SessionLimits = SessionLimits(),
    ) -> None:
        """`kept` gives the link to a peer that the endpoint prefers."""
        self._vault = vault
        self._listener = listener
        self._hello = hello
        self._kept = kept
        self._name = name
        self._software = software
        self._counters = counters
        self._limits = limits
        self._entries: dict[Link, _Entry] = {}
        self._peers: dict[bytes, Peer] = {}
        self._bans: OrderedDict[bytes, float] = OrderedDict()
        self._failures: OrderedDict[bytes, MeshnodeError] = OrderedDict()
        self._loop = asyncio.get_running_loop()

    # --- the peers ----------------------------------------------------------------------------------------------

    @property
    def peers(self) -> tuple[Peer, ...]:
        """One for each admitted peer: the session that is in use."""
        return tuple(self._peers.values())

    def get(self, node: bytes) -> Peer | None:
        """The session in use to a peer."""
        return self._peers.get(node)

    def is_at(self, address: Address) -> bool:
        """Whether an admitted peer is reached at this address, or has said that it can be."""
        return any(address == peer.link.address or address in peer.session.addresses for peer in self.peers)

    async def admitted(self, link: Link) -> Role | None:
        """Wait until the peer of a link has been admitted; its role, or None when it was not."""
        entry = self._entries.get(link)
        return None if entry is None else await asyncio.shield(entry.admission)

    async def session_on(self, link: Link) -> Peer:
        """The peer at the other end of a link that we dialled. Raises PeerRefused, PeerUnreachable and what `greet`
        raises.
        """
        entry = self._entries.get(link)
        if entry is not None:
            await asyncio.shield(entry.admission)
        peer = self._peers.get(link.peer)
        if peer is None:
            raise self._failures.pop(link.peer, None) or PeerUnreachable(str(link.address))
        return peer

    def offend(self, link: Link, code: Close, reason: str = "") -> None:
        """Close the link of a peer that broke the rules; for some codes, keep it out for a while."""
        if code in BANNED_FOR:
            self._counters["bans"] += 1
            self._bans[link.peer] = monotonic() + self._limits.ban_s
            self._bans.move_to_end(link.peer)
            if len(self._bans) > BANS:
                self._bans.popitem(last=False)
            if self._vault.policy is not None:
                self._vault.policy.offended(link.address, monotonic())
        LOG.warning("closing the connection to %s: %s", link.peer.hex()[:10], reason or CLOSE_TEXTS.get(code, code))
        link.close(code)

    def is_banned(self, node: bytes) -> bool:
        """Whether this peer is being kept out."""
        until = self._bans.get(node)
        if until is None:
            return False
        if until > monotonic():
            return True
        del self._bans[node]
        return False

    # --- called by the endpoint -----------------------------------------------------------------------------------

    def link_up(self, link: Link) -> None:
        """A link has proven keys: greet, or wait to be greeted."""
        if self.is_banned(link.peer):
            link.close(Close.BANNED)
            return
        entry = self._entries[link] = _Entry(link, self._loop.create_future())
        if not link.dialled:
            entry.timer = self._loop.call_later(self._limits.admission_s, self._timed_out, entry)
            self._make_room()
        elif (hello := self._hello()) is not None:
            self._start(entry, self._greet(entry, hello))

    def link_down(self, link: Link) -> None:
        """The link has ended, and its session with it."""
        entry = self._entries.pop(link, None)
        if entry is None:
            return
        entry.settle(None)
        if entry.counted and self._vault.policy is not None:
            self._vault.policy.left(link.peer)
        peer = entry.peer
        if peer is not None:
            peer.control.close()
        if peer is None or self._peers.get(peer.node) is not peer:
            return
        del self._peers[peer.node]
        self._listener.peer_down(peer)
        for other in self._entries.values():
            if other.peer is not None and other.peer.node == peer.node and other.link.alive:
                self._use(other.peer)
                break

    def datagram(self, link: Link, data: bytes) -> None:
        """An unreliable message. Before admission it counts for nothing."""
        entry = self._entries.get(link)
        if entry is None or entry.peer is None:
            self._counters["datagrams_dropped"] += 1
            return
        try:
            message = message_in(data)
            if message is not None:
                self._deliver(entry.peer, message)
        except WireError as error:
            self._malformed(link, error)

    async def control_opened(self, stream: MeshStream, header: bytes, role: Role | None) -> None:
        """The peer opened a control stream (the handler of that type)."""
        entry = self._entries.get(stream.link)
        if entry is None or stream.link.dialled or entry.control_seen:
            self._counters["admissions_refused"] += 1
            stream.reset(Reset.REFUSED)
            return
        entry.control_seen = True
        try:
            session = await receive(stream.link, stream, self._vault, name=self._name, software=self._software)
        except MeshnodeError as error:
            self._counters["admissions_refused"] += 1
            if isinstance(error, NotLetIn):
                self._counters[error.counter] += 1
            LOG.debug("%s was not let in: %s", stream.link.peer.hex()[:10], error)
            entry.settle(None)
            return
        await self._admit(entry, session)

    # --- admission --------------------------------------------------------------------------------------------------

    async def join(self, link: Link, hello: Hello, mesh_name: str) -> Session:
        """Greet with an invite on a link that we dialled. The certificate is in the vault when this returns.

        `adopt` must follow. Raises what `greet` raises; the link is closed then.
        """
        entry = self._entries.get(link)
        if entry is None or entry.control_seen:
            raise PeerUnreachable(str(link.address))
        entry.control_seen = True
        return await greet(link, self._vault, hello=hello, mesh_name=mesh_name)

    def adopt(self, session: Session) -> None:
        """Begin the session that came of `join`."""
        entry = self._entries.get(session.link)
        if entry is not None:
            self._start(entry, self._admit(entry, session))

    def hold(self, link: Link, held: bool) -> None:
        """While held, a link may live without admission: somebody is pairing over it."""
        entry = self._entries.get(link)
        if entry is None or entry.admission.done():
            return
        entry.held += 1 if held else -1
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
        if not entry.held and not link.dialled:
            entry.timer = self._loop.call_later(self._limits.admission_s, self._timed_out, entry)

    async def flush(self, timeout_s: float) -> None:
        """Wait until every peer has what was sent to it so far, as far as that can be known, or the time is over."""
        await asyncio.gather(*(_flushed(peer, timeout_s) for peer in self.peers))

    async def close(self) -> None:
        """Stop reading and writing; the links are the endpoint's to close."""
        tasks = [task for entry in self._entries.values() for task in entry.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, entry: _Entry, work: Any) -> None:
        task = self._loop.create_task(work)
        entry.tasks.add(task)
        task.add_done_callback(entry.tasks.discard)

    def _timed_out(self, entry: _Entry) -> None:
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
        self._counters["admissions_timed_out"] += 1
        entry.link.close(Close.ADMISSION_TIMEOUT)

    def _make_room(self) -> None:
        """Of too many strangers the one that has waited longest goes: who belongs here takes two round trips."""
        waiting = [entry for entry in self._entries.values() if entry.timer is not None]
        if len(waiting) > MOST_UNADMITTED:
            self._timed_out(waiting[0])

    async def _greet(self, entry: _Entry, hello: Hello) -> None:
        entry.control_seen = True
        try:
            session = await greet(entry.link, self._vault, hello=hello)
        except MeshnodeError as error:
            # Whoever dialled asks for it, if anybody did, perhaps when the link is long gone.
            self._failures[entry.link.peer] = error
            if len(self._failures) > FAILURES:
                self._failures.popitem(last=False)
            if isinstance(error, PeerRefused):
                LOG.debug("%s does not let this node in: %s", entry.link.address, error)
            entry.settle(None)
            return
        await self._admit(entry, session)

    async def _admit(self, entry: _Entry, session: Session) -> None:
        """Begin the session, and read it until it ends."""
        link = entry.link
        if session.role is Role.CLIENT and self._has_no_room_for(link.peer):
            self._counters["clients_refused"] += 1
            link.close(Close.FLOOD)
        if not link.alive:
            entry.settle(None)
            return
        if self._vault.policy is not None:
            self._vault.policy.entered(link.peer, link.address, session.role)
            entry.counted = True
        control = Control(session.stream, overflow=lambda: self._overflowed(link), limits=self._limits.control)
        peer = entry.peer = Peer(session, link, control)
        self._counters["sessions_opened"] += 1
        # A stranger's few unread bytes close the whole connection; a peer has many streams, of which some are slow.
        if link.quic.raise_connection_limit(0, TRUSTED_BYTES):
            link.flush_soon()
        current = self._peers.get(peer.node)
        if current is None:
            self._use(peer)
        elif self._kept(peer.node) is link or not current.link.alive:
            del self._peers[peer.node]
            self._listener.peer_down(current)
            self._use(peer)
        entry.settle(session.role)
        self._start(entry, _quietly(control.write()))
        await self._read(peer)

    def _has_no_room_for(self, client: bytes) -> bool:
        others = sum(peer.role is Role.CLIENT and peer.node != client for peer in self._peers.values())
        return others >= self._limits.clients

    def _use(self, peer: Peer) -> None:
        self._peers[peer.node] = peer
        self._listener.peer_up(peer)

    # --- messages ---------------------------------------------------------------------------------------------------

    async def _read(self, peer: Peer) -> None:
        try:
            async for message in peer.control.messages():
                self._deliver(peer, message)
        except WireError as error:
            self._malformed(peer.link, error)
        except Stalled:
            peer.link.close(Close.PROTOCOL_ERROR, "half a frame")
        except OSError:
            pass
        else:
            peer.link.close(Close.DONE)
        # A control stream that was reset alone leaves nothing to talk over.
        if peer.link.alive:
            peer.link.close(Close.DONE)

    def _deliver(self, peer: Peer, message: Any) -> None:
        self._counters["messages_in"] += 1
        try:
            self._listener.received(peer, message)
        except WireError:
            raise
        except Exception:
            LOG.exception("a %s of %s could not be handled", type(message).__name__, peer.node.hex()[:10])
            peer.link.close(Close.INTERNAL)

    def _malformed(self, link: Link, error: WireError) -> None:
        self._counters["messages_malformed"] += 1
        self.offend(link, error.code, error.reason)

    def _overflowed(self, link: Link) -> None:
        # No ban: a suspended laptop does the same.
        self._counters["control_overflows"] += 1
        link.close(Close.FLOOD)


async def _flushed(peer: Peer, timeout_s: float) -> None:
    with suppress(TimeoutError, MeshnodeError):
        async with asyncio.timeout(timeout_s):
            await peer.control.flushed()
            # Packets are answered in their order: what was sent before the echo has arrived when it is back.
            await peer.link.echo(timeout_s)


async def _quietly(work: Any) -> None:
    with suppress(OSError):
        await work
