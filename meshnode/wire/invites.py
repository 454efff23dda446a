"""Invites: the one text that a person pastes to add a machine.

    "mn1" | base32 (RFC 4648, lower case, no padding) of signature and payload

The issuer signs it with its node key and counts its uses; whoever holds the text may use it until then. It says where
the issuer is, whose key to expect there, and which mesh it is, so that nobody in between can take its place.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass

from meshnode.wire.address import Address
from meshnode.wire.registry import (
    INVITE_PREFIX,
    LIMIT_ADDRESSES,
    LIMIT_INVITE_CHARS,
    LIMIT_NAME_CHARS,
    Close,
    Role,
)
from meshnode.wire.schema import MAX_U63, Bytes, Flag, ListOf, Text, UInt, Where, member
from meshnode.wire.signed import KEY_BYTES, Sign, Verify, is_signed_by, open_payload, seal
from meshnode.wire.values import WireError

PURPOSE = "invite"
INVITE_ID_BYTES = 8


@dataclass(frozen=True, slots=True)
class Invite:
    """What an invite says. `expires_at` is wall time in seconds; `id` is how the issuer finds it in its ledger."""

    mesh: bytes = member(0, Bytes(KEY_BYTES, KEY_BYTES))
    issuer: bytes = member(2, Bytes(KEY_BYTES, KEY_BYTES))
    id: bytes = member(4, Bytes(INVITE_ID_BYTES, INVITE_ID_BYTES))
    role: int = member(6, UInt(max(Role)))
    expires_at: int = member(8, UInt(MAX_U63))
    addresses: tuple[Address, ...] = member(10, ListOf(Where(), LIMIT_ADDRESSES, 1))
    may_invite: bool = member(12, Flag(), False)
    mesh_name: str = member(13, Text(LIMIT_NAME_CHARS), "")


def write(invite: Invite, sign: Sign) -> str:
    """The text to paste. `sign` belongs to the issuer."""
    return to_text(seal(PURPOSE, invite, sign))


def to_text(signed: bytes) -> str:
    """Signed bytes as the text of an invite."""
    return INVITE_PREFIX + base64.b32encode(signed).decode("ascii").rstrip("=").lower()


def to_bytes(text: str) -> bytes:
    """The signed bytes in a pasted text; white space and case do not matter. Raises WireError."""
    bare = "".join(text[: 2 * LIMIT_INVITE_CHARS].split())
    if not bare.isascii():
        raise WireError("an invite has no such characters", Close.INVITE_INVALID)
    bare = bare.lower()
    if not bare.startswith(INVITE_PREFIX) or not len(INVITE_PREFIX) < len(bare) <= LIMIT_INVITE_CHARS:
        raise WireError("not an invite", Close.INVITE_INVALID)
    digits = bare[len(INVITE_PREFIX) :].upper()
    try:
        signed = base64.b32decode(digits + "=" * (-len(digits) % 8))
    except (binascii.Error, ValueError):
        raise WireError("the invite is mistyped or cut short", Close.INVITE_INVALID) from None
    if to_text(signed) != bare:
        raise WireError("the invite is mistyped", Close.INVITE_INVALID)
    return signed


def read(signed: bytes, verify: Verify) -> Invite:
    """The invite in these bytes, if its issuer signed it. Whether it has expired or was used is asked elsewhere.

    Raises WireError with the code INVITE_INVALID.
    """
    try:
        invite = open_payload(Invite, signed, limit_bytes=LIMIT_INVITE_CHARS)
    except WireError as error:
        raise WireError(f"the invite cannot be read: {error.reason}", Close.INVITE_INVALID) from None
    if invite.role not in tuple(Role):
        raise WireError("the invite names an unknown role", Close.INVITE_INVALID)
    if not is_signed_by(invite.issuer, PURPOSE, signed, verify):
        raise WireError("the invite is mistyped or forged", Close.INVITE_INVALID)
    return invite
