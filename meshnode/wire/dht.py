"""What travels on a `dht` stream, and the signed record that says who has a model (protocol/13-dht.md).

Kademlia (Maymounkov and Mazieres 2002) over 256-bit keys: the id of a node is its public key's hash, the key of a model
the hash of its content and layers. A record is signed by the node that offers, and ends by itself.

    asking node                 asked node
    DhtFind        ---->
                   <----        DhtFound, FIN
    DhtStore       ---->
                   <----        DhtStored, FIN
"""

from __future__ import annotations

from dataclasses import dataclass

from meshnode.wire.address import Address
from meshnode.wire.registry import (
    LIMIT_ADDRESSES,
    LIMIT_DHT_PEERS,
    LIMIT_DHT_RECORD_BYTES,
    LIMIT_DHT_RECORDS,
)
from meshnode.wire.schema import MAX_U8, MAX_U32, MAX_U63, Bytes, Flag, ListOf, Nested, UInt, Where, member
from meshnode.wire.signed import KEY_BYTES

DHT_KEY_BYTES = 32


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
    """Which nodes do you know near `key`? With `records`, also: who offers what is behind it?"""

    key: bytes = member(0, Bytes(DHT_KEY_BYTES, DHT_KEY_BYTES))
    records: bool = member(2, Flag(), False)


@dataclass(frozen=True, slots=True)
class DhtFound:
    """The nodes nearest to the key that the asked one knows, and signed Provider records. `token` admits one DhtStore
    from the address that asked."""

    peers: tuple[DhtPeer, ...] = member(0, ListOf(Nested(DhtPeer), LIMIT_DHT_PEERS), ())
    records: tuple[bytes, ...] = member(2, ListOf(Bytes(1, LIMIT_DHT_RECORD_BYTES), LIMIT_DHT_RECORDS), ())
    token: bytes = member(4, Bytes(0, 16, 16), b"")


@dataclass(frozen=True, slots=True)
class DhtStore:
    """Keep these signed Provider records."""

    token: bytes = member(0, Bytes(16, 16))
    records: tuple[bytes, ...] = member(2, ListOf(Bytes(1, LIMIT_DHT_RECORD_BYTES), LIMIT_DHT_RECORDS, 1))


@dataclass(frozen=True, slots=True)
class DhtStored:
    """How many of them are kept."""

    kept: int = member(0, UInt(MAX_U8))
