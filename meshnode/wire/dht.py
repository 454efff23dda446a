"""What travels on a `dht` stream, and the signed record that says who has a model (protocol/13-dht.md).

Kademlia (Maymounkov and Mazieres 2002) over 256-bit keys: the key of a node is the hash of its public key, the key of a
model the hash of its content and layers. A record is signed by the node that offers, and ends by itself.

    asking node                 asked node
    DhtFind, FIN   ---->
                   <----        DhtFound, FIN

    DhtStore, FIN  ---->                        on a stream of its own, with the token of a DhtFound
                   <----        DhtStored, FIN
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2s

from meshnode.wire import signed
from meshnode.wire.address import Address
from meshnode.wire.registry import (
    LIMIT_ADDRESSES,
    LIMIT_DHT_PEERS,
    LIMIT_DHT_RECORD_BYTES,
    LIMIT_DHT_RECORDS,
)
from meshnode.wire.schema import MAX_U8, MAX_U32, MAX_U63, Bytes, Flag, ListOf, Nested, UInt, Where, member
from meshnode.wire.signed import KEY_BYTES, Sign, Verify
from meshnode.wire.statements import CONTENT_HASH_BYTES
from meshnode.wire.values import WireError

DHT_KEY_BYTES = 32
TOKEN_BYTES = 16
PURPOSE = "provider"
MODEL_PREFIX = b"meshnode model\0"


@dataclass(frozen=True, slots=True)
class DhtPeer:
    """A node of the table, and where it can be reached."""

    node: bytes = member(0, Bytes(KEY_BYTES, KEY_BYTES))
    addresses: tuple[Address, ...] = member(2, ListOf(Where(), LIMIT_ADDRESSES, 1))


@dataclass(frozen=True, slots=True)
class Provider:
    """That `node` offers the content behind `key` until `expires_at` (wall time in seconds); signed by `node`.

    `mesh` is the open mesh in which it can be asked. `first_layer` and `layers` say which part of the model is held,
    0 and 0 for all of it.
    """

    key: bytes = member(0, Bytes(DHT_KEY_BYTES, DHT_KEY_BYTES))
    node: bytes = member(2, Bytes(KEY_BYTES, KEY_BYTES))
    mesh: bytes = member(4, Bytes(KEY_BYTES, KEY_BYTES))
    expires_at: int = member(6, UInt(MAX_U63))
    addresses: tuple[Address, ...] = member(8, ListOf(Where(), LIMIT_ADDRESSES), ())
    first_layer: int = member(10, UInt(MAX_U32), 0)
    layers: int = member(12, UInt(MAX_U32), 0)


@dataclass(frozen=True, slots=True)
class DhtFind:
    """Which nodes do you know near `key`? With `records`, also: who offers what is behind it?

    A `hidden` node cannot be dialled: it asks, and belongs into no table.
    """

    key: bytes = member(0, Bytes(DHT_KEY_BYTES, DHT_KEY_BYTES))
    records: bool = member(2, Flag(), False)
    hidden: bool = member(3, Flag(), False)


@dataclass(frozen=True, slots=True)
class DhtFound:
    """The nodes nearest to the key that the asked one knows, and signed Provider records.

    `token` admits DhtStore of records of this key by the node that asked; empty where the asked one would keep none.
    """

    peers: tuple[DhtPeer, ...] = member(0, ListOf(Nested(DhtPeer), LIMIT_DHT_PEERS), ())
    records: tuple[bytes, ...] = member(2, ListOf(Bytes(1, LIMIT_DHT_RECORD_BYTES), LIMIT_DHT_RECORDS), ())
    token: bytes = member(4, Bytes(0, TOKEN_BYTES, TOKEN_BYTES), b"")


@dataclass(frozen=True, slots=True)
class DhtStore:
    """Keep these signed Provider records of mine."""

    token: bytes = member(0, Bytes(TOKEN_BYTES, TOKEN_BYTES))
    records: tuple[bytes, ...] = member(2, ListOf(Bytes(1, LIMIT_DHT_RECORD_BYTES), LIMIT_DHT_RECORDS, 1))


@dataclass(frozen=True, slots=True)
class DhtStored:
    """How many of them are kept."""

    kept: int = member(0, UInt(MAX_U8))


def model_key(content_hash: bytes, first_layer: int = 0, layers: int = 0) -> bytes:
    """The key of a model, or of a run of its layers; 0 and 0 for all of them. Raises ValueError for another hash
    length, and for layers that cannot be."""
    if len(content_hash) != CONTENT_HASH_BYTES:
        raise ValueError(f"a content hash has {CONTENT_HASH_BYTES} bytes")
    if not 0 <= first_layer <= MAX_U32 or not 0 <= layers <= MAX_U32 or (first_layer and not layers):
        raise ValueError("no such layers")
    return blake2s(MODEL_PREFIX + content_hash + first_layer.to_bytes(4, "big") + layers.to_bytes(4, "big")).digest()


def node_key(node: bytes) -> bytes:
    """Where a node stands in the space of the keys. It follows from the public key, so that it cannot be chosen
    freely, though by trying many keys one gets near to any place."""
    return blake2s(node).digest()


def write_provider(provider: Provider, sign: Sign) -> bytes:
    """The signed bytes of a record. Raises WireError for one out of bounds: that is our own mistake."""
    _check_layers(provider)
    found = signed.seal(PURPOSE, provider, sign)
    if len(found) > LIMIT_DHT_RECORD_BYTES:
        raise WireError(f"a record of {len(found)} bytes, at most {LIMIT_DHT_RECORD_BYTES}")
    return found


def read_provider(record: bytes) -> Provider:
    """What a record says; its signature has yet to be checked. Raises WireError."""
    if len(record) > LIMIT_DHT_RECORD_BYTES:
        raise WireError("a record is too long")
    provider = signed.open_payload(Provider, record, limit_bytes=LIMIT_DHT_RECORD_BYTES)
    _check_layers(provider)
    return provider


def is_genuine(provider: Provider, record: bytes, verify: Verify) -> bool:
    """Whether the node that a record names has signed these bytes of it."""
    return signed.is_signed_by(provider.node, PURPOSE, record, verify)


def _check_layers(provider: Provider) -> None:
    if provider.first_layer and not provider.layers:
        raise WireError("a record of no layers")
