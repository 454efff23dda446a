import pytest

from meshnode.api.served import Served, find_served
from meshnode.errors import BadRequest, EngineCrashed, ModelLoading, ModelNotFound

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
    with pytest.raises(ModelNotFound, match="auto"):
        find_served("auto", [], {})


def test_no_name_means_the_only_model() -> None:
    assert find_served(None, [DEMO], {}) is DEMO
    for models in ([], [DEMO, QWEN]):
        with pytest.raises(BadRequest) as caught:
            find_served(None, models, {})
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
    assert "canary" not in repr(Served("demo", "ready", api_key="canary"))
    assert "canary" not in str(Served("demo", "ready", api_key="canary").as_openai("me"))


def test_facts_join_the_meta_of_the_listing() -> None:
    entry = Served("demo", "restarting", context_length=9, size_bytes=5, facts={"quant": "Q8_0"}).as_openai("me")
    assert entry["meta"] == {"n_ctx": 9, "size": 5, "quant": "Q8_0"}
    assert entry["status"] == {"value": "restarting"}
