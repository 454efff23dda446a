"""Listings and the events around them, made without a curve: the Nostr signature is left out, the id is right."""

from __future__ import annotations

import itertools
import json
from typing import Any

from meshnode.wire import listings
from meshnode.wire.address import Address
from meshnode.wire.listings import Entry, ListedModel, Listing, identifier
from meshnode.wire.nostr import Event, event_id, leading_zero_bits
from meshnode.wire.open_meshes import open_mesh_id
from meshnode.wire.registry import LIMIT_LISTING_TTL_S, NOSTR_KIND, NOSTR_TOPIC, NOSTR_VERSION_TOPIC
from tests.wire.samples import Signer

NOW_S = 1_800_000_000
BITS = 4
"""Enough to tell work from none, and done at once."""
ALICE, BOB = Signer.named("alice"), Signer.named("bob")


def listing(node: Signer = ALICE, name: str = "meshnode", **changes: Any) -> Listing:
    """A listing by `node` of the mesh of this name; publisher and time are those of `changes`, or made up."""
    made: dict[str, Any] = {
        "mesh": open_mesh_id(name),
        "name": name,
        "node": node.node,
        "entries": (Entry(node.node, (Address("127.0.0.1", 9338),)),),
        "models": (ListedModel("demo", bytes(range(16)), 2),),
        "vram_bytes": 24_000_000_000,
        "nodes": 3,
        "publisher": bytes([7]) * 32,
        "created_at": NOW_S,
    }
    return Listing(**(made | changes))


def tags_of(said: Listing, *, expires_at: int | None = None) -> list[list[str]]:
    """The tags that a publisher gives the event."""
    return [
        ["d", identifier(said.mesh)],
        ["t", NOSTR_TOPIC],
        ["t", NOSTR_VERSION_TOPIC],
        ["expiration", str(expires_at or said.created_at + LIMIT_LISTING_TTL_S)],
    ]


def event(
    said: Listing,
    signer: Signer = ALICE,
    *,
    kind: int = NOSTR_KIND,
    tags: list[list[str]] | None = None,
    content: str | None = None,
    bits: int = BITS,
) -> dict[str, Any]:
    """The event of a listing as a relay sends it, mined; `signer` has signed its content."""
    content = listings.write(said, signer.sign) if content is None else content
    tags = tags_of(said) if tags is None else tags
    for number in itertools.count():
        mined = [*tags, ["nonce", str(number), str(bits)]]
        found = event_id(said.publisher, said.created_at, kind, tuple(map(tuple, mined)), content)
        if leading_zero_bits(found) >= bits:
            break
    return {
        "id": found.hex(),
        "pubkey": said.publisher.hex(),
        "created_at": said.created_at,
        "kind": kind,
        "tags": mined,
        "content": content,
        "sig": "00" * 64,
    }


def has_its_id(found: Event) -> bool:
    """In place of a curve (wire.nostr.Genuine)."""
    return event_id(found.publisher, found.created_at, found.kind, found.tags, found.content) == found.id


def changed(raw: dict[str, Any], **members: Any) -> dict[str, Any]:
    """The same JSON with other members; the id stays."""
    copy: dict[str, Any] = json.loads(json.dumps(raw))
    return copy | members
