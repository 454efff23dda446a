"""Which radius a node is in, as this node sees it now: what was said on its disk, owners that are proven, membership.

The files (ownership.py) may change while the node runs: they are looked at again, at most once a LOOK_S, and `epoch`
tells that answers given before may be wrong. Damage at the start is a StateError; damage that comes later is a problem
that is shown, and until it is mended nothing gives trust but membership in the private mesh.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from meshnode.core.effects import Member
from meshnode.core.radius import Radius, TrustList, radius_of
from meshnode.errors import StateError
from meshnode.identity import NodeId, short
from meshnode.ownership import OwnerFiles, read_certificate, trust_list
from meshnode.telemetry import LOG
from meshnode.wire.owners import OwnerCertificate, is_timely
from meshnode.wire.values import WireError

LOOK_S = 1.0
REMEMBERED = 4096
"""Certificates whose signature was looked at: a mesh has fewer members, and each shows one."""

Seen = tuple[tuple[int, int, int, int] | None, ...]


class Trust:
    """See the module. `changed` is called when the files have changed; times are wall time in seconds."""

    def __init__(
        self,
        home: Path,
        node: bytes,
        *,
        changed: Callable[[], None] = lambda: None,
        told: Callable[[StateError | None], None] = lambda error: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`told` gets the damage that is found later, and None once it is mended. Raises StateError."""
        self._files = OwnerFiles(home)
        self._node = node
        self._changed = changed
        self._told = told
        self._clock = clock
        self._genuine: dict[tuple[bytes, bytes], OwnerCertificate | None] = {}
        self._next_end = float("inf")
        self._epoch = 0
        self._damaged = False
        self._looked_at = clock()
        self._seen = self._look()
        self._list, self._mine = self._read()

    # --- where nodes are ------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Another number when a node may be elsewhere than before: the files have changed, or a certificate ended."""
        self._refresh()
        if self._clock() > self._next_end:
            self._next_end = float("inf")
            self._epoch += 1
        return self._epoch

    def of_member(self, member: Member) -> Radius:
        """Where a member of the private mesh is."""
        return self.of_node(member.node, member.identity.owner if member.identity else b"")

    def of_node(self, node: bytes, owner_certificate: bytes = b"") -> Radius:
        """Where a node of the private mesh is that shows this certificate of its owner, or none."""
        self._refresh()
        owner = self._owner_by(owner_certificate, node) if owner_certificate else None
        return radius_of(node, in_private_mesh=True, owner=owner, my_owner=self.owner, trust=self._list)

    def of_stranger(self, node: bytes) -> Radius:
        """Where a node of a public mesh is: no certificate of an owner is shown there."""
        self._refresh()
        return radius_of(node, in_private_mesh=False, owner=None, my_owner=self.owner, trust=self._list)

    # --- this node ------------------------------------------------------------------------------------------

    @property
    def owner(self) -> bytes | None:
        """Who owns this node; None for nobody, or while the certificate does not count."""
        self._refresh()
        if self._mine is None or not is_timely(self._mine[1], self._clock()):
            return None
        self._mind_end(self._mine[1])
        return self._mine[1].owner

    @property
    def certificate(self) -> bytes:
        """What this node shows in its private mesh; empty where it has nothing to show."""
        return self._mine[0] if self.owner is not None and self._mine is not None else b""

    def facts(self, radius: str) -> dict[str, Any]:
        """The `trust` member of /api/status. `radius` is how far requests may go that do not say it."""
        owner = self.owner
        return {
            "radius": radius,
            "owner": None if owner is None else short(NodeId(owner)),
            "ends_at": None if self._mine is None else self._mine[1].not_after,
        }

    # --- files ----------------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        now = self._clock()
        if 0 <= now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        seen = self._look()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._list, self._mine = self._read()
        except StateError as error:
            LOG.error("nothing but membership gives trust now: %s", error.message)
            self._list, self._mine = TrustList(), None
            self._damaged = True
            self._told(error)
        else:
            if self._damaged:
                self._damaged = False
                self._told(None)
        self._epoch += 1
        self._changed()

    def _read(self) -> tuple[TrustList, tuple[bytes, OwnerCertificate] | None]:
        return trust_list(self._files.load_list()), self._files.load_certificate(self._node)

    def _look(self) -> Seen:
        """What tells that a file is another one than before."""
        found: list[tuple[int, int, int, int] | None] = []
        for file in (self._files.list_file, self._files.certificate_file):
            try:
                status = file.stat()
            except OSError:
                found.append(None)
            else:
                found.append((status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
        return tuple(found)

    # --- certificates ---------------------------------------------------------------------------------------

    def _owner_by(self, signed: bytes, node: bytes) -> bytes | None:
        """Whose the node is by what it shows. Its signature is looked at once, its time whenever it is asked for."""
        known = (node, signed)
        if known not in self._genuine:
            if len(self._genuine) >= REMEMBERED:
                self._genuine.clear()
            try:
                self._genuine[known] = read_certificate(signed, node)
            except WireError as error:
                LOG.info("the owner of %s is not proven: %s", short(NodeId(node)), error.reason)
                self._genuine[known] = None
        certificate = self._genuine[known]
        if certificate is None or not is_timely(certificate, self._clock()):
            return None
        self._mind_end(certificate)
        return certificate.owner

    def _mind_end(self, certificate: OwnerCertificate) -> None:
        self._next_end = min(self._next_end, certificate.not_after)
