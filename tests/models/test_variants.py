"""Which quantisations there are of a model: on the hub, on this disk, on both."""

from __future__ import annotations

from pathlib import Path

from loopback_hub import LoopbackHub, noise

from meshnode.errors import HubUnreachable
from meshnode.models.hub import Hub, HubFile, Listing
from meshnode.models.names import ModelRef
from meshnode.models.store import ModelStore
from meshnode.models.variants import variants_listed, variants_of, variants_on_disk

REPO = "owner/model-GGUF"
REF = ModelRef(REPO, "hub", repo=REPO)


def listing(sizes: dict[str, int]) -> Listing:
    files = tuple(HubFile(name, size, "0" * 64) for name, size in sizes.items())
    return Listing(REPO, "c" * 40, files)


def shown(ref: ModelRef, sizes: dict[str, int]) -> dict[str, int]:
    found = variants_listed(ref, listing(sizes))
    assert [variant.size_bytes for variant in found] == sorted(variant.size_bytes for variant in found)
    return {variant.quant: variant.size_bytes for variant in found}


def test_every_quantisation_of_a_repository() -> None:
    sizes = {"m-Q4_K_M.gguf": 5, "m-Q8_0.gguf": 9, "m-F16.gguf": 16, "README.md": 1, "imatrix-Q8_0.gguf": 1}
    assert shown(REF, sizes) == {"Q4_K_M": 5, "Q8_0": 9, "F16": 16}
    variants = variants_listed(REF, listing(sizes))
    assert [variant.ref.canonical for variant in variants] == [f"{REPO}:Q4_K_M", f"{REPO}:Q8_0", f"{REPO}:F16"]
    assert not any(variant.on_disk for variant in variants)


def test_parts_count_together_and_with_the_projector() -> None:
    parts = {f"Q8_0/m-Q8_0-0000{n}-of-00002.gguf": 10 + n for n in (1, 2)}
    assert shown(REF, {**parts, "m-Q4_0.gguf": 7, "mmproj-m-F16.gguf": 3}) == {"Q4_0": 10, "Q8_0": 26}


def test_a_model_that_lacks_a_part_is_left_out() -> None:
    assert shown(REF, {"m-Q8_0-00001-of-00002.gguf": 9, "m-Q4_0.gguf": 7, "m.gguf": 20}) == {"Q4_0": 7}


def test_other_models_of_the_repository_do_not_count() -> None:
    sizes = {"small-Q4_0.gguf": 4, "small-Q8_0.gguf": 8, "large-Q4_0.gguf": 40, "large-Q8_0.gguf": 80}
    one = ModelRef(f"{REPO}:Q8_0", "hub", repo=REPO, quant="Q8_0", filename="large-Q8_0.gguf")
    assert shown(one, sizes) == {"Q4_0": 40, "Q8_0": 80}


def test_two_files_of_one_quantisation() -> None:
    """The name decides, as it does for a download."""
    sizes = {"m-Q4_K_M.gguf": 5, "m-UD-Q4_K_M.gguf": 6}
    assert shown(REF, sizes) == {"Q4_K_M": 5, "UD-Q4_K_M": 6}


def test_what_is_on_this_disk_lacks_nothing(store: ModelStore, hub_server: LoopbackHub) -> None:
    hub_server.add(REPO, {"m-Q4_0.gguf": noise(4000), "m-Q8_0.gguf": noise(8000)})
    assert variants_on_disk(store, REF) == ()
    store.pull(REF.with_quant("Q4_0"))
    (here,) = variants_on_disk(store, REF)
    assert (here.quant, here.size_bytes, here.on_disk) == ("Q4_0", 4000, True)
    found, problem = variants_of(store, REF)
    assert problem is None
    assert [(v.quant, v.size_bytes, v.missing_bytes) for v in found] == [("Q4_0", 4000, 0), ("Q8_0", 8000, 8000)]


def test_a_silent_hub_leaves_those_of_the_disk(store: ModelStore, hub_server: LoopbackHub) -> None:
    hub_server.add(REPO, {"m-Q4_0.gguf": noise(4000)})
    store.pull(REF.with_quant("Q4_0"))
    away = ModelStore(store.folder, Hub("http://127.0.0.1:9", timeout_s=1), store.catalog)
    found, problem = variants_of(away, REF)
    assert [variant.quant for variant in found] == ["Q4_0"] and isinstance(problem, HubUnreachable)


def test_a_file_is_its_only_variant(store: ModelStore, tmp_path: Path) -> None:
    path = tmp_path / "mine-Q8_0.gguf"
    path.write_bytes(noise(100))
    (one,) = variants_of(store, store.resolve(str(path)))[0]
    assert (one.quant, one.size_bytes, one.on_disk) == ("Q8_0", 100, True)
    assert variants_of(store, store.resolve("demo"))[0][0].on_disk
