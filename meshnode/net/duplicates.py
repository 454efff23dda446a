"""Which of several links to one peer is kept. Pure, and decided alike by both ends.

When two nodes dial each other at the same time, two links come up. Both ends keep the one that was dialled by the
smaller NodeId. If the links are further apart in time, one end has forgotten the older one, as after a restart, and
the newer one is kept; so too when the same node dialled both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeVar

from meshnode.identity import NodeId

TOGETHER_S = 5.0
"""Links that come up within this time count as dialled together: as long as a handshake may take."""


class Dialled(Protocol):
    """What is known of a link here."""

    peer: NodeId
    dialled: bool
    opened_at: float
    superseded: bool

    @property
    def silent(self) -> bool:
        """Whether nothing is heard of the peer."""


L = TypeVar("L", bound=Dialled)


class LinkTable(dict[NodeId, list[L]]):
    """The links that are up, for each peer; the one that is kept comes first."""

    def __init__(self, own: NodeId) -> None:
        super().__init__()
        self._own = own

    def add(self, link: L) -> None:
        """A link has come up. Sets `superseded` on all links of the peer but one."""
        others = self.setdefault(link.peer, [])
        if others and not self._prevails(link, others[0]):
            others.append(link)
        else:
            others.insert(0, link)
        self._mark(others)

    def remove(self, link: L) -> None:
        """A link has ended; if it was the one that was kept, the next one is now."""
        links = self.get(link.peer, [])
        if link in links:
            links.remove(link)
            self._mark(links)
            if not links:
                del self[link.peer]

    def kept(self) -> Iterator[L]:
        """One link for each peer."""
        return (links[0] for links in self.values())

    def _prevails(self, newer: L, older: L) -> bool:
        if newer.dialled == older.dialled or older.silent or newer.opened_at - older.opened_at > TOGETHER_S:
            return True
        return newer.dialled == (self._own < newer.peer)

    @staticmethod
    def _mark(links: list[L]) -> None:
        for index, link in enumerate(links):
            link.superseded = index > 0
