"""One secret key as JSON text, locked with a password: the Web3 Secret Storage Definition, version 3.

geth, foundry, ethers and most wallets read and write it. The password becomes a key (scrypt, RFC 7914, or PBKDF2, RFC
8018), half of which locks the secret (AES-128-CTR) while the other half proves the password (a Keccak-256 over it and
the locked secret). Member names come in any case, hexadecimal digits too, the address with or without 0x or not at all.

A file of a stranger may ask for any amount of memory and time: what no wallet asks for is refused. Deriving the key
takes 0.2 to 0.9 s and, with scrypt, 256 MB, without Python's lock: callers of an event loop use a thread.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import uuid
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from meshnode.errors import KeystoreInvalid, WrongPassword
from meshnode.settlement.addresses import ADDRESS_BYTES, shown
from meshnode.settlement.keccak import DIGEST_BYTES, keccak256
from meshnode.settlement.keys import VoucherKey
from meshnode.settlement.secp256k1 import SECRET_BYTES

MOST_TEXT_BYTES = 16_384
MOST_MEMORY_BYTES = 1 << 30
MOST_WORK = 1 << 24
"""n * r * p of scrypt: eight times what geth asks for, some seconds."""
MOST_FACTOR = 64
"""r and p of scrypt: eight times what any wallet asks for."""
MOST_ROUNDS = 20_000_000
"""Of PBKDF2; some seconds as well."""
DERIVED_BYTES = 32
SALT_BYTES = 32
MOST_SALT_BYTES = 256
IV_BYTES = 16
CIPHER = "aes-128-ctr"
SUBSTANCE = "hmac-sha256"
_HALF = DERIVED_BYTES // 2


@dataclass(frozen=True, slots=True)
class Scrypt:
    """scrypt (RFC 7914) with geth's cost: 128 * n * r bytes of memory, which is 256 MB."""

    n: int = 1 << 18
    r: int = 8
    p: int = 1


@dataclass(frozen=True, slots=True)
class Pbkdf2:
    """PBKDF2 with HMAC-SHA-256, for machines that cannot spare the memory: guessing passwords is cheaper then."""

    rounds: int = 1_000_000


Kdf = Scrypt | Pbkdf2
KDFS: Final[dict[str, Kdf]] = {"scrypt": Scrypt(), "pbkdf2": Pbkdf2()}
"""By the names that people choose from."""


def sealed(key: VoucherKey, password: bytes, kdf: Kdf = KDFS["scrypt"]) -> str:
    """The text that opens with `password`. Raises KeystoreInvalid where the memory is not there."""
    salt, initial = secrets.token_bytes(SALT_BYTES), secrets.token_bytes(IV_BYTES)
    derived = _derived(kdf, password, salt)
    locked = _ctr(derived, initial, key.reveal())
    asked: dict[str, int | str] = {"dklen": DERIVED_BYTES, "salt": salt.hex()}
    if isinstance(kdf, Scrypt):
        asked |= {"n": kdf.n, "r": kdf.r, "p": kdf.p}
    else:
        asked |= {"c": kdf.rounds, "prf": SUBSTANCE}
    plain = {
        "version": 3,
        "id": str(uuid.uuid4()),
        "address": key.address.hex(),
        "crypto": {
            "cipher": CIPHER,
            "cipherparams": {"iv": initial.hex()},
            "ciphertext": locked.hex(),
            "kdf": "scrypt" if isinstance(kdf, Scrypt) else "pbkdf2",
            "kdfparams": asked,
            "mac": _mac(derived, locked).hex(),
        },
    }
    return json.dumps(plain, indent=1) + "\n"


def opened(text: str | bytes, password: bytes) -> VoucherKey:
    """The key in a text. Raises WrongPassword, and KeystoreInvalid for what is no such text or asks for too much."""
    plain = _parsed(text)
    crypto = _map(plain, "crypto")
    if crypto.get("cipher") != CIPHER:
        raise KeystoreInvalid(f"its cipher is not {CIPHER}")
    locked = _hex(crypto, "ciphertext", 1, SECRET_BYTES)
    initial = _hex(_map(crypto, "cipherparams"), "iv", IV_BYTES, IV_BYTES)
    expected = _hex(crypto, "mac", DIGEST_BYTES, DIGEST_BYTES)
    derived = _derived(*_asked(crypto, password))
    if not hmac.compare_digest(_mac(derived, locked), expected):
        raise WrongPassword("or the file is damaged")
    # Some old wallets left out the zeros at the beginning.
    key = VoucherKey.from_secret(_ctr(derived, initial, locked).rjust(SECRET_BYTES, b"\0"))
    address = _address(plain)
    if address is not None and address != key.address:
        # The proof of the password does not cover `iv`, with which another secret comes out.
        raise KeystoreInvalid(f"it says {shown(address)}, but its key is that of {shown(key.address)}")
    return key


