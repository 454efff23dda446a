import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.rpc.codec import SLOTS, Packer, Unpacker, is_worth_packing, xor
from meshnode.wire.ggml_rpc import RUN, WHOLE_BYTES, Command
from meshnode.wire.values import WireError
from tests.wire.rpc_frames import compute, set_tensor
from tests.wire.samples import STEADY, cases, refused


def packed(packer: Packer, frames: list[bytes]) -> bytes:
    records = []
    for each in frames:
        records += packer.record(each[0] if each[0] == Command.SET_TENSOR else RUN, each)
    return packer.pack(records)


@cases("tunnel-packed", "valid")
def test_valid(case: dict[str, Any]) -> None:
    unpacker = Unpacker()
    assert [unpacker.unpack(bytes.fromhex(body)).hex() for body in case["bodies"]] == case["plain"]


@cases("tunnel-packed", "invalid")
def test_invalid(case: dict[str, Any]) -> None:
    unpacker = Unpacker()
    refused(case, lambda: [unpacker.unpack(bytes.fromhex(body)) for body in case["bodies"]])


@STEADY
@given(st.binary(max_size=200), st.data())
def test_xor(one: bytes, data: st.DataObject) -> None:
    other = data.draw(st.binary(min_size=len(one), max_size=len(one)))
    assert xor(one, other) == bytes(a ^ b for a, b in zip(one, other, strict=True))


@STEADY
@given(st.lists(st.lists(st.tuples(st.integers(0, 5), st.binary(max_size=60)), max_size=5), max_size=5))
def test_what_is_packed_is_unpacked(batches: list[list[tuple[int, bytes]]]) -> None:
    packer, unpacker = Packer(), Unpacker()
    for batch in batches:
        frames = [set_tensor(data, b"input-%d" % name) if name else compute() for name, data in batch]
        assert unpacker.unpack(packed(packer, frames)) == b"".join(frames)


def test_a_step_of_decoding_at_4096_tokens_is_small() -> None:
    """Five inputs, the mask grows by one token each step: two bytes of 8192."""
    packer, unpacker = Packer(), Unpacker()
    sizes = []
    for step in range(40):
        mask = bytes(2 * step) + b"\0\xfc" * (4096 - step)
        inputs = [(step * 4).to_bytes(8, "little"), step.to_bytes(4, "little"), step.to_bytes(8, "little")]
        frames = [set_tensor(data, b"input-%d" % number) for number, data in enumerate([*inputs, mask])] + [compute()]
        body = packed(packer, frames)
        assert unpacker.unpack(body) == b"".join(frames)
        sizes.append(len(body))
    assert max(sizes[2:]) < 200
    assert sum(sizes) < 10_000


def test_the_oldest_slot_gives_way() -> None:
    packer, unpacker = Packer(), Unpacker()
    for name in [*range(SLOTS + 10), 0, SLOTS + 5, 3]:
        frames = [set_tensor(b"%d" % name * 20, b"input-%d" % name)]
        assert unpacker.unpack(packed(packer, frames)) == frames[0]
    assert len(packer._kept) == SLOTS


def test_the_largest_frame_that_is_held_fits() -> None:
    packer, unpacker = Packer(), Unpacker()
    data = set_tensor(random.Random(1).randbytes(WHOLE_BYTES - len(set_tensor(b""))))
    for _ in range(2):
        assert unpacker.unpack(packed(packer, [data])) == data


def test_only_what_becomes_smaller_is_worth_it() -> None:
    assert is_worth_packing(b"\0\xfc" * 10_000)
    assert not is_worth_packing(random.Random(1).randbytes(100_000))


def test_a_length_is_checked_before_anything_is_inflated() -> None:
    with pytest.raises(WireError):
        Unpacker.plain_bytes(b"\xff\xff\xff\xff\0")
