"""The store over a real hub on loopback: resolve, find, look up, fetch, remove, search."""

import hashlib
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import gguf_samples as samples
import pytest
from loopback_hub import COMMIT, LoopbackHub, noise

from meshnode.errors import (
    DiskFull,
    HubOffline,
    HubUnreachable,
    ModelError,
    ModelInUse,
    ModelNotFound,
)
from meshnode.models.store import ModelStore
from meshnode.telemetry import Progress

REPO = "owner/tiny-GGUF"


def test_pull_verifies_links_and_reports(store: ModelStore, hub_server: LoopbackHub, model_bytes: bytes) -> None:
    hub_server.add(REPO, {"README.md": b"hi", "tiny-Q4_K_M.gguf": model_bytes, "tiny-Q8_0.gguf": noise(10)})
    reports: list[Progress] = []
    model = store.pull(store.resolve(REPO), reports.append)
    assert model.ref.canonical == f"{REPO}:Q4_K_M"
    assert model.path.read_bytes() == model_bytes
    assert model.sha256 == hashlib.sha256(model_bytes).hexdigest() == model.path.resolve().name
    assert (model.size_bytes, model.total_bytes, model.incomplete) == (len(model_bytes), len(model_bytes), False)
    assert store.read(model).architecture == "llama"
    assert reports[-1] == Progress(
        "download", f"{REPO}:Q4_K_M", len(model_bytes), len(model_bytes), "bytes", finished=True
    )
    assert [report.done for report in reports] == sorted(report.done for report in reports)
    assert {path for path, _ in hub_server.requests if "/resolve/" in path} == {
        f"/{REPO}/resolve/{COMMIT}/tiny-Q4_K_M.gguf"
    }


def test_pulling_again_fetches_nothing(store: ModelStore, hub_server: LoopbackHub, model_bytes: bytes) -> None:
    hub_server.add(REPO, {"tiny-Q4_K_M.gguf": model_bytes})
    store.pull(store.resolve(REPO))
    before = len(hub_server.ranges())
    assert store.pull(store.resolve(REPO)).size_bytes == len(model_bytes)
    assert len(hub_server.ranges()) == before


def test_all_parts_and_the_projector_come(store: ModelStore, hub_server: LoopbackHub) -> None:
    parts = {f"Q4_K_M/big-Q4_K_M-{n:05d}-of-00003.gguf": noise(50_000, n) for n in (1, 2, 3)}
    hub_server.add(REPO, {**parts, "mmproj-F16.gguf": noise(1000), "big-Q8_0.gguf": noise(10)})
    reports: list[Progress] = []
    model = store.pull(store.resolve(REPO), reports.append)
    assert [path.name for path in model.parts] == [name.rpartition("/")[2] for name in parts]
    assert model.path == model.parts[0] and len({path.parent for path in model.parts}) == 1
    assert model.mmproj is not None and model.mmproj.read_bytes() == noise(1000)
    assert (model.size_bytes, model.name) == (150_000, "big-Q4_K_M")
    assert any("(2 of 4 files)" in report.text for report in reports)
    assert [item.name for item in store.list_local() if item.ref.kind == "hub"] == ["big-Q4_K_M"]


def test_a_missing_part_on_the_hub_is_named(store: ModelStore, hub_server: LoopbackHub) -> None:
    hub_server.add(REPO, {"big-Q4_K_M-00001-of-00002.gguf": noise(100)})
    with pytest.raises(ModelNotFound, match="00002-of-00002"):
        store.pull(store.resolve(REPO))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("owner/absent", "no repository"), (f"{REPO}@nope", "no such revision"), (f"{REPO}:Q2_K", "no Q2_K file")],
)
def test_what_the_hub_does_not_have(store: ModelStore, hub_server: LoopbackHub, text: str, sentence: str) -> None:
    hub_server.add(REPO, {"m-Q4_K_M.gguf": noise(10)})
    with pytest.raises(ModelNotFound, match=sentence) as caught:
        store.pull(store.resolve(text))
    if "Q2_K" in text:
        assert caught.value.fix == "it has Q4_K_M"


def test_a_repository_without_gguf(store: ModelStore, hub_server: LoopbackHub) -> None:
    hub_server.add(REPO, {"model.safetensors": b"x"})
    with pytest.raises(ModelNotFound, match="no GGUF"):
        store.pull(store.resolve(REPO))


def test_offline_uses_what_is_here_and_refuses_the_rest(store: ModelStore, hub_server: LoopbackHub) -> None:
    hub_server.add(REPO, {"m-Q4_K_M.gguf": noise(10), "m-Q8_0.gguf": noise(10)})
    store.pull(store.resolve(REPO))
    hub_server.requests.clear()
    offline = replace(store, hub=replace(store.hub, offline=True))
    assert not offline.pull(offline.resolve(REPO)).incomplete
    with pytest.raises(HubOffline):
        offline.pull(offline.resolve(f"{REPO}:Q8_0"))
    assert isinstance(offline.search("tiny").problem, HubOffline)
    assert hub_server.requests == []


