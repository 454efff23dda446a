import struct

import pytest

from meshnode.rpc.boundaries import Boundaries
from meshnode.rpc.facts import TunnelOptions
from meshnode.wire import ggml_rpc as rpc
from meshnode.wire.values import WireError
from tests.wire.rpc_frames import get_tensor, push, set_tensor


def boundaries(stage: int = 0, stages: int = 3, push: str = "placeholder") -> Boundaries:
    options = TunnelOptions(stage=stage, stages=stages, push=push)  # type: ignore[arg-type]
    return Boundaries(options, {50000: 0, 50001: 1, 50002: 2}.get)


def test_a_port_becomes_a_stage() -> None:
    assert boundaries(0).push(push(9, 50001, 64)) == push(9, 1, 64)
    assert boundaries(2).push(push(9, 50000, 64)) == push(9, 0, 64)


@pytest.mark.parametrize(
    ("destination", "size"), [(50003, 64), (1, 64), (50000, 64), (50001, 0), (50001, (256 << 20) + 1), (1 << 63, 64)]
)
def test_a_push_to_nowhere_or_of_nothing_is_refused(destination: int, size: int) -> None:
    with pytest.raises(WireError):
        boundaries(0).push(push(9, destination, size))


def test_a_placeholder_is_recognised_where_it_is_set() -> None:
    replaced = boundaries(1).replace(get_tensor(4096, b"l_out-3"))
    assert replaced is not None
    sent, reply = replaced
    number, stage, size, get = rpc.push_of(sent)
    assert (stage, size, get) == (2, 4096, get_tensor(4096, b"l_out-3")[rpc.HEAD_BYTES :])
    assert struct.unpack_from("<Q", reply) == (4096,) and len(reply) == 8 + 4096
    put = set_tensor(reply[8:], b"l_out-3 (copy)", address=77)
    for seen in (put, put[:400]):
        received = Boundaries.recognise(seen)
        assert received is not None
        assert rpc.receive_of(received) == (number, 4096, put[rpc.HEAD_BYTES : -4096])


def test_ids_rise() -> None:
    found = []
    for stage in (0, 1, 0):
        replaced = boundaries(stage).replace(get_tensor(64))
        assert replaced is not None
        found.append(rpc.push_of(replaced[0])[0])
    assert found == sorted(set(found))


@pytest.mark.parametrize(
    ("stage", "push", "name", "size"),
    [
        (2, "placeholder", b"l_out-3", 4096),
        (0, "patched", b"l_out-3", 4096),
        (0, "off", b"l_out-3", 4096),
        (0, "placeholder", b"cache_k_l3", 4096),
        (0, "placeholder", b"result_output", 4096),
        (0, "placeholder", b"l_out-3", 20),
        (0, "placeholder", b"l_out-3", (256 << 20) + 1),
    ],
)
def test_what_the_engine_may_look_into_is_read(stage: int, push: str, name: bytes, size: int) -> None:
    assert boundaries(stage, push=push).replace(get_tensor(size, name)) is None


def test_other_data_are_left_alone() -> None:
    for data in (b"", b"short", bytes(4096)):
        assert Boundaries.recognise(set_tensor(data)) is None


def test_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(WireError):
        boundaries().replace(get_tensor(1 << 63))
