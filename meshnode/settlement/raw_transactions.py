"""Transactions as the chain takes them: EIP-1559 fields, signed by a key that keeps its secret to itself.

    raw           02 | rlp(fields, y parity, r, s);  what is signed is the hash of 02 | rlp(fields)

What is signed is stored before it is sent, so that the same bytes can be sent again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meshnode.settlement.addresses import ADDRESS_BYTES
from meshnode.settlement.keccak import keccak256
from meshnode.settlement.keys import VoucherKey
from meshnode.settlement.secp256k1 import EVEN_V

_TYPE = b"\x02"
_NUMBERS = ("chainId", "nonce", "maxPriorityFeePerGas", "maxFeePerGas", "gas")
_BITS = {"chainId": 63, "nonce": 63, "gas": 63}
"""EIP-2681 bounds the nonce; the others have bounds that no chain reaches. All else has 256 bits."""


@dataclass(frozen=True, slots=True)
class RawTransaction:
    """The bytes to send, and the hash by which the chain knows them."""

    raw: bytes
    hash: bytes


def signed(key: VoucherKey, fields: Mapping[str, Any]) -> RawTransaction:
    """A transaction signed by `key`.

    `fields` has chainId, nonce, maxFeePerGas, maxPriorityFeePerGas, gas, to (20 bytes), value and data, nothing else.
    Raises ValueError for a field that is missing, unknown or out of its bounds.
    """
    import rlp  # type: ignore[import-untyped]

    if set(fields) != {*_NUMBERS, "to", "value", "data"}:
        raise ValueError(f"these are not the fields of an EIP-1559 transaction: {sorted(fields)}")
    if len(fields["to"]) != ADDRESS_BYTES:
        raise ValueError("no contract is made here: `to` is an address of 20 bytes")
    for name in (*_NUMBERS, "value"):
        if not 0 <= fields[name] < 1 << _BITS.get(name, 256):
            raise ValueError(f"{name} is out of its bounds")
    access: list[Any] = []
    members = [*(fields[name] for name in _NUMBERS), fields["to"], fields["value"], fields["data"], access]
    signature = key.sign(keccak256(_TYPE + rlp.encode(members)))
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
    raw = _TYPE + rlp.encode([*members, signature[64] - EVEN_V, r, s])
    return RawTransaction(raw, keccak256(raw))
