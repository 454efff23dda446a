import copy
import io
import logging
import pickle
import subprocess
import sys
import traceback
from collections.abc import Iterator

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import KeystoreInvalid
from meshnode.settlement import keys
from meshnode.settlement.addresses import shown
from meshnode.settlement.keys import Verifier, VoucherKey, is_wellformed, recover
from meshnode.settlement.secp256k1 import ORDER, Signature, parsed
from meshnode.settlement.typed_data import voucher_digest

SECRET = bytes.fromhex("4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318")
ADDRESS = "0x2c7536E3605D9C16a7a3D7b1898e529396a65c23"
DIGEST = bytes(range(32))
HUB = bytes.fromhex("4020074e9dF2ce1deE5A9C1b5c3f541D02a10003")

SECRETS = st.integers(1, ORDER - 1).map(lambda number: number.to_bytes(32, "big"))
DIGESTS = st.binary(min_size=32, max_size=32)


@pytest.fixture(params=[True, False], ids=["libsecp256k1", "OpenSSL"])
def native(request: pytest.FixtureRequest) -> bool:
    if request.param:
        pytest.importorskip("coincurve")
    return bool(request.param)


def test_the_address_that_others_give_it(native: bool) -> None:
    assert shown(VoucherKey.from_secret(SECRET, native=native).address) == ADDRESS
    assert Account.from_key(SECRET).address == ADDRESS


@settings(max_examples=25, deadline=None)
@given(SECRETS, st.binary(min_size=32, max_size=32), st.integers(0, 2**128 - 1), st.booleans())
def test_a_voucher_is_the_one_that_eth_account_signs(secret: bytes, channel: bytes, cum: int, native: bool) -> None:
    types = {"Voucher": [{"name": "channelId", "type": "bytes32"}, {"name": "maxClaimableAmount", "type": "uint128"}]}
    domain = {"name": "x402 Batch Settlement", "version": "1", "chainId": 84532, "verifyingContract": shown(HUB)}
    signable = encode_typed_data(domain, types, {"channelId": channel, "maxClaimableAmount": cum})
    theirs = Account.sign_message(signable, secret)
    key = VoucherKey.from_secret(secret, native=native and keys.native())
    digest = voucher_digest(channel, cum, 84532, HUB)
    assert bytes(theirs.message_hash) == digest
    assert key.sign(digest) == bytes(theirs.signature)
    assert Verifier(key.address, native=native and keys.native()).verify(digest, bytes(theirs.signature))


def test_a_signature_has_the_form_that_contracts_take(native: bool) -> None:
    key = VoucherKey.from_secret(SECRET, native=native)
    parities = set()
    for number in range(24):
        signature = key.sign(number.to_bytes(32, "big"))
        assert len(signature) == 65 and is_wellformed(signature)
        assert int.from_bytes(signature[32:64], "big") <= ORDER // 2
        assert signature == key.sign(number.to_bytes(32, "big"))
        parities.add(signature[64])
    assert parities == {27, 28}


def forgeries(key: VoucherKey, digest: bytes) -> Iterator[tuple[str, bytes]]:
    """What a verifier must not take for a signature of `digest`."""
    good = key.sign(digest)
    signature = parsed(good)
    assert signature is not None
    yield "nothing", b""
    yield "cut", good[:64]
    yield "longer", good + b"\0"
    yield "v of 0 or 1", good[:64] + bytes([good[64] - 27])
    yield "v of EIP-155", good[:64] + bytes([good[64] + 10])
    yield "the other v", good[:64] + bytes([55 - good[64]])
    high_s = (ORDER - signature.s).to_bytes(32, "big")
    yield "high s with its v", good[:32] + high_s + bytes([55 - good[64]])
    yield "high s", good[:32] + high_s + good[64:]
    yield "r of zero", bytes(32) + good[32:]
    yield "zeros", bytes(65)
    yield "ones", b"\xff" * 65
    yield "another r", Signature(signature.r ^ 1, signature.s, signature.odd).to_bytes()
    yield "another s", Signature(signature.r, signature.s ^ 1, signature.odd).to_bytes()
    yield "of another digest", key.sign(digest[::-1])
    yield "of another key", VoucherKey.from_secret(b"\x01" * 32).sign(digest)


@pytest.mark.parametrize("known", [False, True], ids=["unknown key", "known key"])
def test_forgeries(native: bool, known: bool) -> None:
    """Before the public key is known it is found from the signature; afterwards it is checked against it."""
    key = VoucherKey.from_secret(SECRET, native=native)
    for name, forged in forgeries(key, DIGEST):
        verifier = Verifier(key.address, native=native)
        if known:
            assert verifier.verify(DIGEST, key.sign(DIGEST))
        assert not verifier.verify(DIGEST, forged), name
        assert recover(DIGEST, forged, native=native) != key.address, name
        assert verifier.verify(DIGEST, key.sign(DIGEST)), f"after {name}"


