"""What a mesh has, told in three ways: what its members have signed, what that proves, and what a listing says of it.

A listing claims no more than an inquiry shows, so that whoever asks finds it confirmed.
"""

from __future__ import annotations

from collections.abc import Sequence

from meshnode.core.choosing import Probe
from meshnode.core.placement import HOST
from meshnode.mesh.inquiry import Answered
from meshnode.wire.listings import Entry, ListedModel, Listing
from meshnode.wire.registry import LIMIT_LISTING_ENTRIES, LIMIT_LISTING_MODELS
from meshnode.wire.statements import Dynamic, ModelState


def probe_of(answered: Answered) -> Probe:
    """What an answer has shown: signed statements alone."""
    dynamics = [stated.dynamic for stated in answered.stated if stated.dynamic is not None]
    offers = [offer for dynamic in dynamics for offer in dynamic.models if offer.state == ModelState.READY]
    names = {name for offer in offers for name in (offer.name, offer.content_hash.hex())}
    return Probe(
        rtt_s=answered.rtt_s,
        nodes=len(answered.stated),
        free_slots=sum(max(0, offer.slots - offer.busy - offer.waiting) for offer in offers),
        models=frozenset(names),
        vram_bytes=sum(map(vram_bytes, dynamics)),
        room=answered.prospect.room and answered.prospect.open,
        complete=answered.prospect.nodes <= len(answered.stated),
    )


def listing_of(answered: Answered) -> Listing:
    """An answer in the form of a listing: claims that are all shown, signed by nobody."""
    probe, prospect = probe_of(answered), answered.prospect
    dynamics = [stated.dynamic for stated in answered.stated if stated.dynamic is not None]
    entries = [Entry(answered.node, (answered.address,))]
    entries += [
        Entry(stated.node, stated.addresses)
        for stated in answered.stated
        if stated.addresses and stated.node != answered.node
    ]
    return Listing(
        mesh=prospect.mesh,
        node=answered.node,
        name=prospect.name,
        entries=tuple(entries[:LIMIT_LISTING_ENTRIES]),
        models=models_of(dynamics),
        vram_bytes=probe.vram_bytes,
        nodes=probe.nodes,
        clients=prospect.clients,
    )


def models_of(dynamics: Sequence[Dynamic]) -> tuple[ListedModel, ...]:
    """The models that are ready, those with the most hosts first."""
    hosts: dict[tuple[str, bytes], int] = {}
    for offer in (offer for dynamic in dynamics for offer in dynamic.models if offer.state == ModelState.READY):
        key = offer.name, offer.content_hash if any(offer.content_hash) else b""
        hosts[key] = hosts.get(key, 0) + 1
    ranked = sorted(hosts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(ListedModel(name, digest, count) for (name, digest), count in ranked[:LIMIT_LISTING_MODELS])


def vram_bytes(dynamic: Dynamic) -> int:
    """The memory of all devices but the processor's."""
    return sum(device.total_bytes for device in dynamic.devices if device.name != HOST)
