"""Signatures of Ethereum on the curve secp256k1 (SEC 2, 2.4.1): what one looks like, and what a library must do for us.

    signature     r 32 | s 32 | v, 65 bytes; v is 27, or 28 where the y of the nonce's point is odd

Accepted is what the token and the hub accept: s in the lower half (EIP-2), v 27 or 28. Whoever looks at r and s alone
takes vouchers with a wrong v, which no contract pays.

`native_curve` has this from libsecp256k1, `portable_curve` from OpenSSL; keys.py chooses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

FIELD: Final = 2**256 - 2**32 - 977
ORDER: Final = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
SECRET_BYTES = 32
POINT_BYTES = 64
SIGNATURE_BYTES = 65
EVEN_V = 27


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature whose numbers are in their bounds. `odd` is the parity of the y of the nonce's point."""

    r: int
    s: int
    odd: bool

    def to_bytes(self) -> bytes:
        """The 65 bytes."""
        return self.r.to_bytes(32, "big") + self.s.to_bytes(32, "big") + bytes([EVEN_V + self.odd])


def parsed(signature: bytes) -> Signature | None:
    """The signature in these bytes; None for anything that the chain would refuse without looking at the digest."""
    if len(signature) != SIGNATURE_BYTES or signature[64] not in (EVEN_V, EVEN_V + 1):
        return None
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
    if not (0 < r < ORDER and 0 < s <= ORDER // 2):
        return None
    return Signature(r, s, signature[64] != EVEN_V)


class PublicKey(Protocol):
    """A point of the curve."""

    @property
    def point(self) -> bytes:
        """x and y, 64 bytes."""

    def has_signed(self, digest: bytes, signature: Signature) -> bool:
        """Whether it made this signature of these 32 bytes, its parity included."""


class SecretKey(Protocol):
    """A number below ORDER, which only `reveal` shows."""

    @property
    def public(self) -> PublicKey:
        """The point that belongs to it."""

    def sign(self, digest: bytes) -> bytes:
        """The signature of 32 bytes; the same for the same bytes (RFC 6979)."""

    def reveal(self) -> bytes:
        """The number, 32 bytes."""


class Curve(Protocol):
    """What a library does for us."""

    def secret_key(self, secret: bytes) -> SecretKey:
        """The key of a number from 1 to ORDER - 1, 32 bytes."""

    def recovered(self, digest: bytes, signature: Signature) -> PublicKey | None:
        """Whose signature of these 32 bytes this is; None where it is nobody's (SEC 1, 4.1.6)."""
