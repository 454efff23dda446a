"""Names that mean one open mesh, and what a node may say of itself there."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.identity import Identity, load_or_create, verify
from meshnode.wire import certificates
from meshnode.wire.certificates import BACKDATED_S, Certificate
from meshnode.wire.open_meshes import canonical_name, check_self_issued, open_mesh_id, self_issued
from meshnode.wire.registry import (
    LIMIT_CERTIFICATE_TTL_S,
    LIMIT_CLOCK_SKEW_S,
    LIMIT_PUBLIC_CERTIFICATE_TTL_S,
    Close,
    Role,
)
from meshnode.wire.values import WireError

NOW_S = 1_800_000_000.0
MESH = open_mesh_id("meshnode")
SERIAL = b"serial 1"


@pytest.fixture(scope="module")
def ann(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return load_or_create(tmp_path_factory.mktemp("ann") / "node.key")


@pytest.fixture(scope="module")
def eve(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return load_or_create(tmp_path_factory.mktemp("eve") / "node.key")


def own(identity: Identity, now_s: float = NOW_S, role: Role = Role.MEMBER) -> bytes:
    return self_issued(identity.sign, mesh=MESH, node=identity.node_id, role=role, serial=SERIAL, now_s=now_s)


def changed(identity: Identity, **changes: object) -> bytes:
    """A certificate with other members, signed by the node itself."""
    plain = certificates.read(own(identity))
    return certificates.issue(dataclasses.replace(plain, **changes), identity.sign)  # type: ignore[arg-type]


def refused(signed: bytes, node: bytes, code: Close, *, mesh: bytes = MESH, now_s: float = NOW_S) -> None:
    with pytest.raises(WireError) as caught:
        check_self_issued(signed, mesh=mesh, node=node, now_s=now_s, verify=verify)
    assert caught.value.code == code, caught.value.reason


# --- names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("meshnode", "meshnode"),
        ("  MeshNode ", "meshnode"),
        ("my  little\tmesh", "my-little-mesh"),
        ("STRASSE", "strasse"),
        ("Straße", "strasse"),
        ("ｆｕｌｌ", "full"),
        ("Über_7.b", "über_7.b"),
        ("नमस्ते", "नमस्ते"),
        ("a" * 40, "a" * 40),
    ],
)
def test_one_name_in_many_spellings(text: str, name: str) -> None:
    assert canonical_name(text) == name
    assert open_mesh_id(text) == open_mesh_id(name)


@pytest.mark.parametrize(
    "text", ["", "   ", "a" * 41, "a" * 10_000, "a/b", "a\0b", "a\u200bb", "a\nb!", "\u3164", "😀"]
)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(ValueError, match="name of a public mesh"):
        canonical_name(text)


@given(st.text(max_size=60))
def test_a_canonical_name_stays_as_it_is(text: str) -> None:
    try:
        name = canonical_name(text)
    except ValueError:
        return
    assert canonical_name(name) == name


def test_the_id_is_the_one_of_the_specification() -> None:
    assert MESH.hex() == "d099ec3bc715f87c62d71b14caf967766374ab0af6bad59668db4024790c0ef7"
    assert open_mesh_id("other") != MESH


# --- certificates ---------------------------------------------------------------------------------------------


def test_a_node_vouches_for_itself(ann: Identity) -> None:
    for role in Role:
        found = check_self_issued(own(ann, role=role), mesh=MESH, node=ann.node_id, now_s=NOW_S, verify=verify)
        assert (found.node, found.role, found.may_invite, found.authority) == (ann.node_id, role, False, b"")
        assert found.not_after == NOW_S + LIMIT_PUBLIC_CERTIFICATE_TTL_S


def test_clocks_may_differ(ann: Identity) -> None:
    for apart_s in (-BACKDATED_S, -3600, 3600, BACKDATED_S):
        check_self_issued(own(ann, NOW_S + apart_s), mesh=MESH, node=ann.node_id, now_s=NOW_S, verify=verify)


def test_what_is_replayed_foreign_or_over_is_refused(ann: Identity, eve: Identity) -> None:
    refused(own(ann), eve.node_id, Close.NOT_ADMITTED)
    refused(own(ann), ann.node_id, Close.WRONG_MESH, mesh=open_mesh_id("other"))
    refused(own(ann), ann.node_id, Close.CERTIFICATE_EXPIRED, now_s=NOW_S + LIMIT_PUBLIC_CERTIFICATE_TTL_S + 1)
    refused(own(ann), ann.node_id, Close.CERTIFICATE_EXPIRED, now_s=NOW_S - BACKDATED_S - LIMIT_CLOCK_SKEW_S - 1)


def test_a_certificate_of_half_a_year_is_refused(ann: Identity) -> None:
    refused(changed(ann, not_after=int(NOW_S) + 2 * LIMIT_CERTIFICATE_TTL_S), ann.node_id, Close.NOT_ADMITTED)


def test_nobody_vouches_for_others(ann: Identity, eve: Identity) -> None:
    refused(changed(ann, may_invite=True), ann.node_id, Close.NOT_ADMITTED)
    refused(changed(ann, replaces=True), ann.node_id, Close.NOT_ADMITTED)
    refused(changed(eve, node=bytes(ann.node_id), authority=own(eve)), ann.node_id, Close.NOT_ADMITTED)
    forged = certificates.issue(certificates.read(own(ann)), eve.sign)
    refused(forged, ann.node_id, Close.NOT_ADMITTED)
    refused(own(ann)[:-1] + b"\0", ann.node_id, Close.NOT_ADMITTED)


def test_what_cannot_be_read(ann: Identity) -> None:
    for garbage in (b"", b"x", b"\0" * 300):
        refused(garbage, ann.node_id, Close.PROTOCOL_ERROR)


def test_a_closed_mesh_takes_no_such_certificate(ann: Identity, eve: Identity) -> None:
    """Neither for its own id nor for an open one: the mesh key has not signed."""
    for mesh in (MESH, bytes(eve.node_id)):
        signed = self_issued(ann.sign, mesh=mesh, node=ann.node_id, role=Role.MEMBER, serial=SERIAL, now_s=NOW_S)
        with pytest.raises(WireError) as caught:
            certificates.check(signed, mesh=mesh, node=ann.node_id, now_s=NOW_S, verify=verify)
        assert caught.value.code == Close.NOT_ADMITTED


def test_an_open_mesh_takes_no_certificate_of_a_closed_one(ann: Identity, eve: Identity) -> None:
    issued = Certificate(bytes(eve.node_id), bytes(ann.node_id), Role.MEMBER, 0, int(NOW_S) + 60, SERIAL)
    refused(certificates.issue(issued, eve.sign), ann.node_id, Close.WRONG_MESH)
