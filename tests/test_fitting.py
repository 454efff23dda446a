"""Which quantisation is served: of a hub on loopback, of the disk, and what to do where none is held."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from meshnode.config import Settings
from meshnode.core.memory import ENGINE_OVERHEAD_BYTES
from meshnode.core.placement import Budget, DeviceBudget, Refusal, SoloPlan, Wishes, plan_solo
from meshnode.core.precision import Holding
from meshnode.core.split import SplitPlan
from meshnode.errors import ModelDoesNotFit
from meshnode.fitting import SMALLER, Fit, Fitting, Judge, select
from meshnode.hardware import Device, Inventory, Memory, Processor
from meshnode.models.catalog import load_catalog
from meshnode.models.gguf import read_model
from meshnode.models.hub import Hub
from meshnode.models.shapes import ModelShape, shape_of
from meshnode.models.store import ModelStore
from meshnode.units import Unit
from tests.models import gguf_samples as samples
from tests.models.loopback_hub import LoopbackHub

pytestmark = pytest.mark.anyio
GIB = 1 << 30
REPO = "owner/model-GGUF"
KINDS = {"Q4_0": "Q4_0", "Q8_0": "Q8_0", "F16": "F16"}
GPU = Device("CUDA0", "a GPU", "gpu", "CUDA", 24 * GIB, 24 * GIB)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One small model in three quantisations, by file name."""
    folder = tmp_path_factory.mktemp("files")
    made = {f"m-{name}.gguf": samples.llama(folder / name, layers=2, kind=kind) for name, kind in KINDS.items()}
    return {name: path.read_bytes() for name, path in made.items()}


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    server = LoopbackHub()
    yield server
    server.close()


@pytest.fixture
def store(hub: LoopbackHub, files: dict[str, bytes], tmp_path: Path) -> ModelStore:
    hub.add(REPO, dict(files))
    return ModelStore(tmp_path / "hub", Hub(hub.endpoint, timeout_s=5), load_catalog())


@pytest.fixture
def weights(files: dict[str, bytes], tmp_path: Path) -> dict[str, int]:
    """Bytes of weights of each quantisation, as its own header says."""
    found = {}
    for name, data in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        found[name.removeprefix("m-").removesuffix(".gguf")] = shape_of(read_model(path)).total_bytes
    return found


def within(limit_bytes: int, holding: Holding = Holding.WHOLE) -> Judge:
    """Holds what has at most so many bytes of weights, and a thousandth more."""

    async def judge(shape: ModelShape, mode: str) -> Fit:
        held = shape.total_bytes <= limit_bytes * 1.001
        return Fit("solo", holding, 10.0) if held else Fit()

    return judge


async def test_the_usual_one_stays_where_it_is_held(store: ModelStore, weights: dict[str, int]) -> None:
    found = await select(store, store.resolve(REPO), within(weights["F16"]))
    assert found is not None and found.chosen == found.usual and found.usual.quant == "Q8_0" and not found.sentence


async def test_another_one_where_it_is_not(store: ModelStore, weights: dict[str, int], hub: LoopbackHub) -> None:
    found = await select(store, store.resolve(REPO), within(weights["Q4_0"]))
    assert found is not None and found.chosen is not None
    assert (found.usual.quant, found.chosen.quant) == ("Q8_0", "Q4_0")
    assert "Q4_0" in found.sentence and "Q8_0" in found.sentence and "loss" in found.sentence
    assert [(fact["quantisation"], fact["fits"], fact["chosen"]) for fact in found.facts()] == [
        ("Q4_0", "solo", True),
        ("Q8_0", "no", False),
        ("F16", "no", False),
    ]
    assert all("Q8_0" in path for path, _ in hub.requests if "/resolve/" in path), "one header, and no more"


async def test_one_that_was_named_is_never_changed(store: ModelStore, weights: dict[str, int]) -> None:
    for text in (f"{REPO}:F16", f"{REPO}/m-F16.gguf"):
        ref = store.resolve(text)
        found = await select(store, ref, within(weights["Q4_0"]), everything=True)
        assert found is not None and found.usual.quant == "F16" and found.chosen is None and len(found.fits) == 3


