"""Listings: the vectors, what comes back, bounds of each member, and signatures that hold for one event alone."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.identity import verify
from meshnode.wire.address import Address
from meshnode.wire.listings import (
    PRICE_CHARS,
    Entry,
    ForgedListing,
    ListedModel,
    Listing,
    identifier,
    price_text,
    read,
    read_price,
    write,
)
from meshnode.wire.open_meshes import open_mesh_id
from meshnode.wire.registry import LIMIT_LISTING_BYTES, LIMIT_PRICE_MICROS, Close
from meshnode.wire.values import WireError
from tests.wire.listing_samples import ALICE, BOB, NOW_S, listing
from tests.wire.samples import STEADY, addresses, cases

PUBLISHER = listing().publisher
FULL = listing(
    entries=(
        Entry(ALICE.node, (Address("192.0.2.1", 9338), Address("2001:db8::1", 9338))),
        Entry(BOB.node, (Address("198.51.100.7", 1),)),
    ),
    models=(ListedModel("qwen3-8b", bytes(16), 4, 200_000, 600_000), ListedModel("demo", b"", 1)),
    wanted=("llama-70b",),
    clients=3,
    max_clients=64,
    region="eu-west",
    software="meshnode 0.1",
    price="200000/600000 84532",
)


def again(content: str, **event: Any) -> Listing:
    """The listing in a content, in the event that it was written for but for what is told."""
    about: dict[str, Any] = {"publisher": PUBLISHER, "created_at": NOW_S} | event
    return read(content, verify=verify, **about)


def signed(plain: dict[str, Any] | str) -> str:
    """Any JSON text with a right signature at its end."""
    text = plain if isinstance(plain, str) else json.dumps(plain, separators=(",", ":"), ensure_ascii=False)
    message = b"meshnode/1 listing\0" + PUBLISHER + NOW_S.to_bytes(8, "big") + text.encode("utf-8", "surrogatepass")
    return f'{text[:-1]},"sig":"{ALICE.sign(message).hex()}"}}'


def plain_of(said: Listing = FULL) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(write(said, ALICE.sign))
    del plain["sig"]
    return plain


@cases("listings", "valid")
def test_valid(case: dict[str, Any]) -> None:
    event = case["event"]
    found = read(
        event["content"], publisher=bytes.fromhex(event["pubkey"]), created_at=event["created_at"], verify=verify
    )
    assert found.mesh.hex() == case["mesh"]
    assert found.node.hex() == case["node"]
    assert [str(address) for entry in found.entries for address in entry.addresses] == case["addresses"]
    assert [model.name for model in found.models] == case["models"]


@pytest.mark.parametrize("said", [listing(), FULL], ids=["sparse", "full"])
def test_a_listing_comes_back(said: Listing) -> None:
    assert again(write(said, ALICE.sign)) == said


@STEADY
@given(st.lists(addresses(), min_size=1, max_size=8, unique=True), st.integers(0, (1 << 50)), st.integers(0, 99))
def test_any_places_and_numbers_come_back(found: list[Address], vram_bytes: int, hosts: int) -> None:
    said = listing(
        entries=(Entry(BOB.node, tuple(found)),), vram_bytes=vram_bytes, models=(ListedModel("m", b"", hosts),)
    )
    assert again(write(said, ALICE.sign)) == said


def test_what_equals_its_default_is_left_out() -> None:
    assert list(plain_of(listing(models=(), vram_bytes=0, nodes=1))) == ["v", "mesh", "name", "node", "entries"]


def test_it_is_what_the_specification_says_byte_by_byte() -> None:
    content = write(listing(models=(), vram_bytes=0, nodes=1), ALICE.sign)
    start = f'{{"v":1,"mesh":"{open_mesh_id("meshnode").hex()}","name":"meshnode","node":"{ALICE.node.hex()}",'
    start += f'"entries":[{{"node":"{ALICE.node.hex()}","addresses":["127.0.0.1:9338"]}}]'
    assert content[: len(start)] == start
    assert content[len(start) : len(start) + 8] == ',"sig":"'
    message = b"meshnode/1 listing\0" + PUBLISHER + NOW_S.to_bytes(8, "big") + f"{start}}}".encode()
    assert verify(ALICE.node, bytes.fromhex(content[len(start) + 8 : -2]), message)


def test_identifier() -> None:
    assert identifier(b"\1" * 32) == "meshnode:" + "01" * 32


# --- signatures ---------------------------------------------------------------------------------------------------


def test_it_holds_for_one_event_alone() -> None:
    content = write(FULL, ALICE.sign)
    for other in ({"publisher": bytes(32)}, {"created_at": NOW_S + 1}):
        with pytest.raises(ForgedListing):
            again(content, **other)


def test_a_claim_to_another_node_is_found() -> None:
    with pytest.raises(ForgedListing):
        again(write(FULL, BOB.sign))
    with pytest.raises(ForgedListing):
        again(write(FULL, ALICE.sign).replace("192.0.2.1:", "192.0.2.2:"))


@STEADY
@given(st.data())
def test_no_change_is_accepted(data: st.DataObject) -> None:
    content = write(FULL, ALICE.sign)
    at = data.draw(st.integers(0, len(content) - 1))
    other = data.draw(st.characters(codec="utf-8"))
    changed = content[:at] + other + content[at + 1 :]
    if changed == content:
        return
    with pytest.raises(WireError):
        again(changed)


def test_what_is_not_known_is_passed_over_and_signed_all_the_same() -> None:
    content = signed(plain_of() | {"later": {"deep": [1.5, None]}, "sign": "x"})
    assert again(content) == FULL
    with pytest.raises(ForgedListing):
        again(content.replace("1.5", "1.6"))


# --- what cannot be read --------------------------------------------------------------------------------------------


def test_the_helper_of_these_tests_signs_rightly() -> None:
    assert again(signed(plain_of())) == FULL


@pytest.mark.parametrize(
    "members",
    [
        {"v": 2},
        {"v": "1"},
        {"v": True},
        {"mesh": FULL.mesh.hex()[:-2]},
        {"mesh": FULL.mesh.hex().upper()},
        {"mesh": open_mesh_id("another").hex()},
        {"name": "another"},
        {"name": "Meshnode"},
        {"name": ""},
        {"name": "mesh\u202enode"},
        {"node": None},
        {"entries": []},
        {"entries": [{"node": "00" * 32}]},
        {"entries": [{"node": "00" * 32, "addresses": []}]},
        {"entries": [{"node": "00" * 32, "addresses": ["192.0.2.1:1"] * 9}]},
        {"entries": [{"node": f"{number:064x}", "addresses": ["192.0.2.1:1"]} for number in range(5)]},
        {"entries": [{"node": "00" * 32, "addresses": ["192.0.2.1:1"]}] * 2},
        {"entries": [{"node": "00" * 32, "addresses": ["relay.example:1"]}]},
        {"entries": [{"node": "00" * 32, "addresses": ["0.0.0.0:1"]}]},
        {"entries": [{"node": "00" * 32, "addresses": ["224.0.0.1:1"]}]},
        {"entries": [{"node": "00" * 32, "addresses": ["[2001:DB8::1]:1"]}]},
        {"entries": [{"node": "00" * 32, "addresses": ["[::ffff:192.0.2.1]:1"]}]},
        {"entries": [{"node": "00" * 32, "addresses": ["192.0.2.1:01"]}]},
        {"entries": [{"node": "00" * 32, "addresses": ["192.0.2.1:0"]}]},
        {"entries": "x"},
        {"models": [{}]},
        {"models": [{"name": ""}]},
        {"models": [{"name": "m" * 65}]},
        {"models": [{"name": "\x1b[2J"}]},
        {"models": [{"name": "m", "hash": "00"}]},
        {"models": [{"name": "m", "hosts": -1}]},
        {"models": [{"name": "m", "hosts": 1 << 32}]},
        {"models": [{"name": "m"}] * 33},
        {"wanted": ["m"] * 17},
        {"wanted": [1]},
        {"vram_bytes": 1.5},
        {"vram_bytes": (1 << 50) + 1},
        {"vram_bytes": True},
        {"nodes": "3"},
        {"clients": -1},
        {"region": "x" * 41},
        {"region": "\n"},
        {"software": None},
        {"price": 1},
    ],
    ids=lambda members: str(members)[:50],
)
def test_a_member_out_of_its_bounds(members: dict[str, Any]) -> None:
    with pytest.raises(WireError) as caught:
        again(signed(plain_of() | members))
    assert not isinstance(caught.value, ForgedListing)
    assert caught.value.code is Close.PROTOCOL_ERROR


@pytest.mark.parametrize("missing", ["v", "mesh", "name", "node", "entries"])
def test_a_member_that_is_not_there(missing: str) -> None:
    plain = plain_of()
    del plain[missing]
    with pytest.raises(WireError):
        again(signed(plain))


BODY = json.dumps(plain_of(), separators=(",", ":"))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        BODY,
        "[]",
        signed("[1]"),
        signed(BODY.replace('"v":1', '"v":NaN')),
        signed(BODY.replace('"v":1', '"v":1,"v":1')),
        signed(BODY.replace('"v":1', '"v":1,"sig":""')),
        signed(BODY.replace('"v":1', f'"v":1,"x":{"[" * 5000}{"]" * 5000}')),
        signed(BODY.replace('"v":1', '"v":1,"x":"\ud800"')),
        signed(BODY) + " ",
        signed(BODY).replace('"}', '" }'),
        signed(BODY)[:-1],
        signed(BODY).replace(',"sig":"', ',"sig":"0', 1),
        "x" * 10_000_000,
        signed(plain_of() | {"later": "x" * LIMIT_LISTING_BYTES}),
        signed(plain_of() | {"later": "\u20ac" * (LIMIT_LISTING_BYTES // 3)}),
    ],
    ids=range(17),
)
def test_a_text_that_is_no_listing(content: str) -> None:
    with pytest.raises(WireError) as caught:
        again(content)
    assert not isinstance(caught.value, ForgedListing)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "another"},
        {"publisher": b""},
        {"vram_bytes": -1},
        {"entries": ()},
        {"models": (ListedModel("m" * 64, bytes(16), 1),) * 33},
        {"region": "\n"},
        {"entries": (Entry(ALICE.node, (Address("0.0.0.0", 1),)),)},
    ],
    ids=str,
)
def test_a_listing_out_of_bounds_is_never_written(changes: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        write(replace(FULL, **changes), ALICE.sign)


def test_whatever_is_within_its_bounds_fits() -> None:
    most = replace(
        FULL,
        entries=tuple(
            Entry(bytes([number]) * 32, (Address("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", 65535),) * 8)
            for number in range(4)
        ),
        models=(ListedModel("\U0001f640" * 64, bytes(16), (1 << 32) - 1),) * 32,
        wanted=("\u20ac" * 64,) * 16,
    )
    assert 14_000 < len(write(most, ALICE.sign).encode()) <= LIMIT_LISTING_BYTES


@STEADY
@given(st.integers(0, LIMIT_PRICE_MICROS), st.integers(0, LIMIT_PRICE_MICROS), st.integers(1, (1 << 63) - 1))
def test_prices_are_read_as_they_are_written(price_in: int, price_out: int, chain: int) -> None:
    text = price_text(price_in, price_out, chain)
    assert read_price(text) == (price_in, price_out, chain)
    assert len(text) <= PRICE_CHARS
    assert again(write(listing(price=text), ALICE.sign)).price == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "reserved",
        "0/0",
        "1/2 0",
        "01/2 3",
        "1/2  3",
        " 1/2 3",
        "1/2 3 ",
        "-1/2 3",
        "1.5/2 3",
        "1/2/3 4",
        "\u0661/2 3",
        f"{LIMIT_PRICE_MICROS + 1}/0 1",
        f"0/{LIMIT_PRICE_MICROS + 1} 1",
        f"0/0 {1 << 63}",
        "9" * PRICE_CHARS,
    ],
)
def test_a_price_of_another_form_says_nothing(text: str) -> None:
    assert read_price(text) is None


@pytest.mark.parametrize("changes", [{"price_in": LIMIT_PRICE_MICROS + 1}, {"price_out": -1}, {"price_in": 1.5}])
def test_a_price_of_a_model_has_its_bounds(changes: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        write(listing(models=(replace(ListedModel("demo"), **changes),)), ALICE.sign)
    with pytest.raises(WireError):
        again(signed(plain_of() | {"models": [{"name": "demo"} | changes]}))
