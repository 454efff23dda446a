"""When one node acts: its turn, its rests, what it keeps and what it lets go. Whole meshes are in tests/sim."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from meshnode.core.needs import Hosted, Known, NodeView
from meshnode.core.rebalancing import (
    BUSY_AFTER_S,
    COLD_S,
    FAILED_REST_S,
    GAP_S,
    HEAT_REST_S,
    HEAT_S,
    HOT_TIMES_COLDER,
    JITTER_S,
    PERSON_REST_S,
    SETTLE_S,
    TURN_S,
    Decision,
    Holding,
    Nothing,
    Own,
    Promote,
    Rebalancer,
    StepDown,
)

GIB = 1 << 30
QWEN, LLAMA = Known("qwen", "aa", 4 * GIB), Known("llama", "bb", 4 * GIB)
ME = "m"
STEP_S = 1.0


def hosted(model: Known, **more: Any) -> Hosted:
    return Hosted(model.name, content_hash=model.content_hash, size_bytes=model.size_bytes, slots=4, **more)


def node(name: str, *models: Hosted, **more: Any) -> NodeView:
    return NodeView(name, models, **{"room_bytes": 64 * GIB, "weights": frozenset({"aa", "bb"}), **more})


def holding(model: Known, **more: Any) -> Holding:
    facts = {"unasked": True, "ready": True, "idle_s": 0.0, "held_s": 5000.0, **more}
    return Holding(model.name, **facts)


class Stage:
    """One node in a view that the test changes; `after` lets time go by until it decides something, or not."""

    def __init__(self, *others: NodeView, asks: dict[str, float] | None = None, **own: Any) -> None:
        self.rebalancer = Rebalancer(random.Random(1))
        self.now = 500.0
        self.gateway = NodeView("gateway", asks=asks if asks is not None else {"qwen": 6.0})
        self.others = list(others)
        self.me = node(ME)
        self.own: dict[str, Any] = {"disk": (QWEN, LLAMA), "holdings": (), "fits": lambda model, without: True, **own}

    def decide(self) -> Decision:
        return self.rebalancer.decide([self.gateway, self.me, *self.others], Own(ME, **self.own), self.now)

    def until_decided(self, limit_s: float = 200.0) -> tuple[Decision, float]:
        """The next change and the seconds until then, or Nothing after the limit."""
        began = self.now
        while True:
            decision = self.decide()
            if not isinstance(decision, Nothing) or self.now - began >= limit_s:
                return decision, self.now - began
            self.now += STEP_S

    def holds(self, *holdings: Holding, models: Sequence[Known] = (QWEN, LLAMA)) -> None:
        names = {model.name: model for model in models}
        self.own["holdings"] = holdings
        self.me = node(ME, *(hosted(names[held.name], ready=held.ready) for held in holdings))


# --- taking on ------------------------------------------------------------------------------------------------


def test_the_first_in_line_acts_once_the_need_has_lasted() -> None:
    decision, after_s = Stage(node("z")).until_decided()
    assert isinstance(decision, Promote)
    assert (decision.model, decision.on_disk) == (QWEN, True)
    assert "6.0 requests a minute" in decision.reason
    assert SETTLE_S <= after_s <= SETTLE_S + JITTER_S + STEP_S


@pytest.mark.parametrize("before", [1, 2, 3])
def test_each_node_before_it_costs_a_turn(before: int) -> None:
    decision, after_s = Stage(*(node(f"a{at}") for at in range(before))).until_decided()
    assert isinstance(decision, Promote)
    least = SETTLE_S + before * TURN_S
    assert least <= after_s <= least + JITTER_S + STEP_S
    assert after_s < 60 - 10, "with three idle nodes before it a model still has a host within a minute"


def test_it_does_nothing_once_another_has_acted() -> None:
    stage = Stage(node("a"))
    stage.until_decided(limit_s=SETTLE_S + 4)
    stage.others = [node("a", hosted(QWEN, ready=False))]
    decision, _ = stage.until_decided()
    assert decision == Nothing("nothing is lacking")


def test_who_moves_up_waits_for_a_turn() -> None:
    """The first may have gone to act, and whoever was third has moved up as well."""
    stage = Stage(node("a"), node("b"))
    stage.until_decided(limit_s=SETTLE_S + 4)
    stage.others = []
    decision, after_s = stage.until_decided()
    assert isinstance(decision, Promote)
    assert TURN_S <= after_s <= TURN_S + STEP_S


def test_a_need_that_went_away_is_another_one_when_it_is_back() -> None:
    for gap_s, waits in ((GAP_S - 2, False), (GAP_S + 2, True)):
        stage = Stage(node("z"))
        assert isinstance(stage.until_decided(limit_s=SETTLE_S - 2)[0], Nothing)
        asks, stage.gateway = stage.gateway, NodeView("gateway")
        stage.until_decided(limit_s=gap_s)
        stage.gateway = asks
        decision, after_s = stage.until_decided()
        assert isinstance(decision, Promote)
        assert (after_s >= SETTLE_S) is waits


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"fits": lambda model, without: False}, "does not fit"),
        ({"disk": (LLAMA,)}, "nothing is lacking"),
        ({"holdings": (holding(LLAMA, unasked=False),)}, "a person asked for"),
    ],
)
def test_what_keeps_a_node_from_acting(own: dict[str, Any], words: str) -> None:
    decision, _ = Stage(**own).until_decided()
    assert isinstance(decision, Nothing) and words in decision.reason


def test_a_model_that_is_not_here_is_fetched_where_peers_share_it() -> None:
    """It was seen at a host that is gone now."""
    for may_fetch, shared, acts in ((True, True, True), (True, False, False), (False, True, False)):
        stage = Stage(disk=(), may_fetch=may_fetch)
        stage.me = node(ME, weights=frozenset())
        stage.others = [node("a", hosted(QWEN), weights=frozenset())]
        stage.decide()
        held = frozenset({"aa"}) if shared else frozenset()
        stage.others = [node("a", hosted(LLAMA), weights=held, room_bytes=0)]
        decision, _ = stage.until_decided()
        assert isinstance(decision, Promote) is acts
        if isinstance(decision, Promote):
            assert (decision.model.content_hash, decision.on_disk) == ("aa", False)


def test_what_could_not_be_loaded_is_left_to_others_for_a_while() -> None:
    stage = Stage()
    assert isinstance(stage.until_decided()[0], Promote)
    stage.rebalancer.failed("qwen", stage.now)
    decision, after_s = stage.until_decided(limit_s=2 * FAILED_REST_S)
    assert isinstance(decision, Promote)
    assert 0.7 * FAILED_REST_S < after_s < 1.3 * FAILED_REST_S


def test_another_model_is_tried_at_once_after_a_failure() -> None:
    stage = Stage(asks={"qwen": 6.0, "llama": 3.0})
    first, _ = stage.until_decided()
    assert isinstance(first, Promote)
    stage.rebalancer.failed(first.model.name, stage.now)
    second, after_s = stage.until_decided()
    assert isinstance(second, Promote) and second.model == LLAMA and after_s <= STEP_S


def test_what_a_person_unloaded_stays_away() -> None:
    stage = Stage()
    stage.until_decided()
    stage.rebalancer.unloaded_by_person("qwen", stage.now)
    assert isinstance(stage.until_decided(limit_s=PERSON_REST_S - 10)[0], Nothing)
    assert isinstance(stage.until_decided()[0], Promote)


# --- heat -----------------------------------------------------------------------------------------------------


def test_heat_must_last_and_a_new_host_stills_it_for_a_while() -> None:
    full = hosted(QWEN, busy=4, waiting=9)
    stage = Stage(node("h", full))
    decision, after_s = stage.until_decided()
    assert isinstance(decision, Promote) and "9 requests wait" in decision.reason
    assert HEAT_S <= after_s <= HEAT_S + JITTER_S + STEP_S
    other = Stage(node("h", full), node("i", hosted(QWEN, ready=False)))
    assert isinstance(other.until_decided()[0], Nothing), "one is on the way"
    other.others[1] = node("i", full)
    decision, after_s = other.until_decided()
    assert isinstance(decision, Promote)
    assert after_s >= HEAT_REST_S


def test_a_burst_is_no_heat() -> None:
    stage = Stage()
    for _ in range(20):
        stage.others = [node("h", hosted(QWEN, busy=4, waiting=9))]
        assert isinstance(stage.until_decided(limit_s=HEAT_S - 3)[0], Nothing)
        stage.others = [node("h", hosted(QWEN, busy=2))]
        assert isinstance(stage.until_decided(limit_s=GAP_S + 2)[0], Nothing)


# --- two at once ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "ready", "yields"), [("a", False, True), ("z", False, False), ("z", True, True), ("a", True, True)]
)
def test_of_two_that_acted_at_once_one_gives_way(other: str, ready: bool, yields: bool) -> None:
    stage = Stage()
    assert isinstance(stage.until_decided()[0], Promote)
    stage.holds(holding(QWEN, ready=False, held_s=1.0))
    assert isinstance(stage.decide(), Nothing)
    stage.others = [node(other, hosted(QWEN, ready=ready))]
    decision = stage.decide()
    assert isinstance(decision, StepDown) is yields


def test_who_is_ready_stays_and_hosts_that_were_there_before_do_not_count() -> None:
    full = node("a", hosted(QWEN, busy=4, waiting=9))
    stage = Stage(full)
    assert isinstance(stage.until_decided()[0], Promote)
    stage.holds(holding(QWEN, ready=False))
    assert isinstance(stage.decide(), Nothing), "this one was hot, which is why another was needed"
    stage.holds(holding(QWEN))
    stage.others.append(node("b", hosted(QWEN)))
    assert isinstance(stage.until_decided()[0], Nothing)


# --- letting go -----------------------------------------------------------------------------------------------


def busy_stage(**held: Any) -> Stage:
    stage = Stage()
    stage.holds(holding(LLAMA, **held))
    return stage


def test_a_cold_model_makes_room_and_what_is_wanted_follows_at_once() -> None:
    stage = busy_stage(idle_s=COLD_S)
    decision, after_s = stage.until_decided()
    assert isinstance(decision, StepDown) and decision.name == "llama"
    assert "for 10 minutes" in decision.reason and "qwen is wanted" in decision.reason
    assert after_s >= SETTLE_S + BUSY_AFTER_S
    stage.holds()
    stage.now += STEP_S
    decision = stage.decide()
    assert isinstance(decision, Promote) and decision.model == QWEN


@pytest.mark.parametrize(
    "held", [{"idle_s": COLD_S - 100}, {"idle_s": COLD_S, "held_s": 10.0}, {"idle_s": COLD_S, "unasked": False}]
)
def test_what_is_used_or_new_or_wanted_by_a_person_stays(held: dict[str, Any]) -> None:
    assert isinstance(busy_stage(**held).until_decided()[0], Nothing)


def test_nothing_is_let_go_for_nothing() -> None:
    stage = busy_stage(idle_s=100 * COLD_S)
    stage.gateway = NodeView("gateway")
    assert stage.until_decided()[0] == Nothing("nothing is lacking")
    stage.gateway = NodeView("gateway", asks={"qwen": 6.0})
    stage.own["fits"] = lambda model, without: False
    assert isinstance(stage.until_decided()[0], Nothing), "it would not fit even then"


def test_a_free_node_that_has_just_come_goes_first() -> None:
    stage = busy_stage(idle_s=COLD_S)
    stage.until_decided(limit_s=SETTLE_S + BUSY_AFTER_S - 5)
    stage.others = [node("a")]
    _, after_s = stage.until_decided()
    assert after_s >= BUSY_AFTER_S


def test_a_hot_model_is_worth_less_than_an_unserved_one() -> None:
    stage = busy_stage(idle_s=2 * COLD_S)
    stage.others = [node("h", hosted(QWEN, busy=4, waiting=9))]
    assert isinstance(stage.until_decided()[0], Nothing)
    stage.holds(holding(LLAMA, idle_s=HOT_TIMES_COLDER * COLD_S))
    assert isinstance(stage.until_decided()[0], StepDown)


def test_a_host_too_many_goes_although_it_is_used_a_little() -> None:
    for others, goes in (
        ([node("h", hosted(LLAMA))], True),
        ([node("h", hosted(LLAMA, ready=False))], False),
        ([], False),
    ):
        stage = busy_stage(idle_s=1.0)
        stage.others = others
        stage.gateway = NodeView("gateway", asks={"qwen": 6.0, "llama": 2.0})
        assert isinstance(stage.until_decided()[0], StepDown) is goes


def test_of_several_the_coldest_goes() -> None:
    stage = busy_stage()
    gemma = Known("gemma", "cc", GIB)
    stage.holds(holding(LLAMA, idle_s=COLD_S + 1), holding(gemma, idle_s=COLD_S + 9), models=(QWEN, LLAMA, gemma))
    decision, _ = stage.until_decided()
    assert isinstance(decision, StepDown) and decision.name == "gemma"


def test_while_something_is_loaded_nothing_else_is_begun() -> None:
    stage = busy_stage(idle_s=COLD_S, ready=False)
    assert stage.until_decided()[0] == Nothing("a model is being loaded")


def test_a_hostile_view_costs_memory_only_so_far() -> None:
    stage = Stage()
    for turn in range(30):
        names = [Known(f"m{turn}-{at}", f"{turn:02x}{at:02x}", 1) for at in range(16)]
        stage.others = [node("a", *(hosted(name) for name in names))]
        stage.decide()
        stage.now += 60
    assert len(stage.rebalancer._seen) <= 256 and len(stage.rebalancer._watched) <= 256
