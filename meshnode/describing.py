"""What a mesh has, told in three ways: what its members have signed, what that proves, and what a listing says of it.

A listing claims no more than an inquiry shows, so that whoever asks finds it confirmed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from meshnode.core.choosing import Probe
from meshnode.core.placement import HOST
from meshnode.mesh.inquiry import Answered
from meshnode.wire.listings import Entry, ListedModel, Listing, price_text
from meshnode.wire.registry import LIMIT_LISTING_ENTRIES, LIMIT_LISTING_MODELS
from meshnode.wire.statements import Dynamic, ModelState, Offer


def probe_of(answered: Answered) -> Probe:
    """What an answer has shown: signed statements alone."""
    dynamics = [stated.dynamic for stated in answered.stated if stated.dynamic is not None]
    offers = list(_ready(dynamics))
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
        price=price_of(dynamics),
    )


def models_of(dynamics: Sequence[Dynamic]) -> tuple[ListedModel, ...]:
    """The models that are ready, those with the most hosts first, each with the price of the cheapest."""
    found: dict[tuple[str, bytes], list[Offer]] = {}
    for offer in _ready(dynamics):
        key = offer.name, offer.content_hash if any(offer.content_hash) else b""
        found.setdefault(key, []).append(offer)
    ranked = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    return tuple(
        ListedModel(name, digest, len(offers), *min((_price(offer) for offer in offers), key=sum))
        for (name, digest), offers in ranked[:LIMIT_LISTING_MODELS]
    )


def price_of(dynamics: Sequence[Dynamic]) -> str:
    """The price of the cheapest model that has one, as a listing names it; empty where all is free."""
    priced = [offer for offer in _ready(dynamics) if not offer.is_free and offer.chain]
    cheapest = min(priced, key=lambda offer: sum(_price(offer)), default=None)
    return "" if cheapest is None else price_text(*_price(cheapest), cheapest.chain)


def _ready(dynamics: Sequence[Dynamic]) -> Iterator[Offer]:
    return (offer for dynamic in dynamics for offer in dynamic.models if offer.state == ModelState.READY)


def _price(offer: Offer) -> tuple[int, int]:
    return offer.price_in, offer.price_out


def vram_bytes(dynamic: Dynamic) -> int:
    """The memory of all devices but the processor's."""
    return sum(device.total_bytes for device in dynamic.devices if device.name != HOST)
