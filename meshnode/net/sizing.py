"""Keeps the datagrams of a connection as large as its path carries: runs `path.py`'s search on it.

A connection that tries another path starts there with the smallest size, as whatever is larger may not get through, the
challenge among it; and goes on where it was if it comes back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from time import monotonic

from meshnode.net.path import SizeSearch
from meshnode.net.quic import MeshQuic


class Sizing:
    """`sizes` are worth a try on the present path; `send` sends a probe there."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        quic: MeshQuic,
        *,
        sizes: Callable[[], Iterable[int]],
        send: Callable[[list[bytes]], None],
    ) -> None:
        self._loop = loop
        self._quic = quic
        self._sizes = sizes
        self._send = send
        self._search = SizeSearch(())
        self._proven: SizeSearch | None = None
        """The search on the proven path, while datagrams go to another one."""
        self._stopped = False

    def begin(self) -> None:
        """The path is proven: find out what it carries."""
        self._proven = None
        self._use(SizeSearch(self._sizes()))
        self.probe(monotonic())

    def leave(self) -> None:
        """Datagrams go to an unproven path."""
        if self._proven is None:
            self._proven = self._search
            self._use(SizeSearch(()))

    def come_back(self) -> None:
        """They go to the proven path again."""
        if self._proven is not None:
            self._use(self._proven)
            self._proven = None

    def stop(self) -> None:
        """The connection is over."""
        self._stopped = True

    def probe(self, now: float) -> None:
        """Try the next size, if there is one that is due."""
        search = self._search
        size = None if self._stopped else search.next_probe(now)
        if size is None:
            return

        def arrived(yes: bool) -> None:
            better = search.resolve(size, yes)
            if search is not self._search:
                return
            if better:
                self._quic.set_datagram_bytes(search.size)
            self._loop.call_soon(self.probe, now)

        self._send(self._quic.size_probe(size, now, arrived))

    def timed_out(self, now: float) -> None:
        """A timer of the connection has run: too many in a row, and the size is given up."""
        if self._search.timed_out(self._quic.lost_probes, now):
            self._quic.set_datagram_bytes(self._search.size)

    def _use(self, search: SizeSearch) -> None:
        self._search = search
        if self._quic.datagram_bytes != search.size:
            self._quic.set_datagram_bytes(search.size)
