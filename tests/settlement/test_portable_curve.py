"""OpenSSL against two other hands: eth-keys, and libsecp256k1 where it is there."""

from typing import Any

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from eth_keys.backends.native import NativeECCBackend
from eth_keys.main import KeyAPI
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.settlement.native_curve import NativeCurve
from meshnode.settlement.portable_curve import OpenSslSecretKey, PortableCurve, _lifted
from meshnode.settlement.secp256k1 import FIELD, ORDER, Signature, parsed

SECRETS = st.integers(1, ORDER - 1).map(lambda number: number.to_bytes(32, "big"))
DIGESTS = st.binary(min_size=32, max_size=32)
G_X = 0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798
G_Y = 0x483ADA7726A3C4655DA4FBFC0E1108A8FD17B448A68554199C47D08FFB10D4B8
ETH_KEYS = KeyAPI(NativeECCBackend())


@settings(max_examples=40, deadline=None)
@given(SECRETS, DIGESTS)
def test_signatures_are_those_of_eth_keys(secret: bytes, digest: bytes) -> None:
    """RFC 6979 leaves no choice, so all who follow it make the same bytes."""
    key = PortableCurve().secret_key(secret)
    theirs = ETH_KEYS.ecdsa_sign(digest, ETH_KEYS.PrivateKey(secret)).to_bytes()
    signature = key.sign(digest)
    assert signature[:64] == theirs[:64] and signature[64] == theirs[64] + 27
    assert key.public.point == ETH_KEYS.PrivateKey(secret).public_key.to_bytes()
    assert key.reveal() == secret


@settings(max_examples=60, deadline=None)
@given(SECRETS, DIGESTS)
def test_signatures_are_those_of_libsecp256k1(secret: bytes, digest: bytes) -> None:
    pytest.importorskip("coincurve")
    native, portable = NativeCurve().secret_key(secret), PortableCurve().secret_key(secret)
    assert native.sign(digest) == portable.sign(digest)
    assert native.public.point == portable.public.point


@settings(max_examples=60, deadline=None)
@given(SECRETS, DIGESTS, DIGESTS)
def test_only_the_whole_signature_is_taken(secret: bytes, digest: bytes, other: bytes) -> None:
    key = PortableCurve().secret_key(secret)
    good = parsed(key.sign(digest))
    assert good is not None
    assert key.public.has_signed(digest, good)
    assert not key.public.has_signed(digest, Signature(good.r, good.s, not good.odd))
    # What a wallet of another kind would take: the other s goes with the other parity.
    assert key.public.has_signed(digest, Signature(good.r, ORDER - good.s, not good.odd))
    assert not key.public.has_signed(digest, Signature(good.r, ORDER - good.s, good.odd))
    if other != digest:
        assert not key.public.has_signed(other, good)


@settings(max_examples=40, deadline=None)
@given(SECRETS, DIGESTS, st.integers(1, 3), st.booleans())
def test_nonces_that_nobody_draws(secret: bytes, digest: bytes, nonce: int, odd: bool) -> None:
    """A payer may choose its nonce; 1 and -1 have the x of the point that is added in the check of v."""
    x = {1: G_X, 2: _double(G_X, G_Y)[0], 3: _added(_double(G_X, G_Y), (G_X, G_Y))[0]}[nonce]
    number, private = int.from_bytes(digest, "big"), int.from_bytes(secret, "big")
    s = pow(nonce, -1, ORDER) * (number + x * private) % ORDER
    if not s:
        return
    public = PortableCurve().secret_key(secret).public
    truth = PortableCurve().recovered(digest, Signature(x, s, odd))
    assert public.has_signed(digest, Signature(x, s, odd)) == (truth == public)


@settings(max_examples=15, deadline=None)
@given(SECRETS, DIGESTS, st.booleans())
def test_whose_signature_it_is(secret: bytes, digest: bytes, turned: bool) -> None:
    key = PortableCurve().secret_key(secret)
    good = parsed(key.sign(digest))
    assert good is not None
    found = PortableCurve().recovered(digest, Signature(good.r, good.s, good.odd != turned))
    assert (found == key.public) is not turned


def test_a_signature_of_nobody() -> None:
    """No point has the x 5, and a nonce of 1 with s = z leads to the point at infinity, whose hash is an address."""
    digest = bytes(range(32))
    assert PortableCurve().recovered(digest, Signature(5, 1, False)) is None
    assert PortableCurve().recovered(digest, Signature(G_X, int.from_bytes(digest, "big"), False)) is None
    assert PortableCurve().secret_key(digest).public.has_signed(digest, Signature(5, 1, False)) is False


@given(st.integers(0, FIELD - 1), st.booleans())
def test_a_lifted_point_is_on_the_curve(x: int, odd: bool) -> None:
    point = _lifted(x, odd=odd)
    is_square = pow(x**3 + 7, (FIELD - 1) // 2, FIELD) == 1
    assert (point is not None) is is_square
    if point is not None:
        assert point[0] == x and point[1] % 2 == odd and (point[1] ** 2 - x**3 - 7) % FIELD == 0


def test_an_older_openssl_signs_with_random_nonces() -> None:
    key = PortableCurve().secret_key(bytes(31) + b"\x05")
    older = OpenSslSecretKey(_Older(key._key), key.public)  # type: ignore[arg-type]
    digest = bytes(range(32))
    signatures = {older.sign(digest) for _ in range(4)}
    assert len(signatures) == 4
    for signature in signatures:
        found = parsed(signature)
        assert found is not None and key.public.has_signed(digest, found)


class _Older:
    """OpenSSL before 3.2, as `cryptography` shows it."""

    def __init__(self, key: Any) -> None:
        self._key = key

    def sign(self, digest: bytes, algorithm: Any) -> bytes:
        if algorithm.deterministic_signing:
            raise UnsupportedAlgorithm("not by this version")
        return bytes(self._key.sign(digest, algorithm))


def test_the_secret_is_in_no_repr() -> None:
    secret = (0xABCDEF1234567).to_bytes(32, "big")
    shown = repr(PortableCurve().secret_key(secret))
    assert secret.hex() not in shown and str(0xABCDEF1234567) not in shown


def _added(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    slope = (other[1] - one[1]) * pow(other[0] - one[0], -1, FIELD) % FIELD
    x = (slope * slope - one[0] - other[0]) % FIELD
    return x, (slope * (one[0] - x) - one[1]) % FIELD


def _double(x: int, y: int) -> tuple[int, int]:
    slope = 3 * x * x * pow(2 * y, -1, FIELD) % FIELD
    doubled = (slope * slope - 2 * x) % FIELD
    return doubled, (slope * (x - doubled) - y) % FIELD