async def test_of_one_on_this_disk_the_hub_is_not_asked(store: ModelStore, weights: dict[str, int]) -> None:
    store.pull(store.resolve(f"{REPO}:Q4_0"))
    away = replace(store, hub=Hub("http://127.0.0.1:9", timeout_s=1))
    found = await select(away, away.resolve(REPO), within(weights["F16"]))
    assert found is not None and found.usual.quant == "Q4_0" and found.chosen == found.usual
    assert [variant.quant for variant in found.fits] == ["Q4_0"]


async def test_a_silent_hub(store: ModelStore, weights: dict[str, int]) -> None:
    away = replace(store, hub=Hub("http://127.0.0.1:9", timeout_s=1))
    assert await select(away, away.resolve(REPO), within(weights["F16"])) is None


async def test_what_the_disk_has_does_where_the_hub_is_silent(store: ModelStore, weights: dict[str, int]) -> None:
    """As for a name of the catalog, which stands for one quantisation."""
    store.pull(store.resolve(f"{REPO}:Q4_0"))
    away = replace(store, hub=Hub("http://127.0.0.1:9", timeout_s=1))
    ref = replace(away.resolve(f"{REPO}:Q8_0"), is_open=True)
    found = await select(away, ref, within(weights["F16"]))
    assert found is not None and found.chosen is not None and found.chosen.quant == "Q4_0"
    assert await select(away, replace(ref, is_open=False), within(weights["F16"])) is None


# --- the judgement of a node --------------------------------------------------------------------------------------


def fitting(budget: Budget, *, split: SplitPlan | None = None, gpu: bool = False, **settings: object) -> Fitting:
    made = Fitting(Settings(ctx_size=512, parallel=1, **settings), lambda unit: budget)  # type: ignore[arg-type]
    inventory = Inventory((GPU,) if gpu else (), Processor("a processor", 4, 2), Memory(64 * GIB, 32 * GIB))
    made.equip(inventory, {})

    async def splits(shape: ModelShape, unit: Unit | None) -> SplitPlan | None:
        return split

    made.split_with(splits)
    return made


SPLIT = SplitPlan("aa", 1, 1, (), (), 512, 1, "f16", 1, (1,), True, 7.5)
LARGE = Budget(8 * GIB)
NOTHING = Budget(ENGINE_OVERHEAD_BYTES)


def unit_of(store: ModelStore, text: str) -> Unit:
    ref = store.resolve(text)
    return Unit(ref.short_name, ref, text, 0.0)


def least_host_bytes(shape: ModelShape) -> int:
    """The main memory with which a model just fits."""
    low, high = 0, 64 * GIB
    while high - low > 1:
        middle = (low + high) // 2
        held = isinstance(plan_solo(shape, Budget(middle), Wishes(512, 1)), SoloPlan)
        low, high = (low, middle) if held else (middle, high)
    return high


async def test_how_well_a_model_is_held(tmp_path: Path) -> None:
    shape = shape_of(read_model(samples.llama(tmp_path / "m.gguf", layers=2)))
    roomy = DeviceBudget("CUDA0", 8 * GIB)
    small = DeviceBudget("CUDA0", shape.layers[0].weights_bytes)
    assert await fitting(LARGE).judge(None, shape, "chat") == Fit("solo", Holding.WHOLE)
    on_gpu = fitting(Budget(8 * GIB, (roomy,)), gpu=True)
    assert await on_gpu.judge(None, shape, "chat") == Fit("solo", Holding.WELL)
    partly = fitting(Budget(8 * GIB, (small,)), gpu=True)
    assert await partly.judge(None, shape, "chat") == Fit("solo", Holding.PARTLY)
    assert await fitting(NOTHING).judge(None, shape, "chat") == Fit()
    together = fitting(NOTHING, split=SPLIT)
    assert await together.judge(None, shape, "chat") == Fit("split", Holding.TOGETHER, 7.5)
    assert await together.judge(None, shape, "embedding") == Fit(), "only models that write text are split"


