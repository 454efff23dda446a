from __future__ import annotations

from typing import Any

import pytest

from meshnode.cli.ready_models import choose, models_of
from meshnode.errors import ModelError, ModelLoading, ModelNotFound


def entry(name: str, state: str = "ready", *capabilities: str, **more: Any) -> dict[str, Any]:
    able = list(capabilities or ("completion", "chat"))
    return {"id": name, "state": state, "context_length": 4096, "capabilities": able, "detail": "", **more}


def status(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"models": list(entries)}


MIXED = status(
    entry("embedder", "ready", "embedding"),
    entry("coming", "loading", detail="half way"),
    entry("owner/repo:Q4_K_M", canonical="owner/repo/file.gguf"),
    entry("file:tiny", context_length=None),
)


def test_only_what_is_ready_counts() -> None:
    assert [model.id for model in models_of(MIXED)] == ["embedder", "owner/repo:Q4_K_M", "file:tiny"]
    assert models_of(MIXED)[1].context_length == 4096 and models_of(MIXED)[2].context_length == 0


def test_the_first_that_chats_is_taken() -> None:
    assert choose(MIXED, None).id == "owner/repo:Q4_K_M"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/repo:Q4_K_M", "owner/repo:Q4_K_M"),
        ("repo:Q4_K_M", "owner/repo:Q4_K_M"),
        ("owner/repo/file.gguf", "owner/repo:Q4_K_M"),
        ("tiny", "file:tiny"),
        ("/models/tiny.gguf", "file:tiny"),
        ("qwen", "owner/repo:Q4_K_M"),
    ],
)
def test_a_model_has_several_names(name: str, expected: str) -> None:
    assert choose(MIXED, name, {"owner/repo:Q4_K_M": {"qwen"}}).id == expected


def test_what_is_not_ready_or_not_known_is_said() -> None:
    with pytest.raises(ModelLoading, match="coming is loading"):
        choose(MIXED, "coming")
    with pytest.raises(ModelNotFound) as unknown:
        choose(MIXED, "tiney")
    assert unknown.value.fix == "did you mean tiny?"
    with pytest.raises(ModelNotFound) as unknown:
        choose(MIXED, "xx zz")
    assert "meshnode load 'xx zz'" in unknown.value.fix
    with pytest.raises(ModelError, match="does not chat"):
        choose(MIXED, "embedder")


def test_nothing_ready_is_loading_or_missing() -> None:
    with pytest.raises(ModelLoading, match="coming is loading: half way"):
        choose(status(entry("coming", "loading", detail="half way")), None)
    with pytest.raises(ModelNotFound, match="no model that chats"):
        choose(status(), None)
    with pytest.raises(ModelNotFound):
        choose(status(entry("embedder", "ready", "embedding")), None)
