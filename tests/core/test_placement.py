import bisect
import itertools
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.core.memory import ENGINE_OVERHEAD_BYTES, GIB, HOST_SCRATCH_BYTES, MIB, compute_bytes
from meshnode.core.placement import (
    DEFAULT_PARALLEL,
    GPU_OVERHEAD_BYTES,
    HOST_RESERVE_BYTES,
    MIN_CONTEXT,
    MODEST_CONTEXT,
    PIPELINE_COPIES,
    PROMPT_CACHE_MAX_BYTES,
    Budget,
    DeviceBudget,
    Refusal,
    SoloPlan,
    Wishes,
    plan_solo,
    usable_device_bytes,
    usable_host_bytes,
)
from meshnode.models.shapes import LayerShape as Layer


@dataclass(frozen=True)
class Model:
    name: str
    layers: tuple[Layer, ...]
    embedding_bytes: int
    output_bytes: int
    other_bytes: int = 0
    context_train: int = 131072
    n_embd: int = 4096
    n_ff: int = 14336
    n_vocab: int = 128256


# Sizes as in the Q4_K_M files of Llama 3.1 8B and 3.3 70B: 32 or 80 layers, 8 KV heads of 128.
TINY = Model("tiny", (Layer(300_000, 64, 64),) * 12, MIB, MIB, context_train=1024, n_embd=128, n_ff=512, n_vocab=2048)
SEVEN = Model("7B", (Layer(125 * MIB, 1024, 1024),) * 32, 280 * MIB, 410 * MIB)
SEVENTY = Model("70B", (Layer(480 * MIB, 1024, 1024),) * 80, 560 * MIB, 820 * MIB, n_embd=8192, n_ff=28672)
GPU24 = DeviceBudget("CUDA0", usable_device_bytes(24 * GIB))


def planned(model: Model, budget: Budget, wishes: Wishes | None = None, extra_host_bytes: int = 0) -> SoloPlan:
    plan = plan_solo(model, budget, wishes or Wishes(), extra_host_bytes=extra_host_bytes)
    assert isinstance(plan, SoloPlan), plan
    check(model, plan)
    return plan


def refused(model: Model, budget: Budget, wishes: Wishes | None = None) -> Refusal:
    refusal = plan_solo(model, budget, wishes or Wishes())
    assert isinstance(refusal, Refusal), refusal
    return refusal


def check(model: Model, plan: SoloPlan) -> None:
    """What holds for every plan, whatever led to it."""
    units = len(model.layers) + 1
    assert sum(share.layers for share in plan.shares) == units
    assert all(share.total_bytes <= share.limit_bytes for share in plan.shares)
    assert all(share.total_bytes == 0 for share in plan.shares[:-1] if share.layers == 0)
    assert plan.gpu_layers == sum(share.layers for share in plan.shares[:-1])
    assert sum(share.weights_bytes for share in plan.shares) == (
        sum(layer.weights_bytes for layer in model.layers)
        + model.embedding_bytes
        + model.output_bytes
        + model.other_bytes
    )
    kv = sum(x.kv_bytes(plan.context, sequences=plan.parallel, cache_type=plan.kv_type) for x in model.layers)
    assert sum(share.kv_bytes for share in plan.shares) == kv
    left = plan.shares[-1].limit_bytes - plan.shares[-1].total_bytes
    assert 0 <= plan.prompt_cache_bytes <= min(PROMPT_CACHE_MAX_BYTES, left)
    if plan.tensor_split:
        assert plan.tensor_split == tuple(share.layers for share in plan.shares[:-1])
        assert devices_by_llama_cpp(plan, units) == devices_by_shares(plan)


def devices_by_llama_cpp(plan: SoloPlan, units: int) -> list[int]:
    """Which device llama.cpp gives each unit from `first on a GPU` on (load_tensors: upper_bound over fractions)."""
    total = sum(plan.tensor_split)
    cumulated = [part / total for part in itertools.accumulate(plan.tensor_split)]
    first = units - plan.gpu_layers
    return [bisect.bisect_right(cumulated, (unit - first) / plan.gpu_layers) for unit in range(first, units)]


