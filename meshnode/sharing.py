"""This node's part in the weights of the mesh: what it gives to other members, and what it fetches from them.

    peers ── bulk streams ──> mesh/bulk.BulkServer ──> models/library   manifests and chunks of files on this disk
    fetch ──> manifest (by digest, or from a peer) ──> room on the disk ──> copies of equal chunks that are here
          ──> mesh/gathering   from several peers at once, the hub where no peer has it ──> models/pieces

It connects these rooms and decides little: who has weights is handed in by whoever knows the statements of the mesh.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import ExitStack, aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from meshnode.errors import MeshnodeError, ModelFileInvalid, NetworkError, WeightsUnavailable
from meshnode.mesh.bulk import BadAnswer, BulkServer, PeerSource, ask_have, ask_manifest
from meshnode.mesh.gathering import Gathering, GatheringView, all_of
from meshnode.models import pieces as piece_files
from meshnode.models.cache import LocalModel
from meshnode.models.digest import DigestStopped
from meshnode.models.fetched import FetchedModels
from meshnode.models.hub import Hub
from meshnode.models.hub_ranges import NAME as HUB
from meshnode.models.hub_ranges import HubSource
from meshnode.models.library import ModelLibrary
from meshnode.models.manifest import Manifest, ManifestInvalid, decode
from meshnode.models.pieces import Pieces, PiecesBusy
from meshnode.models.references import References
from meshnode.models.survey import ManifestShelf
from meshnode.models.wanted import Wanted
from meshnode.net.stream import MeshStream
from meshnode.telemetry import LOG
from meshnode.wire.registry import Role

MOST_SOURCES = 8
BUSY_POLL_S = 0.5
HUB_WAITS_S = 5.0
"""The hub is asked for what no peer has: for so long it waits for what peers say."""

OpenTo = Callable[[bytes, bytes], Awaitable[MeshStream]]
"""Opens a `bulk` stream to a NodeId, with this header, BEHIND_OTHERS. Raises OSError and NetworkError."""
FetchProgress = Callable[[int, int], None]
"""Told how many bytes are here of how many that are wanted."""


def no_progress(have_bytes: int, want_bytes: int) -> None:
    """A FetchProgress that keeps quiet."""


@dataclass(frozen=True, kw_only=True)
class SharingParts:
    """What Sharing is made of.

    `share`: whether members are given anything. `most_bytes` bounds what was fetched from peers on this disk. `cache`
    is the folder of the machine's cache. `in_use(path)`: whether an engine reads this file. `name_of` is how a node is
    called in status; `suspect` is told of nodes that sent what is damaged.
    """

    share: bool
    most_bytes: int | None
    cache: Path
    open_stream: OpenTo
    in_use: Callable[[Path], bool] = lambda path: False
    hub: Callable[[], Hub] = Hub.from_environment
    name_of: Callable[[bytes], str] = lambda node: node.hex()[:10]
    suspect: Callable[[bytes, str], None] = lambda node, what: None
    changed: Callable[[], None] = lambda: None
    counters: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True, eq=False)
class _Fetch:
    """A fetch under way, for status."""

    wanted: Wanted
    ahead: bool
    view: GatheringView = GatheringView(0, 0, ())


class Sharing:
    """See the module. Methods run in the event loop, except `references`; `await open()` first, `close()` last."""

    def __init__(self, parts: SharingParts) -> None:
        self._parts = parts
        fetched = FetchedModels(parts.cache / "weights", parts.most_bytes)
        self._fetched = fetched
        self._library = ModelLibrary(ManifestShelf(parts.cache / "hashes.json"), fetched)
        self._server = BulkServer(self._library if parts.share else None, counters=parts.counters)
        self._fetches: list[_Fetch] = []
        self._turns: dict[bytes, asyncio.Lock] = {}
        self._surveying = asyncio.Lock()
        self._ahead: asyncio.Task[None] | None = None
        self._proving: asyncio.Task[None] | None = None
        self._closing = threading.Event()
        self._taken_bytes = 0

    async def open(self) -> None:
        """Learn what is here from earlier runs."""
        await asyncio.to_thread(self._library.open)
        self._prove_soon()
        self._taken_bytes = await asyncio.to_thread(self._fetched.taken_bytes)

    async def close(self) -> None:
        """End what is being fetched ahead of its need, and what is read again. Other fetches are their callers'."""
        self._closing.set()
        await self._stop_ahead()
        if self._proving is not None:
            await asyncio.wait({self._proving})

    # --- giving -----------------------------------------------------------------------------------------------------

    async def serve(self, stream: MeshStream, header: bytes, role: Role | None) -> None:
        """Answer a `bulk` stream of a peer: a handler of the mesh."""
        await self._server.serve(stream, header, role)

    async def learn(self, local: LocalModel, stopped: Callable[[], bool] = lambda: False) -> Manifest:
        """Read a model on this disk once, so that it has hash and manifest and others can have it; one at a time.

        Raises ModelFileInvalid, ModelNotFound, OSError, DigestStopped.
        """
        async with self._surveying:
            survey = partial(self._library.survey, local.path, sha256=local.sha256, stopped=stopped)
            manifest = await asyncio.to_thread(survey)
        self._parts.changed()
        return manifest

    def manifest_of(self, sha256: bytes, digest: bytes = b"") -> Manifest | None:
        """The manifest of a model that is known here: its digest pins every byte."""
        return self._library.manifest_of(sha256, digest)

    def models(self) -> tuple[bytes, ...]:
        """The hashes of the models that are whole on this disk and have a manifest; empty where nothing is shared."""
        return self._library.models() if self._parts.share else ()

    def local_models(self) -> list[LocalModel]:
        """The models that came from peers and are whole: files that an engine can be given. Blocks."""
        return self._fetched.whole()

    def references(self, sha256: bytes, manifest: bytes = b"") -> References | None:
        """The tensors of a model that are on this disk, for an rpc-server; None when nothing of it is.

        A model in several files is found by its manifest only. Blocks for the time of reading headers: call it in a
        thread. While the result lives the files are not deleted.
        """
        return self._library.references(sha256, manifest)

    # --- fetching ---------------------------------------------------------------------------------------------------

    async def fetch(self, wanted: Wanted, sources: Collection[bytes], progress: FetchProgress = no_progress) -> Path:
        """Have the wanted tensors on this disk, or the whole model; the path of its (first) file, perhaps sparse.

        `sources` are the NodeIds of members that have it, best first. What is here is not fetched again. Raises
        WeightsUnavailable when nobody has what is missing, DiskFull, CacheNotWritable, ModelFileInvalid. What has
        come is kept: the next call goes on from there.
        """
        await self._stop_ahead()
        return await self._fetch(_Fetch(wanted, ahead=False), sources, progress)

    def prefetch(self, wanted: Wanted, sources: Collection[bytes]) -> None:
        """Begin to fetch what may be needed later, such as the layers that this node would inherit from another.

        Any `fetch` ends it, and so does the next `prefetch`; what has come is kept.
        """
        before = self._ahead
        if before is not None:
            before.cancel()

        async def run() -> None:
            if before is not None:
                await asyncio.wait({before})
            try:
                await self._fetch(_Fetch(wanted, ahead=True), sources, no_progress)
            except MeshnodeError as reason:
                LOG.info("%s is not fetched ahead: %s", wanted.name, reason.message)

        self._ahead = asyncio.create_task(run(), name=f"prefetch {wanted.name}")

    async def _stop_ahead(self) -> None:
        task, self._ahead = self._ahead, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _fetch(self, fetch: _Fetch, sources: Collection[bytes], progress: FetchProgress) -> Path:
        wanted = fetch.wanted
        here = await asyncio.to_thread(self._library.path_of, wanted.sha256, wanted.manifest)
        if here is not None:
            return here
        turn = self._turns.setdefault(wanted.sha256, asyncio.Lock())
        self._fetches.append(fetch)
        try:
            async with turn:
                return await self._fetch_in_turn(fetch, list(sources)[:MOST_SOURCES], progress)
        finally:
            self._fetches.remove(fetch)
            if not turn.locked():
                self._turns.pop(wanted.sha256, None)
            self._taken_bytes = await asyncio.to_thread(self._fetched.taken_bytes)
            self._parts.changed()

    async def _fetch_in_turn(self, fetch: _Fetch, sources: Sequence[bytes], progress: FetchProgress) -> Path:
        """Try what is offered as its manifest, one after the other: without a digest the files have to prove it."""
        wanted = fetch.wanted
        async with aclosing(self._offers(wanted, sources)) as offers:
            async for manifest, offered_by in offers:
                pieces = self._library.pieces_of(manifest.digest)
                if pieces is None:
                    pieces = await asyncio.to_thread(self._fetched.open, manifest, wanted.name)
                try:
                    await self._fetch_pieces(fetch, pieces, sources, progress)
                    return pieces.path
                except ModelFileInvalid as reason:
                    # Every chunk is what the manifest says, and together they are not the model.
                    await self._discard(pieces)
                    if wanted.manifest:
                        raise
                    if offered_by is not None:
                        LOG.warning("%s offers a wrong manifest: %s", self._parts.name_of(offered_by), reason.message)
                        self._parts.suspect(offered_by, "its manifest is not that of the model")
        raise WeightsUnavailable(f"{wanted.name}: no node that can be reached has it")

    async def _offers(
        self, wanted: Wanted, sources: Sequence[bytes]
    ) -> AsyncGenerator[tuple[Manifest, bytes | None], None]:
        """Manifests that may be the model's, and who offers them (None: known here)."""
        if wanted.layers is not None and not wanted.manifest:
            raise WeightsUnavailable(f"{wanted.name}: without the digest of its manifest no part of it can be verified")
        known = self._library.manifest_of(wanted.sha256, wanted.manifest)
        if known is not None:
            yield known, None
            if wanted.manifest:
                return
        seen = {known.digest} if known is not None else set()
        asking = [asyncio.create_task(self._ask_manifest(wanted, node)) for node in sources]
        try:
            for asked in asyncio.as_completed(asking):
                manifest, node = await asked
                if manifest is not None and manifest.digest not in seen:
                    seen.add(manifest.digest)
                    yield manifest, node
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def _ask_manifest(self, wanted: Wanted, node: bytes) -> tuple[Manifest | None, bytes]:
        """The manifest that a member has of the model; None when it has none that could be right."""
        try:
            found = await ask_manifest(self._opener(node), model=wanted.sha256, digest=wanted.manifest)
            if found is None:
                return None, node
            manifest = await asyncio.to_thread(decode, found[0])
            pinned = manifest.digest == wanted.manifest if wanted.manifest else len(manifest.files) == 1
            if not pinned or manifest.sha256 != wanted.sha256:
                raise BadAnswer("a manifest of something else")
            return manifest, node
        except (BadAnswer, ManifestInvalid) as reason:
            LOG.warning("%s offers no manifest that can be used: %s", self._parts.name_of(node), reason)
            self._parts.suspect(node, str(reason))
        except (OSError, NetworkError) as reason:
            LOG.info("%s gives no manifest: %s", self._parts.name_of(node), reason)
        return None, node

    async def _discard(self, pieces: Pieces) -> None:
        self._library.drop(pieces.manifest.digest)
        with suppress(OSError, MeshnodeError):
            await asyncio.to_thread(piece_files.remove, pieces.folder)

    async def _fetch_pieces(
        self, fetch: _Fetch, pieces: Pieces, sources: Sequence[bytes], progress: FetchProgress
    ) -> None:
        chunks = fetch.wanted.chunks(pieces.manifest)
        with ExitStack() as held:
            while True:
                try:
                    held.enter_context(pieces.lock())
                    break
                except PiecesBusy:  # another node of this machine fetches it; afterwards it is here
                    await asyncio.sleep(BUSY_POLL_S)
            self._library.add_pieces(pieces)
            try:
                if pieces.missing(chunks):
                    await self._gather(fetch, pieces, chunks, sources, progress)
            finally:
                # Also on a full disk, and when this is cancelled: what has come is noted, and never comes again.
                await all_of([asyncio.create_task(asyncio.to_thread(pieces.sync))])
            if fetch.wanted.layers is None and not fetch.wanted.manifest:
                await asyncio.to_thread(pieces.prove, self._closing.is_set)
            else:
                await asyncio.to_thread(pieces.check_headers)
            pieces.use()
        self._prove_soon()

    def _prove_soon(self) -> None:
        """See whether fetched models have the hashes that their manifests say, one after the other.

        A fetch by digest does not wait for that: its bytes are those that were asked for. But nobody is offered a
        model under a hash that only the manifest of some peer knows of.
        """
        if self._proving is None or self._proving.done():
            self._proving = asyncio.create_task(self._prove(), name="prove fetched models")

    async def _prove(self) -> None:
        while not self._closing.is_set():
            unproven = await asyncio.to_thread(self._library.unproven)
            if not unproven:
                return
            try:
                async with self._surveying:
                    await asyncio.to_thread(unproven[0].prove, self._closing.is_set)
                self._parts.changed()
            except ModelFileInvalid as reason:
                LOG.warning("%s is thrown away: %s", unproven[0].name, reason.message)
                await self._discard(unproven[0])
            except DigestStopped:
                return
            except (OSError, MeshnodeError) as reason:
                LOG.warning("%s cannot be read again: %s", unproven[0].name, reason)
                return

    async def _gather(
        self, fetch: _Fetch, pieces: Pieces, chunks: list[int], sources: Sequence[bytes], progress: FetchProgress
    ) -> None:
        manifest, hub = pieces.manifest, fetch.wanted.hub
        size = {number: manifest.chunk(number).size_bytes for number in chunks}
        missing = pieces.missing(chunks)
        removed = await asyncio.to_thread(self._fetched.make_room, sum(size[n] for n in missing), self._in_use)
        for digest in removed:
            self._library.drop(digest)
        await asyncio.to_thread(self._copy_what_is_here, pieces, missing)
        missing = pieces.missing(chunks)
        want_bytes = sum(size.values())
        here_bytes = want_bytes - sum(size[number] for number in missing)

        def advance(view: GatheringView) -> None:
            fetch.view = GatheringView(here_bytes + view.have_bytes, want_bytes, view.sources)
            progress(fetch.view.have_bytes, want_bytes)

        headers = [number for number in missing if number in set(manifest.header_chunks())]
        gathering = Gathering(
            pieces,
            [(number, size[number]) for number in dict.fromkeys([*headers, *missing])],
            urgent=len(headers),
            headers_came=pieces.check_headers,
            suspect=self._suspected,
            progress=advance,
        )
        joining = [gathering.expect(self._join(gathering, manifest, node)) for node in sources]
        if hub is not None and len(hub.names) == len(manifest.files):
            source = HubSource(self._parts.hub(), hub, manifest)
            joining.append(gathering.expect(_join_after(gathering, source, list(joining))))
        try:
            await gathering.run()
        finally:
            for task in joining:
                task.cancel()
            await asyncio.gather(*joining, return_exceptions=True)

    def _copy_what_is_here(self, pieces: Pieces, missing: list[int]) -> None:
        for number, path, position in self._library.copies_of(pieces.manifest, missing):
            if pieces.copy(number, path, position):
                self._parts.counters["weights_copied_bytes"] += pieces.manifest.chunk(number).size_bytes

    async def _join(self, gathering: Gathering, manifest: Manifest, node: bytes) -> None:
        """Ask a member which chunks it has; it is a source if it has some."""
        try:
            bits = await ask_have(self._opener(node), manifest.digest)
        except (OSError, NetworkError, BadAnswer) as reason:
            LOG.info("%s gives no weights: %s", self._parts.name_of(node), reason)
            return
        if bits is not None and len(bits) == -(-manifest.chunk_count // 8):
            source = PeerSource(node.hex(), manifest.digest, self._opener(node))
            gathering.join(source, lambda number: bool(bits[number >> 3] >> (number & 7) & 1))

    def _opener(self, node: bytes) -> Callable[[bytes], Awaitable[MeshStream]]:
        return partial(self._parts.open_stream, node)

    def _suspected(self, name: str, what: str) -> None:
        if name != HUB:
            self._parts.suspect(bytes.fromhex(name), what)

    def _in_use(self, pieces: Pieces) -> bool:
        return self._library.is_lent(pieces.folder) or any(self._parts.in_use(path) for path in pieces.paths)

    # --- what can be seen -------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """For /api/status: whether weights are shared, what was given, what is being fetched and from whom."""
        counters = self._parts.counters
        return {
            "share": self._parts.share,
            "given_bytes": counters["bulk_bytes"],
            "copied_bytes": counters["weights_copied_bytes"],
            "fetched_bytes_on_disk": self._taken_bytes,
            "max_disk_bytes": self._parts.most_bytes,
            "fetching": [self._fetch_facts(fetch) for fetch in self._fetches],
        }

    def _fetch_facts(self, fetch: _Fetch) -> dict[str, Any]:
        view = fetch.view
        return {
            "model": fetch.wanted.name,
            "ahead": fetch.ahead,
            "have_bytes": view.have_bytes,
            "want_bytes": view.want_bytes,
            "bytes_per_s": round(sum(source.rate for source in view.sources if not source.left)),
            "sources": [
                {
                    "node": source.source,
                    "name": HUB if source.source == HUB else self._parts.name_of(bytes.fromhex(source.source)),
                    "bytes": source.bytes,
                    "bytes_per_s": round(source.rate),
                    "left": source.left,
                }
                for source in view.sources
            ],
        }


async def _join_after(gathering: Gathering, source: HubSource, peers: Collection[asyncio.Task[None]]) -> None:
    """The hub joins once the peers have said what they have."""
    if peers:
        await asyncio.wait(peers, timeout=HUB_WAITS_S)
    gathering.join(source)
