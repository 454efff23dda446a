"""Invites: the vectors, the text, mistyped ones."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.identity import verify
from meshnode.wire.address import Address
from meshnode.wire.invites import Invite, read, to_bytes, to_text, write
from meshnode.wire.registry import INVITE_PREFIX, LIMIT_INVITE_CHARS, Close, Role
from meshnode.wire.values import WireError
from tests.wire.samples import STEADY, Signer, cases, mutations, refused, shapes, vectors

ALICE = Signer.named("alice")
INVITE = Invite(
    bytes(32), ALICE.node, bytes(8), Role.MEMBER, 1_800_000_000, (Address("192.0.2.1", 9337),), mesh_name="home"
)
TEXT = write(INVITE, ALICE.sign)
SEEDS = [bytes.fromhex(case["hex"]) for case in vectors("invites")["valid"]]


@cases("invites", "valid")
def test_valid(case: dict[str, Any]) -> None:
    signed = to_bytes(case["text"])
    assert signed.hex() == case["hex"]
    assert read(signed, verify).addresses


@cases("invites", "invalid")
def test_invalid(case: dict[str, Any]) -> None:
    refused(case, lambda: read(to_bytes(case["text"]), verify))


@STEADY
@given(shapes(Invite))
def test_an_invite_comes_back(invite: Invite) -> None:
    invite = replace(invite, issuer=ALICE.node, role=invite.role or Role.MEMBER, addresses=invite.addresses[:2])
    assert read(to_bytes(write(invite, ALICE.sign)), verify) == invite


@STEADY
@given(st.integers(0, len(TEXT) - 1), st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"))
def test_one_wrong_letter_is_found(at: int, letter: str) -> None:
    changed = TEXT[:at] + letter + TEXT[at + 1 :]
    if changed == TEXT:
        return
    with pytest.raises(WireError) as caught:
        read(to_bytes(changed), verify)
    assert caught.value.code is Close.INVITE_INVALID


@STEADY
@given(st.text(max_size=60) | st.text(max_size=60).map(lambda text: INVITE_PREFIX + text))
def test_any_text_is_an_invite_or_refused(text: str) -> None:
    with pytest.raises(WireError) as caught:
        read(to_bytes(text), verify)
    assert caught.value.code is Close.INVITE_INVALID


@STEADY
@given(mutations(SEEDS))
def test_no_change_is_accepted(data: bytes) -> None:
    try:
        read(data, verify)
    except WireError as error:
        assert error.code is Close.INVITE_INVALID
    else:
        assert data in SEEDS


def test_the_text_fits_on_a_few_lines_and_in_a_qr_code() -> None:
    assert TEXT.startswith(INVITE_PREFIX)
    assert TEXT.lower() == TEXT
    assert len(TEXT) < 400
    most = replace(INVITE, addresses=(Address("2001:db8::ffff", 9337),) * 8, mesh_name="n" * 40, may_invite=True)
    assert len(write(most, ALICE.sign)) <= LIMIT_INVITE_CHARS


def test_spaces_and_case_do_not_matter() -> None:
    assert to_bytes(f" \t{TEXT[:20].upper()}\r\n  {TEXT[20:]}\n") == to_bytes(TEXT)
    assert to_text(to_bytes(TEXT)) == TEXT


def test_a_huge_text_is_not_read_to_its_end() -> None:
    with pytest.raises(WireError):
        to_bytes(TEXT + "a" * 10_000_000)
