"""The shell of the standby: what it makes of members and offers, what it carries out, what it remembers and shows."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meshnode import standby
from meshnode.api.record import Record
from meshnode.core.effects import Member
from meshnode.core.needs import Known
from meshnode.core.placement import Budget, Wishes
from meshnode.core.rebalancing import COLD_S, Nothing, Promote, StepDown
from meshnode.errors import ModelFileInvalid, ModelInUse
from meshnode.models.cache import LocalModel
from meshnode.models.catalog import DEMO_TARGET
from meshnode.models.digest import DigestStopped
from meshnode.models.gguf import read_model
from meshnode.models.header import Header
from meshnode.models.names import ModelRef
from meshnode.standby import Disk, Standby, StandbyParts, room_of
from meshnode.wire.registry import Role
from meshnode.wire.statements import Demand, Device, Dynamic, ModelState, Offer, PlanClaim, Wish

pytestmark = pytest.mark.anyio
GIB = 1 << 30
ME, OTHER = b"\x50" * 32, b"\x60" * 32
HASH = b"h" * 16
DEMO = Known("demo", HASH.hex(), 30 << 20)


def local(name: str = "demo", path: Path = DEMO_TARGET, **more: Any) -> LocalModel:
    facts = {"parts": (path,), "size_bytes": 30 << 20, "total_bytes": 30 << 20, "modified_s": 1.0, **more}
    return LocalModel(ref=ModelRef(f"repo/{name}:Q4", "hub", alias=name), path=path, **facts)


def disk(*models: LocalModel, read: Callable[[LocalModel], Header] | None = None) -> Disk:
    found = models or (local(),)
    made = Disk(models=lambda: found, read=read or (lambda model: read_model(model.path)), digest=lambda *_: HASH.hex())
    made.look()
    return made


def offer(name: str = "demo", state: int = ModelState.READY, **more: Any) -> Offer:
    return Offer(name, more.pop("content_hash", HASH), state, 4096, 4, **more)


def member(node: bytes = OTHER, *offers: Offer, has: dict[str, Any] | None = None, **more: Any) -> Member:
    facts: dict[str, Any] = {
        "state": "alive",
        "role": Role.MEMBER,
        "dynamic": Dynamic((Device("host", 64 * GIB, 32 * GIB),), offers, **(has or {})),
        "demand": None,
        "reachable": True,
        **more,
    }
    return Member(
        node=node,
        incarnation=1,
        identity=None,
        linked=True,
        rtt_s=0.01,
        estimated_rtt_s=None,
        since=0.0,
        heard_at=0.0,
        **facts,
    )


class Stage:
    """A Standby before a serving that the test plays."""

    def __init__(self, **parts: Any) -> None:
        self.now = 100.0
        self.members = [member(ME)]
        self.wishes = [Wish("demo", 6000)]
        self.offers: list[Offer] = []
        self.entries: list[dict[str, Any]] = []
        self.loaded: list[tuple[str, str]] = []
        self.unloaded: list[str] = []
        self.refusal: Exception | None = None
        self.changes = 0
        facts: dict[str, Any] = {
            "node": ME.hex(),
            "members": lambda: self.members,
            "wishes": lambda: self.wishes,
            "offers": lambda: self.offers,
            "entries": lambda: self.entries,
            "budget": lambda without: Budget(32 * GIB),
            "plan_wishes": Wishes(),
            "disk": disk(),
            "load": self.load,
            "unload": self.unload,
            "changed": self.changed,
            "clock": lambda: self.now,
            "rng": random.Random(1),
            **parts,
        }
        self.standby = Standby(StandbyParts(**facts))

    def changed(self) -> None:
        self.changes += 1

    async def load(self, name: str, reason: str) -> str:
        if self.refusal is not None:
            raise self.refusal
        self.loaded.append((name, reason))
        self.serve(ModelState.LOADING, name=name)
        return name

    async def unload(self, name: str) -> None:
        self.unloaded.append(name)
        self.serve(None)

    def serve(self, state: int | None, *, name: str = "demo", **more: Any) -> None:
        """This node serves that model in that state, or none."""
        words = {ModelState.LOADING: "loading", ModelState.READY: "ready", ModelState.FAILED: "failed"}
        shown = state is not None and state != ModelState.FAILED
        self.offers = [offer(name, state, **more)] if shown and state is not None else []
        self.entries = [] if state is None else [{"id": name, "state": words[state], "detail": "no memory"}]

    async def steps(self, for_s: float) -> list[Any]:
        """Look every three seconds; what was decided, without the nothings."""
        found = []
        for _ in range(int(for_s / 3)):
            self.now += 3
            decision = await self.standby.step()
            if not isinstance(decision, Nothing):
                found.append(decision)
        return found


# --- the loop's step ------------------------------------------------------------------------------------------


async def test_a_wanted_model_is_loaded_with_its_reason() -> None:
    stage = Stage()
    (decision,) = await stage.steps(60)
    assert isinstance(decision, Promote)
    assert stage.loaded == [("demo", "6.0 requests a minute, and no node serves it")]
    stage.serve(ModelState.READY)
    assert await stage.steps(300) == []
    facts = stage.standby.facts()
    assert facts["models"] == [{"model": "demo", "reason": stage.loaded[0][1]}]
    assert [change["action"] for change in facts["changes"]] == ["taken on"] and stage.changes == 1
    assert facts["why"] == "nothing is lacking"


async def test_a_load_that_is_refused_or_fails_is_not_repeated_at_once() -> None:
    stage = Stage()
    stage.refusal = ModelInUse("demo is on its way out")
    await stage.steps(60)
    assert stage.standby.facts()["models"] == [] and stage.loaded == []
    assert [change["action"] for change in stage.standby.facts()["changes"]] == ["taken on", "failed"]
    stage = Stage()
    await stage.steps(60)
    stage.serve(ModelState.FAILED)
    await stage.steps(120)
    facts = stage.standby.facts()
    assert len(stage.loaded) == 1 and facts["models"] == []
    assert (facts["changes"][-1]["action"], facts["changes"][-1]["reason"]) == ("failed", "no memory")


async def test_what_a_person_unloads_is_left_alone() -> None:
    stage = Stage()
    await stage.steps(60)
    stage.serve(None)
    await stage.steps(600)
    assert len(stage.loaded) == 1
    assert stage.standby.facts()["changes"][-1]["action"] == "gone"


async def test_a_cold_model_is_drained_and_replaced() -> None:
    """Cold is what nobody has asked for; a request that ended a moment ago counts, however short it was."""
    large = disk(local(), local("large"))
    large.known = (DEMO, Known("large", "cc" * 16, 30 << 20))
    stage = Stage(disk=large)
    await stage.steps(60)
    stage.serve(ModelState.READY)
    stage.wishes = []
    await stage.steps(COLD_S - 60)
    stage.standby.finished(Record("r", "/v1/chat/completions", 0.0, "demo", node=ME.hex()))
    stage.wishes = [Wish("large", 6000)]
    assert await stage.steps(COLD_S - 60) == []
    stage.standby.finished(Record("r", "/v1/chat/completions", 0.0, "demo", node=OTHER.hex()))
    stage.standby.finished(Record("r", "/v1/chat/completions", 0.0, "other", peer=OTHER.hex()))
    stage.wishes = [Wish("large", 6000)]
    found = await stage.steps(150)
    assert [type(decision) for decision in found] == [StepDown, Promote]
    assert stage.unloaded == ["demo"] and [name for name, _ in stage.loaded] == ["demo", "large"]
    assert [entry["model"] for entry in stage.standby.facts()["models"]] == ["large"]


async def test_a_name_that_is_shortened_on_the_wire_is_known_again() -> None:
    long = "repo/" + "long-" * 20
    two = disk(local(), local(long))
    assert two.known[1].called(long[:64]) and not two.known[0].called(long[:64])
    two.known = (Known(long, "cc" * 16, 30 << 20, (long[:64],)),)
    stage = Stage(disk=two)
    stage.wishes = [Wish(long[:64], 6000)]
    await stage.steps(60)
    assert [name for name, _ in stage.loaded] == [long]
    stage.offers = [offer(long[:64], content_hash=b"\xcc" * 16)]
    stage.entries = [{"id": long, "state": "ready"}]
    await stage.steps(30)
    assert stage.standby.facts()["why"] == "nothing is lacking", "it is its own"


@pytest.mark.parametrize("busy", [{"busy": 1}, {"waiting": 1}])
async def test_a_model_at_work_is_not_cold(busy: dict[str, int]) -> None:
    two = disk(local(), local("large"))
    two.known = (DEMO, Known("large", "cc" * 16, 30 << 20))
    stage = Stage(disk=two)
    await stage.steps(60)
    stage.serve(ModelState.READY, **busy)
    stage.wishes = [Wish("large", 6000)]
    assert await stage.steps(3 * COLD_S) == []


async def test_what_a_person_asked_for_is_never_touched() -> None:
    stage = Stage()
    stage.serve(ModelState.READY, name="large", content_hash=b"l" * 16)
    assert await stage.steps(3 * COLD_S) == [] and stage.standby.facts()["why"] == "it serves what a person asked for"
    stage = Stage()
    await stage.steps(60)
    stage.serve(ModelState.READY)
    stage.standby.asked_for("demo")
    assert stage.standby.facts()["models"] == []
    await stage.steps(30)
    assert stage.standby.facts()["why"] == "it serves what a person asked for"


# --- views ----------------------------------------------------------------------------------------------------

SERVER = member(OTHER, offer())
WANTS = Demand((Wish("demo", 6000),))


@pytest.mark.parametrize(
    ("others", "acts"),
    [
        ([], True),
        ([SERVER], False),
        ([member(OTHER, offer(state=ModelState.LOADING))], False),
        ([member(OTHER, offer(state=ModelState.FAILED))], True),
        ([member(OTHER, offer(), state="unreachable", reachable=False)], False),
        ([member(OTHER, offer(), state="dead")], True),
        ([member(OTHER, offer(), state="left")], True),
        ([member(OTHER, offer(), role=Role.CLIENT)], True),
        ([member(OTHER, has={"claims": (PlanClaim(b"p" * 16, HASH, 1, 1),)})], False),
        ([member(bytes([at]) * 32, has={"weights": (HASH,)}) for at in (1, 2)], True),
        ([member(OTHER, dynamic=None)], True),
    ],
)
async def test_which_members_count(others: list[Member], acts: bool) -> None:
    stage = Stage()
    stage.members += others
    assert bool(await stage.steps(60)) is acts


async def test_the_demand_of_others_counts_and_fades_here() -> None:
    for age_s, acts in ((0.0, True), (1200.0, False)):
        stage = Stage()
        stage.wishes = []
        stage.members.append(member(OTHER, demand=WANTS, demand_at=stage.now - age_s))
        assert bool(await stage.steps(60)) is acts


@pytest.mark.parametrize(
    ("parts", "acts"),
    [
        ({"budget": lambda without: Budget(1 << 20)}, False),
        ({"budget": lambda without: None}, False),
        ({"budget": lambda without: Budget(1 << 20), "splits": lambda model: model == DEMO}, True),
        ({"disk": Disk(models=list, read=lambda _: pytest.fail(), digest=lambda *_: "")}, False),
    ],
)
async def test_it_must_fit(parts: dict[str, Any], acts: bool) -> None:
    known = disk().known
    assert [(model.name, model.content_hash) for model in known] == [("demo", HASH.hex())]
    if "splits" in parts:
        parts |= {"splits": lambda model: model == known[0]}
    assert bool(await Stage(**parts).steps(60)) is acts


async def test_weights_may_come_from_peers_if_that_is_allowed() -> None:
    empty = Disk(models=list, read=lambda _: pytest.fail(), digest=lambda *_: "")
    for allowed, room_bytes, acts in ((True, 32 * GIB, True), (False, 32 * GIB, False), (True, 1 << 20, False)):
        stage = Stage(disk=empty, may_fetch=lambda a=allowed: a, budget=lambda without, r=room_bytes: Budget(r))
        stage.members.append(member(OTHER, offer(size_bytes=30 << 20), has={"weights": (HASH,)}))
        await stage.steps(9)
        busy = offer("large", content_hash=b"l" * 16, busy=4)
        stage.members[1] = member(OTHER, busy, has={"weights": (HASH,)})
        assert bool(await stage.steps(90)) is acts


def test_the_room_of_a_machine() -> None:
    host = Device("host", 64 * GIB, 20 * GIB)
    assert room_of(()) == 0
    assert room_of((host,)) == 20 * GIB
    assert room_of((Device("A", 24 * GIB, 12 * GIB), Device("B", 24 * GIB, 10 * GIB), host)) == 22 * GIB
    assert room_of((Device("A", 8 * GIB, 2 * GIB), host)) == 20 * GIB


# --- the disk -------------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_passed_over_and_what_is_known_is_not_read_twice() -> None:
    reads: list[str] = []

    def read(model: LocalModel) -> Header:
        reads.append(model.ref.alias)
        if model.ref.alias == "broken":
            raise ModelFileInvalid("no")
        return read_model(model.path)

    models = [local(), local("broken", Path("/broken")), local("half", Path("/half"), incomplete=True)]
    found = Disk(models=lambda: models, read=read, digest=lambda *_: "ab" * 32)
    found.look()
    found.look()
    assert reads == ["demo", "broken", "broken"]
    (known,) = found.known
    assert known == Known("demo", "ab" * 16, 30 << 20, ("repo/demo:Q4", models[0].name))
    assert found.shape(known) is not None and found.shape(DEMO) is None
    models[0] = local(modified_s=2.0)
    found.look()
    assert reads.count("demo") == 2


def test_a_look_that_is_cut_short_leaves_what_was_known() -> None:
    stop = False

    def digest(model: LocalModel, stopped: Callable[[], bool]) -> str:
        if stopped():
            raise DigestStopped
        return HASH.hex()

    found = Disk(models=lambda: [local()], read=lambda model: read_model(model.path), digest=digest)
    found.look(lambda: stop)
    stop = True
    found.look(lambda: stop)
    assert [model.name for model in found.known] == ["demo"]


# --- life -----------------------------------------------------------------------------------------------------


async def test_it_runs_until_it_is_stopped_and_survives_a_fault(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(standby, "SETTLE_S", 0.0)
    monkeypatch.setattr(standby, "TICK_S", 0.001)
    monkeypatch.setattr(standby.LOG, "propagate", True)
    stage = Stage()
    looks = 0
    enough = asyncio.Event()

    def members() -> list[Member]:
        nonlocal looks
        looks += 1
        stage.now += 3
        if looks == 1:
            raise RuntimeError("a fault")
        if looks > 5:
            enough.set()
        return stage.members

    made = Standby(StandbyParts(**{**vars_of(stage), "members": members}))
    made.start()
    async with asyncio.timeout(5):
        await enough.wait()
    await made.stop()
    count = looks
    await asyncio.sleep(0.01)
    assert looks == count and "a look at what the mesh needs failed" in caplog.text
    await Standby(StandbyParts(**vars_of(stage))).stop()


def vars_of(stage: Stage) -> dict[str, Any]:
    parts = stage.standby._parts
    return {name: getattr(parts, name) for name in parts.__dataclass_fields__}
