"""Whether and how a model guesses ahead: by speeds and delays, by what is learned; the real engine's counters."""

from __future__ import annotations

import bisect
import dataclasses
import json
import os
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from meshnode.config import Settings, find_places
from meshnode.core.acceptance import Tally, tally_of_timings
from meshnode.core.placement import HOST, Budget, DeviceBudget, SoloPlan, Wishes, plan_solo
from meshnode.drafting import Drafting, DraftingNotes, Learner, choose_drafting, plan_with
from meshnode.engine.commands import Draft, NgramDraft, ServerOptions
from meshnode.engine.provision import find
from meshnode.engine.server import LlamaServer, ServerParts
from meshnode.errors import ModelDoesNotFit, ModelError, ModelNotFound
from meshnode.hardware.benchmark import BenchmarkResult
from meshnode.models.catalog import DEMO_DRAFT, DEMO_TARGET, load_catalog
from meshnode.models.gguf import read_model
from meshnode.models.hub import Hub
from meshnode.models.shapes import shape_of
from meshnode.models.store import ModelStore
from meshnode.telemetry import ProblemBoard, silent
from meshnode.units import Unit

pytestmark = pytest.mark.anyio

REPEATED = "The quick brown fox jumps over the lazy dog. A small boat sails on the river when the wind is good. " * 4
GIB = 1 << 30


def speed(device: str, bandwidth: float, flops: float, layer_s: float = 2e-5) -> BenchmarkResult:
    return BenchmarkResult(device, device, "x", 1, 1.0, 1.0, 1, layer_s, bandwidth, flops, 0.0)


PROCESSOR = {"CPU": speed("CPU", 16e9, 160e9)}
GPU = {**PROCESSOR, "CUDA0": speed("CUDA0", 900e9, 60e12, 1e-5)}


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "hub", Hub(offline=True), load_catalog())


@pytest.fixture
def notes(tmp_path: Path) -> DraftingNotes:
    return DraftingNotes(tmp_path / "cache" / "drafting.json")


def unit_of(store: ModelStore, *, factor: int = 1) -> Unit:
    """The demo, taken to be so many times larger in every layer."""
    ref = store.resolve("demo")
    local = store.find(ref)
    assert local is not None
    header = store.read(local)
    shape = shape_of(header)
    layers = tuple(dataclasses.replace(layer, weights_bytes=layer.weights_bytes * factor) for layer in shape.layers)
    shape = dataclasses.replace(
        shape, layers=layers, parameters=shape.parameters * factor, active_bytes=shape.active_bytes * factor
    )
    return Unit("demo", ref, "demo", 0.0, local=local, header=header, shape=shape)


async def chosen(store: ModelStore, unit: Unit, notes: DraftingNotes, **more: object) -> Drafting:
    settings = more.pop("settings", Settings())
    speeds = more.pop("speeds", PROCESSOR)
    return await choose_drafting(settings, store, unit, speeds, notes=notes, report=silent, **more)  # type: ignore[arg-type]


# --- choices ------------------------------------------------------------------------------------------------------


async def test_a_small_model_alone_does_not_guess(store: ModelStore, notes: DraftingNotes) -> None:
    found = await chosen(store, unit_of(store), notes)
    assert (found.draft, found.ngram, found.length) == (None, None, 0) and "small" in found.reason


async def test_over_a_network_it_does(store: ModelStore, notes: DraftingNotes) -> None:
    near = await chosen(store, unit_of(store), notes, delay_s=0.010)
    far = await chosen(store, unit_of(store), notes, delay_s=0.060)
    assert near.draft is not None and far.draft is not None
    assert near.draft.model == DEMO_DRAFT and near.draft.devices == ("none",)
    assert (far.name, far.device, far.length) == ("draft", "", far.draft.tokens_max)
    assert far.length >= near.length > 1
    assert "times the speed" in far.reason


async def test_a_large_model_on_a_gpu_has_its_draft_there(store: ModelStore, notes: DraftingNotes) -> None:
    unit = unit_of(store, factor=1500)
    found = await chosen(store, unit, notes, speeds=GPU, devices=("CUDA0",))
    assert found.draft is not None and found.draft.devices == ("CUDA0",) and found.device == "CUDA0"


