"""Models come and go, with the real engine and the demo model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

import pytest

from meshnode.api.gate import Gates
from meshnode.config import Places, Settings, find_places
from meshnode.core.placement import Share, SoloPlan
from meshnode.engine.provision import find
from meshnode.errors import EngineError, ModelDoesNotFit, ModelError, ModelFileInvalid, ModelInUse, ModelNotFound
from meshnode.hardware import Inventory, Memory, probe_all
from meshnode.hardware.device import Device
from meshnode.models.cache import LocalModel
from meshnode.models.catalog import DEMO_DRAFT, DEMO_TARGET
from meshnode.serving import Serving, no_engine
from meshnode.telemetry import ProblemBoard, silent

pytestmark = [pytest.mark.anyio, pytest.mark.engine]


class Stage:
    """A Serving with all it is given, and what it told."""

    def __init__(self, folder: Path, settings: Settings, equipped: Callable[[], Awaitable[None]] = no_engine) -> None:
        self.told: list[tuple[str, str]] = []
        self.changes = 0
        self.problems = ProblemBoard()
        self.gates = Gates(capacity=8, timeout_s=5)
        places = Places(folder / "home", find_places().cache, folder / "config.toml")
        places.logs.mkdir(parents=True)
        self.serving = Serving(
            settings=settings,
            places=places,
            problems=self.problems,
            gates=self.gates,
            report=silent,
            tell=lambda label, text: self.told.append((label, text)),
            changed=self._count,
            equipped=equipped,
        )

    def _count(self) -> None:
        self.changes += 1

    def equip(self, inventory: Inventory | None = None) -> None:
        engine = find(find_places().cache)
        assert engine is not None
        self.serving.equip(engine, inventory or probe_all(), {})


@asynccontextmanager
async def stage(folder: Path, settings: Settings = Settings(), *, equipped: bool = True) -> AsyncIterator[Stage]:  # noqa: B008
    made = Stage(folder, settings)
    if equipped:
        made.equip()
    try:
        yield made
    finally:
        await made.serving.stop()


async def bring_up(made: Stage, name: str) -> None:
    await made.serving.bring_up(await made.serving.add(name))


async def content_hash(made: Stage) -> str:
    """Of the only model, as soon as it is known."""
    async with asyncio.timeout(10):
        while not made.serving.served()[0].hosts[0].content_hash:
            await asyncio.sleep(0)
    return made.serving.served()[0].hosts[0].content_hash


async def test_a_model_is_served_until_it_is_unloaded(tmp_path: Path, engine_bin: Path) -> None:
    async with stage(tmp_path) as made:
        await bring_up(made, "demo")
        (served,) = made.serving.served()
        assert (served.id, served.state, served.slots) == ("demo", "ready", 4)
        assert served.context_length == 4096 and "chat" in served.capabilities
        host = served.local
        assert host is not None and host.here and host.ready and host.node == made.serving.node
        assert len(host.api_key) > 20 and host.api_key not in repr(served)
        assert await content_hash(made) == sha256(DEMO_TARGET.read_bytes()).hexdigest()[:32]
        (entry,) = made.serving.entries()
        assert entry["plan"]["context"] == 4096 and entry["engine"]["state"] == "ready"
        assert [label for label, _ in made.told] == ["model", "ready"]
        assert await made.serving.unload("demo") == {"model": "demo", "state": "unloaded"}
        assert made.serving.served() == []


async def test_the_same_model_twice_is_refused(tmp_path: Path, engine_bin: Path) -> None:
    async with stage(tmp_path) as made:
        await bring_up(made, "demo")
        with pytest.raises(ModelInUse):
            await made.serving.add("demo")


async def test_a_path_is_served_under_its_stem_beside_the_demo(tmp_path: Path, engine_bin: Path) -> None:
    copy = tmp_path / "Small-Thing.gguf"
    copy.write_bytes(DEMO_DRAFT.read_bytes())
    async with stage(tmp_path) as made:
        await bring_up(made, "demo")
        await bring_up(made, str(copy))
        ids = {served.id: served for served in made.serving.served()}
        assert len(ids) == 2 and all(served.state == "ready" for served in ids.values())
        (other,) = [served for name, served in ids.items() if name != "demo"]
        assert "Small-Thing" in {other.id, *other.names}
        assert (await made.serving.unload(str(copy)))["model"] == other.id
        assert [served.id for served in made.serving.served()] == ["demo"]


async def test_a_damaged_file_fails_with_a_reason_and_a_problem_until_it_is_mended(
    tmp_path: Path, engine_bin: Path
) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(DEMO_DRAFT.read_bytes()[:300_000])
    async with stage(tmp_path) as made:
        with pytest.raises(ModelFileInvalid):
            await bring_up(made, str(damaged))
        (served,) = made.serving.served()
        assert served.state == "failed" and "missing" in served.detail
        (problem,) = made.problems
        assert problem.kind.code == "model-load-failed"
        # The same name may be tried again, and works once the file is whole.
        damaged.write_bytes(DEMO_DRAFT.read_bytes())
        await bring_up(made, str(damaged))
        assert list(made.problems) == [] and made.serving.served()[0].state == "ready"


async def test_what_does_not_fit_is_refused_before_an_engine_starts(tmp_path: Path, engine_bin: Path) -> None:
    async with stage(tmp_path, equipped=False) as made:
        made.equip(Inventory((), probe_all().processor, Memory(1 << 30, 1 << 20)))
        with pytest.raises(ModelDoesNotFit, match="GiB"):
            await bring_up(made, "demo")
        assert made.serving.entries()[0]["engine"] is None


async def test_what_a_model_takes_of_a_gpu_is_not_given_away_again(tmp_path: Path, engine_bin: Path) -> None:
    """The free memory of a device is that of the start of the node: what was planned since comes off."""
    gpu = Device("CUDA0", "RTX 4090", "gpu", "CUDA", 24 << 30, 23 << 30)
    async with stage(tmp_path, equipped=False) as made:
        assert made.serving.room() is None
        made.equip(Inventory((gpu,), probe_all().processor, Memory(64 << 30, 60 << 30)))
        before = made.serving.room()
        unit = await made.serving.add("demo")
        share = Share("CUDA0", 10, 6 << 30, 1 << 30, 1 << 29, 24 << 30)
        unit.plan = SoloPlan(4096, 1, "f16", 10, (), (share,), 0)
        after = made.serving.room()
        assert before is not None and after is not None
        assert before.room_bytes("CUDA0") - after.room_bytes("CUDA0") == share.total_bytes > 7 << 30
        assert before.host_bytes == after.host_bytes


async def test_names_that_nobody_knows(tmp_path: Path, engine_bin: Path) -> None:
    async with stage(tmp_path) as made:
        with pytest.raises(ModelNotFound):
            await made.serving.add("nosuchthing")
        with pytest.raises(ModelNotFound, match="not served"):
            await made.serving.unload("demo")
        assert made.serving.served() == []


async def until_state(made: Stage, state: str) -> None:
    async with asyncio.timeout(20):
        while made.serving.served()[0].state != state:
            await asyncio.sleep(0.01)


async def test_load_waits_for_the_engine_and_goes_on_by_itself(tmp_path: Path, engine_bin: Path) -> None:
    there = asyncio.Event()

    async def equipped() -> None:
        await there.wait()

    made = Stage(tmp_path, Settings(), equipped=equipped)
    try:
        assert (await made.serving.load("demo"))["state"] == "loading"
        async with asyncio.timeout(5):
            while made.serving.served()[0].detail != "waiting for the engine":
                await asyncio.sleep(0)
        made.equip()
        there.set()
        await until_state(made, "ready")
    finally:
        await made.serving.stop()


async def test_a_model_that_gets_no_engine_says_so(tmp_path: Path, engine_bin: Path) -> None:
    async with stage(tmp_path, equipped=False) as made:
        with pytest.raises(EngineError, match="not ready"):
            await bring_up(made, "demo")
        assert (await made.serving.load("demo"))["state"] == "loading"
        await until_state(made, "failed")
        (problem,) = made.problems
        assert problem.kind.code == "model-load-failed"


async def test_a_draft_with_another_vocabulary_is_refused(tmp_path: Path, engine_bin: Path) -> None:
    from gguf import GGUFReader, GGUFWriter

    stranger = tmp_path / "stranger.gguf"
    writer = GGUFWriter(stranger, "llama")
    tokens = list(GGUFReader(DEMO_DRAFT).fields["tokenizer.ggml.tokens"].contents())
    writer.add_block_count(1)
    writer.add_embedding_length(32)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"{token}!" for token in tokens])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    async with stage(tmp_path, Settings(draft=str(stranger))) as made:
        with pytest.raises(ModelError, match="The model cannot be used: .*vocabularies differ"):
            await bring_up(made, "demo")


async def test_the_shipped_draft_can_guess_for_the_demo(tmp_path: Path, engine_bin: Path) -> None:
    async with stage(tmp_path, Settings(draft=str(DEMO_DRAFT))) as made:
        await bring_up(made, str(DEMO_TARGET))
        (entry,) = made.serving.entries()
        assert entry["state"] == "ready" and entry["draft"] == "draft"


async def test_a_hash_that_the_disk_tells_counts_while_the_file_is_still_read(tmp_path: Path) -> None:
    reading: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def learn(local: LocalModel, stopped: Callable[[], bool]) -> str:
        return await reading

    made = Stage(tmp_path, Settings())
    made.serving._learn = learn
    unit = await made.serving.add("demo")
    local = LocalModel(unit.ref, DEMO_TARGET, (DEMO_TARGET,), 1, 1, sha256="ab" * 32)
    hashing = asyncio.create_task(made.serving._hash(unit, local))
    while not made.changes or not unit.content_hash:
        await asyncio.sleep(0)
    assert unit.content_hash == "ab" * 32 and not hashing.done()
    reading.set_result("cd" * 32)
    await hashing
    assert unit.content_hash == "cd" * 32
    await made.serving.stop()


async def test_a_file_that_cannot_be_listed_for_others_is_served_all_the_same(tmp_path: Path) -> None:
    async def learn(local: LocalModel, stopped: Callable[[], bool]) -> str:
        raise ModelFileInvalid("a tensor is there twice")

    made = Stage(tmp_path, Settings())
    made.serving._learn = learn
    unit = await made.serving.add("demo")
    await made.serving._hash(unit, LocalModel(unit.ref, DEMO_TARGET, (DEMO_TARGET,), 1, 1, sha256="ab" * 32))
    assert unit.content_hash == "ab" * 32 and unit.state == "loading"
    await made.serving.stop()