@pytest.mark.parametrize("known", [False, True], ids=["unknown key", "known key"])
@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_digest_of_another_length(native: bool, known: bool, size: int) -> None:
    key = VoucherKey.from_secret(SECRET, native=native)
    verifier = Verifier(key.address, native=native)
    signature = key.sign(DIGEST)
    if known:
        assert verifier.verify(DIGEST, signature)
    assert not verifier.verify(bytes(size), signature)
    assert recover(bytes(size), signature, native=native) is None
    with pytest.raises(ValueError, match="32 bytes"):
        key.sign(bytes(size))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=70) | st.binary(min_size=65, max_size=65), DIGESTS, st.booleans())
def test_no_bytes_make_a_verifier_fail(signature: bytes, digest: bytes, native: bool) -> None:
    native = native and keys.native()
    assert Verifier(b"\x01" * 20, native=native).verify(digest, signature) is False
    found = recover(digest, signature, native=native)
    assert found is None or len(found) == 20


@settings(max_examples=25, deadline=None)
@given(st.integers(1, ORDER - 1), st.integers(1, ORDER // 2), st.booleans(), DIGESTS)
def test_both_libraries_find_the_same_signer(r: int, s: int, odd: bool, digest: bytes) -> None:
    pytest.importorskip("coincurve")
    signature = Signature(r, s, odd).to_bytes()
    assert recover(digest, signature, native=True) == recover(digest, signature, native=False)


def test_an_address_that_belongs_to_no_key(native: bool) -> None:
    """The hash of the point at infinity has the form of an address, and the chain recovers it from nothing."""
    g_x = 0x79BE667EF9DCBBAC55A06295CE870B07029BFCDB2DCE28D959F2815B16F81798
    infinity = bytes.fromhex("3f17f1962b36e491b30a40b2405849e597ba5fb5")
    number = int.from_bytes(DIGEST, "big")
    assert number <= ORDER // 2
    assert not Verifier(infinity, native=native).verify(DIGEST, Signature(g_x, number, False).to_bytes())


def test_generated_keys_differ() -> None:
    assert len({VoucherKey.generate().address for _ in range(8)}) == 8


@pytest.mark.parametrize(
    "secret", [b"", SECRET[1:], SECRET + b"\0", bytes(32), ORDER.to_bytes(32, "big"), b"\xff" * 32]
)
def test_secrets_of_no_key(secret: bytes, native: bool) -> None:
    with pytest.raises(KeystoreInvalid) as caught:
        VoucherKey.from_secret(secret, native=native)
    assert secret.hex() not in caught.value.message or not secret
    assert caught.value.__cause__ is None and caught.value.__context__ is None


@pytest.mark.parametrize("text", [SECRET.hex(), "0x" + SECRET.hex(), SECRET.hex().upper(), f" 0X{SECRET.hex()}\n"])
def test_a_key_as_text(text: str) -> None:
    assert shown(VoucherKey.from_text(text).address) == ADDRESS


@pytest.mark.parametrize("text", ["", "0x", SECRET.hex()[1:], SECRET.hex() + "0", SECRET.hex()[:-1] + "g", "0" * 64])
def test_a_text_that_is_no_key_is_not_repeated(text: str) -> None:
    with pytest.raises(KeystoreInvalid) as caught:
        VoucherKey.from_text(text)
    told = "".join(traceback.format_exception(caught.value)) + caught.value.fix
    assert len(text) < 8 or text not in told
    assert SECRET.hex()[1:40] not in told


def test_the_secret_is_shown_nowhere(native: bool) -> None:
    key = VoucherKey.from_secret(SECRET, native=native)
    stream = io.StringIO()
    log = logging.Logger("money")
    log.addHandler(logging.StreamHandler(stream))
    log.warning("%s %r %s", key, key, [key])
    try:
        key.sign(b"too short")
    except ValueError as error:
        told = traceback.TracebackException.from_exception(error, capture_locals=True)
        log.exception("signing failed")
    texts = [stream.getvalue(), "".join(told.format()), repr(key), str(key), f"{key}", repr(key._key)]
    for text in texts:
        for form in (SECRET.hex(), repr(SECRET), str(int.from_bytes(SECRET, "big")), repr(list(SECRET))):
            assert form not in text and form.upper() not in text
    assert repr(key) == f"VoucherKey({ADDRESS})"
    assert key.reveal() == SECRET


def test_a_key_is_neither_copied_nor_pickled(native: bool) -> None:
    key = VoucherKey.from_secret(SECRET, native=native)
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="neither copied nor pickled"):
            attempt(key)
    assert not hasattr(key, "__dict__")


def test_a_verifier_wants_an_address() -> None:
    with pytest.raises(ValueError, match="20 bytes"):
        Verifier(bytes(32))


def test_nothing_is_imported_before_it_is_used() -> None:
    """In a process of its own; `prepare` then has what signing and checking need."""
    code = """
import sys
import meshnode.settlement.keys, meshnode.settlement.typed_data, meshnode.settlement.raw_transactions
late = ("Crypto", "coincurve", "eth_keys", "eth_account", "eth_utils", "rlp", "web3")
assert not set(late) & set(sys.modules), sorted(set(late) & set(sys.modules))
meshnode.settlement.keys.prepare()
before = set(sys.modules)
key = meshnode.settlement.keys.VoucherKey.generate()
assert meshnode.settlement.keys.Verifier(key.address).verify(bytes(32), key.sign(bytes(32)))
print(sorted(name for name in set(sys.modules) - before if not name.startswith("_")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
