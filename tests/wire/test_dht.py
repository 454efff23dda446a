"""Provider records and keys; the shapes of the messages are tested by the vectors (test_messages.py)."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import blake2s
from pathlib import Path
from typing import Any

import pytest

from meshnode.identity import ephemeral, verify
from meshnode.wire.address import Address
from meshnode.wire.dht import (
    Provider,
    is_genuine,
    model_key,
    node_key,
    read_provider,
    write_provider,
)
from meshnode.wire.registry import LIMIT_DHT_RECORD_BYTES, Close
from meshnode.wire.values import WireError

VECTORS = Path(__file__).parents[2] / "protocol" / "vectors"
CASES = json.loads((VECTORS / "providers.json").read_text("utf-8"))
SIGNER = ephemeral()
RECORD = Provider(model_key(b"h" * 16, 2, 5), bytes(SIGNER.node_id), b"m" * 32, 1_800_000_000, (), 2, 5)


def named(case: dict[str, Any]) -> str:
    return str(case["comment"])


@pytest.mark.parametrize("case", CASES["valid"], ids=named)
def test_valid_records(case: dict[str, Any]) -> None:
    record = bytes.fromhex(case["hex"])
    found = read_provider(record)
    assert is_genuine(found, record, verify)
    assert (found.key.hex(), found.node.hex(), found.mesh.hex()) == (case["key"], case["node"], case["mesh"])
    assert (found.first_layer, found.layers) == (case["first_layer"], case["layers"])
    ends = case["expires_at"]
    assert found.expires_at == (int(ends["int"]) if isinstance(ends, dict) else ends)
    assert [address.to_bytes().hex() for address in found.addresses] == case["addresses"]
    content = bytes.fromhex(case["content_hash"])
    assert model_key(content, case["first_layer"], case["layers"]) == found.key


@pytest.mark.parametrize("case", CASES["invalid"], ids=named)
def test_invalid_records(case: dict[str, Any]) -> None:
    record = bytes.fromhex(case["hex"])
    try:
        found = read_provider(record)
    except WireError as reason:
        assert reason.code == Close[case["code"].upper()]
    else:
        assert not is_genuine(found, record, verify)


def test_a_record_there_and_back() -> None:
    record = write_provider(RECORD, SIGNER.sign)
    assert read_provider(record) == RECORD
    assert is_genuine(RECORD, record, verify)
    assert not is_genuine(replace(RECORD, node=bytes(ephemeral().node_id)), record, verify)


def test_the_largest_record_has_room() -> None:
    where = tuple(Address(f"2001:db8::{number}", 65535) for number in range(1, 9))
    largest = replace(
        RECORD, expires_at=(1 << 63) - 1, addresses=where, first_layer=(1 << 32) - 1, layers=(1 << 32) - 1
    )
    assert len(write_provider(largest, SIGNER.sign)) <= LIMIT_DHT_RECORD_BYTES


def test_layers_of_nothing_are_refused_by_both_sides() -> None:
    with pytest.raises(WireError):
        write_provider(replace(RECORD, layers=0), SIGNER.sign)
    for content, first, layers in ((b"short", 0, 0), (b"h" * 16, 1, 0), (b"h" * 16, -1, 2), (b"h" * 16, 0, 1 << 32)):
        with pytest.raises(ValueError):
            model_key(content, first, layers)


def test_keys_are_what_the_protocol_says() -> None:
    assert model_key(b"h" * 16) == blake2s(b"meshnode model\0" + b"h" * 16 + bytes(8)).digest()
    assert model_key(b"h" * 16, 1, 258) == blake2s(b"meshnode model\0" + b"h" * 16 + b"\0\0\0\1\0\0\1\2").digest()
    assert node_key(b"n" * 32) == blake2s(b"n" * 32).digest()
