"""Events with listings that the library with the curve has signed, and relays of a node that asks for little work."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from nostr_sdk import Keys

from meshnode.core.listings import LIES, Seen, Sieve
from meshnode.discovery.nostr import NostrRelays
from meshnode.discovery.nostr_key import NostrKey, is_genuine
from meshnode.identity import verify
from meshnode.wire.listings import Listing, write
from meshnode.wire.nostr import to_json
from tests.wire.listing_samples import BITS, listing, tags_of
from tests.wire.samples import Signer


@cache
def signer(number: int) -> Signer:
    """A node key."""
    return Signer.named(f"node {number}")


def said(number: int = 0, *, age_s: int = 0, **changes: Any) -> Listing:
    """What node `number` says of a mesh, now or some seconds ago."""
    return listing(signer(number), created_at=int(time.time()) - age_s, **changes)


def signed(number: int = 0, *, bits: int = BITS, kind: int = 30078, age_s: int = 0, **changes: Any) -> dict[str, Any]:
    """Its event, by a Nostr key of its own."""
    key = NostrKey(Keys.parse(f"{number + 1:064x}"))
    what = said(number, age_s=age_s, publisher=key.public, **changes)
    content = write(what, signer(number).sign)
    return to_json(key.sign(kind, tags_of(what), content, what.created_at, work_bits=bits))


def relays_of(urls: Sequence[str], key_file: Path, **options: Any) -> NostrRelays:
    """As discovering.open_relays, but for the work."""
    seen = Seen()
    return NostrRelays(
        urls,
        key_file,
        sieve=lambda mesh: Sieve(verify, is_genuine, seen, mesh=mesh, work_bits=BITS),
        lies=frozenset(map(str, LIES)),
        work_bits=BITS,
        **options,
    )
