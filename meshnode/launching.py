"""From a plan to the options of an engine: what llama-server is told for one machine, and for several."""

from __future__ import annotations

from meshnode.core.placement import HOST, SoloPlan
from meshnode.core.split import SplitPlan
from meshnode.drafting import Drafting
from meshnode.engine.commands import ServerOptions, SplitOptions
from meshnode.units import Unit


def options_of(
    unit: Unit, plan: SoloPlan | SplitPlan, split: SplitOptions | None, drafting: Drafting, *, threads: int
) -> ServerOptions:
    """The options of an engine that serves the unit as planned. `split` comes with a SplitPlan, and only then."""
    if isinstance(plan, SplitPlan):
        assert split is not None
        return _split_options(unit, plan, split, drafting, threads)
    assert unit.local is not None
    gpus = [share.device for share in plan.shares if share.device != HOST and share.layers]
    return ServerOptions(
        model=unit.local.path,
        alias=unit.id,
        context=plan.context * plan.parallel,
        parallel=plan.parallel,
        threads=threads,
        mode=unit.mode,
        mmproj=unit.local.mmproj,
        draft=drafting.draft,
        ngram=drafting.ngram,
        devices=tuple(gpus) or ("none",),
        gpu_layers=plan.gpu_layers,
        tensor_split=tuple(float(count) for count in plan.tensor_split),
        kv_type_k=plan.kv_type,  # type: ignore[arg-type]
        kv_type_v=plan.kv_type,  # type: ignore[arg-type]
        flash_attention="on" if plan.kv_type != "f16" else "auto",
        prompt_cache_bytes=plan.prompt_cache_bytes,
    )


def _split_options(unit: Unit, plan: SplitPlan, split: SplitOptions, drafting: Drafting, threads: int) -> ServerOptions:
    """Remote devices come first, in the order of the pipeline; then the GPUs of this machine."""
    assert unit.local is not None
    remote = tuple(f"RPC{index}" for index in range(len(plan.stages)))
    return ServerOptions(
        model=unit.local.path,
        alias=unit.id,
        context=plan.context * plan.parallel,
        parallel=plan.parallel,
        threads=threads,
        mode=unit.mode,
        draft=drafting.draft,
        ngram=drafting.ngram,
        devices=(*remote, *(stage.device for stage in plan.local_devices)),
        gpu_layers=plan.gpu_layers,
        tensor_split=tuple(float(count) for count in plan.tensor_split),
        kv_type_k=plan.kv_type,  # type: ignore[arg-type]
        kv_type_v=plan.kv_type,  # type: ignore[arg-type]
        flash_attention="on",
        split=split,
    )
