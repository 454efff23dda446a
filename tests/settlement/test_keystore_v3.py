"""Keystores against eth-keyfile in both directions, the examples of the definition, and what a hostile file may say."""

import copy
import json
import traceback
from collections.abc import Callable
from typing import Any

import eth_keyfile
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import KeystoreInvalid, WrongPassword
from meshnode.settlement import keystore_v3
from meshnode.settlement.keys import VoucherKey
from meshnode.settlement.keystore_v3 import KDFS, Kdf, Pbkdf2, Scrypt, address_in, opened, sealed

SECRET = bytes.fromhex("7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d")
KEY = VoucherKey.from_secret(SECRET)
PASSWORD = "correct horse ⚡".encode()
CHEAP: list[Kdf] = [Scrypt(n=16), Pbkdf2(rounds=10)]

# The two examples of the Web3 Secret Storage Definition; their password is "testpassword", the secret the one above.
EXAMPLES: list[dict[str, Any]] = [
    {
        "crypto": {
            "cipher": "aes-128-ctr",
            "cipherparams": {"iv": "6087dab2f9fdbbfaddc31a909735c1e6"},
            "ciphertext": "5318b4d5bcd28de64ee5559e671353e16f075ecae9f99c7a79a38af5f869aa46",
            "kdf": "pbkdf2",
            "kdfparams": {
                "c": 262144,
                "dklen": 32,
                "prf": "hmac-sha256",
                "salt": "ae3cd4e7013836a3df6bd7241b12db061dbe2c6785853cce422d148a624ce0bd",
            },
            "mac": "517ead924a9d0dc3124507e3393d175ce3ff7c1e96529c6c555ce9e51205e9b2",
        },
        "id": "3198bc9c-6672-5ab3-d995-4942343ae5b6",
        "version": 3,
    },
    {
        "crypto": {
            "cipher": "aes-128-ctr",
            "cipherparams": {"iv": "83dbcc02d8ccb40e466191a123791e0e"},
            "ciphertext": "d172bf743a674da9cdad04534d56926ef8358534d458fffccd4e6ad2fbde479c",
            "kdf": "scrypt",
            "kdfparams": {
                "dklen": 32,
                "n": 262144,
                "p": 8,
                "r": 1,
                "salt": "ab0c7876052600dd703518d6fc3fe8984592145b591fc8fb5c6d43190334ba19",
            },
            "mac": "2103ac29920d71da29f15d75b4a16dbe95cfd7ff8faea1056c33131d846e3097",
        },
        "id": "3198bc9c-6672-5ab3-d995-4942343ae5b6",
        "version": 3,
    },
]


@pytest.mark.parametrize("example", EXAMPLES, ids=["pbkdf2", "scrypt"])
def test_the_examples_of_the_definition(example: dict[str, Any]) -> None:
    text = json.dumps(example)
    assert opened(text, b"testpassword").reveal() == SECRET
    assert address_in(text) is None


@pytest.mark.parametrize("kdf", CHEAP, ids=["scrypt", "pbkdf2"])
def test_there_and_back(kdf: Kdf) -> None:
    text = sealed(KEY, PASSWORD, kdf)
    assert opened(text, PASSWORD).reveal() == SECRET
    assert opened(text.encode(), PASSWORD).address == KEY.address
    assert address_in(text) == KEY.address
    assert SECRET.hex() not in text.lower()
    assert sealed(KEY, PASSWORD, kdf) != text  # its own salt and iv


@pytest.mark.parametrize("kdf", CHEAP, ids=["scrypt", "pbkdf2"])
def test_another_tool_opens_ours(kdf: Kdf) -> None:
    assert eth_keyfile.decode_keyfile_json(json.loads(sealed(KEY, PASSWORD, kdf)), PASSWORD) == SECRET


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 2**250).map(lambda number: number.to_bytes(32, "big")),
    st.text(max_size=20).map(str.encode),
    st.sampled_from([("scrypt", 16), ("pbkdf2", 3)]),
)
def test_we_open_those_of_another_tool(secret: bytes, password: bytes, kdf: tuple[str, int]) -> None:
    name, cost = kdf
    theirs = eth_keyfile.create_keyfile_json(secret, password, kdf=name, iterations=cost)  # type: ignore[arg-type]
    assert opened(json.dumps(theirs), password).reveal() == secret
    assert address_in(json.dumps(theirs)) == VoucherKey.from_secret(secret).address


