"""The folders of the cache: shared with huggingface_hub, with half files, rubbish, and removal."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from loopback_hub import COMMIT, LoopbackHub, noise

from meshnode.errors import (
    HubUnreachable,
    ModelNotFound,
)
from meshnode.models.cache import cache_folder
from meshnode.models.names import ModelRef
from meshnode.models.store import ModelStore

REPO = "owner/tiny-GGUF"


def test_the_cache_is_the_one_of_huggingface_hub(
    store: ModelStore, hub_server: LoopbackHub, model_bytes: bytes
) -> None:
    from huggingface_hub import scan_cache_dir, try_to_load_from_cache

    hub_server.add(REPO, {"tiny-Q4_K_M.gguf": model_bytes})
    model = store.pull(store.resolve(REPO))
    assert try_to_load_from_cache(REPO, "tiny-Q4_K_M.gguf", cache_dir=store.folder) == str(model.path)
    scanned = scan_cache_dir(store.folder)
    assert [(repo.repo_id, repo.size_on_disk) for repo in scanned.repos] == [(REPO, len(model_bytes))]
    assert not scanned.warnings


def test_a_model_that_the_library_fetched_is_found(
    store: ModelStore, hub_server: LoopbackHub, model_bytes: bytes
) -> None:
    folder = store.folder / "models--owner--tiny-GGUF"
    blob = folder / "blobs" / hashlib.sha256(model_bytes).hexdigest()
    blob.parent.mkdir(parents=True)
    blob.write_bytes(model_bytes)
    link = folder / "snapshots" / COMMIT / "sub" / "tiny-Q8_0.gguf"
    link.parent.mkdir(parents=True)
    link.symlink_to(os.path.relpath(blob, link.parent))
    found = store.find(store.resolve(f"{REPO}:q8_0"))
    assert found is not None and not found.incomplete and found.path == link
    assert store.resolve("tiny-Q8_0").repo == REPO
    assert hub_server.requests == []


def test_a_set_with_a_missing_part_is_incomplete(store: ModelStore, hub_server: LoopbackHub) -> None:
    parts = {f"big-Q4_K_M-{n:05d}-of-00002.gguf": noise(50_000, n) for n in (1, 2)}
    hub_server.add(REPO, parts)
    model = store.pull(store.resolve(REPO))
    model.parts[1].unlink()
    half = store.find(store.resolve(REPO))
    assert half is not None and half.incomplete


def test_remove_frees_the_bytes_and_keeps_the_rest(store: ModelStore, hub_server: LoopbackHub) -> None:
    hub_server.add(
        REPO, {"m-Q4_K_M.gguf": noise(1000), "m-Q8_0.gguf": noise(2000, 2), "mmproj-F16.gguf": noise(300, 3)}
    )
    small = store.pull(store.resolve(f"{REPO}:Q4_K_M"))
    store.pull(store.resolve(f"{REPO}:Q8_0"))
    assert store.remove(small.ref) == 1000
    assert store.find(small.ref) is None
    large = store.find(store.resolve(f"{REPO}:Q8_0"))
    assert large is not None and not large.incomplete and large.mmproj is not None
    assert store.remove(large.ref) == 2300
    assert not list(store.folder.glob("models--*"))
    with pytest.raises(ModelNotFound):
        store.remove(large.ref)


def test_remove_keeps_a_blob_that_another_name_needs(store: ModelStore, hub_server: LoopbackHub) -> None:
    same = noise(1000)
    hub_server.add(REPO, {"a-Q4_K_M.gguf": same, "b-Q8_0.gguf": same})
    first = store.pull(store.resolve(f"{REPO}:Q4_K_M"))
    second = store.pull(store.resolve(f"{REPO}:Q8_0"))
    assert store.remove(first.ref) == 0
    assert second.path.read_bytes() == same


def test_remove_of_a_half_download(store: ModelStore, hub_server: LoopbackHub) -> None:
    hub_server.add(REPO, {"m-Q4_K_M.gguf": noise(400_000)}, drops=[200_000] + [0] * 20)
    with pytest.raises(HubUnreachable):
        store.pull(store.resolve(REPO))
    assert 0 < store.remove(store.resolve(REPO)) <= 200_000
    assert not list(store.folder.glob("models--*"))


def test_hundreds_of_cached_models_list_quickly(
    store: ModelStore, benchmark_s: Callable[[Callable[[], object]], float]
) -> None:
    for number in range(300):
        folder = store.folder / f"models--owner--m{number}"
        (folder / "snapshots" / COMMIT).mkdir(parents=True)
        (folder / "snapshots" / COMMIT / f"m{number}-Q4_K_M.gguf").write_bytes(b"GGUF")
    assert len([model for model in store.list_local() if model.ref.kind == "hub"]) == 300
    assert benchmark_s(store.list_local) < 1.0


def test_rubbish_in_the_cache_is_passed_over(store: ModelStore) -> None:
    folder = store.folder / "models--owner--m"
    (folder / "snapshots" / "not-a-commit").mkdir(parents=True)
    (folder / "snapshots" / COMMIT).mkdir()
    (folder / "snapshots" / COMMIT / "m-Q4_K_M.gguf").symlink_to("../../blobs/gone")
    (folder / "blobs").mkdir()
    (folder / "blobs" / "x.incomplete.json").write_text("{")
    (store.folder / "models--broken").mkdir()
    (store.folder / "version.txt").write_text("1")
    assert [model for model in store.list_local() if model.ref.kind == "hub"] == []
    assert store.find(ModelRef("owner/m", "hub", repo="owner/m")) is None


@pytest.mark.parametrize(
    "environment",
    [
        {"HF_HUB_CACHE": "/a/b"},
        {"HF_HOME": "/a/home"},
        {"HUGGINGFACE_HUB_CACHE": "/old"},
        {"XDG_CACHE_HOME": "/xdg"},
        {"HF_HOME": "~/models"},
        {},
    ],
)
def test_the_folder_is_where_huggingface_hub_looks(environment: dict[str, str]) -> None:
    env = {"HOME": "/home/someone", "PATH": os.environ["PATH"], **environment}
    code = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    theirs = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    ours_code = "from meshnode.models.cache import cache_folder; print(cache_folder())"
    root = str(Path(__file__).parents[2])
    ours = subprocess.run(
        [sys.executable, "-c", ours_code], env=env, capture_output=True, text=True, check=True, cwd=root
    ).stdout
    assert Path(ours.strip()) == Path(theirs.strip())
    assert cache_folder({"HF_HUB_CACHE": "/a"}) == Path("/a")
