"""Keys of accounts on the chain: signing digests, and checking who signed them.

A node has up to three keys, none made from another. Its Ed25519 key (identity.py) is who it is. The *voucher key* is
hot: it signs vouchers while tokens arrive, and can lose no more than is locked in channels. The *fund key* holds the
money; it lies in a keystore and signs deposits. Both of these are VoucherKeys.

The secret is in no repr, no traceback and no pickle; it leaves a key by `reveal` alone. With coincurve (libsecp256k1)
a signature takes a twentieth of a millisecond, without it OpenSSL takes most of one.
"""

from __future__ import annotations

import re
import secrets
from typing import NoReturn

from meshnode.errors import KeystoreInvalid
from meshnode.settlement import native_curve
from meshnode.settlement.addresses import ADDRESS_BYTES, shown
from meshnode.settlement.keccak import DIGEST_BYTES, keccak256
from meshnode.settlement.native_curve import NativeCurve
from meshnode.settlement.portable_curve import PortableCurve
from meshnode.settlement.secp256k1 import ORDER, SECRET_BYTES, Curve, PublicKey, SecretKey, parsed

_TEXT = re.compile(r"(?:0[xX])?[0-9a-fA-F]{64}")
_WHAT_A_SECRET_IS = "a key is 64 hexadecimal digits, with or without 0x before them"


def native() -> bool:
    """Whether libsecp256k1 is there."""
    return native_curve.library() is not None


def prepare() -> None:
    """Import now what the first use would wait for, a tenth of a second or two; from a thread, when a node starts."""
    probe = VoucherKey.generate()
    digest = bytes(DIGEST_BYTES)
    Verifier(probe.address).verify(digest, probe.sign(digest))


class VoucherKey:
    """The key of an account on the chain, hot or cold. Make one with `generate`, `from_secret` or `from_text`."""

    __slots__ = ("_key", "address")

    address: bytes
    """The account, 20 bytes."""

    def __init__(self, key: SecretKey) -> None:
        self._key = key
        self.address = _address_of(key.public)

    @classmethod
    def generate(cls) -> VoucherKey:
        """A new key, from the system's source of randomness."""
        return cls(_curve(None).secret_key((1 + secrets.randbelow(ORDER - 1)).to_bytes(SECRET_BYTES, "big")))

    @classmethod
    def from_secret(cls, secret: bytes, *, native: bool | None = None) -> VoucherKey:
        """The key of 32 secret bytes. Raises KeystoreInvalid, which does not show them.

        `native` says which library to use; None: libsecp256k1 where it is there.
        """
        if len(secret) != SECRET_BYTES or not 0 < int.from_bytes(secret, "big") < ORDER:
            raise KeystoreInvalid("no key has this secret", fix=_WHAT_A_SECRET_IS)
        return cls(_curve(native).secret_key(secret))

    @classmethod
    def from_text(cls, text: str) -> VoucherKey:
        """The key that a person or a variable of the environment gives. Raises KeystoreInvalid, without the text."""
        text = text.strip()
        if not _TEXT.fullmatch(text):
            raise KeystoreInvalid("the text is no secret key", fix=_WHAT_A_SECRET_IS)
        return cls.from_secret(bytes.fromhex(text[-2 * SECRET_BYTES :]))

    def sign(self, digest: bytes) -> bytes:
        """The signature of a digest of 32 bytes: 65 bytes, s low, v 27 or 28, with the nonce of RFC 6979."""
        if len(digest) != DIGEST_BYTES:
            raise ValueError(f"a digest has {DIGEST_BYTES} bytes")
        return self._key.sign(digest)

    def reveal(self) -> bytes:
        """The secret, 32 bytes: for a keystore and the file of the voucher key, and for nobody else."""
        return self._key.reveal()

    def __repr__(self) -> str:
        return f"VoucherKey({shown(self.address)})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret key is neither copied nor pickled")


class Verifier:
    """Checks what one account signs. Keep it as long as its channel: it remembers the key it found for the address.

    Until then, and for each signature of somebody else until then, a check takes 5 ms without libsecp256k1.
    """

    __slots__ = ("_curve", "_public", "address")

    def __init__(self, address: bytes, *, native: bool | None = None) -> None:
        if len(address) != ADDRESS_BYTES:
            raise ValueError(f"an address has {ADDRESS_BYTES} bytes")
        self.address = address
        self._curve = _curve(native)
        self._public: PublicKey | None = None

    def verify(self, digest: bytes, signature: bytes) -> bool:
        """Whether the account signed this digest, in a form that the chain takes. False for anything malformed."""
        found = parsed(signature)
        if found is None or len(digest) != DIGEST_BYTES:
            return False
        if self._public is not None:
            return self._public.has_signed(digest, found)
        public = self._curve.recovered(digest, found)
        if public is None or _address_of(public) != self.address:
            return False
        self._public = public
        return True


def recover(digest: bytes, signature: bytes, *, native: bool | None = None) -> bytes | None:
    """The address of whoever signed a digest of 32 bytes; None for a signature that the chain would not take."""
    found = parsed(signature)
    if found is None or len(digest) != DIGEST_BYTES:
        return None
    public = _curve(native).recovered(digest, found)
    return None if public is None else _address_of(public)


def is_wellformed(signature: bytes) -> bool:
    """Whether these are 65 bytes with numbers in their bounds, s low and v 27 or 28."""
    return parsed(signature) is not None


def _curve(wanted: bool | None) -> Curve:
    return NativeCurve() if (native() if wanted is None else wanted) else PortableCurve()


def _address_of(public: PublicKey) -> bytes:
    """The last 20 bytes of the hash of the point (Yellow Paper, appendix F)."""
    return keccak256(public.point)[-ADDRESS_BYTES:]
