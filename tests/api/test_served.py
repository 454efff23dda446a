from dataclasses import replace

import pytest

from meshnode.api.served import Host, Served, find_served
from meshnode.api.upstream import Pipe
from meshnode.core.prices import Price
from meshnode.errors import BadRequest, EngineCrashed, ModelLoading, ModelNotFound, NoModelServed

QWEN = Served("unsloth/Qwen3-4B:Q4_K_M", "ready", names=("qwen3:4b", "qwen3"))
DEMO = Served("demo", "ready")


def test_names_aliases_and_letter_case() -> None:
    models = [QWEN, DEMO]
    for name in ("unsloth/Qwen3-4B:Q4_K_M", "UNSLOTH/qwen3-4b:q4_k_m", "qwen3:4b", "QWEN3", "gpt-4"):
        assert find_served(name, models, {"gpt-4": "qwen3"}) is QWEN
    # An exact name goes before one that differs in case.
    upper = Served("DEMO", "ready")
    assert find_served("DEMO", [DEMO, upper], {}) is upper


def test_any_model_prefers_one_that_is_ready() -> None:
    slow = Served("slow", "loading")
    assert find_served("auto", [slow, DEMO], {}) is DEMO
    assert find_served("whatever", [slow, DEMO], {"whatever": "auto"}) is DEMO
    with pytest.raises(ModelLoading):
        find_served("auto", [slow], {})


@pytest.mark.parametrize("name", ["auto", "demo", "", None, 7, "x" * 1000])
def test_where_no_model_is_known_the_reason_is_told_whatever_was_asked_for(name: object) -> None:
    with pytest.raises(NoModelServed) as caught:
        find_served(name, [], {"demo": "other"})
    assert (caught.value.code, caught.value.http_status) == ("no-model-served", 503)
    assert caught.value.retry_after_s and "meshnode load NAME" in caught.value.fix


def test_no_name_means_the_only_model() -> None:
    assert find_served(None, [DEMO], {}) is DEMO
    with pytest.raises(BadRequest) as caught:
        find_served(None, [DEMO, QWEN], {})
    assert "one of" in caught.value.fix
    for name in ("", 0, True, [], {}):
        with pytest.raises(BadRequest, match="text"):
            find_served(name, [DEMO], {})


def test_unknown_names_get_near_ones_and_are_cut() -> None:
    with pytest.raises(ModelNotFound) as caught:
        find_served("qwen3:8b", [QWEN, DEMO], {"gpt-4": "demo"})
    assert "did you mean qwen3:4b" in caught.value.fix
    with pytest.raises(ModelNotFound) as caught:
        find_served("gpt4", [QWEN, DEMO], {"gpt-4": "demo"})
    assert caught.value.fix == "did you mean gpt-4?"
    with pytest.raises(ModelNotFound) as caught:
        find_served("z" * 100_000, [DEMO], {})
    assert len(str(caught.value)) < 300
    assert caught.value.fix == "served here: demo"


def test_what_is_not_ready_says_when_to_come_back() -> None:
    for state in ("loading", "restarting"):
        with pytest.raises(ModelLoading, match=f"demo is {state}") as caught:
            find_served("demo", [Served("demo", state)], {})
        assert caught.value.retry_after_s == 2
    with pytest.raises(EngineCrashed, match="demo: out of memory") as failed:
        find_served("demo", [Served("demo", "failed", detail="out of memory")], {})
    assert (failed.value.http_status, failed.value.retry_after_s) == (503, 30)
    assert EngineCrashed.http_status == 502  # only this one answer is a 503


def test_the_inner_key_is_never_shown() -> None:
    model = Served("demo", "ready").here(None, "canary")
    assert "canary" not in repr(model)
    assert "canary" not in str(model.as_openai("me"))


def test_facts_join_the_meta_of_the_listing() -> None:
    entry = Served("demo", "restarting", context_length=9, size_bytes=5, facts={"quant": "Q8_0"}).as_openai("me")
    assert entry["meta"] == {"n_ctx": 9, "size": 5, "quant": "Q8_0"}
    assert entry["status"] == {"value": "restarting"}


async def _connect() -> Pipe:
    raise AssertionError


def test_a_model_is_ready_when_any_host_is() -> None:
    loading = Served("demo", "loading").here(None)
    assert not loading.ready
    with pytest.raises(ModelLoading):
        find_served("demo", [loading], {})
    elsewhere = Served("demo", "ready", hosts=(Host("b" * 64, connect=_connect, radius="trusted"),))
    both = replace(loading, hosts=(*loading.hosts, *elsewhere.hosts))
    assert both.ready and not loading.ready
    assert find_served("demo", [both], {}) is both
    assert both.local is loading.hosts[0] and elsewhere.local is None


