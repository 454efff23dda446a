"""Whether a served model guesses ahead, with what, and how far: from measured speeds, delays, and what was learned.

Connects models, speeds and settings with the pure choice of core/speculation. llama-server takes the length of a guess
at its start only (the fields of a request that would change it are compiled out, server-schema.cpp), so it is chosen at
each start from what earlier starts taught; `Learner` reads that from the engine's own counters, and `DraftingNotes`
keeps it in the cache folder.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from meshnode import durable
from meshnode.config import Settings
from meshnode.core.acceptance import AcceptanceMeter, Tally, tally_of_metrics
from meshnode.core.memory import compute_bytes
from meshnode.core.placement import HOST, SoloPlan
from meshnode.core.speculation import Acceptance, Choice, Costs, Guesser, Kind, choose
from meshnode.core.split import SplitPlan
from meshnode.engine.commands import Draft, NgramDraft
from meshnode.errors import HomeNotWritable, ModelDoesNotFit, ModelError
from meshnode.hardware.benchmark import BenchmarkResult, predict_prompt_s, predict_tokens_per_s
from meshnode.models.cache import LocalModel
from meshnode.models.shapes import ModelShape, shape_of
from meshnode.models.store import ModelStore
from meshnode.planning import Speeds
from meshnode.telemetry import LOG, Report
from meshnode.units import Unit

PROCESSOR = "CPU"
SMALL_BYTES = 1 << 30
"""Below this a model alone on one machine is as quick without guesses: overheads of a pass rule (measured)."""
FAR_S = 2e-3
"""From this delay of a pass on, guessing is looked at for models of any size."""
DRAFT_CHANCE = 0.65
NGRAM_CHANCE = 0.8
"""Chances that a guess is right, assumed before anything is measured. The engine's demo models gave 0.7 to 0.95."""
NGRAM_SHARE = 0.1
"""Passes whose last tokens stood in the conversation before, assumed."""
NGRAM_MATCH = 8
BATCH_SHARE = 0.8
"""On a processor a pass over two tokens costs this much of a plain one more than arithmetic explains: 1.0 GB in Q8_0
took 41 ms for one token and 90, 110, 174, 298 ms for 2, 4, 8, 16 (one core, AVX-512)."""
ARITHMETIC_FACTOR = 1.5
"""Batches as small as a guess reach so much less of the arithmetic that prompts get (same measurement)."""
LEAST_EXTRA_SHARE = 0.02
UNUSED_KEEPS = 0.5
"""What is known of a way to guess weighs so much less at each start that does without it."""
LEARN_FROM_TOKENS = 256
MOST_NOTES = 256
NOTES_BYTES = 1 << 20
NOTES_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Drafting:
    """What to start an engine with. `name` is the draft model's ("" for none), `device` where it runs: an accelerator
    or "" for the processor; `asked` that a person named it; `reason` the choice in words."""

    draft: Draft | None = None
    ngram: NgramDraft | None = None
    name: str = ""
    device: str = ""
    key: str = ""
    shape: ModelShape | None = None
    asked: bool = False
    reason: str = ""

    @property
    def length(self) -> int:
        """Tokens guessed at once, 0 for none."""
        return self.draft.tokens_max if self.draft else self.ngram.tokens_max if self.ngram else 0

    def memory_bytes(self, context: int, parallel: int) -> int:
        """What the draft model takes: weights, cache and scratch. TRAP: its cache is as long as the target's.

        `context` is the engine's whole context in tokens, of all `parallel` conversations together.
        """
        if self.shape is None:
            return 0
        kv = self.shape.kv_bytes(context, sequences=parallel, unified=False)
        scratch = compute_bytes(self.shape, context=context // parallel, parallel=parallel, with_output=True)
        return self.shape.total_bytes - self.shape.tied_bytes + kv + scratch

    def taken(self, plan: SoloPlan | SplitPlan) -> dict[str, int]:
        """What the draft model takes beside a plan of this machine, in bytes by device (HOST: main memory)."""
        size = self.memory_bytes(plan.context * plan.parallel, plan.parallel)
        return {self.device or HOST: size} if size else {}


def plan_with(drafting: Drafting, plan: Callable[[Mapping[str, int]], SoloPlan]) -> tuple[SoloPlan, Drafting]:
    """The plan beside which the draft model fits, and the drafting that is left.

    `plan(taken)` plans with so many bytes taken of each device, and raises ModelDoesNotFit. A draft that nobody asked
    for must cost the model nothing: no layer on a GPU, no context, no request at once.
    """
    alone = plan({})
    if drafting.shape is None:
        return alone, drafting
    try:
        beside = plan(drafting.taken(alone))
    except ModelDoesNotFit:
        if drafting.asked:
            raise
        return alone, Drafting(key=drafting.key, reason="the draft model does not fit beside it")
    same = (beside.gpu_layers, beside.context, beside.parallel, beside.kv_type) == (
        alone.gpu_layers,
        alone.context,
        alone.parallel,
        alone.kv_type,
    )
    if same or drafting.asked:
        return beside, drafting
    return alone, Drafting(key=drafting.key, reason="the draft model would cost context or layers on the GPU")


async def choose_drafting(
    settings: Settings,
    store: ModelStore,
    unit: Unit,
    speeds: Speeds,
    *,
    notes: DraftingNotes,
    report: Report,
    delay_s: float = 0.0,
    token_s: float | None = None,
    devices: Sequence[str] = (),
) -> Drafting:
    """How this model guesses ahead on this host.

    `delay_s` is what the network adds to a pass of a split (0 on one machine), `token_s` the arithmetic of a plain pass
    where a plan predicts it, `devices` the accelerators of this host that the engine may use. A draft that was asked
    for is fetched if need be. Raises ModelNotFound, ModelError for one with another vocabulary, and what a download
    raises.
    """
    shape, local = unit.shape, unit.local
    if shape is None or local is None or unit.mode != "chat":
        return Drafting(reason="only models that write text are guessed for")
    if settings.no_draft:
        return Drafting(reason="turned off by --no-draft")
    asked = await _asked_draft(settings.draft, store, unit, report) if settings.draft else None
    small = shape.total_bytes < SMALL_BYTES and delay_s < FAR_S
    if small and asked is None:
        return Drafting(reason="a model as small as this is as quick without guesses")
    found = asked or await asyncio.to_thread(_paired_draft, store, unit)
    place = "split" if delay_s > 0 else "solo"
    target = f"{unit.ref.canonical}|{place}"
    costs = _target_costs(shape, speeds, devices, delay_s=delay_s, token_s=token_s)
    plain = notes.meter(f"{target}|none")
    if costs is not None and plain.pass_s is not None:
        costs = costs.calibrated(plain_s=plain.pass_s)
    guessers: list[Guesser] = []
    draft_shape, device = None, ""
    if found is not None:
        draft_shape = shape_of(await asyncio.to_thread(store.read, found))
        device, draft_s = _draft_place(draft_shape, speeds, devices)
        if costs is not None and draft_s is not None:
            guessers.append(_draft_guesser(notes.meter(f"{target}|draft|{found.name}"), costs, draft_s))
    if costs is not None and asked is None:
        guessers.append(_ngram_guesser(notes.meter(f"{target}|ngram"), costs))
    choice = choose(guessers, notes.current(target)) if guessers else Choice("none", 0, 1.0, "its speed is not known")
    if asked is not None and choice.kind == "none":
        length = max(range(1, 9), key=guessers[0].gain) if guessers else Draft(asked.path).tokens_max
        choice = Choice("draft", length, 1.0, f"{length} tokens guessed by the draft model that was asked for")
    await asyncio.to_thread(notes.chosen, target, choice.kind, choice.length)
    if choice.kind == "draft" and found is not None:
        draft = Draft(found.path, (device or "none",), tokens_max=choice.length)
        key = f"{target}|draft|{found.name}"
        return Drafting(draft, None, found.name, device, key, draft_shape, asked is not None, choice.reason)
    if choice.kind == "ngram":
        ngram = NgramDraft(NGRAM_MATCH, choice.length)
        return Drafting(ngram=ngram, key=f"{target}|ngram", reason=choice.reason)
    return Drafting(key=f"{target}|none", reason=choice.reason)


class DraftingNotes:
    """What was learned of guessing, by model, place and way; a file of at most some hundred entries.

    Calls may come from any thread. A file that cannot be read is begun anew, one that cannot be written is done
    without.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._meters: dict[str, AcceptanceMeter] = {}
        self._choices: dict[str, tuple[Kind, int]] = {}
        self._read()

    def meter(self, key: str) -> AcceptanceMeter:
        """What is known under this key; an empty meter where nothing is."""
        with self._lock:
            return self._meters.get(key) or AcceptanceMeter()

    def current(self, target: str) -> tuple[Kind, int] | None:
        """What was chosen for a model at its last start."""
        return self._choices.get(target)

    def chosen(self, target: str, kind: Kind, length: int) -> None:
        """Remember a choice, and write. What was learned of the other ways fades, so that they are tried again some
        day."""
        with self._lock:
            _put(self._choices, target, (kind, length))
            for key, meter in self._meters.items():
                way = key.removeprefix(f"{target}|").partition("|")[0] if key.startswith(f"{target}|") else kind
                if way not in (kind, "none"):
                    meter.fade(UNUSED_KEEPS)
            self._write()

    def learn(self, key: str, tally: Tally, length: int) -> None:
        """Take in what an engine counted, and write."""
        with self._lock:
            meter = self._meters.pop(key, None) or AcceptanceMeter()
            meter.add(tally, length)
            _put(self._meters, key, meter)
            self._write()

    def _read(self) -> None:
        try:
            if self._file.stat().st_size > NOTES_BYTES:
                return
            kept: Any = json.loads(self._file.read_bytes())
            if kept["format"] != NOTES_FORMAT:
                return
            self._meters = {str(key): AcceptanceMeter.from_dict(meter) for key, meter in kept["meters"].items()}
            self._choices = {
                str(key): (kind, int(length))
                for key, (kind, length) in kept["choices"].items()
                if kind in ("draft", "ngram", "none")
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            self._meters, self._choices = {}, {}

    def _write(self) -> None:
        kept = {
            "format": NOTES_FORMAT,
            "meters": {key: meter.as_dict() for key, meter in self._meters.items()},
            "choices": self._choices,
        }
        try:
            durable.write(self._file, json.dumps(kept).encode())
        except HomeNotWritable as error:
            LOG.warning("what was learned of drafts is not kept: %s", error.message)


class Server(Protocol):
    """What `Learner` needs of a running llama-server (engine/server.py has it)."""

    async def request(self, method: str, path: str, *, body: bytes = b"", deadline_s: float = 5.0) -> tuple[int, bytes]:
        """Status and body of one request. Raises OSError."""
        ...


class Learner:
    """Follows the counters of one engine: look now and then, and once before it is stopped."""

    def __init__(self, notes: DraftingNotes, drafting: Drafting) -> None:
        self._notes = notes
        self._drafting = drafting
        self._seen = Tally()

    async def look(self, server: Server) -> None:
        """Take in what the engine counted since the last look, if that is worth it. An engine that does not answer is
        left alone."""
        if not self._drafting.key:
            return
        try:
            status, body = await server.request("GET", "/metrics")
        except OSError:
            return
        if status != 200:
            return
        now = tally_of_metrics(body.decode("utf-8", "replace"))
        new = now.since(self._seen)
        if new.tokens >= LEARN_FROM_TOKENS:
            self._seen = now
            await asyncio.to_thread(self._notes.learn, self._drafting.key, new, self._drafting.length)


# --- which model --------------------------------------------------------------------------------------------------


async def _asked_draft(text: str, store: ModelStore, unit: Unit, report: Report) -> LocalModel:
    ref = await asyncio.to_thread(store.resolve, text)
    found = await asyncio.to_thread(store.find, ref)
    if found is None or found.incomplete:
        found = await asyncio.to_thread(store.pull, ref, report, unit.cancelled.is_set)
    header = await asyncio.to_thread(store.read, found)
    if unit.header is None or header.vocabulary_digest != unit.header.vocabulary_digest:
        raise ModelError(
            f"{found.name} cannot draft for {unit.id}: their vocabularies differ",
            fix="choose a smaller model of the same family, or leave --draft out",
        )
    return found


def _paired_draft(store: ModelStore, unit: Unit) -> LocalModel | None:
    """The draft that came with the model, or the one the catalog names if it is on this disk; nothing is fetched."""
    local = unit.local
    if local is not None and local.draft is not None:
        return store.find(store.resolve(str(local.draft)))
    entry = store.catalog.find(unit.ref.alias)
    paired = store.catalog.find(entry.draft) if entry and entry.draft else None
    found = store.find(store.resolve(paired.alias)) if paired else None
    return found if found and not found.incomplete else None


# --- what it costs ------------------------------------------------------------------------------------------------


def _target_costs(
    shape: ModelShape, speeds: Speeds, devices: Sequence[str], *, delay_s: float, token_s: float | None
) -> Costs | None:
    """Costs of a pass, None without any measured speed. The stages of a split are taken to be like this machine."""
    name = next((device for device in devices if device in speeds), PROCESSOR)
    speed = speeds.get(name)
    if speed is None:
        return None
    share = shape.active_bytes / shape.total_bytes if shape.total_bytes else 1.0
    alone_s = 1.0 / predict_tokens_per_s(speed, shape.active_bytes, len(shape.layers))
    extra_s = ARITHMETIC_FACTOR * predict_prompt_s(speed, round(shape.parameters * min(1.0, share)), 1)
    scale = token_s / alone_s if token_s else 1.0
    return Costs(
        token_s=alone_s * scale,
        extra_s=max(extra_s, LEAST_EXTRA_SHARE * alone_s) * scale,
        batch_s=BATCH_SHARE * alone_s * scale if name == PROCESSOR else 0.0,
        delay_s=delay_s,
    )


def _draft_place(shape: ModelShape, speeds: Speeds, devices: Sequence[str]) -> tuple[str, float | None]:
    """Where the draft model is fastest ("" for the processor), and the seconds of one of its tokens."""
    times: list[tuple[float, str]] = []
    for name in (*devices, PROCESSOR):
        speed: BenchmarkResult | None = speeds.get(name)
        if speed is not None:
            seconds = 1.0 / predict_tokens_per_s(speed, shape.active_bytes, len(shape.layers))
            times.append((seconds, "" if name == PROCESSOR else name))
    if not times:
        return "", None
    seconds, name = min(times)
    return name, seconds


def _draft_guesser(meter: AcceptanceMeter, costs: Costs, draft_s: float) -> Guesser:
    own = Costs(costs.token_s, costs.extra_s, costs.batch_s, draft_s, costs.delay_s)
    if meter.pass_s is not None:
        own = own.calibrated(length=meter.length, drafted_s=meter.pass_s)
    return Guesser("draft", meter.acceptance(Acceptance.constant(DRAFT_CHANCE)), own, share=meter.share(1.0))


def _ngram_guesser(meter: AcceptanceMeter, costs: Costs) -> Guesser:
    acceptance = meter.acceptance(Acceptance.constant(NGRAM_CHANCE, 16))
    return Guesser("ngram", acceptance, costs, share=meter.share(NGRAM_SHARE), least=NGRAM_MATCH)


def _put(kept: dict[str, Any], key: str, value: object) -> None:
    """Put an entry last, and let the first go once there are too many."""
    kept.pop(key, None)
    kept[key] = value
    while len(kept) > MOST_NOTES:
        del kept[next(iter(kept))]
