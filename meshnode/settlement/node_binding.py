"""One object that says that a node and an account of a chain belong together, signed by the keys of both.

    signature of the node 64 | payload      payload: the members below, and the account's signature of them

The node signs as it signs everything (wire/signed.py, purpose "binding"), the account signs typed data (EIP-712) under
a domain without a contract, so that a wallet can show what it is asked for:

    NodeBinding(bytes32 node,address account,uint8 role,uint64 notAfter)   in  ("meshnode", "1", chain)

Neither key is made from the other, and neither alone can claim the other's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from meshnode.identity import NodeId, verify
from meshnode.settlement.addresses import ADDRESS_BYTES
from meshnode.settlement.keccak import keccak256
from meshnode.settlement.keys import VoucherKey, recover
from meshnode.settlement.secp256k1 import SIGNATURE_BYTES
from meshnode.settlement.typed_data import digest, type_hash
from meshnode.wire.schema import MAX_U63, Bytes, Int, UInt, member
from meshnode.wire.signed import KEY_BYTES, Sign, is_signed_by, open_payload, seal
from meshnode.wire.values import WireError

PURPOSE: Final = "binding"
MOST_BYTES = 512
DOMAIN: Final = "EIP712Domain(string name,string version,uint256 chainId)"
STRUCT: Final = "NodeBinding(bytes32 node,address account,uint8 role,uint64 notAfter)"


class BoundRole(IntEnum):
    """What the account is to the node."""

    PAYER = 1
    RECEIVER = 2


@dataclass(frozen=True, slots=True)
class NodeBinding:
    """A node (its Ed25519 key), an account of a chain, what for, and until when, in epoch seconds."""

    node: bytes = member(0, Bytes(KEY_BYTES, KEY_BYTES))
    account: bytes = member(2, Bytes(ADDRESS_BYTES, ADDRESS_BYTES))
    role: int = member(4, Int(BoundRole.PAYER, BoundRole.RECEIVER))
    chain: int = member(6, UInt(MAX_U63))
    not_after: int = member(8, UInt(MAX_U63))
    account_signature: bytes = member(10, Bytes(SIGNATURE_BYTES, SIGNATURE_BYTES))


def binding_digest(node: bytes, account: bytes, role: int, chain: int, not_after: int) -> bytes:
    """What the account signs."""
    domain = keccak256(type_hash(DOMAIN) + keccak256(b"meshnode") + keccak256(b"1") + _word(chain))
    return digest(
        domain,
        keccak256(type_hash(STRUCT) + node + account.rjust(32, b"\0") + _word(role) + _word(not_after)),
    )


def bound(sign: Sign, key: VoucherKey, node: NodeId, role: BoundRole, chain: int, not_after: int) -> bytes:
    """The signed object. `sign` is that of the node; `not_after` is in epoch seconds."""
    signature = key.sign(binding_digest(node, key.address, role, chain, not_after))
    return seal(PURPOSE, NodeBinding(node, key.address, role, chain, not_after, signature), sign)


def opened(data: bytes, now_s: float) -> NodeBinding:
    """The binding in bytes of a peer, both signatures checked. Raises WireError, also once it is over.

    `now_s` is in epoch seconds.
    """
    if len(data) > MOST_BYTES:
        raise WireError("a binding is not as long as that")
    found = open_payload(NodeBinding, data, limit_bytes=MOST_BYTES)
    if now_s > found.not_after:
        raise WireError("the binding is over")
    if not is_signed_by(found.node, PURPOSE, data, verify):
        raise WireError("the binding is not signed by its node")
    signed = binding_digest(found.node, found.account, found.role, found.chain, found.not_after)
    if recover(signed, found.account_signature) != found.account:
        raise WireError("the binding is not signed by its account")
    return found


def _word(value: int) -> bytes:
    return value.to_bytes(32, "big")
