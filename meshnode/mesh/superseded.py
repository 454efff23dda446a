"""Keys that their owners have given up, and what came in their place.

The first successor that is proven counts. From then on nobody is admitted with the old key, with another successor of
it, or with a certificate that the old key signed as one who may invite: whoever stole the key could have made those.
An entry ends when the old certificate would have expired anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from meshnode import durable
from meshnode.errors import HomeNotWritable
from meshnode.mesh.files import load, save
from meshnode.mesh.lineage import chain
from meshnode.telemetry import LOG
from meshnode.wire.registry import Close
from meshnode.wire.schema import MAX_U63, Bytes, ListOf, Nested, UInt, member
from meshnode.wire.signed import KEY_BYTES
from meshnode.wire.values import WireError

MAX_ENTRIES = 4096
FILE_BYTES = MAX_ENTRIES * 96


@dataclass(frozen=True, slots=True)
class Replacement:
    """`old` was replaced by `new`; the certificate of `old` would have ended at `ends_at` (wall time in seconds)."""

    old: bytes = member(0, Bytes(KEY_BYTES, KEY_BYTES))
    new: bytes = member(2, Bytes(KEY_BYTES, KEY_BYTES))
    ends_at: int = member(4, UInt(MAX_U63))


@dataclass(frozen=True, slots=True)
class _Book:
    replacements: tuple[Replacement, ...] = member(0, ListOf(Nested(Replacement), MAX_ENTRIES))


class SupersededKeys:
    """The replacements that this node has seen, on disk before they count."""

    def __init__(self, file: Path, now_s: float) -> None:
        """Raises StateError when the file is damaged."""
        self._file = file
        fix = f"remove it: the keys in it would be admitted again until their certificates end ({file})"
        book = load(_Book, file, limit_bytes=FILE_BYTES, fix=fix) or _Book(())
        self._entries = {entry.old: entry for entry in book.replacements if entry.ends_at > now_s}

    def __contains__(self, node: bytes) -> bool:
        return node in self._entries

    def judge(self, signed: bytes, now_s: float) -> None:
        """Learn what a checked certificate replaces.

        Raises WireError with SUPERSEDED when the certificate rests on a key that has been given up.
        """
        links = chain(signed)
        self._refuse_old(links[0].node)
        learned: list[Replacement] = []
        for link, authority in zip(links, links[1:], strict=False):
            known = self._entries.get(authority.node)
            if link.replaces and known is None:
                learned.append(Replacement(authority.node, link.node, authority.not_after))
            elif known is not None and (not link.replaces or known.new != link.node):
                self._refuse_old(authority.node)
        if learned:
            self._keep(learned, now_s)

    def clear(self) -> None:
        """Forget all of them. Raises HomeNotWritable."""
        durable.remove(self._file)
        self._entries = {}

    def _refuse_old(self, node: bytes) -> None:
        if node in self._entries:
            raise WireError("the key has been replaced by its owner", Close.SUPERSEDED)

    def _keep(self, learned: list[Replacement], now_s: float) -> None:
        entries = [entry for entry in (*self._entries.values(), *learned) if entry.ends_at > now_s]
        entries.sort(key=lambda entry: entry.ends_at, reverse=True)
        del entries[MAX_ENTRIES:]
        self._entries = {entry.old: entry for entry in entries}
        try:
            save(self._file, _Book(tuple(entries)))
        except HomeNotWritable as error:
            # Known until the end of this process, which is better than to refuse the member with the new key.
            LOG.warning("replaced keys are not kept", extra={"facts": {"reason": error.detail}})
