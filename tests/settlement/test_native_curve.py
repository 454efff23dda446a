import sys

import pytest

from meshnode.settlement import native_curve
from meshnode.settlement.native_curve import NativeCurve
from meshnode.settlement.secp256k1 import ORDER, Signature, parsed

SECRET = (12345).to_bytes(32, "big")
DIGEST = bytes(range(32))


@pytest.fixture(autouse=True)
def library() -> None:
    pytest.importorskip("coincurve")


def test_a_key_signs_and_is_found_again() -> None:
    key = NativeCurve().secret_key(SECRET)
    signature = parsed(key.sign(DIGEST))
    assert signature is not None
    assert NativeCurve().recovered(DIGEST, signature) == key.public
    assert key.public.has_signed(DIGEST, signature)
    assert not key.public.has_signed(DIGEST[::-1], signature)
    assert not key.public.has_signed(DIGEST, Signature(signature.r, signature.s, not signature.odd))
    assert key.reveal() == SECRET


def test_a_signature_of_nobody() -> None:
    """No point has the x 5, and a nonce of 1 with s = z leads to the point at infinity."""
    g_x = 0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798
    assert NativeCurve().recovered(DIGEST, Signature(5, 1, False)) is None
    assert NativeCurve().recovered(DIGEST, Signature(g_x, int.from_bytes(DIGEST, "big"), False)) is None


def test_the_greatest_secret() -> None:
    secret = (ORDER - 1).to_bytes(32, "big")
    assert NativeCurve().secret_key(secret).reveal() == secret


def test_the_secret_is_in_no_repr() -> None:
    key = NativeCurve().secret_key(SECRET)
    assert str(12345) not in repr(key) and SECRET.hex() not in repr(key)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    native_curve.library.cache_clear()
    monkeypatch.setitem(sys.modules, "coincurve", None)
    try:
        assert native_curve.library() is None
        with pytest.raises(ImportError):
            NativeCurve().secret_key(SECRET)
    finally:
        native_curve.library.cache_clear()
