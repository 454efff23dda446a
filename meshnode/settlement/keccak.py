"""Keccak-256, the hash of Ethereum: the submission of 2011, whose padding differs from that of SHA3-256 (FIPS 202).

It comes with web3 and is imported when it is first needed.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

DIGEST_BYTES = 32
SELECTOR_BYTES = 4


@cache
def _keccak() -> ModuleType:
    from Crypto.Hash import keccak

    return keccak


def keccak256(data: bytes) -> bytes:
    """The hash, 32 bytes."""
    return bytes(_keccak().new(digest_bits=256, data=data).digest())


def selector(signature: str) -> bytes:
    """The 4 bytes that name a function of a contract, for example of "decimals()" (Solidity ABI, function selector)."""
    return keccak256(signature.encode("ascii"))[:SELECTOR_BYTES]
