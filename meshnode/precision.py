"""Fewer bits for a model, or the right ones of those there are: connects headers and files with the pure plans.

A plan is made from the header alone, so that a model can be looked at as it would be (`header_as_planned` gives the
planner its shape) before anything is written.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from meshnode.core.precision import Candidate, Holding, choose_beside, describe_loss
from meshnode.core.quantisation import LADDER, ModelFacts, QuantisationPlan, plan_to_fit, plan_types
from meshnode.engine.installed import Engine
from meshnode.engine.quantize import QuantizeJob, quantize
from meshnode.errors import EngineError, ModelFileInvalid, SettingsError
from meshnode.models.cache import LocalModel
from meshnode.models.gguf import read_header
from meshnode.models.header import FILE_TYPES, Header
from meshnode.models.shapes import ModelShape, shape_of
from meshnode.models.variants import Variant
from meshnode.telemetry import Report, silent

DEFAULT_MIX = "Q4_K_M"
ROUNDS = 7
"""Steps of the search for a file that fits: to a hundredth of what there is between the smallest and the largest."""

__all__ = [
    "QuantisationPlan",
    "choose_variant",
    "describe_loss",
    "facts_of",
    "header_as_planned",
    "plan_for",
    "quantise",
    "quantise_command",
    "smaller_file",
]


def facts_of(header: Header) -> ModelFacts:
    """What the rules of quantisation ask of a model."""
    heads_kv = header.per_layer("attention.head_count_kv")
    heads = header.per_layer("attention.head_count")
    return ModelFacts(
        architecture=header.architecture,
        layers=header.layer_count,
        heads=max(heads, default=0),
        heads_kv=heads_kv[0] if heads_kv and heads_kv[0] else max(heads, default=0),
        experts=header.number(header.key("expert_count")),
        # The parts of a split model share what the one file has once; theirs together is hardly more.
        header_bytes=header.data_offset
        if header.split_count == 1
        else max(header.data_offset, header.file_bytes - header.weights_bytes),
    )


def plan_for(
    header: Header, *, mix: str = "", layers: Mapping[int, str] | None = None, fit_bytes: int | None = None
) -> QuantisationPlan:
    """The plan that a person asked for: a mix, mixes for layers, or a size that the file must fit.

    Raises SettingsError for a mix or layer that is not there and a size that no mix reaches, ModelFileInvalid for what
    is no model of layers.
    """
    if header.is_projector or header.layer_count < 1:
        raise ModelFileInvalid("it has no layers to quantise", fix="pass the model itself, not its projector")
    facts = facts_of(header)
    if fit_bytes is not None:
        found = plan_to_fit(header.tensors, facts, fit_bytes)
        if found is None:
            smallest = plan_types(header.tensors, facts, LADDER[-1])
            raise SettingsError(
                f"no type makes it as small as {fit_bytes:,} bytes: {smallest.base} takes {smallest.file_bytes:,}",
                fix="allow more with --fit, or take a smaller model: meshnode search shows sizes",
            )
        return found
    try:
        return plan_types(header.tensors, facts, mix or DEFAULT_MIX, layers)
    except ValueError as error:
        raise SettingsError(str(error)) from None


def header_as_planned(header: Header, plan: QuantisationPlan) -> Header:
    """The header that the file of a plan would have, as far as memory and names go."""
    planned = {tensor.name: tensor for tensor in plan.tensors}
    tensors = tuple(
        replace(tensor, type=planned[tensor.name].target, n_bytes=planned[tensor.name].n_bytes)
        for tensor in header.tensors
    )
    codes = {name: code for code, name in FILE_TYPES.items()}
    metadata = {**header.metadata, "general.file_type": codes[plan.nominal]}
    return replace(header, tensors=tensors, metadata=metadata, file_bytes=plan.file_bytes)


def quantise(
    local: LocalModel,
    header: Header,
    plan: QuantisationPlan,
    target: Path,
    engine: Engine,
    *,
    requantise: bool = False,
    threads: int = 1,
    report: Report = silent,
    cancelled: threading.Event | None = None,
) -> int:
    """Make the file of a plan; blocking. Returns its size in bytes.

    Raises what engine.quantize.quantize raises, and ModelFileInvalid when the file is not what was planned.
    """
    if engine.quantize is None:
        raise EngineError("this engine has no llama-quantize", fix="build one: meshnode engine build")
    if plan.requantises and not requantise:
        raise ModelFileInvalid(
            f"{local.name} is quantised already ({header.quantisation}): doing it again loses more than once",
            fix="start from an F16, BF16 or F32 file, or accept it with --requantize",
        )
    job = QuantizeJob(
        source=local.path,
        target=target,
        nominal=plan.nominal,
        overrides=plan.overrides(),
        needed_bytes=plan.file_bytes,
        weights={tensor.name: tensor.source_bytes for tensor in plan.tensors},
        requantise=requantise,
        threads=threads,
    )
    size = 0

    def check(made: Path) -> None:
        nonlocal size
        _compare(read_header(made), plan)
        size = made.stat().st_size

    quantize(engine.quantize, job, environ=os.environ, check=check, report=report, cancelled=cancelled)
    return size


def choose_variant(
    usual: Variant, variants: Sequence[Variant], held: Callable[[Variant], Holding]
) -> tuple[Variant | None, str]:
    """The quantisation to serve of those there are, and why it is another one than `usual`, or why there is none."""
    known = {Candidate(variant.quant, variant.size_bytes): variant for variant in (*variants, usual)}
    choice = choose_beside(
        Candidate(usual.quant, usual.size_bytes), tuple(known), lambda candidate: held(known[candidate])
    )
    return (known[choice.candidate] if choice.candidate else None), choice.sentence


# --- a file that does not exist yet -------------------------------------------------------------------------------


async def smaller_file(header: Header, held: Callable[[ModelShape], Awaitable[bool]]) -> QuantisationPlan | None:
    """The best file that could be made of one with many bits and that is held; None where none is, and of a source
    that was quantised before.
    """
    facts = facts_of(header)
    smallest = await asyncio.to_thread(plan_types, header.tensors, facts, LADDER[-1])

    async def fits(plan: QuantisationPlan) -> bool:
        return await held(await asyncio.to_thread(lambda: shape_of(header_as_planned(header, plan))))

    if smallest.requantises or not await fits(smallest):
        return None
    best, low, high = smallest, smallest.file_bytes, header.file_bytes
    for _ in range(ROUNDS):
        middle = (low + high) // 2
        plan = await asyncio.to_thread(plan_to_fit, header.tensors, facts, middle)
        if plan is not None and await fits(plan):
            best, low = plan, middle
        else:
            high = middle
    return best


def quantise_command(name: str, plan: QuantisationPlan, *, on_disk: bool) -> str:
    """What to type for the file of a plan, and what comes of it, as the `fix` of a refusal."""
    quoted, size = shlex.quote(name), plan.file_bytes
    fetch = "" if on_disk else f"meshnode pull {quoted} && "
    words = [
        f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB",
        f"{plan.bits_per_weight:.1f} bits a weight",
    ]
    if loss := describe_loss(plan.loss).partition(" (")[0]:
        words.append(loss)
    return f"make a file that fits ({', '.join(words)}) and serve that: {fetch}meshnode quantize {quoted} --fit {size}"


def _compare(made: Header, plan: QuantisationPlan) -> None:
    wanted = {tensor.name: (tensor.target, tensor.n_bytes) for tensor in plan.tensors}
    got = {tensor.name: (tensor.type, tensor.n_bytes) for tensor in made.tensors}
    wrong = sorted(name for name in wanted.keys() | got.keys() if wanted.get(name) != got.get(name))
    if wrong:
        raise ModelFileInvalid(
            f"llama-quantize made {len(wrong)} tensors other than planned, {wrong[0]} first",
            fix="build the engine again (meshnode engine build), or choose another --type",
        )
