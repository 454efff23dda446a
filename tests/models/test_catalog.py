"""The catalog is what it should be: well-formed, without doubles, with drafts that exist and names that resolve."""

import json
import re
from pathlib import Path

import pytest

import meshnode
from meshnode.models.catalog import CAPABILITIES, CatalogEntry, load_catalog
from meshnode.models.names import choose_files, quant_of, resolve

CATALOG = load_catalog()


def test_about_thirty_models_and_the_demo_first() -> None:
    assert 30 <= len(CATALOG.entries) <= 45
    assert CATALOG.entries[0].alias == "demo" and CATALOG.entries[0].repo == ""


def test_no_doubles() -> None:
    for key in (lambda e: e.alias, lambda e: e.name, lambda e: (e.repo.lower(), e.quant)):
        values = [key(entry) for entry in CATALOG.entries]
        assert len(values) == len(set(values))


@pytest.mark.parametrize("entry", CATALOG.entries, ids=lambda entry: entry.alias)
def test_each_entry_is_whole(entry: CatalogEntry) -> None:
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]+", entry.alias)
    assert entry.name and entry.context_length >= 512 and entry.size_bytes > 10**6
    assert entry.capabilities and set(entry.capabilities) <= set(CAPABILITIES)
    generates = "chat" in entry.capabilities
    assert generates != bool({"embedding", "rerank"} & set(entry.capabilities))
    assert resolve(entry.alias.upper(), catalog=CATALOG).alias == entry.alias
    if entry.repo:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", entry.repo)
        assert entry.file.endswith(".gguf") and quant_of(entry.file) == entry.quant
        first = entry.file if "-of-" not in entry.file else ""
        assert not first or choose_files([entry.file], entry.quant).parts == (entry.file,)


@pytest.mark.parametrize("entry", [e for e in CATALOG.entries if e.draft], ids=lambda entry: entry.alias)
def test_drafts_exist_are_smaller_and_of_the_same_family(entry: CatalogEntry) -> None:
    draft = CATALOG.find(entry.draft)
    assert draft is not None and draft.alias != entry.alias
    assert draft.size_bytes < entry.size_bytes / 2
    family = re.match(r"[a-z]+", entry.alias)
    assert family and draft.alias.startswith(family[0])


def test_the_file_has_no_unknown_fields() -> None:
    raw = json.loads((Path(meshnode.__file__).parent / "models" / "catalog.json").read_text())
    assert list(raw) == ["models"]
    assert {key for model in raw["models"] for key in model} <= set(CatalogEntry.__slots__)


def test_find_and_search() -> None:
    assert CATALOG.find("QWEN3-8B") is not None and CATALOG.find("absent") is None
    found = CATALOG.of_repo("qwen/qwen3-8b-gguf", "q4_k_m")
    assert found is not None and found.alias == "qwen3-8b"
    assert CATALOG.of_repo("Qwen/Qwen3-8B-GGUF", "Q2_K") is None and CATALOG.of_repo("") is None
    assert [entry.alias for entry in CATALOG.search("gemma vision")] == ["gemma-3-4b", "gemma-3-12b", "gemma-3-27b"]
    assert len(CATALOG.search("")) == len(CATALOG.entries)