async def test_the_choice_becomes_the_model_before_anything_is_fetched(
    store: ModelStore, files: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(files["m-Q4_0.gguf"])
    tight = Budget(least_host_bytes(shape_of(read_model(path))) + (1 << 16))
    unit = unit_of(store, REPO)
    sentence = await fitting(tight).choose(store, unit)
    assert sentence.startswith("Q4_0, ")
    assert unit.id == REPO and unit.ref.canonical == f"{REPO}:Q4_0" and not unit.ref.is_open
    assert store.find(unit.ref) is None
    named = unit_of(store, f"{REPO}:F16")
    assert await fitting(tight).choose(store, named) == "" and named.ref.quant == "F16"
    waiting = unit_of(store, REPO)
    assert await fitting(tight, split=SPLIT).choose(store, waiting) == "", "the mesh holds the usual one"
    assert await fitting(NOTHING, split=None, tensor_split=(1, 1)).choose(store, waiting) == ""


async def test_what_is_held_nowhere_is_not_fetched(store: ModelStore, hub: LoopbackHub) -> None:
    with pytest.raises(ModelDoesNotFit, match="not even Q4_0") as caught:
        await fitting(NOTHING).choose(store, unit_of(store, REPO))
    assert caught.value.fix == SMALLER
    assert store.find(store.resolve(REPO)) is None


async def test_only_a_file_of_many_bits(
    hub: LoopbackHub, store: ModelStore, files: dict[str, bytes], tmp_path: Path
) -> None:
    """The command names a size with which the file that it makes is held."""
    hub.add("owner/plain", {"plain-F16.gguf": files["m-F16.gguf"]})
    path = tmp_path / "plain-F16.gguf"
    path.write_bytes(files["m-F16.gguf"])
    header = read_model(path)
    budget = Budget(least_host_bytes(shape_of(header)) - 1)
    with pytest.raises(ModelDoesNotFit, match="not even F16") as caught:
        await fitting(budget).choose(store, unit_of(store, "owner/plain"))
    pulled, _, command = caught.value.fix.partition(": ")[2].partition(" && ")
    assert pulled == "meshnode pull owner/plain:F16"
    words = shlex.split(command)
    assert words[:4] == ["meshnode", "quantize", "owner/plain:F16", "--fit"]
    assert 0.3 * header.file_bytes < int(words[4]) < header.file_bytes
    unit = unit_of(store, str(path))
    unit.header, unit.local = header, store.find(unit.ref)
    assert f": meshnode quantize {shlex.quote(str(path))} --fit {words[4]}" in await fitting(budget).fix_of(store, unit)
    assert await fitting(NOTHING).fix_of(store, unit) == "", "no file is small enough"
    assert await fitting(LARGE).fix_of(store, unit) == "", "it fits: what failed was something else"


async def test_a_smaller_one_of_the_same_repository_is_named_first(
    store: ModelStore, files: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(files["m-Q8_0.gguf"])
    tight = fitting(Budget(least_host_bytes(shape_of(read_model(path))) + (1 << 16)))
    unit = unit_of(store, f"{REPO}:F16")
    unit.local = store.pull(unit.ref)
    unit.header = store.read(unit.local)
    assert await tight.fix_of(store, unit) == f"another quantisation fits: meshnode --model {REPO}:Q8_0"
    looked = await tight.look_at(store, store.resolve(f"{REPO}:F16"), None)
    assert looked.name == f"{REPO}:F16"
    assert await tight.fix_for(looked, None) == await tight.fix_of(store, unit)


async def test_a_look_at_what_would_be_served(store: ModelStore, files: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    path.write_bytes(files["m-Q4_0.gguf"])
    shape = shape_of(read_model(path))
    tight = fitting(Budget(least_host_bytes(shape) + (1 << 16)))
    looked = await tight.look_at(store, store.resolve(REPO), None)
    assert (looked.name, looked.content_hash) == (f"{REPO}:Q4_0", "")
    assert shape_of(looked.header).total_bytes == shape.total_bytes
    assert not isinstance(plan_solo(shape, Budget(least_host_bytes(shape)), Wishes(512, 1)), Refusal)
    waits = fitting(Budget(least_host_bytes(shape) + (1 << 16)), tensor_split=(1, 1))
    assert (await waits.look_at(store, store.resolve(REPO), None)).name == REPO
    served = unit_of(store, f"{REPO}:Q8_0")
    served.content_hash = "ab" * 32
    looked = await tight.look_at(store, store.resolve(REPO), served)
    assert (looked.name, looked.content_hash) == (served.id, "ab" * 32)
    assert looked.selection is not None and looked.selection.usual.quant == "Q8_0"
