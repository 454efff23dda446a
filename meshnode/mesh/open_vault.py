"""The vault of an open mesh: every node issues its own certificate, and the policy of each decides whom it lets in.

It lies in a folder of its own and is told by its owner to be open. A vault of the other kind cannot become one,
whatever arrives: it has no code for certificates that nobody else has signed.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path

from meshnode.core.open_policy import OpenPolicy
from meshnode.errors import StateError
from meshnode.identity import Identity, verify
from meshnode.mesh.credentials import CredentialFiles, Credentials
from meshnode.mesh.vault import Vault
from meshnode.wire import certificates
from meshnode.wire.certificates import SERIAL_BYTES, Certificate
from meshnode.wire.open_meshes import canonical_name, check_self_issued, open_mesh_id, self_issued
from meshnode.wire.registry import Role


class OpenVault(Vault):
    """See Vault. In an open mesh there are no invites; `open` takes the place of `found` and `accept`."""

    is_open = True

    def __init__(
        self, folder: Path, identity: Identity, policy: OpenPolicy, clock: Callable[[], float] = time.time
    ) -> None:
        """Raises StateError for a damaged file, HomeNotWritable."""
        super().__init__(folder, identity, clock)
        self.policy = policy
        mine = self.credentials
        if mine is not None and certificates.read(mine.certificate).node != self._node:
            self.renew_own()

    def open(self, name: str, role: Role) -> Credentials:
        """Belong to the open mesh of this name: with a certificate of one's own, on disk when this returns.

        The address book of the same mesh stays, that of another one goes. Raises ValueError for a name that is none,
        HomeNotWritable.
        """
        with self._lock:
            name = canonical_name(name)
            mesh, mine = open_mesh_id(name), self.credentials
            if mine is not None and mine.mesh == mesh and mine.role is role and not self.renewal_due:
                return mine
            if mine is not None and mine.mesh != mesh:
                # The membership first: a book without one is harmless, the book of another mesh is not.
                self._files.forget()
            if self.credentials is None:
                self._clear()
            return self._files.keep(mesh, name, self._issue_own(mesh, role))

    def found(self, mesh_name: str) -> Credentials:
        """Nobody founds an open mesh. Raises StateError."""
        raise StateError("an open mesh is not founded: it is there as soon as somebody names it")

    def admit(self, certificate: bytes, node: bytes, *, mesh: bytes | None = None) -> Certificate:
        """The certificate, if `node` issued it for itself and for the mesh of this vault. Raises WireError."""
        with self._lock:
            now_s = self._clock()
            wanted = self._member().mesh if mesh is None else mesh
            return check_self_issued(certificate, mesh=wanted, node=node, now_s=now_s, verify=verify)

    def renew_own(self) -> bool:
        """Issue a new certificate for this node. Raises HomeNotWritable."""
        with self._lock:
            mine = self.credentials
            if mine is None:
                return False
            self._files.keep(mine.mesh, mine.mesh_name, self._issue_own(mine.mesh, mine.role))
            return True

    def _issue_own(self, mesh: bytes, role: Role) -> bytes:
        return self_issued(
            self._identity.sign,
            mesh=mesh,
            node=self._node,
            role=role,
            serial=secrets.token_bytes(SERIAL_BYTES),
            now_s=self._clock(),
        )

    def _credential_files(self, folder: Path) -> CredentialFiles:
        # A new key of this node needs nobody's consent here.
        files = CredentialFiles(folder, self._node, of_any_key=True)
        if files.credentials is not None and not _is_of_open_mesh(files.credentials):
            raise StateError(f"{folder} holds the membership of a private mesh", fix=f"remove {folder}")
        return files


def _is_of_open_mesh(mine: Credentials) -> bool:
    try:
        return mine.mesh == open_mesh_id(mine.mesh_name)
    except ValueError:
        return False
