"""Vectors of manifests: a few valid ones, and every rule of 11-weights.md broken once."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from cases_values import CODE

from meshnode.models.manifest import CHUNK_BYTES, FileEntry, Manifest, TensorEntry, encode, spans_of

HASH = bytes(range(32))


def files() -> dict[str, dict[str, Any]]:
    """The file of manifests."""
    valid = [
        {"comment": comment, "hex": encode(manifest).hex(), "digest": manifest.digest.hex(), **shown(manifest)}
        for comment, manifest in manifests()
    ]
    invalid = [{"comment": comment, "hex": data.hex(), "code": CODE} for comment, data in broken()]
    return {"manifests.json": {"about": "manifests: 11-weights.md", "valid": valid, "invalid": invalid}}


def manifest(*entries: FileEntry) -> Manifest:
    """A manifest of these files, whose hashes are counted through."""
    count = sum(len(span.chunks) for span in spans_of(entries))
    return Manifest(entries, b"".join(number.to_bytes(32, "big") for number in range(count)))


def manifests() -> Iterator[tuple[str, Manifest]]:
    """(comment, manifest)"""
    first, second = TensorEntry("token_embd.weight", 64, 90), TensorEntry("blk.0.attn_q.weight", 160, 32)
    large = TensorEntry("blk.0.ffn_up.weight", 1000, 2 * CHUNK_BYTES + 1)
    yield "a header and nothing else", manifest(FileEntry(24, HASH, ()))
    yield "two tensors, the first with padding", manifest(FileEntry(192, HASH, (first, second)))
    yield "padding behind the last tensor", manifest(FileEntry(224, HASH, (first, second)))
    yield "a tensor of three chunks", manifest(FileEntry(2 * CHUNK_BYTES + 1001, HASH, (large,)))
    yield "two files", manifest(FileEntry(160, HASH, (first,)), FileEntry(192, HASH[::-1], (second,)))
    yield "a name of two bytes a letter", manifest(FileEntry(192, HASH, (TensorEntry("\u00e9" * 384, 64, 90),)))


def shown(found: Manifest) -> dict[str, Any]:
    """What a manifest decodes to."""
    return {
        "files": [
            {"size": file.size_bytes, "sha256": file.sha256.hex(), "tensors": [_tensor(each) for each in file.tensors]}
            for file in found.files
        ],
        "chunks": [
            [chunk.file, chunk.position, chunk.size_bytes]
            for chunk in (found.chunk(number) for number in range(found.chunk_count))
        ],
    }


def _tensor(entry: TensorEntry) -> list[Any]:
    return [entry.name, entry.position, entry.n_bytes]


def _bytes(*entries: tuple[int, list[tuple[bytes, int, int]]], hashes: int, version: int = 1) -> bytes:
    """A manifest as it is told, whatever the rules say."""
    pieces = [struct.pack(">4sBH", b"MNWM", version, len(entries))]
    for size, tensors in entries:
        pieces.append(struct.pack(">Q32sI", size, HASH, len(tensors)))
        for name, position, n_bytes in tensors:
            pieces += [struct.pack(">H", len(name)), name, struct.pack(">QQ", position, n_bytes)]
    return b"".join([*pieces, bytes(32) * hashes])


def broken() -> Iterator[tuple[str, bytes]]:
    """(comment, bytes) of what is no manifest."""
    good = _bytes((100, [(b"a", 32, 32), (b"b", 64, 36)]), hashes=3)
    yield "nothing", b""
    yield "another magic", b"GGUF" + good[4:]
    yield "another version", _bytes((100, []), hashes=1, version=2)
    yield "cut short in a tensor", good[:60]
    yield "a hash too few", good[:-32]
    yield "a hash too many", good + bytes(32)
    yield "a byte too many", good + b"\0"
    yield "no file", _bytes(hashes=0)
    yield "a file of no bytes", _bytes((0, []), hashes=0)
    yield "a file of more than 2^50 bytes", _bytes(((1 << 50) + 1, []), hashes=0)
    yield "files of more than 2^50 bytes together", _bytes((1 << 50, []), (1, []), hashes=0)
    yield "a tensor without a name", _bytes((100, [(b"", 32, 32)]), hashes=2)
    yield "a name that is too long", _bytes((100, [(b"n" * 769, 32, 32)]), hashes=2)
    yield "a name that is no UTF-8", _bytes((100, [(b"\xff", 32, 32)]), hashes=2)
    yield "a surrogate in a name", _bytes((100, [(b"\xed\xa0\x80", 32, 32)]), hashes=2)
    yield "a name that is there twice", _bytes((100, [(b"a", 32, 32), (b"a", 64, 36)]), hashes=3)
    yield "a name that is in two files", _bytes((64, [(b"a", 32, 32)]), (64, [(b"a", 32, 32)]), hashes=4)
    yield "a tensor at the beginning of the file", _bytes((100, [(b"a", 0, 32)]), hashes=2)
    yield "tensors that overlap", _bytes((100, [(b"a", 32, 33), (b"b", 64, 36)]), hashes=3)
    yield "tensors out of order", _bytes((100, [(b"b", 64, 36), (b"a", 32, 32)]), hashes=3)
    yield "a tensor of no bytes", _bytes((100, [(b"a", 32, 0)]), hashes=2)
    yield "a tensor that ends behind the file", _bytes((100, [(b"a", 32, 69)]), hashes=2)
    yield "a tensor whose end is beyond 2^64", _bytes((100, [(b"a", 32, (1 << 64) - 1)]), hashes=2)
    yield "more tensors than there may be", struct.pack(">4sBHQ32sI", b"MNWM", 1, 1, 100, HASH, 131073)
