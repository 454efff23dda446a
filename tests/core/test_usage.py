"""Parts of a device's memory: they add up whatever the figures say."""

from __future__ import annotations

import random
from dataclasses import replace

from meshnode.core.memory import ENGINE_OVERHEAD_BYTES, GIB, MIB
from meshnode.core.placement import HOST, Budget, DeviceBudget, SoloPlan, Wishes, plan_solo
from meshnode.core.split import SplitPlan, SplitWishes
from meshnode.core.splitting import decide
from meshnode.core.usage import ORDER, Bar, DeviceMemory, Holding, Part, bars, holdings_of
from tests.core.split_samples import SEVEN, Line, cpu, machine

GPU = DeviceMemory("CUDA0", "RTX 4090", "gpu", 24 * GIB, 23 * GIB, 22 * GIB)
RAM = DeviceMemory(HOST, "Ryzen", "memory", 64 * GIB, 40 * GIB, 36 * GIB)


def sizes(bar: Bar) -> dict[str, int]:
    """Bytes by kind, in the order of the bar."""
    found: dict[str, int] = {}
    for part in bar.parts:
        found[part.kind] = found.get(part.kind, 0) + part.size_bytes
    return found


def test_a_device_that_nobody_uses_is_free_but_for_the_reserve_and_other_programs() -> None:
    gpu, ram = bars([GPU, RAM], [])
    assert sizes(gpu) == {"other": GIB, "reserved": GIB, "free": 22 * GIB}
    assert sizes(ram) == {"other": 24 * GIB, "reserved": 4 * GIB, "free": 36 * GIB}
    assert gpu.memory is GPU and gpu.total_bytes == 24 * GIB


def test_what_models_hold_comes_first_and_each_keeps_its_name() -> None:
    held = [
        Holding("CUDA0", "lent", GIB, "far"),
        Holding("CUDA0", "weights", 4 * GIB, "a"),
        Holding("CUDA0", "kv", GIB, "a"),
        Holding("CUDA0", "weights", 2 * GIB, "b"),
        Holding("CUDA0", "weights", GIB, "a"),
        Holding("CUDA1", "weights", GIB, "c"),
    ]
    (bar,) = bars([GPU], held)
    assert bar.parts == (
        Part("weights", 5 * GIB, "a"),
        Part("weights", 2 * GIB, "b"),
        Part("kv", GIB, "a"),
        Part("lent", GIB, "far"),
        Part("other", GIB),
        Part("reserved", GIB),
        Part("free", 13 * GIB),
    )


def test_a_unified_memory_is_one_bar_for_all_that_share_it() -> None:
    unified = DeviceMemory("MTL0", "Apple M3", "memory", 32 * GIB, 24 * GIB, 20 * GIB, also=(HOST,))
    (bar,) = bars([unified], [Holding("MTL0", "weights", 6 * GIB, "a"), Holding(HOST, "weights", GIB, "a")])
    assert sizes(bar) == {"weights": 7 * GIB, "other": 8 * GIB, "reserved": 4 * GIB, "free": 13 * GIB}


def test_what_was_not_reported_is_not_made_up() -> None:
    silent = replace(GPU, free_bytes=None, usable_bytes=None)
    assert sizes(bars([silent], [])[0]) == {"free": 24 * GIB}
    unknown = replace(silent, total_bytes=None)
    assert bars([unknown], [])[0] == Bar(unknown, 0, ())
    (bar,) = bars([unknown], [Holding("CUDA0", "kv", MIB, "a")])
    assert (bar.total_bytes, sizes(bar)) == (MIB, {"kv": MIB})


def test_what_is_held_stands_and_the_reserve_gives_way_first() -> None:
    assert sizes(bars([GPU], [Holding("CUDA0", "weights", 22 * GIB + MIB)])[0])["reserved"] == GIB - MIB
    assert sizes(bars([GPU], [Holding("CUDA0", "weights", 24 * GIB - 1)])[0]) == {"weights": 24 * GIB - 1, "other": 1}
    assert sizes(bars([GPU], [Holding("CUDA0", "weights", 99 * GIB)])[0]) == {"weights": 24 * GIB}


def test_parts_add_up_and_keep_their_order_whatever_the_figures() -> None:
    chance = random.Random(3)

    def figure() -> int | None:
        return chance.choice([None, -5, 0, chance.randrange(1 << 40)])

    for _ in range(2000):
        memory = DeviceMemory("A", "a", "gpu", figure(), figure(), figure(), also=("B",))
        held = [
            Holding(chance.choice("ABC"), chance.choice(ORDER[:4]), chance.randrange(-9, 1 << 39), chance.choice("xy"))
            for _ in range(chance.randrange(6))
        ]
        (bar,) = bars([memory], held)
        assert sum(part.size_bytes for part in bar.parts) == bar.total_bytes
        assert all(part.size_bytes > 0 for part in bar.parts)
        places = [ORDER.index(part.kind) for part in bar.parts]
        assert places == sorted(places)
        assert len({(part.kind, part.model) for part in bar.parts}) == len(bar.parts)


def test_a_plan_of_one_machine_is_told_share_by_share() -> None:
    plan = plan_solo(SEVEN, Budget(32 * GIB, (DeviceBudget("CUDA0", 3 * GIB),)), Wishes(context=4096))
    assert isinstance(plan, SoloPlan)
    found = list(holdings_of("7b", plan))
    for share in plan.shares:
        here = {each.kind: each.size_bytes for each in found if each.device == share.device}
        assert here == {"weights": share.weights_bytes, "kv": share.kv_bytes, "compute": share.compute_bytes}
    assert sum(each.size_bytes for each in found) == plan.total_bytes
    assert {each.model for each in found} == {"7b"}


def split() -> SplitPlan:
    """Seven billion parameters over three machines of which none holds them."""
    nodes = [machine(name, cpu(3), host=3, here=name == "a") for name in "abc"]
    decision = decide(SEVEN, nodes, Line(), SplitWishes(context=4096, parallel=1, split=True))
    assert decision.split is not None
    return decision.split


def test_the_hosts_part_of_a_split_is_told_apart_by_the_shape() -> None:
    plan = split()
    found = {each.kind: each.size_bytes for each in holdings_of("7b", plan, SEVEN) if each.device == HOST}
    layers = SEVEN.layers[: plan.host_layers]
    assert found["kv"] == sum(layer.kv_bytes(4096, sequences=1, cache_type=plan.kv_type) for layer in layers)
    assert found["weights"] >= SEVEN.embedding_bytes + sum(layer.weights_bytes for layer in layers)
    assert found["compute"] >= ENGINE_OVERHEAD_BYTES
    assert sum(found.values()) == plan.host_bytes


def test_without_a_shape_the_hosts_part_is_one_figure() -> None:
    plan = split()
    found = [each for each in holdings_of("7b", plan) if each.size_bytes]
    assert found == [Holding(HOST, "weights", plan.host_bytes, "7b")]


def test_a_shape_that_counts_more_than_the_plan_takes_nothing_beyond_it() -> None:
    plan = replace(split(), host_bytes=MIB)
    found = {each.kind: each.size_bytes for each in holdings_of("7b", plan, SEVEN)}
    assert found == {"weights": MIB, "kv": 0, "compute": 0}
