import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.core.memory import GIB, MIB
from meshnode.core.prediction import Speed
from meshnode.core.staging import Choice, Loads, Part, Slot, place, place_exactly
from meshnode.models.shapes import LayerShape
from tests.core.split_samples import SEVEN, SMALL, Model

FAST, SLOW = Speed(800e9, 20e-6), Speed(20e9, 50e-6)
CHOICE = Choice(8192, 1, "f16")


def slot(node: str, gib: float, speed: Speed = FAST, least: int = 1) -> Slot:
    return Slot(node, "CUDA0", 0, int(gib * GIB), speed, True, least)


def main(gib: float, speed: Speed = SLOW, most: int = 1 << 20) -> Slot:
    return Slot("host", "", 0, int(gib * GIB), speed, True, most=most)


def counts(parts: Sequence[Part] | None) -> list[int]:
    assert parts is not None
    return [part.layers for part in parts]


def check(loads: Loads, line: Sequence[Slot], parts: Sequence[Part]) -> None:
    """What holds for every placement: each layer once, in line, nobody above its limit or below its least."""
    assert [part.slot for part in parts] == list(line)
    assert [part.first_layer for part in parts] == list(itertools.accumulate(counts(parts), initial=0))[:-1]
    assert sum(counts(parts)) == loads.count
    for part in parts:
        assert part.slot.least <= part.layers <= part.slot.most
        # A slot with nothing on it needs no room: it is left out.
        assert part.total_bytes <= part.slot.limit_bytes or (part.layers == 0 and not part.holds_output)
    assert sum(part.holds_output for part in parts) == 1
    assert sum(part.kv_bytes for part in parts) == loads.kv[-1]


def test_equals_share_in_proportion_to_their_memory() -> None:
    loads = Loads(SEVEN, CHOICE)
    line = [main(1.2), slot("a", 6), slot("b", 3)]
    parts = place(loads, line, output_on_last=False)
    assert counts(parts) == [0, 21, 11]


def test_the_fastest_are_filled_first_and_main_memory_gets_the_rest() -> None:
    loads = Loads(SEVEN, CHOICE)
    parts = place(loads, [main(20), slot("a", 2.2), slot("b", 2.2, SLOW)], output_on_last=False)
    assert parts is not None
    on_host, on_a, on_b = counts(parts)
    assert on_a == loads.most(loads.room(parts[1].slot, main=False, output=False), on_host)
    assert on_host > on_b >= 1


def test_a_remote_device_gets_a_layer_even_if_it_is_the_slowest() -> None:
    loads = Loads(SEVEN, CHOICE)
    assert counts(place(loads, [main(20, FAST), slot("a", 8, SLOW)], output_on_last=False)) == [31, 1]
    assert counts(place(loads, [main(20, FAST), slot("a", 8, SLOW, least=0)], output_on_last=False)) == [32, 0]


def test_the_head_lies_where_it_is_put_and_a_copy_of_the_embedding_counts_once() -> None:
    tied = Model("tied", SEVEN.layers, 280 * MIB, 281 * MIB, tied_bytes=280 * MIB)
    loads = Loads(tied, CHOICE)
    line = [main(2), slot("a", 12), Slot("host", "CUDA0", 0, 4 * GIB, FAST, True)]
    on_host = place(loads, line, output_on_last=False)
    on_gpu = place(loads, line, output_on_last=True)
    assert on_host and on_gpu
    assert [part.holds_output for part in on_host] == [True, False, False]
    assert [part.holds_output for part in on_gpu] == [False, False, True]
    assert on_host[0].weights_bytes == 281 * MIB
    assert on_gpu[2].weights_bytes - on_gpu[2].layers * 125 * MIB == 281 * MIB
    assert on_host[0].compute_s > on_gpu[0].compute_s == 0


def test_no_room_for_what_always_stays_is_no_placement() -> None:
    loads = Loads(SEVEN, CHOICE)
    assert place(loads, [main(0.6), slot("a", 40)], output_on_last=False) is None
    assert place(loads, [main(8), slot("a", 40), slot("host", 0.4, least=0)], output_on_last=True) is None
    assert place(loads, [main(1.2), slot("a", 2)], output_on_last=False) is None
    assert place(loads, [main(8), slot("a", 0.1)], output_on_last=False) is None


def test_everybody_gets_a_layer_where_one_could_hold_all() -> None:
    loads = Loads(SEVEN, CHOICE)
    for order in (("a", "b", "c"), ("c", "b", "a")):
        line = [main(8), *(slot(node, {"a": 40, "b": 1, "c": 30}[node]) for node in order)]
        assert all(count >= 1 for count in counts(place(loads, line, output_on_last=False))[1:])
    assert place(Loads(SMALL, CHOICE), [main(8), *[slot("a", 4)] * 13], output_on_last=False) is None
    assert counts(place(Loads(SMALL, CHOICE), [main(8), *[slot("a", 4)] * 12], output_on_last=False)) == [0] + [1] * 12