def address_in(text: str | bytes) -> bytes | None:
    """The address that a text names, without the password; None where it names none. Raises KeystoreInvalid."""
    return _address(_parsed(text))


def _parsed(text: str | bytes) -> dict[str, Any]:
    if len(text) > MOST_TEXT_BYTES:
        raise KeystoreInvalid(f"it has more than {MOST_TEXT_BYTES} bytes")
    try:
        plain = json.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except (ValueError, RecursionError):
        raise KeystoreInvalid("it is no JSON text, or is cut off") from None
    if not isinstance(plain, dict):
        raise KeystoreInvalid("it is no JSON object")
    plain = {str(name).lower(): value for name, value in plain.items()}
    if plain.get("version") != 3:
        raise KeystoreInvalid("its version is not 3")
    return plain


def _map(plain: dict[str, Any], name: str) -> dict[str, Any]:
    value = plain.get(name)
    if not isinstance(value, dict):
        raise KeystoreInvalid(f"it has no {name}")
    return {str(inner).lower(): item for inner, item in value.items()}


def _hex(plain: dict[str, Any], name: str, least: int, most: int) -> bytes:
    value = plain.get(name)
    try:
        found = bytes.fromhex(value.removeprefix("0x").removeprefix("0X")) if isinstance(value, str) else None
    except ValueError:
        found = None
    if found is None or not least <= len(found) <= most:
        raise KeystoreInvalid(f"its {name} is not {least} to {most} bytes in hexadecimal digits")
    return found


def _number(plain: dict[str, Any], name: str, most: int) -> int:
    value = plain.get(name)
    if type(value) is not int or not 1 <= value <= most:
        raise KeystoreInvalid(f"its {name} is not a number from 1 to {most}")
    return value


def _address(plain: dict[str, Any]) -> bytes | None:
    if plain.get("address") in (None, ""):
        return None
    return _hex(plain, "address", ADDRESS_BYTES, ADDRESS_BYTES)


def _asked(crypto: dict[str, Any], password: bytes) -> tuple[Kdf, bytes, bytes]:
    """What a text asks for, within bounds, with the password and its salt."""
    asked = _map(crypto, "kdfparams")
    salt = _hex(asked, "salt", 0, MOST_SALT_BYTES)
    # More is derived by some, but only the first 32 bytes are used; all of them have the same beginning.
    if _number(asked, "dklen", 64) < DERIVED_BYTES:
        raise KeystoreInvalid(f"its dklen is below {DERIVED_BYTES}")
    name = crypto.get("kdf")
    if name == "pbkdf2":
        if asked.get("prf") != SUBSTANCE:
            raise KeystoreInvalid(f"its prf is not {SUBSTANCE}")
        return Pbkdf2(_number(asked, "c", MOST_ROUNDS)), password, salt
    if name != "scrypt":
        raise KeystoreInvalid("its kdf is neither scrypt nor pbkdf2")
    n, r, p = _number(asked, "n", MOST_WORK), _number(asked, "r", MOST_FACTOR), _number(asked, "p", MOST_FACTOR)
    if n < 2 or n & (n - 1):
        raise KeystoreInvalid("its n is not a power of two")
    if 128 * n * r > MOST_MEMORY_BYTES or n * r * p > MOST_WORK:
        raise KeystoreInvalid("its scrypt asks for more memory or time than any wallet does")
    return Scrypt(n, r, p), password, salt


def _derived(kdf: Kdf, password: bytes, salt: bytes) -> bytes:
    if isinstance(kdf, Pbkdf2):
        return hashlib.pbkdf2_hmac("sha256", password, salt, kdf.rounds, DERIVED_BYTES)
    # Not that of hashlib: OpenSSL holds to n < 2^(16 r) (RFC 7914, 2), which wallets with r = 1 never did.
    from Crypto.Protocol import KDF

    try:
        return bytes(KDF.scrypt(password, salt, DERIVED_BYTES, kdf.n, kdf.r, kdf.p))  # type: ignore[arg-type]
    except (ValueError, MemoryError):
        needed = f"{128 * kdf.r * kdf.n >> 20} MB of memory for scrypt are not there"
        raise KeystoreInvalid(needed, fix="free some memory, or make the key with pbkdf2") from None


def _ctr(derived: bytes, initial: bytes, data: bytes) -> bytes:
    cipher = Cipher(AES(derived[:_HALF]), CTR(initial)).encryptor()
    return cipher.update(data) + cipher.finalize()


def _mac(derived: bytes, locked: bytes) -> bytes:
    return keccak256(derived[_HALF:] + locked)
