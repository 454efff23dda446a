"""The records that the probes of this package produce. Plain values; sizes in bytes, None where nothing was reported.

"Not reported" is None and never 0: a plan that takes a silent device for a full one would leave it idle, and one
that takes it for an empty one would crash it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Kind = Literal["gpu", "cpu", "unified"]


@dataclass(frozen=True, slots=True)
class Device:
    """Something that can hold a part of a model.

    `id` is the name llama.cpp knows it by (`CUDA0`), to be passed to `--device`; the processor is `CPU`. `kind` is
    "unified" for a GPU that shares the machine's memory: its bytes and those of the processor are the same ones.
    `free_bytes` is what may be used now, after `--max-vram`. `source` names the probes that said so.
    """

    id: str
    name: str
    kind: Kind
    backend: str
    total_bytes: int | None = None
    free_bytes: int | None = None
    driver: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a vendor's own interface says about one device. `backends` are those of llama.cpp that may drive it."""

    name: str
    backends: tuple[str, ...]
    total_bytes: int | None = None
    free_bytes: int | None = None
    unified: bool = False
    driver: str = ""


class Probe(Protocol):
    """One way to ask for devices. `read` returns [] where there is none of its kind, and may raise anything."""

    name: str

    def read(self) -> Sequence[Reading]:
        """The devices there are now."""
        ...


@dataclass(frozen=True, slots=True)
class Note:
    """A probe that could not be used and why: a line for `doctor`."""

    probe: str
    reason: str


@dataclass(frozen=True, slots=True)
class Memory:
    """The machine's memory as far as this process may use it. `source` is "machine" or "cgroup" (a container)."""

    total_bytes: int
    available_bytes: int
    source: str = "machine"


@dataclass(frozen=True, slots=True)
class Processor:
    """The processor as far as this process may use it: `logical` processors on `physical` cores (None: unknown).

    `flags` holds the instruction sets that matter to inference, in the spelling of Linux.
    """

    model: str
    logical: int
    physical: int | None = None
    flags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Inventory:
    """Everything found: devices in the order of llama.cpp, the processor last."""

    devices: tuple[Device, ...]
    processor: Processor
    memory: Memory
    notes: tuple[Note, ...] = ()

    @property
    def accelerators(self) -> tuple[Device, ...]:
        """The devices that are not the processor."""
        return tuple(device for device in self.devices if device.kind != "cpu")
