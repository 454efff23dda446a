"""Answers from memory: what the host's end of a tunnel knows without asking the worker. No IO.

What never changes comes from the worker's facts. What an rpc-server has answered once to the same question is kept:
sizes of allocations for good, where a buffer begins for as long as the buffer lives.

Each graph of a new shape asks for the sizes of the same few operations again, one round trip for each. Nearly always
the answer is the plain size of the tensor. Where a device has said so once of an operation, the next answers of devices
of its kind are guessed and the question is asked all the same, so that a wrong guess comes out before much is built on
it.
"""

from __future__ import annotations

from typing import Any

from meshnode.rpc.facts import DeviceFacts, WorkerFacts
from meshnode.wire import ggml_rpc as rpc
from meshnode.wire.ggml_rpc import REPLY_HEAD, Command
from meshnode.wire.values import WireError

MOST_SIZES = 4096
MOST_BASES = 4096
MOST_KINDS = 4096
_Kind = tuple[bytes, int, int, int]
"""HELLO, alignment and largest buffer of a device, and an operation."""
_PLAIN: dict[_Kind, bool] = {}
"""Whether all answers in the life of this process were the plain size."""
_ANSWERS: dict[tuple[_Kind, bytes], bytes] = {}
"""The very answers of the kinds whose size is another, by question: another tunnel guesses them."""
_DOUBTED: set[tuple[bytes, int]] = set()
"""(HELLO, operation) of servers about which a guess was wrong once in the life of this process."""
TEACHING = frozenset({Command.GET_ALLOC_SIZE, Command.BUFFER_GET_BASE, Command.ALLOC_BUFFER})
"""Commands whose replies must be shown to `Memory.learn`."""
_NOT_CACHED = rpc.reply(b"\0")


class Memory:
    """See the module. `answer` for every request with a reply, `learn` for every reply that came from afar."""

    def __init__(self, facts: WorkerFacts) -> None:
        self._devices = facts.devices
        self._hello = rpc.reply(facts.hello)
        self._count = rpc.u32_reply(len(facts.devices))
        self._sizes: dict[bytes, bytes] = {}
        self._bases: dict[int, bytes] = {}
        self._live: set[int] = set()

    @property
    def has_live_buffers(self) -> bool:
        """Whether the far server holds buffers for the client that is or was connected."""
        return bool(self._live)

    def answer(self, command: int, frame: bytes) -> bytes | None:
        """The whole reply, when it is known. Raises WireError for a device that is not there."""
        if command == Command.GET_ALLOC_SIZE:
            return self._sizes.get(rpc.allocation_key(frame))
        if command == Command.BUFFER_GET_BASE:
            return self._bases.get(rpc.u64_of(frame))
        if command == Command.HELLO:
            return self._hello
        if command == Command.DEVICE_COUNT:
            return self._count
        if command == Command.GET_ALIGNMENT:
            return rpc.u64_reply(self._device(frame).alignment)
        if command == Command.GET_MAX_SIZE:
            return rpc.u64_reply(self._device(frame).max_size)
        if command == Command.GET_DEVICE_MEMORY:
            device = self._device(frame)
            return rpc.pair_reply(device.free_bytes, device.total_bytes)
        if command == Command.SET_TENSOR_HASH:
            return _NOT_CACHED  # the rpc-server of a worker keeps no cache of its own
        return None

    def _device(self, frame: bytes) -> DeviceFacts:
        number = rpc.u32_of(frame)
        if number >= len(self._devices):
            raise WireError(f"no device {number}")
        return self._devices[number]

    def guess(self, command: int, frame: bytes) -> bytes | None:
        """The whole reply as it will be, for a question that must be asked nevertheless; None when it is not clear."""
        if command != Command.GET_ALLOC_SIZE:
            return None
        device, operation, size = rpc.plain_size_of(frame)
        kind = self._kind(device, operation)
        if kind is None or (self._hello, operation) in _DOUBTED:
            return None
        key = rpc.allocation_key(frame)
        reply = _ANSWERS.get((kind, key))
        if reply is None and size is not None and _PLAIN.get(kind):
            reply = rpc.u64_reply(size)
        if reply is not None:
            self._sizes[key] = reply
        return reply

    def is_right(self, frame: bytes, guessed: bytes, reply: bytes) -> bool:
        """Whether a guess was right, now that the reply is there. If not, such questions are not guessed any more."""
        if guessed != reply:
            _DOUBTED.add((self._hello, rpc.plain_size_of(frame)[1]))
        return guessed == reply

    def learn(self, command: int, frame: bytes, reply: bytes) -> None:
        """A whole reply to a question of TEACHING, which `frame` is."""
        if command == Command.GET_ALLOC_SIZE:
            self._keep_size(frame, reply)
        elif command == Command.BUFFER_GET_BASE:
            self._keep_base(rpc.u64_of(frame), reply)
        else:
            buffer = int.from_bytes(reply[REPLY_HEAD.size : REPLY_HEAD.size + 8], "little")
            if buffer:
                self._live.add(buffer)

    def _keep_size(self, frame: bytes, reply: bytes) -> None:
        if len(self._sizes) >= MOST_SIZES:
            self._sizes.clear()
        key = rpc.allocation_key(frame)
        self._sizes[key] = reply
        device, operation, size = rpc.plain_size_of(frame)
        kind = self._kind(device, operation)
        if kind is None:
            return
        if size is not None:
            _room(_PLAIN)
            _PLAIN[kind] = _PLAIN.get(kind, True) and reply == rpc.u64_reply(size)
        if not _PLAIN.get(kind):
            _room(_ANSWERS)
            _ANSWERS[kind, key] = reply

    def _kind(self, device: int, operation: int) -> _Kind | None:
        """What is remembered of a device beyond this tunnel; None for one that is not there."""
        if device >= len(self._devices):
            return None
        facts = self._devices[device]
        return self._hello, facts.alignment, facts.max_size, operation

    def told_base(self, buffer: int, base: int) -> None:
        """The worker says where a buffer begins that it is about to announce."""
        self._keep_base(buffer, rpc.u64_reply(base))

    def _keep_base(self, buffer: int, reply: bytes) -> None:
        if len(self._bases) >= MOST_BASES:
            self._bases.clear()
        self._bases[buffer] = reply

    def freed(self, buffer: int) -> None:
        """The client has given a buffer back; its address may be used again."""
        self._live.discard(buffer)
        self._bases.pop(buffer, None)

    def restarted(self) -> None:
        """The connection to the far server is a new one: all buffers are gone."""
        self._live.clear()
        self._bases.clear()


def _room(kept: dict[Any, Any]) -> None:
    if len(kept) >= MOST_KINDS:
        kept.clear()
