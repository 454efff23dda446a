"""What goes out is bounded and stepped; what comes in becomes models with hosts, and nothing that cannot be asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from meshnode.api.served import Host, Served
from meshnode.core.effects import Member, State
from meshnode.core.prices import FREE, Price
from meshnode.hardware import Device as Hardware
from meshnode.hardware import Memory, probe_all
from meshnode.hardware.benchmark import BenchmarkResult
from meshnode.offers import (
    MEMORY_STEP_BYTES,
    UNKNOWN_RTT_S,
    capability_names,
    devices_of,
    has_replica,
    mesh_entries,
    offers_of,
    peer_facts,
    priced,
    served_over_mesh,
)
from meshnode.wire.registry import LIMIT_MODELS, Role
from meshnode.wire.statements import Capability, Device, Dynamic, Identity, ModelState, Offer, PlanClaim

HASH = b"h" * 16


async def nowhere() -> Any:
    raise ConnectionError


def connect_to(_: bytes) -> Callable[[], Awaitable[Any]]:
    return nowhere


def unknown_speed(_: str) -> tuple[float | None, float | None]:
    return None, None


def offer(name: str = "demo", **more: Any) -> Offer:
    facts: dict[str, Any] = {"state": ModelState.READY, "context": 4096, "slots": 4, **more}
    return Offer(name=name, content_hash=facts.pop("content_hash", HASH), **facts)


def member(number: int, *offers: Offer, state: State = "alive", reachable: bool = True, **more: Any) -> Member:
    return Member(
        node=bytes([number]) * 32,
        state=state,
        incarnation=1,
        role=Role.MEMBER,
        identity=Identity(b"c" * 100, name=f"node {number}"),
        dynamic=Dynamic((Device("gpu", 8 << 30, 6 << 30), Device("host", 16 << 30, 8 << 30)), offers),
        demand=None,
        linked=True,
        reachable=reachable,
        rtt_s=more.get("rtt_s"),
        estimated_rtt_s=more.get("estimated_rtt_s"),
        since=0.0,
        heard_at=0.0,
    )


def local(name: str = "demo", state: Any = "ready", content_hash: str = HASH.hex()) -> Served:
    model = Served(name, state, names=("target",), slots=2, context_length=2048, capabilities=("completion", "chat"))
    return model.here(nowhere, "key", node="aa" * 32, content_hash=content_hash)


# --- out ------------------------------------------------------------------------------------------------------


def test_what_is_served_here_is_offered_with_its_queue() -> None:
    entries = [{"id": "demo", "busy": 3, "waiting": 7, "predicted_tokens_per_s": 12.34}]
    (found,) = offers_of([local()], entries, unknown_speed)
    assert (found.name, found.content_hash, found.state) == ("demo", HASH, ModelState.READY)
    assert (found.slots, found.busy, found.waiting, found.context) == (2, 2, 7, 2048)
    assert found.capabilities == Capability.COMPLETION | Capability.CHAT and found.names == ("target",)
    assert found.decode_speed == 123 and found.prompt_speed == 0


def test_a_measured_speed_is_better_than_a_predicted_one() -> None:
    entries = [{"id": "demo", "predicted_tokens_per_s": 12.34}]
    (found,) = offers_of([local()], entries, lambda _: (50.0, 900.0))
    assert (found.decode_speed, found.prompt_speed) == (500, 9000)


def test_failed_models_and_those_of_others_are_not_offered() -> None:
    remote = Served("far", "ready", hosts=(Host("bb" * 32, connect=nowhere),))
    assert offers_of([local(state="failed"), remote], [], unknown_speed) == ()


def test_weights_without_a_known_hash_are_nobodys_replica() -> None:
    (found,) = offers_of([local(content_hash="")], [], unknown_speed)
    assert not any(found.content_hash)
    (model,) = served_over_mesh([], [member(1, found)], connect_to)
    assert model.hosts[0].content_hash == "" and not has_replica(local(content_hash=""))


def test_no_more_is_offered_than_one_statement_may_say() -> None:
    assert len(offers_of([local(f"m{number}") for number in range(40)], [], unknown_speed)) == LIMIT_MODELS


def test_paths_of_this_machine_are_no_names() -> None:
    model = replace(local(), names=("/home/someone/model.gguf", "./m.gguf", "~/m.gguf", "fine", "x" * 65, "tab\there"))
    assert offers_of([model], [], unknown_speed)[0].names == ("fine",)


def test_free_memory_is_told_in_steps() -> None:
    inventory = replace(probe_all(), memory=Memory(32 << 30, (5 << 30) + 12345, "test"))
    host = devices_of(inventory)[-1]
    assert (host.name, host.total_bytes) == ("host", 32 << 30)
    assert host.free_bytes % MEMORY_STEP_BYTES == 0 and 0 <= (5 << 30) + 12345 - host.free_bytes < MEMORY_STEP_BYTES
    assert devices_of(None) == ()


def test_what_a_plan_may_take_and_how_fast_it_is() -> None:
    gpus = tuple(Hardware(name, f"GPU {name}", "gpu", "CUDA", 8 << 30, 7 << 30) for name in ("CUDA0", "CUDA1", "CUDA2"))
    machine = replace(probe_all(), memory=Memory(32 << 30, 9 << 30, "test"))
    inventory = replace(machine, devices=(*gpus, machine.devices[-1]))
    speed = BenchmarkResult("CUDA1", "GPU CUDA1", "x", 1, 1.0, 1.0, 1, 0.0000314, 935.4e9, 1.0, 0.0)
    usable = {"CUDA0": 5 << 30, "CUDA1": 123_456_789, "host": 1000}
    first, second, host = devices_of(
        inventory, usable=usable, speeds={"CUDA1": speed, "CPU": replace(speed, layer_s=0)}
    )
    assert (first.name, first.total_bytes, first.free_bytes) == ("GPU CUDA0", 8 << 30, 5 << 30)
    assert (first.bandwidth, first.layer_us) == (0, 0), "never measured"
    assert (second.free_bytes, second.bandwidth, second.layer_us) == (123_456_789, 935_400, 31)
    assert (host.name, host.free_bytes, host.bandwidth, host.layer_us) == ("host", 1000, 935_400, 0)


# --- in -------------------------------------------------------------------------------------------------------


def test_a_model_of_one_name_has_all_its_hosts_and_ours_first() -> None:
    (model,) = served_over_mesh([local()], [member(1, offer()), member(2, offer(context=8192))], connect_to)
    assert [host.here for host in model.hosts] == [True, False, False]
    assert model.context_length == 8192 and model.state == "ready" and has_replica(model)
    assert [host.radius for host in model.hosts[1:]] == ["trusted", "trusted"]


def test_a_model_of_others_is_served_here_too() -> None:
    offered = offer("far", names=("alias",), capabilities=Capability.CHAT | Capability.TOOLS, busy=1, waiting=2)
    (model,) = served_over_mesh([], [member(1, offered, rtt_s=0.004)], connect_to)
    assert (model.id, model.names, model.capabilities) == ("far", ("alias",), ("chat", "tools"))
    (host,) = model.hosts
    assert (host.node, host.busy, host.waiting, host.rtt_s, host.ready) == ("01" * 32, 1, 2, 0.004, True)
    assert host.api_key == "" and model.local is None


@pytest.mark.parametrize("state", ["unreachable", "dead", "left"])
def test_nobody_is_sent_to_a_member_that_is_not_alive(state: State) -> None:
    assert served_over_mesh([], [member(1, offer(), state=state)], connect_to) == []


def test_nor_to_one_that_this_node_misses() -> None:
    assert served_over_mesh([], [member(1, offer(), reachable=False)], connect_to) == []
    assert served_over_mesh([], [replace(member(1), dynamic=None)], connect_to) == []


def test_distance_is_measured_or_estimated_or_a_guess() -> None:
    members = [member(1, offer(), rtt_s=0.0), member(2, offer(), estimated_rtt_s=0.02), member(3, offer())]
    (model,) = served_over_mesh([], members, connect_to)
    assert [host.rtt_s for host in model.hosts] == [0.0, 0.02, UNKNOWN_RTT_S]


def test_a_model_that_still_loads_here_is_ready_when_another_host_is() -> None:
    (model,) = served_over_mesh([local(state="loading")], [member(1, offer())], connect_to)
    assert model.state == "loading" and model.ready


def test_other_weights_are_no_replica() -> None:
    (model,) = served_over_mesh([local()], [member(1, offer(content_hash=b"x" * 16))], connect_to)
    assert not has_replica(model)


def test_flags_from_the_future_are_passed_over() -> None:
    assert capability_names(Capability.CHAT | 1 << 12) == ("chat",)


# --- shown ----------------------------------------------------------------------------------------------------


def test_a_peer_is_shown_with_models_and_memory() -> None:
    facts = peer_facts(member(1, offer(decode_speed=423), rtt_s=0.00123), "127.0.0.1:5")
    assert facts["short"] == "0101010101" and facts["name"] == "node 1" and facts["role"] == "member"
    assert facts["rtt_ms"] == 1.23 and facts["address"] == "127.0.0.1:5" and facts["path"] == "direct"
    assert facts["memory"] == {"total_bytes": 24 << 30, "free_bytes": 14 << 30}
    assert facts["models"][0]["tokens_per_s"] == 42.3 and facts["models"][0]["state"] == "ready"
    bare = replace(member(1), identity=None, dynamic=None, linked=False)
    assert peer_facts(bare, None)["models"] == [] and peer_facts(bare, None)["path"] is None


def test_models_of_others_stand_beside_ours_in_the_status() -> None:
    models = served_over_mesh([local()], [member(1, offer(), offer("far", busy=1, waiting=2))], connect_to)
    (entry,) = mesh_entries(models)
    assert (entry["id"], entry["where"], entry["parallel"], entry["busy"]) == ("far", "mesh (1)", 4, 1)


# --- how far hosts are ------------------------------------------------------------------------------------------


def test_hosts_are_where_trust_says_and_members_of_the_mesh_trusted_without_a_word() -> None:
    where = {b"\1" * 32: "local", b"\2" * 32: "trusted", b"\3" * 32: "public"}
    members = [member(number, offer()) for number in (1, 2, 3)]
    (model,) = served_over_mesh([], members, connect_to, radius=lambda found: where[found.node])
    assert [host.radius for host in model.hosts] == ["local", "trusted", "public"]
    assert {host.radius for host in served_over_mesh([], members, connect_to)[0].hosts} == {"trusted"}


def stranger_of(_: Member) -> str:
    return "public"


def test_a_stranger_adds_a_host_to_a_model_and_says_nothing_of_it() -> None:
    lure = offer(context=1 << 30, names=("gpt-4",), state=ModelState.READY, capabilities=Capability.EMBEDDING)
    known = replace(local(state="loading"), capabilities=())
    (model,) = served_over_mesh([known], [member(1, lure)], connect_to, radius=stranger_of)
    assert (model.state, model.context_length, model.names, model.capabilities) == ("loading", 2048, ("target",), ())
    assert [host.radius for host in model.hosts] == ["local", "public"]
    (alone,) = served_over_mesh([], [member(1, lure)], connect_to, radius=stranger_of)
    assert (alone.state, alone.context_length, alone.near) == ("ready", 1 << 30, False)


def test_strangers_are_no_replica_for_whoever_leaves() -> None:
    (model,) = served_over_mesh([local()], [member(1, offer())], connect_to, radius=stranger_of)
    assert not has_replica(model)
    (model,) = served_over_mesh([local()], [member(1, offer())], connect_to)
    assert has_replica(model)


@pytest.mark.parametrize(
    ("workers", "radius"),
    [
        ((), "local"),
        ((2,), "local"),
        ((2, 3), "trusted"),
        ((9,), "trusted"),  # one that is not known
    ],
)
def test_a_split_is_as_far_away_as_the_furthest_of_its_workers(workers: tuple[int, ...], radius: str) -> None:
    """They see what passes through them."""
    where = {b"\1" * 32: "local", b"\2" * 32: "local", b"\3" * 32: "trusted"}
    claim = PlanClaim(b"p" * 16, HASH, 1, 2, tuple(bytes([number]) * 8 for number in workers))
    others = [member(2), member(3)]
    host = member(1, offer())
    assert host.dynamic is not None
    host = replace(host, dynamic=replace(host.dynamic, claims=(claim,)))

    def of(found: Member) -> str:
        return where[found.node]

    (model,) = served_over_mesh([], [host, *others], connect_to, radius=of)
    assert [entry.radius for entry in model.hosts] == [radius]
    (model,) = served_over_mesh([local()], others, connect_to, radius=of, claims=(claim,))
    assert [(entry.here, entry.radius) for entry in model.hosts] == [(True, radius)]
    (other,) = served_over_mesh([local(content_hash="ab" * 16)], others, connect_to, radius=of, claims=(claim,))
    assert other.hosts[0].radius == "local", "the claim is on another model"


def test_a_peer_is_shown_with_its_radius_and_the_way_to_it() -> None:
    assert peer_facts(member(1), None)["radius"] == "trusted"
    facts = peer_facts(member(1), None, radius="local", path="relayed")
    assert (facts["radius"], facts["path"]) == ("local", "relayed")


def test_models_of_strangers_are_told_apart_in_the_status() -> None:
    models = served_over_mesh([], [member(1, offer("far"))], connect_to, radius=stranger_of)
    (entry,) = mesh_entries(served_over_mesh(models, [], connect_to))
    assert (entry["where"], entry["radius"]) == ("public (1)", "public")
    (entry,) = mesh_entries(served_over_mesh(models, [member(2, offer("far"))], connect_to))
    assert (entry["where"], entry["radius"]) == ("mesh (2)", "trusted")


def test_what_costs_something_is_offered_with_its_price_and_the_rest_as_it_was() -> None:
    offers = (offer("demo"), offer("other"))
    prices = {"demo": Price(200_000, 600_000)}
    found = priced(offers, lambda name: prices.get(name, FREE), 84532)
    assert found == (replace(offers[0], price_in=200_000, price_out=600_000, chain=84532), offers[1])


def test_only_what_a_stranger_offers_has_a_price_and_only_where_it_can_be_paid() -> None:
    sold = offer(price_in=2, price_out=6, chain=84532)
    asked: list[bytes] = []

    def paid_to(node: bytes) -> Callable[[], Awaitable[Any]]:
        asked.append(node)
        return nowhere

    def host_of(radius: str, **more: Any) -> Host:
        [model] = served_over_mesh([], [member(1, sold)], connect_to, radius=lambda _: radius, **more)
        return model.hosts[0]

    host = host_of("public", connect_paid=paid_to)
    assert (host.price, host.chain, host.connect_paid, host.connect) == (Price(2, 6), 84532, nowhere, nowhere)
    assert asked == [bytes([1]) * 32]
    for free in (host_of("trusted", connect_paid=paid_to), host_of("public")):
        assert free.price.is_free and free.connect_paid is None
    [gift] = served_over_mesh([], [member(1, offer())], connect_to, radius=lambda _: "public", connect_paid=paid_to)
    assert gift.hosts[0].connect_paid is None


def test_the_price_of_an_offer_is_shown() -> None:
    [free, sold] = peer_facts(member(1, offer(), offer("b", price_in=2, price_out=6, chain=7)), None)["models"]
    assert free["price"] is None and sold["price"] == {"in": 2, "out": 6, "chain": 7}
