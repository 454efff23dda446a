"""secp256k1 from libsecp256k1, which coincurve brings: signing and checking take a twentieth of a millisecond.

coincurve is optional (`pip install 'meshnode[native]'`) and imported when a key is first used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from types import ModuleType
from typing import Any

from meshnode.settlement.secp256k1 import EVEN_V, Signature


@cache
def library() -> ModuleType | None:
    """coincurve, or None where it is not installed."""
    try:
        import coincurve
    except ImportError:
        return None
    return coincurve


@dataclass(frozen=True, slots=True)
class NativePublicKey:
    """A point of the curve, its 64 bytes."""

    point: bytes

    def has_signed(self, digest: bytes, signature: Signature) -> bool:
        """Whether it is the point that the signature leads to."""
        return _recovered(digest, signature) == self.point


@dataclass(frozen=True, slots=True)
class NativeSecretKey:
    """A key in the library's own object, whose repr says nothing."""

    _key: Any = field(repr=False)

    @property
    def public(self) -> NativePublicKey:
        """The point that belongs to it."""
        return NativePublicKey(self._key.public_key.format(compressed=False)[1:])

    def sign(self, digest: bytes) -> bytes:
        """The signature of 32 bytes."""
        compact = self._key.sign_recoverable(digest, hasher=None)
        return bytes(compact[:64]) + bytes([EVEN_V + compact[64]])

    def reveal(self) -> bytes:
        """The secret number."""
        return bytes(self._key.secret)


class NativeCurve:
    """The curve by libsecp256k1. Raises ImportError on use where coincurve is not installed."""

    def secret_key(self, secret: bytes) -> NativeSecretKey:
        """The key of a secret number."""
        return NativeSecretKey(_library().PrivateKey(secret))

    def recovered(self, digest: bytes, signature: Signature) -> NativePublicKey | None:
        """Whose signature this is, or None."""
        point = _recovered(digest, signature)
        return NativePublicKey(point) if point else None


def _recovered(digest: bytes, signature: Signature) -> bytes:
    """The 64 bytes of the point, or none."""
    compact = signature.to_bytes()[:64] + bytes([signature.odd])
    try:
        found = _library().PublicKey.from_signature_and_message(compact, digest, hasher=None)
    except Exception:  # the library raises plain Exception for a signature that leads to no point
        return b""
    return bytes(found.format(compressed=False)[1:])


def _library() -> ModuleType:
    found = library()
    if found is None:
        raise ImportError("coincurve is not installed")
    return found
