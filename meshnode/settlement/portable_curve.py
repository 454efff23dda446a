"""secp256k1 from OpenSSL, by way of `cryptography`, for machines without libsecp256k1: below a millisecond a signature.

The secret number stays inside OpenSSL. OpenSSL does not say which of the two points with the x coordinate r was the
nonce's (the v of Ethereum), and does not check it either; `OpenSslPublicKey._leads_to` finds out with a second check.
Only to find a key that is not known yet do we need the arithmetic of eth-keys, in Python, once for each signer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256K1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    EllipticCurvePublicNumbers,
    derive_private_key,
)
from cryptography.hazmat.primitives.asymmetric.utils import (
    Prehashed,
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.hashes import SHA256

from meshnode.settlement.secp256k1 import FIELD, ORDER, POINT_BYTES, SECRET_BYTES, Signature

Point = tuple[int, int]

_G: Final[Point] = (
    0x79BE667E_F9DCBBAC_55A06295_CE870B07_029BFCDB_2DCE28D9_59F2815B_16F81798,
    0x483ADA77_26A3C465_5DA4FBFC_0E1108A8_FD17B448_A6855419_9C47D08F_FB10D4B8,
)
_TWO_G: Final[Point] = (
    0xC6047F94_41ED7D6D_3045406E_95C07CD8_5C778E4B_8CEF3CA7_ABAC09B9_5C709EE5,
    0x1AE168FE_A63DC339_A3C58419_466CEAEE_F7F63265_3266D0E1_236431A9_50CFE52A,
)
_CHECK: Final = ECDSA(Prehashed(SHA256()))
"""Digests are signed as they are; SHA-256 names their length, and the hash of RFC 6979."""


@dataclass(frozen=True, slots=True)
class OpenSslPublicKey:
    """A point of the curve, its 64 bytes, and what OpenSSL knows it as."""

    point: bytes
    _key: EllipticCurvePublicKey = field(repr=False, compare=False)

    def has_signed(self, digest: bytes, signature: Signature) -> bool:
        """Whether it made this signature, with this parity."""
        number = int.from_bytes(digest, "big")
        r, s = signature.r, signature.s
        return self._fits(r, s, digest) and self._leads_to(r, s, number, odd=signature.odd)

    def _fits(self, r: int, s: int, digest: bytes) -> bool:
        try:
            self._key.verify(encode_dss_signature(r, s), digest, _CHECK)
        except InvalidSignature:
            return False
        return True

    def _leads_to(self, r: int, s: int, number: int, *, odd: bool) -> bool:
        """Whether the nonce's point of a signature that fits is the one with x = r and this parity.

        A signature fits when T = (z/s) G + (r/s) Q has the x of r, so T is R or -R, with R the point in question. Check
        the made-up signature (r', s', z') with r' = x(R + hG), s' = r' s/r, z' = (z/s + h) s': for it OpenSSL computes
        (z'/s') G + (r'/s') Q = T + hG, and it fits when that is R + hG or its negative. T = -R would need -R + hG to be
        R + hG or -R - hG, so R = -R or hG = -hG, and there are no such points. h is 1, and 2 where R is G or -G, as
        those sums would be no sums of two different points.
        """
        lifted = _lifted(r, odd=odd)
        if lifted is None:
            return False
        h, offset = (2, _TWO_G) if lifted[0] == _G[0] else (1, _G)
        x = _x_of_sum(lifted, offset) % ORDER
        made_up_s = x * s * pow(r, -1, ORDER) % ORDER
        made_up_number = (number * pow(s, -1, ORDER) + h) * made_up_s % ORDER
        return bool(made_up_s) and self._fits(x, made_up_s, made_up_number.to_bytes(32, "big"))


@dataclass(frozen=True, slots=True)
class OpenSslSecretKey:
    """A key in OpenSSL's own object, whose repr says nothing."""

    _key: EllipticCurvePrivateKey = field(repr=False)
    public: OpenSslPublicKey

    def sign(self, digest: bytes) -> bytes:
        """The signature of 32 bytes. Before OpenSSL 3.2, which cannot do RFC 6979, its nonce is random."""
        try:
            der = self._key.sign(digest, ECDSA(Prehashed(SHA256()), deterministic_signing=True))
        except UnsupportedAlgorithm:
            der = self._key.sign(digest, _CHECK)
        r, s = decode_dss_signature(der)
        s = min(s, ORDER - s)
        odd = not self.public._leads_to(r, s, int.from_bytes(digest, "big"), odd=False)
        return Signature(r, s, odd).to_bytes()

    def reveal(self) -> bytes:
        """The secret number."""
        return self._key.private_numbers().private_value.to_bytes(SECRET_BYTES, "big")


class PortableCurve:
    """The curve by OpenSSL."""

    def secret_key(self, secret: bytes) -> OpenSslSecretKey:
        """The key of a secret number."""
        key = derive_private_key(int.from_bytes(secret, "big"), SECP256K1())
        numbers = key.public_key().public_numbers()
        point = numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
        return OpenSslSecretKey(key, OpenSslPublicKey(point, key.public_key()))

    def recovered(self, digest: bytes, signature: Signature) -> OpenSslPublicKey | None:
        """Whose signature this is, or None. Takes some milliseconds."""
        point = _recovered(digest, signature)
        x, y = int.from_bytes(point[:32], "big"), int.from_bytes(point[32:], "big")
        try:
            key = EllipticCurvePublicNumbers(x, y, SECP256K1()).public_key()
        except ValueError:
            return None
        return OpenSslPublicKey(point, key)


def _recovered(digest: bytes, signature: Signature) -> bytes:
    """The 64 bytes of the point; zeros, which are no point of the curve, where there is none."""
    from eth_keys.backends.native.main import NativeECCBackend
    from eth_keys.exceptions import BadSignature
    from eth_keys.main import KeyAPI

    api = KeyAPI(NativeECCBackend())
    try:
        found = api.ecdsa_recover(digest, api.Signature(vrs=(int(signature.odd), signature.r, signature.s)))
    except BadSignature:
        return bytes(POINT_BYTES)
    return bytes(found.to_bytes())


def _lifted(x: int, *, odd: bool) -> Point | None:
    """The point with this x and parity of y, if there is one."""
    square = (x * x * x + 7) % FIELD
    y = pow(square, (FIELD + 1) // 4, FIELD)
    if y * y % FIELD != square:
        return None
    return x, FIELD - y if y % 2 != odd else y


def _x_of_sum(one: Point, other: Point) -> int:
    """The x of the sum of two points of different x."""
    slope = (other[1] - one[1]) * pow(other[0] - one[0], -1, FIELD) % FIELD
    return (slope * slope - one[0] - other[0]) % FIELD
