"""Owner certificates: the key of a person vouches for the key of a node that is theirs.

    "mo1" | base32 (RFC 4648, lower case, no padding) of signature and payload

A certificate is no secret and gives no right by itself: it counts only where its owner counts, which each node decides
for itself (core/radius.py), and a mesh admits nobody by it. It travels in the identity statement of private meshes.
Protocol: 07-admission, "Owners".
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from meshnode.wire.registry import LIMIT_CLOCK_SKEW_S, LIMIT_OWNER_BYTES, OWNER_PREFIX, Close
from meshnode.wire.schema import MAX_U63, Bytes, UInt, member
from meshnode.wire.signed import KEY_BYTES, Sign, Verify, is_signed_by, open_payload, seal
from meshnode.wire.values import WireError

PURPOSE = "owner"
BACKDATED_S = 2 * 86_400
"""As for certificates of a mesh: a slow clock locks nobody out."""
MOST_CHARS = len(OWNER_PREFIX) + (LIMIT_OWNER_BYTES * 8 + 4) // 5


@dataclass(frozen=True, slots=True)
class OwnerCertificate:
    """That `node` belongs to `owner`, from `not_before` to `not_after` (wall time in seconds)."""

    owner: bytes = member(0, Bytes(KEY_BYTES, KEY_BYTES))
    node: bytes = member(2, Bytes(KEY_BYTES, KEY_BYTES))
    not_before: int = member(4, UInt(MAX_U63))
    not_after: int = member(6, UInt(MAX_U63))


def issue(certificate: OwnerCertificate, sign: Sign) -> bytes:
    """The signed bytes. `sign` belongs to the owner key."""
    return seal(PURPOSE, certificate, sign)


def read(signed: bytes) -> OwnerCertificate:
    """The certificate in these bytes, unchecked. Raises WireError."""
    if len(signed) > LIMIT_OWNER_BYTES:
        raise WireError(f"an owner certificate of {len(signed)} bytes", Close.NOT_ADMITTED)
    return open_payload(OwnerCertificate, signed, limit_bytes=LIMIT_OWNER_BYTES)


def read_genuine(signed: bytes, *, node: bytes, verify: Verify) -> OwnerCertificate:
    """The certificate, if its owner signed it for `node`; whether it is its time is asked elsewhere.

    Raises WireError with the code that says why not.
    """
    certificate = read(signed)
    if certificate.node != node:
        raise WireError("the owner certificate is of another node", Close.NOT_ADMITTED)
    if certificate.owner == node:
        raise WireError("a node is not its own owner", Close.NOT_ADMITTED)
    if not is_signed_by(certificate.owner, PURPOSE, signed, verify):
        raise WireError("the owner certificate is forged", Close.NOT_ADMITTED)
    return certificate


def is_timely(certificate: OwnerCertificate, now_s: float) -> bool:
    """Whether it counts at this wall time; a clock may be LIMIT_CLOCK_SKEW_S slow, and never late."""
    return certificate.not_before <= now_s + LIMIT_CLOCK_SKEW_S and now_s <= certificate.not_after


def check(signed: bytes, *, node: bytes, now_s: float, verify: Verify) -> OwnerCertificate:
    """The certificate, if it proves who the owner of `node` is at the wall time `now_s`. Whether that owner counts for
    anything is another question. Raises WireError with the code that says why not.
    """
    certificate = read_genuine(signed, node=node, verify=verify)
    if not is_timely(certificate, now_s):
        raise WireError("it is not the time of the owner certificate", Close.CERTIFICATE_EXPIRED)
    return certificate


def to_text(signed: bytes) -> str:
    """Signed bytes as a text to paste."""
    return OWNER_PREFIX + base64.b32encode(signed).decode("ascii").rstrip("=").lower()


def to_bytes(text: str) -> bytes:
    """The signed bytes in a pasted text; white space and case do not matter. Raises WireError."""
    bare = "".join(text[: 4 * MOST_CHARS].split())
    if not bare.isascii():
        raise WireError("an owner certificate has no such characters")
    bare = bare.lower()
    if not bare.startswith(OWNER_PREFIX) or not len(OWNER_PREFIX) < len(bare) <= MOST_CHARS:
        raise WireError("not an owner certificate")
    digits = bare[len(OWNER_PREFIX) :].upper()
    try:
        signed = base64.b32decode(digits + "=" * (-len(digits) % 8))
    except (binascii.Error, ValueError):
        raise WireError("the owner certificate is mistyped or cut short") from None
    if to_text(signed) != bare:
        raise WireError("the owner certificate is mistyped")
    return signed
