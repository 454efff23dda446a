"""The invites that this node has made, and who came with them: one file for each, so that a use costs one small write.

An invite that is not in the ledger admits nobody, so what is lost here can only refuse. Entries go when they expire.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from meshnode import durable
from meshnode.errors import InviteInvalid, StateError
from meshnode.mesh.files import load, save
from meshnode.wire.invites import INVITE_ID_BYTES
from meshnode.wire.registry import LIMIT_CERTIFICATE_BYTES, Role
from meshnode.wire.schema import MAX_U63, Bytes, Flag, ListOf, Nested, UInt, member
from meshnode.wire.signed import KEY_BYTES

MAX_INVITES = 128
MAX_USES = 1000
ENTRY_BYTES = 512 + MAX_USES * (LIMIT_CERTIFICATE_BYTES + KEY_BYTES + 16)
SUFFIX = ".invite"


@dataclass(frozen=True, slots=True)
class Redemption:
    """A node that came with the invite, and the certificate it got."""

    node: bytes = member(0, Bytes(KEY_BYTES, KEY_BYTES))
    certificate: bytes = member(2, Bytes(1, LIMIT_CERTIFICATE_BYTES))


@dataclass(frozen=True, slots=True)
class InviteEntry:
    """One invite. `expires_at` is wall time in seconds; `uses` is how many nodes it admits."""

    key: bytes = member(0, Bytes(INVITE_ID_BYTES, INVITE_ID_BYTES))
    issuer: bytes = member(2, Bytes(KEY_BYTES, KEY_BYTES))
    role: int = member(4, UInt(max(Role)))
    may_invite: bool = member(6, Flag())
    expires_at: int = member(8, UInt(MAX_U63))
    uses: int = member(10, UInt(MAX_USES))
    revoked: bool = member(12, Flag(), False)
    redemptions: tuple[Redemption, ...] = member(14, ListOf(Nested(Redemption), MAX_USES), ())

    @property
    def id(self) -> str:
        """The form that people see."""
        return self.key.hex()

    @property
    def uses_left(self) -> int:
        """How many nodes may still come with it."""
        return 0 if self.revoked else self.uses - len(self.redemptions)

    def certificate_of(self, node: bytes) -> bytes | None:
        """What this node got when it came before."""
        return next((item.certificate for item in self.redemptions if item.node == node), None)

    def redeemed_by(self, node: bytes, certificate: bytes) -> InviteEntry:
        """With one more redemption, or another certificate for a node that came before."""
        others = tuple(item for item in self.redemptions if item.node != node)
        return dataclasses.replace(self, redemptions=(*others, Redemption(node, certificate)))


class Ledger:
    """All invites of one issuer that have not expired; each change is on the disk before it counts."""

    def __init__(self, folder: Path, issuer: bytes) -> None:
        """Raises StateError when a file is damaged."""
        self._folder = folder
        self._entries: dict[bytes, InviteEntry] = {}
        for file in sorted(folder.glob(f"*{SUFFIX}")):
            fix = f"remove it: nobody can join with that invite any more ({file})"
            entry = load(InviteEntry, file, limit_bytes=ENTRY_BYTES, fix=fix)
            if entry is None or entry.issuer != issuer:
                # After a change of keys: nobody could redeem what the old one has signed.
                durable.remove(file)
            elif file.stem != entry.id:
                raise StateError(
                    f"{file} holds the invite {entry.id}", fix="remove the file: it was not made by this node"
                )
            else:
                self._entries[entry.key] = entry

    def entries(self) -> tuple[InviteEntry, ...]:
        """The one that ends first comes first."""
        return tuple(sorted(self._entries.values(), key=lambda entry: (entry.expires_at, entry.key)))

    def get(self, key: bytes) -> InviteEntry | None:
        """The entry of an invite, by the id that stands in it."""
        return self._entries.get(key)

    def find(self, text: str) -> InviteEntry:
        """The entry whose shown id begins so. Raises InviteInvalid for none and for several."""
        found = [entry for entry in self.entries() if text and entry.id.startswith(text.strip().lower())]
        if len(found) != 1:
            why = "several invites begin" if found else "no invite begins"
            raise InviteInvalid(f"{why} with {text[:40]!r}", fix="meshnode invite --list shows them")
        return found[0]

    def put(self, entry: InviteEntry) -> None:
        """Keep an entry, new or changed. Raises StateError when there are too many, HomeNotWritable."""
        if entry.key not in self._entries:
            self._make_room()
        save(self._file(entry), entry)
        self._entries[entry.key] = entry

    def prune(self, now_s: float) -> None:
        """Remove what has expired. Raises HomeNotWritable."""
        for entry in self.entries():
            if entry.expires_at <= now_s:
                self._drop(entry)

    def clear(self) -> None:
        """Remove every entry. Raises HomeNotWritable."""
        for file in sorted(self._folder.glob(f"*{SUFFIX}")):
            durable.remove(file)
        self._entries = {}

    def _make_room(self) -> None:
        over = [entry for entry in self.entries() if entry.uses_left <= 0]
        while len(self._entries) >= MAX_INVITES:
            if not over:
                raise StateError(
                    f"{MAX_INVITES} invites are open", fix="revoke one: meshnode invite --list, then --revoke ID"
                )
            self._drop(over.pop(0))

    def _drop(self, entry: InviteEntry) -> None:
        durable.remove(self._file(entry))
        del self._entries[entry.key]

    def _file(self, entry: InviteEntry) -> Path:
        return self._folder / f"{entry.id}{SUFFIX}"
