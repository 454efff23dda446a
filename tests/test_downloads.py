"""Downloads in the background, from a hub on loopback: followed, stopped, resumed, failed, and ended with the node."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from meshnode import downloads as module
from meshnode.downloads import AT_ONCE, MOST_ENDED, MOST_WAITING, Downloads, Rate
from meshnode.errors import ModelNotFound, NodeStopping, TooManyRequests
from meshnode.models import store as model_store
from meshnode.models import transfer
from meshnode.models.catalog import load_catalog
from meshnode.models.hub import Hub
from meshnode.models.store import ModelStore
from tests.models.loopback_hub import LoopbackHub, noise

pytestmark = pytest.mark.anyio
REPO = "owner/model-GGUF"
FILE = "m-Q8_0.gguf"
NAME = f"{REPO}:Q8_0"
DATA = noise(1 << 20)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    monkeypatch.setattr(transfer, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(model_store, "REPORT_EVERY_S", 0.0)
    server = LoopbackHub()
    server.add(REPO, {FILE: DATA})
    yield server
    server.close()


@pytest.fixture
def store(hub: LoopbackHub, tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "hub", Hub(hub.endpoint, timeout_s=5), load_catalog())


@pytest.fixture
async def downloads(store: ModelStore) -> AsyncIterator[Downloads]:
    found = Downloads(store=lambda: store, changed=lambda: None)
    yield found
    await found.close()


class Held:
    """Stops a hub in the middle of a file until it is told to go on."""

    def __init__(self, hub: LoopbackHub, after: int = 4) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        self._left = after
        hub.before_chunk = self._wait

    def _wait(self) -> None:
        self._left -= 1
        if self._left < 0:
            self.reached.set()
            self.go_on.wait(20)

    async def until_reached(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, 10)


async def until(condition: Callable[[], Any]) -> None:
    """Return when the condition holds; fails after ten seconds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


def only(downloads: Downloads) -> dict[str, Any]:
    (entry,) = downloads.facts()
    return entry


async def ended(downloads: Downloads) -> dict[str, Any]:
    await until(lambda: all(entry["state"] != "running" for entry in downloads.facts()))
    return only(downloads)


async def test_a_model_is_fetched(downloads: Downloads, store: ModelStore) -> None:
    before = time.time()
    assert await downloads.pull(f" {NAME} ") == {"model": NAME, "state": "running"}
    found = await ended(downloads)
    assert before - 1 < found.pop("since") <= time.time()
    assert found == {
        "model": NAME,
        "state": "done",
        "detail": "",
        "done_bytes": len(DATA),
        "total_bytes": len(DATA),
        "bytes_per_s": 0,
        "error": None,
    }
    local = store.find(store.resolve(NAME))
    assert local is not None and local.path.read_bytes() == DATA


async def test_it_can_be_followed_stopped_and_taken_up_again(
    downloads: Downloads, store: ModelStore, hub: LoopbackHub
) -> None:
    held = Held(hub)
    await downloads.pull(NAME)
    await held.until_reached()
    await until(lambda: only(downloads)["done_bytes"])
    half = only(downloads)
    assert half["state"] == "running" and 0 < half["done_bytes"] < half["total_bytes"] == len(DATA)
    # The thread hangs in a read from the hub; the view does not.
    assert await downloads.stop(NAME.lower()) == {"model": NAME, "state": "stopped"}
    assert only(downloads)["state"] == "stopped" and only(downloads)["error"] is None
    held.go_on.set()
    local = store.find(store.resolve(NAME))
    assert local is not None and local.incomplete and local.size_bytes > 0
    assert (await downloads.pull(NAME))["state"] == "running"
    assert (await ended(downloads))["state"] == "done"
    assert any(not value.startswith("bytes=0-") for value in hub.ranges())
    whole = store.find(store.resolve(NAME))
    assert whole is not None and whole.path.read_bytes() == DATA


async def test_one_that_runs_is_not_begun_twice(downloads: Downloads, hub: LoopbackHub) -> None:
    held = Held(hub, after=0)
    await downloads.pull(NAME)
    await held.until_reached()
    assert await downloads.pull(NAME) == {"model": NAME, "state": "running"}
    assert len(downloads.facts()) == 1
    held.go_on.set()
    await ended(downloads)


async def test_few_run_at_once_and_one_that_waits_can_be_stopped(downloads: Downloads, hub: LoopbackHub) -> None:
    held = Held(hub, after=0)
    names = [f"owner/m{number}-GGUF:Q8_0" for number in range(AT_ONCE + MOST_WAITING)]
    for name in names:
        hub.add(name.partition(":")[0], {FILE: DATA})
        await downloads.pull(name)
    await held.until_reached()
    waiting = [entry["model"] for entry in downloads.facts() if entry["detail"] == "waits for its turn"]
    assert waiting == names[AT_ONCE:]
    with pytest.raises(TooManyRequests, match="waiting already"):
        await downloads.pull(NAME)
    for name in waiting:
        assert (await downloads.stop(name))["state"] == "stopped"
    held.go_on.set()
    await until(lambda: all(entry["state"] != "running" for entry in downloads.facts()))
    assert [entry["state"] for entry in downloads.facts()] == ["done"] * AT_ONCE + ["stopped"] * MOST_WAITING


