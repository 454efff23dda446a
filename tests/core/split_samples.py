"""Machines and models for tests of splits. Names are node ids; `Line` has the round trips between them."""

from __future__ import annotations

from dataclasses import dataclass, field

from meshnode.core.memory import GIB, MIB
from meshnode.core.split import DeviceFacts, DeviceKind, NodeFacts
from meshnode.models.shapes import LayerShape


@dataclass(frozen=True)
class Model:
    name: str
    layers: tuple[LayerShape, ...]
    embedding_bytes: int
    output_bytes: int
    other_bytes: int = 0
    context_train: int = 131072
    n_embd: int = 4096
    n_ff: int = 14336
    n_vocab: int = 128256
    tied_bytes: int = 0
    share: float = 1.0

    @property
    def active_bytes(self) -> int:
        return round(self.share * (sum(layer.weights_bytes for layer in self.layers) + self.output_bytes))


# Sizes as in the Q4_K_M files of Llama 3.1 8B and 3.3 70B.
SMALL = Model("small", (LayerShape(MIB, 64, 64),) * 12, MIB, MIB, context_train=4096, n_embd=384, n_ff=512, n_vocab=384)
SEVEN = Model("7B", (LayerShape(125 * MIB, 1024, 1024),) * 32, 280 * MIB, 410 * MIB)
SEVENTY = Model("70B", (LayerShape(480 * MIB, 1024, 1024),) * 80, 560 * MIB, 820 * MIB, n_embd=8192, n_ff=28672)
MIXTURE = Model("mixture", (LayerShape(600 * MIB, 512, 512),) * 48, 300 * MIB, 300 * MIB, n_embd=2048, share=0.1)


@dataclass
class Line:
    """Round trips by pair in seconds, either way round; `rest` is that of all others."""

    pairs: dict[tuple[str, str], float | None] = field(default_factory=dict)
    rest: float | None = 0.010

    def rtt_s(self, a: str, b: str) -> float | None:
        if (a, b) in self.pairs:
            return self.pairs[a, b]
        return self.pairs.get((b, a), self.rest)


def gpu(
    gib: float, *, speed: float | None = 800e9, name: str = "CUDA0", kind: DeviceKind = "gpu", layer_s: float = 20e-6
) -> DeviceFacts:
    return DeviceFacts(name, int(gib * GIB), speed, None if speed is None else layer_s, kind)


def cpu(gib: float, *, speed: float | None = 20e9) -> DeviceFacts:
    return DeviceFacts("CPU", int(gib * GIB), speed, None if speed is None else 50e-6, "cpu")


def machine(
    node: str,
    *devices: DeviceFacts,
    host: float = 8,
    here: bool = False,
    weights: bool = False,
    lends: bool = True,
    why_not: str = "",
    path: str = "direct",
    incumbent: bool = False,
) -> NodeFacts:
    return NodeFacts(
        node=node,
        name=node.upper(),
        here=here,
        devices=devices,
        host_bytes=int(host * GIB),
        has_weights=weights or here,
        lends=lends,
        why_not=why_not,
        path=path,
        incumbent=incumbent,
    )
