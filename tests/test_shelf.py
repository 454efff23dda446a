"""What there is of models, and what fits: real files, a hub on loopback, removal of what nobody uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from meshnode.capacity import Lender
from meshnode.core.placement import Budget, Wishes
from meshnode.errors import ModelError, ModelInUse, ModelNotFound
from meshnode.models.catalog import load_catalog
from meshnode.models.hub import Hub
from meshnode.models.store import ModelStore
from meshnode.shelf import Shelf, ShelfParts
from tests.e2e.small_models import embedding_model, tools_model
from tests.models import gguf_samples as samples
from tests.models.loopback_hub import LoopbackHub, noise

pytestmark = pytest.mark.anyio
MIB, GIB = 1 << 20, 1 << 30
PLENTY = Budget(32 * GIB)
Make = Callable[..., Shelf]


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    server = LoopbackHub()
    yield server
    server.close()


@pytest.fixture
def store(hub: LoopbackHub, tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "hub", Hub(hub.endpoint, timeout_s=5), load_catalog())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Models of several kinds: with tools, for vectors, and a wide one without a template."""
    folder = tmp_path_factory.mktemp("made")
    files = {
        "tools": tools_model(folder / "tools.gguf"),
        "vectors": embedding_model(folder / "vectors.gguf"),
        "plain": samples.llama(folder / "plain.gguf", layers=12),
    }
    return {name: path.read_bytes() for name, path in files.items()}


def entry(canonical: str, *, state: str = "ready", stages: tuple[str, ...] = ()) -> dict[str, Any]:
    """A model of /api/status, as far as it counts here."""
    plan = {"stages": [{"node": node} for node in stages]} if stages else {"shares": []}
    return {"id": canonical, "canonical": canonical, "state": state, "plan": plan}


@pytest.fixture
def make(store: ModelStore) -> Make:
    def build(budget: Budget | None = PLENTY, served: tuple[dict[str, Any], ...] = (), **more: Any) -> Shelf:
        parts = ShelfParts(
            budget=lambda: budget, wishes=Wishes(), entries=lambda: [*served], store=lambda: store, **more
        )
        return Shelf(parts)

    return build


def fetch(store: ModelStore, hub: LoopbackHub, repo: str, files: dict[str, bytes]) -> None:
    hub.add(repo, files)
    for name in files:
        if "mmproj" not in name:
            store.pull(store.resolve(f"{repo}/{name}"))


def by_name(listed: list[dict[str, Any]], key: str = "model") -> dict[str, dict[str, Any]]:
    return {item[key]: item for item in listed}


async def test_an_empty_disk_has_the_demo_and_the_catalog(make: Make, store: ModelStore) -> None:
    found = await make().models()
    assert found["schema"] == 1 and found["folder"] == str(store.folder)
    (demo,) = found["on_disk"]
    assert (demo["model"], demo["alias"], demo["served"], demo["incomplete"]) == ("demo", "demo", False, False)
    assert demo["fit"]["verdict"] == "here" and demo["fit"]["sentence"].startswith("fits here: on the processor")
    assert demo["context_length"] == 4096 and demo["size_bytes"] == demo["total_bytes"] > 0
    catalog = by_name(found["catalog"], "alias")
    assert list(catalog) == [each.alias for each in load_catalog().entries]
    assert catalog["demo"]["on_disk"] and catalog["demo"]["fit"] == demo["fit"]
    assert catalog["qwen3-8b"]["fit"]["verdict"] == "here" and "about" in catalog["qwen3-8b"]["fit"]["sentence"]
    assert not catalog["qwen3-8b"]["on_disk"]
    assert catalog["gpt-oss-120b"]["fit"]["verdict"] == "no"