async def test_where_no_draft_is_known_the_conversation_is_asked(store: ModelStore, notes: DraftingNotes) -> None:
    unit = unit_of(store, factor=1500)
    assert unit.local is not None
    unit.local = dataclasses.replace(unit.local, draft=None)
    found = await chosen(store, unit, notes, speeds=GPU, devices=("CUDA0",))
    assert found.draft is None and found.ngram is not None
    assert found.ngram.tokens_max >= found.ngram.match
    # On a processor every token of a guess costs nearly as much as one of its own.
    alone = await chosen(store, unit, notes)
    assert alone.ngram is None and "would not pay" in alone.reason


async def test_what_the_settings_say(store: ModelStore, notes: DraftingNotes) -> None:
    unit = unit_of(store)
    off = await chosen(store, unit, notes, settings=Settings(no_draft=True), delay_s=0.06)
    assert off.length == 0 and "--no-draft" in off.reason
    asked = await chosen(store, unit, notes, settings=Settings(draft=str(DEMO_DRAFT)))
    assert asked.draft is not None and asked.asked and asked.length >= 1
    unmeasured = await chosen(store, unit, notes, settings=Settings(draft=str(DEMO_DRAFT)), speeds={})
    assert unmeasured.draft is not None and unmeasured.length == 3


async def test_a_draft_that_cannot_be_had(store: ModelStore, notes: DraftingNotes, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        await chosen(store, unit_of(store), notes, settings=Settings(draft=str(tmp_path / "none.gguf")))
    unit = unit_of(store)
    assert unit.header is not None
    unit.header = dataclasses.replace(unit.header, vocabulary_digest="another")
    with pytest.raises(ModelError, match="vocabularies differ"):
        await chosen(store, unit, notes, settings=Settings(draft=str(DEMO_DRAFT)))


@pytest.mark.parametrize("mode", ["embedding", "rerank"])
async def test_only_what_writes_text_guesses(store: ModelStore, notes: DraftingNotes, mode: str) -> None:
    unit = unit_of(store)
    unit.mode = mode  # type: ignore[assignment]
    assert (await chosen(store, unit, notes, delay_s=0.06)).length == 0


async def test_without_speeds_nothing_is_guessed(store: ModelStore, notes: DraftingNotes) -> None:
    assert (await chosen(store, unit_of(store), notes, speeds={}, delay_s=0.06)).length == 0


# --- memory -------------------------------------------------------------------------------------------------------


def plan(context: int = 4096, parallel: int = 4, gpu_layers: int = 12) -> SoloPlan:
    return SoloPlan(context, parallel, "f16", gpu_layers, (), (), 0)


def drafting(*, asked: bool = False) -> Drafting:
    shape = shape_of(read_model(DEMO_DRAFT))
    return Drafting(Draft(DEMO_DRAFT), name="draft", key="k", shape=shape, asked=asked)


def test_the_cache_of_a_draft_is_as_long_as_the_models() -> None:
    one = drafting()
    assert one.shape is not None
    short, long = one.memory_bytes(4096, 4), one.memory_bytes(65536, 4)
    assert short > one.shape.total_bytes - one.shape.tied_bytes
    assert long - short >= one.shape.kv_bytes_per_token() * (65536 - 4096)
    assert Drafting().memory_bytes(65536, 4) == 0


def test_a_draft_that_fits_beside_the_model_stays() -> None:
    asked_for: list[Mapping[str, int]] = []

    def make(taken: Mapping[str, int]) -> SoloPlan:
        asked_for.append(taken)
        return plan()

    found, kept = plan_with(drafting(), make)
    assert kept.draft is not None and found == plan()
    size = drafting().memory_bytes(4096 * 4, 4)
    assert asked_for == [{}, {HOST: size}]
    plan_with(dataclasses.replace(drafting(), device="CUDA0"), make)
    assert asked_for[2:] == [{}, {"CUDA0": size}]


def test_a_draft_takes_room_where_it_runs() -> None:
    """A GPU that holds the model to the last layer: a draft there costs one, a draft in main memory does not."""
    shape = shape_of(read_model(DEMO_TARGET))

    def solo(budget: Budget) -> SoloPlan:
        found = plan_solo(shape, budget, Wishes(context=4096, parallel=4))
        assert isinstance(found, SoloPlan)
        return found

    whole = len(shape.layers) + 1
    sizes = range(40 << 20, 4 << 30, 1 << 20)
    enough = sizes[
        bisect.bisect_left(
            sizes, whole, key=lambda size: solo(Budget(8 * GIB, (DeviceBudget("CUDA0", size),))).gpu_layers
        )
    ]
    budget = Budget(8 * GIB, (DeviceBudget("CUDA0", enough),))
    for device, stays in (("", True), ("CUDA0", False)):
        own = dataclasses.replace(drafting(), device=device)
        found, kept = plan_with(own, lambda taken: solo(budget.less(taken)))
        assert found.gpu_layers == whole and (kept.draft is not None) is stays


def test_a_draft_costs_the_model_nothing_unless_it_was_asked_for() -> None:
    def make(taken: Mapping[str, int]) -> SoloPlan:
        return plan(context=2048 if taken else 4096)

    found, kept = plan_with(drafting(), make)
    assert kept.draft is None and found.context == 4096 and "context" in kept.reason
    found, kept = plan_with(drafting(asked=True), make)
    assert kept.draft is not None and found.context == 2048


def test_a_draft_that_does_not_fit() -> None:
    def make(taken: Mapping[str, int]) -> SoloPlan:
        if taken:
            raise ModelDoesNotFit
        return plan()

    assert plan_with(drafting(), make)[1].draft is None
    with pytest.raises(ModelDoesNotFit):
        plan_with(drafting(asked=True), make)


# --- what is learned ----------------------------------------------------------------------------------------------


def tally(chance: float, length: int, passes: int = 5000) -> Tally:
    rng = random.Random(5)
    right = [0.0] * length
    for _ in range(passes):
        for position in range(length):
            if rng.random() > chance:
                break
            right[position] += 1
    return Tally(passes + sum(right), 0.0, passes, passes * length, tuple(right))


async def test_bad_guesses_are_given_up_and_tried_again_some_day(store: ModelStore, notes: DraftingNotes) -> None:
    unit = unit_of(store)
    first = await chosen(store, unit, notes, delay_s=0.02)
    assert first.draft is not None
    notes.learn(first.key, dataclasses.replace(tally(0.02, first.length), seconds=5000 * 0.05), first.length)
    starts = [await chosen(store, unit, notes, delay_s=0.02) for _ in range(12)]
    assert starts[0].draft is None
    assert starts[-1].draft is not None
    # Once it is off, it stays off for several starts.
    assert [start.draft is None for start in starts[:3]] == [True] * 3


async def test_good_guesses_grow_longer(store: ModelStore, notes: DraftingNotes) -> None:
    unit = unit_of(store)
    first = await chosen(store, unit, notes, delay_s=0.06)
    notes.learn(first.key, tally(0.97, first.length), first.length)
    assert (await chosen(store, unit, notes, delay_s=0.06)).length > first.length


async def test_what_was_learned_outlives_the_node(store: ModelStore, notes: DraftingNotes, tmp_path: Path) -> None:
    unit = unit_of(store)
    first = await chosen(store, unit, notes, delay_s=0.06)
    notes.learn(first.key, tally(0.97, first.length), first.length)
    again = DraftingNotes(tmp_path / "cache" / "drafting.json")
    assert again.meter(first.key).as_dict() == notes.meter(first.key).as_dict()
    assert again.current("demo|split") == ("draft", first.length)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b"[" * 5000, b'{"format":1}', b'{"format":1,"meters":{"a":3},"choices":{}}', b"\xff" * 99,
     b'{"format":1,"meters":{},"choices":{"a":["draft","x"]}}', b" " * (2 << 20)],
)  # fmt: skip
def test_notes_that_cannot_be_read_are_begun_anew(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "drafting.json"
    file.write_bytes(content)
    notes = DraftingNotes(file)
    notes.learn("k", tally(0.5, 2, 10), 2)
    assert DraftingNotes(file).meter("k").tried == [10, 10]


def test_notes_are_bounded(tmp_path: Path) -> None:
    notes = DraftingNotes(tmp_path / "drafting.json")
    for number in range(300):
        notes.learn(f"model {number}", Tally(300, 1.0), 0)
    kept = json.loads((tmp_path / "drafting.json").read_bytes())
    assert len(kept["meters"]) == 256 and "model 299" in kept["meters"] and "model 0" not in kept["meters"]


def test_notes_that_cannot_be_written_are_done_without(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    notes = DraftingNotes(tmp_path / "cache" / "drafting.json")
    notes.learn("k", tally(0.5, 2, 10), 2)
    assert notes.meter("k").tried == [10, 10]


class ScriptedServer:
    """Answers /metrics with what it is given, in turn; an exception is raised."""

    def __init__(self, *answers: tuple[int, str] | OSError) -> None:
        self.answers = list(answers)

    async def request(self, method: str, path: str, *, body: bytes = b"", deadline_s: float = 5.0) -> tuple[int, bytes]:
        assert (method, path) == ("GET", "/metrics")
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer[0], answer[1].encode()


def counters(tokens: int, drafts: int) -> str:
    return (
        f"llamacpp:tokens_predicted_total {tokens}\nllamacpp:tokens_predicted_seconds_total 1.5\n"
        f"llamacpp:spec_decode_num_drafts_total {drafts}\nllamacpp:spec_decode_num_draft_tokens_total {3 * drafts}\n"
        f'llamacpp:spec_decode_num_accepted_tokens_per_pos_total{{position="0"}} {drafts // 2}\n'
    )


async def test_an_engine_is_followed_from_look_to_look(notes: DraftingNotes) -> None:
    server = ScriptedServer(
        (200, counters(100, 50)), (200, counters(400, 200)), OSError("gone"), (503, ""), (200, counters(1000, 500))
    )
    learner = Learner(notes, Drafting(Draft(DEMO_DRAFT, tokens_max=3), key="k"))
    for expected in (0, 200, 200, 200, 500):
        await learner.look(server)
        assert sum(notes.meter("k").tried[:1]) == pytest.approx(expected, rel=0.05)


async def test_what_has_no_key_is_not_followed(notes: DraftingNotes) -> None:
    await Learner(notes, Drafting()).look(ScriptedServer())


# --- the real engine ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def engine(
    folder: Path, draft: Draft | None = None, ngram: NgramDraft | None = None
) -> AsyncIterator[LlamaServer]:
    found = find(find_places().cache)
    assert found is not None
    options = ServerOptions(DEMO_TARGET, "demo", 2048, 1, 1, draft=draft, ngram=ngram, devices=("none",), warmup=False)
    server = LlamaServer(
        options,
        ServerParts(binary=found.server, run_dir=folder, environ=os.environ, problems=ProblemBoard()),
    )
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0)


