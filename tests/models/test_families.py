"""Which layers slide, recur, share or index, for each family that the engine treats differently."""

from collections.abc import Mapping

import pytest

from meshnode.errors import ModelFileInvalid
from meshnode.models.families import CachedLayer, cached_layers, predicting_layers
from meshnode.models.header import Header, Value

BASE: dict[str, Value] = {
    "embedding_length": 512,
    "attention.head_count": 8,
    "attention.head_count_kv": 2,
}


def layers(architecture: str, count: int, **more: Value) -> list[CachedLayer]:
    keys = {**BASE, "block_count": count, **{key.replace("__", "."): value for key, value in more.items()}}
    metadata: Mapping[str, Value] = {
        "general.architecture": architecture,
        **{f"{architecture}.{key}": value for key, value in keys.items()},
    }
    return cached_layers(Header(3, metadata, {}, (), 0, 0))


def windows(architecture: str, count: int, **more: Value) -> str:
    """One letter a layer: w for a window, a for all."""
    return "".join("w" if layer.window else "a" for layer in layers(architecture, count, **more))


def kinds(architecture: str, count: int, **more: Value) -> str:
    """One letter a layer: k for a cache, r for a state, b for both, - for neither."""
    letters = {(True, False): "k", (False, True): "r", (True, True): "b", (False, False): "-"}
    return "".join(
        letters[bool(layer.k_elements), bool(layer.state_bytes)] for layer in layers(architecture, count, **more)
    )


@pytest.mark.parametrize(
    ("architecture", "count", "keys", "expected"),
    [
        ("llama", 4, {"attention__sliding_window": 512}, "aaaa"),
        ("phi3", 4, {"attention__sliding_window": 512}, "aaaa"),
        ("gemma3", 7, {"attention__sliding_window": 512}, "wwwwwaw"),
        ("gemma3", 7, {}, "aaaaaaa"),
        ("gemma3", 4, {"attention__sliding_window": 512, "attention__sliding_window_pattern": 2}, "wawa"),
        ("gemma3", 4, {"attention__sliding_window": 512, "attention__sliding_window_pattern": (1, 0, 0, 1)}, "waaw"),
        ("gemma3", 3, {"attention__sliding_window": 512, "attention__sliding_window_pattern": 0}, "www"),
        ("gemma3", 3, {"attention__sliding_window": 512, "attention__sliding_window_pattern": 1}, "aaa"),
        ("gemma2", 4, {}, "wawa"),
        ("gpt-oss", 4, {"attention__sliding_window": 128}, "wawa"),
        ("cohere2", 5, {"attention__sliding_window": 4096}, "wwwaw"),
        ("cohere2moe", 5, {"attention__sliding_window": 4096}, "awwwa"),
        ("smallthinker", 5, {"attention__sliding_window": 9}, "awwwa"),
        ("smallthinker", 2, {}, "aa"),
        ("llama4", 5, {}, "wwwaw"),
        ("llama4", 2, {"attention__sliding_window": 0}, "aa"),
        ("exaone4", 4, {"attention__sliding_window": 4096}, "aaaa"),
        ("gemma4", 3, {"attention__sliding_window": 512, "attention__sliding_window_pattern": (1, 1, 0)}, "wwa"),
        ("step35", 2, {"attention__sliding_window": 512}, "aa"),
        ("lfm2", 3, {"attention__sliding_window": 512, "attention__head_count_kv": (0, 2, 2)}, "aww"),
    ],
)
def test_sliding_layers(architecture: str, count: int, keys: dict[str, Value], expected: str) -> None:
    assert windows(architecture, count, **keys) == expected


def test_the_sizes_that_the_engine_fixes() -> None:
    assert layers("gemma2", 1)[0].window == 4096
    assert layers("gemma2", 1, attention__sliding_window=99)[0].window == 99
    assert layers("llama4", 1, attention__sliding_window=99)[0].window == 8192
    assert layers("smallthinker", 2, attention__sliding_window=99)[1].window == 4096
    assert layers("exaone4", 64)[0].window == 4096 and layers("exaone4", 64)[3].window is None


SSM = {"ssm__conv_kernel": 4, "ssm__inner_size": 64, "ssm__state_size": 16, "ssm__group_count": 2}


