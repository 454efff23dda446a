"""Getting to a peer: the session there is, or a new one to an address where it may be, or through a relay; and the book
that remembers.

Whom a node dials is decided by the machine (members), by how many access nodes there are (clients), or by a request for
a tunnel. With no link left, everybody who is known is tried until somebody answers.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Protocol

from meshnode.errors import MeshnodeError, PeerRefused, PeerUnreachable, WrongPeer
from meshnode.identity import NodeId
from meshnode.mesh.dialling import Directions, Pauses, Search
from meshnode.mesh.part import Part
from meshnode.mesh.sessions import Peer, Sessions
from meshnode.mesh.vault import Vault
from meshnode.net.address import is_virtual
from meshnode.net.link import Link
from meshnode.telemetry import LOG
from meshnode.wire.address import Address
from meshnode.wire.messages import PeerEntry
from meshnode.wire.registry import CLOSE_TEXTS, LIMIT_ADDRESSES, Close, Role

DIAL_S = 5.0
BOOK_S = 0.5
"""So soon is a new member in the book: a node that is killed in its first minute must find its mesh again."""


class Dials(Protocol):
    """What is needed of the endpoint."""

    async def dial(self, addresses: Sequence[Address], *, expected: NodeId | None, timeout_s: float = ...) -> Link:
        """A link to a peer."""
        ...


class Relays(Protocol):
    """What knows other ways to a peer than its addresses."""

    def head_start_s(self, node: bytes, addresses: Sequence[Address]) -> float | None:
        """How long a direct dial is alone; None: there is no other way."""

    async def reach(self, node: bytes) -> Link:
        """A link to the peer through somebody else. Raises PeerUnreachable."""
        ...


class Reach:
    """`endpoint` and `part` are set before anything is dialled; while `part` is None only `dial` works.

    `addresses` gives those of this node.
    """

    def __init__(
        self, own: bytes, vault: Vault, sessions: Sessions, addresses: Callable[[], Sequence[Address]]
    ) -> None:
        self._own = own
        self._addresses = addresses
        self._vault = vault
        self._sessions = sessions
        self._directions = Directions()
        self._pauses = Pauses(random.Random())
        self._book: tuple[PeerEntry, ...] = ()
        self._attempts: dict[bytes, asyncio.Task[Link]] = {}
        self._strangers = asyncio.Event()
        """Set when a member was admitted that is not in the book."""
        self._somebody = asyncio.Event()
        """Set when a peer is admitted; then another one takes its place."""
        self._search = Search(candidates=self.candidates, dial=self._try, enough=self._has_links, pauses=self._pauses)
        self.endpoint: Dials
        self.part: Part | None = None
        self.relays: Relays | None = None

    def open_book(self) -> None:
        """Read the address book of the vault."""
        self._book = self._vault.peers()
        for entry in self._book:
            self._directions.named(entry.node, entry.addresses)

    async def run(self) -> None:
        """Look for links whenever there are too few, and keep the book, until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._search.run())
                group.create_task(self._keep_book())
        finally:
            for attempt in list(self._attempts.values()):
                attempt.cancel()

    def wake(self) -> None:
        """A link was lost, or there is somebody new to try."""
        self._search.wake()

    def candidates(self) -> Sequence[bytes]:
        """Whom to dial when links are wanting, best first."""
        known: Iterable[bytes] = () if self.part is None else self.part.candidates()
        linked = (peer.node for peer in self._sessions.peers if peer.role is Role.MEMBER)
        nodes = dict.fromkeys([*known, *linked, *(entry.node for entry in self._book)])
        return [node for node in nodes if node != self._own and not self._is_heard(node)]

    def _is_heard(self, node: bytes) -> bool:
        peer = self._sessions.get(node)
        return peer is not None and not peer.link.silent

    # --- what is learned of peers -------------------------------------------------------------------------------

    def linked(self, link: Link) -> None:
        """A link has come up; if we dialled it, its address works."""
        if link.dialled and not is_virtual(link.address):
            self._directions.worked(link.peer, link.address)

    def admitted(self, peer: Peer) -> None:
        """A peer was admitted, and has said where it can be reached."""
        self._somebody.set()
        self._somebody = asyncio.Event()
        self._directions.named(peer.node, peer.session.addresses)
        self._pauses.succeeded(peer.node)
        if peer.role is Role.MEMBER and all(entry.node != peer.node for entry in self._book):
            self._strangers.set()

    def found(self, node: bytes, addresses: Sequence[Address]) -> None:
        """A member was met at these addresses: if links are wanting, it is dialled at once."""
        self._directions.named(node, addresses)
        self._pauses.succeeded(node)
        self._search.wake()

    async def remember(self) -> None:
        """Write down where members are, those that are linked first; who has left is struck out.

        Raises HomeNotWritable.
        """
        if self.part is None:
            return
        members = sorted(self.part.members().members.values(), key=lambda member: not member.linked)
        named = {member.node: member.identity.addresses if member.identity else () for member in members}
        gone = [member.node for member in members if member.state == "left"]
        alive = [member.node for member in members if member.state == "alive" and member.node != self._own]
        # Of who was admitted just now there may be no statement yet.
        fresh = [peer.node for peer in self._sessions.peers if peer.role is Role.MEMBER and peer.node not in named]
        entries = []
        for node in [*fresh, *alive]:
            addresses = self._directions.to(node, named.get(node, ()))
            if addresses:
                entries.append(PeerEntry(node, addresses[:LIMIT_ADDRESSES]))
        await asyncio.to_thread(self._write, entries, gone)
        self._book = self._vault.peers()

    def _write(self, entries: Sequence[PeerEntry], gone: Sequence[bytes]) -> None:
        self._vault.remember_peers(entries)
        for node in gone:
            self._vault.forget_peer(node)

    async def _keep_book(self) -> None:
        """Write down new members soon. The rest is not urgent: see upkeep.py."""
        while True:
            await self._strangers.wait()
            await asyncio.sleep(BOOK_S)
            self._strangers.clear()
            try:
                await self.remember()
            except MeshnodeError as reason:
                LOG.warning("the address book could not be written: %s", reason)

    # --- dialling -----------------------------------------------------------------------------------------------

    async def dial(self, node: bytes | None, addresses: Sequence[Address], timeout_s: float = DIAL_S) -> Link:
        """A link to a peer, or with None to whoever is there. Raises PeerUnreachable naming the addresses that were
        tried, PeerRefused, WrongPeer.
        """
        if node is not None:
            self._directions.named(node, addresses)
        expected = None if node is None else NodeId(node)
        return await self.endpoint.dial(addresses, expected=expected, timeout_s=timeout_s)

    async def session(self, node: bytes, addresses: Sequence[Address] = (), timeout_s: float = DIAL_S) -> Peer:
        """The session to a peer, the present one or a new one, within `timeout_s`.

        Raises PeerUnreachable, also for a peer that takes the connection and does not greet; PeerRefused, WrongPeer.
        """
        peer = self._sessions.get(node)
        if peer is not None and peer.link.alive and not peer.link.silent:
            peer.used_at = monotonic()
            return peer
        if self._sessions.is_banned(node):
            raise PeerRefused(CLOSE_TEXTS[Close.BANNED], close_code=Close.BANNED)
        if self.part is None:
            raise PeerUnreachable("this node is in no mesh")
        targets = self._sensible(self._directions.to(node, [*addresses, *self.part.addresses(node)]))
        try:
            async with asyncio.timeout(timeout_s):
                link = await self._shared(node, targets)
                return await self._sessions.session_on(link)
        except TimeoutError:
            raise PeerUnreachable(", ".join(map(str, targets))) from None

    async def _shared(self, node: bytes, targets: Sequence[Address]) -> Link:
        """A link to a peer. Callers that want the same one share the attempt; it goes on when one gives up."""
        attempt = self._attempts.get(node)
        if attempt is None:
            attempt = self._attempts[node] = asyncio.ensure_future(self._link(node, targets))
            attempt.add_done_callback(partial(self._attempted, node))
        try:
            return await asyncio.shield(attempt)
        except asyncio.CancelledError:
            if attempt.cancelled():
                raise PeerUnreachable("this node is leaving") from None
            raise

    def _attempted(self, node: bytes, attempt: asyncio.Task[Link]) -> None:
        del self._attempts[node]
        if not attempt.cancelled():
            attempt.exception()  # all callers may be gone: then nobody else looks at it

    async def _link(self, node: bytes, targets: Sequence[Address]) -> Link:
        """Dial a peer, and after a moment look for it through a relay as well: who comes first is taken. A direct link
        that comes up later takes the place of the other one by itself.
        """
        direct = asyncio.ensure_future(self.endpoint.dial(targets, expected=NodeId(node), timeout_s=DIAL_S))
        tasks = [direct]
        try:
            wait_s = await self._until_relays(node, targets, direct)
            await asyncio.wait(tasks, timeout=wait_s)
            settled = direct.done() and (direct.exception() is None or _is_refusal(direct.exception()))
            if self.relays is not None and wait_s is not None and not settled:
                tasks.append(asyncio.ensure_future(self.relays.reach(node)))
            running = set(tasks)
            while running:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=lambda task: task is not direct):
                    if task.exception() is None or (task is direct and _is_refusal(task.exception())):
                        return task.result()
            return direct.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_relays(
        self, node: bytes, targets: Sequence[Address], direct: asyncio.Future[Link]
    ) -> float | None:
        """How long a direct dial that is under way may be alone; None where it has ended before there was anybody to
        relay: after a start all members are dialled at once, and who can relay comes up among them.
        """
        while self.relays is not None:
            wait_s = self.relays.head_start_s(node, targets)
            if wait_s is not None or direct.done():
                return wait_s
            somebody = asyncio.ensure_future(self._somebody.wait())
            either: list[asyncio.Future[Any]] = [direct, somebody]
            try:
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            finally:
                somebody.cancel()
        return None

    def _sensible(self, addresses: Sequence[Address]) -> Sequence[Address]:
        """Without loopback, which is another machine's, unless this node is on loopback itself."""
        # What stands for a way of this very node means nothing in the mouth of a peer.
        addresses = [address for address in addresses if not is_virtual(address)]
        if any(address.is_loopback for address in self._addresses()):
            return addresses
        return [address for address in addresses if not address.is_loopback] or addresses

    async def _try(self, node: bytes) -> bool:
        with suppress(MeshnodeError, OSError):
            await self.session(node)
            return True
        return False

    def _has_links(self) -> bool:
        return self.part is None or not self.part.wants_links()


def _is_refusal(error: BaseException | None) -> bool:
    """Whether the peer itself has answered, and does not want us. Another node at its address says nothing."""
    return isinstance(error, PeerRefused) and not isinstance(error, WrongPeer)
