"""Owner certificates: the vectors, their time, and their text."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.identity import verify
from meshnode.wire import owners
from meshnode.wire.address import Address
from meshnode.wire.owners import BACKDATED_S, OwnerCertificate, check, is_timely, issue, read, to_bytes, to_text
from meshnode.wire.registry import LIMIT_CLOCK_SKEW_S, LIMIT_OWNER_BYTES, LIMIT_OWNER_TTL_S, LIMIT_STATEMENT_BYTES
from meshnode.wire.statements import Identity, make
from meshnode.wire.values import WireError
from tests.wire.samples import STEADY, Signer, cases, mutations, refused, shapes, vectors

NOW_S = 1_800_000_000
OWNER, BOB = Signer.named("owner"), Signer.named("bob")
BASIS = OwnerCertificate(OWNER.node, BOB.node, NOW_S - BACKDATED_S, NOW_S + LIMIT_OWNER_TTL_S)
SEEDS = [bytes.fromhex(case["hex"]) for case in vectors("owners")["valid"]]


def checked(case: dict[str, Any]) -> OwnerCertificate:
    return check(bytes.fromhex(case["hex"]), node=bytes.fromhex(case["node"]), now_s=case["now_s"], verify=verify)


@cases("owners", "valid")
def test_valid(case: dict[str, Any]) -> None:
    assert checked(case).owner.hex() == case["owner"]


@cases("owners", "invalid")
def test_invalid(case: dict[str, Any]) -> None:
    refused(case, lambda: checked(case))


@STEADY
@given(shapes(OwnerCertificate))
def test_a_certificate_comes_back(certificate: OwnerCertificate) -> None:
    signed = issue(certificate, OWNER.sign)
    assert read(signed) == certificate and len(signed) <= LIMIT_OWNER_BYTES
    assert to_bytes(to_text(signed)) == signed


@STEADY
@given(mutations(SEEDS))
def test_no_change_is_accepted(data: bytes) -> None:
    for case in vectors("owners")["valid"][:3]:
        try:
            check(data, node=bytes.fromhex(case["node"]), now_s=NOW_S, verify=verify)
        except WireError:
            continue
        assert data in SEEDS


@pytest.mark.parametrize(
    ("now_s", "counts"),
    [
        (BASIS.not_before - LIMIT_CLOCK_SKEW_S - 1, False),
        (BASIS.not_before - LIMIT_CLOCK_SKEW_S, True),
        (BASIS.not_after, True),
        (BASIS.not_after + 0.5, False),
    ],
)
def test_its_time(now_s: float, counts: bool) -> None:
    assert is_timely(BASIS, now_s) is counts


def test_the_signature_is_asked_for_once_and_last() -> None:
    asked = []

    def counted(key: bytes, signature: bytes, message: bytes) -> bool:
        asked.append(key)
        return verify(key, signature, message)

    signed = issue(BASIS, OWNER.sign)
    with pytest.raises(WireError, match="another node"):
        check(signed, node=OWNER.node, now_s=NOW_S, verify=counted)
    assert asked == []
    assert check(signed, node=BOB.node, now_s=NOW_S, verify=counted) == BASIS
    assert asked == [OWNER.node]


def test_it_fits_into_the_longest_identity() -> None:
    """Beside a certificate of three links, eight addresses of IPv6, and both texts at their longest."""
    chain = max((bytes.fromhex(case["hex"]) for case in vectors("certificates")["valid"][:10]), key=len)
    addresses = tuple(Address.from_bytes(bytes([0x20, n] * 8) + b"\x24\x79") for n in range(8))
    identity = Identity(chain, addresses, "n" * 40, "s" * 40, owner=issue(BASIS, OWNER.sign))
    made = make(identity, origin=BOB.node, incarnation=1 << 40, number=1 << 40, sign=BOB.sign)
    assert len(chain) > 480 and len(made.signed) <= LIMIT_STATEMENT_BYTES


# --- text -------------------------------------------------------------------------------------------------------


def test_white_space_and_case_do_not_matter() -> None:
    text = to_text(issue(BASIS, OWNER.sign))
    wrapped = "  " + "\r\n\t".join(text[at : at + 40] for at in range(0, len(text), 40))
    assert to_bytes(wrapped) == to_bytes(text.upper()) == issue(BASIS, OWNER.sign)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[:3],
        lambda text: "mn1" + text[3:],
        lambda text: text[:-1],
        lambda text: text[:60] + "1" + text[61:],
        lambda text: text + "=",
        lambda text: text[:60] + "\u212a" + text[61:],
        lambda text: text * 40,
        lambda text: text + "a" * (owners.MOST_CHARS + 1 - len(text)),
    ],
)
def test_no_text_of_a_certificate(change: Any) -> None:
    with pytest.raises(WireError):
        to_bytes(change(to_text(issue(BASIS, OWNER.sign))))


@STEADY
@given(st.text(max_size=80))
def test_whatever_is_pasted_is_refused_in_words(text: str) -> None:
    with pytest.raises(WireError) as caught:
        to_bytes(text)
    assert "owner certificate" in caught.value.reason


def test_of_another_owner_with_the_same_node() -> None:
    other = Signer.named("thief")
    forged = issue(BASIS, other.sign)
    with pytest.raises(WireError, match="forged"):
        check(forged, node=BOB.node, now_s=NOW_S, verify=verify)
    honest = issue(replace(BASIS, owner=other.node), other.sign)
    assert check(honest, node=BOB.node, now_s=NOW_S, verify=verify).owner == other.node
