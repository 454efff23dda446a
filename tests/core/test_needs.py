"""What a mesh lacks and who should serve it: a function of the view alone, the same at every node."""

from __future__ import annotations

import random
from typing import Any

import pytest

from meshnode.core.needs import (
    HOT_PER_MINUTE,
    WANTED_PER_MINUTE,
    Hosted,
    Known,
    Need,
    NodeView,
    Survey,
    ranking,
)
from meshnode.wire.statements import Coordinate

GIB = 1 << 30
QWEN = Known("qwen", "aa", 4 * GIB, ("Qwen/Qwen3:Q4",))
LLAMA = Known("llama", "bb", 4 * GIB)
GEMMA = Known("gemma", "cc", 4 * GIB)
ALL = (QWEN, LLAMA, GEMMA)


def host(model: Known = QWEN, **more: Any) -> Hosted:
    facts: dict[str, Any] = {"slots": 4, "tokens_per_s": 40.0, **more}
    return Hosted(facts.pop("name", model.name), content_hash=facts.pop("content_hash", model.content_hash), **facts)


def node(name: str, *hosted: Hosted, **more: Any) -> NodeView:
    return NodeView(name, hosted, **{"room_bytes": 64 * GIB, **more})


def asking(**rates: float) -> NodeView:
    return node("gateway", asks=rates)


def place(x_ms: int) -> Coordinate:
    return Coordinate((x_ms * 1000, 0, 0, 0), 100, 100)


def needs(*view: NodeView, known: tuple[Known, ...] = ALL) -> list[tuple[str, str]]:
    return [(need.model.name, need.kind) for need in Survey(view, known).needs()]


# --- needs ----------------------------------------------------------------------------------------------------


def test_what_is_asked_for_and_served_by_nobody_is_needed() -> None:
    assert needs(asking(qwen=1.0)) == [("qwen", "unserved")]
    assert needs(asking(qwen=WANTED_PER_MINUTE / 2)) == []
    assert needs(asking(qwen=WANTED_PER_MINUTE / 2), node("b", asks={"qwen": WANTED_PER_MINUTE / 2})) != [], "summed"
    assert needs(asking(unheard_of=9.0)) == [], "nothing can be done for what nobody knows"
    assert needs() == []


@pytest.mark.parametrize("name", ["qwen", "QWEN", "Qwen/Qwen3:Q4", "qwen/qwen3:q4"])
def test_callers_may_use_any_of_its_names(name: str) -> None:
    assert needs(asking(**{name: 1.0})) == [("qwen", "unserved")]


@pytest.mark.parametrize(
    "server",
    [
        node("b", host()),
        node("b", host(ready=False)),
        node("b", host(name="file:other", content_hash="aa")),
        node("b", host(content_hash="")),
        node("b", host(content_hash="zz")),
        node("b", claims=frozenset({"aa"})),
    ],
    ids=["ready", "loading", "by another name", "hash unknown", "another quantisation", "a split"],
)
def test_a_model_with_a_host_or_one_on_the_way_is_not_needed(server: NodeView) -> None:
    assert needs(asking(qwen=1.0), server) == []


def test_the_unserved_come_first_and_then_the_most_wanted() -> None:
    busy = node("b", host(GEMMA, busy=4, waiting=4))
    assert needs(asking(qwen=1.0, llama=2.0, gemma=50.0), busy) == [
        ("llama", "unserved"),
        ("qwen", "unserved"),
        ("gemma", "hot"),
    ]


# One host writes 4 x 40 tokens a second, which is 37.5 answers of 256 tokens a minute.


@pytest.mark.parametrize(
    ("per_minute", "hosts", "hot"),
    [
        (18, 1, False),
        (19, 1, True),
        (19, 2, False),
        (40, 2, True),
        (57, 3, True),
        (57, 4, False),
    ],
)
def test_a_model_is_hot_from_half_of_what_its_hosts_can_do(per_minute: float, hosts: int, hot: bool) -> None:
    view = [asking(qwen=per_minute), *(node(f"n{index}", host()) for index in range(hosts))]
    assert needs(*view) == ([("qwen", "hot")] if hot else [])


def test_few_requests_are_no_heat_however_slow_the_host() -> None:
    slow = node("b", host(slots=1, tokens_per_s=1.0))
    assert needs(asking(qwen=HOT_PER_MINUTE - 0.1), slow) == []
    assert needs(asking(qwen=HOT_PER_MINUTE), slow) == [("qwen", "hot")]


