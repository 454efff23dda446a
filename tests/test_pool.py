"""A node's part in splits, without engines: what it says of itself, what it finds on its disk, who may host."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from meshnode.core.placement import Budget, Refusal, Wishes, plan_solo
from meshnode.engine.installed import Engine
from meshnode.errors import (
    EngineError,
    LeaseDenied,
    ModelFileInvalid,
    ModelNotFound,
    PeerUnreachable,
    WeightsUnavailable,
)
from meshnode.hardware import Device, Inventory, Memory, Processor
from meshnode.models.gguf import read_model
from meshnode.models.shapes import shape_of
from meshnode.rpc.held_lease import HeldLease
from meshnode.wire.registry import LeaseCode, RpcKind, StreamType
from meshnode.wire.splits import open_header
from meshnode.wire.statements import Device as DeviceStated
from meshnode.wire.statements import Dynamic, PlanClaim
from tests.e2e.small_models import embedding_model, many_bits_model
from tests.models.gguf_samples import llama
from tests.rpc.lease_room import ASK
from tests.stage import Stage, running, token_of, until
from tests.swarm_stage import stranger

pytestmark = pytest.mark.anyio
GIB = 1 << 30
PLAN = b"p" * 16
CPU = Device("CPU", "a processor", "cpu", "CPU", 16 * GIB, 12 * GIB)
MACHINE = Inventory((CPU,), Processor("a processor", 8, 4), Memory(16 * GIB, 12 * GIB))


def equip(stage: Stage, folder: Path) -> None:
    engine = Engine(
        folder / "llama-server", folder / "rpc-server", None, None, None, "x", (7, 0, 0), "cpu", True, "built"
    )
    stage.pool.equip(engine, MACHINE, {})


async def test_a_node_says_what_it_lends_once_it_has_an_engine(tmp_path: Path) -> None:
    async with running(tmp_path / "one") as one, running(tmp_path / "two") as two:
        assert one.pool.has().devices == () and one.pool.has().rpc == 0
        equip(two, tmp_path)
        await two.meshing.join(await token_of(one))

        def heard() -> bool:
            member = one.meshing.snapshot().members.get(two.node)
            return member is not None and member.dynamic is not None and member.dynamic.rpc == 7 << 16

        await until(heard)
        told = one.meshing.snapshot().members[two.node].dynamic
        assert told is not None and [device.name for device in told.devices] == ["host"]
        assert 0 < told.devices[0].free_bytes <= 12 * GIB


@pytest.mark.parametrize("switch", ["client", "lend"])
async def test_whoever_does_not_lend_says_so(tmp_path: Path, switch: str) -> None:
    stage = Stage(tmp_path, **({"client": True} if switch == "client" else {"lend": False}))
    equip(stage, tmp_path)
    assert stage.pool.has().rpc == 0
    await stage.pool.leave(0.0)
    await stage.pool.stop()


async def test_a_lease_is_refused_in_words_over_the_mesh(tmp_path: Path) -> None:
    async with running(tmp_path / "one") as one, running(tmp_path / "two", lend=False) as two:
        await two.meshing.join(await token_of(one))
        await until(lambda: two.node in one.meshing.snapshot().members)
        mesh = one.meshing.mesh
        assert mesh is not None

        async def open_lease() -> object:
            return await mesh.open_stream(two.node, StreamType.RPC, open_header(RpcKind.LEASE, PLAN))

        with pytest.raises(LeaseDenied) as caught:
            await HeldLease.ask(
                open_lease,  # type: ignore[arg-type]
                PLAN,
                replace(ASK, workers=(two.node,)),
                lost=lambda words: None,
                leaving=lambda: None,
                timeout_s=5,
            )
        assert caught.value.lease_code == LeaseCode.NOT_LENT


async def test_without_a_mesh_there_is_nobody_to_reach(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    with pytest.raises(PeerUnreachable):
        await stage.pool._open_stream(StreamType.RPC, b"x" * 32, b"", 0)
    await stage.pool.stop()


async def test_a_model_of_this_disk_is_found_by_its_size_and_proven_by_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--owner--repo" / "snapshots" / ("ab" * 20)
    folder.mkdir(parents=True)
    file = llama(folder / "small.gguf")
    data = file.read_bytes()
    stage = Stage(tmp_path / "home")
    await stage.pool.start()
    ask = replace(ASK, sha256=hashlib.sha256(data).digest(), size_bytes=len(data))
    await stage.pool._fetch_for_lease(ask, b"h" * 32, lambda have, want: None)
    assert await asyncio.to_thread(stage.pool._sharing.references, ask.sha256, b"") is not None
    with pytest.raises(WeightsUnavailable):
        await stage.pool._fetch_for_lease(replace(ask, sha256=b"o" * 32), b"h" * 32, lambda have, want: None)
    await stage.pool.stop()


async def test_a_split_is_hosted_by_one_node_of_a_mesh(tmp_path: Path) -> None:
    async with running(tmp_path / "one") as one, running(tmp_path / "two") as two:
        await two.meshing.join(await token_of(one))
        await until(lambda: two.node in one.meshing.snapshot().members)
        for stage in (one, two):
            equip(stage, tmp_path)
        model = b"m" * 32
        assert await one.pool._claims.claim(model) == 1
        await until(lambda: two.pool._claims.host(model) == one.node)
        second = asyncio.ensure_future(two.pool._claims.claim(model))
        await asyncio.wait({second}, timeout=0.1)
        assert not second.done()
        one.pool._claims.disclaim(model)
        assert await second > 1


# --- plans --------------------------------------------------------------------------------------------------------


def equip_to_plan(stage: Stage, folder: Path) -> None:
    equip(stage, folder)
    engine = stage.pool._engine
    assert engine is not None
    stage.serving.equip(engine, MACHINE, {})


async def test_before_the_engine_is_there_nothing_can_be_planned(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    with pytest.raises(EngineError, match="not ready yet"):
        await stage.pool.plan("demo")
    await stage.pool.stop()


async def test_a_plan_has_a_sentence_and_the_variants(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    equip_to_plan(stage, tmp_path)
    facts = await stage.pool.plan("demo")
    (variant,) = facts["variants"]
    assert (variant["fits"], variant["chosen"], variant["on_disk"]) == ("solo", True, True)
    assert facts["decision"]["solo"] and facts["fix"] == facts["precision"] == ""
    with pytest.raises(ModelNotFound, match="nothing is called"):
        await stage.pool.plan("nosuchmodel")
    await stage.pool.stop()


async def test_what_does_not_fit_ends_in_a_command(tmp_path: Path) -> None:
    file = many_bits_model(tmp_path / "wordy-F16.gguf")
    shape = shape_of(read_model(file))
    refusal = plan_solo(shape, Budget(0), Wishes(512, 1))
    assert isinstance(refusal, Refusal)
    stage = Stage(tmp_path, max_vram=refusal.needed_bytes - 1, ctx_size=512, parallel=1, kv_type="q8_0")
    equip_to_plan(stage, tmp_path)
    facts = await stage.pool.plan(str(file))
    assert facts["decision"]["refusal"] and facts["variants"][0]["fits"] == "no"
    assert f"meshnode quantize {file} --fit " in facts["fix"]
    await stage.pool.stop()


async def test_a_model_in_parts_of_which_one_is_missing(tmp_path: Path) -> None:
    part = llama(tmp_path / "large-00001-of-00002.gguf")
    stage = Stage(tmp_path)
    equip_to_plan(stage, tmp_path)
    with pytest.raises(ModelFileInvalid, match="large"):
        await stage.pool.plan(str(part))
    await stage.pool.stop()


@pytest.mark.parametrize("embeds", [True, False])
async def test_only_models_that_write_text_are_split(tmp_path: Path, embeds: bool) -> None:
    make = embedding_model if embeds else many_bits_model
    file = make(tmp_path / "model.gguf")
    refusal = plan_solo(shape_of(read_model(file)), Budget(0), Wishes(512, 1))
    assert isinstance(refusal, Refusal)
    wishes = {"ctx_size": 512, "parallel": 1, "kv_type": "q8_0", "max_vram": refusal.needed_bytes - 1}
    async with running(tmp_path / "one", **wishes) as one, running(tmp_path / "two") as two:
        await two.meshing.join(await token_of(one))
        for stage in (one, two):
            equip_to_plan(stage, tmp_path)

        def measured() -> bool:
            member = one.meshing.snapshot().members.get(two.node)
            lends = member is not None and member.dynamic is not None and bool(member.dynamic.rpc)
            return lends and one.pool._rtt_s(two.node.hex()) is not None

        await until(measured)
        facts = await one.pool.plan(str(file))
        (variant,) = facts["variants"]
        if not embeds:
            assert facts["decision"]["split"] and variant["fits"] == "split"
            return
        assert facts["decision"]["refusal"] and variant["fits"] == "no"
        (other,) = [each for each in facts["decision"]["candidates"] if each["node"] == two.node.hex()]
        assert "only models that write text are split" in other["reason"]


# --- strangers ----------------------------------------------------------------------------------------------------


async def test_splits_leases_and_weights_never_see_the_public_mesh(tmp_path: Path) -> None:
    """A stranger of the public mesh that this node is in too, and that claims to lend and to host a split."""
    file = many_bits_model(tmp_path / "model.gguf")
    refusal = plan_solo(shape_of(read_model(file)), Budget(0), Wishes(512, 1))
    assert isinstance(refusal, Refusal)
    wishes = {"ctx_size": 512, "parallel": 1, "kv_type": "q8_0", "max_vram": refusal.needed_bytes - 1}
    model = hashlib.sha256(file.read_bytes()).digest()[:16]
    async with (
        running(tmp_path / "one", **wishes) as one,
        stranger(tmp_path / "one", mesh_name="crowd") as public,
        stranger(tmp_path / "eve", mesh_name="crowd") as eve,
    ):
        equip_to_plan(one, tmp_path)
        ours, theirs = public.swarm.mesh, eve.swarm.mesh
        assert ours is not None and theirs is not None and public.node == one.node
        await public.until(lambda: public.state == eve.state == "alone")
        await ours.call(eve.node, theirs.addresses)
        lure = Dynamic(
            devices=(DeviceStated("GPU", 80 << 30, 80 << 30, 2_000_000, 1),),
            claims=(PlanClaim(PLAN, model, 9, 2, (one.node[:8],)),),
            weights=(model,),
            rpc=7 << 16,
        )
        theirs.publish(lure)

        def lured() -> bool:
            seen = public.sees(eve)
            return seen is not None and seen.dynamic is not None and seen.dynamic.claims == lure.claims

        await public.until(lured)
        assert eve.node not in one.meshing.snapshot().members
        facts = await one.pool.plan(str(file))
        assert facts["decision"]["refusal"] and not facts["decision"]["split"]
        assert eve.node.hex() not in {each["node"] for each in facts["decision"]["candidates"]}
        assert one.pool._rtt_s(eve.node.hex()) is None
        assert one.pool._claims.host(model) is None, "nobody hosts it, whatever a stranger says"
        assert await one.pool._claims.claim(model) == 1
        before = theirs.counters.get("streams_not_allowed", 0)
        for kind in (StreamType.RPC, StreamType.BULK):
            with pytest.raises(PeerUnreachable):
                await one.pool._open_stream(kind, eve.node, b"", 0)
        assert theirs.counters.get("streams_not_allowed", 0) == before, "it was not even asked"
        assert public.meets(eve)
