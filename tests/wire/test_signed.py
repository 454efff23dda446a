"""Signatures: over a purpose and the bytes that were received."""

from dataclasses import dataclass

import pytest

from meshnode.identity import verify
from meshnode.wire.schema import MAX_U32, UInt, member
from meshnode.wire.signed import SIGNATURE_BYTES, is_signed_by, open_payload, payload_of, purposed, seal
from meshnode.wire.values import WireError
from tests.wire.samples import Signer

ALICE, BOB = Signer.named("alice"), Signer.named("bob")


@dataclass(frozen=True, slots=True)
class Note:
    """Something to sign."""

    number: int = member(0, UInt(MAX_U32))


SIGNED = seal("note", Note(7), ALICE.sign)


def test_a_signature_stands_before_the_payload() -> None:
    assert SIGNED[SIGNATURE_BYTES:] == bytes.fromhex("810007")
    assert open_payload(Note, SIGNED, limit_bytes=10) == Note(7)
    assert is_signed_by(ALICE.node, "note", SIGNED, verify)


def test_nothing_else_is_signed() -> None:
    assert not is_signed_by(BOB.node, "note", SIGNED, verify)
    assert not is_signed_by(ALICE.node, "other", SIGNED, verify)
    assert not is_signed_by(ALICE.node, "note", SIGNED[:-1] + b"\x08", verify)
    assert not is_signed_by(ALICE.node[:31], "note", SIGNED, verify)
    assert not is_signed_by(ALICE.node, "note", b"", verify)


@pytest.mark.parametrize("at", range(SIGNATURE_BYTES))
def test_every_bit_of_the_signature_counts(at: int) -> None:
    for bit in range(8):
        changed = SIGNED[:at] + bytes((SIGNED[at] ^ 1 << bit,)) + SIGNED[at + 1 :]
        assert not is_signed_by(ALICE.node, "note", changed, verify)


def test_a_purpose_ends_where_it_ends() -> None:
    """No purpose and payload read as another purpose and payload."""
    assert purposed("note", b"x") == b"meshnode/1 note\0x"
    assert purposed("not", b"e\0x") != purposed("note", b"x")


def test_a_malleable_signature_is_refused() -> None:
    """S + L is the same point as S (RFC 8032, 5.1.7): accepting it would give a statement two names."""
    order = (1 << 252) + 27742317777372353535851937790883648493
    greater = int.from_bytes(SIGNED[32:64], "little") + order
    assert not is_signed_by(ALICE.node, "note", SIGNED[:32] + greater.to_bytes(32, "little") + SIGNED[64:], verify)


@pytest.mark.parametrize("signed", [b"", SIGNED[:10], SIGNED[:SIGNATURE_BYTES]])
def test_too_short(signed: bytes) -> None:
    with pytest.raises(WireError, match="too short"):
        payload_of(signed)


def test_the_payload_is_canonical_and_bounded() -> None:
    with pytest.raises(WireError, match="canonical"):
        open_payload(Note, bytes(64) + bytes.fromhex("8100cc07"), limit_bytes=10)
    with pytest.raises(WireError, match="at most"):
        open_payload(Note, SIGNED, limit_bytes=2)