def test_heat_is_judged_against_the_least_used_model() -> None:
    def view(llama: float) -> list[NodeView]:
        return [asking(qwen=30.0, llama=llama), node("b", host()), node("c", host(LLAMA))]

    assert needs(*view(9.0)) == [("qwen", "hot")]
    assert needs(*view(11.0)) == [], "both are used: another host helps the one as much as the other"


@pytest.mark.parametrize(
    ("busy", "waiting", "hot"), [(4, 2, True), (4, 1, False), (3, 9, False), (4, 0, False), (1, 1, False)]
)
def test_requests_that_wait_before_full_hosts_are_heat(busy: int, waiting: int, hot: bool) -> None:
    server = node("b", host(busy=busy, waiting=waiting))
    assert needs(asking(qwen=0.5), server) == ([("qwen", "hot")] if hot else [])


def test_while_another_host_comes_up_there_is_no_heat() -> None:
    full = node("b", host(busy=4, waiting=9))
    assert needs(asking(qwen=50.0), full) == [("qwen", "hot")]
    assert needs(asking(qwen=50.0), full, node("c", host(ready=False))) == []


def test_what_would_be_left_without_a_node() -> None:
    survey = Survey([asking(qwen=37.5), node("b", host()), node("c", host())], ALL)
    assert survey.use_without("qwen", "b") == pytest.approx(1.0)
    assert survey.use_without("qwen", "gateway") == pytest.approx(0.5)
    assert (
        Survey([asking(qwen=1.0), node("b", host()), node("c", host(ready=False))], ALL).use_without("qwen", "b")
        is None
    )
    assert Survey([node("b", host(slots=0, tokens_per_s=None))], ALL).use_without("qwen", "c") == 0.0


def test_the_view_in_any_order_gives_the_same() -> None:
    chance = random.Random(5)
    view = [
        asking(qwen=300.0, llama=3.0),
        *(node(f"n{at}", host(), place=place(at), asks={"qwen": at}) for at in range(9)),
    ]
    view += [node(f"s{at}", weights=frozenset({"aa"} if at % 2 else {"bb"}), place=place(7 * at)) for at in range(9)]
    wanted = [(need, ranking(need, Survey(view, ALL))) for need in Survey(view, ALL).needs()]
    assert len(wanted) == 2
    for _ in range(10):
        chance.shuffle(view)
        survey = Survey(view, chance.sample(ALL, 3))
        found = [(need, ranking(need, survey)) for need in survey.needs()]
        assert [(need.model, need.kind, ranks) for need, ranks in found] == [
            (need.model, need.kind, ranks) for need, ranks in wanted
        ]


# --- who ------------------------------------------------------------------------------------------------------


def ranks(*view: NodeView, busy: bool = False) -> list[str]:
    need = Need(QWEN, "unserved", 1.0, "")
    return ranking(need, Survey(view, ALL), busy=busy)


HAS = {"weights": frozenset({"aa"})}


def test_the_weights_come_before_the_way_and_the_way_before_the_number() -> None:
    view = [
        node("gateway", asks={"qwen": 1.0}, place=place(0), room_bytes=0),
        node("a", place=place(0)),
        node("b", place=place(400), **HAS),
        node("c", place=place(10), **HAS),
        node("d", place=place(5), **HAS),
        node("e"),
    ]
    assert ranks(*view) == ["c", "d", "b", "a", "e"], "a few milliseconds make no difference"


def test_it_is_near_to_those_who_ask_for_it() -> None:
    view = [
        node("west", asks={"qwen": 9.0, "llama": 1.0}, place=place(0), room_bytes=0),
        node("east", asks={"qwen": 1.0, "llama": 99.0}, place=place(300), room_bytes=0),
        node("a", place=place(300), **HAS),
        node("z", place=place(0), **HAS),
    ]
    assert ranks(*view) == ["z", "a"]


def test_only_free_nodes_with_room_are_asked_at_first() -> None:
    view = [
        node("a", room_bytes=4 * GIB, **HAS),
        node("b", host(LLAMA), **HAS),
        node("c", host(), **HAS),
        node("d", claims=frozenset({"bb"}), **HAS),
        node("e", room_bytes=5 * GIB),
    ]
    assert ranks(*view) == ["e"], "4 GiB of weights do not fit into 4 GiB"
    assert ranks(*view, busy=True) == ["b", "d"]
    assert ranks(*view[:4]) == ["a"], "where nobody has room alone, somebody may host a split"
