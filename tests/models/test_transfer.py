"""Receiving one file over real HTTP: broken connections, wrong bytes, full disks."""

import errno
import itertools
import os

import pytest
from loopback_hub import LoopbackHub, git_sha1, noise

from meshnode.errors import (
    CacheNotWritable,
    DiskFull,
    DownloadCorrupt,
    DownloadStopped,
    HubUnreachable,
    ModelFileInvalid,
)
from meshnode.models.store import ModelStore
from meshnode.telemetry import Progress

REPO = "owner/tiny-GGUF"


def test_a_dropped_connection_goes_on_where_it_stopped(store: ModelStore, hub_server: LoopbackHub) -> None:
    data = noise(1 << 20)
    hub_server.add(REPO, {"m-Q4_K_M.gguf": data}, drops=[300_000, 0, 400_000])
    model = store.pull(store.resolve(REPO))
    assert model.path.read_bytes() == data
    starts = [int(value.removeprefix("bytes=").split("-")[0]) for value in hub_server.ranges()]
    assert starts[0] == 0 and 0 < starts[1] <= 300_000 and starts[-1] > starts[1]


def test_a_half_download_is_listed_and_finished_later(store: ModelStore, hub_server: LoopbackHub) -> None:
    data = noise(1 << 20)
    repo = hub_server.add(REPO, {"m-Q4_K_M.gguf": data}, drops=[500_000] + [0] * 20)
    ref = store.resolve(REPO)
    with pytest.raises(HubUnreachable) as caught:
        store.pull(ref)
    assert "resumes" in caught.value.fix
    half = store.find(ref)
    assert half is not None and half.incomplete
    assert 0 < half.size_bytes <= 500_000 and half.total_bytes == len(data)
    assert [model.name for model in store.list_local() if model.incomplete] == ["m-Q4_K_M"]
    with pytest.raises(ModelFileInvalid, match="still missing"):
        store.read(half)
    repo.drops.clear()
    hub_server.requests.clear()
    reports: list[Progress] = []
    model = store.pull(ref, reports.append)
    assert model.path.read_bytes() == data
    assert hub_server.ranges() == [f"bytes={half.size_bytes}-{len(data) - 1}"]
    assert reports[0].done == half.size_bytes
    assert not list(store.folder.rglob("*.incomplete*"))


def test_a_hub_that_ignores_ranges_starts_over(store: ModelStore, hub_server: LoopbackHub) -> None:
    data = noise(600_000)
    hub_server.add(REPO, {"m-Q4_K_M.gguf": data}, drops=[200_000], ignores_ranges=True)
    reports: list[Progress] = []
    assert store.pull(store.resolve(REPO), reports.append).path.read_bytes() == data
    assert max(report.done for report in reports) == len(data)


def test_cancelling_keeps_what_came(store: ModelStore, hub_server: LoopbackHub) -> None:
    data = noise(2 << 20)
    hub_server.add(REPO, {"m-Q4_K_M.gguf": data})
    asked = itertools.count()
    with pytest.raises(DownloadStopped):
        store.pull(store.resolve(REPO), cancelled=lambda: next(asked) > 4)
    half = store.find(store.resolve(REPO))
    assert half is not None and half.incomplete
    assert store.pull(store.resolve(REPO)).path.read_bytes() == data


def test_a_wrong_hash_is_refused_and_the_bytes_go(store: ModelStore, hub_server: LoopbackHub) -> None:
    repo = hub_server.add(REPO, {"m-Q4_K_M.gguf": noise(100_000)}, announced={"m-Q4_K_M.gguf": "a" * 64})
    with pytest.raises(DownloadCorrupt, match="hash"):
        store.pull(store.resolve(REPO))
    assert not [path for path in store.folder.rglob("blobs/*")]
    assert store.find(store.resolve(REPO)) is None
    repo.announced.clear()
    assert not store.pull(store.resolve(REPO)).incomplete


def test_a_half_file_that_was_damaged_is_noticed(store: ModelStore, hub_server: LoopbackHub) -> None:
    data = noise(400_000)
    hub_server.add(REPO, {"m-Q4_K_M.gguf": data}, drops=[200_000] + [0] * 20)
    with pytest.raises(HubUnreachable):
        store.pull(store.resolve(REPO))
    half = next(store.folder.rglob("*.incomplete"))
    half.write_bytes(bytes(half.stat().st_size))
    hub_server.repositories[REPO].drops.clear()
    with pytest.raises(DownloadCorrupt):
        store.pull(store.resolve(REPO))
    assert store.pull(store.resolve(REPO)).path.read_bytes() == data


def test_small_files_are_checked_by_their_git_hash(store: ModelStore, hub_server: LoopbackHub) -> None:
    data = noise(5000)
    hub_server.add(REPO, {"m-Q4_K_M.gguf": data}, small=frozenset({"m-Q4_K_M.gguf"}))
    model = store.pull(store.resolve(REPO))
    assert model.path.resolve().name == git_sha1(data)
    assert model.sha256 == ""


@pytest.mark.parametrize("size", [90_000, 110_000])
def test_a_hub_that_lies_about_the_size(store: ModelStore, hub_server: LoopbackHub, size: int) -> None:
    hub_server.add(REPO, {"m-Q4_K_M.gguf": noise(100_000)}, sizes={"m-Q4_K_M.gguf": size})
    with pytest.raises(DownloadCorrupt):
        store.pull(store.resolve(REPO))
    assert not list(store.folder.rglob("*.incomplete*"))


def test_a_disk_that_fills_up_on_the_way(
    store: ModelStore, hub_server: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_server.add(REPO, {"m-Q4_K_M.gguf": noise(100_000)})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull):
        store.pull(store.resolve(REPO))


def test_a_cache_that_cannot_be_written(store: ModelStore, hub_server: LoopbackHub) -> None:
    hub_server.add(REPO, {"m-Q4_K_M.gguf": noise(10)})
    store.folder.write_text("a file where the folder should be")
    with pytest.raises(CacheNotWritable):
        store.pull(store.resolve(REPO))
