"""The kept inputs: one file a target in corpus/, one input a line, in hex, the short ones first."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus"


def kept(name: str) -> list[bytes]:
    """The inputs of a target. An empty line is the empty input."""
    return [bytes.fromhex(line) for line in (FOLDER / f"{name}.hex").read_text("ascii").splitlines()]


def keep(name: str, inputs: Iterable[bytes]) -> None:
    """Make these the inputs of a target."""
    lines = [data.hex() for data in sorted(set(inputs), key=lambda data: (len(data), data))]
    (FOLDER / f"{name}.hex").write_text("".join(f"{line}\n" for line in lines), "ascii")
