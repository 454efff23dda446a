"""This node's part in the public swarm: one open mesh beside its private one, with a socket and a folder of its own.

    Seeking (which mesh) ── Finding (one look)        what was found is joined; alone, it looks again
    Publisher (listing)                               while in a mesh as a member
    PublicMesh                                        socket, vault, policy, hash table: what a stranger can reach
    PublicModels                                      what members are told, and what they offer

Everything a person can do with the swarm is a method of `Swarm`, which is also what the control API calls.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from meshnode import __version__
from meshnode.api.served import Served
from meshnode.core.choosing import Wishes
from meshnode.discovering import discover
from meshnode.errors import BadRequest, MeshnodeError, NotInMesh, PortInUse
from meshnode.finding import Finding
from meshnode.mesh.mesh import Mesh
from meshnode.public_mesh import PublicMesh, SwarmParts
from meshnode.public_models import ModelParts, PublicModels
from meshnode.publishing import Announced, Publisher
from meshnode.seeking import Seeker, Seeking
from meshnode.telemetry import LOG
from meshnode.wire.listings import Listing
from meshnode.wire.open_meshes import DEFAULT_NAME, canonical_name
from meshnode.wire.registry import Role

__all__ = ["Swarm", "SwarmParts"]


class Swarm:
    """See the module. `start` opens the port and returns; the rest goes on beside, and ends with `stop`."""

    def __init__(self, parts: SwarmParts) -> None:
        self._its = parts
        self._role = Role.CLIENT if parts.settings.client else Role.MEMBER
        self._public: PublicMesh | None = None
        self._finding = Finding(
            parts.relays, node=parts.identity.node_id, role=self._role, host=lambda: parts.settings.bind_host
        )
        self._models = PublicModels(
            ModelParts(
                public=lambda: self._public,
                shares=self._shares,
                has=parts.has,
                offers=parts.offers,
                trust=parts.trust,
                known_private=parts.known_private,
                stated=self._listing_changed,
                price=parts.price,
                chain=parts.chain,
            )
        )
        self._seeking: Seeking | None = None
        self._seeker: asyncio.Task[None] | None = None
        self._publisher: Publisher | None = None
        self._taking_part: dict[bytes, list[asyncio.Task[None]]] = {}
        self._beside: list[asyncio.Task[None]] = []
        self._paused = False
        self._failure = ""

    def _shares(self) -> bool:
        """Whether strangers may use this node: its owner has said so, and has not paused it."""
        return self._its.settings.publishes and not self._paused

    # --- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the UDP port and begin to look for company, where the settings say so.

        Raises PortInUse for a port that was asked for; whatever else goes wrong is told, and shown as a problem.
        """
        settings = self._its.settings
        if not settings.goes_public:
            return
        try:
            wanted = settings.mesh_name or (None if settings.auto else DEFAULT_NAME)
            name = None if wanted is None else canonical_name(wanted)
            self._seek(await self._open(), name)
        except PortInUse:
            raise
        except ValueError as reason:
            self._fail(str(reason))
        except MeshnodeError as reason:
            self._fail(f"{reason.message}. {reason.fix}".removesuffix(". "))

    async def _open(self) -> PublicMesh:
        if self._public is None:
            # To look for strangers is not to serve them: whoever knows this node's address could ask it all the same.
            self._its.pausing(not self._shares())
            self._public = await PublicMesh.open(self._its, self._role, self._mesh_changed)
            # What relays are spoken to with takes a tenth of a second to load.
            self._beside.append(asyncio.create_task(self._its.relays.prepare(), name="prepare relays"))
            self._beside.append(asyncio.create_task(self._models.run(), name="public statements"))
        self._failure = ""
        return self._public

    async def stop(self, *, now: bool = False) -> None:
        """Say goodbye: to the members, and to the relays."""
        await _ended([self._seeker, *self._beside])
        goodbyes = [self._stop_taking_part()]
        if self._public is not None:
            public, self._public = self._public, None
            goodbyes.append(public.close(0.0 if now else self._its.settings.drain_timeout))
        await asyncio.gather(*goodbyes)
        await self._its.relays.close()

    # --- in and out of a mesh ---------------------------------------------------------------------------------------

    def _seek(self, public: PublicMesh, name: str | None) -> None:
        its = self._its
        self._seeking = Seeking(
            Seeker(
                mesh=public.mesh,
                vault=public.vault,
                role=self._role,
                finding=self._finding,
                wishes=self._wishes,
                bootstrap=its.settings.bootstrap,
                answers=public.answers,
                tell=lambda text: its.tell("public", text),
                trouble=self._trouble,
                entered=self._entered,
                left=self._stop_taking_part,
            ),
            name=name,
        )
        self._seeker = asyncio.create_task(self._seeking.run(), name="seek")

    def _wishes(self) -> Wishes:
        mine = self._public.vault.credentials if self._public is not None else None
        return Wishes(
            region=self._its.settings.region or "",
            last_mesh=b"" if mine is None else mine.mesh,
            offers=tuple(offer.name for offer in self._models.offers()),
        )

    def _entered(self) -> None:
        """This node takes part in the mesh of its vault."""
        public = self._public
        mine = None if public is None else public.vault.credentials
        if public is None or mine is None or mine.mesh in self._taking_part:
            return
        tasks = [asyncio.create_task(public.dht.run(mine.mesh), name="hash table")]
        if self._role is Role.MEMBER:
            self._publisher = self._new_publisher(public, mine.mesh)
            tasks.append(asyncio.create_task(self._publisher.run(), name="list the mesh"))
        self._taking_part[mine.mesh] = tasks
        self._models.touch()

    def _new_publisher(self, public: PublicMesh, mesh: bytes) -> Publisher:
        its = self._its
        announced = Announced(
            mesh=public.mesh,
            vault=public.vault,
            identity=its.identity,
            relays=its.relays,
            region=its.settings.region or "",
            software=f"meshnode {__version__}",
            max_clients=its.settings.max_clients,
            paused=lambda: self._paused,
            met=self._met,
            trouble=self._unlisted,
            changed=its.changed,
        )
        return Publisher(announced, mesh)

    async def _met(self, listings: Sequence[Listing]) -> int:
        return 0 if self._seeking is None else await self._seeking.meet(listings)

    async def _stop_taking_part(self) -> None:
        """What goes with being in a mesh ends; the listing is taken back."""
        publisher, self._publisher = self._publisher, None
        tasks = [task for mesh in self._taking_part.values() for task in mesh]
        self._taking_part.clear()
        await _ended(tasks)
        self._unlisted("")
        if publisher is not None:
            await publisher.stop()

    # --- models both ways -------------------------------------------------------------------------------------------

    @property
    def mesh(self) -> Mesh | None:
        """The open mesh, while the port is open."""
        return None if self._public is None else self._public.mesh

    def touch(self) -> None:
        """Something of this node's models, or whom it trusts, has changed."""
        self._models.touch()

    def hosts(self, local: Iterable[Served]) -> list[Served]:
        """Every model that can be asked for: those of `local` (this node, its private mesh), and those of strangers."""
        return self._models.hosts(local)

    def _mesh_changed(self) -> None:
        if self._seeking is not None:
            self._seeking.wake()
        self._listing_changed()
        self._its.changed()

    def _listing_changed(self) -> None:
        if self._publisher is not None:
            self._publisher.wake()

    # --- what a person can do (api.public_control.PublicControls) ---------------------------------------------------

    async def pause(self, paused: bool) -> dict[str, Any]:
        """Serve no strangers for now, and be listed nowhere; or do so again."""
        self._paused = paused
        self._its.pausing(not self._shares())
        self._models.touch()
        self._mesh_changed()
        return {"paused": paused}

    async def join_public(self, name: str | None) -> dict[str, Any]:
        """Go into the open mesh of this name, or, with None, the best that is found.

        Raises BadRequest for a name that is none, PortInUse, StateError.
        """
        try:
            wanted = None if name is None else canonical_name(name)
        except ValueError as reason:
            raise BadRequest(str(reason)) from None
        await _ended([self._seeker])
        self._seek(await self._open(), wanted)
        self._its.changed()
        return {"state": "looking", "name": wanted}

    async def leave_public(self) -> dict[str, Any]:
        """Leave the open mesh, and look for no other. Raises NotInMesh."""
        public = self._public
        if public is None or self._seeking is None:
            raise NotInMesh("this node takes part in no public mesh")
        mine = public.vault.credentials
        await _ended([self._seeker])
        self._seeking = None
        await self._stop_taking_part()
        await public.mesh.leave()
        await asyncio.to_thread(public.vault.forget)
        self._trouble("")
        self._models.touch()
        return {"left": "" if mine is None else mine.mesh_name}

    async def discover(self, model: str, region: str) -> dict[str, Any]:
        """The public meshes that are listed, and what they have shown (`meshnode discover --json`)."""
        wishes = self._wishes()
        wishes = dataclasses.replace(wishes, models=(model,) if model else (), region=region or wishes.region)
        return (await discover(self._its.relays, self._finding.probe, wishes)).facts()

    async def providers(self, model: str) -> dict[str, Any]:
        """Who offers a model in the hash table of this mesh, whether or not it is known by gossip. Raises NotInMesh."""
        if self._public is None:
            raise NotInMesh("this node takes part in no public mesh")
        return await self._public.dht.find_providers(model, self._models.hash_of)

    # --- what is shown ----------------------------------------------------------------------------------------------

    def _fail(self, sentence: str) -> None:
        self._failure = sentence
        self._its.tell("public", sentence)
        self._trouble(sentence)

    def _trouble(self, sentence: str) -> None:
        self._put("public-mesh-unfound", sentence)
        self._its.changed()

    def _unlisted(self, reason: str) -> None:
        self._put("public-mesh-unlisted", reason)

    def _put(self, code: str, reason: str) -> None:
        if reason:
            self._its.problems.put(code, reason=reason)
        else:
            self._its.problems.clear(code)

    def facts(self) -> dict[str, Any] | None:
        """The `swarm` member of /api/status; None while this node takes no part."""
        public, seeking, publisher = self._public, self._seeking, self._publisher
        if self._failure:
            return {"state": "failed", "sentence": self._failure, "mesh": None, "paused": self._paused}
        if public is None or seeking is None:
            return None
        listing = None
        if publisher is not None and publisher.at:
            listing = {"relays": [each.as_dict() for each in publisher.reports], "at": round(publisher.at, 3)}
        return {
            "state": seeking.state,
            "sentence": seeking.sentence,
            "publishing": self._its.settings.publishes,
            "publisher": publisher is not None and publisher.is_publisher,
            "paused": self._paused,
            "listing": listing,
            **public.facts(),
        }


async def _ended(tasks: Iterable[asyncio.Task[None] | None]) -> None:
    """Cancel tasks, and wait for their end."""
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    for outcome in await asyncio.gather(*running, return_exceptions=True):
        if isinstance(outcome, Exception):
            LOG.warning("a part of the public mesh", exc_info=outcome)
