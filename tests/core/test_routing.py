"""The figures in the tables are worked out by hand from the formula at the top of the module."""

import random
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.core.prices import FREE, Price
from meshnode.core.radius import RADII, reaches
from meshnode.core.routing import HostView, Ranked, Router, Wanted, choose_model

# 100 tokens/s to write and 1000 to read: an answer of 256 tokens takes 2.56 s, a prompt of 500 takes 0.5 s.
REMOTE = HostView("a", rtt_s=0.02, slots=2, context_length=8192, tokens_per_s=100.0, prompt_tokens_per_s=1000.0)
HERE = replace(REMOTE, node="h", here=True)
WANTED = Wanted("m", prompt_tokens=500)


def host(node: str, **changes: Any) -> HostView:
    return replace(REMOTE, node=node, **changes)


def router(seed: int = 1) -> Router:
    return Router(random.Random(seed))


def order(ranked: list[Ranked]) -> str:
    """The nodes that are offered, best first; nodes have names of one letter."""
    offered = [entry.node for entry in ranked if entry.predicted_s is not None]
    assert all(entry.predicted_s is None for entry in ranked[len(offered) :]), "skipped ones stand last"
    return "".join(offered)


def rank(*hosts: HostView, wanted: Wanted = WANTED, now: float = 0.0, by: Router | None = None) -> str:
    return order((by or router()).rank(wanted, hosts, now))


# --- the prediction -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("view", "predicted_s", "reason"),
    [
        (REMOTE, 0.02 + 0.5, "20 ms away"),
        (HERE, 0.5, "here"),
        (host("a", busy=1), 0.02 + 0.5, "20 ms away"),
        # Both slots taken: the first of two comes free after half an answer.
        (host("a", busy=2), 0.02 + 0.5 + 1.28, "20 ms away, a slot in about 1.3 s"),
        (host("a", busy=2, waiting=3), 0.02 + 0.5 + 4 * 1.28, "20 ms away, a slot in about 5.1 s"),
        (host("a", slots=8, busy=8, waiting=7), 0.02 + 0.5 + 2.56, "20 ms away, a slot in about 2.6 s"),
        (host("a", prompt_tokens_per_s=None), 0.02 + 500 / 2000, "20 ms away"),
        (host("a", prompt_tokens_per_s=None, tokens_per_s=None), 0.02 + 500 / 400, "20 ms away"),
        (host("a", rtt_s=None), 0.1 + 0.5, "100 ms away"),
        (host("a", slots=0, tokens_per_s=0.0, prompt_tokens_per_s=0.0), 0.02 + 500 / 400, "20 ms away"),
    ],
)
def test_predictions(view: HostView, predicted_s: float, reason: str) -> None:
    assert router().rank(WANTED, [view], 0.0) == [Ranked(view.node, pytest.approx(predicted_s), reason)]


def test_what_a_host_still_holds_need_not_be_read_again() -> None:
    by = router()
    by.succeeded("b", "m", (1, 2), 0.0, prompt_tokens=400)
    again = replace(WANTED, prefix=(1, 2, 3, 4))
    ranked = by.rank(again, [host("a"), host("b")], 10.0)
    assert ranked == [
        Ranked("b", pytest.approx(0.02 + 0.1), "20 ms away, holds 400 of 500 tokens"),
        Ranked("a", pytest.approx(0.02 + 0.5), "20 ms away"),
    ]


def test_a_conversation_leaves_a_host_where_it_would_wait_longer_than_reading_takes() -> None:
    by = router()
    by.succeeded("b", "m", (1, 2), 0.0, prompt_tokens=400)
    again = replace(WANTED, prefix=(1, 2, 3, 4))
    assert rank(host("a"), host("b", busy=2), wanted=again, now=10.0, by=by) == "ab"


# --- the order ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hosts", "best"),
    [
        # 0.5 s here against 0.02 + 0.5: here.
        ([HERE, host("a")], "h"),
        # With a free slot here, another must be faster by half and by 0.25 s: 0.27 is not, 0.22 is.
        ([HERE, host("a", prompt_tokens_per_s=2000.0)], "h"),
        ([HERE, host("a", prompt_tokens_per_s=2500.0)], "a"),
        # 1.78 s here with no slot free and 0.25 s for the company, 10 % off: 1.85 loses to 0.52, not to 1.90.
        ([replace(HERE, busy=2), host("a")], "a"),
        ([replace(HERE, busy=2), host("a", prompt_tokens_per_s=266.0)], "h"),
        ([host("a", rtt_s=0.2), host("b", rtt_s=0.01)], "b"),
        ([host("a", busy=2), host("b", rtt_s=0.5)], "b"),
    ],
)
def test_the_best_host(hosts: list[HostView], best: str) -> None:
    assert rank(*hosts)[0] == best
    assert rank(*reversed(hosts))[0] == best


