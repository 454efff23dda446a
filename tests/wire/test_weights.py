"""What `bulk` streams ask for: one form, and nothing that lacks what its kind needs."""

from __future__ import annotations

import pytest

from meshnode.wire import schema, weights
from meshnode.wire.registry import LIMIT_BULK_CHUNKS, LIMIT_STREAM_HEADER_BYTES, BulkKind
from meshnode.wire.values import WireError

MODEL, DIGEST = b"m" * 32, b"d" * 32


@pytest.mark.parametrize(
    ("kind", "members"),
    [
        (BulkKind.MANIFEST, {"model": MODEL}),
        (BulkKind.MANIFEST, {"manifest": DIGEST}),
        (BulkKind.MANIFEST, {"model": MODEL, "manifest": DIGEST}),
        (BulkKind.HAVE, {"manifest": DIGEST}),
        (BulkKind.CHUNKS, {"manifest": DIGEST, "chunks": (5, 3, 5)}),
        (BulkKind.CHUNKS, {"manifest": DIGEST, "chunks": ((1 << 32) - 1,) * LIMIT_BULK_CHUNKS}),
    ],
)
def test_what_is_written_is_read(kind: BulkKind, members: dict[str, object]) -> None:
    header = weights.open_header(kind, **members)  # type: ignore[arg-type]
    assert len(header) <= LIMIT_STREAM_HEADER_BYTES
    found = weights.read_header(header)
    assert found.kind == kind
    assert {name: getattr(found, name) for name in members} == members


@pytest.mark.parametrize(
    "asked",
    [
        weights.BulkOpen(BulkKind.MANIFEST),
        weights.BulkOpen(BulkKind.HAVE, model=MODEL),
        weights.BulkOpen(BulkKind.CHUNKS, manifest=DIGEST),
        weights.BulkOpen(BulkKind.CHUNKS, model=MODEL, chunks=(1,)),
        weights.BulkOpen(BulkKind.HAVE, manifest=DIGEST, chunks=(1,)),
        weights.BulkOpen(1, model=MODEL),
        weights.BulkOpen(6, manifest=DIGEST),
    ],
)
def test_what_makes_no_sense_is_refused(asked: weights.BulkOpen) -> None:
    with pytest.raises(WireError):
        weights.read_header(schema.write(asked))


def test_too_many_chunks_are_refused_before_they_are_sent() -> None:
    with pytest.raises(WireError):
        weights.open_header(BulkKind.CHUNKS, manifest=DIGEST, chunks=tuple(range(LIMIT_BULK_CHUNKS + 1)))


def test_sizes() -> None:
    assert weights.sizes(1, 258) == bytes.fromhex("0000000100000102")
    assert weights.read_sizes(weights.sizes(7, (1 << 32) - 1)) == (7, (1 << 32) - 1)
    assert len(weights.sizes(0, 0)) == weights.SIZES_BYTES
