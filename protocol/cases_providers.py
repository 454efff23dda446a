"""Vectors of provider records of the distributed hash table. The keys are made from names and are worth nothing."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2s
from typing import Any

from cases_signed import ALICE, BOB, NOW_S, OTHER_MESH, Key
from cases_values import CODE, packed
from cases_values import plain as shown

from meshnode.wire.registry import LIMIT_ADDRESSES, LIMIT_DHT_RECORD_BYTES

PURPOSE = "provider"
MESH = blake2s(b"meshnode open mesh\0vectors").digest()
CONTENT = bytes(range(16))
V4 = bytes.fromhex("c0000205" + "2479")
V6 = bytes.fromhex("20010db8000000000000000000000005" + "2479")
PADDING = 253
"""An odd member that no shape has: a reader passes over it, so it lengthens what should be too long."""


def key_of(content_hash: bytes, first_layer: int, layers: int) -> bytes:
    """Where a record is kept, written out once more so that the vectors do not follow from the code they test."""
    place = first_layer.to_bytes(4, "big") + layers.to_bytes(4, "big")
    return blake2s(b"meshnode model\0" + content_hash + place).digest()


def files() -> dict[str, dict[str, Any]]:
    """The files of this layer."""
    return {
        "providers.json": {
            "about": "signed records of who provides a model: 13-dht.md; `node` signs",
            "valid": [_valid(*case) for case in _records()],
            "invalid": [{"comment": comment, "hex": signed.hex(), "code": CODE} for comment, signed in _no_records()],
        }
    }


def _plain(
    node: Key, expires_at: int = NOW_S + 1800, addresses: tuple[bytes, ...] = (), first_layer: int = 0, layers: int = 0
) -> dict[int, Any]:
    """The map that travels; what equals its default is left out."""
    plain = {0: key_of(CONTENT, first_layer, layers), 2: node.public, 4: MESH, 6: expires_at}
    more = {8: list(addresses), 10: first_layer, 12: layers}
    return plain | {key: value for key, value in more.items() if value}


def _sealed(plain: Any, signer: Key = ALICE, purpose: str = PURPOSE) -> bytes:
    return signer.seal(purpose, packed(plain))


def _records() -> Iterator[tuple[str, Key, dict[int, Any]]]:
    yield "a whole model, no address", ALICE, _plain(ALICE)
    yield "a whole model, two addresses", ALICE, _plain(ALICE, addresses=(V4, V6))
    yield "a run of layers from the first on", BOB, _plain(BOB, addresses=(V4,), layers=16)
    yield "a run of layers in the middle", BOB, _plain(BOB, addresses=(V6,), first_layer=16, layers=16)
    yield "the greatest numbers", BOB, _plain(BOB, (1 << 63) - 1, (V6,) * 8, (1 << 32) - 1, (1 << 32) - 1)
    yield "an unknown odd member is passed over", ALICE, {**_plain(ALICE), 13: b"hint"}


def _valid(comment: str, signer: Key, plain: dict[int, Any]) -> dict[str, Any]:
    return {
        "comment": comment,
        "hex": _sealed(plain, signer).hex(),
        "content_hash": CONTENT.hex(),
        "key": plain[0].hex(),
        "node": plain[2].hex(),
        "mesh": plain[4].hex(),
        "expires_at": shown(plain[6]),
        "addresses": [address.hex() for address in plain.get(8, ())],
        "first_layer": plain.get(10, 0),
        "layers": plain.get(12, 0),
    }


def _no_records() -> Iterator[tuple[str, bytes]]:
    plain = _plain(ALICE, addresses=(V4,))
    good = _sealed(plain)
    yield "empty", b""
    yield "a signature and no payload", good[:64]
    yield "cut short", good[:-1]
    yield "a byte too many", good + b"\xc0"
    yield "a signature of zeros", bytes(64) + good[64:]
    yield "a bit of the signature is turned", bytes((good[0] ^ 1,)) + good[1:]
    yield "signed by another node", _sealed(plain, BOB)
    yield "signed by a mesh key", _sealed(plain, OTHER_MESH)
    yield "signed for another purpose", _sealed(plain, purpose="statement")
    yield "expires later than was signed", good[:64] + packed({**plain, 6: plain[6] + 1})
    yield "another mesh than was signed", good[:64] + packed({**plain, 4: OTHER_MESH.public})
    yield "another key than was signed", good[:64] + packed({**plain, 0: bytes(32)})
    for key, name in ((0, "key"), (2, "node"), (4, "mesh"), (6, "expires_at")):
        yield f"{name} is missing", _sealed({other: value for other, value in plain.items() if other != key})
    yield "a key of 31 bytes", _sealed({**plain, 0: plain[0][:31]})
    yield "a node of 33 bytes", _sealed({**plain, 2: plain[2] + b"\0"})
    yield "a mesh that is a text", _sealed({**plain, 4: "m" * 32})
    yield "expires before 1970", _sealed({**plain, 6: -1})
    yield "expires at 2^63", _sealed({**plain, 6: 1 << 63})
    yield "expires at nil", _sealed({**plain, 6: None})
    yield "too many addresses", _sealed({**plain, 8: [V4] * (LIMIT_ADDRESSES + 1)})
    yield "an address of port 0", _sealed({**plain, 8: [V4[:4] + b"\0\0"]})
    yield "a multicast address", _sealed({**plain, 8: [bytes.fromhex("e00000fb2479")]})
    yield "an address that is a text", _sealed({**plain, 8: ["192.0.2.5:9337"]})
    yield "layers from 5 on, but none", _sealed({**plain, 10: 5})
    yield "layers below 0", _sealed({**plain, 12: -1})
    yield "2^32 layers", _sealed({**plain, 12: 1 << 32})
    yield "an unknown even member", _sealed({**plain, 14: 0})
    yield "an array in place of a map", _sealed(list(plain.values()))
    yield "too long", _sealed({**plain, PADDING: bytes(LIMIT_DHT_RECORD_BYTES)})
