"""What rpc streams begin with, and the versions that decide whether two engines understand each other."""

from typing import Any

import pytest

from meshnode.wire.frames import encode_frame
from meshnode.wire.messages import MESSAGES, encode_message, message_id
from meshnode.wire.registry import LIMIT_DEVICES, LIMIT_LEASE_FRAME_BYTES, LIMIT_PLAN_WORKERS, MessageId, RpcKind
from meshnode.wire.splits import (
    LEASE_MESSAGES,
    NO_LIMIT_BYTES,
    DeviceNeed,
    LeaseAsk,
    LeaseGranted,
    LentDevice,
    open_header,
    read_header,
    understands,
    version_number,
)
from meshnode.wire.values import WireError, encode
from tests.wire.samples import cases, refused

PLAN = bytes(range(16))


@pytest.mark.parametrize("kind", list(RpcKind))
def test_a_header_comes_back(kind: RpcKind) -> None:
    assert read_header(open_header(kind, PLAN)) == (kind, PLAN)


@cases("openings", "valid")
def test_a_valid_header_is_read_or_of_a_later_kind(case: dict[str, Any]) -> None:
    if case["message"] != "rpc":
        return
    kind, plan = read_header(bytes.fromhex(case["hex"]))
    assert kind in {*RpcKind, 255} and plan in (PLAN, b"planplanplanplan")


@cases("openings", "invalid")
def test_an_invalid_header_is_refused(case: dict[str, Any]) -> None:
    if case["message"] == "rpc":
        refused(case, lambda: read_header(bytes.fromhex(case["hex"])))


@pytest.mark.parametrize("plan", [b"", PLAN[:15], PLAN + b"x"])
def test_a_plan_has_sixteen_bytes(plan: bytes) -> None:
    with pytest.raises(WireError):
        open_header(RpcKind.LEASE, plan)
    with pytest.raises(WireError):
        read_header(encode({0: 0, 2: plan}))


def test_the_largest_messages_of_a_lease_fit_into_its_frames() -> None:
    ask = LeaseAsk(
        term=(1 << 32) - 1,
        model="m" * 64,
        sha256=bytes(32),
        size_bytes=1 << 50,
        stage=LIMIT_PLAN_WORKERS - 1,
        first_layer=0xFFFF,
        layers=0xFFFF,
        needed_bytes=1 << 50,
        workers=(bytes(32),) * LIMIT_PLAN_WORKERS,
        rpc_version=1 << 24,
        devices=tuple(DeviceNeed(number, 1 << 50) for number in range(LIMIT_DEVICES)),
        manifest=bytes(32),
    )
    granted = LeaseGranted(bytes(64), (LentDevice(1 << 31, NO_LIMIT_BYTES, 1 << 50, 1 << 50),) * LIMIT_DEVICES, True)
    for message in (ask, granted):
        assert len(encode_frame(message_id(message), encode_message(message))) < LIMIT_LEASE_FRAME_BYTES


def test_the_messages_of_a_lease_are_among_all_messages() -> None:
    assert set(LEASE_MESSAGES) == {each for each in MessageId if each.name.startswith("LEASE_")}
    assert LEASE_MESSAGES.items() <= MESSAGES.items()


def test_a_version_counts_to_its_last_number() -> None:
    seven = version_number(bytes([7, 0, 0]) + bytes(25))
    assert seven == 7 << 16
    assert understands(seven, 7 << 16)
    assert not understands(seven, seven + 1)
    assert not understands(0, 0), "0 says that nothing is lent"
