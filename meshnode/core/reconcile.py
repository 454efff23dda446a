"""Anti-entropy: two nodes find out which statements they do not share, in three messages and few bytes.

    a -> b   Digest    256 buckets, each the exclusive or of the ids in it
    b -> a   Bucket    the ids that b holds in the buckets that differ
    a -> b   Want      ids that a lacks;  and at once the statements that b lacks

What gossip missed is found this way within half a minute; a node that has just come gets everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from meshnode.core.members import Members
from meshnode.wire.messages import BUCKETS, DIGEST_BYTES, Bucket, Digest, Want
from meshnode.wire.registry import LIMIT_IHAVE_IDS, LIMIT_STATEMENTS_A_FRAME, LIMIT_WANT_IDS, StatementKind
from meshnode.wire.statements import STATEMENT_ID_BYTES, Statement

WIDTH = DIGEST_BYTES // BUCKETS
FRAME_BYTES = 48 * 1024
"""Statements of one message, well below the limit of a frame."""
NOT_SHARED = frozenset((StatementKind.ACCUSE, StatementKind.LEAVE))
"""These matter for seconds, and are flooded."""


def shared(members: Members, own: Iterable[Statement]) -> Iterator[Statement]:
    """The statements that all nodes should hold: of everybody who is neither dead nor has left, and of this node."""
    for record in members:
        if not record.is_gone:
            yield from (each for each in record.statements if each.kind not in NOT_SHARED)
    yield from own


def digest(statements: Iterable[Statement]) -> Digest:
    """The buckets of a set of statements. The first byte of an id says which bucket it falls into."""
    buckets = [0] * BUCKETS
    for statement in statements:
        buckets[statement.id[0]] ^= int.from_bytes(statement.id[:WIDTH], "big")
    return Digest(b"".join(value.to_bytes(WIDTH, "big") for value in buckets))


def differing(one: Digest, other: Digest) -> bytes:
    """The indexes of the buckets that differ."""
    places = range(0, DIGEST_BYTES, WIDTH)
    return bytes(at // WIDTH for at in places if one.buckets[at : at + WIDTH] != other.buckets[at : at + WIDTH])


def list_buckets(indexes: bytes, statements: Iterable[Statement]) -> Iterator[Bucket]:
    """The ids in these buckets, in as few messages as hold them. A bucket is never cut in two."""
    found: dict[int, list[bytes]] = {index: [] for index in indexes}
    for statement in statements:
        if statement.id[0] in found:
            found[statement.id[0]].append(statement.id)
    chosen: list[int] = []
    ids: list[bytes] = []
    for index, more in found.items():
        more = more[:LIMIT_IHAVE_IDS]
        if chosen and len(ids) + len(more) > LIMIT_IHAVE_IDS:
            yield Bucket(bytes(chosen), b"".join(ids))
            chosen, ids = [], []
        chosen.append(index)
        ids += more
    if chosen:
        yield Bucket(bytes(chosen), b"".join(ids))


def compare(bucket: Bucket, statements: Iterable[Statement]) -> tuple[list[bytes], list[Statement]]:
    """(ids that this node lacks, statements that the other one lacks) in the buckets that it listed."""
    theirs = {bucket.ids[at : at + STATEMENT_ID_BYTES] for at in range(0, len(bucket.ids), STATEMENT_ID_BYTES)}
    indexes = frozenset(bucket.indexes)
    mine = {each.id: each for each in statements if each.id[0] in indexes}
    lacking = sorted(each for each in theirs if each not in mine and each and each[0] in indexes)
    return lacking, [each for name, each in mine.items() if name not in theirs]


def wants(ids: list[bytes]) -> Iterator[Want]:
    """As many messages as it takes to ask for them."""
    for at in range(0, len(ids), LIMIT_WANT_IDS):
        yield Want(tuple(ids[at : at + LIMIT_WANT_IDS]))


def frames(statements: Iterable[Statement]) -> Iterator[tuple[bytes, ...]]:
    """Cut statements into pieces that fit into one message each."""
    piece: list[bytes] = []
    size_bytes = 0
    for statement in statements:
        size_bytes += len(statement.signed)
        if piece and (len(piece) >= LIMIT_STATEMENTS_A_FRAME or size_bytes > FRAME_BYTES):
            yield tuple(piece)
            piece, size_bytes = [], len(statement.signed)
        piece.append(statement.signed)
    if piece:
        yield tuple(piece)