def test_the_rest_follow_by_prediction() -> None:
    hosts = [host("a", rtt_s=0.4), host("b", rtt_s=0.2), HERE, host("c", busy=2)]
    assert rank(*hosts) == "hbac"


def test_here_does_not_flap_while_another_is_about_as_fast() -> None:
    """The remote speed wanders by 40 % about that of here."""
    source = random.Random(5)
    by = router()
    for number in range(200):
        speed = 1000 * source.uniform(0.6, 1.4)
        assert rank(HERE, host("a", prompt_tokens_per_s=speed), now=float(number), by=by)[0] == "h"


def test_equal_hosts_share_the_requests_of_many_gateways() -> None:
    """Each gateway sees the same gossip and decides for itself."""
    hosts = [host(node, rtt_s=0.02 + number / 1000) for number, node in enumerate("abcdefgh")]
    chosen = Counter(rank(*hosts, by=router(seed))[0] for seed in range(400))
    assert set(chosen) == set("abcdefgh")
    assert max(chosen.values()) < 100  # 50 each, if it were exact


def test_of_two_that_are_drawn_the_less_busy_goes_first() -> None:
    hosts = [host("a", slots=4, busy=3), host("b", slots=4, busy=0)]
    assert {rank(*hosts, by=router(seed)) for seed in range(50)} == {"ba"}


def test_a_short_conversation_stays_with_its_host_among_equals() -> None:
    wanted = Wanted("m", prompt_tokens=8, prefix=(1, 2))
    for seed in range(50):
        by = router(seed)
        by.succeeded("c", "m", (1,), 0.0)
        assert rank(host("a"), host("b"), host("c"), wanted=wanted, by=by)[0] == "c"


def test_many_that_begin_alike_do_not_all_follow_the_first() -> None:
    """Forty requests with one prompt to two hosts with forty slots each, before gossip tells of any."""
    by = router()
    hosts = [host("a", slots=40), host("b", slots=40)]
    wanted = Wanted("m", prompt_tokens=20, prefix=(1,))
    chosen: Counter[str] = Counter()
    for _ in range(40):
        best = rank(*hosts, wanted=wanted, by=by)[0]
        by.started(best, "m")
        by.succeeded(best, "m", (1,), 0.0)
        chosen[best] += 1
    assert min(chosen.values()) >= 12


@pytest.mark.parametrize(("busy", "best"), [(4, "ab"), (14, "ba")])
def test_company_outweighs_a_little_distance(busy: int, best: str) -> None:
    """Against 50 ms more of way: 4 of 40 slots count 25 ms, 14 of 40 count 87.5 ms."""
    hosts = [host("a", slots=40, busy=busy), host("b", slots=40, rtt_s=0.07)]
    assert rank(*hosts, wanted=Wanted("m")) == best


# --- who is left out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("view", "reason"),
    [
        (host("b", state="loading"), "loading"),
        (host("b", state="failed"), "failed"),
        (host("b", capabilities=("completion", "chat")), "cannot do tools"),
        (host("b", capabilities=("embedding",)), "cannot do completion, tools"),
        (host("b", context_length=512), "about 500 tokens do not fit into its context of 512"),
    ],
)
def test_reasons_for_leaving_a_host_out(view: HostView, reason: str) -> None:
    wanted = replace(WANTED, needs=frozenset({"tools", "completion"}))
    fit = host("a", capabilities=("completion", "chat", "tools"))
    assert router().rank(wanted, [view, fit], 0.0)[1:] == [Ranked("b", None, reason)]


def test_what_is_not_known_excludes_nobody() -> None:
    assert rank(host("a", context_length=0), wanted=replace(WANTED, needs=frozenset({"tools"}))) == "a"


def test_when_the_prompt_seems_too_long_for_all_the_roomiest_decides() -> None:
    wanted = replace(WANTED, prompt_tokens=9000)
    assert rank(host("a", context_length=2048), host("b"), host("c", context_length=4096), wanted=wanted) == "b"
    assert rank(host("a", state="loading"), host("b", state="restarting")) == ""
    assert rank() == ""


