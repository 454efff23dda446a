"""What each family of models keeps for a conversation: which layers cache how much, which slide, which are recurrent.

The engine decides this in code, one file for each architecture, and the header only fills in numbers; so the tables
below name architectures. An architecture that is not named is the usual kind: full attention in every layer.

Sources in llama.cpp: llama-model.cpp (load_hparams, create_memory), llama-hparams.cpp, and `load_arch_hparams` of each
file in src/models.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshnode.errors import ModelFileInvalid
from meshnode.models.header import Header

# Sliding windows where the header gives only the size: every n-th layer attends to everything, the first of n when
# `True`. Architectures not named here ignore `attention.sliding_window` or give the pattern as a list.
_WINDOW_PERIOD: dict[str, tuple[int, bool]] = {
    "afmoe": (4, False),
    "cohere2": (4, False),
    "cohere2moe": (4, True),
    "exaone-moe": (4, False),
    "exaone4": (4, False),
    "gemma2": (2, False),
    "gemma3": (6, False),
    "gemma3n": (5, False),
    "gpt-oss": (2, False),
    "laguna": (4, True),
    "llama4": (4, False),
    "mellum": (4, False),
    "muse-glimmer": (4, False),
    "olmo2": (4, False),
    "plamo3": (8, False),
    "smallthinker": (4, True),
}
_WINDOW_LISTED = {"dots3note", "gemma4", "granite_swa", "maple", "mimo2", "spark2-5", "step35"}

_RECURRENT = {"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"}
# Hybrids that mark recurrent layers by having no KV heads there, and those that count every n-th layer as attention.
_HYBRID_BY_HEADS = {
    "bailingmoe3", "glm5-next", "granitehybrid", "jamba", "kimi-k3", "kimi-linear", "lfm2", "lfm2moe", "nemotron_h",
    "nemotron_h_moe", "plamo2",
}  # fmt: skip
_HYBRID_BY_INTERVAL = {"minimax-01": 8, "qwen35": 4, "qwen35moe": 4, "qwen3next": 4, "qwen4exp": 4}
_NO_CACHE = {
    "bert", "dream", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "llada", "llada-moe", "modern-bert",
    "neo-bert", "nomic-bert", "nomic-bert-moe", "rnd1", "wavtokenizer-dec",
}  # fmt: skip
# A key cache of the sparse-attention indexer lies beside the main one.
_INDEXER = {"deepseek32", "glm-dsa", "hy_v4"}


@dataclass(frozen=True, slots=True)
class CachedLayer:
    """What one layer keeps; the fields are those of `shapes.LayerShape`."""

    k_elements: int = 0
    v_elements: int = 0
    window: int | None = None
    state_bytes: int = 0


def predicting_layers(header: Header) -> int:
    """Trailing layers that predict further tokens (nextn, MTP); granite-switch uses the key for something else."""
    count = header.number(header.key("nextn_predict_layers"))
    return count if 0 <= count < header.layer_count and header.architecture != "graniteswitch" else 0


def cached_layers(header: Header) -> list[CachedLayer]:
    """What every layer keeps. Raises ModelFileInvalid for numbers that cannot be."""
    count, architecture = header.layer_count, header.architecture
    n_embd = header.number(header.key("embedding_length"))
    if architecture in _NO_CACHE:
        return [CachedLayer()] * count
    recurrent = _recurrent_layers(header)
    windows = _windows(header, recurrent)
    heads = header.per_layer("attention.head_count")
    kv_heads = (
        header.per_layer("attention.head_count_kv")
        if header.key("attention.head_count_kv") in header.metadata
        else heads
    )
    state = _state_bytes(header, n_embd) if any(recurrent) else 0
    trunk = count - predicting_layers(header)
    cached = _layers_with_cache(header)
    index = header.number(header.key("attention.indexer.key_length")) if architecture in _INDEXER else 0
    layers = []
    for i in range(count):
        if i >= trunk:
            layers.append(CachedLayer())
            continue
        k, v = _head_sizes(header, n_embd, heads[0], windowed=windows[i] is not None)
        # falcon-h1 has attention and a recurrent state in every layer.
        attends = (not recurrent[i] or architecture == "falcon-h1") and i < cached and _attends(header, i)
        kv = kv_heads[i] if attends else 0
        extra = index if attends and _has_indexer(header, i) else 0
        layers.append(
            CachedLayer(
                _bounded(k * kv + extra),
                _bounded(v * kv),
                windows[i] if kv else None,
                state if recurrent[i] else 0,
            )
        )
    return layers


def _head_sizes(header: Header, n_embd: int, heads: int, *, windowed: bool) -> tuple[int, int]:
    """Elements of one key and one value head. Latent attention has no values of its own (llama-hparams.cpp, is_mla)."""
    usual = n_embd // heads if heads > 0 else 0
    k = header.number(header.key("attention.key_length"), usual)
    v = header.number(header.key("attention.value_length"), usual)
    if windowed:
        k = header.number(header.key("attention.key_length_swa"), k)
        v = header.number(header.key("attention.value_length_swa"), v)
    latent = header.number(header.key("attention.key_length_mla")) and header.number(
        header.key("attention.value_length_mla")
    )
    return k, 0 if latent else v


def _attends(header: Header, layer: int) -> bool:
    """Nemotron-H also has layers that are neither attention nor recurrent."""
    if header.architecture in ("nemotron_h", "nemotron_h_moe"):
        return header.per_layer("feed_forward_length")[layer] == 0
    return True


def _has_indexer(header: Header, layer: int) -> bool:
    """Layers marked "shared" reuse the choice of the layer before them; glm-dsa marks them in newer files."""
    key = header.key("attention.indexer.types")
    return key not in header.metadata or bool(header.per_layer("attention.indexer.types")[layer])


def _layers_with_cache(header: Header) -> int:
    """How many layers from the start have a cache of their own; the later ones reuse it (gemma3n, gemma4)."""
    if header.architecture == "gemma3n":
        return 20
    if header.architecture == "gemma4":
        return header.layer_count - header.number(header.key("attention.shared_kv_layers"))
    return header.layer_count


def _windows(header: Header, recurrent: list[bool]) -> list[int | None]:
    """The sliding window of each layer, None where a layer attends to everything."""
    count, architecture = header.layer_count, header.architecture
    size = _window_size(header)
    if not 0 < size < 1 << 31:
        return [None] * count
    if architecture == "lfm2":
        return [None if is_recurrent else size for is_recurrent in recurrent]
    listed = header.metadata.get(header.key("attention.sliding_window_pattern"))
    if isinstance(listed, tuple) and (architecture in _WINDOW_LISTED or architecture in _WINDOW_PERIOD):
        flags = [bool(item) for item in listed]
        return [size if flag else None for flag in (flags + [False] * count)[:count]]
    if architecture not in _WINDOW_PERIOD:
        return [None] * count
    period, dense_first = _WINDOW_PERIOD[architecture]
    if isinstance(listed, int):
        period = int(listed)
    dense = 0 if dense_first else period - 1
    trunk = count - predicting_layers(header)
    return [size if i < trunk and (period <= 0 or i % period != dense) else None for i in range(count)]


def _window_size(header: Header) -> int:
    """Tokens a sliding layer sees, 0 for none. Some architectures fix the number themselves."""
    given = header.metadata.get(header.key("attention.sliding_window"))
    size = given if isinstance(given, int) else 0
    match header.architecture:
        case "llama4":
            return 0 if given == 0 else 8192
        case "smallthinker":
            return 4096 if size > 0 else 0
        case "gemma2":
            return 4096 if given is None else size
        case "exaone4":
            slides = header.layer_count - predicting_layers(header) == 64
            return (4096 if given is None else size) if slides else 0
    return size


def _recurrent_layers(header: Header) -> list[bool]:
    """Which layers keep a fixed state instead of a growing cache."""
    count, architecture = header.layer_count, header.architecture
    if architecture in _RECURRENT or architecture == "falcon-h1":
        return [True] * count
    trunk = count - predicting_layers(header)
    if architecture in _HYBRID_BY_HEADS:
        heads = header.per_layer("attention.head_count_kv")
        feeds = header.per_layer("feed_forward_length")
        nemotron = architecture.startswith("nemotron")
        return [i < trunk and heads[i] == 0 and (not nemotron or feeds[i] == 0) for i in range(count)]
    if architecture in _HYBRID_BY_INTERVAL:
        if header.key("attention.recurrent_layers") in header.metadata:
            return [bool(flag) for flag in header.per_layer("attention.recurrent_layers")]
        every = header.number(header.key("full_attention_interval"), _HYBRID_BY_INTERVAL[architecture])
        return [i < trunk and (every < 1 or (i + 1) % every != 0) for i in range(count)]
    return [False] * count


def _state_bytes(header: Header, n_embd: int) -> int:
    """Recurrent state of one layer and one conversation: n_embd_r + n_embd_s of llama-hparams.cpp, 4 bytes each."""

    def number(suffix: str, default: int = 0) -> int:
        return header.number(header.key(suffix), default)

    conv, inner, state, groups = (
        number(f"ssm.{key}") for key in ("conv_kernel", "inner_size", "state_size", "group_count")
    )
    heads = header.per_layer("attention.head_count")[0]
    if wkv := number("wkv.head_size"):
        rolling, held = number("token_shift_count", 2) * n_embd, n_embd * wkv
    elif short := number("shortconv.l_cache"):
        rolling, held = n_embd * (short - 1), 0
    elif kda := number("kda.head_dim"):
        rolling, held = 3 * ((conv - 1) if conv > 0 else 3) * heads * kda, kda * kda * heads
    else:
        rolling = (conv - 1 if conv > 0 else 0) * (inner + 2 * groups * state)
        held = state * inner
        if header.architecture == "minimax-01":
            linear = header.number(header.key("attention.key_length"), n_embd // max(1, heads))
            held = linear * linear * heads
    return 4 * _bounded(rolling + held)


def _bounded(elements: int) -> int:
    """Products of header numbers; a hostile file must not make a plan with negative or endless memory."""
    if not 0 <= elements < 1 << 31:
        raise ModelFileInvalid(f"its header gives a layer {elements:,} cached values a token")
    return elements