@pytest.mark.parametrize(
    ("faults", "code"),
    [
        ({"gated": True}, "gated-repository"),
        ({"announced": {FILE: "a" * 64}}, "download-corrupt"),
        ({"status": 503}, "hub-unreachable"),
        ({"sizes": {FILE: 1 << 49}}, "disk-full"),
    ],
)
async def test_the_reason_of_a_failure_is_kept_until_it_is_dismissed(
    downloads: Downloads, hub: LoopbackHub, faults: dict[str, Any], code: str
) -> None:
    hub.add(REPO, {FILE: DATA}, **faults)
    await downloads.pull(NAME)
    found = await ended(downloads)
    assert (found["state"], found["error"]["code"]) == ("failed", code) and found["error"]["message"]
    assert await downloads.stop(NAME) == {"model": NAME, "state": "failed"}
    assert downloads.facts() == []
    with pytest.raises(ModelNotFound, match="not being fetched"):
        await downloads.stop(NAME)


async def test_a_fault_of_ours_is_an_error_like_any_other(
    downloads: Downloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(ModelStore, "pull", fail)
    await downloads.pull(NAME)
    found = await ended(downloads)
    assert found["state"] == "failed" and "ZeroDivisionError" in found["error"]["message"]


@pytest.mark.parametrize(
    "name",
    ["", "no-such-model", "../../etc", "owner/../x:Q8_0", "a" * 10_000, "x\x1b[2J", "https://example.org/m.gguf"],
)
async def test_hostile_names_are_refused_before_anything_begins(
    downloads: Downloads, hub: LoopbackHub, name: str
) -> None:
    with pytest.raises(ModelNotFound):
        await downloads.pull(name)
    with pytest.raises(ModelNotFound):
        await downloads.stop(name)
    assert downloads.facts() == [] and hub.requests == []


async def test_what_is_on_this_disk_already_is_no_download(downloads: Downloads, tmp_path: Path) -> None:
    assert await downloads.pull("demo") == {"model": "demo", "state": "done"}
    file = tmp_path / "own.gguf"
    file.write_bytes(b"GGUF")
    assert (await downloads.pull(str(file)))["state"] == "done"
    assert downloads.facts() == []


async def test_only_the_newest_results_are_kept(downloads: Downloads, hub: LoopbackHub) -> None:
    for number in range(MOST_ENDED + 3):
        await downloads.pull(f"owner/absent{number}:Q8_0")
        await until(lambda: all(entry["state"] == "failed" for entry in downloads.facts()))
    found = [entry["model"] for entry in downloads.facts()]
    assert found == [f"owner/absent{number}:Q8_0" for number in range(3, MOST_ENDED + 3)]


async def test_the_end_takes_under_a_second_and_keeps_what_came(store: ModelStore, hub: LoopbackHub) -> None:
    changes: list[int] = []
    downloads = Downloads(store=lambda: store, changed=lambda: changes.append(1))
    held = Held(hub)
    await downloads.pull(NAME)
    await held.until_reached()
    await until(lambda: only(downloads)["done_bytes"])
    begin = time.monotonic()
    await downloads.close()
    assert time.monotonic() - begin < 1.0
    assert only(downloads)["state"] == "stopped" and changes
    with pytest.raises(NodeStopping):
        await downloads.pull(NAME)
    held.go_on.set()
    local = store.find(store.resolve(NAME))
    assert local is not None and local.incomplete and local.size_bytes > 0
    await downloads.close()


async def test_watchers_hear_of_figures_while_any_runs(
    store: ModelStore, hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHOW_EVERY_S", 0.01)
    changes: list[int] = []
    downloads = Downloads(store=lambda: store, changed=lambda: changes.append(1))
    held = Held(hub, after=2)
    await downloads.pull(NAME)
    await held.until_reached()
    before = len(changes)
    await until(lambda: len(changes) > before + 3)
    assert downloads.is_running(store.resolve(NAME)) and not downloads.is_running(store.resolve("qwen3-8b"))
    held.go_on.set()
    await ended(downloads)
    assert not downloads.is_running(store.resolve(NAME))
    await downloads.close()


def test_the_rate_is_that_of_the_last_seconds() -> None:
    rate = Rate(window_s=5)
    assert rate.bytes_per_s(0) == 0
    rate.note(1000, 10)  # what was here before
    assert rate.bytes_per_s(10) == 0
    for second in range(1, 9):
        rate.note(1000 + 100 * second, 10 + second)
    assert rate.bytes_per_s(18) == pytest.approx(100)
    assert rate.bytes_per_s(22) == pytest.approx(100 / 5)  # one step in the window, and silence since
    assert rate.bytes_per_s(30) == 0


def test_bytes_that_were_thrown_away_are_no_negative_rate() -> None:
    rate = Rate()
    rate.note(5000, 1)
    rate.note(0, 2)
    assert rate.bytes_per_s(2) == 0
    rate.note(300, 3)
    assert rate.bytes_per_s(3) == pytest.approx(300)