# --- how far a request may go -----------------------------------------------------------------------------------------

LOCAL, TRUSTED, PUBLIC = (host(node, radius=radius) for node, radius in zip("ltp", RADII, strict=True))
FAR = replace(WANTED, radius="public")


@pytest.mark.parametrize(("radius", "offered"), [("local", "l"), ("trusted", "lt"), ("public", "ltp")])
def test_near_ones_first_and_none_beyond(radius: Any, offered: str) -> None:
    ranked = router().rank(replace(WANTED, radius=radius), [PUBLIC, TRUSTED, LOCAL], 0.0)
    assert order(ranked) == offered
    reasons = {entry.node: entry.reason for entry in ranked if entry.predicted_s is None}
    assert set(reasons) == set("ltp") - set(offered)
    assert all(reason.endswith(f"may go no further than {radius}") for reason in reasons.values())


def test_a_request_that_says_nothing_goes_to_no_stranger() -> None:
    assert rank(PUBLIC) == "" and rank(PUBLIC, TRUSTED) == "t"


def test_a_machine_of_the_owner_with_a_free_slot_goes_before_a_faster_friend() -> None:
    slow = replace(HERE, prompt_tokens_per_s=10.0, radius="local")
    assert rank(slow, TRUSTED) == "ht"
    assert rank(replace(slow, busy=1), TRUSTED) == "ht"


def test_without_a_free_slot_it_shares_with_friends_by_the_prediction() -> None:
    assert rank(replace(LOCAL, busy=2), TRUSTED) == "tl"
    assert rank(replace(LOCAL, busy=2), replace(TRUSTED, busy=2, waiting=9)) == "lt"
    # one of two has a slot: both come first, in their own order
    assert rank(replace(LOCAL, busy=2), host("m", rtt_s=4.0, radius="local"), TRUSTED) == "lmt"


def test_equals_are_drawn_from_one_radius_only() -> None:
    busy = [host(node, radius=radius, busy=2) for node, radius in (("a", "local"), ("b", "trusted"), ("c", "public"))]
    firsts = Counter(rank(*busy, wanted=FAR, by=router(seed))[0] for seed in range(60))
    assert set(firsts) == {"a"}  # by cost the first; nobody else of its radius to draw from


@pytest.mark.parametrize(
    ("near", "offered"),
    [
        # However long the wait and the way: whoever can is asked.
        ([replace(LOCAL, busy=2, waiting=60_000)], "lp"),
        ([host("t", radius="trusted", rtt_s=9.0, tokens_per_s=0.1, prompt_tokens_per_s=0.1)], "tp"),
        # None.
        ([], "p"),
        # Not ready, not able.
        ([replace(LOCAL, state="loading"), replace(TRUSTED, state="failed")], "p"),
        ([replace(LOCAL, capabilities=("embedding",))], "p"),
        # Too little context for each: the one that is large enough is further away.
        ([replace(LOCAL, context_length=512), replace(TRUSTED, context_length=256)], "p"),
        # Enough for one of them.
        ([replace(LOCAL, context_length=512), TRUSTED], "tp"),
    ],
)
def test_strangers_come_only_where_the_nearer_ones_cannot(near: list[HostView], offered: str) -> None:
    wanted = replace(FAR, needs=frozenset({"completion"}))
    assert rank(PUBLIC, *near, wanted=wanted) == offered


def test_strangers_come_before_the_least_bad_of_the_nearer_ones_that_cool_down() -> None:
    by = router()
    by.failed("l", "m", 10.0)
    assert rank(LOCAL, TRUSTED, PUBLIC, wanted=FAR, now=10.1, by=by) == "tpl"
    by.failed("t", "m", 10.05)
    assert rank(LOCAL, TRUSTED, PUBLIC, wanted=FAR, now=10.1, by=by) == "pl"
    by.failed("p", "m", 9.8)  # its pause ends first, and yet a nearer one is tried
    assert rank(LOCAL, TRUSTED, PUBLIC, wanted=FAR, now=10.1, by=by) == "l"
    assert rank(LOCAL, TRUSTED, PUBLIC, now=10.1, by=by) == "l"


def test_failures_do_not_widen_what_a_request_may_reach() -> None:
    by = router()
    for _ in range(20):
        by.failed("t", "m", 10.0)
    assert rank(TRUSTED, PUBLIC, now=10.0, by=by) == "t"


