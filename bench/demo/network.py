"""The llama network in PyTorch, small enough to train on a CPU.

Rotary positions turn adjacent pairs of values, which is what llama.cpp does for the llama architecture, so the
weights are exported without any permutation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from .tokenizer import LARGEST_NUMBER, SPACE, Tokenizer

PERIODS = (2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 250.0, 500.0)


@dataclass(frozen=True)
class Shape:
    """Sizes of one network."""

    layers: int
    width: int
    heads: int
    key_value_heads: int
    hidden: int
    vocabulary: int
    rope_base: float = 10_000.0
    epsilon: float = 1e-5

    @property
    def head_size(self) -> int:
        return self.width // self.heads


def rotary_table(positions: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosine and sine for each position: (rows, 1, length, head_size / 2)."""
    steps = torch.arange(0, shape.head_size, 2, dtype=torch.float32) / shape.head_size
    angles = positions[:, None, :, None].float() * shape.rope_base**-steps
    return angles.cos(), angles.sin()


def rotate(values: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    even, odd = values[..., 0::2], values[..., 1::2]
    turned = torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), dim=-1)
    return turned.flatten(-2)


class Block(nn.Module):
    """Attention and feed-forward with their norms."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        narrow = shape.key_value_heads * shape.head_size
        self.attention_norm = nn.Parameter(torch.ones(shape.width))
        self.query_key_value = nn.Linear(shape.width, shape.width + 2 * narrow, bias=False)
        self.attention_output = nn.Linear(shape.width, shape.width, bias=False)
        self.feed_norm = nn.Parameter(torch.ones(shape.width))
        self.gate_up = nn.Linear(shape.width, 2 * shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, stream: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        stream = stream + self.attend(self.norm(stream, self.attention_norm), cosine, sine)
        gate, up = self.gate_up(self.norm(stream, self.feed_norm)).chunk(2, dim=-1)
        return stream + self.down(functional.silu(gate) * up)

    def norm(self, stream: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(stream, (self.shape.width,), weight, self.shape.epsilon)

    def attend(self, inputs: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        rows, length, _ = inputs.shape
        shape = self.shape
        groups = shape.heads + 2 * shape.key_value_heads
        projected = self.query_key_value(inputs).view(rows, length, groups, shape.head_size).transpose(1, 2)
        turning = shape.heads + shape.key_value_heads
        turned = rotate(projected[:, :turning], cosine, sine)
        query, key = turned[:, : shape.heads], turned[:, shape.heads :]
        value = projected[:, turning:]
        copies = shape.heads // shape.key_value_heads
        key = key.repeat_interleave(copies, dim=1)
        value = value.repeat_interleave(copies, dim=1)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.attention_output(mixed.transpose(1, 2).reshape(rows, length, shape.width))


class Network(nn.Module):
    """A stack of blocks between the token embedding and the output matrix."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.output_norm = nn.Parameter(torch.ones(shape.width))
        self.output = nn.Linear(shape.width, shape.vocabulary, bias=False)
        self.reset()

    def reset(self) -> None:
        nn.init.normal_(self.embedding.weight, std=0.5)
        nn.init.normal_(self.output.weight, std=0.5 / math.sqrt(self.shape.width))
        for block in self.blocks:
            for linear in (block.query_key_value, block.gate_up):
                nn.init.normal_(linear.weight, std=1 / math.sqrt(self.shape.width))
            quiet = 1 / math.sqrt(2 * self.shape.layers)
            nn.init.normal_(block.attention_output.weight, std=quiet / math.sqrt(self.shape.width))
            nn.init.normal_(block.down.weight, std=quiet / math.sqrt(self.shape.hidden))

    @torch.no_grad()
    def place_numbers(self, tokenizer: Tokenizer) -> None:
        """Start the number tokens on circles of several periods, so that order and sums are easy to learn."""
        periods = torch.tensor(PERIODS)
        numbers = torch.arange(LARGEST_NUMBER + 1, dtype=torch.float32)
        angles = 2 * math.pi * numbers[:, None] / periods
        circles = torch.cat((angles.cos(), angles.sin()), dim=1)
        for prefix in ("", SPACE):
            rows = torch.tensor([tokenizer.identifiers[f"{prefix}{number}"] for number in range(LARGEST_NUMBER + 1)])
            columns = circles.shape[1]
            self.embedding.weight[rows[:, None], torch.arange(columns)] = circles
            self.output.weight[rows[:, None], torch.arange(columns)] = circles / math.sqrt(self.shape.width)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Return the normalised hidden state of every place; `output` turns the wanted ones into logits."""
        cosine, sine = rotary_table(positions, self.shape)
        stream = self.embedding(tokens)
        for block in self.blocks:
            stream = block(stream, cosine, sine)
        return functional.rms_norm(stream, (self.shape.width,), self.output_norm, self.shape.epsilon)


@torch.no_grad()
def deepen(network: Network, layers: int) -> Network:
    """Spread the blocks over more layers; the new ones in between add nothing yet, so the answers stay the same."""
    every = layers // network.shape.layers
    deep = Network(replace(network.shape, layers=layers))
    deep.embedding.load_state_dict(network.embedding.state_dict())
    deep.output.load_state_dict(network.output.state_dict())
    deep.output_norm.copy_(network.output_norm)
    for index, block in enumerate(deep.blocks):
        if index % every == 0:
            block.load_state_dict(network.blocks[index // every].state_dict())
        else:
            block.attention_output.weight.zero_()
            block.down.weight.zero_()
    return deep
