"""The short list of models known by one word: where they are, how large, what they can do, which draft suits them.

The list itself is `catalog.json` beside this file. Sizes there are rounded and only for choosing; what counts for
memory is the header of the file (`gguf.py`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CAPABILITIES = ("chat", "tools", "vision", "reasoning", "embedding", "rerank")
DEMO_FOLDER = Path(__file__).parent / "demo"
DEMO_TARGET = DEMO_FOLDER / "target.gguf"
DEMO_DRAFT = DEMO_FOLDER / "draft.gguf"


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One known model. `repo` is "" for the demo, which ships with the package; `draft` is the alias of a small model
    with the same tokenizer; `context_length` is what it was trained on; `size_bytes` is about what a download takes."""

    alias: str
    name: str
    repo: str
    quant: str
    file: str
    size_bytes: int
    context_length: int
    capabilities: tuple[str, ...]
    draft: str = ""


@dataclass(frozen=True, slots=True)
class Catalog:
    """All entries, in the order in which `search` shows them."""

    entries: tuple[CatalogEntry, ...]

    def find(self, alias: str) -> CatalogEntry | None:
        """The entry of this alias, however it is capitalised."""
        wanted = alias.lower()
        return next((entry for entry in self.entries if entry.alias == wanted), None)

    def of_repo(self, repo: str, quant: str = "") -> CatalogEntry | None:
        """The entry of this repository (and quantisation), so that either name shows the same facts."""
        for entry in self.entries:
            if entry.repo.lower() == repo.lower() and entry.repo and (not quant or entry.quant == quant.upper()):
                return entry
        return None

    def search(self, words: str) -> list[CatalogEntry]:
        """Entries that contain every word in their alias, name, repository or capabilities."""
        wanted = words.lower().split()
        return [
            entry
            for entry in self.entries
            if all(
                word in f"{entry.alias} {entry.name} {entry.repo} {' '.join(entry.capabilities)}".lower()
                for word in wanted
            )
        ]


@cache
def load_catalog() -> Catalog:
    """The catalog of this version, read once."""
    raw = json.loads(Path(__file__).with_name("catalog.json").read_text(encoding="utf-8"))
    return Catalog(
        tuple(CatalogEntry(**{**entry, "capabilities": tuple(entry["capabilities"])}) for entry in raw["models"])
    )
