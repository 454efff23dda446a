"""What is done every now and then: samples of round trips, fresh addresses and certificates, the address book, and an
end to links that nobody needs or that are no longer allowed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from time import monotonic

from meshnode.errors import MeshnodeError
from meshnode.mesh.favours import Favours
from meshnode.mesh.part import Part
from meshnode.mesh.presence import Presence
from meshnode.mesh.reach import Reach
from meshnode.mesh.sessions import Peer, Sessions
from meshnode.mesh.vault import Vault
from meshnode.telemetry import LOG
from meshnode.wire.registry import LIMIT_CLOCK_SKEW_S, Close

SAMPLE_S = 10.0
ROUND_S = 30.0
IDLE_S = 300.0
"""A link that was made for a request and has had none since is closed after this time."""


class Upkeep:
    """`identify` publishes who this node is; `changed` is called when its addresses are others. `clock` is wall time.

    `counters` gets: links_idle, links_expired.
    """

    def __init__(
        self,
        part: Part,
        *,
        vault: Vault,
        sessions: Sessions,
        presence: Presence,
        reach: Reach,
        favours: Favours,
        identify: Callable[[], None],
        changed: Callable[[], None],
        counters: Counter[str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._part = part
        self._vault = vault
        self._sessions = sessions
        self._presence = presence
        self._reach = reach
        self._favours = favours
        self._identify = identify
        self._changed = changed
        self._counters = counters
        self._clock = clock

    async def run(self) -> None:
        """Keep everything up until cancelled."""
        next_round_at = 0.0
        while True:
            self.sample()
            if monotonic() >= next_round_at:
                next_round_at = monotonic() + ROUND_S
                try:
                    await self.round()
                except MeshnodeError as reason:  # a full disk must not end everything else
                    LOG.warning("upkeep of the mesh: %s", reason)
            await asyncio.sleep(SAMPLE_S)

    def sample(self) -> None:
        """Hand the round trips of all links to the part."""
        for peer in self._sessions.peers:
            rtt_s = peer.link.rtt_s
            if rtt_s is not None:
                self._part.measured(peer.node, rtt_s)

    async def round(self) -> None:
        """All the rest, once. Raises StateError, HomeNotWritable."""
        self._end_links()
        if await self._presence.refresh():
            self._identify()
            self._changed()
        if self._vault.renewal_due:
            if await asyncio.to_thread(self._vault.renew_own):
                self._identify()
            else:
                self._favours.ask_for_renewal(self._sessions.peers)
        await self._reach.remember()

    def _end_links(self) -> None:
        now = monotonic()
        for peer in self._sessions.peers:
            if peer.session.certificate.not_after + LIMIT_CLOCK_SKEW_S < self._clock():
                # It may have a new certificate by now, which it then shows when it comes again.
                self._counters["links_expired"] += 1
                peer.link.close(Close.CERTIFICATE_EXPIRED)
            elif now - peer.used_at > IDLE_S and self._is_idle(peer):
                self._counters["links_idle"] += 1
                peer.link.close(Close.DONE)

    def _is_idle(self, peer: Peer) -> bool:
        """Whether we made the link, nothing but its control stream is open, and the part does not need it."""
        return peer.link.dialled and peer.link.streams <= 1 and not self._part.needs(peer.node)