def test_any_case_and_prefix() -> None:
    plain = json.loads(sealed(KEY, PASSWORD, CHEAP[1]))
    crypto = plain["crypto"]
    crypto |= {"ciphertext": crypto["ciphertext"].upper(), "mac": "0x" + crypto["mac"].upper()}
    crypto["kdfparams"]["salt"] = "0X" + crypto["kdfparams"]["salt"]
    crypto["CipherParams"] = crypto.pop("cipherparams")
    old = {"Crypto": crypto, "Version": 3, "ID": "x", "address": "0x" + KEY.address.hex().upper(), "more": [None]}
    assert opened(json.dumps(old), PASSWORD).reveal() == SECRET
    assert address_in(json.dumps(old)) == KEY.address


@pytest.mark.parametrize("named", [None, ""])
def test_a_file_that_names_no_address(named: str | None) -> None:
    plain = json.loads(sealed(KEY, PASSWORD, CHEAP[1]))
    plain["address"] = named
    assert address_in(json.dumps(plain)) is None
    assert opened(json.dumps(plain), PASSWORD).address == KEY.address


def test_a_longer_derived_key_has_the_same_beginning() -> None:
    plain = json.loads(sealed(KEY, PASSWORD, CHEAP[0]))
    plain["crypto"]["kdfparams"]["dklen"] = 64
    assert opened(json.dumps(plain), PASSWORD).reveal() == SECRET
    assert eth_keyfile.decode_keyfile_json(plain, PASSWORD) == SECRET


def test_zeros_that_old_wallets_left_out() -> None:
    short = bytes(range(1, 31))
    plain = json.loads(sealed(KEY, PASSWORD, CHEAP[1]))
    crypto = plain["crypto"]
    derived = keystore_v3._derived(CHEAP[1], PASSWORD, bytes.fromhex(crypto["kdfparams"]["salt"]))
    locked = keystore_v3._ctr(derived, bytes.fromhex(crypto["cipherparams"]["iv"]), short)
    crypto |= {"ciphertext": locked.hex(), "mac": keystore_v3._mac(derived, locked).hex()}
    del plain["address"]
    assert opened(json.dumps(plain), PASSWORD).reveal() == b"\0\0" + short


@pytest.mark.parametrize("kdf", CHEAP, ids=["scrypt", "pbkdf2"])
@pytest.mark.parametrize("wrong", [b"", PASSWORD + b" ", PASSWORD.upper(), "correct horse \U0001f40e".encode()])
def test_a_wrong_password_is_said_to_be_wrong(kdf: Kdf, wrong: bytes) -> None:
    with pytest.raises(WrongPassword) as caught:
        opened(sealed(KEY, PASSWORD, kdf), wrong)
    told = "".join(traceback.format_exception(caught.value))
    assert SECRET.hex() not in told
    assert not wrong or wrong.decode() not in told


def test_every_beginning_of_a_file_is_refused() -> None:
    text = sealed(KEY, PASSWORD, CHEAP[1]).rstrip()
    for size in range(len(text)):
        with pytest.raises(KeystoreInvalid):
            opened(text[:size], PASSWORD)
        with pytest.raises(KeystoreInvalid):
            address_in(text[:size])


Change = Callable[[dict[str, Any]], Any]


def put(*path: Any) -> Change:
    """A change that puts the last of `path` at the place the others name."""

    def change(plain: dict[str, Any]) -> None:
        for name in path[:-2]:
            plain = plain[name]
        plain[path[-2]] = path[-1]

    return change


