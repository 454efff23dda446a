"""From plans to options: what one machine and what several are told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from meshnode.core.placement import Share, SoloPlan
from meshnode.core.split import SplitPlan, Stage
from meshnode.drafting import Drafting
from meshnode.engine.commands import Draft, SplitOptions
from meshnode.launching import options_of
from meshnode.models.cache import LocalModel
from meshnode.units import Unit
from tests.test_units import PLAN, REF

FILE = Path("/models/seven.gguf")
SPLIT = SplitOptions(("127.0.0.1:4", "127.0.0.1:5"), "ab" * 32, push=True, output_on_host=False)


def unit() -> Unit:
    return Unit("seven", REF, "seven", 1.0, local=LocalModel(REF, FILE, (FILE,), 10, 10))


def stage(node: str, device: str = "CUDA0") -> Stage:
    return Stage(node, device, 0, 4, 8, 1, 1, 1, 10, 0.01, 0.01)


def test_one_machine_gets_the_devices_that_hold_layers() -> None:
    options = options_of(unit(), PLAN, None, Drafting(), threads=3)
    assert options.devices == ("CUDA0",) and options.gpu_layers == 1 and options.threads == 3
    assert options.context == 8192 * 4 and options.split is None and options.flash_attention == "on"


def test_a_processor_alone_has_no_devices() -> None:
    plan = replace(PLAN, shares=(Share("CUDA0", 0, 0, 0, 0, 1), Share("host", 2, 1, 1, 1, 9)), gpu_layers=0)
    assert isinstance(plan, SoloPlan)
    assert options_of(unit(), plan, None, Drafting(), threads=1).devices == ("none",)


def test_a_split_names_remote_devices_first_and_counts_layers_exactly() -> None:
    plan = SplitPlan(
        host="aa",
        host_layers=4,
        host_bytes=100,
        local_devices=(stage("aa", "CUDA0"),),
        stages=(stage("bb"), stage("cc")),
        context=4096,
        parallel=2,
        kv_type="f16",
        gpu_layers=25,
        tensor_split=(8, 8, 9),
        output_on_host=False,
        predicted_tokens_per_s=None,
    )
    drafting = Drafting(draft=Draft(Path("/models/small.gguf"), tokens_max=5), name="small")
    options = options_of(unit(), plan, SPLIT, drafting, threads=2)
    assert options.devices == ("RPC0", "RPC1", "CUDA0") and options.tensor_split == (8.0, 8.0, 9.0)
    assert options.split is SPLIT and options.gpu_layers == 25 and options.context == 8192
    assert options.draft is not None and options.draft.devices == ("none",)
