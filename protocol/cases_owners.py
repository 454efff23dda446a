"""Vectors of owner certificates. The keys are made from names and are worth nothing."""

from __future__ import annotations

from typing import Any

from cases_signed import ALICE, BOB, CAROL, DAY_S, NOW_S, PADDING, Key, flipped
from cases_values import CODE, packed

from meshnode.wire.registry import LIMIT_OWNER_BYTES

OWNER, OTHER_OWNER = Key("owner"), Key("another owner")


def files() -> dict[str, dict[str, Any]]:
    """The file of this layer."""
    return {
        "owners.json": {
            "about": "what `node` shows at the wall time `now_s` to prove whose it is: 07-admission.md",
            "valid": [
                {**_asked(signed, node), "owner": owner.public.hex(), "comment": comment}
                for comment, signed, node, owner in _valid()
            ],
            "invalid": [
                {"comment": comment, **_asked(signed, node), "code": code} for comment, signed, node, code in _invalid()
            ],
        }
    }


def _asked(signed: bytes, node: Key) -> dict[str, Any]:
    return {"hex": signed.hex(), "node": node.public.hex(), "now_s": NOW_S}


def owner_certificate(node: Key = BOB, signer: Key = OWNER, purpose: str = "owner", **changed: Any) -> bytes:
    """A certificate for `node`; `changed` replaces members of its payload, named m0, m6 and so on."""
    payload: dict[int, Any] = {0: OWNER.public, 2: node.public, 4: NOW_S - 2 * DAY_S, 6: NOW_S + 365 * DAY_S}
    payload |= {int(name[1:]): value for name, value in changed.items()}
    return signer.seal(purpose, packed({key: value for key, value in payload.items() if value is not None}))


def _of_length(wanted: int) -> bytes:
    short = len(owner_certificate())
    return owner_certificate(**{f"m{PADDING}": bytes(wanted - short - 4)})


def _valid() -> list[tuple[str, bytes, Key, Key]]:
    longest = _of_length(LIMIT_OWNER_BYTES)
    assert len(longest) == LIMIT_OWNER_BYTES, len(longest)
    return [
        ("a node and its owner", owner_certificate(), BOB, OWNER),
        ("another node of that owner", owner_certificate(CAROL), CAROL, OWNER),
        ("another owner", owner_certificate(signer=OTHER_OWNER, m0=OTHER_OWNER.public), BOB, OTHER_OWNER),
        ("its last second", owner_certificate(m6=NOW_S), BOB, OWNER),
        ("it begins in 60 s, as clocks differ", owner_certificate(m4=NOW_S + 60), BOB, OWNER),
        ("it lives for long", owner_certificate(m6=(1 << 63) - 1), BOB, OWNER),
        ("an unknown odd member", owner_certificate(m7="later"), BOB, OWNER),
        ("the longest", longest, BOB, OWNER),
    ]


def _invalid() -> list[tuple[str, bytes, Key, str]]:
    good = owner_certificate()
    return [
        ("nothing", b"", BOB, CODE),
        ("a signature alone", good[:64], BOB, CODE),
        ("cut short", good[:-1], BOB, CODE),
        ("a byte too many", good + b"\0", BOB, CODE),
        ("one byte too long", _of_length(LIMIT_OWNER_BYTES + 1), BOB, "not_admitted"),
        ("shown by another node", good, CAROL, "not_admitted"),
        ("a changed signature", flipped(good, 5), BOB, "not_admitted"),
        ("a changed end", flipped(good, len(good) - 1), BOB, "not_admitted"),
        ("signed by another owner", owner_certificate(signer=OTHER_OWNER), BOB, "not_admitted"),
        ("signed by the node", owner_certificate(signer=BOB), BOB, "not_admitted"),
        ("a node that owns itself", owner_certificate(signer=BOB, m0=BOB.public), BOB, "not_admitted"),
        ("signed for another purpose", owner_certificate(purpose="certificate"), BOB, "not_admitted"),
        ("the signature of another certificate", owner_certificate(ALICE)[:64] + good[64:], BOB, "not_admitted"),
        ("expired a second ago", owner_certificate(m6=NOW_S - 1), BOB, "certificate_expired"),
        ("begins in 61 s", owner_certificate(m4=NOW_S + 61), BOB, "certificate_expired"),
        ("ends before it begins", owner_certificate(m4=NOW_S + 60, m6=NOW_S - 1), BOB, "certificate_expired"),
        ("no owner", owner_certificate(m0=None), BOB, CODE),
        ("an owner of 31 bytes", owner_certificate(m0=OWNER.public[:31]), BOB, CODE),
        ("no end", owner_certificate(m6=None), BOB, CODE),
        ("an end of 2^63", owner_certificate(m6=1 << 63), BOB, CODE),
        ("a beginning that is true", owner_certificate(m4=True), BOB, CODE),
        ("an unknown even member", owner_certificate(m8=0), BOB, CODE),
        ("not in canonical form", OWNER.seal("owner", b"\xde\x00\x04" + good[65:]), BOB, CODE),
    ]