SCRYPT: dict[str, Change] = {
    "no version": put("version", None),
    "version 1": put("version", 1),
    "version 4": put("version", 4),
    "version as text": put("version", "3"),
    "no crypto": put("crypto", None),
    "crypto as list": put("crypto", []),
    "another cipher": put("crypto", "cipher", "aes-256-gcm"),
    "no iv": put("crypto", "cipherparams", {}),
    "short iv": put("crypto", "cipherparams", "iv", "00"),
    "odd iv": put("crypto", "cipherparams", "iv", "0" * 31),
    "iv no text": put("crypto", "cipherparams", "iv", 7),
    "no ciphertext": put("crypto", "ciphertext", ""),
    "long ciphertext": put("crypto", "ciphertext", "00" * 33),
    "ciphertext no hex": put("crypto", "ciphertext", "zz"),
    "short mac": put("crypto", "mac", "00" * 31),
    "no mac": put("crypto", "mac", None),
    "another kdf": put("crypto", "kdf", "argon2id"),
    "kdf as list": put("crypto", "kdf", ["scrypt"]),
    "no kdfparams": put("crypto", "kdfparams", None),
    "salt no text": put("crypto", "kdfparams", "salt", None),
    "salt no hex": put("crypto", "kdfparams", "salt", "0g"),
    "long salt": put("crypto", "kdfparams", "salt", "00" * 257),
    "short dklen": put("crypto", "kdfparams", "dklen", 31),
    "long dklen": put("crypto", "kdfparams", "dklen", 2**31),
    "dklen as text": put("crypto", "kdfparams", "dklen", "32"),
    "n of 0": put("crypto", "kdfparams", "n", 0),
    "n of 1": put("crypto", "kdfparams", "n", 1),
    "negative n": put("crypto", "kdfparams", "n", -16),
    "n no power of two": put("crypto", "kdfparams", "n", 17),
    "n true": put("crypto", "kdfparams", "n", True),
    "n a fraction": put("crypto", "kdfparams", "n", 16.0),
    "2 GB": put("crypto", "kdfparams", "n", 2**21),
    "n without end": put("crypto", "kdfparams", "n", 2**900),
    "r without end": put("crypto", "kdfparams", "r", 2**24),
    "r of 65": put("crypto", "kdfparams", "r", 65),
    "p of 65": put("crypto", "kdfparams", "p", 65),
    "r of 0": put("crypto", "kdfparams", "r", 0),
    "p without end": put("crypto", "kdfparams", "p", 2**24),
    "bad address": put("address", "0x12"),
    "address no text": put("address", 12),
}
PBKDF2: dict[str, Change] = {
    "rounds of 0": put("crypto", "kdfparams", "c", 0),
    "rounds without end": put("crypto", "kdfparams", "c", 2**40),
    "another prf": put("crypto", "kdfparams", "prf", "hmac-sha512"),
    "no prf": put("crypto", "kdfparams", "prf", None),
}
CASES = [(CHEAP[0], name, change) for name, change in SCRYPT.items()]
CASES += [(CHEAP[1], name, change) for name, change in PBKDF2.items()]
SEALED = {kdf: json.loads(sealed(KEY, PASSWORD, kdf)) for kdf in CHEAP}


@pytest.mark.parametrize(("kdf", "name", "change"), CASES, ids=[name for _, name, _ in CASES])
def test_what_no_keystore_says(kdf: Kdf, name: str, change: Change) -> None:
    plain = copy.deepcopy(SEALED[kdf])
    change(plain)
    with pytest.raises(KeystoreInvalid) as caught:
        opened(json.dumps(plain), PASSWORD)
    assert SECRET.hex() not in caught.value.message and len(caught.value.message) < 200


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "3",
        "null",
        '"x"',
        b"\xff\xfe",
        json.dumps(EXAMPLES[0]).encode("utf-16"),
        "[" * 10_000,
        " " * 16_385,
        "{}",
        '{"version":3}',
    ],
    ids=lambda text: repr(text[:8]),
)
def test_other_texts(text: str | bytes) -> None:
    with pytest.raises(KeystoreInvalid):
        opened(text, PASSWORD)


def test_a_damaged_iv_is_noticed_by_the_address() -> None:
    """It is not covered by the proof of the password: without the address, another key would come out."""
    plain = copy.deepcopy(SEALED[CHEAP[1]])
    plain["crypto"]["cipherparams"]["iv"] = "00" * 16
    with pytest.raises(KeystoreInvalid, match="its key is that of"):
        opened(json.dumps(plain), PASSWORD)


def test_memory_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def scrypt(*_: Any) -> bytes:
        raise ValueError("Error 2 while running scrypt")

    monkeypatch.setattr("Crypto.Protocol.KDF.scrypt", scrypt)
    with pytest.raises(KeystoreInvalid, match="256 MB") as caught:
        sealed(KEY, PASSWORD, KDFS["scrypt"])
    assert "pbkdf2" in caught.value.fix


def test_what_people_choose_from_costs_what_others_ask_for() -> None:
    scrypt, pbkdf2 = KDFS["scrypt"], KDFS["pbkdf2"]
    assert isinstance(scrypt, Scrypt) and 128 * scrypt.n * scrypt.r == 256 << 20
    assert isinstance(pbkdf2, Pbkdf2) and pbkdf2.rounds >= 600_000