def devices_by_shares(plan: SoloPlan) -> list[int]:
    return [number for number, share in enumerate(plan.shares[:-1]) for _ in range(share.layers)]


def test_a_tiny_model_without_a_gpu_gets_all_that_is_wanted() -> None:
    plan = planned(TINY, Budget(usable_host_bytes(4 * GIB)))
    assert (plan.context, plan.kv_type, plan.parallel, plan.gpu_layers) == (1024, "f16", DEFAULT_PARALLEL, 0)
    assert (plan.tensor_split, plan.reason) == ((), "")
    assert [share.device for share in plan.shares] == ["host"]
    assert plan.prompt_cache_bytes > 0


def test_a_7b_fits_on_a_24_gb_gpu_with_a_long_context() -> None:
    plan = planned(SEVEN, Budget(usable_host_bytes(32 * GIB), (GPU24,)))
    assert (plan.gpu_layers, plan.context, plan.parallel) == (33, 32768, DEFAULT_PARALLEL)
    assert (plan.tensor_split, plan.reason) == ((), "")
    # What stays in main memory of a model that is on the GPU.
    scratch = compute_bytes(SEVEN, context=32768, parallel=4, with_output=False, first=33, main=True)
    assert plan.shares[-1].total_bytes == SEVEN.embedding_bytes + scratch
    assert plan.prompt_cache_bytes == PROMPT_CACHE_MAX_BYTES


def test_a_smaller_gpu_gives_up_number_format_then_company_then_context_before_layers() -> None:
    found = []
    for size in (24, 12, 9, 8, 6.5, 6):
        plan = planned(SEVEN, Budget(32 * GIB, (DeviceBudget("g", usable_device_bytes(int(size * GIB))),)))
        assert plan.gpu_layers == 33
        assert ("context" in plan.reason) == (plan.context < 32768)
        found.append((plan.context, plan.parallel, plan.kv_type))
    assert found == [
        (32768, 4, "f16"),
        (32768, 2, "q8_0"),
        (32768, 1, "f16"),
        (32768, 1, "q8_0"),
        (16384, 1, "q8_0"),
        (16384, 1, "q8_0"),
    ]


def test_a_whole_model_on_the_gpu_is_not_bought_with_a_context_too_short_to_work_with() -> None:
    weights = sum(layer.weights_bytes for layer in SEVEN.layers) + SEVEN.output_bytes
    scratch = compute_bytes(SEVEN, context=MODEST_CONTEXT, parallel=1, with_output=True)
    small = DeviceBudget("g", weights + scratch + 300 * MIB)  # room for some 4000 tokens of context
    plan = planned(SEVEN, Budget(32 * GIB, (small,)))
    assert (plan.context, plan.parallel, plan.kv_type) == (MODEST_CONTEXT, 1, "q8_0")
    assert 28 <= plan.gpu_layers < 33
    # Without main memory for the rest the short context is better than nothing.
    narrow = planned(SEVEN, Budget(700 * MIB, (small,)))
    assert (narrow.gpu_layers, narrow.context) == (33, 4096)


def test_a_70b_on_24_gb_keeps_the_rest_in_main_memory_and_as_little_as_possible() -> None:
    plan = planned(SEVENTY, Budget(usable_host_bytes(64 * GIB), (GPU24,)))
    assert (plan.context, plan.parallel) == (MODEST_CONTEXT, 1)
    assert 40 <= plan.gpu_layers < 50
    assert "layers stay in main memory" in plan.reason
    long = planned(SEVENTY, Budget(usable_host_bytes(64 * GIB), (GPU24,)), Wishes(context=32768))
    assert long.context == 32768
    assert long.gpu_layers < plan.gpu_layers


def test_a_70b_without_the_memory_is_refused_with_what_is_missing() -> None:
    refusal = refused(SEVENTY, Budget(usable_host_bytes(8 * GIB), (GPU24,)))
    assert refusal.needed_bytes > 38 * GIB
    assert refusal.available_bytes < 32 * GIB
    assert refusal.reason.startswith("70B needs ")
    assert "short" in refusal.reason
    refusal = refused(SEVEN, Budget(0))
    assert refusal.available_bytes == 0


