"""Everything of a mesh that a node keeps on its disk, written and synced before it is used.

    <home>/mesh/            0700
      membership, mesh.key  who we are there (credentials.py)
      invites/<id>.invite   the ledger (ledger.py)
      peers                 the address book (peers.py)
      superseded            keys that were given up (superseded.py)
      incarnation           a counter that outlives the process

A crash between any two steps leaves a folder that loads. Methods may be called from any thread, and wait for the disk:
a caller on the event loop uses a thread for those that issue or accept something.
"""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from meshnode.core.open_policy import OpenPolicy
from meshnode.errors import AlreadyInMesh, BadRequest, MayNotInvite, NotInMesh, StateError
from meshnode.identity import Identity, verify
from meshnode.mesh import lineage
from meshnode.mesh.credentials import CredentialFiles, Credentials
from meshnode.mesh.files import Counter
from meshnode.mesh.ledger import MAX_USES, InviteEntry, Ledger
from meshnode.mesh.peers import AddressBook
from meshnode.mesh.superseded import SupersededKeys
from meshnode.wire import certificates, invites
from meshnode.wire.address import Address
from meshnode.wire.certificates import MAX_CHAIN, Certificate
from meshnode.wire.messages import PeerEntry
from meshnode.wire.registry import LIMIT_ADDRESSES, LIMIT_INVITE_MAX_TTL_S, LIMIT_INVITE_TTL_S, Close, Role
from meshnode.wire.values import WireError


