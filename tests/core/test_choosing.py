"""Which mesh is joined: wishes first, what was shown before what is claimed, and liars never."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from meshnode.core.choosing import (
    Candidate,
    Probe,
    Wishes,
    gather,
    rank,
    score,
    shortlist,
    shown_models,
)
from meshnode.wire.address import Address
from meshnode.wire.listings import Entry, ListedModel, Listing
from meshnode.wire.open_meshes import open_mesh_id
from tests.wire.listing_samples import listing

GIB = 1 << 30
HASH = bytes(range(16))
ANYTHING = Wishes()


def entry(number: int) -> Entry:
    return Entry(bytes([number]) * 32, (Address("192.0.2.1", number),))


def mesh(name: str, **changes: Any) -> Listing:
    return listing(name=name, vram_bytes=24 * GIB, **changes)


def probe(**changes: Any) -> Probe:
    shown: dict[str, Any] = {"models": frozenset({"demo", HASH.hex()}), "vram_bytes": 24 * GIB}
    return Probe(**({"rtt_s": 0.02, "nodes": 3, "free_slots": 2, "room": True} | shown | changes))


def candidate(*listings: Listing) -> Candidate:
    return gather(listings or (mesh("a"),))[0]


def points(found: Listing, shown: Probe, wishes: Wishes = ANYTHING) -> float:
    ranked = score(candidate(found), shown, wishes)
    assert ranked.refusal == ""
    return ranked.score


# --- gathering --------------------------------------------------------------------------------------------------------


def test_publishers_of_one_mesh_are_one_candidate() -> None:
    found = gather([mesh("a", nodes=3, clients=5), mesh("b"), mesh("a", nodes=4, clients=2, region="eu")])
    assert [(each.name, len(each.listings)) for each in found] == [("a", 2), ("b", 1)]
    assert (found[0].nodes, found[0].clients, found[0].region) == (4, 2, "eu")
    assert found[0].mesh == open_mesh_id("a")


def test_publishers_name_entries_in_turn() -> None:
    one = mesh("a", entries=tuple(map(entry, (1, 2, 3, 4))))
    other = mesh("a", entries=tuple(map(entry, (5, 1, 6))))
    assert [each.node[0] for each in candidate(one, other).entries] == [1, 5, 2, 3, 6, 4]
    many = [mesh("a", entries=tuple(entry(10 * n + k) for k in range(4))) for n in range(5)]
    assert len(candidate(*many).entries) == 8


def test_models_are_each_there_once_with_the_most_hosts() -> None:
    one = mesh("a", models=(ListedModel("m", HASH, 1), ListedModel("n")))
    other = mesh("a", models=(ListedModel("m", HASH, 3), ListedModel("m", bytes(16), 1)))
    found = {(model.name, model.hash): model.hosts for model in candidate(one, other).models}
    assert found == {("m", HASH): 3, ("n", b""): 1, ("m", bytes(16)): 1}


def test_full_is_a_mesh_whose_publishers_all_say_so() -> None:
    full, free = mesh("a", clients=8, max_clients=8), mesh("a", clients=7, max_clients=8)
    assert candidate(full).is_full
    assert not candidate(full, free).is_full
    assert not candidate(mesh("a", clients=8)).is_full


# --- the shortlist ----------------------------------------------------------------------------------------------------


def names(found: list[Candidate]) -> list[str]:
    return [each.name for each in found]


def test_the_shortlist_has_at_most_eight_and_the_same_for_any_order() -> None:
    many = [mesh(f"mesh-{number}") for number in range(30)]
    assert names(shortlist(many, Wishes())) == names(shortlist(reversed(many), Wishes()))
    assert len(shortlist(many, Wishes())) == 8


def test_what_is_wished_for_comes_first() -> None:
    many = [mesh(f"mesh-{number}", nodes=1000, models=()) for number in range(30)]
    served = mesh("serves", models=(ListedModel("qwen"),))
    near = mesh("near", models=(), region="EU-West")
    large = mesh("large", models=(), nodes=1)
    large = replace(large, vram_bytes=100 * GIB)
    last = mesh("last", models=())
    wishes = Wishes(models=("qwen",), region="eu-west", last_mesh=last.mesh)
    assert names(shortlist([*many, near, last, served], wishes))[:3] == ["serves", "last", "near"]
    assert names(shortlist([*many, large], Wishes(min_vram_bytes=80 * GIB)))[0] == "large"
    assert names(shortlist([*many, mesh("w", models=(), wanted=("qwen",))], Wishes(offers=("qwen",))))[0] == "w"


def test_full_meshes_and_bad_ones_are_not_asked() -> None:
    full = mesh("full", clients=1, max_clients=1)
    bad = mesh("bad")
    assert names(shortlist([full, bad, mesh("good")], Wishes(), avoid={bad.mesh})) == ["good"]


# --- points -----------------------------------------------------------------------------------------------------------


def test_nearer_is_better() -> None:
    assert (
        points(mesh("a"), probe(rtt_s=0.01)) > points(mesh("a"), probe(rtt_s=0.1)) > points(mesh("a"), probe(rtt_s=1.0))
    )


@pytest.mark.parametrize(
    "better",
    [
        {"free_slots": 4},
        {"nodes": 5},
        {"rtt_s": 0.005},
    ],
    ids=str,
)
def test_more_that_is_shown_is_better(better: dict[str, Any]) -> None:
    assert points(mesh("a"), probe(**better)) > points(mesh("a"), probe())


def test_claims_bring_no_points() -> None:
    """Within what is not yet a lie, a larger claim is worth nothing."""
    modest, proud = mesh("a", nodes=1), replace(mesh("a", nodes=6), vram_bytes=48 * GIB, max_clients=1000)
    assert points(proud, probe()) == points(modest, probe())
    both = mesh("a", models=(ListedModel("demo", HASH), ListedModel("claimed")))
    assert points(both, probe()) == points(mesh("a"), probe())


def test_a_wished_model_outweighs_distance_and_size() -> None:
    wishes = Wishes(models=("demo", "other"))
    far = score(candidate(mesh("a")), probe(rtt_s=1.0, free_slots=0, nodes=1, vram_bytes=12 * GIB), wishes)
    assert far.refusal == "claims more than twice the nodes it shows"
    far = score(candidate(mesh("a", nodes=1)), probe(rtt_s=1.0, free_slots=0, nodes=1), wishes)
    near = score(candidate(mesh("b")), probe(rtt_s=0.001, nodes=100, free_slots=100), Wishes())
    assert far.score > near.score
    assert "serves demo" in far.reasons


def test_the_mesh_of_last_time_is_kept_unless_another_is_much_better() -> None:
    here, there = mesh("here"), mesh("there")
    wishes = Wishes(last_mesh=here.mesh)
    assert points(here, probe(rtt_s=0.1), wishes) > points(there, probe(rtt_s=0.01), wishes)
    assert points(here, probe(rtt_s=0.5, free_slots=0), wishes) < points(
        there, probe(rtt_s=0.005, free_slots=9), wishes
    )


def test_reasons_say_what_counted_most_first() -> None:
    wishes = Wishes(models=("demo",), region="eu-west", offers=("llama",))
    found = score(candidate(mesh("a", region="eu-west", wanted=("llama",))), probe(), wishes)
    assert found.reasons == (
        "serves demo",
        "20 ms away",
        "in eu-west",
        "2 requests could begin now",
        "3 nodes shown",
        "asks for llama",
        "1 model served",
    )


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "shown", "wishes", "refusal"),
    [
        (mesh("a"), None, Wishes(), "nobody answers"),
        (mesh("a"), probe(room=False), Wishes(), "full"),
        (mesh("a"), probe(vram_bytes=11 * GIB), Wishes(), "claims more than twice the memory it shows"),
        (mesh("a", nodes=7), probe(), Wishes(), "claims more than twice the nodes it shows"),
        (
            mesh("a", models=tuple(ListedModel(f"m{n}") for n in range(3))),
            probe(models=frozenset({"m0"})),
            Wishes(),
            "serves less than half of the models it lists",
        ),
        (mesh("a"), probe(), Wishes(min_vram_bytes=25 * GIB), "has less memory than wished for"),
        (mesh("a"), probe(), Wishes(models=("qwen",)), "does not serve the model that is wished for"),
        (
            mesh("a", models=(ListedModel("demo", bytes(16)),)),
            probe(models=frozenset({"demo", HASH.hex()})),
            Wishes(),
            "serves less than half of the models it lists",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mesh_that_is_not_joined(found: Listing, shown: Probe | None, wishes: Wishes, refusal: str) -> None:
    ranked = score(candidate(found), shown, wishes)
    assert (ranked.refusal, ranked.score, ranked.reasons) == (refusal, 0.0, ())


def test_a_large_mesh_need_not_show_all() -> None:
    huge = replace(mesh("a", nodes=5000), vram_bytes=5000 * GIB)
    assert score(candidate(huge), probe(complete=False), Wishes()).refusal == ""


def test_models_are_shown_by_the_hash_where_there_is_one() -> None:
    both = candidate(mesh("a", models=(ListedModel("demo", bytes(16)), ListedModel("named"), ListedModel("x", HASH))))
    assert [model.name for model in shown_models(both, probe(models=frozenset({"demo", "named", HASH.hex()})))] == [
        "named",
        "x",
    ]


def test_a_wish_may_be_a_name_or_a_hash() -> None:
    shown = probe(models=frozenset({HASH.hex()}))
    for wish in ("demo", HASH.hex()):
        assert score(candidate(mesh("a")), shown, Wishes(models=(wish,))).refusal == ""


def test_the_best_comes_first_and_refused_ones_last() -> None:
    near = score(candidate(mesh("near")), probe(rtt_s=0.001), Wishes())
    far = score(candidate(mesh("far")), probe(rtt_s=0.9), Wishes())
    gone = score(candidate(mesh("gone")), None, Wishes())
    for order in itertools.permutations([near, far, gone]):
        assert rank(order) == [near, far, gone]
