"""The quantisations that there are of one model: those of its repository on the hub, and those on this disk.

A planner chooses among them by what the hardware holds. Sizes are those of the files, all parts of a split model
together; a vision projector, which all share, is counted in each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from meshnode.errors import MeshnodeError, ModelNotFound
from meshnode.models import cache
from meshnode.models.gguf import SPLIT_NAME
from meshnode.models.hub import Listing
from meshnode.models.names import ModelRef, choose_files, is_model_file, pinned, quant_of, stem_of
from meshnode.models.store import ModelStore

MOST_VARIANTS = 256


@dataclass(frozen=True, slots=True)
class Variant:
    """One quantisation. `missing_bytes` is what a download would still bring; 0 when all of it is on this disk."""

    ref: ModelRef
    quant: str
    size_bytes: int
    missing_bytes: int

    @property
    def on_disk(self) -> bool:
        """Whether nothing is left to fetch."""
        return self.missing_bytes == 0


def variants_listed(ref: ModelRef, listing: Listing) -> tuple[Variant, ...]:
    """Every quantisation in a repository that is one model, smallest first; files that state none are left out.

    A repository may hold several models of different sizes (a folder each): only those of which the file named by `ref`
    is one, told by the name without its quantisation, count as the same.
    """
    found: dict[str, Variant] = {}
    names = listing.names
    families = {_family(name) for name in names if is_model_file(name)}
    wanted = _family(ref.filename) if ref.filename and len(families) > 1 else ""
    for name in names:
        part = SPLIT_NAME.match(name)
        quant = quant_of(name)
        if not is_model_file(name) or not quant or (part and int(part["number"]) != 1):
            continue
        if (wanted and _family(name) != wanted) or len(found) >= MOST_VARIANTS:
            continue
        try:
            choice = choose_files(names, filename=name)
        except ModelNotFound:
            continue  # parts of it are missing
        size = sum(listing.file(file).size_bytes for file in (*choice.parts, choice.mmproj) if file)
        one = replace(pinned(ref, choice.parts[0], names), alias="")
        if quant not in found or choose_files(names, quant).parts == choice.parts:
            found[quant] = Variant(one, quant, size, size)
    return tuple(sorted(found.values(), key=lambda variant: variant.size_bytes))


def variants_on_disk(store: ModelStore, ref: ModelRef) -> tuple[Variant, ...]:
    """The same, of what the cache has of the repository of `ref`; half ones included, with what they lack."""
    if ref.kind != "hub":
        found = store.find(ref)
        return () if found is None or found.incomplete else (Variant(ref, ref.quant, found.total_bytes, 0),)
    models = cache.models_in_repo(cache.repo_folder(store.folder, ref.repo), ref.repo)
    whole = [
        Variant(
            replace(model.ref, alias=""),
            model.ref.quant,
            model.total_bytes + (model.mmproj.stat().st_size if model.mmproj else 0),
            model.total_bytes - model.size_bytes,
        )
        for model in models
        if model.ref.quant
    ]
    return tuple(sorted(whole, key=lambda variant: variant.size_bytes))


def variants_of(store: ModelStore, ref: ModelRef) -> tuple[tuple[Variant, ...], MeshnodeError | None]:
    """Every quantisation of a model, smallest first, and why the hub was not asked or did not answer, if so."""
    here = {variant.quant: variant for variant in variants_on_disk(store, ref)}
    if ref.kind != "hub":
        return tuple(here.values()), None
    try:
        listed = variants_listed(ref, store.hub.listing(ref.repo, ref.revision))
    except MeshnodeError as problem:
        return tuple(here.values()), problem
    merged = {variant.quant: variant for variant in listed} | here
    return tuple(sorted(merged.values(), key=lambda variant: variant.size_bytes)), None


def _family(name: str) -> str:
    """The name without its quantisation and its part: what all quantisations of one model have in common."""
    stem, quant = stem_of(name).lower(), quant_of(name).lower()
    return stem.replace(quant, "").strip("-._") if quant else stem
