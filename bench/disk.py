"""The models of benchmarks, kept in a Hugging Face cache of their own: what every machine of a benchmark has on disk.

Nodes that are started with `HF_HOME` at `home()` find them there, and know one by its hash as they would any other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from meshnode.config import find_places

COMMIT = "c0" * 20


def home() -> Path:
    """The folder for HF_HOME."""
    return find_places().cache / "bench" / "disk"


def kept(stem: str, write: Callable[[Path], object]) -> Path:
    """The file `stem`.gguf; written when it is not there."""
    repository = home() / "hub" / f"models--bench--{stem}"
    path = repository / "snapshots" / COMMIT / f"{stem}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(COMMIT)
        print(f"writing {path}", flush=True)
        aside = path.with_suffix(".partial")
        write(aside)
        aside.replace(path)
    return path
