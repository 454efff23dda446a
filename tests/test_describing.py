"""What signed statements prove of a mesh, and what a listing may say of it."""

from __future__ import annotations

from dataclasses import replace

from meshnode.describing import listing_of, models_of, price_of, probe_of, vram_bytes
from meshnode.mesh.inquiry import Answered, Stated
from meshnode.wire.address import Address
from meshnode.wire.inquiry import Prospect
from meshnode.wire.listings import ListedModel
from meshnode.wire.open_meshes import open_mesh_id
from meshnode.wire.registry import VERSION
from meshnode.wire.statements import Device, Dynamic, ModelState, Offer

SMALL = Offer("small", b"h" * 16, ModelState.READY, 512, 4)


def node(number: int) -> bytes:
    return bytes([number]) * 32


def at(number: int) -> Address:
    return Address(f"198.51.100.{number}", 9338)


def answered(*dynamics: Dynamic | None, nodes: int | None = None) -> Answered:
    stated = tuple(Stated(node(number + 1), (at(number + 1),), each) for number, each in enumerate(dynamics))
    prospect = Prospect(VERSION, open_mesh_id("one"), "one", True, True, len(stated) if nodes is None else nodes, 3)
    return Answered(node(1), at(1), prospect, 0.02, stated)


def test_only_what_is_signed_counts() -> None:
    busy = Offer("large", bytes(16), ModelState.READY, 512, 4, busy=3, waiting=2)
    loading = Offer("slow", b"s" * 16, ModelState.LOADING, 512, 9)
    gpu = Device("GPU", 8 << 30, 1 << 30)
    found = probe_of(
        answered(Dynamic((gpu, Device("host", 64 << 30, 0)), (SMALL, busy)), Dynamic((gpu,), (loading,)), None)
    )
    assert (found.nodes, found.free_slots, found.vram_bytes, found.room) == (3, 4, 16 << 30, True)
    assert {"small", "large"} <= found.models and "slow" not in found.models
    assert found.complete and not probe_of(answered(None, nodes=9)).complete


def test_an_answer_described_as_a_listing_claims_no_more_than_it_shows() -> None:
    found = answered(Dynamic(models=(SMALL,)), None)
    described = listing_of(found)
    assert (described.nodes, described.clients, described.models) == (2, 3, (ListedModel("small", b"h" * 16, 1),))
    assert [entry.node for entry in described.entries] == [node(1), node(2)]


def test_models_with_most_hosts_come_first() -> None:
    other = Offer("other", b"o" * 16, ModelState.READY, 512, 1)
    found = models_of([Dynamic(models=(SMALL,)), Dynamic(models=(SMALL, other))])
    assert [(each.name, each.hosts) for each in found] == [("small", 2), ("other", 1)]
    assert vram_bytes(Dynamic((Device("host", 5, 5),))) == 0


def test_the_cheapest_of_each_model_is_named_and_the_cheapest_of_all() -> None:
    dear = replace(SMALL, price_in=3, price_out=9, chain=84532)
    cheap = replace(SMALL, price_in=5, price_out=1, chain=8453)
    loading = replace(SMALL, price_in=1, price_out=0, chain=8453, state=ModelState.LOADING)
    dynamics = [Dynamic(models=(offer,)) for offer in (dear, cheap, loading)]
    assert [(each.hosts, each.price_in, each.price_out) for each in models_of(dynamics)] == [(2, 5, 1)]
    assert price_of(dynamics) == "5/1 8453"
    assert listing_of(answered(*dynamics)).price == "5/1 8453"
    assert models_of([*dynamics, Dynamic(models=(SMALL,))])[0].price_in == 0
    assert price_of([Dynamic(models=(SMALL,))]) == ""
