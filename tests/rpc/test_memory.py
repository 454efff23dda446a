import struct
from dataclasses import replace

import pytest

from meshnode.rpc import memory as memory_module
from meshnode.rpc.facts import DeviceFacts, WorkerFacts
from meshnode.rpc.memory import MOST_SIZES, Memory
from meshnode.wire.ggml_rpc import Command
from meshnode.wire.values import WireError
from tests.rpc.fake_rpc_server import FACTS, HELLO
from tests.wire.rpc_frames import (
    FLASH_ATTENTION,
    MUL_MAT,
    allocate,
    allocation_size,
    compute,
    frame,
    get_base,
    get_tensor,
    reply,
    tensor,
)


def number(value: int) -> bytes:
    return reply(struct.pack("<Q", value))


def asked(width: int, operation: int = MUL_MAT, *, kind: int = 0, device: int = 0) -> bytes:
    return allocation_size(tensor(shape=(width, 1, 1, 1), operation=operation, kind=kind), device=device)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the process has learnt in other tests."""
    monkeypatch.setattr(memory_module, "_PLAIN", {})
    monkeypatch.setattr(memory_module, "_ANSWERS", {})
    monkeypatch.setattr(memory_module, "_DOUBTED", set())


def test_facts_are_answered() -> None:
    second = DeviceFacts(128, 5, 6, 7)
    memory = Memory(WorkerFacts(HELLO, (*FACTS.devices, second)))

    def answer(command: int, device: int = 1) -> bytes | None:
        return memory.answer(command, frame(command, struct.pack("<I", device)))

    assert memory.answer(Command.HELLO, frame(Command.HELLO, bytes(24))) == reply(HELLO)
    assert memory.answer(Command.DEVICE_COUNT, frame(Command.DEVICE_COUNT)) == reply(b"\2\0\0\0")
    assert answer(Command.GET_ALIGNMENT) == number(128)
    assert answer(Command.GET_MAX_SIZE) == number(5)
    assert answer(Command.GET_DEVICE_MEMORY) == reply(struct.pack("<QQ", 6, 7))
    assert memory.answer(Command.SET_TENSOR_HASH, frame(Command.SET_TENSOR_HASH, bytes(312))) == reply(b"\0")
    for command in (Command.GET_ALIGNMENT, Command.GET_MAX_SIZE, Command.GET_DEVICE_MEMORY):
        with pytest.raises(WireError):
            answer(command, device=2)


def test_what_must_be_asked_is_asked() -> None:
    memory = Memory(FACTS)
    for command, data in (
        (Command.ALLOC_BUFFER, allocate(8)),
        (Command.GET_TENSOR, get_tensor(8)),
        (Command.GRAPH_RECOMPUTE, compute()),
        (Command.BUFFER_GET_BASE, get_base(1)),
        (Command.GET_ALLOC_SIZE, asked(4)),
    ):
        assert memory.answer(command, data) is None
        assert memory.guess(command, data) is None


def test_buffers_live_from_their_reply_to_their_end() -> None:
    memory = Memory(FACTS)
    memory.learn(Command.ALLOC_BUFFER, allocate(8), reply(struct.pack("<QQ", 0, 0)))
    assert not memory.has_live_buffers
    memory.told_base(0xA0, 0xB0)
    memory.learn(Command.ALLOC_BUFFER, allocate(8), reply(struct.pack("<QQ", 0xA0, 8)))
    assert memory.has_live_buffers
    assert memory.answer(Command.BUFFER_GET_BASE, get_base(0xA0)) == number(0xB0)
    memory.freed(0xA0)
    assert not memory.has_live_buffers
    assert memory.answer(Command.BUFFER_GET_BASE, get_base(0xA0)) is None
    memory.learn(Command.BUFFER_GET_BASE, get_base(0xA0), number(0xC0))
    assert memory.answer(Command.BUFFER_GET_BASE, get_base(0xA0)) == number(0xC0)
    memory.restarted()
    assert memory.answer(Command.BUFFER_GET_BASE, get_base(0xA0)) is None


def test_sizes_are_kept_also_over_a_restart_and_bounded() -> None:
    memory = Memory(FACTS)
    memory.learn(Command.GET_ALLOC_SIZE, asked(4), number(99))
    memory.restarted()
    assert memory.answer(Command.GET_ALLOC_SIZE, asked(4)) == number(99)
    assert memory.answer(Command.GET_ALLOC_SIZE, asked(5)) is None
    for width in range(100, 100 + MOST_SIZES):
        memory.learn(Command.GET_ALLOC_SIZE, asked(width), number(1))
    assert memory.answer(Command.GET_ALLOC_SIZE, asked(4)) is None


def test_plain_sizes_are_guessed_after_one_for_the_same_operation_and_device() -> None:
    memory = Memory(FACTS)
    memory.learn(Command.GET_ALLOC_SIZE, asked(4), number(16))
    assert memory.guess(Command.GET_ALLOC_SIZE, asked(8)) == number(32)
    assert memory.answer(Command.GET_ALLOC_SIZE, asked(8)) == number(32)
    assert memory.guess(Command.GET_ALLOC_SIZE, asked(8, FLASH_ATTENTION)) is None
    assert memory.guess(Command.GET_ALLOC_SIZE, asked(8, device=1)) is None
    assert memory.guess(Command.GET_ALLOC_SIZE, asked(32, kind=8)) is None
    assert memory.is_right(asked(8), number(32), number(32))


def test_devices_of_one_kind_teach_each_other() -> None:
    first, second = Memory(FACTS), Memory(FACTS)
    first.learn(Command.GET_ALLOC_SIZE, asked(4), number(16))
    assert second.answer(Command.GET_ALLOC_SIZE, asked(4)) is None
    assert second.guess(Command.GET_ALLOC_SIZE, asked(4)) == number(16)
    first.learn(Command.GET_ALLOC_SIZE, asked(8, FLASH_ATTENTION), number(77))
    assert second.guess(Command.GET_ALLOC_SIZE, asked(8, FLASH_ATTENTION)) == number(77)
    assert second.guess(Command.GET_ALLOC_SIZE, asked(9, FLASH_ATTENTION)) is None
    other = replace(FACTS.devices[0], alignment=2 * FACTS.devices[0].alignment)
    assert Memory(WorkerFacts(HELLO, (other,))).guess(Command.GET_ALLOC_SIZE, asked(4)) is None
    assert Memory(WorkerFacts(bytes(28), FACTS.devices)).guess(Command.GET_ALLOC_SIZE, asked(4)) is None


def test_a_device_that_takes_more_is_never_guessed() -> None:
    memory = Memory(FACTS)
    memory.learn(Command.GET_ALLOC_SIZE, asked(4), number(512))
    memory.learn(Command.GET_ALLOC_SIZE, asked(8), number(32))
    assert memory.guess(Command.GET_ALLOC_SIZE, asked(16)) is None


def test_a_server_that_proved_a_guess_wrong_is_doubted_for_good() -> None:
    facts = WorkerFacts(bytes(28), FACTS.devices)
    memory = Memory(facts)
    memory.learn(Command.GET_ALLOC_SIZE, asked(4), number(16))
    assert not memory.is_right(asked(8), number(32), number(64))
    again = Memory(facts)
    again.learn(Command.GET_ALLOC_SIZE, asked(4), number(16))
    assert again.guess(Command.GET_ALLOC_SIZE, asked(8)) is None
