"""How much scratch memory a layer needs while a batch passes it, from the sizes of its tensors.

llama.cpp plans the memory between tensors with `ggml_gallocr`, over the graph of its largest batch. What is alive at
once in a layer peaks either in its attention, in its feed-forward part or in its recurrent part; each has a formula
below, in values of four bytes for each token of the batch, measured with llama-fit-params over many shapes. The
allocator leaves holes, and a device whose layers follow another device also keeps what came over: `spare` bounds
both. The sum is met exactly by most stages that follow main memory, and is above the others by `spare` at most.

Sources in llama.cpp: ggml-alloc.c; llama-graph.cpp (build_attn, build_ffn, build_moe_ffn), models/mamba-base.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshnode.models.header import Header

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Scratch:
    """Values for each token of a batch: `peak` alive at once, `spare` for holes and for what came from elsewhere."""

    peak: int
    spare: int


def scratch_of(header: Header) -> list[Scratch]:
    """The scratch memory of every layer, by number."""
    n_embd = header.number(header.key("embedding_length"))
    by_layer: list[Shapes] = [{} for _ in range(header.layer_count)]
    for tensor in header.tensors:
        block, _, rest = tensor.name.partition(".")
        number, _, name = rest.partition(".")
        if block == "blk" and number.isdigit() and int(number) < len(by_layer):
            by_layer[int(number)][name.removesuffix(".weight")] = tensor.shape
    # Gemma gives each layer a part of a further embedding, and all parts of it go wherever a layer is.
    further = next((t.shape[0] for t in header.tensors if t.name == "per_layer_token_embd.weight"), 0)
    used = header.per_layer("expert_used_count")
    return [_layer(shapes, n_embd, max(1, chosen), further) for shapes, chosen in zip(by_layer, used, strict=True)]


def _layer(shapes: Shapes, n_embd: int, chosen: int, further: int) -> Scratch:
    attention, query = _attention(shapes, n_embd)
    recurrent = _recurrent(shapes, n_embd)
    feeding = max(_feed_forward(shapes, n_embd), _experts(shapes, n_embd, chosen))
    # What works side by side waits for the other's result: attention and state (falcon-h1), attention and feed-forward
    # behind one norm (cohere2).
    one_norm = attention and feeding and "ffn_norm" not in shapes and "post_attention_norm" not in shapes
    beside = n_embd if one_norm or (attention and recurrent) else 0
    peak = 2 * n_embd + beside + max(attention, recurrent, feeding)
    mixed = (chosen + 1) * n_embd if "ffn_gate_inp" in shapes else 0
    convolved = _out(shapes, "ssm_conv1d") if "ssm_in" in shapes else 0
    return Scratch(peak, max(n_embd, query, mixed, convolved) + 2 * further)


def _out(shapes: Shapes, name: str) -> int:
    """Values that a matrix makes of one token, 0 if there is none."""
    return shapes[name][1] if len(shapes.get(name, ())) > 1 else 0


def _attention(shapes: Shapes, n_embd: int) -> tuple[int, int]:
    """Queries, keys and values, and the result. Returns the values alive and those of the queries alone."""
    if len(shapes.get("attn_k_b", ())) == 3:
        # Latent attention in its absorbed form: queries as they come, their part in the latent space, both joined.
        _, latent, heads = shapes["attn_k_b"]
        query = _out(shapes, "attn_q_b") or _out(shapes, "attn_q")
        joined = heads * _out(shapes, "attn_kv_a_mqa")
        return query + heads * latent + joined, query
    fused = 0 if "ssm_conv1d" in shapes else _out(shapes, "attn_qkv")
    if fused:
        return 2 * fused + n_embd, fused
    query = _out(shapes, "attn_q")
    return 2 * query + _out(shapes, "attn_k") + _out(shapes, "attn_v"), query


def _feed_forward(shapes: Shapes, n_embd: int) -> int:
    up, gate = _out(shapes, "ffn_up"), _out(shapes, "ffn_gate")
    shared = _out(shapes, "ffn_up_shexp")
    return max(3 * up if gate else 2 * up, n_embd + 3 * shared if shared else 0)


def _experts(shapes: Shapes, n_embd: int, chosen: int) -> int:
    """The chosen experts side by side: up, gate and product, or the product and their results."""
    width = max(_out(shapes, "ffn_up_exps"), _out(shapes, "ffn_gate_exps"), _out(shapes, "ffn_gate_up_exps") // 2)
    router = _out(shapes, "ffn_gate_inp")
    return chosen * max(3 * width, width + n_embd) + 3 * router if width else 0


def _recurrent(shapes: Shapes, n_embd: int) -> int:
    """State spaces and linear attention: what goes in, the convolution's input and result, and what comes out."""
    if "shortconv.conv" in shapes:
        return 2 * _out(shapes, "shortconv.in_proj")
    if "ssm_conv1d" not in shapes:
        return 0
    convolved = _out(shapes, "ssm_conv1d")
    leaving = shapes["ssm_out"][0] if "ssm_out" in shapes else convolved
    if "ssm_in" in shapes:
        return _out(shapes, "ssm_in") + 2 * convolved + leaving
    return _out(shapes, "attn_qkv") + _out(shapes, "attn_gate") + convolved + leaving