@pytest.mark.parametrize("order", [1, -1])
def test_two_gpus_share_a_model_by_the_rule_of_llama_cpp(order: int) -> None:
    sizes = (24 * GIB, 16 * GIB)[::order]
    devices = tuple(DeviceBudget(f"CUDA{n}", usable_device_bytes(size)) for n, size in enumerate(sizes))
    plan = planned(SEVENTY, Budget(32 * GIB, devices))
    assert len(plan.tensor_split) == 2
    assert all(plan.tensor_split)
    assert plan.gpu_layers > 60


def test_a_gpu_that_holds_nothing_is_left_out() -> None:
    plan = planned(SEVEN, Budget(16 * GIB, (GPU24, DeviceBudget("CUDA1", 300 * MIB))))
    assert plan.tensor_split == (33, 0)
    none = planned(TINY, Budget(16 * GIB, (DeviceBudget("CUDA0", 0), DeviceBudget("CUDA1", 1))))
    assert (none.gpu_layers, none.tensor_split) == (0, ())


def test_wishes_are_kept_or_the_model_is_refused() -> None:
    budget = Budget(usable_host_bytes(16 * GIB))
    plan = planned(SEVEN, budget, Wishes(context=5000, parallel=3, kv_type="q4_0"))
    assert (plan.context, plan.parallel, plan.kv_type, plan.reason) == (5000, 3, "q4_0", "")
    assert planned(SEVEN, budget, Wishes(context=512)).context == 512
    refused(SEVEN, budget, Wishes(context=131072, kv_type="f16", parallel=1))
    assert planned(SEVEN, Budget(64 * GIB), Wishes(context=131072, parallel=1)).context == 131072


def test_a_shared_memory_is_counted_once() -> None:
    budget = Budget(8 * GIB, (DeviceBudget("Metal", 6 * GIB),), unified=True)
    plan = planned(SEVEN, budget)
    assert plan.gpu_layers == 33
    assert plan.total_bytes + ENGINE_OVERHEAD_BYTES <= 8 * GIB
    apart = planned(SEVEN, Budget(8 * GIB, budget.devices))
    assert apart.prompt_cache_bytes > plan.prompt_cache_bytes
    refusal = refused(SEVENTY, Budget(36 * GIB, (DeviceBudget("Metal", 27 * GIB),), unified=True))
    assert refusal.available_bytes < 36 * GIB