async def answers(server: LlamaServer) -> list[bytes]:
    """Bodies of two greedy answers."""
    found = []
    for prompt in (REPEATED, "<|im_start|>user\nTell me about the sea.<|im_end|>\n<|im_start|>assistant\n"):
        wish = {"prompt": prompt, "n_predict": 160, "temperature": 0, "ignore_eos": True}
        status, body = await server.request("POST", "/completion", body=json.dumps(wish).encode(), deadline_s=30)
        assert status == 200
        found.append(body)
    return found


def texts(bodies: list[bytes]) -> list[str]:
    return [json.loads(body)["content"] for body in bodies]


@pytest.mark.engine
@pytest.mark.parametrize(
    ("draft", "ngram"), [(Draft(DEMO_DRAFT), None), (None, NgramDraft(8, 16)), (Draft(DEMO_DRAFT), NgramDraft())]
)
async def test_guesses_change_no_text_and_are_counted(
    engine_bin: Path, tmp_path: Path, notes: DraftingNotes, draft: Draft | None, ngram: NgramDraft | None
) -> None:
    async with engine(tmp_path / "plain") as server:
        plain = texts(await answers(server))
    async with engine(tmp_path / "guessing", draft, ngram) as server:
        bodies = await answers(server)
        assert texts(bodies) == plain
        await Learner(notes, Drafting(draft, ngram, key="k")).look(server)
    meter = notes.meter("k")
    assert meter.tried[0] >= 2
    assert 0.3 < meter.accepted[0] / meter.tried[0] <= 1
    assert meter.accepted == sorted(meter.accepted, reverse=True)
    assert meter.pass_s is not None and 0 < meter.pass_s < 1
    # What single answers say of themselves agrees with what the engine says of all.
    length = Drafting(draft, ngram).length
    tallies = [tally_of_timings(body, length) for body in bodies]
    assert all(tally is not None and tally.tokens == 160 for tally in tallies)
    assert sum(tally.taken for tally in tallies if tally) == pytest.approx(sum(meter.accepted), rel=0.35)
