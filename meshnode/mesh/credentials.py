"""The proof that this node belongs to a mesh, on disk: the membership file, the key of a mesh that was founded here,
and how a new key of the node takes over from the old one.

    membership        which mesh, and the certificate of this node
    membership.next   the same for the key that is about to replace the node's
    mesh.key          with the founder alone; `mesh.key.left-<date>-<mesh>` after leaving

A change of keys touches two files in two folders. `membership.next` is written first; the moment in which node.key is
replaced decides which identity the node has; and whoever then finds a membership of the old key takes the next one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from meshnode import durable
from meshnode.errors import StateError
from meshnode.identity import Identity, load, load_or_create, short
from meshnode.mesh import files, lineage
from meshnode.wire import certificates
from meshnode.wire.registry import LIMIT_CERTIFICATE_BYTES, LIMIT_NAME_CHARS, Role
from meshnode.wire.schema import Bytes, Text, member
from meshnode.wire.signed import KEY_BYTES
from meshnode.wire.values import WireError

FILE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Credentials:
    """That this node belongs to a mesh. `certificate` are the signed bytes that prove it to others until `ends_at`."""

    mesh: bytes
    mesh_name: str
    certificate: bytes
    role: Role
    may_invite: bool
    ends_at: int


@dataclass(frozen=True, slots=True)
class _Membership:
    mesh: bytes = member(0, Bytes(KEY_BYTES, KEY_BYTES))
    certificate: bytes = member(2, Bytes(1, LIMIT_CERTIFICATE_BYTES))
    mesh_name: str = member(4, Text(LIMIT_NAME_CHARS), "")


class CredentialFiles:
    """What is in those files. `credentials` is None in no mesh, `mesh_key` where the mesh was not founded."""

    def __init__(self, folder: Path, node: bytes, *, of_any_key: bool = False) -> None:
        """`of_any_key`: a membership of an earlier key of this node is given as it is, for its holder to replace.

        Raises StateError for a damaged file, without `of_any_key` for one of another identity; HomeNotWritable.
        """
        self._membership_file = folder / "membership"
        self._next_file = folder / "membership.next"
        self._key_file = folder / "mesh.key"
        self.mesh_key: Identity | None = None
        self.credentials = self._load(node, of_any_key)

    def found_key(self) -> Identity:
        """The key of a new mesh. One without a membership is what a founding left that was cut short: nobody knows it.

        Raises StateError, HomeNotWritable.
        """
        self.mesh_key = load_or_create(self._key_file)
        return self.mesh_key

    def keep(self, mesh: bytes, mesh_name: str, certificate: bytes) -> Credentials:
        """Write a membership. Raises HomeNotWritable."""
        if self._key_file.exists() and load(self._key_file).node_id != mesh:
            self._put_key_aside()
        membership = _Membership(mesh, certificate, mesh_name[:LIMIT_NAME_CHARS])
        files.save(self._membership_file, membership)
        self.credentials = _credentials(membership)
        return self.credentials

    def keep_next(self, mesh: bytes, mesh_name: str, certificate: bytes) -> None:
        """Write the membership of a key that is not the node's yet. Raises HomeNotWritable."""
        files.save(self._next_file, _Membership(mesh, certificate, mesh_name))

    def forget(self) -> None:
        """Remove the membership; a key of the mesh is put aside. Raises HomeNotWritable."""
        if self._key_file.exists():
            self._put_key_aside()
        durable.remove(self._next_file)
        durable.remove(self._membership_file)
        self.credentials = None

    def _put_key_aside(self) -> None:
        day = time.strftime("%Y-%m-%d", time.gmtime())
        name = f"mesh.key.left-{day}-{short(load(self._key_file).node_id)}"
        durable.rename(self._key_file, self._key_file.with_name(name))
        self.mesh_key = None

    def _load(self, node: bytes, of_any_key: bool) -> Credentials | None:
        membership = self._read(self._membership_file)
        if membership is None:
            return None
        if not of_any_key and certificates.read(membership.certificate).node != node:
            membership = self._succeed(node)
        if self._key_file.exists():
            self.mesh_key = load(self._key_file)
            if self.mesh_key.node_id != membership.mesh:
                raise StateError(f"{self._key_file} is the key of another mesh", fix="restore it, or move it away")
        return _credentials(membership)

    def _succeed(self, node: bytes) -> _Membership:
        """The key of this node has been replaced: so is its membership, now."""
        following = self._read(self._next_file)
        if following is None or certificates.read(following.certificate).node != node:
            raise StateError(
                "the key of this node is not the one that its mesh knows",
                fix=f"restore node.key from a backup; or remove {self._membership_file} and join with a new invite",
            )
        durable.rename(self._next_file, self._membership_file)
        return following

    def _read(self, file: Path) -> _Membership | None:
        fix = f"remove {file}, and join the mesh with a new invite"
        membership = files.load(_Membership, file, limit_bytes=FILE_BYTES, fix=fix)
        if membership is None:
            return None
        try:
            link = lineage.chain(membership.certificate)[0]
            fits = link.mesh == membership.mesh and link.role in tuple(Role)
        except WireError:
            fits = False
        if not fits:
            raise StateError(f"{file} is damaged", fix=fix)
        return membership


def _credentials(membership: _Membership) -> Credentials:
    certificate = certificates.read(membership.certificate)
    return Credentials(
        mesh=membership.mesh,
        mesh_name=membership.mesh_name,
        certificate=membership.certificate,
        role=Role(certificate.role),
        may_invite=certificate.may_invite,
        ends_at=lineage.ends_at(membership.certificate),
    )