def test_when_the_prompt_seems_too_long_for_all_a_nearer_one_decides() -> None:
    wanted = replace(FAR, prompt_tokens=90_000)
    assert rank(PUBLIC, replace(TRUSTED, context_length=2048), replace(LOCAL, context_length=512), wanted=wanted) == "t"
    assert rank(PUBLIC, host("q", radius="public", context_length=512), wanted=wanted) == "p"


@pytest.mark.parametrize("radius", ["", "PUBLIC", "everyone"])
def test_a_host_of_no_known_radius_gets_nothing(radius: str) -> None:
    assert rank(replace(PUBLIC, radius=radius), wanted=FAR) == ""


# --- what became of earlier requests --------------------------------------------------------------------------------


def test_a_host_that_failed_goes_last_until_its_pause_is_over() -> None:
    by = router()
    hosts = [host("a"), host("b", rtt_s=0.5), host("c", rtt_s=0.7)]
    by.failed("a", "m", 10.0)
    assert by.rank(WANTED, hosts, 10.5)[2] == Ranked("a", pytest.approx(0.52), "1 failure, left alone for 0.5 s")
    assert rank(*hosts, now=11.0, by=by) == "abc"


def test_one_trial_after_the_pause_then_all_again() -> None:
    by = router()
    hosts = [host("a"), host("b", rtt_s=0.5)]
    by.failed("a", "m", 10.0)
    by.started("a", "m")
    assert rank(*hosts, now=11.0, by=by) == "ba"
    by.succeeded("a", "m", (), 11.2)
    assert rank(*hosts, now=11.2, by=by) == "ab"


def test_when_all_are_cooling_down_the_least_bad_is_offered() -> None:
    by = router()
    by.failed("b", "m", 10.0)
    by.failed("a", "m", 10.4)
    by.failed("b", "m", 11.0)  # a second time: two seconds
    ranked = by.rank(WANTED, [host("a"), host("b")], 11.1)
    assert [(entry.node, entry.predicted_s is None) for entry in ranked] == [("a", False), ("b", True)]
    assert ranked[1].reason == "2 failures, left alone for 1.9 s"


def test_a_host_that_cools_down_does_not_take_too_long_prompts_either() -> None:
    by = router()
    by.failed("a", "m", 10.0)
    hosts = [host("a"), host("b", context_length=512)]
    assert rank(*hosts, now=10.1, by=by) == "a"


def test_own_requests_count_before_gossip_tells_of_them() -> None:
    by = router()
    hosts = [host("a"), host("b", rtt_s=0.3)]
    chosen = ""
    for _ in range(6):
        best = rank(*hosts, by=by)[0]
        by.started(best, "m")
        chosen += best
    assert chosen == "aabbab"  # two slots each; then the lines grow side by side
    for node in "aab":
        by.ended(node, "m")
    assert rank(*hosts, by=by) == "ab"


def test_the_numbers_of_our_own_queue_are_exact() -> None:
    """Two slots here, taken by peers; none of ours ran. And a request that has not yet come to its queue counts."""
    by = router()
    assert rank(replace(HERE, busy=2), host("a"), by=by) == "ah"
    for _ in range(2):
        by.started("h", "m")
    assert rank(HERE, host("a"), by=by) == "ah"
    for _ in range(2):
        by.ended("h", "m")
    assert rank(HERE, host("a"), by=by) == "ha"


def test_an_end_without_a_beginning_is_our_own_fault() -> None:
    with pytest.raises(ValueError, match="never started"):
        router().ended("a", "m")


def test_models_do_not_share_their_troubles() -> None:
    by = router()
    by.failed("a", "m", 0.0)
    for _ in range(4):
        by.started("a", "m")
    assert rank(host("a"), host("b", rtt_s=0.5), wanted=replace(WANTED, model="other"), by=by) == "ab"


VIEWS = st.builds(
    HostView,
    node=st.sampled_from("abcdefgh"),
    here=st.booleans(),
    rtt_s=st.none() | st.floats(0, 5),
    slots=st.integers(0, 64),
    busy=st.integers(0, 65535),
    waiting=st.integers(0, 2**32),
    context_length=st.integers(0, 2**32),
    tokens_per_s=st.none() | st.floats(0, 1e6),
    prompt_tokens_per_s=st.none() | st.floats(0, 1e6),
    capabilities=st.sets(st.sampled_from(["completion", "chat", "tools"])),
    state=st.sampled_from(["ready", "loading", "restarting", "failed"]),
    radius=st.sampled_from(["local", "trusted", "public"]),
)
RADIUS = st.sampled_from(["local", "trusted", "public"])
FAILURES = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.floats(0, 60)), max_size=8)


