"""Which open mesh a node joins: first by what listings claim, then by what was seen of it.

    gather(listings)                    one Candidate a mesh, of all its publishers' listings
    shortlist(listings, wishes)         the few worth asking
    score(candidate, probe, wishes)     a number, reasons in words, and whether it may be joined at all
    rank(found)                         the best first

A claim that was not shown counts for nothing, and one of more than twice what was shown drops the mesh: whoever lies
about what it has would lie about answers as well. Distance is measured, never believed. All numbers are points; what a
mesh has that is wished for outweighs how large or how near it is.

Rules of this file: pure; the same input gives the same order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property

from meshnode.wire.listings import Entry, ListedModel, Listing

SHORTLIST = 8
MOST_ENTRIES = 8
"""Entries of one mesh that are worth asking."""
EXAGGERATION = 2.0
MODEL_POINTS = 400.0
LAST_MESH_POINTS = 150.0
REGION_POINTS = 60.0
MOST_SLOT_POINTS = 80.0
MOST_NODE_POINTS = 50.0
SERVED_POINTS = 10.0
MOST_SERVED_POINTS = 60.0
WANTED_POINTS = 15.0
MOST_NEAR_POINTS = 200.0
NEAR_S = 0.05
"""A mesh that is this far away has half of the points for being near."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What whoever looks would like. `models` are names, or hex digits of a content hash, of which any will do.

    `offers` are models that this node could serve: a mesh that asks for one of them gains by it.
    """

    models: tuple[str, ...] = ()
    region: str = ""
    last_mesh: bytes = b""
    min_vram_bytes: int = 0
    offers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Candidate:
    """One open mesh as the listings of its publishers describe it."""

    mesh: bytes
    name: str
    listings: tuple[Listing, ...]

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Where to ask: each node once, the publishers in turn, so that none of them chooses for all."""
        found: dict[bytes, Entry] = {}
        for place in range(max(len(listing.entries) for listing in self.listings)):
            for listing in self.listings:
                for entry in listing.entries[place : place + 1]:
                    found.setdefault(entry.node, entry)
        return tuple(found.values())[:MOST_ENTRIES]

    @cached_property
    def models(self) -> tuple[ListedModel, ...]:
        """Every model that a publisher lists, with the most hosts that one of them claims."""
        found: dict[tuple[str, bytes], ListedModel] = {}
        for model in (model for listing in self.listings for model in listing.models):
            known = found.get((model.name, model.hash))
            if known is None or known.hosts < model.hosts:
                found[model.name, model.hash] = model
        return tuple(found.values())

    @cached_property
    def wanted(self) -> tuple[str, ...]:
        """Models that are asked for and not served."""
        return tuple(dict.fromkeys(name for listing in self.listings for name in listing.wanted))

    @property
    def vram_bytes(self) -> int:
        """The claim of the publisher that claims most, as with the other numbers."""
        return max(listing.vram_bytes for listing in self.listings)

    @property
    def nodes(self) -> int:
        """How many nodes are claimed."""
        return max(listing.nodes for listing in self.listings)

    @property
    def clients(self) -> int:
        """Strangers that use the mesh, as the least busy publisher says."""
        return min(listing.clients for listing in self.listings)

    @property
    def max_clients(self) -> int:
        """Strangers that a publisher lets in; 0 where none says."""
        return max(listing.max_clients for listing in self.listings)

    @property
    def region(self) -> str:
        """Of the newest listing that names one."""
        newest = sorted(self.listings, key=lambda listing: -listing.created_at)
        return next((listing.region for listing in newest if listing.region), "")

    @property
    def is_full(self) -> bool:
        """Whether every publisher says that it lets nobody in."""
        return all(listing.max_clients and listing.clients >= listing.max_clients for listing in self.listings)


@dataclass(frozen=True, slots=True)
class Probe:
    """What a mesh has shown. `models` are the names and the hex digits of the hashes in signed offers.

    `rtt_s` was measured to the entry that answered; `nodes` and `vram_bytes` count signed statements; `free_slots` are
    requests that could begin now; `room` says that one more stranger is let in.
    """

    rtt_s: float
    nodes: int
    free_slots: int
    models: frozenset[str]
    vram_bytes: int
    room: bool
    complete: bool = True
    """Whether all that the mesh has was shown: an answer holds so many statements, a large mesh has more."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate with its points and the reasons for them; `refusal` says why it is not joined, else ""."""

    candidate: Candidate
    probe: Probe | None
    score: float
    reasons: tuple[str, ...]
    refusal: str = ""


def gather(listings: Iterable[Listing]) -> list[Candidate]:
    """The meshes that are listed, each once, in the order in which they came."""
    found: dict[bytes, list[Listing]] = {}
    for listing in listings:
        found.setdefault(listing.mesh, []).append(listing)
    return [Candidate(mesh, each[0].name, tuple(each)) for mesh, each in found.items()]


