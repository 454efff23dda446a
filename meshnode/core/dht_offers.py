"""What this node offers to the mesh, and when it has to be said again.

A record is made anew each time it is stored, so that it says where the node is now. One that nobody took is tried
again soon; what is not offered any more ends by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from meshnode.core.randomness import Randomness
from meshnode.wire.address import Address
from meshnode.wire.dht import Provider, model_key

MOST_OFFERS = 64
JITTER = 0.1


@dataclass(slots=True)
class Offered:
    """Content of this node: `due_at` is when it is to be said again, `kept` how many nodes keep a record of it."""

    key: bytes
    first_layer: int
    layers: int
    due_at: float
    kept: int = 0

    def record(self, *, node: bytes, mesh: bytes, addresses: tuple[Address, ...], expires_at: int) -> Provider:
        """What is signed and stored."""
        return Provider(self.key, node, mesh, expires_at, addresses, self.first_layer, self.layers)


class Offers:
    """The offers of one node. Said again every `publish_s`, or `retry_s` after nobody took it."""

    def __init__(self, random: Randomness, *, publish_s: float, retry_s: float, spread_s: float) -> None:
        self._random = random
        self._publish_s = publish_s
        self._retry_s = retry_s
        self._spread_s = spread_s
        self._offered: dict[bytes, Offered] = {}

    def __len__(self) -> int:
        return len(self._offered)

    def __iter__(self) -> Iterator[Offered]:
        return iter(self._offered.values())

    @property
    def kept(self) -> int:
        """Of so many of them others keep a record."""
        return sum(offered.kept > 0 for offered in self)

    def get(self, key: bytes) -> Offered | None:
        """The offer of a key, if it still is one."""
        return self._offered.get(key)

    def replace(self, contents: Collection[tuple[bytes, int, int]], now: float) -> None:
        """Offer these (content hash, first layer, layers) and no others. What is new is said within `spread_s`."""
        offered: dict[bytes, Offered] = {}
        for content_hash, first_layer, layers in list(contents)[:MOST_OFFERS]:
            key = model_key(content_hash, first_layer, layers)
            due_at = now + self._random.random() * self._spread_s
            offered[key] = self._offered.get(key) or Offered(key, first_layer, layers, due_at)
        self._offered = offered

    def moved(self, now: float) -> None:
        """This node is elsewhere now: everything is to be said again."""
        for offered in self:
            offered.due_at = min(offered.due_at, now + self._random.random() * self._spread_s)

    def due(self, now: float, most: int) -> list[Offered]:
        """What is to be said now, at most so many. It is put off, so that it is not given twice."""
        found = [offered for offered in self if offered.due_at <= now][: max(0, most)]
        for offered in found:
            offered.due_at = now + self._publish_s * (1 - JITTER + 2 * JITTER * self._random.random())
        return found

    def untaken(self, key: bytes, now: float) -> None:
        """Nobody has kept the record of a key."""
        offered = self.get(key)
        if offered is not None:
            offered.due_at = min(offered.due_at, now + self._retry_s)

    def next_at(self) -> float | None:
        """When the next one is due."""
        return min((offered.due_at for offered in self), default=None)