@pytest.mark.parametrize(
    ("architecture", "count", "keys", "expected"),
    [
        ("mamba", 2, SSM, "rr"),
        ("rwkv7", 2, {"wkv__head_size": 64}, "rr"),
        ("jamba", 4, {**SSM, "attention__head_count_kv": (0, 2, 0, 2)}, "rkrk"),
        ("granitehybrid", 3, {**SSM, "attention__head_count_kv": (0, 0, 2)}, "rrk"),
        ("falcon-h1", 2, SSM, "bb"),
        ("qwen35", 9, SSM, "rrrkrrrkr"),
        ("qwen3next", 4, {**SSM, "full_attention_interval": 2}, "rkrk"),
        ("qwen35", 3, {**SSM, "attention__recurrent_layers": (0, 1, 1)}, "krr"),
        ("minimax-01", 8, {"attention__key_length": 64}, "rrrrrrrk"),
        (
            "nemotron_h",
            4,
            {**SSM, "attention__head_count_kv": (0, 0, 2, 0), "feed_forward_length": (0, 99, 0, 0)},
            "r-kr",
        ),
        ("bert", 2, {}, "--"),
        ("llada", 2, {}, "--"),
        ("gemma3n", 22, {}, "k" * 20 + "--"),
        ("gemma4", 5, {"attention__shared_kv_layers": 2}, "kkk--"),
        ("glm4moe", 3, {"nextn_predict_layers": 1}, "kk-"),
        ("graniteswitch", 3, {"nextn_predict_layers": 1}, "kkk"),
        ("qwen35", 5, {**SSM, "nextn_predict_layers": 1}, "rrrk-"),
    ],
)
def test_what_each_layer_keeps(architecture: str, count: int, keys: dict[str, Value], expected: str) -> None:
    assert kinds(architecture, count, **keys) == expected


@pytest.mark.parametrize(
    ("architecture", "keys", "elements"),
    [
        ("mamba", SSM, 3 * (64 + 2 * 2 * 16) + 16 * 64),
        ("rwkv6", {"wkv__head_size": 64}, 2 * 512 + 512 * 64),
        ("rwkv7", {"wkv__head_size": 64, "token_shift_count": 1}, 512 + 512 * 64),
        ("lfm2", {"shortconv__l_cache": 3, "attention__head_count_kv": (0,)}, 2 * 512),
        ("kimi-linear", {"kda__head_dim": 16, "attention__head_count_kv": (0,)}, 3 * 3 * 8 * 16 + 16 * 16 * 8),
        ("minimax-01", {"attention__key_length": 64}, 64 * 64 * 8),
    ],
)
def test_recurrent_states_by_formula(architecture: str, keys: dict[str, Value], elements: int) -> None:
    assert layers(architecture, 1, **keys)[0].state_bytes == 4 * elements


def test_heads_of_different_sizes() -> None:
    plain = layers("llama", 1)[0]
    assert (plain.k_elements, plain.v_elements) == (128, 128)
    uneven = layers("llama", 2, attention__head_count_kv=(2, 4), attention__key_length=32, attention__value_length=16)
    assert [(layer.k_elements, layer.v_elements) for layer in uneven] == [(64, 32), (128, 64)]
    windowed = layers(
        "gemma4", 2, attention__sliding_window=8, attention__sliding_window_pattern=(1, 0),
        attention__key_length=64, attention__value_length=64, attention__key_length_swa=32,
        attention__value_length_swa=32,
    )  # fmt: skip
    assert [layer.k_elements for layer in windowed] == [64, 128]


def test_without_kv_heads_every_head_counts() -> None:
    metadata = {"general.architecture": "gpt2", "gpt2.block_count": 1, "gpt2.embedding_length": 512}
    header = Header(3, {**metadata, "gpt2.attention.head_count": 8}, {}, (), 0, 0)
    assert cached_layers(header)[0].k_elements == 512


def test_latent_attention_keeps_keys_only_and_an_indexer_adds_its_own() -> None:
    mla: dict[str, Value] = {
        "attention__head_count_kv": 1,
        "attention__key_length": 576,
        "attention__value_length": 512,
        "attention__key_length_mla": 192,
        "attention__value_length_mla": 128,
    }
    assert layers("deepseek2", 1, **mla)[0] == CachedLayer(576, 0)
    sparse = layers("deepseek32", 2, **mla, attention__indexer__key_length=128)
    assert [layer.k_elements for layer in sparse] == [704, 704]
    shared = layers("glm-dsa", 2, **mla, attention__indexer__key_length=128, attention__indexer__types=(1, 0))
    assert [layer.k_elements for layer in shared] == [704, 576]


def test_predicting_layers_are_bounded() -> None:
    def counted(architecture: str, nextn: int) -> int:
        keys = {"general.architecture": architecture, f"{architecture}.block_count": 4}
        return predicting_layers(Header(3, {**keys, f"{architecture}.nextn_predict_layers": nextn}, {}, (), 0, 0))

    assert [counted("glm4moe", number) for number in (0, 1, 3, 4, 9, -1)] == [0, 1, 3, 0, 0, 0]
    assert counted("graniteswitch", 1) == 0


@pytest.mark.parametrize(
    ("architecture", "keys"),
    [
        ("llama", {"attention__head_count_kv": 1 << 31}),
        ("llama", {"attention__key_length": -5}),
        ("mamba", {"ssm__state_size": 1 << 31, "ssm__inner_size": 1 << 31}),
    ],
)
def test_absurd_numbers_are_refused(architecture: str, keys: dict[str, Value]) -> None:
    with pytest.raises(ModelFileInvalid):
        layers(architecture, 1, **keys)