def shortlist(
    listings: Iterable[Listing], wishes: Wishes, n: int = SHORTLIST, avoid: Collection[bytes] = ()
) -> list[Candidate]:
    """The `n` meshes most worth asking, by what they claim. Those to `avoid`, and full ones, are left out."""
    candidates = [each for each in gather(listings) if each.mesh not in avoid and not each.is_full]
    return sorted(candidates, key=lambda each: (-_promise(each, wishes), each.mesh))[:n]


def _promise(candidate: Candidate, wishes: Wishes) -> float:
    """Points by claims alone. Large numbers bring little, as they cost nothing to claim."""
    points = min(10.0, candidate.nodes) + min(MOST_SERVED_POINTS, SERVED_POINTS * len(candidate.models))
    points += MODEL_POINTS if _wished_models(candidate, wishes) else 0
    points += LAST_MESH_POINTS if candidate.mesh == wishes.last_mesh else 0
    points += REGION_POINTS if _is_of_region(candidate, wishes) else 0
    points += WANTED_POINTS if set(candidate.wanted) & set(wishes.offers) else 0
    points -= MODEL_POINTS if candidate.vram_bytes < wishes.min_vram_bytes else 0
    return points + min(len(candidate.listings), 5)


def score(candidate: Candidate, probe: Probe | None, wishes: Wishes) -> Ranked:
    """What a mesh is worth after it was asked; `probe` is None where nobody answered."""
    if refusal := _refusal(candidate, probe, wishes):
        return Ranked(candidate, probe, 0.0, (), refusal)
    assert probe is not None
    points: list[tuple[float, str]] = [
        (MOST_NEAR_POINTS * NEAR_S / (NEAR_S + max(0.0, probe.rtt_s)), f"{probe.rtt_s * 1e3:.3g} ms away"),
        (min(MOST_SLOT_POINTS, 10.0 * probe.free_slots), f"{_count(probe.free_slots, 'request')} could begin now"),
        (min(MOST_NODE_POINTS, 5.0 * probe.nodes), f"{_count(probe.nodes, 'node')} shown"),
    ]
    served = shown_models(candidate, probe)
    points.append((min(MOST_SERVED_POINTS, SERVED_POINTS * len(served)), f"{_count(len(served), 'model')} served"))
    if wished := [name for name in wishes.models if _serves(probe, candidate, name)]:
        points.append((MODEL_POINTS, f"serves {', '.join(wished[:3])}"))
    if candidate.mesh == wishes.last_mesh:
        points.append((LAST_MESH_POINTS, "the mesh of last time"))
    if _is_of_region(candidate, wishes):
        points.append((REGION_POINTS, f"in {wishes.region}"))
    if wanted := [name for name in candidate.wanted if name in wishes.offers]:
        points.append((WANTED_POINTS, f"asks for {wanted[0]}"))
    points.sort(key=lambda each: -each[0])
    return Ranked(
        candidate, probe, round(sum(each for each, _ in points), 1), tuple(why for each, why in points if each)
    )


def rank(found: Iterable[Ranked]) -> list[Ranked]:
    """Those that may be joined first, the best of them first."""
    return sorted(found, key=lambda each: (bool(each.refusal), -each.score, each.candidate.mesh))


def _refusal(candidate: Candidate, probe: Probe | None, wishes: Wishes) -> str:
    if probe is None:
        return "nobody answers"
    if not probe.room:
        return "full"
    if probe.complete and candidate.vram_bytes > EXAGGERATION * probe.vram_bytes:
        return "claims more than twice the memory it shows"
    if probe.complete and candidate.nodes > EXAGGERATION * probe.nodes:
        return "claims more than twice the nodes it shows"
    if probe.complete and len(candidate.models) > EXAGGERATION * len(shown_models(candidate, probe)):
        return "serves less than half of the models it lists"
    if probe.vram_bytes < wishes.min_vram_bytes:
        return "has less memory than wished for"
    if wishes.models and not any(_serves(probe, candidate, name) for name in wishes.models):
        return "does not serve the model that is wished for"
    return ""


def _wished_models(candidate: Candidate, wishes: Wishes) -> list[str]:
    """Of the wishes those that the mesh claims to serve."""
    listed = {name for model in candidate.models for name in (model.name, model.hash.hex())}
    return [name for name in wishes.models if name in listed]


def _serves(probe: Probe, candidate: Candidate, wish: str) -> bool:
    """Whether a signed offer shows the model: by name or hash, or by the hash that the listing gives the name."""
    hashes = {model.hash.hex() for model in candidate.models if model.name == wish and model.hash}
    return wish in probe.models or bool(hashes & probe.models)


def shown_models(candidate: Candidate, probe: Probe) -> list[ListedModel]:
    """Of the listed models those that signed offers show; the same weights, where the listing says which they are."""
    return [model for model in candidate.models if (model.hash.hex() if model.hash else model.name) in probe.models]


def _is_of_region(candidate: Candidate, wishes: Wishes) -> bool:
    return bool(wishes.region) and candidate.region.casefold() == wishes.region.casefold()


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