@settings(max_examples=150)
@given(st.lists(VIEWS, max_size=8, unique_by=lambda view: view.node), FAILURES, st.integers(0, 10**6), RADIUS)
def test_whatever_peers_say_each_host_is_listed_once_and_a_ready_one_is_offered(
    hosts: list[HostView], failures: list[tuple[str, float]], prompt_tokens: int, radius: str
) -> None:
    by = router()
    for node, at in sorted(failures, key=lambda entry: entry[1]):
        by.failed(node, "m", at)
    wanted = Wanted("m", frozenset({"tools"}), prompt_tokens, radius=radius)  # type: ignore[arg-type]
    ranked = by.rank(wanted, hosts, 60.0)
    assert sorted(entry.node for entry in ranked) == sorted(view.node for view in hosts)
    assert all(entry.reason for entry in ranked)
    able = [view for view in hosts if view.state == "ready" and (not view.capabilities or "tools" in view.capabilities)]
    able = [view for view in able if reaches(radius, view.radius)]
    assert bool(order(ranked)) == bool(able) and set(order(ranked)) <= {view.node for view in able}


def test_ten_hosts_are_ranked_in_well_under_a_millisecond() -> None:
    """About 35 µs on a calm core; the bound leaves room for busy machines."""
    by = router()
    hosts = [host(node, busy=number % 4, capabilities=("completion",)) for number, node in enumerate("abcdefghij")]
    by.succeeded("d", "m", tuple(range(40)), 0.0)
    wanted = Wanted("m", frozenset({"completion"}), 3000, tuple(range(42)))
    best_s = float("inf")
    for _ in range(20):
        begin = time.perf_counter()
        for _ in range(20):
            by.rank(wanted, hosts, 1.0)
        best_s = min(best_s, (time.perf_counter() - begin) / 20)
    assert best_s < 500e-6


# --- the model that auto means --------------------------------------------------------------------------------------


def model(size: int, **changes: Any) -> list[HostView]:
    """A model of that many gigabytes on one host."""
    return [replace(REMOTE, size_bytes=size * 10**9, capabilities=("completion", "chat"), **changes)]


@pytest.mark.parametrize(
    ("models", "best"),
    [
        ({"small": model(4), "large": model(20)}, "large"),
        # Here counts fourfold: 4 x 4 beats 15, and 4 x 4 does not beat 17.
        ({"small": model(4, here=True), "large": model(15)}, "small"),
        ({"small": model(4, here=True), "large": model(17)}, "large"),
        ({"small": model(4), "large": model(20, state="loading")}, "small"),
        ({"small": model(4), "large": model(20, tokens_per_s=3.0)}, "small"),
        ({"small": model(4), "large": model(20, tokens_per_s=None)}, "large"),
        ({"slow": model(4, tokens_per_s=5.0), "slower": model(20, tokens_per_s=1.0)}, "slow"),
        ({"small": model(4), "large": model(20, radius="public")}, "small"),
        ({"none": [], "far": model(20, radius="public"), "loading": model(1, state="loading")}, "loading"),
        ({"small": model(4), "large": model(20, context_length=400)}, "small"),
        ({"b": model(4), "a": model(4)}, "a"),
        ({"none": [], "small": model(1)}, "small"),
        ({"loading": model(1, state="loading")}, "loading"),
        ({"base": [host("a", size_bytes=10**12, capabilities=("completion",))], "chat": model(1)}, "chat"),
        ({"embedder": [host("a", size_bytes=10**12, capabilities=("embedding",))], "chat": model(1)}, "chat"),
    ],
)
def test_the_model_that_auto_means(models: dict[str, list[HostView]], best: str) -> None:
    wanted = replace(WANTED, needs=frozenset({"completion"}))
    assert choose_model(models, wanted) == best
    assert choose_model(dict(reversed(models.items())), wanted) == best


def test_auto_for_vectors_means_a_model_that_makes_them() -> None:
    models = {"chat": model(20), "embedder": [host("a", capabilities=("embedding",))]}
    assert choose_model(models, Wanted("auto", frozenset({"embedding"}))) == "embedder"