async def test_models_of_every_kind(make: Make, store: ModelStore, hub: LoopbackHub, made: dict[str, bytes]) -> None:
    fetch(store, hub, "owner/tools-GGUF", {"tools-Q8_0.gguf": made["tools"]})
    fetch(store, hub, "owner/vectors-GGUF", {"v-Q8_0.gguf": made["vectors"]})
    fetch(store, hub, "owner/plain-GGUF", {"p-Q8_0.gguf": made["plain"], "mmproj-F16.gguf": noise(1000)})
    found = by_name((await make(Budget(200 * MIB)).models())["on_disk"])
    tools, vectors = found["owner/tools-GGUF:Q8_0"], found["owner/vectors-GGUF:Q8_0"]
    plain = found["owner/plain-GGUF:Q8_0"]
    assert tools["capabilities"] == ["chat", "tools"] and vectors["capabilities"] == ["embedding"]
    assert vectors["name"] == "embedder"
    assert plain["capabilities"] == ["completion", "vision"] and plain["name"] == "p-Q8_0"
    assert plain["quantisation"] == "Q8_0" and plain["context_length"] == 32768
    assert plain["fit"]["verdict"] == "no" and "short" in plain["fit"]["sentence"]


async def test_the_mesh_holds_what_this_machine_does_not(
    make: Make, store: ModelStore, hub: LoopbackHub, made: dict[str, bytes]
) -> None:
    fetch(store, hub, "owner/plain-GGUF", {"p-Q8_0.gguf": made["plain"]})
    shelf = make(Budget(190 * MIB), lenders=lambda: [Lender("a", (8 * GIB,))])
    found = by_name((await shelf.models())["on_disk"])
    assert found["owner/plain-GGUF:Q8_0"]["fit"]["verdict"] == "split"
    assert found["owner/plain-GGUF:Q8_0"]["fit"]["sentence"].startswith("needs 2 nodes")


async def test_before_the_devices_are_known(make: Make) -> None:
    found = await make(None).models()
    verdicts = {item["fit"]["verdict"] for item in [*found["on_disk"], *found["catalog"]]}
    assert verdicts == {"unknown"}


async def test_half_a_model_and_one_that_is_none(
    make: Make, store: ModelStore, hub: LoopbackHub, made: dict[str, bytes]
) -> None:
    fetch(store, hub, "owner/noise-GGUF", {"n-Q8_0.gguf": noise(5000)})
    hub.add("owner/half-GGUF", {"h-Q8_0.gguf": made["plain"]})
    came: list[int] = []
    with pytest.raises(Exception, match="stopped"):
        store.pull(
            store.resolve("owner/half-GGUF"),
            lambda progress: came.append(int(progress.done)),
            lambda: bool(came and came[-1]),
        )
    found = by_name((await make().models())["on_disk"])
    half, bad = found["owner/half-GGUF:Q8_0"], found["owner/noise-GGUF:Q8_0"]
    assert half["incomplete"] and 0 < half["size_bytes"] < half["total_bytes"] == len(made["plain"])
    assert half["fit"] == {"verdict": "unknown", "sentence": "not known yet: a part of it is still missing"}
    assert bad["fit"]["verdict"] == "unknown" and "cannot be read" in bad["fit"]["sentence"]
    assert bad["capabilities"] == [] and bad["quantisation"] == "Q8_0"


async def test_what_is_served_says_so(make: Make, store: ModelStore, hub: LoopbackHub, made: dict[str, bytes]) -> None:
    fetch(store, hub, "owner/plain-GGUF", {"p-Q8_0.gguf": made["plain"]})
    served = (entry("demo"), entry("OWNER/plain-GGUF:Q8_0", stages=("a", "a", "b")))
    found = await make(Budget(0), served).models()
    on_disk = by_name(found["on_disk"])
    assert on_disk["demo"]["served"] and on_disk["demo"]["fit"]["verdict"] == "here"
    assert on_disk["owner/plain-GGUF:Q8_0"]["fit"]["sentence"] == "needs 3 nodes: it is served by them now"
    assert by_name(found["catalog"], "alias")["demo"]["served"]
    failed = await make(Budget(0), (entry("demo", state="failed"),)).models()
    assert not failed["on_disk"][0]["served"]


