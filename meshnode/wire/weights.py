"""What travels on `bulk` streams: weights from node to node, asked for by hash and by number (protocol/11-weights.md).

    asking node                            serving node
    stream header: BulkOpen, FIN  ---->
                                  <----    manifest   sizes of both (2 x u32) | manifest | one bit a chunk | FIN
                                  <----    have       0, size of the bits (2 x u32) | one bit a chunk | FIN
                                  <----    chunks     of each, in the order asked: size u32 | bytes; then FIN

A size of 0 says that it is not here. Integers are big-endian. What a manifest says is no business of this module.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from meshnode.wire import schema
from meshnode.wire.registry import LIMIT_BULK_CHUNKS, LIMIT_STREAM_HEADER_BYTES, BulkKind
from meshnode.wire.schema import MAX_U8, MAX_U32, Bytes, ListOf, UInt, member
from meshnode.wire.values import WireError

HASH_BYTES = 32
SIZE_BYTES = 4
_SIZES = struct.Struct(">II")
SIZES_BYTES = _SIZES.size

_Hash = Bytes(0, HASH_BYTES, HASH_BYTES)


@dataclass(frozen=True, slots=True)
class BulkOpen:
    """The header of a `bulk` stream: what is asked for.

    A manifest is asked for by the hash of the model's first file, by its own digest, or both; bits and chunks by the
    digest of the manifest that numbers them.
    """

    kind: int = member(0, UInt(MAX_U8))
    model: bytes = member(2, _Hash, b"")
    manifest: bytes = member(4, _Hash, b"")
    chunks: tuple[int, ...] = member(6, ListOf(UInt(MAX_U32), LIMIT_BULK_CHUNKS), ())


def open_header(kind: BulkKind, *, model: bytes = b"", manifest: bytes = b"", chunks: tuple[int, ...] = ()) -> bytes:
    """The header of a `bulk` stream. Raises WireError for values that a reader would refuse."""
    header = schema.write(BulkOpen(kind, model, manifest, chunks))
    read_header(header)
    return header


def read_header(header: bytes) -> BulkOpen:
    """What a `bulk` stream asks for. Raises WireError, also for an ask that lacks what its kind needs."""
    found = schema.read(BulkOpen, header, limit_bytes=LIMIT_STREAM_HEADER_BYTES)
    try:
        kind = BulkKind(found.kind)
    except ValueError:
        raise WireError(f"no bulk stream has the kind {found.kind}") from None
    if not found.manifest and (kind is not BulkKind.MANIFEST or not found.model):
        raise WireError("it does not say of which model")
    if bool(found.chunks) != (kind is BulkKind.CHUNKS):
        raise WireError("chunks that are not asked for, or none")
    return found


def sizes(manifest_bytes: int, bits_bytes: int) -> bytes:
    """What comes before a manifest and its bits."""
    return _SIZES.pack(manifest_bytes, bits_bytes)


def read_sizes(data: bytes) -> tuple[int, int]:
    """(bytes of the manifest, bytes of the bits) from SIZES_BYTES bytes."""
    manifest_bytes, bits_bytes = _SIZES.unpack(data)
    return manifest_bytes, bits_bytes
