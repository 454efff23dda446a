"""Vectors of what is signed: statements, certificates, invites. The keys are made from names and are worth nothing.

A case is built from its payload as a plain map, so that what no writer would sign can be signed here.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from cases_messages import map_of
from cases_values import CODE, packed, plain
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from meshnode.wire.registry import INVITE_PREFIX, LIMIT_CERTIFICATE_BYTES, LIMIT_STATEMENT_BYTES, StatementKind
from meshnode.wire.statements import BODIES

NOW_S = 1_800_000_000
DAY_S = 86_400
MEMBER, CLIENT = 1, 2
PADDING = 253
"""An odd member that no shape has: a reader passes over it, so it lengthens what should be too long."""


class Key:
    """An Ed25519 key made from a name."""

    def __init__(self, name: str) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"meshnode vectors " + name.encode()).digest())
        self.public = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def seal(self, purpose: str, payload: bytes) -> bytes:
        """Signature and payload."""
        return self._key.sign(b"meshnode/1 " + purpose.encode() + b"\0" + payload) + payload


MESH, OTHER_MESH = Key("mesh"), Key("another mesh")
ALICE, BOB, CAROL, DAVE, ERIN = (Key(name) for name in ("alice", "bob", "carol", "dave", "erin"))


def files() -> dict[str, dict[str, Any]]:
    """The files of this layer."""
    return {
        "statements.json": {
            "about": "signed statements, with their ids: 04-membership.md; `origin` signs",
            "valid": _statements(),
            "invalid": [
                {"comment": comment, "hex": signed.hex(), "code": CODE} for comment, signed in _no_statements()
            ],
        },
        "certificates.json": {
            "about": "what `node` shows at the wall time `now_s` to prove that it belongs to `mesh`: 07-admission.md",
            "valid": [
                {
                    **_asked(signed, node),
                    "role": role,
                    "may_invite": may,
                    "replaced": [key.public.hex() for key in gone],
                }
                | {"comment": comment}
                for comment, signed, node, role, may, gone in _certificates()
            ],
            "invalid": [
                {"comment": comment, **_asked(signed, node, mesh), "code": code}
                for comment, signed, node, mesh, code in _no_certificates()
            ],
        },
        "invites.json": {
            "about": "texts that a person pastes, and what they say: 07-admission.md",
            "valid": _invites(),
            "invalid": [
                {"comment": comment, "text": text, "code": "invite_invalid"} for comment, text in _no_invites()
            ],
        },
    }


def flipped(signed: bytes, at: int) -> bytes:
    """The same with one bit changed."""
    return signed[:at] + bytes((signed[at] ^ 1,)) + signed[at + 1 :]


# --- statements -----------------------------------------------------------------------------------------------


def statement(kind: int, body: bytes, signer: Key = ALICE, purpose: str = "statement", **changed: Any) -> bytes:
    """A signed statement of `signer`; `changed` replaces members of its payload, named m0, m2 and so on."""
    payload = {0: kind, 2: signer.public, 4: 7, 6: 41, 8: body}
    payload |= {int(name[1:]): value for name, value in changed.items()}
    return signer.seal(purpose, packed({key: value for key, value in payload.items() if value is not None}))


def _statements() -> list[dict[str, Any]]:
    cases: list[tuple[str, int, dict[int, Any]]] = []
    for kind, shape in BODIES.items():
        name = StatementKind(kind).name.lower()
        cases.append((f"{name}, only what must be there", int(kind), map_of(shape, full=False)))
        cases.append((f"{name}, everything", int(kind), map_of(shape, full=True)))
    cases.append(("with an unknown odd member in its body", 8, {PADDING: "later"}))
    cases.append(("of an unknown odd kind: carried on, not understood", 9, {0: "later", 1: [1]}))
    found = []
    for comment, kind, body in cases:
        signed = statement(kind, packed(body))
        assert len(signed) <= LIMIT_STATEMENT_BYTES, comment
        found.append(_statement_case(comment, signed, kind, body))
    longest = statement(9, packed({1: bytes(LIMIT_STATEMENT_BYTES - 115)}))
    assert len(longest) == LIMIT_STATEMENT_BYTES, len(longest)
    return [*found, _statement_case("the longest", longest, 9, {1: bytes(LIMIT_STATEMENT_BYTES - 115)})]


def _statement_case(comment: str, signed: bytes, kind: int, body: dict[int, Any]) -> dict[str, Any]:
    about = {"id": hashlib.sha256(signed).hexdigest()[:20], "kind": kind, "origin": ALICE.public.hex()}
    return {"comment": comment, "hex": signed.hex(), **about, "incarnation": 7, "number": 41, "body": plain(body)}


def _no_statements() -> list[tuple[str, bytes]]:
    leave, accuse = packed({}), packed({0: BOB.public, 2: 3})
    good = statement(8, leave)
    return [
        ("nothing", b""),
        ("a signature alone", good[:64]),
        ("cut short", good[:-1]),
        ("a byte too many", good + b"\0"),
        ("a changed signature", flipped(good, 3)),
        ("the other half of the signature changed", flipped(good, 40)),
        ("a changed number", flipped(good, len(good) - 4)),
        ("signed by another than its origin", BOB.seal("statement", good[64:])),
        ("signed for another purpose", statement(8, leave, purpose="invite")),
        ("signed without a purpose", statement(8, leave, purpose="")),
        ("an unknown even kind", statement(10, leave)),
        ("a kind of three bytes", statement(0x10001, leave)),
        ("no origin", statement(8, leave, m2=None)),
        ("an origin of 31 bytes", statement(8, leave, m2=ALICE.public[:31])),
        ("an incarnation of 2^63", statement(8, leave, m4=1 << 63)),
        ("a negative number", statement(8, leave, m6=-1)),
        ("a number that is true", statement(8, leave, m6=True)),
        ("no body", statement(8, leave, m8=None)),
        ("an empty body", statement(8, b"")),
        ("a body that is no byte string", statement(8, leave, m8={})),
        ("an unknown even member", statement(8, leave, m10=0)),
        ("a payload that is not canonical", ALICE.seal("statement", b"\xde\x00\x05" + good[65:])),
        ("a payload with a member twice", ALICE.seal("statement", b"\x86" + good[65:] + b"\x08\xc4\x01\x80")),
        ("a body that is not canonical", statement(8, b"\xde\x00\x00")),
        ("a body with two values", statement(8, b"\x80\x80")),
        ("a body of an unknown odd kind that is no value", statement(9, b"\xc1")),
        ("a body of an unknown odd kind that is not canonical", statement(9, b"\x81\xcc\x01\x00")),
        ("the body of another kind", statement(2, accuse)),
        ("an accusation without a subject", statement(6, packed({2: 3}))),
        ("a demand with a wish for nothing", statement(4, packed({0: [{0: "", 2: 1}]}))),
        ("a dynamic with 1 EiB of memory", statement(2, packed({0: [{0: "GPU", 2: 1 << 60, 4: 0}]}))),
        ("a dynamic with an escape sequence in a name", statement(2, packed({0: [{0: "\x1b[2J", 2: 1, 4: 0}]}))),
        ("an identity that is to be dialled at 0.0.0.0", statement(0, packed({0: bytes(65), 2: [bytes(5) + b"\1"]}))),
        ("one byte too long", statement(9, packed({1: bytes(LIMIT_STATEMENT_BYTES - 114)}))),
    ]


# --- certificates ----------------------------------------------------------------------------------------------


def certificate(signer: Key, node: Key, authority: bytes = b"", purpose: str = "certificate", **changed: Any) -> bytes:
    """A certificate for `node`; `changed` replaces members of its payload, named m4, m12 and so on."""
    payload: dict[int, Any] = {0: MESH.public, 2: node.public, 4: MEMBER, 6: NOW_S - 2 * DAY_S, 8: NOW_S + 90 * DAY_S}
    payload[10] = hashlib.sha256(node.public).digest()[:8]
    if authority:
        payload[16] = authority
    payload |= {int(name[1:]): value for name, value in changed.items()}
    return signer.seal(purpose, packed({key: value for key, value in payload.items() if value is not None}))


def _asked(signed: bytes, node: Key, mesh: Key = MESH) -> dict[str, Any]:
    return {"hex": signed.hex(), "mesh": mesh.public.hex(), "node": node.public.hex(), "now_s": NOW_S}


def _certificates() -> list[tuple[str, bytes, Key, int, bool, list[Key]]]:
    alice = certificate(MESH, ALICE, m12=True)
    bob = certificate(ALICE, BOB, alice, m12=True)
    plain_bob = certificate(MESH, BOB)
    inviting_client = certificate(MESH, ERIN, m4=CLIENT, m12=True)
    bob_again = certificate(BOB, CAROL, plain_bob, m14=True)
    longest = certificate(MESH, BOB, **{f"m{PADDING}": bytes(LIMIT_CERTIFICATE_BYTES - len(plain_bob) - 5)})
    assert len(longest) == LIMIT_CERTIFICATE_BYTES, len(longest)
    return [
        ("a member, signed by the mesh", plain_bob, BOB, MEMBER, False, []),
        ("a client-only node, signed by the mesh", certificate(MESH, BOB, m4=CLIENT), BOB, CLIENT, False, []),
        ("one who may invite", alice, ALICE, MEMBER, True, []),
        ("invited by one who may", certificate(ALICE, CAROL, alice), CAROL, MEMBER, False, []),
        ("three links", certificate(BOB, CAROL, bob), CAROL, MEMBER, False, []),
        ("a replaced key", bob_again, CAROL, MEMBER, False, [BOB]),
        ("a key replaced twice", certificate(CAROL, DAVE, bob_again, m14=True), DAVE, MEMBER, False, [CAROL, BOB]),
        (
            "a replacement that gives up the right to invite",
            certificate(ALICE, DAVE, alice, m14=True),
            DAVE,
            MEMBER,
            False,
            [ALICE],
        ),
        (
            "a replacement that keeps it",
            certificate(ALICE, DAVE, alice, m14=True, m12=True),
            DAVE,
            MEMBER,
            True,
            [ALICE],
        ),
        (
            "invited by a replaced key's owner",
            certificate(DAVE, BOB, certificate(ALICE, DAVE, alice, m14=True, m12=True)),
            BOB,
            MEMBER,
            False,
            [ALICE],
        ),
        (
            "a client-only node invites another",
            certificate(ERIN, DAVE, inviting_client, m4=CLIENT),
            DAVE,
            CLIENT,
            False,
            [],
        ),
        ("a member invites a client-only node", certificate(ALICE, DAVE, alice, m4=CLIENT), DAVE, CLIENT, False, []),
        ("its last second", certificate(MESH, BOB, m8=NOW_S), BOB, MEMBER, False, []),
        ("it begins in 60 s, as clocks differ", certificate(MESH, BOB, m6=NOW_S + 60), BOB, MEMBER, False, []),
        ("it outlives the one above it", certificate(ALICE, BOB, alice, m8=NOW_S + 99 * DAY_S), BOB, MEMBER, False, []),
        ("an unknown odd member", certificate(MESH, BOB, m17="later"), BOB, MEMBER, False, []),
        ("the longest", longest, BOB, MEMBER, False, []),
    ]


def _no_certificates() -> list[tuple[str, bytes, Key, Key, str]]:
    alice = certificate(MESH, ALICE, m12=True)
    bob = certificate(ALICE, BOB, alice, m12=True)
    carol = certificate(BOB, CAROL, bob, m12=True)
    good = certificate(MESH, BOB)
    inviting_client = certificate(MESH, ERIN, m4=CLIENT, m12=True)
    cases: list[tuple[str, bytes, Key, str]] = [
        ("nothing", b"", BOB, CODE),
        ("a signature alone", good[:64], BOB, CODE),
        ("cut short", good[:-1], BOB, CODE),
        ("a byte too many", good + b"\0", BOB, CODE),
        ("of another node", good, CAROL, "not_admitted"),
        ("a changed signature", flipped(good, 0), BOB, "not_admitted"),
        ("a changed serial", flipped(good, len(good) - 1), BOB, "not_admitted"),
        ("signed by its own node", certificate(BOB, BOB), BOB, "not_admitted"),
        ("signed by the key of another mesh", certificate(OTHER_MESH, BOB), BOB, "not_admitted"),
        ("signed for another purpose", certificate(MESH, BOB, purpose="statement"), BOB, "not_admitted"),
        ("expired a second ago", certificate(MESH, BOB, m8=NOW_S - 1), BOB, "certificate_expired"),
        ("begins in 61 s", certificate(MESH, BOB, m6=NOW_S + 61), BOB, "certificate_expired"),
        ("role 0", certificate(MESH, BOB, m4=0), BOB, "not_admitted"),
        ("an unknown role", certificate(MESH, BOB, m4=3), BOB, CODE),
        ("no role", certificate(MESH, BOB, m4=None), BOB, CODE),
        ("a node of 33 bytes", certificate(MESH, BOB, m2=BOB.public + b"\0"), BOB, CODE),
        ("an end of 2^63", certificate(MESH, BOB, m8=1 << 63), BOB, CODE),
        ("an unknown even member", certificate(MESH, BOB, m18=0), BOB, CODE),
        ("not in canonical form", MESH.seal("certificate", b"\xde\x00\x06" + good[65:]), BOB, CODE),
        ("one byte too long", _of_length(LIMIT_CERTIFICATE_BYTES + 1), BOB, "not_admitted"),
        ("four links", certificate(CAROL, DAVE, carol), DAVE, "not_admitted"),
        ("four links, two of them replacements", certificate(CAROL, DAVE, carol, m14=True), DAVE, "not_admitted"),
        ("the signer may not invite", certificate(BOB, CAROL, good), CAROL, "not_admitted"),
        ("signed by another than the authority", certificate(DAVE, CAROL, alice), CAROL, "not_admitted"),
        ("signed by the mesh in place of the authority", certificate(MESH, CAROL, alice), CAROL, "not_admitted"),
        ("a forged authority", certificate(ALICE, CAROL, flipped(alice, 0)), CAROL, "not_admitted"),
        (
            "an authority that vouches for itself",
            certificate(ALICE, CAROL, certificate(ALICE, ALICE, m12=True)),
            CAROL,
            "not_admitted",
        ),
        ("a key vouches for itself", certificate(ALICE, ALICE, alice), ALICE, "not_admitted"),
        ("a key replaces itself", certificate(ALICE, ALICE, alice, m14=True), ALICE, "not_admitted"),
        (
            "an expired authority",
            certificate(ALICE, CAROL, certificate(MESH, ALICE, m12=True, m8=NOW_S - 1)),
            CAROL,
            "certificate_expired",
        ),
        (
            "an authority of another mesh",
            certificate(ALICE, CAROL, certificate(OTHER_MESH, ALICE, m12=True, m0=OTHER_MESH.public)),
            CAROL,
            "not_admitted",
        ),
        ("an authority that is no certificate", certificate(ALICE, CAROL, bytes(80)), CAROL, CODE),
        ("a client-only node invites a member", certificate(ERIN, DAVE, inviting_client), DAVE, "not_admitted"),
        ("a replacement of nothing", certificate(MESH, BOB, m14=True), BOB, "not_admitted"),
        ("a replacement that may invite", certificate(BOB, CAROL, good, m14=True, m12=True), CAROL, "not_admitted"),
        ("a replacement in another role", certificate(BOB, CAROL, good, m14=True, m4=CLIENT), CAROL, "not_admitted"),
        (
            "a replacement that lives longer",
            certificate(BOB, CAROL, good, m14=True, m8=NOW_S + 91 * DAY_S),
            CAROL,
            "not_admitted",
        ),
    ]
    return [
        *((comment, signed, node, MESH, code) for comment, signed, node, code in cases),
        ("of another mesh", good, BOB, OTHER_MESH, "wrong_mesh"),
        ("of another mesh and of another node", good, CAROL, OTHER_MESH, "wrong_mesh"),
    ]


def _of_length(wanted: int) -> bytes:
    short = len(certificate(MESH, BOB))
    return certificate(MESH, BOB, **{f"m{PADDING}": bytes(wanted - short - 5)})


# --- invites ----------------------------------------------------------------------------------------------------


def invite(signer: Key = ALICE, purpose: str = "invite", **changed: Any) -> bytes:
    """The signed bytes of an invite; `changed` replaces members of its payload, named m4, m12 and so on."""
    payload: dict[int, Any] = {0: MESH.public, 2: ALICE.public, 4: bytes(range(8)), 6: MEMBER, 8: NOW_S + DAY_S}
    payload[10] = [bytes.fromhex("c00002012479")]
    payload |= {int(name[1:]): value for name, value in changed.items()}
    return signer.seal(purpose, packed({key: value for key, value in payload.items() if value is not None}))


def text_of(signed: bytes) -> str:
    """The text to paste."""
    return INVITE_PREFIX + base64.b32encode(signed).decode().rstrip("=").lower()


def _invites() -> list[dict[str, Any]]:
    usual = invite()
    text = text_of(usual)
    six = bytes.fromhex("20010db8" + "00" * 11 + "012479")
    cases = [
        ("an invite", text, usual),
        ("in capitals", text.upper(), usual),
        (
            "wrapped by a mail program",
            "  " + "\r\n\t".join(text[at : at + 40] for at in range(0, len(text), 40)),
            usual,
        ),
    ]
    for comment, signed in (
        ("for a client-only node", invite(m6=CLIENT)),
        ("of one that may invite, with a name", invite(m12=True, m13="K\u00fcche & Caf\u00e9")),
        ("eight addresses", invite(m10=[bytes.fromhex("c00002012479"), six] * 4)),
        ("long expired: that is the issuer's to say", invite(m8=0)),
        ("an unknown odd member", invite(m15=1)),
    ):
        cases.append((comment, text_of(signed), signed))
    return [{"comment": comment, "text": shown, "hex": signed.hex()} for comment, shown, signed in cases]


def _no_invites() -> list[tuple[str, str]]:
    signed = invite()
    text = text_of(signed)
    middle = len(text) // 2
    other = "b" if text[middle] == "a" else "a"
    assert len(signed) % 5, "the last digit must have bits to spare"
    spare = "abcdefghijklmnopqrstuvwxyz234567"
    return [
        ("nothing", ""),
        ("the prefix alone", INVITE_PREFIX),
        ("another prefix", "mn2" + text[3:]),
        ("no prefix", text[3:]),
        ("an address of a web page", "https://example.org/" + text),
        ("cut short by one", text[:-1]),
        ("cut short by half", text[:middle]),
        ("one digit changed", text[:middle] + other + text[middle + 1 :]),
        ("one digit too many", text + "a"),
        ("bits to spare that are not zero", text[:-1] + spare[spare.index(text[-1]) | 1]),
        ("padded", text + "=" * (-len(text[3:]) % 8)),
        ("a digit that base32 has not", text[:middle] + "1" + text[middle + 1 :]),
        ("a letter that becomes an ASCII one in small", text[:middle] + "\u212a" + text[middle + 1 :]),
        ("twice", text + text),
        ("a signature alone", text_of(signed[:64])),
        ("too long", text_of(invite(m15=bytes(500)))),
        ("signed by another than its issuer", text_of(BOB.seal("invite", signed[64:]))),
        ("signed by the mesh", text_of(MESH.seal("invite", signed[64:]))),
        ("signed for another purpose", text_of(invite(purpose="certificate"))),
        ("a changed mesh", text_of(flipped(signed, 70))),
        ("a byte too many", text_of(signed + b"\0")),
        ("no address", text_of(invite(m10=[]))),
        ("nine addresses", text_of(invite(m10=[bytes.fromhex("c00002012479")] * 9))),
        ("an address that is broadcast", text_of(invite(m10=[bytes.fromhex("ffffffff2479")]))),
        ("role 0", text_of(invite(m6=0))),
        ("an unknown role", text_of(invite(m6=3))),
        ("no issuer", text_of(invite(m2=None))),
        ("an id of 7 bytes", text_of(invite(m4=bytes(7)))),
        ("an unknown even member", text_of(invite(m14=0))),
        ("a name with a new line", text_of(invite(m13="a\nb"))),
        ("a name of 41 characters", text_of(invite(m13="a" * 41))),
        ("not in canonical form", text_of(ALICE.seal("invite", b"\xde\x00\x06" + signed[65:]))),
    ]