def test_main_memory_that_is_shared_with_a_gpu_takes_no_layers() -> None:
    loads = Loads(SEVEN, CHOICE)
    parts = place(loads, [main(30, FAST, most=0), slot("a", 9)], output_on_last=False)
    assert counts(parts) == [0, 32]


def test_counts_can_be_given() -> None:
    loads = Loads(SEVEN, CHOICE)
    line = [main(1), slot("a", 1), slot("b", 1)]
    parts = place_exactly(loads, line, [2, 10, 20], output_on_last=False)
    assert counts(parts) == [2, 10, 20]
    assert [part.first_layer for part in parts] == [0, 2, 12]


def test_of_a_mixture_only_the_active_part_costs_time() -> None:
    dense = Loads(SEVEN, CHOICE)
    sparse = Loads(Model("sparse", SEVEN.layers, 280 * MIB, 410 * MIB, share=0.25), CHOICE)
    line = slot("a", 20)
    times = [loads.part(line, 0, 8, main=False, output=False).compute_s for loads in (dense, sparse)]
    assert times[0] == pytest.approx(FAST.decode_s(8, 8 * 125 * MIB))
    assert times[1] == pytest.approx(FAST.decode_s(8, 2 * 125 * MIB))


@given(st.integers(-10, 10 * MIB), st.integers(0, 12))
def test_stretches_are_measured_from_both_ends(room: int, cut: int) -> None:
    loads = Loads(SMALL, CHOICE)

    def fits(first: int, end: int) -> bool:
        return loads.both[end] - loads.both[first] <= room

    forward, backward = loads.most(room, cut), loads.most_before(room, cut)
    assert forward == max((n for n in range(13 - cut) if fits(cut, cut + n)), default=0)
    assert backward == max((n for n in range(cut + 1) if fits(cut - n, cut)), default=0)


LAYERS = st.builds(
    LayerShape,
    weights_bytes=st.integers(1, 400 * MIB),
    k_elements=st.sampled_from([0, 128, 1024]),
    v_elements=st.sampled_from([0, 1024]),
    window=st.sampled_from([None, None, 512]),
    state_bytes=st.sampled_from([0, MIB]),
)
MODELS = st.builds(
    Model,
    name=st.just("any"),
    layers=st.lists(LAYERS, min_size=2, max_size=9).map(tuple),
    embedding_bytes=st.integers(0, 200 * MIB),
    output_bytes=st.integers(0, 200 * MIB),
    n_embd=st.sampled_from([128, 4096]),
)
SLOTS = st.builds(
    Slot,
    node=st.sampled_from("abc"),
    device=st.just("CUDA0"),
    device_index=st.just(0),
    limit_bytes=st.one_of(st.integers(0, 2 * GIB), st.integers(2 * GIB, 9 * GIB)),
    speed=st.sampled_from([FAST, SLOW, Speed(700e9, 0.0)]),
    is_measured=st.booleans(),
    least=st.sampled_from([0, 1, 1]),
)


@settings(max_examples=200)
@given(MODELS, st.integers(0, 3 * GIB), st.lists(SLOTS, min_size=1, max_size=4), st.booleans())
def test_every_placement_is_sound_and_none_is_missed(
    model: Model, memory: int, others: list[Slot], output_on_last: bool
) -> None:
    loads = Loads(model, Choice(2048, 2, "f16"))
    line = [Slot("host", "", 0, memory, SLOW, True), *others]
    parts = place(loads, line, output_on_last=output_on_last)
    if parts is not None:
        check(loads, line, parts)
        assert parts == place(loads, line, output_on_last=output_on_last)
        return
    rooms = [
        loads.room(each, main=i == 0, output=(i == len(line) - 1) if output_on_last else i == 0)
        for i, each in enumerate(line)
    ]
    # All ways to cut the layers into stretches: none satisfies every slot.
    for cut in itertools.combinations_with_replacement(range(loads.count + 1), len(line) - 1):
        stretches = list(itertools.pairwise((0, *cut, loads.count)))
        assert not all(
            end - start >= each.least
            and (end == start or loads.both[end] - loads.both[start] <= room)
            and (end > start or i not in (0, len(line) - 1) or room >= 0)
            for i, (each, room, (start, end)) in enumerate(zip(line, rooms, stretches, strict=True))
        )
