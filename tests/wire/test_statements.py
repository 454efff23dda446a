"""Statements: the vectors, round trips of every kind, order, size."""

import hashlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.identity import verify
from meshnode.wire import schema
from meshnode.wire.registry import LIMIT_STATEMENT_BYTES, Close, StatementKind
from meshnode.wire.statements import (
    BODIES,
    SHORT_ID_BYTES,
    Accuse,
    Device,
    Dynamic,
    Leave,
    Offer,
    is_genuine,
    make,
    read,
)
from meshnode.wire.values import WireError
from tests.wire.samples import STEADY, Signer, cases, mutations, refused, shapes, vectors

ALICE = Signer.named("alice")
SEEDS = [bytes.fromhex(case["hex"]) for case in vectors("statements")["valid"]]


def genuine(signed: bytes) -> Any:
    """What a node does with a statement: read it, then ask for its signature."""
    statement = read(signed)
    if not is_genuine(statement, verify):
        raise WireError("forged")
    return statement


@cases("statements", "valid")
def test_valid(case: dict[str, Any]) -> None:
    statement = genuine(bytes.fromhex(case["hex"]))
    assert statement.id.hex() == case["id"]
    assert statement.kind == case["kind"]
    assert statement.origin.hex() == case["origin"]
    assert statement.order == (case["incarnation"], case["number"])
    assert statement.signed.hex() == case["hex"]
    assert (statement.body is None) == (statement.kind not in BODIES)


@cases("statements", "invalid")
def test_invalid(case: dict[str, Any]) -> None:
    refused(case, lambda: genuine(bytes.fromhex(case["hex"])))


@pytest.mark.parametrize("kind", BODIES, ids=lambda kind: StatementKind(kind).name)
def test_a_statement_comes_back(kind: StatementKind) -> None:
    @settings(STEADY, max_examples=25)
    @given(shapes(BODIES[kind]), st.integers(0, (1 << 63) - 1), st.integers(0, (1 << 63) - 1))
    def comes_back(body: Any, incarnation: int, number: int) -> None:
        try:
            made = make(body, origin=ALICE.node, incarnation=incarnation, number=number, sign=ALICE.sign)
        except WireError as error:
            assert "at most" in error.reason
            return
        assert made.kind == kind
        assert genuine(made.signed) == made

    comes_back()


@STEADY
@given(mutations(SEEDS))
def test_any_bytes_are_a_statement_or_refused(data: bytes) -> None:
    try:
        statement = read(data)
    except WireError as error:
        assert error.code is Close.PROTOCOL_ERROR
        return
    assert is_genuine(statement, verify) is (data in SEEDS)


def test_the_id_is_over_the_signature_too() -> None:
    made = make(Leave(), origin=ALICE.node, incarnation=1, number=2, sign=ALICE.sign)
    assert made.id == hashlib.sha256(made.signed).digest()[:10]


def test_a_writer_keeps_to_the_size() -> None:
    devices = tuple(Device("x" * 40, 1, 1) for _ in range(16))
    offers = tuple(Offer(f"{number}" + "m" * 60, bytes(16), 1, 1, 1) for number in range(10))
    with pytest.raises(WireError, match=str(LIMIT_STATEMENT_BYTES)):
        make(Dynamic(devices, offers), origin=ALICE.node, incarnation=1, number=1, sign=ALICE.sign)


def test_usual_sizes() -> None:
    """What the budgets of 04-membership.md are made from."""

    def size(body: Any) -> int:
        return len(make(body, origin=ALICE.node, incarnation=1 << 31, number=1 << 15, sign=ALICE.sign).signed)

    assert size(Leave()) <= 120
    assert size(Accuse(bytes(32), 1 << 31)) <= 160
    offer = Offer("Qwen3-8B-GGUF:Q4_K_M", bytes(16), 1, 32768, 4, 2, 0, 7, 523, 12_034, 5 << 30)
    devices = (Device("NVIDIA GeForce RTX 4090", 24 << 30, 20 << 30),)
    assert size(Dynamic(devices, (offer,) * 4, tuple(bytes([n]) * SHORT_ID_BYTES for n in range(8)))) <= 600


def test_names_of_members_in_the_schema() -> None:
    """Kinds are told apart by their bodies alone: no two are one shape."""
    described = [str(schema.describe(shape)) for shape in BODIES.values()]
    assert len(set(described)) == len(BODIES)


@pytest.mark.parametrize(
    ("prices", "free"), [((0, 0, 0), True), ((0, 0, 84532), True), ((1, 0, 84532), False), ((0, 1, 0), False)]
)
def test_an_offer_with_a_price_is_not_free(prices: tuple[int, int, int], free: bool) -> None:
    offer = Offer("demo", bytes(16), 1, 4096, 1, price_in=prices[0], price_out=prices[1], chain=prices[2])
    assert offer.is_free is free
    said = make(Dynamic(models=(offer,)), origin=ALICE.node, incarnation=1, number=1, sign=ALICE.sign)
    assert genuine(said.signed).body.models == (offer,)
