"""Which quantisation of a model to serve: those there are, and what this hardware and the mesh would make of each.

`select` finds that out for one model; `Fitting` is what serving asks: it judges by the memory and the mesh of this node
as they are now, chooses before anything is fetched, and says what to do where nothing fits.

Only one header is read, that of the file that the name stands for; the others are the same model with other bytes, so
that their memory follows from the sizes of their files. Nothing is fetched but that header. What `judge` says of a
memory shape decides: one machine, several, or none.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from meshnode.config import Settings
from meshnode.core.placement import Budget, Refusal, plan_solo
from meshnode.core.precision import Holding
from meshnode.core.split import SplitPlan
from meshnode.engine.commands import Mode
from meshnode.errors import MeshnodeError, ModelDoesNotFit
from meshnode.hardware import Inventory
from meshnode.models.header import Header
from meshnode.models.names import ModelRef
from meshnode.models.shapes import ModelShape, shape_of
from meshnode.models.store import ModelStore
from meshnode.models.variants import Variant, variants_of, variants_on_disk
from meshnode.planning import Speeds, mode_of, predict, usable_accelerators, wishes_of
from meshnode.precision import choose_variant, quantise_command, smaller_file
from meshnode.units import Unit

MOST_JUDGED = 48
SMALLER = "take a smaller quantisation or model (meshnode search shows sizes), or add machines: --split waits for them"


@dataclass(frozen=True, slots=True)
class Fit:
    """What became of a memory shape: `how` it is served, how well that holds it, tokens per second if known."""

    how: Literal["solo", "split", "no"] = "no"
    holding: Holding = Holding.NOT
    predicted_tokens_per_s: float | None = None


Judge = Callable[[ModelShape, Mode], Awaitable[Fit]]
Splits = Callable[[ModelShape, Unit | None], Awaitable[SplitPlan | None]]
"""How the mesh would hold a model that this machine does not, with this machine as the host."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The quantisations of a model, smallest first, with what becomes of each.

    `usual` is what the name stands for, `chosen` what to serve (None: nothing is held). `sentence` says why it is
    another one, or why there is none; `header` is that of `usual`.
    """

    fits: dict[Variant, Fit]
    usual: Variant
    chosen: Variant | None
    sentence: str
    header: Header

    def facts(self) -> list[dict[str, Any]]:
        """The variants as /api/plan shows them."""
        return [
            {
                "name": variant.ref.canonical,
                "quantisation": variant.quant,
                "size_bytes": variant.size_bytes,
                "on_disk": variant.on_disk,
                "fits": fit.how,
                "predicted_tokens_per_s": fit.predicted_tokens_per_s,
                "chosen": variant == self.chosen,
            }
            for variant, fit in self.fits.items()
        ]


async def select(store: ModelStore, ref: ModelRef, judge: Judge, *, everything: bool = False) -> Selection | None:
    """The quantisation to serve of a model; one that was named stays. None where nobody can say what there is.

    With one on the disk that is held, only those of the disk are looked at, unless `everything` is to be shown.
    """
    local = await asyncio.to_thread(variants_on_disk, store, ref) if ref.kind == "hub" else ()
    here = [variant for variant in local if variant.on_disk]
    try:
        usual, header = await asyncio.to_thread(_usual, store, ref)
    except MeshnodeError:
        # The hub is silent, or has other files by now: what is on the disk can be served all the same.
        if not ref.is_open or not here:
            return None
        usual = here[-1]
        header = await asyncio.to_thread(_header_of, store, usual.ref)
    shape, mode = shape_of(header), mode_of(header)
    fits = {usual: await judge(shape, mode)}
    enough = usual.on_disk and fits[usual].holding > Holding.NOT
    found = here
    if ref.kind == "hub" and (everything or (ref.is_open and not enough)):
        found = list((await asyncio.to_thread(variants_of, store, ref))[0])
    common = max(0, usual.size_bytes - shape.total_bytes + shape.tied_bytes)
    for variant in found[:MOST_JUDGED]:
        if variant.quant != usual.quant:
            fits[variant] = await judge(_resized(shape, variant.size_bytes - common), mode)
    fits = dict(sorted(fits.items(), key=lambda item: item[0].size_bytes))
    if not ref.is_open:
        return Selection(fits, usual, usual if fits[usual].how != "no" else None, "", header)
    considered = [variant for variant in fits if variant.on_disk or not enough]
    chosen, sentence = choose_variant(usual, considered, lambda variant: fits[variant].holding)
    return Selection(fits, usual, chosen, sentence, header)


@dataclass(frozen=True, slots=True)
class Looked:
    """A model that may not be here: name, header, and the hash of the weights in hex digits where it is known."""

    name: str
    header: Header
    content_hash: str
    selection: Selection | None


class Fitting:
    """The judgement of one node. `budget` gives the memory that is left beside its models but for one.

    Methods run in the event loop; `equip` first.
    """

    def __init__(self, settings: Settings, budget: Callable[[Unit | None], Budget]) -> None:
        self._settings = settings
        self._budget = budget
        self._speeds: Speeds = {}
        self._has_gpus = False
        self._splits: Splits | None = None

    def equip(self, inventory: Inventory, speeds: Speeds) -> None:
        """The devices of this machine, and how fast they are."""
        self._has_gpus, self._speeds = bool(usable_accelerators(inventory, self._settings)), speeds

    def split_with(self, splits: Splits) -> None:
        """What plans over several machines."""
        self._splits = splits

    async def judge(self, unit: Unit | None, shape: ModelShape, mode: Mode) -> Fit:
        """What this machine, or else the mesh, would make of a model; the unit is its own, if it has one."""
        plan = plan_solo(shape, self._budget(unit), wishes_of(self._settings))
        if isinstance(plan, Refusal):
            split = await self._splits(shape, unit) if self._splits is not None and mode == "chat" else None
            return Fit("split", Holding.TOGETHER, split.predicted_tokens_per_s) if split is not None else Fit()
        whole = plan.gpu_layers > len(shape.layers)
        holding = Holding.PARTLY if self._has_gpus and not whole else Holding.WHOLE
        if whole and not plan.reason:
            holding = Holding.WELL
        return Fit("solo", holding, predict(shape, plan, self._speeds))

    async def choose(self, store: ModelStore, unit: Unit) -> str:
        """Settle which quantisation of a model is served, before any of it is fetched: the sentence to tell, or "".

        One that was named stays, and where a split was asked for the usual one waits for machines. Raises
        ModelDoesNotFit where none is held and the usual one is not on this disk.
        """
        if not self._may_choose(unit.ref):
            return ""
        found = await select(store, unit.ref, partial(self.judge, unit))
        if found is None or found.chosen == found.usual:
            return ""
        if found.chosen is not None:
            unit.ref = replace(found.chosen.ref, alias=unit.ref.alias, is_open=False)
            return found.sentence
        if found.usual.on_disk:
            return ""
        raise ModelDoesNotFit(found.sentence, fix=await self._fix(found, unit) or SMALLER)

    def _may_choose(self, ref: ModelRef) -> bool:
        return ref.is_open and not self._settings.split and not self._settings.tensor_split

    async def fix_of(self, store: ModelStore, unit: Unit) -> str:
        """For a model of this disk that is not held: another quantisation that is, else the command that makes one.

        "" where there is neither.
        """
        if unit.header is None:
            return ""
        if unit.ref.kind == "hub":
            found = await select(store, replace(unit.ref, is_open=False), partial(self.judge, unit), everything=True)
            if found is not None:
                return await self._fix(found, unit)
        return await self._command(unit.header, Variant(unit.ref, unit.ref.quant, 0, 0), unit, unit.asked_as)

    async def fix_for(self, looked: Looked, unit: Unit | None) -> str:
        """The same for one that was looked at."""
        return await self._fix(looked.selection, unit) if looked.selection is not None else ""

    async def _fix(self, found: Selection, unit: Unit | None) -> str:
        others = [v for v, fit in found.fits.items() if fit.how != "no" and v.quant != found.usual.quant]
        if others and found.fits[found.usual].how == "no":
            best = max(others, key=lambda variant: (found.fits[variant].how == "solo", variant.size_bytes))
            return f"another quantisation fits: meshnode --model {shlex.quote(best.ref.canonical)}"
        return await self._command(found.header, found.usual, unit)

    async def _command(self, header: Header, source: Variant, unit: Unit | None, name: str = "") -> str:
        mode = mode_of(header)

        async def held(shape: ModelShape) -> bool:
            return (await self.judge(unit, shape, mode)).how != "no"

        if await held(shape_of(header)):
            return ""  # it failed for another reason
        plan = await smaller_file(header, held)
        name = name or (str(source.ref.path) if source.ref.kind == "file" else source.ref.canonical)
        return quantise_command(name, plan, on_disk=source.on_disk) if plan is not None else ""

    async def look_at(self, store: ModelStore, ref: ModelRef, unit: Unit | None) -> Looked:
        """A model as it would be served here, or as the unit is. Raises what fetching a header raises."""
        ref = unit.ref if unit is not None else ref
        ref = replace(ref, is_open=unit is None and self._may_choose(ref))
        found = await select(store, ref, partial(self.judge, unit), everything=True)
        name, content_hash = (unit.id, unit.content_hash) if unit is not None else (ref.short_name, "")
        if found is not None and found.chosen in (None, found.usual):
            header = found.header
        else:
            if found is not None and found.chosen is not None:
                ref, name = found.chosen.ref, found.chosen.ref.canonical
            header = await asyncio.to_thread(_header_of, store, ref)
        if not content_hash:
            local = await asyncio.to_thread(store.find, ref)
            content_hash = local.sha256 if local is not None and not local.incomplete else ""
        return Looked(name, header, content_hash, found)


# --- what there is ------------------------------------------------------------------------------------------------


def _usual(store: ModelStore, ref: ModelRef) -> tuple[Variant, Header]:
    """What the name stands for: on the disk, else on the hub."""
    local = store.find(ref)
    if local is not None and (not local.incomplete or ref.kind != "hub"):
        header = store.read(local)
        size = local.total_bytes + (local.mmproj.stat().st_size if local.mmproj else 0)
        return Variant(local.ref, local.ref.quant or header.quantisation, size, 0), header
    remote = store.look_up(ref)
    header = store.read_remote(remote)
    return Variant(remote.ref, remote.ref.quant or header.quantisation, remote.size_bytes, remote.size_bytes), header


def _header_of(store: ModelStore, ref: ModelRef) -> Header:
    """From the disk, or else the first megabytes on the hub."""
    return _usual(store, ref)[1]


def _resized(shape: ModelShape, weights_bytes: int) -> ModelShape:
    """The shape of the same model in a file of other weights, every tensor taken to shrink alike."""
    factor = max(0.0, weights_bytes / max(1, shape.total_bytes - shape.tied_bytes))

    def resized(size: int) -> int:
        return round(size * factor)

    return replace(
        shape,
        layers=tuple(replace(layer, weights_bytes=resized(layer.weights_bytes)) for layer in shape.layers),
        embedding_bytes=resized(shape.embedding_bytes),
        output_bytes=resized(shape.output_bytes),
        other_bytes=resized(shape.other_bytes),
        tied_bytes=resized(shape.tied_bytes),
        active_bytes=resized(shape.active_bytes),
    )