def test_the_listing_tells_where_a_model_runs() -> None:
    model = Served("demo", "ready", slots=2, context_length=100, hosts=(Host("c" * 64, radius="trusted"),))
    assert model.here(_connect, node="a" * 64).as_openai("me")["meshnode"] == {
        "here": True,
        "radius": "local",
        "hosts": [
            {"node": "a" * 64, "here": True, "radius": "local", "state": "ready", "slots": 2, "context_length": 100},
            {"node": "c" * 64, "here": False, "radius": "trusted", "state": "ready", "slots": 1, "context_length": 0},
        ],
    }


def test_auto_is_what_the_chooser_says_if_it_is_ready() -> None:
    models = [DEMO, QWEN, Served("slow", "loading")]
    assert find_served("auto", models, {}, lambda found: found[1]) is QWEN
    with pytest.raises(ModelLoading):
        find_served("any", models, {"any": "auto"}, lambda found: found[2])


def test_the_router_sees_all_that_counts() -> None:
    host = Host("b" * 64, rtt_s=0.1, slots=3, busy=2, waiting=1, context_length=9, tokens_per_s=5.0, state="failed")
    view = host.view(77)
    assert (view.node, view.rtt_s, view.slots, view.busy, view.waiting) == ("b" * 64, 0.1, 3, 2, 1)
    assert (view.context_length, view.tokens_per_s, view.state, view.size_bytes) == (9, 5.0, "failed", 77)


def test_a_restarted_engine_replaces_its_own_entry_only() -> None:
    model = Served("demo", "ready", hosts=(Host("c" * 64),)).here(None, content_hash="x").here(_connect)
    assert [(host.here, host.content_hash, host.ready) for host in model.hosts] == [
        (True, "", True),
        (False, "", False),
    ]


# --- the radius -----------------------------------------------------------------------------------------------------


def placed(**radii: str) -> tuple[Host, ...]:
    return tuple(Host(node * 64, connect=_connect, radius=radius) for node, radius in radii.items())


def test_a_request_sees_the_hosts_within_its_radius() -> None:
    model = Served("demo", "ready", hosts=placed(a="trusted", b="public", c="local"))
    within = {radius: model.within(radius) for radius in ("local", "trusted", "public")}
    nodes = {radius: [host.node[0] for host in found.hosts] for radius, found in within.items() if found}
    assert nodes == {"local": ["c"], "trusted": ["a", "c"], "public": ["a", "b", "c"]}
    assert within["public"] is model
    assert Served("demo", "ready", hosts=placed(b="public")).within("trusted") is None
    assert DEMO.within("local") is DEMO, "one that is being fetched has no host yet"


def test_it_is_not_ready_because_a_stranger_is() -> None:
    far = Host("p" * 64, connect=_connect, radius="public")
    loading = replace(Served("demo", "loading").here(None), hosts=(*Served("demo", "loading").here(None).hosts, far))
    assert loading.ready
    near = loading.within("trusted")
    assert near is not None and not near.ready and near.state == "loading"
    remote = Served("demo", "ready", hosts=(replace(far, radius="trusted", state="restarting"), far))
    near = remote.within("trusted")
    assert near is not None and (near.state, near.ready) == ("restarting", False)


@pytest.mark.parametrize(
    ("hosts", "near", "needed"),
    [
        (placed(a="public", b="trusted"), True, "trusted"),
        (placed(a="public", b="public"), False, "public"),
        (placed(a="local", b="trusted"), True, "local"),
        ((), True, "local"),
    ],
)
def test_the_listing_says_how_far_a_request_must_be_allowed_to_go(
    hosts: tuple[Host, ...], near: bool, needed: str
) -> None:
    model = Served("demo", "ready", hosts=hosts)
    assert model.near is near
    listed = model.as_openai("me")["meshnode"]
    assert isinstance(listed, dict) and listed["radius"] == needed
    assert [entry["radius"] for entry in listed["hosts"]] == [host.radius for host in hosts]


def test_what_a_host_wants_is_shown() -> None:
    selling = Host("a" * 64, radius="public", price=Price(2, 6), chain=84532)
    shown = Served("demo", "ready", hosts=(selling, Host("b" * 64))).as_openai("me")
    [one, other] = shown["meshnode"]["hosts"]  # type: ignore[index]
    assert one["price"] == {"in": 2, "out": 6, "chain": 84532} and "price" not in other
    assert selling.view().price == Price(2, 6)


def test_a_model_with_some_of_its_hosts() -> None:
    one, other = Host("a"), Host("b", state="loading")
    model = Served("demo", "ready", hosts=(one, other))
    assert model.at((one, other)) is model and model.at(()) is None
    assert model.at((other,)) == replace(model, state="loading", hosts=(other,))