class Vault:
    """The one place that issues, admits and remembers. See the head of this module for what lies where.

    Nothing in this class admits anybody without a signature of the mesh; open_vault.py has the other kind. There
    `policy` says who is let in, for the event loop alone.
    """

    is_open = False
    policy: OpenPolicy | None = None

    def __init__(self, folder: Path, identity: Identity, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives wall time in seconds. Raises StateError for a damaged file, HomeNotWritable."""
        self._identity = identity
        self._node = identity.node_id
        self._clock = clock
        self._lock = threading.RLock()
        self._files = self._credential_files(folder)
        self._ledger = Ledger(folder / "invites", self._node)
        self._superseded = SupersededKeys(folder / "superseded", clock())
        self._book = AddressBook(folder / "peers")
        self._incarnation = Counter(folder / "incarnation")
        mine = self.credentials
        if mine is not None:
            # After a change of our own key nobody may come with the old one here, either.
            with contextlib.suppress(WireError):
                self._superseded.judge(mine.certificate, clock())
        if self.renewal_due:
            self.renew_own()

    # --- membership -----------------------------------------------------------------------------------------

    @property
    def credentials(self) -> Credentials | None:
        """None in no mesh."""
        return self._files.credentials

    def found(self, mesh_name: str) -> Credentials:
        """Make a new mesh, with this node as its first member. Raises AlreadyInMesh, StateError, HomeNotWritable."""
        with self._lock:
            if self.credentials is not None:
                raise AlreadyInMesh(self.credentials.mesh_name)
            self._clear()
            key = self._files.found_key()
            certificate = lineage.issued(
                key.sign,
                mesh=key.node_id,
                node=self._node,
                role=Role.MEMBER,
                may_invite=True,
                now_s=self._clock(),
            )
            return self._files.keep(key.node_id, mesh_name, certificate)

    def accept(self, mesh: bytes, mesh_name: str, certificate: bytes) -> Credentials:
        """Become a member with a certificate that was issued for this node, or take a newer one of the same mesh.

        Raises WireError when the certificate proves nothing, AlreadyInMesh, StateError, HomeNotWritable.
        """
        with self._lock:
            mine = self.credentials
            if mine is not None and mine.mesh != mesh:
                raise AlreadyInMesh(mine.mesh_name)
            certificates.check(certificate, mesh=mesh, node=self._node, now_s=self._clock(), verify=verify)
            if mine is None:
                self._clear()
            return self._files.keep(mesh, mesh_name, certificate)

    def forget(self) -> None:
        """Leave: certificate, ledger and peers go; the key of a mesh that was founded here is put aside.

        Raises StateError, HomeNotWritable.
        """
        with self._lock:
            self._files.forget()
            self._clear()

    # --- admission ------------------------------------------------------------------------------------------

    def admit(self, certificate: bytes, node: bytes, *, mesh: bytes | None = None) -> Certificate:
        """The certificate, if it proves that `node` is a member of this mesh (or of `mesh`) and no key is an old one.

        Raises WireError with the close code that says why not.
        """
        with self._lock:
            now_s = self._clock()
            wanted = self._member().mesh if mesh is None else mesh
            checked = certificates.check(certificate, mesh=wanted, node=node, now_s=now_s, verify=verify)
            self._superseded.judge(certificate, now_s)
            return checked

    def redeem(self, token: bytes, node: bytes, role: Role) -> bytes:
        """The certificate of a node that comes with an invite of ours: counted and synced before it is returned.

        A node that comes again with the same invite is not counted again. Raises WireError with the close code that
        says why not, HomeNotWritable.
        """
        with self._lock:
            now_s = self._clock()
            entry = self._usable(invites.read(token, verify), now_s)
            if role == Role.MEMBER and entry.role != Role.MEMBER:
                raise WireError("the invite is for a client", Close.ROLE_REFUSED)
            if node in self._superseded:
                raise WireError("the key has been replaced by its owner", Close.SUPERSEDED)
            before = entry.certificate_of(node)
            if before is None and entry.uses_left <= 0:
                raise WireError("the invite has been used up", Close.INVITE_USED)
            if before is not None and certificates.read(before).role == role and lineage.ends_at(before) > now_s:
                return before
            certificate = self._issue(node, role, may_invite=entry.may_invite and role == Role.MEMBER)
            self._ledger.put(entry.redeemed_by(node, certificate))
            return certificate

    def renew(self, certificate: bytes, node: bytes) -> bytes:
        """A new certificate for a member: same role and rights, a new life.

        Raises WireError, also when ours would end no later and rest on as many signatures as the one it has.
        """
        with self._lock:
            checked = self.admit(certificate, node)
            renewed = self._issue(node, Role(checked.role), may_invite=checked.may_invite)
            if not _is_better(renewed, certificate):
                raise WireError("this node has nothing better to give", Close.NOT_ADMITTED)
            return renewed

    def _usable(self, invite: invites.Invite, now_s: float) -> InviteEntry:
        if invite.issuer != self._node or invite.mesh != self._member().mesh:
            raise WireError("the invite was made by another node", Close.INVITE_INVALID)
        if invite.expires_at <= now_s:
            raise WireError("the invite has expired", Close.INVITE_EXPIRED)
        entry = self._ledger.get(invite.id)
        if entry is None:
            raise WireError("the invite is not known here", Close.INVITE_INVALID)
        if entry.revoked:
            raise WireError("the invite has been revoked", Close.INVITE_REVOKED)
        return entry

    # --- invites --------------------------------------------------------------------------------------------

    @property
    def may_invite(self) -> bool:
        """Whether this node can issue certificates that others accept."""
        mine = self.credentials
        if mine is None or not mine.may_invite:
            return False
        return self._files.mesh_key is not None or len(lineage.chain(mine.certificate)) < MAX_CHAIN

    def create_invite(
        self,
        *,
        role: Role = Role.MEMBER,
        ttl_s: int = LIMIT_INVITE_TTL_S,
        uses: int = 5,
        may_invite: bool = False,
        addresses: Sequence[Address],
    ) -> tuple[str, InviteEntry]:
        """The text to hand out, and its entry in the ledger. Of the addresses the first eight are named.

        Raises NotInMesh, MayNotInvite, BadRequest for a value out of its bounds, StateError for too many open invites.
        """
        with self._lock:
            mine = self.credentials
            if mine is None:
                raise NotInMesh()
            if not self.may_invite:
                raise MayNotInvite()
            _check_bounds(role, ttl_s, uses, may_invite, addresses)
            now_s = self._clock()
            invite = invites.Invite(
                mesh=mine.mesh,
                issuer=self._node,
                id=secrets.token_bytes(invites.INVITE_ID_BYTES),
                role=role,
                expires_at=int(now_s) + ttl_s,
                addresses=tuple(addresses[:LIMIT_ADDRESSES]),
                may_invite=may_invite,
                mesh_name=mine.mesh_name,
            )
            entry = InviteEntry(invite.id, self._node, role, may_invite, invite.expires_at, uses)
            self._ledger.prune(now_s)
            self._ledger.put(entry)
            return invites.write(invite, self._identity.sign), entry

    def revoke(self, invite_id: str) -> InviteEntry:
        """From now on nobody can join with it; who has joined stays. Raises InviteInvalid for an unknown one."""
        with self._lock:
            revoked = dataclasses.replace(self._ledger.find(invite_id), revoked=True)
            self._ledger.put(revoked)
            return revoked

    def invites(self) -> tuple[InviteEntry, ...]:
        """Those that have not expired, the one that ends first at the front."""
        with self._lock:
            now_s = self._clock()
            known = () if self.credentials is None else self._ledger.entries()
            return tuple(entry for entry in known if entry.expires_at > now_s)

    # --- renewal and a new key ------------------------------------------------------------------------------

    @property
    def renewal_due(self) -> bool:
        """Whether this node should get a new certificate: from itself (`renew_own`), or else from a peer."""
        mine = self.credentials
        return mine is not None and lineage.renewal_due(mine.certificate, self._clock())

    def renew_own(self) -> bool:
        """Issue a new certificate for this node, if it holds the key of the mesh. Raises HomeNotWritable."""
        with self._lock:
            mine = self.credentials
            if mine is None or self._files.mesh_key is None:
                return False
            self._files.keep(mine.mesh, mine.mesh_name, self._issue(self._node, mine.role, may_invite=True))
            return True

    def accept_renewal(self, certificate: bytes) -> Credentials:
        """Take a new certificate that a peer has issued. Raises WireError when it is worse than the present one."""
        with self._lock:
            mine = self._member()
            offered = certificates.read(certificate)
            if offered.role != mine.role or offered.may_invite != mine.may_invite:
                raise WireError("the new certificate has other rights", Close.NOT_ADMITTED)
            if not _is_better(certificate, mine.certificate):
                raise WireError("the new certificate is no better", Close.NOT_ADMITTED)
            return self.accept(mine.mesh, mine.mesh_name, certificate)

    def prepare_succession(self, successor: bytes) -> None:
        """Let another key take the place of this node's: signed by the present one, and kept beside the membership.

        It comes into force when a vault is opened with the identity of `successor`. In no mesh nothing is needed.
        Raises StateError when the membership cannot be handed on, HomeNotWritable.
        """
        with self._lock:
            mine = self.credentials
            if mine is None:
                return
            if len(lineage.chain(mine.certificate)) >= MAX_CHAIN:
                raise StateError(
                    "the certificate rests on too many signatures to add one more",
                    fix="let the node run until a peer who may invite has renewed it; or join with a new invite",
                )
            now_s = self._clock()
            if mine.ends_at <= now_s:
                raise StateError("the membership has expired", fix="leave, and join with a new invite: meshnode leave")
            signed = lineage.replacement(self._identity.sign, signed=mine.certificate, successor=successor, now_s=now_s)
            self._files.keep_next(mine.mesh, mine.mesh_name, signed)

    # --- what outlives the process --------------------------------------------------------------------------

    def next_incarnation(self) -> int:
        """A number greater than every one before, on disk before it is used. Raises HomeNotWritable."""
        with self._lock:
            return self._incarnation.next()

    def save_incarnation(self, value: int) -> None:
        """The machine has raised it on its own; a smaller one changes nothing. Raises HomeNotWritable."""
        with self._lock:
            self._incarnation.raise_to(value)

    def peers(self) -> tuple[PeerEntry, ...]:
        """Members to try after a start, last heard of first."""
        return self._book.peers

    def remember_peers(self, entries: Iterable[PeerEntry]) -> None:
        """Put members in front of the address book. Raises HomeNotWritable."""
        with self._lock:
            self._book.remember(entry for entry in entries if entry.node != self._node)

    def forget_peer(self, node: bytes) -> None:
        """Take a member that has left out of the address book. Raises HomeNotWritable."""
        with self._lock:
            self._book.forget(node)

    # --- inside ---------------------------------------------------------------------------------------------

    def _credential_files(self, folder: Path) -> CredentialFiles:
        return CredentialFiles(folder, self._node)

    def _clear(self) -> None:
        """Remove what is left of a mesh before."""
        self._ledger.clear()
        self._book.clear()
        self._superseded.clear()

    def _member(self) -> Credentials:
        if self.credentials is None:
            raise WireError("this node is in no mesh", Close.NOT_ADMITTED)
        return self.credentials

    def _issue(self, node: bytes, role: Role, *, may_invite: bool) -> bytes:
        """Sign with the key of the mesh, if it is here, else with our own. Raises WireError."""
        mine, key = self._member(), self._files.mesh_key
        if not self.may_invite:
            raise WireError("this node may not invite", Close.ROLE_REFUSED)
        return lineage.issued(
            (key or self._identity).sign,
            mesh=mine.mesh,
            node=node,
            role=role,
            may_invite=may_invite,
            authority=b"" if key else mine.certificate,
            now_s=self._clock(),
        )


def _is_better(certificate: bytes, other: bytes) -> bool:
    """Whether it ends later, or rests on fewer signatures."""
    later = lineage.ends_at(certificate) > lineage.ends_at(other)
    return later or len(lineage.chain(certificate)) < len(lineage.chain(other))


def _check_bounds(role: Role, ttl_s: int, uses: int, may_invite: bool, addresses: Sequence[Address]) -> None:
    if not 1 <= ttl_s <= LIMIT_INVITE_MAX_TTL_S:
        raise BadRequest(f"an invite lives for 1 to {LIMIT_INVITE_MAX_TTL_S} seconds, not {ttl_s}")
    if not 1 <= uses <= MAX_USES:
        raise BadRequest(f"an invite has 1 to {MAX_USES} uses, not {uses}")
    if may_invite and role != Role.MEMBER:
        raise BadRequest("a client cannot invite others")
    if not addresses:
        raise BadRequest("this node has no address under which others can reach it")
