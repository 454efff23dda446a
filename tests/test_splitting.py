"""Facts about members become plans, and plans become words."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from meshnode.config import Settings
from meshnode.core.coordinates import distance_s
from meshnode.core.effects import Member, MembershipSnapshot
from meshnode.core.split import Decision
from meshnode.engine.installed import Engine
from meshnode.errors import EngineError
from meshnode.hardware import Device as Hardware
from meshnode.hardware import Inventory, Memory, Processor
from meshnode.models.shapes import LayerShape, ModelShape
from meshnode.splitting import MeasuredDelays, Splitting, plan_facts
from meshnode.wire.registry import Role
from meshnode.wire.statements import Coordinate, Device, Dynamic, Identity, Neighbour

GB = 10**9
HERE, NEAR, FAR = bytes([1]) * 32, bytes([2]) * 32, bytes([3]) * 32
VERSION = 7 << 16
HASH = "ab" * 32


def engine(**changes: object) -> Engine:
    found = Engine(
        Path("llama-server"), Path("ggml-rpc-server"), None, None, None, "v", (7, 0, 0), "cpu", True, "built"
    )
    return replace(found, **changes)  # type: ignore[arg-type]


def inventory(available: int) -> Inventory:
    processor = Hardware("CPU", "a processor", "cpu", "CPU", 2 * available, available, "", "machine")
    return Inventory((processor,), Processor("a processor", 4, 4, frozenset()), Memory(2 * available, available, ""))


def shape(layers: int = 10, layer_bytes: int = GB // 2) -> ModelShape:
    layer = LayerShape(layer_bytes, 1024, 1024)
    return ModelShape(
        "m",
        "llama",
        (layer,) * layers,
        1 << 26,
        1 << 26,
        0,
        4096,
        4096,
        11008,
        32000,
        0,
        0,
        10**9,
        layers * layer_bytes,
    )


def member(node: bytes, *, free: int = 4 * GB, rtt_s: float | None = 0.002, **said: object) -> Member:
    has = Dynamic(devices=(Device("host", 2 * free, free, 20_000, 50),), rpc=VERSION)
    return Member(
        node=node,
        state="alive",
        incarnation=1,
        role=Role.MEMBER,
        identity=Identity(b"c" * 65, (), f"node-{node[0]}"),
        dynamic=replace(has, **said),  # type: ignore[arg-type]
        demand=None,
        linked=True,
        reachable=True,
        rtt_s=rtt_s,
        estimated_rtt_s=None,
        since=0.0,
        heard_at=0.0,
    )


def mesh(*members: Member) -> MembershipSnapshot:
    return MembershipSnapshot(node=HERE, members={each.node: each for each in members})


def splitting(*members: Member, settings: Settings | None = None, available: int = 4 * GB) -> Splitting:
    made = Splitting(settings=settings or Settings(), node=HERE, name="here", members=lambda: mesh(*members))
    made.equip(engine(), inventory(available), {})
    return made


def decide(made: Splitting, **more: object) -> Decision:
    return asyncio.run(made.decide(shape(), HASH, **more))  # type: ignore[arg-type]


def verdicts(decision: Decision) -> dict[str, tuple[str, str]]:
    return {candidate.name: (candidate.verdict, candidate.reason) for candidate in decision.candidates}


def test_a_model_that_fits_here_runs_here() -> None:
    decision = decide(splitting(member(NEAR), available=20 * GB))
    assert decision.split is None and decision.solo is not None and decision.solo[0] == HERE.hex()
    assert plan_facts("m", decision, HERE.hex())["sentence"].startswith("m  on here alone, context ")


def test_a_model_that_fits_nowhere_is_split_with_those_who_lend() -> None:
    decision = decide(splitting(member(NEAR)))
    assert decision.split is not None and decision.split.workers == (NEAR.hex(),)
    held = decision.split.host_layers + sum(stage.layers for stage in decision.split.stages)
    assert held == len(shape().layers)
    facts = plan_facts("m", decision, HERE.hex())
    assert "split: layers here" in facts["sentence"] and "node-2" in facts["sentence"]
    assert facts["decision"]["split"]["host"] == HERE.hex()


def test_everybody_who_cannot_take_part_is_told_why() -> None:
    strangers = (
        member(NEAR, rpc=0),
        member(FAR, rpc=VERSION + 1),
        member(bytes([4]) * 32, devices=()),
        replace(member(bytes([5]) * 32), role=Role.CLIENT),
        member(bytes([6]) * 32),
    )
    decision = decide(splitting(*strangers), without={(bytes([6]) * 32).hex()})
    said = verdicts(decision)
    assert said["node-2"] == ("rejected", "it lends nothing to splits")
    assert said["node-3"] == ("rejected", "its engine speaks another version of llama.cpp RPC")
    assert said["node-4"] == ("rejected", "it has not said what it has")
    assert said["node-5"] == ("rejected", "a client-only node")
    assert said["node-6"] == ("rejected", "it failed a moment ago")
    assert decision.refusal is not None
    assert plan_facts("m", decision, HERE.hex())["sentence"].startswith("m does not fit: ")


def test_members_that_are_away_are_not_planned_with() -> None:
    gone = replace(member(NEAR), reachable=False)
    dead = replace(member(FAR), state="dead")
    assert splitting(gone, dead).others() == []


def test_what_a_plan_holds_at_a_worker_counts_as_free_for_the_next() -> None:
    first = decide(splitting(member(NEAR)))
    assert first.split is not None
    held = sum(stage.total_bytes for stage in first.split.stages)
    busy = member(NEAR, free=4 * GB - held)
    again = decide(splitting(busy), current=first.split)
    assert again.split is not None and again.split.workers == (NEAR.hex(),)
    assert decide(splitting(busy)).split is None


def test_asked_for_a_split_a_model_that_fits_is_split_unless_anything_will_do() -> None:
    made = splitting(member(NEAR), settings=Settings(split=True), available=20 * GB)
    assert decide(made).split is not None
    assert decide(made, alone=True).solo is not None


def test_an_engine_without_rpc_server_hosts_nothing() -> None:
    made = splitting(member(NEAR))
    made.equip(engine(rpc_server=None), inventory(4 * GB), {})
    assert verdicts(decide(made))["here"] == ("rejected", "its engine is not the one meshnode builds")


def test_before_the_engine_is_there_nothing_is_planned() -> None:
    made = Splitting(settings=Settings(), node=HERE, name="here", members=mesh)
    with pytest.raises(EngineError):
        decide(made)
    assert made.rpc_version == 0


def test_delays_are_measured_ones_where_there_are_any() -> None:
    near = Coordinate((1000, 0), 100, 100)
    far = Coordinate((9000, 0), 100, 100)
    told = (Neighbour(FAR[:8], 7_000),)
    made = splitting()
    measured = made._delays([member(NEAR, neighbours=told, coordinate=near), member(FAR, rtt_s=0.004, coordinate=far)])
    assert measured.rtt_s(HERE.hex(), NEAR.hex()) == 0.002
    assert measured.rtt_s(FAR.hex(), HERE.hex()) == 0.004
    assert measured.rtt_s(NEAR.hex(), FAR.hex()) == pytest.approx(0.007)
    guessed = made._delays([member(NEAR, coordinate=near), member(FAR, coordinate=far)])
    assert guessed.rtt_s(NEAR.hex(), FAR.hex()) == pytest.approx(distance_s(near, far))
    new = Coordinate((0, 0), 100, 1500)
    doubted = made._delays([member(NEAR, rtt_s=0.04, coordinate=new), member(FAR, rtt_s=0.06, coordinate=new)])
    assert doubted.rtt_s(NEAR.hex(), FAR.hex()) == pytest.approx(0.05)
    unknown = made._delays([member(NEAR, rtt_s=None), member(FAR)])
    assert unknown.rtt_s(HERE.hex(), NEAR.hex()) is None
    assert MeasuredDelays({}).rtt_s("a", "a") == 0.0


def test_a_worker_that_has_the_weights_may_host() -> None:
    decision = decide(splitting(member(NEAR, weights=(bytes.fromhex(HASH)[:16],), free=40 * GB), available=1))
    assert decision.solo is not None and decision.solo[0] == NEAR.hex()
    assert "start it there" in plan_facts("m", decision, HERE.hex())["sentence"]
    here = decide(splitting(member(NEAR, weights=(bytes.fromhex(HASH)[:16],), free=40 * GB)), here=True)
    assert here.split is not None and here.split.host == HERE.hex()