def test_load_and_distance_do_not_change_the_choice() -> None:
    source = random.Random(3)
    chosen = set()
    for _ in range(100):
        changes = {"rtt_s": source.random(), "busy": source.randrange(9), "waiting": source.randrange(9)}
        chosen.add(choose_model({"a": model(4, **changes), "b": model(8)}, WANTED))
    assert chosen == {"b"}


@pytest.mark.parametrize(("radius", "best"), [("local", "own"), ("trusted", "friends"), ("public", "friends")])
def test_auto_means_a_model_within_the_radius_and_a_strangers_last(radius: Any, best: str) -> None:
    models = {"own": model(1), "friends": model(20, radius="trusted"), "strangers": model(90, radius="public")}
    assert choose_model(models, replace(WANTED, radius=radius)) == best


def test_auto_means_a_strangers_model_only_where_no_nearer_one_can() -> None:
    near = {"loading": model(1, state="loading"), "short": model(1, context_length=128)}
    models = {**near, "strangers": model(90, radius="public")}
    assert choose_model(models, FAR) == "strangers"
    assert choose_model(models, WANTED) == "short"


def test_no_models_are_our_own_fault() -> None:
    with pytest.raises(ValueError, match="no model"):
        choose_model({}, WANTED)


# --- hosts that want to be paid -------------------------------------------------------------------------------------

PUBLIC_WANTED = replace(WANTED, radius="public")
CHEAP, DEAR = Price(100_000, 200_000), Price(200_000, 400_000)


def public(node: str, price: Price = FREE, **changes: Any) -> HostView:
    return host(node, radius="public", price=price, **changes)


def test_free_strangers_go_before_those_that_cost_something_however_slow_they_are() -> None:
    slow = public("f", tokens_per_s=1.0, prompt_tokens_per_s=10.0, busy=2, waiting=9)
    assert rank(public("c", CHEAP), slow, wanted=PUBLIC_WANTED) == "fc"
    assert rank(public("c", CHEAP), slow, host("t", radius="trusted", busy=2), wanted=PUBLIC_WANTED) == "tfc"


def test_twice_the_price_is_worth_half_the_time() -> None:
    half = {"tokens_per_s": 50.0, "prompt_tokens_per_s": 500.0, "rtt_s": 0.04}
    for faster, expected in ((2.2, "dc"), (1.8, "cd")):
        quick = {name: value * faster for name, value in half.items()} | {"rtt_s": 0.04 / faster}
        assert rank(public("c", CHEAP, **half), public("d", DEAR, **quick), wanted=PUBLIC_WANTED) == expected


def test_of_equal_ones_that_want_the_same_two_are_drawn() -> None:
    by = router()
    hosts = [public(node, CHEAP) for node in "abcd"]
    firsts = Counter(rank(*hosts, wanted=PUBLIC_WANTED, by=by)[0] for _ in range(200))
    assert set(firsts) == set("abcd")
    mixed = [public("f"), *hosts]
    assert {rank(*mixed, wanted=PUBLIC_WANTED, by=by)[0] for _ in range(50)} == {"f"}


def test_the_reason_says_what_a_typical_answer_costs() -> None:
    [ranked] = router().rank(PUBLIC_WANTED, [public("c", CHEAP)], 0.0)
    assert ranked.reason == "20 ms away, $0.000102 for a typical answer", "500 tokens in and 256 out"


def test_when_all_cool_down_the_free_one_is_offered() -> None:
    by = router()
    for node in "fc":
        by.failed(node, "m", 0.0)
    by.failed("f", "m", 0.0)
    assert rank(public("c", CHEAP), public("f"), wanted=PUBLIC_WANTED, by=by, now=0.1) == "f"


def test_a_prompt_too_long_for_all_is_for_the_free_one_to_refuse() -> None:
    long = replace(PUBLIC_WANTED, prompt_tokens=10**6)
    assert rank(public("c", CHEAP, context_length=65536), public("f"), wanted=long) == "f"


def test_auto_means_a_free_model_before_one_that_costs_something() -> None:
    models = {"paid": [public("c", CHEAP, size_bytes=100 << 30)], "free": [public("f", size_bytes=1 << 30)]}
    assert choose_model(models, PUBLIC_WANTED) == "free"
    assert choose_model({"paid": models["paid"]}, PUBLIC_WANTED) == "paid"