def test_what_comes_along_takes_room() -> None:
    budget = Budget(6 * GIB)
    assert planned(SEVEN, budget).context > planned(SEVEN, budget, extra_host_bytes=GIB // 2).context
    assert isinstance(plan_solo(SEVEN, budget, Wishes(), extra_host_bytes=5 * GIB), Refusal)


def test_a_budget_without_what_is_taken() -> None:
    apart = Budget(6 * GIB, (DeviceBudget("CUDA0", 4 * GIB), DeviceBudget("CUDA1", 2 * GIB)))
    left = apart.less({"CUDA0": 3 * GIB, "host": GIB, "CUDA7": GIB})
    assert [left.room_bytes(name) for name in ("host", "CUDA0", "CUDA1", "CUDA7")] == [5 * GIB, GIB, 2 * GIB, 0]
    assert apart.less({"CUDA1": 9 * GIB}).room_bytes("CUDA1") == 0
    assert apart.less({}) == apart
    unified = Budget(8 * GIB, (DeviceBudget("Metal", 6 * GIB),), unified=True)
    left = unified.less({"Metal": GIB, "host": 3 * GIB})
    assert (left.room_bytes("host"), left.room_bytes("Metal")) == (4 * GIB, 4 * GIB)


def test_what_is_left_to_others() -> None:
    assert usable_host_bytes(4 * GIB) == 4 * GIB - HOST_RESERVE_BYTES
    assert usable_host_bytes(100 * GIB) == 90 * GIB
    assert usable_host_bytes(GIB // 2) == 0
    assert usable_device_bytes(8 * GIB) == 8 * GIB - GPU_OVERHEAD_BYTES
    assert usable_device_bytes(100 * MIB) == 0


LAYERS = st.builds(
    Layer,
    weights_bytes=st.integers(1, 400 * MIB),
    k_elements=st.sampled_from([0, 128, 1024]),
    v_elements=st.sampled_from([0, 128, 1024]),
    window=st.sampled_from([None, None, 512]),
    state_bytes=st.sampled_from([0, MIB]),
)
MODELS = st.builds(
    Model,
    name=st.just("any"),
    layers=st.lists(LAYERS, min_size=1, max_size=5).map(tuple),
    embedding_bytes=st.integers(0, 200 * MIB),
    output_bytes=st.integers(0, 200 * MIB),
    context_train=st.sampled_from([0, 512, 4096, 40960]),
    n_embd=st.sampled_from([128, 4096]),
    n_ff=st.sampled_from([512, 14336]),
    n_vocab=st.sampled_from([2048, 150_000]),
)
BUDGETS = st.builds(
    Budget,
    host_bytes=st.integers(0, 3 * GIB),
    devices=st.lists(st.integers(0, 2 * GIB), max_size=2).map(
        lambda sizes: tuple(DeviceBudget(f"g{n}", size) for n, size in enumerate(sizes))
    ),
)
WISHES = st.builds(
    Wishes,
    context=st.sampled_from([None, None, 300, 8192]),
    parallel=st.sampled_from([None, None, 2]),
    kv_type=st.sampled_from([None, "f16", "q8_0", "q4_0"]),
)


@settings(max_examples=150)
@given(MODELS, BUDGETS, WISHES, st.booleans())
def test_every_plan_is_sound_and_no_model_is_refused_that_could_be_placed(
    model: Model, budget: Budget, wishes: Wishes, unified: bool
) -> None:
    if unified:
        budget = Budget(budget.host_bytes, budget.devices, unified=True)
    plan = plan_solo(model, budget, wishes)
    if isinstance(plan, SoloPlan):
        check(model, plan)
        assert plan.context == wishes.context or not wishes.context
        assert plan.parallel == wishes.parallel or not wishes.parallel
        assert plan.kv_type == wishes.kv_type or not wishes.kv_type
        if unified:
            assert plan.total_bytes <= budget.host_bytes
        assert plan == plan_solo(model, budget, wishes)
    else:
        assert plan.needed_bytes > 0
        assert unified or not fits_somehow(model, budget, wishes)


def fits_somehow(model: Model, budget: Budget, wishes: Wishes) -> bool:
    """Whether any split of the smallest combination fits, by trying all of them."""
    smallest = wishes.context or min(model.context_train or 32768, 32768)
    while not wishes.context and smallest // 2 >= MIN_CONTEXT:
        smallest //= 2
    parallel, kv_type = wishes.parallel or 1, wishes.kv_type or "q8_0"
    units = [x.weights_bytes + x.kv_bytes(smallest, sequences=parallel, cache_type=kv_type) for x in model.layers]
    units.append(model.output_bytes)
    copies = PIPELINE_COPIES if len(budget.devices) > 1 else 1
    host = budget.host_bytes - ENGINE_OVERHEAD_BYTES - model.embedding_bytes - model.other_bytes
    limits = [host, *(device.usable_bytes for device in budget.devices)]

    def holds(limit: int, start: int, end: int, *, is_host: bool) -> bool:
        # Of a GPU the planner does not know yet which layers it will get, so their largest counts.
        scratch = compute_bytes(
            model,
            context=smallest,
            parallel=parallel,
            with_output=end == len(units) and end > start,
            first=start if is_host else 0,
            end=min(end, len(model.layers)) if is_host else None,
            main=is_host,
            copies=1 if is_host else copies,
        )
        scratch = max(scratch, HOST_SCRATCH_BYTES) if is_host else scratch
        if start == end:
            return not is_host or limit >= scratch
        return sum(units[start:end]) + scratch <= limit

    cuts = itertools.combinations_with_replacement(range(len(units) + 1), len(limits) - 1)
    return any(
        all(
            holds(limit, start, end, is_host=number == 0)
            for number, (limit, (start, end)) in enumerate(
                zip(limits, itertools.pairwise((0, *cut, len(units))), strict=True)
            )
        )
        for cut in cuts
    )
