"""GGUF files for tests, written with the `gguf` package: whole headers, and weights that are holes in the file.

A family builder returns what llama.cpp asks of that architecture, so that the engine itself can read the file and
serve as the oracle. Shapes are given with the fastest dimension first, as in the file.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

Tensors = list[tuple[str, tuple[int, ...], str]]
Keys = dict[str, object]

VOCABULARY = 2048
WIDTH = 1024


def write_gguf(
    path: Path,
    architecture: str,
    keys: Keys,
    tensors: Tensors,
    *,
    vocabulary: int = VOCABULARY,
    raw_keys: Keys | None = None,
    template: str = "",
) -> Path:
    """Write a file whose tensor data is a hole of the right size."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        _add(writer, f"{architecture}.{key}", value)
    for key, value in (raw_keys or {}).items():
        _add(writer, key, value)
    if vocabulary:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list([f"t{i}" for i in range(vocabulary)])
        writer.add_token_types([1] * vocabulary)
        writer.add_token_merges(["a b"])
        writer.add_eos_token_id(0)
    if template:
        writer.add_chat_template(template)
    size = 0
    for name, shape, kind in tensors:
        size += _add_tensor(writer, name, shape, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.flush()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(-(-path.stat().st_size // 32) * 32 + size)
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, list(value))  # type: ignore[call-overload]


def _add_tensor(writer: gguf.GGUFWriter, name: str, shape: tuple[int, ...], kind: str) -> int:
    quant = gguf.GGMLQuantizationType[kind]
    block, block_bytes = gguf.GGML_QUANT_SIZES[quant]
    n_bytes = int(np.prod(shape)) // block * block_bytes
    rows = gguf.quant_shape_to_byte_shape(tuple(reversed(shape)), quant)
    writer.add_tensor_info(name, rows, np.dtype(np.uint8), n_bytes, raw_dtype=quant)
    return -(-n_bytes // 32) * 32


def base_keys(layers: int, **more: object) -> Keys:
    """What every family has; a keyword `attention__key_length` becomes the key `attention.key_length`."""
    keys: Keys = {
        "block_count": layers,
        "context_length": 32768,
        "embedding_length": WIDTH,
        "feed_forward_length": 2048,
        "attention.head_count": 16,
        "attention.head_count_kv": 4,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    keys.update({key.replace("__", "."): value for key, value in more.items()})
    return keys


def ends(*, tied: bool = False, kind: str = "Q8_0", norm: str = "output_norm") -> Tensors:
    """Embedding, output and the norm before it."""
    output: Tensors = [] if tied else [("output.weight", (WIDTH, VOCABULARY), kind)]
    return [("token_embd.weight", (WIDTH, VOCABULARY), kind), (f"{norm}.weight", (WIDTH,), "F32"), *output]


def attention(
    i: int, *, heads: int = 16, kv: int = 4, head: int = 64, kind: str = "Q8_0", q_factor: int = 1
) -> Tensors:
    """Query, key, value, output of one layer."""
    return [
        (f"blk.{i}.attn_q.weight", (WIDTH, heads * head * q_factor), kind),
        (f"blk.{i}.attn_k.weight", (WIDTH, kv * head), kind),
        (f"blk.{i}.attn_v.weight", (WIDTH, kv * head), kind),
        (f"blk.{i}.attn_output.weight", (heads * head, WIDTH), kind),
    ]


def feed_forward(i: int, *, width: int = 2048, kind: str = "Q8_0") -> Tensors:
    """Gate, up and down of one layer."""
    return [
        (f"blk.{i}.ffn_gate.weight", (WIDTH, width), kind),
        (f"blk.{i}.ffn_up.weight", (WIDTH, width), kind),
        (f"blk.{i}.ffn_down.weight", (width, WIDTH), kind),
    ]


def experts(i: int, *, count: int = 8, width: int = 512, kind: str = "Q8_0") -> Tensors:
    """The router and the experts of one layer."""
    return [
        (f"blk.{i}.ffn_gate_inp.weight", (WIDTH, count), "F32"),
        (f"blk.{i}.ffn_gate_exps.weight", (WIDTH, width, count), kind),
        (f"blk.{i}.ffn_up_exps.weight", (WIDTH, width, count), kind),
        (f"blk.{i}.ffn_down_exps.weight", (width, WIDTH, count), kind),
    ]


def norms(i: int, *names: str, width: int = WIDTH) -> Tensors:
    """Small vectors of one layer."""
    return [(f"blk.{i}.{name}.weight", (width,), "F32") for name in names]


def llama(path: Path, *, layers: int = 12, tied: bool = False, kind: str = "Q8_0") -> Path:
    tensors = ends(tied=tied, kind=kind)
    for i in range(layers):
        tensors += norms(i, "attn_norm", "ffn_norm") + attention(i, kind=kind) + feed_forward(i, kind=kind)
    return write_gguf(path, "llama", base_keys(layers, rope__dimension_count=64), tensors)


def gemma3(path: Path) -> Path:
    tensors = ends(tied=True)
    for i in range(14):
        tensors += norms(i, "attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm")
        tensors += norms(i, "attn_q_norm", "attn_k_norm", width=128)
        tensors += attention(i, heads=8, kv=4, head=128) + feed_forward(i)
    keys = base_keys(
        14,
        attention__head_count=8,
        attention__key_length=128,
        attention__value_length=128,
        attention__sliding_window=1024,
    )
    return write_gguf(path, "gemma3", keys, tensors)


def gpt_oss(path: Path) -> Path:
    tensors = ends()
    for i in range(8):
        tensors += norms(i, "attn_norm", "post_attention_norm") + attention(i) + experts(i, kind="MXFP4")
        tensors += [(f"blk.{i}.attn_sinks.weight", (16,), "F32"), (f"blk.{i}.attn_output.bias", (WIDTH,), "F32")]
        tensors += [(f"blk.{i}.ffn_gate_inp.bias", (8,), "F32"), (f"blk.{i}.ffn_gate_exps.bias", (512, 8), "F32")]
        tensors += [(f"blk.{i}.ffn_down_exps.bias", (WIDTH, 8), "F32"), (f"blk.{i}.ffn_up_exps.bias", (512, 8), "F32")]
    keys = base_keys(
        8,
        attention__sliding_window=128,
        attention__key_length=64,
        attention__value_length=64,
        expert_count=8,
        expert_used_count=2,
        expert_feed_forward_length=512,
    )
    return write_gguf(path, "gpt-oss", keys, tensors)


def deepseek2(path: Path) -> Path:
    latent, rope, nope, v_head, heads = 512, 64, 128, 128, 8
    tensors = ends()
    for i in range(6):
        tensors += norms(i, "attn_norm", "ffn_norm")
        tensors += norms(i, "attn_kv_a_norm", width=latent) + norms(i, "attn_q_a_norm", width=256)
        tensors += [
            (f"blk.{i}.attn_q_a.weight", (WIDTH, 256), "Q8_0"),
            (f"blk.{i}.attn_q_b.weight", (256, heads * (nope + rope)), "Q8_0"),
            (f"blk.{i}.attn_kv_a_mqa.weight", (WIDTH, latent + rope), "Q8_0"),
            (f"blk.{i}.attn_k_b.weight", (nope, latent, heads), "Q8_0"),
            (f"blk.{i}.attn_v_b.weight", (latent, v_head, heads), "Q8_0"),
            (f"blk.{i}.attn_output.weight", (heads * v_head, WIDTH), "Q8_0"),
        ]
        if i == 0:
            tensors += feed_forward(i)
            continue
        tensors += experts(i)
        tensors += [
            (f"blk.{i}.ffn_gate_shexp.weight", (WIDTH, 512), "Q8_0"),
            (f"blk.{i}.ffn_up_shexp.weight", (WIDTH, 512), "Q8_0"),
            (f"blk.{i}.ffn_down_shexp.weight", (512, WIDTH), "Q8_0"),
        ]
    keys = base_keys(
        6,
        attention__head_count=heads,
        attention__head_count_kv=1,
        attention__key_length=latent + rope,
        attention__value_length=latent,
        attention__key_length_mla=nope + rope,
        attention__value_length_mla=v_head,
        attention__q_lora_rank=256,
        attention__kv_lora_rank=latent,
        rope__dimension_count=rope,
        leading_dense_block_count=1,
        expert_count=8,
        expert_used_count=2,
        expert_shared_count=1,
        expert_feed_forward_length=512,
    )
    return write_gguf(path, "deepseek2", keys, tensors)


def glm4moe(path: Path) -> Path:
    """A mixture of experts whose last layer only predicts further tokens."""
    tensors = ends()
    for i in range(7):
        tensors += norms(i, "attn_norm", "post_attention_norm") + attention(i)
        tensors += experts(i) + [(f"blk.{i}.exp_probs_b.bias", (8,), "F32")]
        tensors += [
            (f"blk.{i}.ffn_gate_shexp.weight", (WIDTH, 512), "Q8_0"),
            (f"blk.{i}.ffn_up_shexp.weight", (WIDTH, 512), "Q8_0"),
            (f"blk.{i}.ffn_down_shexp.weight", (512, WIDTH), "Q8_0"),
        ]
    tensors += [("blk.6.nextn.eh_proj.weight", (2 * WIDTH, WIDTH), "Q8_0")]
    tensors += norms(6, "nextn.enorm", "nextn.hnorm")
    keys = base_keys(
        7,
        nextn_predict_layers=1,
        expert_count=8,
        expert_used_count=2,
        expert_shared_count=1,
        expert_feed_forward_length=512,
    )
    return write_gguf(path, "glm4moe", keys, tensors)


def mamba(path: Path) -> Path:
    inner, state, conv, rank = 2 * WIDTH, 16, 4, 64
    tensors = ends(tied=True)
    for i in range(6):
        tensors += norms(i, "attn_norm")
        tensors += [
            (f"blk.{i}.ssm_in.weight", (WIDTH, 2 * inner), "Q8_0"),
            (f"blk.{i}.ssm_conv1d.weight", (conv, inner), "F32"),
            (f"blk.{i}.ssm_conv1d.bias", (inner,), "F32"),
            (f"blk.{i}.ssm_x.weight", (inner, rank + 2 * state), "Q8_0"),
            (f"blk.{i}.ssm_dt.weight", (rank, inner), "Q8_0"),
            (f"blk.{i}.ssm_dt.bias", (inner,), "F32"),
            (f"blk.{i}.ssm_a", (state, inner), "F32"),
            (f"blk.{i}.ssm_d", (inner,), "F32"),
            (f"blk.{i}.ssm_out.weight", (inner, WIDTH), "Q8_0"),
        ]
    keys = base_keys(
        6,
        feed_forward_length=0,
        attention__head_count=0,
        attention__head_count_kv=0,
        ssm__conv_kernel=conv,
        ssm__inner_size=inner,
        ssm__state_size=state,
        ssm__time_step_rank=rank,
    )
    return write_gguf(path, "mamba", keys, tensors)


def qwen35(path: Path) -> Path:
    """A hybrid: three layers of linear attention for one of full attention."""
    state, groups, rank, conv = 128, 4, 8, 4
    key, value = state * groups, state * rank
    tensors = ends()
    for i in range(8):
        tensors += norms(i, "attn_norm", "post_attention_norm") + feed_forward(i)
        if (i + 1) % 4 == 0:
            tensors += attention(i, q_factor=2) + norms(i, "attn_q_norm", "attn_k_norm", width=64)
            continue
        tensors += [
            (f"blk.{i}.attn_qkv.weight", (WIDTH, 2 * key + value), "Q8_0"),
            (f"blk.{i}.attn_gate.weight", (WIDTH, value), "Q8_0"),
            (f"blk.{i}.ssm_conv1d.weight", (conv, 2 * key + value), "F32"),
            (f"blk.{i}.ssm_dt.bias", (rank,), "F32"),
            (f"blk.{i}.ssm_a", (rank,), "F32"),
            (f"blk.{i}.ssm_beta.weight", (WIDTH, rank), "Q8_0"),
            (f"blk.{i}.ssm_alpha.weight", (WIDTH, rank), "Q8_0"),
            (f"blk.{i}.ssm_norm.weight", (state,), "F32"),
            (f"blk.{i}.ssm_out.weight", (value, WIDTH), "Q8_0"),
        ]
    keys = base_keys(
        8,
        attention__key_length=64,
        attention__value_length=64,
        rope__dimension_sections=[8, 12, 12, 0],
        rope__dimension_count=64,
        ssm__conv_kernel=conv,
        ssm__inner_size=value,
        ssm__state_size=state,
        ssm__time_step_rank=rank,
        ssm__group_count=groups,
    )
    return write_gguf(path, "qwen35", keys, tensors)


def lfm2(path: Path) -> Path:
    """A hybrid of short convolutions and attention, told apart by the KV heads of each layer."""
    kv = [0, 0, 4, 0, 0, 4]
    tensors = ends(tied=True, norm="token_embd_norm")
    for i, heads in enumerate(kv):
        tensors += norms(i, "attn_norm", "ffn_norm") + feed_forward(i)
        if heads:
            tensors += attention(i) + norms(i, "attn_q_norm", "attn_k_norm", width=64)
            continue
        tensors += [
            (f"blk.{i}.shortconv.conv.weight", (3, WIDTH), "F32"),
            (f"blk.{i}.shortconv.in_proj.weight", (WIDTH, 3 * WIDTH), "Q8_0"),
            (f"blk.{i}.shortconv.out_proj.weight", (WIDTH, WIDTH), "Q8_0"),
        ]
    return write_gguf(path, "lfm2", base_keys(6, attention__head_count_kv=kv, shortconv__l_cache=3), tensors)


def falcon_h1(path: Path) -> Path:
    """Attention and a recurrent state side by side in every layer."""
    inner, state, groups, heads, conv = 1024, 64, 1, 16, 4
    conv_width = inner + 2 * groups * state
    tensors = ends()
    for i in range(5):
        tensors += norms(i, "attn_norm") + attention(i) + feed_forward(i)
        tensors += [
            (f"blk.{i}.ffn_norm", (WIDTH,), "F32"),
            (f"blk.{i}.ssm_in.weight", (WIDTH, inner + conv_width + heads), "Q8_0"),
            (f"blk.{i}.ssm_conv1d.weight", (conv, conv_width), "F32"),
            (f"blk.{i}.ssm_conv1d.bias", (conv_width,), "F32"),
            (f"blk.{i}.ssm_dt.bias", (heads,), "F32"),
            (f"blk.{i}.ssm_a", (1, heads), "F32"),
            (f"blk.{i}.ssm_d", (1, heads), "F32"),
            (f"blk.{i}.ssm_norm.weight", (inner // groups, groups), "F32"),
            (f"blk.{i}.ssm_out.weight", (inner, WIDTH), "Q8_0"),
        ]
    keys = base_keys(
        5,
        attention__key_length=64,
        attention__value_length=64,
        ssm__conv_kernel=conv,
        ssm__inner_size=inner,
        ssm__state_size=state,
        ssm__time_step_rank=heads,
        ssm__group_count=groups,
    )
    return write_gguf(path, "falcon-h1", keys, tensors)


def cohere2(path: Path) -> Path:
    tensors = ends(tied=True)
    for i in range(6):
        tensors += norms(i, "attn_norm") + attention(i) + feed_forward(i)
    keys = base_keys(6, attention__sliding_window=512, attention__layer_norm_epsilon=1e-5, logit_scale=0.25)
    return write_gguf(path, "cohere2", keys, tensors)


def mamba2_layer(i: int, *, inner: int, state: int, groups: int, heads: int, conv: int = 4) -> Tensors:
    """The recurrent half of the newer hybrids."""
    width = inner + 2 * groups * state
    return [
        (f"blk.{i}.ssm_in.weight", (WIDTH, inner + width + heads), "Q8_0"),
        (f"blk.{i}.ssm_conv1d.weight", (conv, width), "F32"),
        (f"blk.{i}.ssm_conv1d.bias", (width,), "F32"),
        (f"blk.{i}.ssm_dt.bias", (heads,), "F32"),
        (f"blk.{i}.ssm_a", (1, heads), "F32"),
        (f"blk.{i}.ssm_d", (1, heads), "F32"),
        (f"blk.{i}.ssm_norm.weight", (inner // groups, groups), "F32"),
        (f"blk.{i}.ssm_out.weight", (inner, WIDTH), "Q8_0"),
    ]


MAMBA2: dict[str, int] = {
    "ssm__conv_kernel": 4,
    "ssm__inner_size": 2048,
    "ssm__state_size": 128,
    "ssm__time_step_rank": 32,
    "ssm__group_count": 1,
}


def granite_hybrid(path: Path) -> Path:
    kv = [0, 0, 4, 0, 4]
    tensors = ends(tied=True)
    for i, heads in enumerate(kv):
        tensors += norms(i, "attn_norm", "ffn_norm") + feed_forward(i)
        tensors += attention(i) if heads else mamba2_layer(i, inner=2048, state=128, groups=1, heads=32)
    keys = base_keys(5, attention__head_count_kv=kv, rope__dimension_count=64, **MAMBA2)
    return write_gguf(path, "granitehybrid", keys, tensors)


def nemotron_h(path: Path) -> Path:
    """Layers that are recurrent, attention, or only feed-forward."""
    kv, feeds = [0, 0, 4, 0, 0, 4], [0, 2048, 0, 0, 2048, 0]
    tensors = ends()
    for i, (heads, width) in enumerate(zip(kv, feeds, strict=True)):
        tensors += norms(i, "attn_norm")
        if heads:
            tensors += attention(i)
        elif width:
            tensors += feed_forward(i, width=width)[1:]
        else:
            tensors += mamba2_layer(i, inner=2048, state=128, groups=1, heads=32)
    keys = base_keys(
        6,
        attention__head_count_kv=kv,
        attention__layer_norm_epsilon=1e-5,
        feed_forward_length=feeds,
        rope__dimension_count=64,
        **MAMBA2,
    )
    return write_gguf(path, "nemotron_h", keys, tensors)


def gemma4(path: Path) -> Path:
    """Sliding layers with smaller heads, embeddings of their own for each layer, and a shared cache at the end."""
    slides, own, extra = [1, 1, 0, 1, 1, 0, 1, 0], 6, 64
    tensors = ends(tied=True)
    tensors += [
        ("per_layer_token_embd.weight", (extra * 8, VOCABULARY), "Q8_0"),
        ("per_layer_model_proj.weight", (WIDTH, extra * 8), "Q8_0"),
        ("per_layer_proj_norm.weight", (extra,), "F32"),
        ("rope_freqs.weight", (64,), "F32"),
    ]
    for i, sliding in enumerate(slides):
        head = 64 if sliding else 128
        tensors += norms(i, "attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm", "post_norm")
        tensors += norms(i, "attn_q_norm", width=head)
        tensors += [item for item in attention(i, heads=8, kv=2, head=head) if i < own or "_k." not in item[0]]
        tensors += norms(i, "attn_k_norm", width=head) if i < own else []
        tensors += feed_forward(i)
        tensors += [
            (f"blk.{i}.inp_gate.weight", (WIDTH, extra), "Q8_0"),
            (f"blk.{i}.proj.weight", (extra, WIDTH), "Q8_0"),
        ]
    keys = base_keys(
        8,
        attention__head_count=8,
        attention__head_count_kv=2,
        attention__key_length=128,
        attention__value_length=128,
        attention__key_length_swa=64,
        attention__value_length_swa=64,
        attention__sliding_window=512,
        attention__sliding_window_pattern=[bool(flag) for flag in slides],
        attention__shared_kv_layers=8 - own,
        embedding_length_per_layer_input=extra,
        rope__freq_base_swa=10000.0,
        rope__dimension_count=128,
        rope__dimension_count_swa=64,
    )
    return write_gguf(path, "gemma4", keys, tensors)


FAMILIES = {
    "llama": llama,
    "gemma3": gemma3,
    "gpt-oss": gpt_oss,
    "deepseek2": deepseek2,
    "glm4moe": glm4moe,
    "mamba": mamba,
    "qwen35": qwen35,
    "lfm2": lfm2,
    "falcon-h1": falcon_h1,
    "cohere2": cohere2,
    "granitehybrid": granite_hybrid,
    "nemotron_h": nemotron_h,
    "gemma4": gemma4,
}
