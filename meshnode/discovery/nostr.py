"""Listings of open meshes on Nostr relays: fetched from all of them at once, published on all, taken back.

    relays = NostrRelays(urls, key_file, sieve=...)
    async with aclosing(relays.fetching()) as parts:
        async for part in parts: ...              # grows; what the first relay has is there at once
    await relays.publish(listing, sign)

Relays are asked together and none is waited for longer than it is worth. What comes is judged by a sieve
(core/listings.py, handed in) in a thread, some events at a time, so that a flood delays nothing else; how each relay
behaved is told (relays.py). A listing stays for LIMIT_LISTING_TTL_S and is published anew before that.
Protocol: 12-public.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import ssl
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path

from meshnode.discovery.look import Fetched, Look, Sieve
from meshnode.discovery.nostr_key import NostrKey, load_or_create
from meshnode.discovery.relays import MOST_EVENTS, MOST_OF_ALL, Exchange, RelayReport
from meshnode.wire.listings import Listing, identifier, write
from meshnode.wire.nostr import Event, to_json
from meshnode.wire.registry import (
    LIMIT_LISTING_TTL_S,
    LIMIT_LISTING_WORK_BITS,
    NOSTR_KIND,
    NOSTR_TOPIC,
    NOSTR_VERSION_TOPIC,
)
from meshnode.wire.signed import Sign

__all__ = ["Fetched", "NostrRelays", "RelayReport", "accepted"]

FETCH_S = 4.0
PUBLISH_S = 5.0
DELETE_S = 3.0
_DELETION = 5


def accepted(reports: Sequence[RelayReport]) -> int:
    """How many relays have taken an event."""
    return sum(report.state == "ok" for report in reports)


class NostrRelays:
    """See the module. `key_file` is made when something is published for the first time."""

    def __init__(
        self,
        urls: Sequence[str],
        key_file: Path,
        *,
        sieve: Callable[[bytes | None], Sieve],
        lies: frozenset[str] = frozenset(),
        clock: Callable[[], float] = time.time,
        work_bits: int = LIMIT_LISTING_WORK_BITS,
    ) -> None:
        """`sieve` makes one for a look at all meshes, or at one of them.

        `lies` are the reasons it gives that speak against the relay, not against the publisher.
        """
        self.urls = tuple(dict.fromkeys(urls))
        self._key_file = key_file
        self._sieve = sieve
        self._lies = lies
        self._clock = clock
        self._work_bits = work_bits
        self._key: NostrKey | None = None
        self._tls: ssl.SSLContext | None = None
        self._curve: asyncio.Task[object] | None = None
        self._last_created_at = 0
        self._published: dict[bytes, bytes] = {}
        """Mesh -> id of the event that lists it."""
        self._publishing = asyncio.Lock()
        self._goodbyes: set[asyncio.Task[None]] = set()

    async def prepare(self) -> None:
        """Load what relays are spoken to with, in threads: a tenth of a second that the first look then saves."""
        await self._load_transport()
        assert self._curve is not None
        await asyncio.shield(self._curve)

    async def _load_transport(self) -> None:
        """What dialling needs; the library with the curve goes on loading meanwhile."""
        if self._curve is None:
            secure = any(url.startswith("wss:") for url in self.urls)
            self._tls = await asyncio.to_thread(_load, secure)
            self._curve = asyncio.create_task(asyncio.to_thread(importlib.import_module, "nostr_sdk"))

    # --- looking ------------------------------------------------------------------------------------------------------

    async def fetch(self, timeout_s: float = FETCH_S, *, mesh: bytes | None = None, eager: bool = False) -> Fetched:
        """What the relays list now; of one mesh, if it is named. Asks all of them unless told to be `eager`."""
        async with aclosing(self.fetching(timeout_s, mesh=mesh, eager=eager)) as parts:
            return [part async for part in parts][-1]

    async def fetching(
        self, timeout_s: float = FETCH_S, *, mesh: bytes | None = None, eager: bool = True
    ) -> AsyncGenerator[Fetched, None]:
        """The same as it comes: a value whenever there is more than before; the last one is the whole.

        An eager look does not wait for slow relays (look.py).
        """
        await self._load_transport()
        look = Look(
            {url: self._exchange(url) for url in self.urls},
            self._sieve(mesh),
            lies=self._lies,
            clock=self._clock,
            timeout_s=timeout_s,
            mesh=mesh,
            eager=eager,
        )
        try:
            async for part in look.run():
                yield part
        finally:
            await look.end()

    # --- publishing ---------------------------------------------------------------------------------------------------

    async def publish(self, listing: Listing, sign: Sign, *, timeout_s: float = PUBLISH_S) -> tuple[RelayReport, ...]:
        """List a mesh on every relay, in place of what this node listed of it before. `sign` is of `listing.node`.

        Raises WireError for a listing that cannot be, StateError and HomeNotWritable for the key file.
        """
        await self.prepare()
        async with self._publishing:
            key = await self._own_key()
            event = await asyncio.to_thread(self._listing_event, key, listing, sign, self._next_second())
            self._published[listing.mesh] = event.id
            return await self._send(event, timeout_s)

    async def delete(self, mesh: bytes, *, timeout_s: float = DELETE_S) -> tuple[RelayReport, ...]:
        """Take the listing of a mesh back (NIP-09).

        It is named by its coordinate and by its id: relays read a coordinate wrongly whose last part has a colon.
        """
        await self.prepare()
        async with self._publishing:
            key = await self._own_key()
            which = f"{NOSTR_KIND}:{key.public.hex()}:{identifier(mesh)}"
            # Not before the listing, which would survive it; what is listed next is later in any case.
            when = max(int(self._clock()), self._last_created_at)
            self._last_created_at = when
            last = self._published.pop(mesh, None)
            tags = [["a", which], *([["e", last.hex()]] if last else []), ["k", str(NOSTR_KIND)]]
            return await self._send(await asyncio.to_thread(key.sign, _DELETION, tags, "", when), timeout_s)

    async def close(self) -> None:
        """End what is still being closed or loaded."""
        if self._curve is not None:
            await asyncio.gather(self._curve, return_exceptions=True)
        for task in (tasks := list(self._goodbyes)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _listing_event(self, key: NostrKey, listing: Listing, sign: Sign, now: int) -> Event:
        content = write(dataclasses.replace(listing, publisher=key.public, created_at=now), sign)
        tags = [
            ["d", identifier(listing.mesh)],
            ["t", NOSTR_TOPIC],
            ["t", NOSTR_VERSION_TOPIC],
            ["expiration", str(now + LIMIT_LISTING_TTL_S)],
        ]
        return key.sign(NOSTR_KIND, tags, content, now, work_bits=self._work_bits)

    def _next_second(self) -> int:
        """Of two versions of one second relays keep the one with the lower id: no two are made in one."""
        self._last_created_at = max(int(self._clock()), self._last_created_at + 1)
        return self._last_created_at

    async def _own_key(self) -> NostrKey:
        if self._key is None:
            self._key = await asyncio.to_thread(load_or_create, self._key_file)
        return self._key

    def _exchange(self, url: str) -> Exchange:
        share = min(MOST_EVENTS, MOST_OF_ALL // len(self.urls))
        return Exchange(url, self._tls, self._goodbyes, most_events=share)

    async def _send(self, event: Event, timeout_s: float) -> tuple[RelayReport, ...]:
        plain = to_json(event)

        async def give(url: str) -> RelayReport:
            exchange, begun = self._exchange(url), time.monotonic()
            try:
                async with asyncio.timeout(timeout_s):
                    outcome = await exchange.send(plain)
            except TimeoutError:
                outcome = exchange.late(timeout_s)
            state, text = outcome
            return RelayReport(url, state, text, int(state == "ok"), time.monotonic() - begun)

        return tuple(await asyncio.gather(*map(give, self.urls)))


def _load(secure: bool) -> ssl.SSLContext | None:
    """Import what is slow to import; the certificates that the system trusts, where they are needed."""
    for name in ("websockets.asyncio.client", "websockets.exceptions"):
        importlib.import_module(name)
    return ssl.create_default_context() if secure else None
