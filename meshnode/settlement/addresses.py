"""Addresses of accounts and contracts: 20 bytes, and the text in which people give and see them.

The text is "0x" and 40 hexadecimal digits; where it mixes cases, the case of each letter is a checksum (EIP-55), and
one that does not fit is a typing error that would cost the money sent there.
"""

from __future__ import annotations

import re

from meshnode.settlement.keccak import keccak256

ADDRESS_BYTES = 20

_TEXT = re.compile(r"0[xX][0-9a-fA-F]{40}")
_DELEGATION = b"\xef\x01\x00"
"""How the code of an account begins that has delegated itself (EIP-7702, delegation indicator)."""


def shown(address: bytes) -> str:
    """The text of an address, with the checksum in its case. Raises ValueError for another length."""
    if len(address) != ADDRESS_BYTES:
        raise ValueError(f"an address has {ADDRESS_BYTES} bytes")
    digits = address.hex()
    marks = keccak256(digits.encode("ascii")).hex()
    return "0x" + "".join(digit.upper() if mark >= "8" else digit for digit, mark in zip(digits, marks, strict=False))


def parse(text: str) -> bytes:
    """The address that a text means. Raises ValueError, which says what is wrong, for one that is none or mistyped."""
    if not _TEXT.fullmatch(text):
        raise ValueError("an address is 0x and 40 hexadecimal digits")
    digits = text[2:]
    address = bytes.fromhex(digits)
    if digits != digits.lower() and digits != digits.upper() and digits != shown(address)[2:]:
        raise ValueError("the checksum of the address is wrong: a letter or digit of it is mistyped (EIP-55)")
    return address


def delegate(code: bytes) -> bytes | None:
    """The contract that an account has delegated itself to, by the code that the chain shows of it (EIP-7702)."""
    if len(code) == len(_DELEGATION) + ADDRESS_BYTES and code.startswith(_DELEGATION):
        return code[len(_DELEGATION) :]
    return None


def why_cannot_authorize(code: bytes) -> str:
    """Why an account with this code cannot pay by its key's signature, in words; "" for an account without code.

    USDC asks the code of whoever pays (EIP-1271) as soon as there is any, and looks at no ECDSA signature then. That
    holds for an account of a plain key as well, once it has delegated itself (EIP-7702).
    """
    target = delegate(code)
    if target is not None:
        return (
            f"the account has delegated itself to {shown(target)} (EIP-7702), so the token no longer takes the "
            "signature of its key; pay from another account, or end the delegation"
        )
    if code:
        return "the account is a contract (EIP-1271), and the token takes no signature of a key for it"
    return ""
