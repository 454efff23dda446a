"""Types and sizes of quantised tensors; tests/test_precision.py holds the same rules against llama-quantize."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.core.quantisation import (
    LADDER,
    MIXES,
    TYPES,
    ModelFacts,
    StageLimit,
    mix_named,
    plan_for_stages,
    plan_to_fit,
    plan_types,
)

WIDTH, HIDDEN, WORDS = 512, 1024, 1000


@dataclass(frozen=True)
class Source:
    name: str
    shape: tuple[int, ...]
    type: str = "F16"

    @property
    def n_bytes(self) -> int:
        block, size = TYPES[self.type]
        return prod(self.shape) // block * size


def model(layers: int, *, tied: bool = False, width: int = WIDTH) -> list[Source]:
    found = [Source("token_embd.weight", (width, WORDS)), Source("output_norm.weight", (width,), "F32")]
    found += [] if tied else [Source("output.weight", (width, WORDS))]
    for i in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            found.append(Source(f"blk.{i}.{name}.weight", (width, width)))
        found += [
            Source(f"blk.{i}.ffn_up.weight", (width, HIDDEN)),
            Source(f"blk.{i}.ffn_down.weight", (HIDDEN, width)),
        ]
        found.append(Source(f"blk.{i}.attn_norm.weight", (width,), "F32"))
    return found


def facts(layers: int, experts: int = 0) -> ModelFacts:
    return ModelFacts("llama", layers, 8, 8, experts, header_bytes=10_000)


def targets(count: int, mix: str, layers: dict[int, str] | None = None) -> dict[str, str]:
    plan = plan_types(model(count), facts(count), mix, layers)
    return {tensor.name: tensor.target for tensor in plan.tensors}


def test_a_mix_spends_its_better_type_at_both_ends_and_on_every_third_layer() -> None:
    found = targets(16, "Q4_K_M")
    better = [i for i in range(16) if found[f"blk.{i}.ffn_down.weight"] == "Q6_K"]
    assert better == [0, 1, 4, 7, 10, 13, 14, 15]
    assert better == [i for i in range(16) if found[f"blk.{i}.attn_v.weight"] == "Q6_K"]
    assert {found[f"blk.{i}.attn_q.weight"] for i in range(16)} == {"Q4_K"}
    assert (found["output.weight"], found["token_embd.weight"], found["output_norm.weight"]) == ("Q6_K", "Q4_K", "F32")


def test_where_the_output_is_the_embedding_it_is_treated_as_the_output() -> None:
    plan = plan_types(model(2, tied=True), facts(2), "Q4_K_M")
    assert next(t.target for t in plan.tensors if t.name == "token_embd.weight") == "Q6_K"


def test_rows_that_no_block_divides_fall_back() -> None:
    plan = plan_types(model(2, width=480), facts(2), "Q4_K_S")
    found = {tensor.name: tensor.target for tensor in plan.tensors}
    assert found["blk.0.attn_q.weight"] == "Q5_0"
    assert found["output.weight"] == "Q8_0"
    odd = plan_types(model(2, width=24), facts(2), "Q4_K_S")
    assert {tensor.target for tensor in odd.tensors} == {"F16", "F32", "Q4_K"}


def test_mixtures_of_eight_experts_keep_more_in_attention() -> None:
    plan = plan_types(model(4), facts(4, experts=8), "Q4_K_M")
    found = {tensor.name: tensor.target for tensor in plan.tensors}
    assert found["blk.1.attn_v.weight"] == found["blk.1.attn_k.weight"] == "Q8_0"
    assert found["blk.1.attn_output.weight"] == "Q5_K"


@pytest.mark.parametrize("mix", MIXES)
def test_sizes_are_those_of_the_types(mix: str) -> None:
    plan = plan_types(model(4), facts(4), mix)
    for tensor in plan.tensors:
        block, size = TYPES[tensor.target]
        assert tensor.n_bytes == tensor.elements // block * size
    whole = sum(-(-tensor.n_bytes // 32) * 32 for tensor in plan.tensors)
    assert plan.file_bytes == 10_000 + whole
    outside = sum(-(-t.n_bytes // 32) * 32 for t in plan.tensors if t.layer is None)
    assert plan.layer_bytes(0, 2) + plan.layer_bytes(2, 2) + outside == whole


def test_each_mix_is_smaller_and_worse_than_the_one_before() -> None:
    plans = [plan_types(model(16), facts(16), mix) for mix in LADDER]
    sizes = [plan.file_bytes for plan in plans]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)
    losses = [plan.loss for plan in plans]
    assert losses == sorted(losses)
    assert [plan.bits_per_weight for plan in plans] == sorted((p.bits_per_weight for p in plans), reverse=True)


def test_layers_of_their_own() -> None:
    found = targets(16, "Q8_0", layers={i: "q3_k" for i in range(8)})
    assert found["blk.7.attn_q.weight"] == "Q3_K" and found["blk.8.attn_q.weight"] == "Q8_0"
    plan = plan_types(model(16), facts(16), "Q8_0", {0: "Q8_0", 3: "F16"})
    assert dict(plan.layers) == {3: "F16"}
    plain = plan_types(model(16), facts(16), "F16", {3: "Q4_K"})
    assert (plain.base, plain.nominal) == ("F16", "Q8_0")
    assert 0 < plain.loss < 0.1754


@pytest.mark.parametrize("text", ["", "Q9", "IQ2_XXS", "COPY", "q4_k_m; rm"])
def test_a_type_that_is_not_there(text: str) -> None:
    with pytest.raises(ValueError, match="not a type to quantise to"):
        mix_named(text)


@pytest.mark.parametrize("layer", [-1, 16])
def test_a_layer_that_is_not_there(layer: int) -> None:
    with pytest.raises(ValueError, match="no layer"):
        targets(16, "Q8_0", layers={layer: "Q4_K"})


def test_what_was_quantised_before_is_told() -> None:
    tensors = [Source(t.name, t.shape, "Q8_0" if len(t.shape) > 1 else "F32") for t in model(2)]
    assert plan_types(tensors, facts(2), "Q4_K_M").requantises
    same = plan_types(tensors, facts(2), "Q8_0")
    assert not same.requantises and not any(tensor.changed for tensor in same.tensors)
    assert not plan_types(model(2), facts(2), "Q4_K_M").requantises


def test_the_engine_is_told_every_tensor_by_its_whole_name() -> None:
    tensors = [*model(12), Source("blk.1.Odd+name.weight", (WIDTH, WIDTH))]
    plan = plan_types(tensors, facts(12), "Q4_K_M")
    lines = plan.overrides()
    assert len(lines) == len(tensors)
    for tensor in plan.tensors:
        matching = [line for line in lines if re.search(line.rpartition("=")[0], tensor.name)]
        assert len(matching) == 1 and matching[0].endswith(f"={tensor.target.lower()}")
    assert all(line == line.lower() and not line.split()[1:] for line in lines)


# --- plans for a limit --------------------------------------------------------------------------------------------


@given(st.integers(0, 12_000_000))
def test_the_best_file_of_a_size(limit: int) -> None:
    tensors, about = _MODEL
    plan = plan_to_fit(tensors, about, limit)
    smallest = plan_types(tensors, about, LADDER[-1])
    if plan is None:
        assert smallest.file_bytes > limit
        return
    assert plan.file_bytes <= limit
    if plan.base == "Q8_0":
        return
    better = LADDER[LADDER.index(plan.base) - 1]
    assert plan_types(tensors, about, better).file_bytes > limit
    assert set(plan.layers.values()) <= {better}
    # One layer more of the better mix would be too much, whichever end it is taken from.
    left = [i for i in range(about.layers) if i not in plan.layers]
    order = [n // 2 if n % 2 == 0 else about.layers - 1 - n // 2 for n in range(about.layers)]
    following = next(i for i in order if i in left)
    assert plan_types(tensors, about, plan.base, {**plan.layers, following: better}).file_bytes > limit


_MODEL = (model(6), facts(6))


def test_small_machines_get_fewer_bits() -> None:
    tensors, about = model(16), facts(16)
    roomy = plan_types(tensors, about, "Q6_K").layer_bytes(0, 8)
    tight = plan_types(tensors, about, "Q3_K_M").layer_bytes(8, 8)
    plan = plan_for_stages(tensors, about, [StageLimit(0, 8, roomy), StageLimit(8, 8, tight)], best="Q8_0")
    assert plan is not None
    assert [plan.layers.get(i) for i in (0, 7, 8, 15)] == ["Q6_K", "Q6_K", "Q3_K_M", "Q3_K_M"]
    assert plan.layer_bytes(0, 8) <= roomy and plan.layer_bytes(8, 8) <= tight
    assert next(t.target for t in plan.tensors if t.name == "output.weight") == "Q8_0"
    assert plan_for_stages(tensors, about, [StageLimit(0, 8, 1000)]) is None
    capped = plan_for_stages(tensors, about, [StageLimit(0, 16, 1 << 40)], best="Q4_K_M")
    assert capped is not None and not capped.layers


@given(st.lists(st.integers(100_000, 9_000_000), min_size=1, max_size=4))
def test_no_stage_gets_more_than_it_holds(limits: list[int]) -> None:
    tensors, about = _MODEL
    count = about.layers // len(limits)
    stages = [StageLimit(i * count, count, limit) for i, limit in enumerate(limits)]
    plan = plan_for_stages(tensors, about, stages)
    smallest = plan_types(tensors, about, LADDER[-1])
    if plan is None:
        assert any(smallest.layer_bytes(stage.first, stage.layers) > stage.limit_bytes for stage in stages)
    else:
        assert all(plan.layer_bytes(stage.first, stage.layers) <= stage.limit_bytes for stage in stages)
