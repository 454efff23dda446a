"""The neighbourhood of a node: who else of its mesh is on the local network, and pairing by a spoken code.

What is found by mDNS is a hint of where to dial, no more. A machine that shows a code is announced as one that does; a
machine where a code is typed asks all of those, or the one at the address that was typed with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from meshnode.discovery.mdns import Lan, lan_hosts
from meshnode.discovery.pairing import (
    EXPORTER_BYTES,
    EXPORTER_LABEL,
    Code,
    Pairing,
    PairingRefused,
    parse_code,
)
from meshnode.errors import BadRequest, MayNotInvite, MeshnodeError, NotInMesh, PairingFailed, PeerUnreachable
from meshnode.identity import ephemeral
from meshnode.mesh.addresses import interface_hosts
from meshnode.mesh.mesh import Mesh
from meshnode.mesh.stranger import open_pairing, visit
from meshnode.mesh.vault import Vault
from meshnode.net.stream import MeshStream
from meshnode.telemetry import LOG
from meshnode.wire import invites
from meshnode.wire.address import Address
from meshnode.wire.registry import Close, Role

LOOK_S = 30.0
MEET_PAUSE_S = 60.0
"""A neighbour that claims to be of our mesh is tried no more often."""
FIND_S = 5.0
"""How long a typed code waits for the machine that shows it to be found."""
LOOK_AGAIN_S = 0.1
PAIRING_INVITE_S = 60

Join = Callable[[bytes], Awaitable[None]]
"""Joins a mesh with the bytes of an invite. Raises MeshnodeError."""


class Neighbours:
    """`open` once the mesh is up, `close` before it goes. The others may be called in between.

    `node` is the id of this one, `lan` the setting of that name. Who is bound to one address speaks there alone.
    """

    def __init__(self, *, node: bytes, vault: Vault, lan: str, join: Join, changed: Callable[[], None]) -> None:
        self._vault = vault
        self._setting = lan
        self._join = join
        self._changed = changed
        self._pairing = Pairing(node)
        self._state = "none"
        self._detail = ""
        self._mesh: Mesh | None = None
        self._lan: Lan | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._meeting: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._met: dict[tuple[Address, ...], float] = {}
        self._guests = 0

    # --- life -----------------------------------------------------------------------------------------------

    def open(self, mesh: Mesh) -> None:
        """Look around from now on."""
        self._mesh = mesh
        self._watcher = asyncio.create_task(self._watch(), name="neighbours")

    async def close(self) -> None:
        """Say goodbye on the local network."""
        self._pairing.close()
        for task in (self._watcher, self._meeting):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        if self._lan is not None:
            lan, self._lan = self._lan, None
            try:
                await lan.close()
            except Exception:
                LOG.exception("no goodbye on the local network")

    def wake(self) -> None:
        """The mesh, the code that is shown, or who is around has changed."""
        self._news.set()

    async def _watch(self) -> None:
        trouble = ""
        while True:
            try:
                await self._speak()
                trouble = ""
            except (MeshnodeError, OSError) as reason:
                # It is tried again and again; the log has it once.
                if str(reason) != trouble:
                    trouble = str(reason)
                    LOG.info("the local network: %s", trouble)
            except Exception:
                # A convenience must not take the node down, nor keep it from an orderly end.
                LOG.exception("looking around on the local network")
            if self._meeting is None or self._meeting.done():
                self._meeting = asyncio.create_task(self._meet(), name="meet neighbours")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._news.wait()
            self._news.clear()

    async def _speak(self) -> None:
        """Be announced where the setting allows it, as what this node is now."""
        mesh = self._mesh
        assert mesh is not None
        hosts = await self._hosts(mesh)
        known = self._vault.credentials
        # A client-only node lets nobody in: to be found would help no one.
        tag = known.mesh if known is not None and known.role is Role.MEMBER else None
        if self._lan is None:
            if not hosts or tag is None:
                return
            self._lan = await Lan.open(hosts, port=mesh.bound.port, mesh=tag, changed=self.wake)
        await self._lan.refresh(hosts)
        await self._lan.announce(mesh=tag, shows_code=self._pairing.shown is not None)

    async def _hosts(self, mesh: Mesh) -> Sequence[str]:
        if self._setting == "off":
            return ()
        bound = mesh.bound
        if bound.host not in ("::", "0.0.0.0"):
            return lan_hosts([bound.host], setting=self._setting)
        return lan_hosts(await asyncio.to_thread(interface_hosts), setting=self._setting)

    async def _meet(self) -> None:
        """Dial members of this mesh that are here and have no link."""
        mesh, lan = self._mesh, self._lan
        if mesh is None or lan is None:
            return
        now = time.monotonic()
        self._met = {place: at for place, at in self._met.items() if now - at < MEET_PAUSE_S}
        for neighbour in lan.neighbours:
            # An address of somewhere else was put there by somebody who wants it dialled.
            place = tuple(address for address in neighbour.addresses if address.is_private)
            if neighbour.ours and place and place not in self._met:
                self._met[place] = now
                with contextlib.suppress(MeshnodeError, OSError):
                    await mesh.meet(place)

    # --- pairing: here the code is shown --------------------------------------------------------------------

    async def show(self) -> dict[str, Any]:
        """A new code to read out. Raises MayNotInvite, PairingRefused for ten minutes after three failures."""
        mesh = self._mesh
        if mesh is None:
            raise NotInMesh("the node is still starting", fix="try again in a moment")
        if self._vault.credentials is not None and not self._vault.may_invite:
            raise MayNotInvite()
        shown = self._pairing.open()
        self._tell("waiting")
        self.wake()
        return {
            "code": str(shown.code),
            "expires_s": round(shown.expires_at - time.monotonic(), 1),
            "addresses": [str(address) for address in mesh.addresses],
        }

    async def serve(self, stream: MeshStream, header: bytes) -> None:
        """A machine where a code was typed has opened a PAIR stream."""
        link = stream.link
        code = self._pairing.shown
        if code is None:
            # Strangers are not waited for: a link lives without admission only while a person wants it.
            link.close(Close.PAIRING_CLOSED)
            return
        self._guests += 1
        try:
            token = await self._pairing.host(
                stream,
                peer=link.peer,
                exporter=link.exporter(EXPORTER_LABEL, EXPORTER_BYTES),
                invite=self._invite,
            )
            if token is not None:
                await self._join(token)
            self._tell("paired")
        except PairingRefused as error:
            link.close(error.close_code)
            if self._pairing.shown is not code:
                self._tell("failed", str(error))
        except MeshnodeError as error:
            self._tell("failed", str(error))
        finally:
            self._guests -= 1
            self.wake()

    def _invite(self) -> bytes | None:
        """An invite for the other machine alone; None where this node may not invite. Runs in a thread."""
        mesh = self._mesh
        if mesh is None or self._vault.credentials is None or not self._vault.may_invite:
            return None
        text, _ = self._vault.create_invite(uses=1, ttl_s=PAIRING_INVITE_S, addresses=mesh.addresses)
        return invites.to_bytes(text)

    # --- pairing: here it is typed --------------------------------------------------------------------------

    async def type(self, text: str, at: str | None) -> bool:
        """Try a code, at the machine of that address or at all that show one. Whether this node has joined the other's
        mesh; if not, the other has joined this one's.

        Raises PairingRefused, BadRequest for an address that is none, and what joining raises.
        """
        code = parse_code(text)
        mesh = self._mesh
        if mesh is None:
            raise NotInMesh("the node is still starting", fix="try again in a moment")
        host = mesh.bound.host
        token = await (self._try(code, [_address(at)], host) if at else self._search(code, host))
        if token is None:
            return False
        await self._join(token)
        return True

    async def _search(self, code: Code, host: str) -> bytes | None:
        asked: set[tuple[Address, ...]] = set()
        fix = "run `meshnode pair` there, or add --at with an address that it shows"
        if self._setting == "off":
            raise PairingFailed("this node is started with --lan off", fix=fix)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIND_S) as limit:
                while True:
                    for neighbour in self._lan.neighbours if self._lan is not None else ():
                        if neighbour.ours or not neighbour.shows_code or neighbour.addresses in asked:
                            continue
                        asked.add(neighbour.addresses)
                        limit.reschedule(None)
                        with contextlib.suppress(_NotThere, PeerUnreachable):
                            return await self._try(code, neighbour.addresses, host)
                        limit.reschedule(asyncio.get_running_loop().time() + FIND_S)
                    await asyncio.sleep(LOOK_AGAIN_S)
        if self._lan is None:
            raise PairingFailed("this machine is on no private network; see --lan", fix=fix)
        raise PairingFailed("no machine on the local network shows this code", fix=fix)

    async def _try(self, code: Code, addresses: Sequence[Address], host: str) -> bytes | None:
        """The invite of whoever is there, None when it takes ours. Raises _NotThere when nothing was tried."""
        # Our own key would make this link the one between the two nodes, which may have to live on.
        visitor = ephemeral()
        try:
            async with visit(visitor, addresses, host=host) as link:
                token = await self._pairing.guest(
                    open_pairing(link),
                    code,
                    node=visitor.node_id,
                    peer=link.peer,
                    exporter=link.exporter(EXPORTER_LABEL, EXPORTER_BYTES),
                    invite=self._invite,
                )
                if token is None:
                    # Packets are answered in their order: what was sent before the echo has arrived when it is back.
                    await link.echo()
                return token
        except PairingRefused as error:
            if error.close_code == Close.PAIRING_CLOSED:
                raise _NotThere(error.detail, fix=error.fix) from None
            raise

    # --- what is shown --------------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """The `pairing` member of the mesh in /api/status."""
        shown = self._pairing.shown
        if self._state == "waiting" and shown is None and not self._guests:
            return {"state": "failed", "expires_s": 0.0, "detail": "nobody has typed the code in time"}
        left_s = 0.0 if shown is None else shown.expires_at - time.monotonic()
        return {"state": self._state, "expires_s": round(left_s, 1), "detail": self._detail}

    def _tell(self, state: str, detail: str = "") -> None:
        self._state, self._detail = state, detail
        self._changed()


class _NotThere(PairingFailed):
    """The two machines could not be paired."""


def _address(text: str) -> Address:
    try:
        return Address.parse(text)
    except ValueError as reason:
        raise BadRequest(str(reason), fix="--at 192.0.2.7:9337, as the other machine shows it") from None
