"""The address book: members that this node has known last, so that it finds its mesh again after a restart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from meshnode import durable
from meshnode.mesh.files import load, save
from meshnode.wire.messages import PeerEntry
from meshnode.wire.schema import ListOf, Nested, member

MAX_PEERS = 256
FILE_BYTES = MAX_PEERS * 512


@dataclass(frozen=True, slots=True)
class _Book:
    peers: tuple[PeerEntry, ...] = member(0, ListOf(Nested(PeerEntry), MAX_PEERS))


class AddressBook:
    """At most 256 members, those heard of last at the front. What it says is tried, never trusted."""

    def __init__(self, file: Path) -> None:
        """Raises StateError when the file is damaged."""
        self._file = file
        fix = f"remove it: the node then waits until a peer calls, or asks for an invite ({file})"
        book = load(_Book, file, limit_bytes=FILE_BYTES, fix=fix)
        self._peers: dict[bytes, PeerEntry] = {} if book is None else {entry.node: entry for entry in book.peers}

    @property
    def peers(self) -> tuple[PeerEntry, ...]:
        """The entries, last heard of first."""
        return tuple(self._peers.values())

    def remember(self, entries: Iterable[PeerEntry]) -> None:
        """Put these in front; who cannot be dialled is passed over, who has not been heard of for longest falls off.

        Written only when something has changed. Raises HomeNotWritable.
        """
        fresh = {entry.node: entry for entry in entries if entry.addresses}
        merged = {**fresh, **{node: entry for node, entry in self._peers.items() if node not in fresh}}
        kept = dict(list(merged.items())[:MAX_PEERS])
        if kept == self._peers:
            return
        save(self._file, _Book(tuple(kept.values())))
        self._peers = kept

    def forget(self, node: bytes) -> None:
        """A member that has left. Raises HomeNotWritable."""
        if node in self._peers:
            kept = {other: entry for other, entry in self._peers.items() if other != node}
            save(self._file, _Book(tuple(kept.values())))
            self._peers = kept

    def clear(self) -> None:
        """Forget all of them. Raises HomeNotWritable."""
        durable.remove(self._file)
        self._peers = {}