def test_too_little_room_is_said_before_the_download(
    store: ModelStore, hub_server: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_server.add(REPO, {"m-Q4_K_M.gguf": noise(100_000)})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1))  # type: ignore[attr-defined]
    with pytest.raises(DiskFull, match="GB are needed"):
        store.pull(store.resolve(REPO))
    assert hub_server.ranges() == []


def test_two_at_once_fetch_once(store: ModelStore, hub_server: LoopbackHub) -> None:
    data = noise(1 << 20)
    hub_server.add(REPO, {"m-Q4_K_M.gguf": data})
    started, go = threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        go.wait(20)

    hub_server.before_chunk = hold
    first = threading.Thread(target=store.pull, args=(store.resolve(REPO),))
    first.start()
    assert started.wait(20)
    waits: list[str] = []

    def report(progress: Progress) -> None:
        if "another program" in progress.text:
            waits.append(progress.text)
            go.set()

    model = store.pull(store.resolve(REPO), report)
    first.join(20)
    assert waits and model.path.read_bytes() == data
    assert len(hub_server.ranges()) == 1


def test_remove_refuses_what_is_served_or_not_its_own(
    store: ModelStore, hub_server: LoopbackHub, tmp_path: Path
) -> None:
    hub_server.add(REPO, {"m-Q4_K_M.gguf": noise(10)})
    model = store.pull(store.resolve(REPO))
    with pytest.raises(ModelInUse):
        store.remove(model.ref, in_use=lambda canonical: canonical == model.ref.canonical)
    mine = samples.llama(tmp_path / "mine.gguf", layers=1)
    with pytest.raises(ModelError, match="file of yours"):
        store.remove(store.resolve(str(mine)))
    assert mine.exists()


def test_a_file_by_its_path(store: ModelStore, tmp_path: Path) -> None:
    path = samples.llama(tmp_path / "My-Model-Q8_0.gguf", layers=1)
    (tmp_path / "mmproj-My-Model.gguf").write_bytes(b"GGUF")
    model = store.find(store.resolve(str(path)))
    assert model is not None and model.ref.canonical == "file:My-Model-Q8_0"
    assert model.mmproj == tmp_path / "mmproj-My-Model.gguf"
    assert store.pull(model.ref).path == path


def test_a_renamed_catalog_file_is_found_by_its_quantisation(store: ModelStore, hub_server: LoopbackHub) -> None:
    hub_server.add("Qwen/Qwen3-4B-GGUF", {"renamed-Q4_K_M.gguf": noise(10)})
    assert store.look_up(store.resolve("qwen3-4b")).choice.parts == ("renamed-Q4_K_M.gguf",)


def test_search_joins_the_catalog_and_the_hub(store: ModelStore, hub_server: LoopbackHub) -> None:
    hub_server.add("someone/qwen3-tuned-GGUF", {}, gated=True)
    hub_server.add("someone/other", {})
    result = store.search("qwen3", limit=5)
    assert len(result.catalog) == 5 and result.problem is None
    assert [(found.repo, found.gated) for found in result.hub] == [("someone/qwen3-tuned-GGUF", True)]


def test_a_renamed_catalog_file_is_found_again_on_this_disk(store: ModelStore, hub_server: LoopbackHub) -> None:
    hub_server.add("Qwen/Qwen3-4B-GGUF", {"renamed-Q4_K_M.gguf": noise(10)})
    pulled = store.pull(store.resolve("qwen3-4b"))
    found = store.find(store.resolve("qwen3-4b"))
    assert found is not None and found == pulled
    assert (found.ref.alias, found.ref.canonical) == ("qwen3-4b", "Qwen/Qwen3-4B-GGUF:Q4_K_M")


def test_two_models_of_one_quantisation_have_two_names(store: ModelStore, hub_server: LoopbackHub) -> None:
    hub_server.add(REPO, {"large-Q8_0.gguf": noise(20), "small-Q8_0.gguf": noise(10), "plain.gguf": noise(5)})
    for name, canonical in (
        ("large-Q8_0.gguf", f"{REPO}:Q8_0"),
        ("small-Q8_0.gguf", f"{REPO}/small-Q8_0.gguf"),
        ("plain.gguf", f"{REPO}/plain.gguf"),
    ):
        model = store.pull(store.resolve(f"{REPO}/{name}"))
        assert (model.ref.canonical, model.path.name) == (canonical, name)
        again = store.find(store.resolve(canonical))
        assert again is not None and again.path == model.path
    assert store.remove(store.resolve(f"{REPO}/small-Q8_0.gguf")) == 10
    assert {item.name for item in store.list_local()} >= {"large-Q8_0", "plain"}


def test_the_projector_comes_first_so_that_whole_means_whole(store: ModelStore, hub_server: LoopbackHub) -> None:
    files = {"m-Q4_K_M.gguf": noise(500), "mmproj-F16.gguf": noise(300_000)}
    repo = hub_server.add(REPO, files, drops=[1000] + [0] * 20)
    with pytest.raises(HubUnreachable):
        store.pull(store.resolve(REPO))
    found = store.find(store.resolve(REPO))
    assert found is None or found.incomplete
    repo.drops.clear()
    assert store.pull(store.resolve(REPO)).mmproj is not None
