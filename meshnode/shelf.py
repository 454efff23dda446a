"""Models as a person chooses among them: what is on this disk, what the catalog and the hub have, and what would fit.

For a file on this disk the answer follows from its header and the planner that also serves it; for one of the catalog
from its size, and so says "about". Whether several machines could hold what this one does not is counted from the
memory that they state (capacity.py); the exact plan, with its speed, is what `POST /api/plan` makes.

Names of callers reach `ModelStore.resolve` and nothing else.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from meshnode.capacity import FitFacts, Lender, about, exact
from meshnode.core.placement import Budget, Wishes
from meshnode.engine.commands import Mode
from meshnode.errors import MeshnodeError, ModelInUse
from meshnode.models.cache import LocalModel
from meshnode.models.catalog import CatalogEntry
from meshnode.models.header import Header
from meshnode.models.names import ModelRef, alias_ref
from meshnode.models.shapes import ModelShape, shape_of
from meshnode.models.store import ModelStore, SearchResult
from meshnode.planning import Speeds, mode_of
from meshnode.threads import aside

WORDS = 200
RESULTS = 30
UNKNOWN_DEVICES = FitFacts("unknown", "not known yet: this node has not looked at its devices")


@dataclass(frozen=True, kw_only=True)
class ShelfParts:
    """What Shelf is made of; all but `store` are called in the event loop and do not block.

    `budget` is the memory left for one more model (None until the devices are known), `entries` the models of this node
    as in /api/status, `lenders` what others of the mesh lend, `reads(path)` whether an engine has the file open,
    `fetching(ref)` whether it is being downloaded. `store` makes the store of this machine, once, in a thread.
    """

    budget: Callable[[], Budget | None]
    wishes: Wishes
    entries: Callable[[], list[dict[str, Any]]]
    speeds: Callable[[], Speeds] = dict
    lenders: Callable[[], Sequence[Lender]] = tuple
    reads: Callable[[Path], bool] = lambda path: False
    fetching: Callable[[ModelRef], bool] = lambda ref: False
    removed: Callable[[], None] = lambda: None
    store: Callable[[], ModelStore] = ModelStore.from_environment


@dataclass(frozen=True, slots=True)
class _Read:
    """What is kept of a header."""

    name: str
    quantisation: str
    context_length: int
    capabilities: tuple[str, ...]
    shape: ModelShape
    mode: Mode


@dataclass(frozen=True, slots=True)
class _Room:
    """The memory that there is at one moment."""

    budget: Budget | None
    wishes: Wishes
    lenders: tuple[Lender, ...]
    speeds: Speeds


_Key = tuple[tuple[str, int, int], ...]


class Shelf:
    """See the module. Methods run in the event loop; the disk is read in threads, one listing at a time."""

    def __init__(self, parts: ShelfParts) -> None:
        self._parts = parts
        self._store: ModelStore | None = None
        self._turn = asyncio.Lock()
        self._headers: dict[_Key, _Read | MeshnodeError] = {}

    async def models(self) -> dict[str, Any]:
        """The answer of `GET /api/models`: folder, models on this disk, and the catalog, each with its fit."""
        store = await self._opened()
        async with self._turn:
            found = await asyncio.to_thread(store.list_local)
            parts = self._parts
            room = _Room(parts.budget(), parts.wishes, tuple(parts.lenders()), parts.speeds())
            served = _served(parts.entries())
            nodes = [self._nodes_of(local, served) for local in found]
            return await asyncio.to_thread(self._listed, store, list(zip(found, nodes, strict=True)), room, served)

    def _nodes_of(self, local: LocalModel, served: dict[str, int]) -> int:
        """How many machines serve a model of this disk; 0 where none does."""
        by_name = served.get(local.ref.canonical.lower(), 0)
        return by_name or int(any(self._parts.reads(part) for part in local.parts))

    async def search(self, words: str) -> dict[str, Any]:
        """The answer of `GET /api/search`. A hub that does not answer is a `problem` in it, no error."""
        store = await self._opened()
        found = await aside(partial(store.search, words[:WORDS], RESULTS), name="search")
        return search_facts(found)

    async def remove(self, text: str) -> dict[str, Any]:
        """Delete a model from this disk: `model` and `freed_bytes`.

        Raises ModelInUse for one that is served, read or being fetched, ModelNotFound, and ModelError for one that is
        no download (the demo, a file of the user).
        """
        store = await self._opened()
        ref = await asyncio.to_thread(store.resolve, text)
        local = await asyncio.to_thread(store.find, ref)
        served = _served(self._parts.entries())
        if ref.canonical.lower() in served or (local is not None and self._nodes_of(local, served)):
            raise ModelInUse(ref.canonical, fix=f"unload it first: meshnode unload {ref.short_name}")
        if self._parts.fetching(ref) or (local is not None and self._parts.fetching(local.ref)):
            raise ModelInUse(f"{ref.canonical} is being fetched", fix="stop the download first")
        async with self._turn:
            freed = await asyncio.to_thread(store.remove, ref)
        self._parts.removed()
        return {"model": local.ref.canonical if local is not None else ref.canonical, "freed_bytes": freed}

    async def _opened(self) -> ModelStore:
        if self._store is None:
            self._store = await asyncio.to_thread(self._parts.store)
        return self._store

    # --- in a thread ------------------------------------------------------------------------------------------

    def _listed(
        self, store: ModelStore, models: Sequence[tuple[LocalModel, int]], room: _Room, served: dict[str, int]
    ) -> dict[str, Any]:
        kept: dict[_Key, _Read | MeshnodeError] = {}
        on_disk = []
        fits: dict[str, FitFacts] = {}
        for local, nodes in models:
            read = self._read(store, local, kept)
            fit = _local_fit(local, read, room, nodes)
            on_disk.append(_local_facts(store, local, read, fit, served=bool(nodes)))
            if local.ref.alias and not local.incomplete:
                fits[local.ref.alias] = fit
        self._headers = kept
        catalog = [
            _catalog_facts(entry, fits.get(entry.alias), room, served.get(alias_ref(entry).canonical.lower(), 0))
            for entry in store.catalog.entries
        ]
        return {"schema": 1, "folder": str(store.folder), "on_disk": on_disk, "catalog": catalog}

    def _read(self, store: ModelStore, local: LocalModel, kept: dict[_Key, _Read | MeshnodeError]) -> _Read | None:
        """What the header says; from memory while the files are as they were. None where it cannot be read."""
        if local.incomplete:
            return None
        try:
            key = tuple((str(path), (facts := path.stat()).st_size, facts.st_mtime_ns) for path in local.parts)
        except OSError:
            return None
        found = self._headers.get(key)
        if found is None:
            try:
                found = _kept_of(store.read(local), local)
            except MeshnodeError as error:
                found = error
            except OSError:
                return None
        kept[key] = found
        return found if isinstance(found, _Read) else None


# --- facts --------------------------------------------------------------------------------------------------------


def search_facts(result: SearchResult) -> dict[str, Any]:
    """What a search found, as `meshnode search --json` and the console get it."""
    return {
        "catalog": [dataclasses.asdict(entry) for entry in result.catalog],
        "hub": [dataclasses.asdict(found) for found in result.hub],
        "problem": result.problem.as_dict() if result.problem else None,
    }


def _served(entries: Iterable[dict[str, Any]]) -> dict[str, int]:
    """How many machines hold each model that this node serves or brings up, by canonical name in small letters."""
    found = {}
    for entry in entries:
        if entry["state"] != "failed":
            stages = (entry.get("plan") or {}).get("stages", ())
            found[str(entry["canonical"]).lower()] = 1 + len({stage["node"] for stage in stages})
    return found


def _kept_of(header: Header, local: LocalModel) -> _Read:
    mode = mode_of(header)
    template = header.chat_template
    found = [mode] if mode != "chat" else ["chat"] if template else ["completion"]
    if mode == "chat":
        # Words of the template: what the engine makes of it is known once it runs.
        found += ["tools"] if "tools" in template else []
        found += ["vision"] if local.mmproj else []
        found += ["reasoning"] if "think" in template or "reasoning" in template else []
    return _Read(
        name=header.name,
        quantisation=header.quantisation,
        context_length=header.context_length,
        capabilities=tuple(found),
        shape=shape_of(header),
        mode=mode,
    )


def _local_facts(
    store: ModelStore, local: LocalModel, read: _Read | None, fit: FitFacts, *, served: bool
) -> dict[str, Any]:
    entry = store.catalog.find(local.ref.alias) if local.ref.alias else None
    capabilities = entry.capabilities if entry else read.capabilities if read else ()
    return {
        "model": local.ref.canonical,
        "alias": local.ref.alias,
        "name": entry.name if entry else (read.name if read else "") or local.name,
        "size_bytes": local.size_bytes,
        "total_bytes": local.total_bytes,
        "incomplete": local.incomplete,
        "quantisation": read.quantisation if read else local.ref.quant,
        "context_length": read.context_length if read else entry.context_length if entry else 0,
        "capabilities": list(capabilities),
        "served": served,
        "fit": fit.as_dict(),
    }


def _catalog_facts(entry: CatalogEntry, on_disk: FitFacts | None, room: _Room, nodes: int) -> dict[str, Any]:
    fit = _served_fit(nodes) if nodes else on_disk or _listed_fit(entry, room)
    return {
        "alias": entry.alias,
        "name": entry.name,
        "repo": entry.repo,
        "quant": entry.quant,
        "size_bytes": entry.size_bytes,
        "context_length": entry.context_length,
        "capabilities": list(entry.capabilities),
        "on_disk": on_disk is not None,
        "served": bool(nodes),
        "fit": fit.as_dict(),
    }


def _mode_of(entry: CatalogEntry) -> Mode:
    return "embedding" if "embedding" in entry.capabilities else "rerank" if "rerank" in entry.capabilities else "chat"


def _local_fit(local: LocalModel, read: _Read | None, room: _Room, nodes: int) -> FitFacts:
    if nodes:
        return _served_fit(nodes)
    if local.incomplete:
        return FitFacts("unknown", "not known yet: a part of it is still missing")
    if read is None:
        return FitFacts("unknown", "not known: its file cannot be read")
    if room.budget is None:
        return UNKNOWN_DEVICES
    return exact(
        read.shape,
        read.mode,
        room.budget,
        room.wishes,
        lenders=room.lenders,
        speeds=room.speeds,
        extra_host_bytes=_size(local.mmproj),
    )


def _listed_fit(entry: CatalogEntry, room: _Room) -> FitFacts:
    if room.budget is None:
        return UNKNOWN_DEVICES
    return about(entry.size_bytes, _mode_of(entry), room.budget, room.lenders)


def _served_fit(nodes: int) -> FitFacts:
    if nodes > 1:
        return FitFacts("split", f"needs {nodes} nodes: it is served by them now")
    return FitFacts("here", "fits here: it is served now")


def _size(file: Path | None) -> int:
    try:
        return file.stat().st_size if file is not None else 0
    except OSError:
        return 0
