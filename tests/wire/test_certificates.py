"""Certificates: the vectors, chains, rights, replaced keys."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given

from meshnode.identity import verify
from meshnode.wire.certificates import BACKDATED_S, MAX_CHAIN, Certificate, check, issue, read, replaced_keys
from meshnode.wire.registry import LIMIT_CERTIFICATE_BYTES, LIMIT_CLOCK_SKEW_S, Close, Role
from meshnode.wire.values import WireError
from tests.wire.samples import STEADY, Signer, cases, mutations, refused, shapes, vectors

NOW_S = 1_800_000_000
MESH, ALICE, BOB, CAROL = (Signer.named(name) for name in ("mesh", "alice", "bob", "carol"))
BASIS = Certificate(MESH.node, BOB.node, Role.MEMBER, NOW_S - BACKDATED_S, NOW_S + 1000, bytes(8))
SEEDS = [bytes.fromhex(case["hex"]) for case in vectors("certificates")["valid"]]


def checked(case: dict[str, Any]) -> Certificate:
    mesh, node = bytes.fromhex(case["mesh"]), bytes.fromhex(case["node"])
    return check(bytes.fromhex(case["hex"]), mesh=mesh, node=node, now_s=case["now_s"], verify=verify)


@cases("certificates", "valid")
def test_valid(case: dict[str, Any]) -> None:
    certificate = checked(case)
    assert (certificate.role, certificate.may_invite) == (case["role"], case["may_invite"])
    assert [key.hex() for key in replaced_keys(bytes.fromhex(case["hex"]))] == case["replaced"]


@cases("certificates", "invalid")
def test_invalid(case: dict[str, Any]) -> None:
    refused(case, lambda: checked(case))


@STEADY
@given(shapes(Certificate))
def test_a_certificate_comes_back(certificate: Certificate) -> None:
    assert read(issue(certificate, MESH.sign)) == certificate


@STEADY
@given(mutations(SEEDS))
def test_no_change_is_accepted(data: bytes) -> None:
    for case in vectors("certificates")["valid"][:6]:
        mesh, node = bytes.fromhex(case["mesh"]), bytes.fromhex(case["node"])
        try:
            check(data, mesh=mesh, node=node, now_s=NOW_S, verify=verify)
        except WireError as error:
            assert error.code in (
                Close.PROTOCOL_ERROR,
                Close.NOT_ADMITTED,
                Close.WRONG_MESH,
                Close.CERTIFICATE_EXPIRED,
            )
        else:
            assert data in SEEDS


@pytest.mark.parametrize(
    ("now_s", "code"),
    [
        (BASIS.not_before - LIMIT_CLOCK_SKEW_S, None),
        (BASIS.not_before - LIMIT_CLOCK_SKEW_S - 1, Close.CERTIFICATE_EXPIRED),
        (BASIS.not_after, None),
        (BASIS.not_after + 0.5, Close.CERTIFICATE_EXPIRED),
    ],
)
def test_its_time(now_s: float, code: Close | None) -> None:
    signed = issue(BASIS, MESH.sign)
    if code is None:
        assert check(signed, mesh=MESH.node, node=BOB.node, now_s=now_s, verify=verify) == BASIS
        return
    with pytest.raises(WireError) as caught:
        check(signed, mesh=MESH.node, node=BOB.node, now_s=now_s, verify=verify)
    assert caught.value.code is code


def test_a_chain_counts_only_while_all_of_it_does() -> None:
    above = issue(replace(BASIS, node=ALICE.node, may_invite=True, not_after=NOW_S + 10), MESH.sign)
    below = issue(replace(BASIS, authority=above), ALICE.sign)
    assert check(below, mesh=MESH.node, node=BOB.node, now_s=NOW_S + 10, verify=verify).node == BOB.node
    with pytest.raises(WireError, match="expired"):
        check(below, mesh=MESH.node, node=BOB.node, now_s=NOW_S + 11, verify=verify)


def test_the_longest_chain_fits_and_a_longer_one_is_not_followed() -> None:
    """Whatever the length, no more signatures are asked for than a chain has links."""
    asked = 0

    def counted(key: bytes, signature: bytes, message: bytes) -> bool:
        nonlocal asked
        asked += 1
        return verify(key, signature, message)

    signed, signer = b"", MESH
    for number in range(5):
        holder = Signer.named(f"link {number}")
        certificate = replace(BASIS, node=holder.node, may_invite=True, authority=signed)
        if number >= 4:
            with pytest.raises(WireError, match=f"at most {LIMIT_CERTIFICATE_BYTES}"):
                issue(certificate, signer.sign)
            break
        signed, signer = issue(certificate, signer.sign), holder
        asked = 0
        if number < MAX_CHAIN:
            check(signed, mesh=MESH.node, node=holder.node, now_s=NOW_S, verify=counted)
            assert asked == number + 1
        else:
            with pytest.raises(WireError, match="too long"):
                check(signed, mesh=MESH.node, node=holder.node, now_s=NOW_S, verify=counted)
            assert asked == 0


def test_replaced_keys_are_listed_latest_first() -> None:
    first = issue(replace(BASIS, node=ALICE.node), MESH.sign)
    second = issue(replace(BASIS, node=BOB.node, replaces=True, authority=first), ALICE.sign)
    third = issue(replace(BASIS, node=CAROL.node, replaces=True, authority=second), BOB.sign)
    assert replaced_keys(first) == ()
    assert replaced_keys(third) == (BOB.node, ALICE.node)
