"""Which public meshes there are: relays are asked, the best of what they list are asked themselves, and all is told.

    relays = open_relays(urls, key_file)
    found = await discover(relays, ask, wishes)
    found.facts(), found.problem                      what `meshnode discover --json` prints

The meshes that look best are asked while slow relays still answer, so that the whole takes about as long as the faster
relays and one round trip. `ask` goes to a mesh and comes back with what it showed; nothing that is only claimed counts.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshnode.config import Settings
from meshnode.core.choosing import (
    SHORTLIST,
    Candidate,
    Probe,
    Ranked,
    Wishes,
    gather,
    rank,
    score,
    shortlist,
    shown_models,
)
from meshnode.core.listings import LIES, Seen, Sieve, words
from meshnode.discovery.nostr import FETCH_S, Fetched, NostrRelays, RelayReport
from meshnode.discovery.nostr_key import is_genuine
from meshnode.errors import NetworkError, NoNostrRelay, NoPublicMesh
from meshnode.finding import Finding
from meshnode.identity import verify
from meshnode.wire.registry import Role

Ask = Callable[[Candidate], Awaitable[Probe | None]]
"""Ask a mesh at its entries what it has; None when none of them answers."""

ASK_S = 3.0
MOST_ASKED = 2 * SHORTLIST
"""What looked best at first may look worse once all relays have answered."""


def open_relays(urls: Sequence[str], key_file: Path, *, clock: Callable[[], float] = time.time) -> NostrRelays:
    """The relays of this node. `key_file` is made when it publishes for the first time. `clock` is wall time."""
    seen = Seen()
    return NostrRelays(
        urls,
        key_file,
        sieve=lambda mesh: Sieve(verify, is_genuine, seen, mesh=mesh),
        lies=frozenset(map(str, LIES)),
        clock=clock,
    )


class _Asking:
    """Meshes that are being asked. One that nobody answered for is asked again when relays name other entries."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._tasks: dict[bytes, asyncio.Task[Probe | None]] = {}
        self._nodes: dict[bytes, frozenset[bytes]] = {}
        """Mesh -> the nodes that are being asked, or were."""

    def begin(self, candidates: Sequence[Candidate]) -> None:
        """Ask those of them that are not being asked yet."""
        for candidate in candidates:
            if self._is_due(candidate):
                self._start(candidate)

    async def result(self, candidate: Candidate) -> Probe | None:
        """What it showed; None as well for one that was never asked."""
        task = self._tasks.get(candidate.mesh)
        found = None if task is None else await task
        if found is None and task is not None and self._is_news(candidate):
            self._start(candidate)
            found = await self._tasks[candidate.mesh]
        return found

    def _is_due(self, candidate: Candidate) -> bool:
        task = self._tasks.get(candidate.mesh)
        if task is None:
            return len(self._tasks) < MOST_ASKED
        return task.done() and task.result() is None and self._is_news(candidate)

    def _start(self, candidate: Candidate) -> None:
        self._nodes[candidate.mesh] = frozenset(entry.node for entry in candidate.entries)
        self._tasks[candidate.mesh] = asyncio.create_task(self._bounded(candidate))

    def _is_news(self, candidate: Candidate) -> bool:
        return not self._nodes[candidate.mesh].issuperset(entry.node for entry in candidate.entries)

    async def end(self) -> None:
        """Ask no further."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _bounded(self, candidate: Candidate) -> Probe | None:
        try:
            async with asyncio.timeout(ASK_S):
                return await self._ask(candidate)
        except TimeoutError:
            return None


@dataclass(frozen=True, slots=True)
class Discovery:
    """What a look has brought: `ranked` meshes, best first, `others` that are listed and were not asked."""

    ranked: tuple[Ranked, ...]
    others: tuple[Candidate, ...]
    fetched: Fetched
    elapsed_s: float

    @property
    def problem(self) -> NetworkError | None:
        """NoNostrRelay where no relay could be asked, NoPublicMesh where there is none that can be joined."""
        told = "; ".join(f"{report.url}: {_behaviour(report)}" for report in self.fetched.relays)
        if not self.fetched.answered:
            return NoNostrRelay(told)
        if any(not each.refusal for each in self.ranked):
            return None
        refused = "; ".join(f"{each.candidate.name}: {each.refusal}" for each in self.ranked[:SHORTLIST])
        return NoPublicMesh(refused or told)

    def facts(self) -> dict[str, Any]:
        """For `--json` and the control API."""
        others = [Ranked(each, None, 0.0, (), "full" if each.is_full else "not asked") for each in self.others]
        return {
            "meshes": [_mesh_facts(each) for each in (*self.ranked, *others)],
            "relays": [report.as_dict() for report in self.fetched.relays],
            "dropped": dict(sorted(self.fetched.dropped.items())),
            "drops": words(self.fetched.dropped),
            "elapsed_s": round(self.elapsed_s, 3),
            "error": None if self.problem is None else self.problem.as_dict(),
        }


async def discover(relays: NostrRelays, ask: Ask, wishes: Wishes, *, timeout_s: float = FETCH_S) -> Discovery:
    """Look for meshes, ask the best of them, and put them in order. Raises nothing for what the network does."""
    begun = time.monotonic()
    asking, fetched = _Asking(ask), Fetched((), Counter(), ())
    try:
        async with aclosing(relays.fetching(timeout_s, eager=True)) as parts:
            async for fetched in parts:
                asking.begin(shortlist(fetched.listings, wishes))
        best = shortlist(fetched.listings, wishes)
        asking.begin(best)
        shown = await asyncio.gather(*map(asking.result, best))
        ranked = rank(score(each, probe, wishes) for each, probe in zip(best, shown, strict=True))
    finally:
        await asking.end()
    asked = {each.candidate.mesh for each in ranked}
    others = tuple(each for each in gather(fetched.listings) if each.mesh not in asked)
    return Discovery(tuple(ranked), others, fetched, time.monotonic() - begun)


def discover_here(settings: Settings, key_file: Path, *, models: Sequence[str], region: str, vram: int) -> Discovery:
    """A look by a process without a node: `meshnode discover`. `vram` is the least memory of a mesh, in bytes."""
    return asyncio.run(_discover_here(settings, key_file, Wishes(tuple(models), region, b"", vram)))


async def _discover_here(settings: Settings, key_file: Path, wishes: Wishes) -> Discovery:
    relays = open_relays(settings.nostr_relay, key_file)
    finding = Finding(relays, node=b"", role=Role.CLIENT, host=lambda: settings.bind_host)
    try:
        return await discover(relays, finding.probe, wishes)
    finally:
        await relays.close()


def _mesh_facts(ranked: Ranked) -> dict[str, Any]:
    """A mesh as listed (`listed`: claims) and as it has shown itself (`shown`: null where nobody answered)."""
    candidate, probe = ranked.candidate, ranked.probe
    return {
        "mesh": candidate.mesh.hex(),
        "name": candidate.name,
        "region": candidate.region,
        "score": ranked.score,
        "reasons": list(ranked.reasons),
        "refusal": ranked.refusal,
        "listed": {
            "models": [
                {
                    "name": model.name,
                    "hash": model.hash.hex(),
                    "hosts": model.hosts,
                    "price_in": model.price_in,
                    "price_out": model.price_out,
                }
                for model in candidate.models
            ],
            "wanted": list(candidate.wanted),
            "nodes": candidate.nodes,
            "clients": candidate.clients,
            "max_clients": candidate.max_clients,
            "vram_bytes": candidate.vram_bytes,
            "publishers": len(candidate.listings),
        },
        "shown": None
        if probe is None
        else {
            "rtt_s": round(probe.rtt_s, 6),
            "models": [model.name for model in shown_models(candidate, probe)],
            "nodes": probe.nodes,
            "free_slots": probe.free_slots,
            "vram_bytes": probe.vram_bytes,
            "room": probe.room,
        },
    }


def _behaviour(report: RelayReport) -> str:
    return f"{report.state} ({report.text})" if report.text else report.state
