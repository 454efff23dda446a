"""Vectors of what the headers of streams say, made from their shapes as those of messages are."""

from __future__ import annotations

from typing import Any

from cases_messages import UNKNOWN_ODD, broken, map_of
from cases_values import CODE, packed, plain

from meshnode.wire.messages import OPENINGS
from meshnode.wire.registry import RpcKind, StreamType
from meshnode.wire.values import encode

PLAN = bytes(range(16))


def files() -> dict[str, dict[str, Any]]:
    """The file of headers."""
    valid, invalid = [], []
    cases = [(f"a {kind.name.lower()} of a plan", StreamType.RPC, {0: int(kind), 2: PLAN}) for kind in RpcKind]
    for kind, shape in OPENINGS.items():
        full = map_of(shape, full=True)
        cases.append(("everything", StreamType(kind), full))
        cases.append(("with an unknown odd member", StreamType(kind), {**full, UNKNOWN_ODD: [None, {1: "later"}]}))
        head = {"message": StreamType(kind).name.lower(), "type": int(kind)}
        for comment, value in broken(shape, full):
            invalid.append({**head, "comment": comment, "hex": packed(value).hex(), "code": CODE})
        whole = packed(full)
        for comment, given in (("nothing", b""), ("a byte too many", whole + b"\xc0"), ("cut short", whole[:-1])):
            invalid.append({**head, "comment": comment, "hex": given.hex(), "code": CODE})
    for comment, kind, value in cases:
        head = {"message": kind.name.lower(), "type": int(kind), "comment": comment}
        valid.append({**head, "hex": encode(value).hex(), "value": plain(value)})
    about = "headers of streams: 09-splits.md; what comes before them is in stream-headers.json"
    return {"openings.json": {"about": about, "valid": valid, "invalid": invalid}}
