"""Certificates as they are issued here, and what their chains say besides being valid: when they end, when to renew.

The functions that read expect bytes that wire/certificates.py has checked, or that this node has issued. Nothing that
is issued outlives what it rests on, so that its holder sees in time when to ask for a new one. Protocol: 07-admission.
"""

from __future__ import annotations

import secrets

from meshnode.wire.certificates import BACKDATED_S, MAX_CHAIN, SERIAL_BYTES, Certificate, issue, read
from meshnode.wire.registry import LIMIT_CERTIFICATE_TTL_S, Close, Role
from meshnode.wire.signed import Sign
from meshnode.wire.values import WireError

RENEWAL_SHARE = 2 / 3
REPLACEMENT_SHOWN_S = 7 * 86_400
"""A replacement is the only proof that a key was given up, so it is shown for a week before a renewal hides it."""


def chain(signed: bytes) -> tuple[Certificate, ...]:
    """The certificate and those of its signers, up to the one that the mesh key signed. Raises WireError."""
    found = [read(signed)]
    while found[-1].authority:
        found.append(read(found[-1].authority))
    return tuple(found)


def ends_at(signed: bytes) -> int:
    """When the first certificate of the chain expires: wall time in seconds."""
    return min(certificate.not_after for certificate in chain(signed))


def renewal_due(signed: bytes, now_s: float) -> bool:
    """Whether it is time for a new certificate: past two thirds of its life, or a week after a change of keys."""
    links = chain(signed)
    issued_at = links[0].not_before + BACKDATED_S
    if any(link.replaces for link in links) and now_s >= issued_at + REPLACEMENT_SHOWN_S:
        return True
    return now_s >= issued_at + RENEWAL_SHARE * (ends_at(signed) - issued_at)


def issued(
    sign: Sign, *, mesh: bytes, node: bytes, role: Role, may_invite: bool, authority: bytes = b"", now_s: float
) -> bytes:
    """A new certificate for `node`. `sign` belongs to the mesh key, or to the holder of `authority`.

    Raises WireError when `authority` has expired, or when the chain would be too long.
    """
    return _issue(sign, mesh, node, role, may_invite, False, authority, now_s)


def replacement(sign: Sign, *, signed: bytes, successor: bytes, now_s: float) -> bytes:
    """The certificate with which `successor` takes the place of the holder of `signed`, to whom `sign` belongs.

    Raises WireError as `issued`.
    """
    own = read(signed)
    return _issue(sign, own.mesh, successor, Role(own.role), own.may_invite, True, signed, now_s)


def _issue(
    sign: Sign,
    mesh: bytes,
    node: bytes,
    role: Role,
    may_invite: bool,
    replaces: bool,
    authority: bytes,
    now_s: float,
) -> bytes:
    not_after = int(now_s) + LIMIT_CERTIFICATE_TTL_S
    if authority:
        if len(chain(authority)) >= MAX_CHAIN:
            raise WireError("the chain of certificates would be too long", Close.NOT_ADMITTED)
        not_after = min(not_after, ends_at(authority))
        if not_after <= now_s:
            raise WireError("the membership of the signer has expired", Close.CERTIFICATE_EXPIRED)
    serial = secrets.token_bytes(SERIAL_BYTES)
    not_before = int(now_s) - BACKDATED_S
    return issue(Certificate(mesh, node, role, not_before, not_after, serial, may_invite, replaces, authority), sign)
