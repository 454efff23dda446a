"""Membership certificates: the key of a mesh, or one that it trusts to, vouches for the key of a node.

A chain has at most three links. The mesh key signs the first certificate. One whose holder `may_invite` can sign
others, with no role above its own; and any holder can sign one for a key that `replaces` its own, with no more rights
and no longer life. A certificate counts only while those above it do. Clocks differ: a certificate begins two days
before it was made, so that a slow clock locks nobody out. Protocol: 07-admission.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshnode.wire.registry import LIMIT_CERTIFICATE_BYTES, LIMIT_CLOCK_SKEW_S, Close, Role
from meshnode.wire.schema import MAX_U63, Bytes, Flag, UInt, member
from meshnode.wire.signed import KEY_BYTES, Sign, Verify, is_signed_by, open_payload, seal
from meshnode.wire.values import WireError

PURPOSE = "certificate"
BACKDATED_S = 2 * 86_400
MAX_CHAIN = 3
SERIAL_BYTES = 8


@dataclass(frozen=True, slots=True)
class Certificate:
    """That `node` belongs to `mesh` in a role, from `not_before` to `not_after` (wall time in seconds).

    `authority` holds the certificate of the signer, and is empty when the mesh key itself has signed.
    """

    mesh: bytes = member(0, Bytes(KEY_BYTES, KEY_BYTES))
    node: bytes = member(2, Bytes(KEY_BYTES, KEY_BYTES))
    role: int = member(4, UInt(max(Role)))
    not_before: int = member(6, UInt(MAX_U63))
    not_after: int = member(8, UInt(MAX_U63))
    serial: bytes = member(10, Bytes(SERIAL_BYTES, SERIAL_BYTES))
    may_invite: bool = member(12, Flag(), False)
    replaces: bool = member(14, Flag(), False)
    authority: bytes = member(16, Bytes(0, LIMIT_CERTIFICATE_BYTES), b"")


def issue(certificate: Certificate, sign: Sign) -> bytes:
    """The signed bytes. `sign` belongs to the mesh key, or to the node of `authority`. Raises WireError if too long."""
    signed = seal(PURPOSE, certificate, sign)
    if len(signed) > LIMIT_CERTIFICATE_BYTES:
        raise WireError(f"a certificate of {len(signed)} bytes, at most {LIMIT_CERTIFICATE_BYTES}")
    return signed


def read(signed: bytes) -> Certificate:
    """The certificate in these bytes, unchecked. Raises WireError."""
    if len(signed) > LIMIT_CERTIFICATE_BYTES:
        raise WireError(f"a certificate of {len(signed)} bytes", Close.NOT_ADMITTED)
    return open_payload(Certificate, signed, limit_bytes=LIMIT_CERTIFICATE_BYTES)


def replaced_keys(signed: bytes) -> tuple[bytes, ...]:
    """The keys that the holder of a checked certificate has given up: they may be admitted no more."""
    found: list[bytes] = []
    certificate = read(signed)
    while certificate.authority:
        authority = read(certificate.authority)
        if certificate.replaces:
            found.append(authority.node)
        certificate = authority
    return tuple(found)


def check(signed: bytes, *, mesh: bytes, node: bytes, now_s: float, verify: Verify) -> Certificate:
    """The certificate, if it proves that `node` belongs to `mesh` at the wall time `now_s`.

    Raises WireError with the close code that says why not.
    """
    certificate = read(signed)
    if certificate.mesh != mesh:
        raise WireError("the certificate is of another mesh", Close.WRONG_MESH)
    if certificate.node != node:
        raise WireError("the certificate is of another node", Close.NOT_ADMITTED)
    _check_chain(signed, certificate, now_s, verify, MAX_CHAIN)
    return certificate


def _check_chain(signed: bytes, certificate: Certificate, now_s: float, verify: Verify, left: int) -> None:
    if certificate.role not in tuple(Role):
        raise WireError("the certificate names an unknown role", Close.NOT_ADMITTED)
    if now_s > certificate.not_after:
        raise WireError("the certificate has expired", Close.CERTIFICATE_EXPIRED)
    if now_s + LIMIT_CLOCK_SKEW_S < certificate.not_before:
        raise WireError("the certificate is not valid yet", Close.CERTIFICATE_EXPIRED)
    signer = certificate.mesh
    if certificate.authority:
        if left <= 1:
            raise WireError("the chain of certificates is too long", Close.NOT_ADMITTED)
        authority = read(certificate.authority)
        _check_rights(certificate, authority)
        _check_chain(certificate.authority, authority, now_s, verify, left - 1)
        signer = authority.node
    elif certificate.replaces:
        raise WireError("a replacement without what it replaces", Close.NOT_ADMITTED)
    if not is_signed_by(signer, PURPOSE, signed, verify):
        raise WireError("the certificate is forged", Close.NOT_ADMITTED)


def _check_rights(certificate: Certificate, authority: Certificate) -> None:
    if authority.mesh != certificate.mesh:
        raise WireError("the signer belongs to another mesh", Close.NOT_ADMITTED)
    if certificate.node == authority.node:
        raise WireError("a key vouches for itself", Close.NOT_ADMITTED)
    if certificate.replaces:
        more_rights = certificate.may_invite and not authority.may_invite
        if more_rights or certificate.role != authority.role or certificate.not_after > authority.not_after:
            raise WireError("a replacement has more rights than what it replaces", Close.NOT_ADMITTED)
    elif not authority.may_invite:
        raise WireError("the signer may not invite", Close.NOT_ADMITTED)
    elif authority.role == Role.CLIENT and certificate.role != Role.CLIENT:
        raise WireError("a client-only node can invite such nodes alone", Close.NOT_ADMITTED)
