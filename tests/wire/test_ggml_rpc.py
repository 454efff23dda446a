import struct
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.wire import ggml_rpc as rpc
from meshnode.wire.ggml_rpc import BODY, OPENING, RUN, WHOLE_BYTES, Command, Cut, ReplyCutter, RequestCutter
from meshnode.wire.values import WireError
from tests.wire.rpc_frames import (
    MUL_MAT,
    allocate,
    allocation_size,
    compute,
    frame,
    free,
    get_tensor,
    push,
    receive,
    reference,
    reply,
    set_tensor,
    tensor,
)
from tests.wire.samples import STEADY, cases, refused

EVERYTHING = list(Command)
SHA256 = bytes(range(32))
FRAMES = st.lists(
    st.sampled_from(
        [
            set_tensor(b""),
            set_tensor(b"d" * 100),
            set_tensor(b"large" * (WHOLE_BYTES // 4)),
            get_tensor(16),
            compute(),
            frame(Command.DEVICE_COUNT),
            allocation_size(tensor()),
        ]
    ),
    max_size=6,
)


def one_by_one(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def fed(cutter: RequestCutter, pieces: list[bytes]) -> list[Cut]:
    return [cut for piece in pieces for cut in cutter.feed(piece)]


# --- requests -----------------------------------------------------------------------------------------------------


@cases("rpc-requests", "valid")
def test_valid_requests(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    for pieces in ([data], one_by_one(data), [data[:5], b"", data[5:]]):
        cutter = RequestCutter(EVERYTHING)
        found = fed(cutter, pieces)
        assert [{"command": command, "bytes": len(cut)} for command, cut in found] == case["requests"]
        assert b"".join(cut for _, cut in found) == data[: len(data) - case["left_bytes"]]
        assert cutter.is_between is not bool(case["left_bytes"])
        assert cutter.frames == len(case["requests"])


@cases("rpc-requests", "invalid")
def test_invalid_requests(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    for special in (EVERYTHING, []):
        for pieces in ([data], one_by_one(data)):
            cutter = RequestCutter(special)
            refused(case, lambda cutter=cutter, pieces=pieces: fed(cutter, pieces))  # type: ignore[misc]


def test_what_needs_no_treatment_passes_in_one_run_without_a_copy() -> None:
    data = b"".join([set_tensor(b"abc"), compute(), set_tensor(bytes(5000)), compute()])
    [(kind, cut)] = RequestCutter([Command.GET_TENSOR]).feed(data)
    assert kind == RUN and cut is data


def test_runs_end_where_treatment_begins() -> None:
    before, after = set_tensor(b"abc") + compute(), compute()
    cuts = RequestCutter([Command.GET_TENSOR]).feed(before + get_tensor(4) + after)
    assert cuts == [(RUN, before), (Command.GET_TENSOR, get_tensor(4)), (RUN, after)]


def test_a_large_frame_passes_in_pieces() -> None:
    data = set_tensor(bytes(range(256)) * 4096)
    pieces = [data[at : at + 100_000] for at in range(0, len(data), 100_000)]
    plain = RequestCutter([])
    assert fed(plain, pieces) == [(RUN, piece) for piece in pieces]
    assert plain.is_between
    treated = RequestCutter([Command.SET_TENSOR])
    cuts = fed(treated, [data[:10], data[10:400], *([data[400:] + compute()])])
    assert [kind for kind, _ in cuts] == [OPENING, BODY, RUN]
    assert len(cuts[0][1]) >= rpc.PREFIX_BYTES and cuts[2][1] == compute()
    assert b"".join(cut for _, cut in cuts) == data + compute()
    assert treated.feed(data + compute()) == [(OPENING, data), (RUN, compute())]


@STEADY
@given(FRAMES, st.integers(1, 70_000), st.booleans())
def test_pieces_make_no_difference(frames: list[bytes], size: int, treated: bool) -> None:
    data = b"".join(frames)
    cutter = RequestCutter([Command.SET_TENSOR, Command.GET_TENSOR] if treated else [])
    cuts = fed(cutter, [data[at : at + size] for at in range(0, len(data), size)])
    assert b"".join(cut for _, cut in cuts) == data
    assert cutter.is_between and cutter.frames == len(frames)


def test_the_work_is_linear() -> None:
    """A held frame that comes byte by byte costs no more than its bytes."""
    data = set_tensor(bytes(WHOLE_BYTES - 1000)) * 2
    cutter = RequestCutter([Command.SET_TENSOR])
    begun = time.perf_counter()
    for piece in one_by_one(data):
        cutter.feed(piece)
    assert time.perf_counter() - begun < 5
    assert cutter.frames == 2


def test_the_bound_of_a_tensor_can_be_lower() -> None:
    cutter = RequestCutter([], most_bytes=100)
    assert cutter.feed(set_tensor(bytes(100)))
    with pytest.raises(WireError):
        cutter.feed(set_tensor(bytes(101)))


# --- replies ------------------------------------------------------------------------------------------------------


@cases("rpc-replies", "valid")
def test_valid_replies(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    for pieces in ([data], one_by_one(data)):
        cutter: ReplyCutter[int] = ReplyCutter()
        for number, size in enumerate(case["expected"]):
            cutter.expect(number, size)
        found = [each for piece in pieces for each in cutter.feed(piece)]
        assert [number for number, _, last in found if last] == list(range(case["complete"]))
        assert len(cutter) == len(case["expected"]) - case["complete"]
        assert data.startswith(b"".join(piece for _, piece, _ in found))


@cases("rpc-replies", "invalid")
def test_invalid_replies(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])

    def decode() -> None:
        cutter: ReplyCutter[int] = ReplyCutter()
        for number, size in enumerate(case["expected"]):
            cutter.expect(number, size)
        cutter.feed(data)

    refused(case, decode)


def test_a_large_reply_comes_in_pieces() -> None:
    data = reply(bytes(1 << 20))
    cutter: ReplyCutter[str] = ReplyCutter()
    cutter.expect("large", 1 << 20)
    cutter.expect("small", 2)
    found = [*cutter.feed(data[:300]), *cutter.feed(data[300:700_000]), *cutter.feed(data[700_000:] + reply(b"ab"))]
    assert [(tag, last) for tag, _, last in found] == [("large", False)] * 2 + [("large", True), ("small", True)]
    assert b"".join(piece for _, piece, _ in found) == data + reply(b"ab")


def test_answers_of_our_own_keep_the_order() -> None:
    cutter: ReplyCutter[str] = ReplyCutter()
    assert cutter.insert("first", b"1")
    cutter.expect("unseen", 1, in_order=False)
    assert cutter.insert("second", b"2")
    cutter.expect("far", 1)
    assert not cutter.insert("third", b"3")
    assert not cutter.insert("fourth", b"4")
    found = cutter.feed(reply(b"u") + reply(b"f"))
    assert found == [
        ("unseen", reply(b"u"), True),
        ("far", reply(b"f"), True),
        ("third", b"3", True),
        ("fourth", b"4", True),
    ]
    assert len(cutter) == 0 and cutter.insert("fifth", b"5")


# --- fields -------------------------------------------------------------------------------------------------------


def test_fields_of_requests() -> None:
    assert rpc.allocation_of(allocate(1 << 40, 3)) == (3, 1 << 40)
    assert rpc.u64_of(free(0xABCDEF)) == 0xABCDEF
    assert rpc.u32_of(compute(5)) == 5
    assert rpc.name_of(get_tensor(8, b"l_out-7"), rpc.HEAD_BYTES) == b"l_out-7"
    assert rpc.name_of(tensor(b"n" * 64)) == b"n" * 64
    assert rpc.reply_size_of(Command.GET_TENSOR, get_tensor(4096)) == 4096
    assert rpc.reply_size_of(Command.ALLOC_BUFFER, allocate(8)) == 16
    assert rpc.reply_size_of(Command.GRAPH_RECOMPUTE, compute()) is None
    assert rpc.pair_of(reply(struct.pack("<QQ", 1, 2))) == (1, 2)


def test_what_is_built_is_what_a_client_would_write() -> None:
    get = get_tensor(16)[rpc.HEAD_BYTES :]
    assert rpc.push(3, 50052, get) == push(3, 50052, 16)
    assert rpc.push_of(push(3, 50052, 16)) == (3, 50052, 16, get)
    fixed = set_tensor(b"")[rpc.HEAD_BYTES :]
    assert rpc.receive(3, 16, fixed) == receive(3, 16)
    assert rpc.receive_of(receive(3, 16)) == (3, 16, fixed)
    assert rpc.set_tensor_head(fixed, 4) + b"data" == set_tensor(b"data")
    assert rpc.set_fixed(tensor(), 0) == fixed
    assert rpc.reference(SHA256, tensor(b"w"), 8, 16) == reference(SHA256, b"w", 16, offset=8)
    assert rpc.reference_of(reference(SHA256, b"w", 16, offset=8)) == (SHA256, tensor(b"w"), 8, 16)
    assert rpc.request(Command.DEVICE_COUNT, b"") == frame(Command.DEVICE_COUNT)
    assert rpc.u64_reply(7) == reply(struct.pack("<Q", 7))
    assert rpc.u32_reply(7) == reply(struct.pack("<I", 7))
    assert rpc.pair_reply(0, 7) == reply(struct.pack("<QQ", 0, 7))
    for built in (rpc.hello(), rpc.get_base(7), rpc.push(1, 2, get), rpc.receive(1, 2, fixed)):
        assert RequestCutter([]).feed(built) == [(RUN, built)]


@pytest.mark.parametrize(
    ("read", "bad"),
    [
        (rpc.get_size_of, get_tensor((1 << 40) + 1)),
        (rpc.push_of, push(1, 2, 1 << 63)),
        (rpc.receive_of, receive(1, 1 << 63)),
        (rpc.reference_of, reference(SHA256, b"w", 1 << 63)),
        (rpc.reference_of, reference(SHA256, b"w", 1, offset=1 << 63)),
    ],
)
def test_sizes_in_payloads_are_bounded(read: Any, bad: bytes) -> None:
    with pytest.raises(WireError):
        read(bad)


def test_the_key_of_an_allocation_knows_shapes_and_not_places() -> None:
    asked = allocation_size(tensor(b"a", operation=MUL_MAT))
    assert rpc.allocation_key(asked) == rpc.allocation_key(
        allocation_size(tensor(b"b", address=9, number=3, operation=MUL_MAT))
    )
    others = [
        allocation_size(tensor(operation=MUL_MAT), device=1),
        allocation_size(tensor(operation=MUL_MAT + 1)),
        allocation_size(tensor(operation=MUL_MAT, shape=(8, 1, 1, 1))),
        allocation_size(tensor(operation=MUL_MAT, kind=1)),
        asked[: rpc.HEAD_BYTES + 4 + 296] + tensor() + bytes(2960 - 296),
    ]
    keys = {rpc.allocation_key(each) for each in [asked, *others]}
    assert len(keys) == 1 + len(others)


def test_the_plain_size_of_a_tensor() -> None:
    def size(**given: Any) -> int | None:
        return rpc.plain_size_of(allocation_size(tensor(operation=MUL_MAT, **given)))[2]

    assert rpc.plain_size_of(allocation_size(tensor(operation=MUL_MAT), device=2))[:2] == (2, MUL_MAT)
    assert size(shape=(10, 3, 2, 1)) == 240
    assert size(shape=(10, 3, 2, 1), kind=1) == 120
    assert size(shape=(10, 0, 2, 1)) == 0
    assert size(kind=8) is None
