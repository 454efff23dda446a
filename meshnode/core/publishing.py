"""Who lists an open mesh on the relays, and when: a few members for all, chosen without a word.

    publishers(mesh, members)         the five whose hash with the mesh is greatest
    Publishing.step(now, ...) -> Do   what this node should do about its own listing now

Every member computes the same few from who is alive (rendezvous hashing, Thaler and Ravishankar 1998), so when one dies
or leaves, the next one steps in at once and the others stay. One that is alive but whose listing grows old, as behind a
firewall that lets no relay through, is passed over as well. A node with as many strangers as it lets in takes its
listing back, and so does one that leaves.

Rules of this file: pure; `now` is monotonic seconds, `wall` seconds since 1970; `draw()` gives a number from 0 to 1.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable
from enum import Enum

from meshnode.wire.listings import Listing

PUBLISHERS = 5
REFRESH_S = 60.0
JITTER_S = 10.0
STALE_S = 90.0
"""A listing that is older is about to be missed: a refresh and a half."""
GRACE_S = 90.0
"""So long one that has just become a publisher may take to be seen on a relay."""
HOPELESS_S = 600.0
"""After so long one that was passed over is expected again; it may have found a relay."""
FIRST_RETRY_S = 5.0
LONGEST_RETRY_S = 60.0
ROOM_AGAIN = 0.9
"""A full mesh is listed again when it has fewer strangers than this share of its places: not for each that leaves."""
_DOMAIN = b"meshnode publisher\0"


class Do(Enum):
    """What to do about the own listing."""

    NOTHING = "nothing"
    PUBLISH = "publish"
    DELETE = "delete"


def weight(mesh: bytes, node: bytes) -> bytes:
    """By which members are ordered; nobody can choose it without choosing another key."""
    return hashlib.blake2s(_DOMAIN + mesh + node).digest()


def publishers(mesh: bytes, members: Iterable[bytes], most: int = PUBLISHERS) -> tuple[bytes, ...]:
    """Of these members the ones that publish, the first in line first."""
    return tuple(sorted(set(members), key=lambda node: weight(mesh, node), reverse=True)[:most])


class Publishing:
    """The part of `node` in listing `mesh`. Call `step` when it is due, and when members or strangers change."""

    def __init__(self, mesh: bytes, node: bytes, draw: Callable[[], float]) -> None:
        self._mesh = mesh
        self._node = node
        self._draw = draw
        self._heard: dict[bytes, int] = {}
        """Node -> when its newest listing was made, by the clock of the wall."""
        self._heard_at: float | None = None
        self._expected: dict[bytes, float] = {}
        """Other publishers -> since when they should be."""
        self._passed_over: dict[bytes, float] = {}
        """Publishers whose listing grew old -> when that was noticed."""
        self._due_at = -math.inf
        self._retry_s = FIRST_RETRY_S
        self._is_full = False
        self.is_publisher = False
        self.is_listed = False

    def heard(self, listings: Iterable[Listing], now: float) -> None:
        """What relays listed of this mesh, at a look that at least one of them has answered; others are passed over."""
        self._heard_at = now
        for listing in listings:
            if listing.mesh == self._mesh and listing.node != self._node:
                self._heard[listing.node] = max(listing.created_at, self._heard.get(listing.node, 0))

    def step(
        self, now: float, wall: float, *, alive: Collection[bytes], clients: int, max_clients: int, paused: bool = False
    ) -> Do:
        """What is to be done now. `alive` are the members that may publish, with or without this node.

        PUBLISH and DELETE are repeated until `done` was told what became of them.
        """
        self._heard = {node: at for node, at in self._heard.items() if node in alive}
        self._is_full = clients >= (max_clients * ROOM_AGAIN if self._is_full else max_clients)
        self.is_publisher = self._node in self._choose(now, wall, {*alive, self._node})
        if not self.is_publisher or self._is_full or paused:
            return Do.DELETE if self.is_listed and now >= self._retry_at() else Do.NOTHING
        return Do.PUBLISH if now >= self._due_at else Do.NOTHING

    def done(self, now: float, do: Do, ok: bool) -> None:
        """What became of it: `ok` when at least one relay took it. What failed is tried again, ever more slowly."""
        if ok:
            self.is_listed = do is Do.PUBLISH
            self._retry_s = FIRST_RETRY_S
            refresh_s = REFRESH_S + JITTER_S * (2.0 * self._draw() - 1.0)
            self._due_at = now + refresh_s if do is Do.PUBLISH else -math.inf
        else:
            self._due_at = now + self._retry_s
            self._retry_s = min(LONGEST_RETRY_S, 2 * self._retry_s)

    def changed(self) -> None:
        """What the listing says has changed so much that it should not wait for the next refresh."""
        if self.is_listed:
            self._due_at = -math.inf

    def next_s(self, now: float) -> float:
        """After how many seconds `step` should be called again when nothing changes meanwhile."""
        wanted = self.is_publisher and not self._is_full
        return min(REFRESH_S / 4, max(0.0, self._due_at - now)) if wanted and self._due_at > now else REFRESH_S / 4

    def leave(self) -> Do:
        """What is left to do when the node goes."""
        return Do.DELETE if self.is_listed else Do.NOTHING

    # --- who publishes ------------------------------------------------------------------------------------------------

    def _choose(self, now: float, wall: float, alive: set[bytes]) -> tuple[bytes, ...]:
        """The publishers, without those that should be seen on a relay and are not."""
        self._passed_over = {
            node: since
            for node, since in self._passed_over.items()
            if node in alive and now - since < HOPELESS_S and not self._is_fresh(node, wall)
        }
        while True:
            chosen = publishers(self._mesh, alive - set(self._passed_over))
            self._expected = {node: self._expected.get(node, now) for node in chosen if node != self._node}
            late = [node for node in self._expected if self._is_late(node, now, wall)]
            if not late:
                return chosen
            self._passed_over |= {node: now for node in late}

    def _is_late(self, node: bytes, now: float, wall: float) -> bool:
        """A look after its grace has shown no listing of it, or an old one."""
        looked = self._heard_at is not None and self._heard_at >= self._expected[node] + GRACE_S
        return looked and now - self._expected[node] >= GRACE_S and not self._is_fresh(node, wall)

    def _is_fresh(self, node: bytes, wall: float) -> bool:
        return node in self._heard and wall - self._heard[node] <= STALE_S

    def _retry_at(self) -> float:
        """A delisting that failed waits as a listing does; the first one waits for nothing."""
        return self._due_at if self._retry_s > FIRST_RETRY_S else -math.inf
