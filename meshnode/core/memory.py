"""What a model takes on a device: the facts that plans read of it, and llama.cpp's scratch memory from them.

Weights and the memory of conversations are exact (meshnode.models.shapes counts them). Scratch memory ("compute
buffer") is an upper bound of what `ggml_gallocr` reserves for the largest batch (llama-context.cpp, `graph_reserve`).

Rules of this file: pure; sizes are bytes, contexts are tokens of one conversation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

MIB = 1 << 20
GIB = 1 << 30

CELLS_PAD = 256
UBATCH = 512
"""Tokens that one step of prompt processing takes at most (`--ubatch-size`)."""
OUTPUTS_PER_REQUEST = 17
"""Tokens of one request that get logits at once: the next one, and as many guesses as are ever verified with it."""
SMALL_INPUTS_BYTES = 256 << 10
"""Positions, cache slots, tokens and the like."""
HOST_SCRATCH_BYTES = 16 * MIB
"""What the host takes for its inputs and results even without a layer of its own."""
ENGINE_OVERHEAD_BYTES = 150 * MIB
"""Code, tokenizer and buffers of the server itself."""


class LayerShape(Protocol):
    """What the planner reads of one layer; see meshnode.models.shapes for the values and the formulas."""

    @property
    def weights_bytes(self) -> int: ...
    @property
    def k_elements(self) -> int: ...
    @property
    def window(self) -> int | None: ...
    @property
    def state_bytes(self) -> int: ...
    @property
    def scratch_elements(self) -> int: ...
    @property
    def spare_elements(self) -> int: ...

    def kv_bytes(self, context: int, *, sequences: int, cache_type: str) -> int:
        """Cache and state of `sequences` conversations of `context` tokens each."""
        ...


class ModelShape(Protocol):
    """What the planner reads of a model."""

    @property
    def name(self) -> str: ...
    @property
    def layers(self) -> Sequence[LayerShape]: ...
    @property
    def embedding_bytes(self) -> int: ...
    @property
    def output_bytes(self) -> int: ...
    @property
    def other_bytes(self) -> int: ...
    @property
    def context_train(self) -> int: ...
    @property
    def n_embd(self) -> int: ...
    @property
    def n_ff(self) -> int: ...
    @property
    def n_vocab(self) -> int: ...


def pad(value: int, multiple: int) -> int:
    """`value` rounded up to a multiple."""
    return -(-value // multiple) * multiple


def compute_bytes(
    model: ModelShape,
    *,
    context: int,
    parallel: int,
    with_output: bool,
    first: int = 0,
    end: int | None = None,
    main: bool = False,
    outputs: int | None = None,
    copies: int = 1,
) -> int:
    """Upper bound of the scratch memory on a device that holds the layers `first` to `end`.

    It holds the attention masks of its layers (f16, a row of the context for each token of a batch, one mask for every
    window), what is alive at once in its largest layer, and recurrent states; or, when all of that is free again, the
    logits of `outputs` tokens. In `main` memory all inputs begin: the masks of every layer and the embedded tokens.
    `copies` of the inputs are kept where llama.cpp lets several batches be under way (more than one local GPU).
    """
    layers = model.layers[first:end]
    token = UBATCH * 4
    attending = {layer.window for layer in (model.layers if main else layers) if layer.k_elements}
    cells = [pad(min(context, window + UBATCH) if window else context, CELLS_PAD) for window in attending]
    inputs = copies * (sum(2 * count * UBATCH for count in cells) + SMALL_INPUTS_BYTES)
    held = 0
    if layers:
        elements = max(layer.scratch_elements for layer in layers)
        spare = max(layer.spare_elements for layer in layers)
        if not elements:
            elements, spare = 3 * model.n_ff + 2 * model.n_embd, 2 * model.n_embd
        state = parallel * max(layer.state_bytes for layer in layers)
        held = inputs + token * (elements + spare + (copies - 1) * model.n_embd) + 2 * state
    if main:
        most_spare = max((layer.spare_elements for layer in model.layers), default=0) or model.n_embd
        held = max(held, inputs + token * most_spare) + token * model.n_embd
    if not with_output:
        return held
    rows = parallel * OUTPUTS_PER_REQUEST if outputs is None else outputs
    head = 4 * rows * model.n_vocab + 2 * token * model.n_embd + SMALL_INPUTS_BYTES
    # What was a mask's is free by then, and used again if it is large enough.
    reused = 2 * UBATCH * max(cells, default=0) >= token * model.n_embd
    return max(held, head + (0 if reused else inputs + token * model.n_embd))