async def test_headers_are_read_once_for_as_long_as_a_file_stays_as_it_is(
    make: Make, store: ModelStore, hub: LoopbackHub, made: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(store, hub, "owner/plain-GGUF", {"p-Q8_0.gguf": made["plain"]})
    read: list[str] = []
    real = ModelStore.read

    def counted(self: ModelStore, model: Any) -> Any:
        read.append(model.name)
        return real(self, model)

    monkeypatch.setattr(ModelStore, "read", counted)
    shelf = make()
    await shelf.models()
    await shelf.models()
    assert sorted(read) == ["p-Q8_0", "target"]
    local = store.find(store.resolve("owner/plain-GGUF:Q8_0"))
    assert local is not None
    local.path.resolve().write_bytes(made["tools"])
    found = by_name((await shelf.models())["on_disk"])
    assert read.count("p-Q8_0") == 2 and found["owner/plain-GGUF:Q8_0"]["capabilities"] == ["chat", "tools"]


async def test_search(make: Make, hub: LoopbackHub) -> None:
    hub.add("someone/qwen3-tuned-GGUF", {}, gated=True)
    found = await make().search("qwen3")
    assert found["problem"] is None and "qwen3-8b" in [item["alias"] for item in found["catalog"]]
    assert found["hub"] == [{"repo": "someone/qwen3-tuned-GGUF", "downloads": 100, "gated": True}]
    long = await make().search("x" * 10_000)
    assert (long["catalog"], long["hub"]) == ([], [])


async def test_a_hub_that_is_silent_is_a_problem_and_no_error(make: Make, hub: LoopbackHub) -> None:
    hub.listing = b"<html>log in</html>"
    found = await make().search("qwen3")
    assert found["catalog"] and found["hub"] == [] and found["problem"]["code"] == "hub-unreachable"
    assert set(found["problem"]) == {"code", "message", "fix"}


async def test_a_model_is_removed(make: Make, store: ModelStore, hub: LoopbackHub, made: dict[str, bytes]) -> None:
    fetch(store, hub, "owner/plain-GGUF", {"p-Q8_0.gguf": made["plain"]})
    told: list[int] = []
    shelf = make(removed=lambda: told.append(1))
    assert await shelf.remove("owner/plain-GGUF") == {
        "model": "owner/plain-GGUF:Q8_0",
        "freed_bytes": len(made["plain"]),
    }
    assert told and store.find(store.resolve("owner/plain-GGUF:Q8_0")) is None
    with pytest.raises(ModelNotFound):
        await shelf.remove("owner/plain-GGUF:Q8_0")


async def test_what_is_in_use_stays(make: Make, store: ModelStore, hub: LoopbackHub, made: dict[str, bytes]) -> None:
    fetch(store, hub, "owner/plain-GGUF", {"p-Q8_0.gguf": made["plain"]})
    local = store.find(store.resolve("owner/plain-GGUF:Q8_0"))
    assert local is not None
    name = "owner/plain-GGUF"
    for more, words in (
        ({"served": (entry(f"{name}:Q8_0"),)}, "unload"),
        ({"served": (entry(name),)}, "unload"),
        ({"reads": lambda path: path == local.path}, "unload"),
        ({"fetching": lambda ref: ref.canonical == f"{name}:Q8_0"}, "stop the download"),
    ):
        with pytest.raises(ModelInUse) as caught:
            await make(**more).remove(name)
        assert words in caught.value.fix
    assert local.path.exists()


@pytest.mark.parametrize("name", ["", "../../x", "a" * 10_000, "owner/..:Q8_0", "x\x00y", "/no/such/file.gguf"])
async def test_hostile_names_reach_nothing(make: Make, name: str) -> None:
    with pytest.raises(ModelNotFound):
        await make().remove(name)


async def test_a_file_of_the_user_and_the_demo_are_not_deleted(make: Make, tmp_path: Path) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(b"GGUF")
    for name in ("demo", str(own)):
        with pytest.raises(ModelError):
            await make().remove(name)
    assert own.exists()
