"""The RPC protocol of ggml (version 7) as a tunnel needs it: commands, layouts, bounds, and where frames begin and end.

    request   command u8 | size u64 | payload          reply   size u64 | payload          little-endian, packed

Replies come in the order of the requests; commands without one are marked below. A tunnel cuts both directions, but
most frames need no more of it than that: these leave the cutter as runs, many at once and without a copy. Source:
ggml/src/ggml-rpc/ggml-rpc.cpp of llama.cpp. The commands from 64 on are spoken between a patched client and the tunnel
only (protocol/10-rpc-tunnels.md).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import IntEnum
from struct import Struct
from typing import Final, Generic, TypeVar

from meshnode.wire.values import WireError


class Command(IntEnum):
    """The first byte of a request."""

    ALLOC_BUFFER = 0
    GET_ALIGNMENT = 1
    GET_MAX_SIZE = 2
    BUFFER_GET_BASE = 3
    FREE_BUFFER = 4
    BUFFER_CLEAR = 5
    SET_TENSOR = 6
    SET_TENSOR_HASH = 7
    GET_TENSOR = 8
    COPY_TENSOR = 9
    GRAPH_COMPUTE = 10
    GET_DEVICE_MEMORY = 11
    INIT_TENSOR = 12
    GET_ALLOC_SIZE = 13
    HELLO = 14
    DEVICE_COUNT = 15
    GRAPH_RECOMPUTE = 16
    MEMSET_TENSOR = 17
    TUNNEL_PUSH = 64
    TUNNEL_RECV = 65
    TUNNEL_REF = 66


REQUEST_HEAD: Final = Struct("<BQ")
REPLY_HEAD: Final = Struct("<Q")
HEAD_BYTES: Final = REQUEST_HEAD.size
TENSOR_BYTES: Final = 296
SOURCES: Final = 10
NAME_AT: Final = 228
NAME_BYTES: Final = 64
SET_FIXED_BYTES: Final = TENSOR_BYTES + 1 + 8
"""A SET_TENSOR before its data: tensor, cache flag, offset."""
GET_BYTES: Final = TENSOR_BYTES + 8 + 8
DIGEST_BYTES: Final = 32
CAPABILITY_BYTES: Final = 24
HELLO_REPLY_BYTES: Final = 4 + CAPABILITY_BYTES
WHOLE_BYTES: Final = 256 << 10
"""Frames up to this size are held until they are complete; larger ones pass in pieces."""
PREFIX_BYTES: Final = HEAD_BYTES + SET_FIXED_BYTES + 32
"""So much of a large frame that needs treatment comes in one piece."""
MOST_TENSOR_BYTES: Final = 1 << 40
MOST_GRAPH_BYTES: Final = 64 << 20
"""About two hundred thousand nodes; the largest graphs of llama.cpp have some ten thousand."""

_PAIR: Final = Struct("<QQ")
_U64: Final = Struct("<Q")
_U32: Final = Struct("<I")
_ALLOC: Final = Struct("<IQ")
_SET_END: Final = Struct("<BQ")
_RECV: Final = Struct("<QQ")
_TENSOR_OF_ALLOCATION: Final = Struct("<IQIQ8II")
_ELEMENT_BYTES: Final[dict[int, int]] = {0: 4, 1: 2}
"""By the number of the type: f32, f16."""

FIXED_BYTES: Final[dict[int, int]] = {
    Command.ALLOC_BUFFER: 12,
    Command.GET_ALIGNMENT: 4,
    Command.GET_MAX_SIZE: 4,
    Command.BUFFER_GET_BASE: 8,
    Command.FREE_BUFFER: 8,
    Command.BUFFER_CLEAR: 9,
    Command.SET_TENSOR_HASH: TENSOR_BYTES + 16,
    Command.GET_TENSOR: GET_BYTES,
    Command.COPY_TENSOR: 2 * TENSOR_BYTES,
    Command.GET_DEVICE_MEMORY: 4,
    Command.INIT_TENSOR: TENSOR_BYTES,
    Command.GET_ALLOC_SIZE: 4 + TENSOR_BYTES * (1 + SOURCES),
    Command.HELLO: CAPABILITY_BYTES,
    Command.DEVICE_COUNT: 0,
    Command.GRAPH_RECOMPUTE: 4,
    Command.MEMSET_TENSOR: TENSOR_BYTES + 17,
    Command.TUNNEL_PUSH: 16 + GET_BYTES,
    Command.TUNNEL_RECV: 16 + SET_FIXED_BYTES,
    Command.TUNNEL_REF: DIGEST_BYTES + GET_BYTES,
}
"""Payload bytes of the commands that have one size only."""
REPLY_BYTES: Final[dict[int, int]] = {
    Command.ALLOC_BUFFER: 16,
    Command.GET_ALIGNMENT: 8,
    Command.GET_MAX_SIZE: 8,
    Command.BUFFER_GET_BASE: 8,
    Command.SET_TENSOR_HASH: 1,
    Command.COPY_TENSOR: 1,
    Command.GET_DEVICE_MEMORY: 16,
    Command.GET_ALLOC_SIZE: 8,
    Command.HELLO: HELLO_REPLY_BYTES,
    Command.DEVICE_COUNT: 4,
}
"""Payload bytes of the replies; that of GET_TENSOR stands in the request. Commands not named have no reply."""

RUN: Final = -1
"""Whole frames, or pieces of a large one, that need no treatment."""
OPENING: Final = -2
"""The beginning of a large frame that needs treatment: PREFIX_BYTES or more."""
BODY: Final = -3
"""More of the large frame that was opened."""

Cut = tuple[int, bytes]
"""A command with its whole frame, head included; or RUN, OPENING, BODY."""


class RequestCutter:
    """Cuts what a client sends. Frames of `special` commands come out one by one, all others in runs.

    `most_bytes` bounds a SET_TENSOR. What is held is at most one frame of WHOLE_BYTES, and the work is linear in the
    bytes, however they come. After a WireError there is no way on.
    """

    def __init__(self, special: Iterable[int], *, most_bytes: int = MOST_TENSOR_BYTES) -> None:
        self._special = frozenset(int(each) for each in special)
        self._most = {Command.SET_TENSOR: SET_FIXED_BYTES + most_bytes, Command.GRAPH_COMPUTE: MOST_GRAPH_BYTES}
        self._held = bytearray()
        self._need = HEAD_BYTES
        self._left = 0
        self._left_kind = RUN
        self.frames = 0
        """How many frames have begun."""

    @property
    def is_between(self) -> bool:
        """Whether the last frame has come to its end."""
        return not self._left and not self._held

    @property
    def is_open(self) -> bool:
        """Whether more of a large frame is to come."""
        return self._left > 0

    def feed(self, data: bytes) -> list[Cut]:
        """What can be said of the bytes so far. Raises WireError for a command or size that cannot be."""
        cuts: list[Cut] = []
        if self._left:
            piece = data[: self._left]
            self._left -= len(piece)
            if piece:
                cuts.append((self._left_kind, piece))
            if len(piece) == len(data):
                return cuts
            data = data[len(piece) :]
        if self._held:
            self._held += data
            if len(self._held) < self._need:
                return cuts
            data = bytes(self._held)
            self._held.clear()
        self._cut(data, cuts)
        return cuts

    def _cut(self, data: bytes, cuts: list[Cut]) -> None:
        at = run_at = 0
        end = len(data)
        special = self._special
        need = HEAD_BYTES
        while end - at >= HEAD_BYTES:
            command, size = REQUEST_HEAD.unpack_from(data, at)
            if FIXED_BYTES.get(command) != size:
                self._check(command, size)
            total = HEAD_BYTES + size
            after = at + total
            treated = command in special
            if treated and run_at < at:
                cuts.append((RUN, data[run_at:at]))
                run_at = at
            if after <= end and (not treated or total <= WHOLE_BYTES):
                if treated:
                    cuts.append((command, data[at:after]))
                    run_at = after
                at = after
                self.frames += 1
                continue
            if total <= WHOLE_BYTES or (treated and end - at < PREFIX_BYTES):
                need = total if total <= WHOLE_BYTES else PREFIX_BYTES
                break
            self.frames += 1
            stop = min(after, end)
            self._left = after - stop
            self._left_kind = BODY if treated else RUN
            cuts.append((OPENING if treated else RUN, data[run_at:stop]))
            at = run_at = stop
            if self._left:
                return
        if run_at < at:
            cuts.append((RUN, data[run_at:at]))
        if at < end:
            self._held += data[at:]
            self._need = need

    def _check(self, command: int, size: int) -> None:
        most = self._most.get(command)  # type: ignore[call-overload]
        if most is None:
            if command not in FIXED_BYTES:
                raise WireError(f"no RPC command has the number {command}")
            raise WireError(f"RPC command {command} with {size} bytes")
        least = SET_FIXED_BYTES if command == Command.SET_TENSOR else 12
        if not least <= size <= most:
            raise WireError(f"RPC command {command} with {size} bytes")


Tag = TypeVar("Tag")


class ReplyCutter(Generic[Tag]):
    """Cuts what a server answers, in the order and with the sizes that were announced by `expect`.

    Pieces keep the head of the reply. A reply of up to WHOLE_BYTES comes in one piece. Answers that are not the
    server's are put into their place by `insert`.
    """

    def __init__(self) -> None:
        self._expected: deque[tuple[Tag, int, bytes | None]] = deque()
        self._in_order = 0
        self._held = bytearray()
        self._left = 0

    def __len__(self) -> int:
        """Replies that are not complete."""
        return len(self._expected)

    def expect(self, tag: Tag, size: int, *, in_order: bool = True) -> None:
        """The next reply is `tag`'s and has `size` bytes behind its head. Answers that are inserted do not wait for
        one that is not `in_order`, as the client will not see it.
        """
        self._expected.append((tag, size if in_order else ~size, None))
        self._in_order += in_order

    def insert(self, tag: Tag, reply: bytes) -> bool:
        """Answer in the place of the server, with a whole reply. True when nothing is before it: it is due now, and
        not kept.
        """
        if not self._in_order:
            return True
        self._expected.append((tag, 0, reply))
        self._in_order += 1
        return False

    def feed(self, data: bytes) -> list[tuple[Tag, bytes, bool]]:
        """(tag, piece, whether it is the last) of what has come. Raises WireError for a reply that nobody expects, or
        of another size.
        """
        found: list[tuple[Tag, bytes, bool]] = []
        expected = self._expected
        if self._held:
            self._held += data
            data = bytes(self._held)
            self._held.clear()
        at, end = 0, len(data)
        while at < end:
            if not expected:
                raise WireError("an RPC reply that nobody asked for")
            tag, size, _ = expected[0]
            in_order = size >= 0
            size = size if in_order else ~size
            if self._left:
                total = self._left
            else:
                if end - at < REPLY_HEAD.size:
                    break
                if REPLY_HEAD.unpack_from(data, at)[0] != size:
                    raise WireError("an RPC reply of another size than was asked for")
                total = REPLY_HEAD.size + size
                if at + total > end and total <= WHOLE_BYTES:
                    break
            stop = min(at + total, end)
            self._left = total - (stop - at)
            found.append((tag, data[at:stop], not self._left))
            at = stop
            if not self._left:
                expected.popleft()
                self._in_order -= in_order
                while expected and (ready := expected[0][2]) is not None:
                    found.append((expected.popleft()[0], ready, True))
                    self._in_order -= 1
        if at < end:
            self._held += data[at:]
        return found


# --- what a tunnel reads ---------------------------------------------------------------------------------------------


def u32_of(frame: bytes) -> int:
    """The first number of a payload: the device of most commands."""
    return int(_U32.unpack_from(frame, HEAD_BYTES)[0])


def u64_of(frame: bytes) -> int:
    """The payload of BUFFER_GET_BASE and FREE_BUFFER: a buffer."""
    return int(_U64.unpack_from(frame, HEAD_BYTES)[0])


def allocation_of(frame: bytes) -> tuple[int, int]:
    """(device, bytes) of an ALLOC_BUFFER."""
    device, size = _ALLOC.unpack_from(frame, HEAD_BYTES)
    return device, size


def pair_of(reply: bytes) -> tuple[int, int]:
    """The two numbers of a reply to ALLOC_BUFFER (buffer, bytes) or GET_DEVICE_MEMORY (free, total)."""
    first, second = _PAIR.unpack_from(reply, REPLY_HEAD.size)
    return first, second


def name_of(tensor: bytes, at: int = 0) -> bytes:
    """The name of the tensor that begins at `at`, up to its first zero byte."""
    return tensor[at + NAME_AT : at + NAME_AT + NAME_BYTES].partition(b"\0")[0]


def range_of(frame: bytes, at: int) -> tuple[int, int]:
    """(offset, size) of the range of a tensor, at the place `at` of a frame."""
    offset, size = _PAIR.unpack_from(frame, at)
    return offset, size


def get_size_of(frame: bytes) -> int:
    """How many bytes a GET_TENSOR asks for. Raises WireError for more than a tensor may have."""
    _, size = _PAIR.unpack_from(frame, HEAD_BYTES + TENSOR_BYTES)
    if size > MOST_TENSOR_BYTES:
        raise WireError(f"a reply of {size} bytes")
    return int(size)


def reply_size_of(command: int, frame: bytes) -> int | None:
    """Payload bytes of the reply to this frame; None for a command without one. Raises as `get_size_of`."""
    if command == Command.GET_TENSOR:
        return get_size_of(frame)
    return REPLY_BYTES.get(command)


def allocation_key(frame: bytes) -> bytes:
    """What the answer to a GET_ALLOC_SIZE depends on: device; and type, shape, strides, operation, its parameters and
    flags of the tensor and its sources. Ids, addresses and names are left out.
    """
    at = HEAD_BYTES
    parts = [frame[at : at + 4]]
    at += 4
    for _ in range(1 + SOURCES):
        parts += frame[at + 8 : at + 12], frame[at + 20 : at + 124]
        at += TENSOR_BYTES
    return b"".join(parts)


def plain_size_of(frame: bytes) -> tuple[int, int, int | None]:
    """(device, operation, bytes of the tensor) of a GET_ALLOC_SIZE. The bytes are those from its first element to its
    last, which is what most devices allocate; None for types that are stored in blocks.
    """
    device, _, kind, _, *shape, operation = _TENSOR_OF_ALLOCATION.unpack_from(frame, HEAD_BYTES)
    width = _ELEMENT_BYTES.get(kind)
    if width is None:
        return device, operation, None
    size = width + sum((ne - 1) * nb for ne, nb in zip(shape[:4], shape[4:], strict=True))
    return device, operation, size if min(shape[:4]) > 0 else 0


def push_of(frame: bytes) -> tuple[int, int, int, bytes]:
    """(id, destination, size, GET_TENSOR payload) of a TUNNEL_PUSH. Raises WireError."""
    number, destination = _PAIR.unpack_from(frame, HEAD_BYTES)
    get = frame[HEAD_BYTES + 16 :]
    _, size = _PAIR.unpack_from(get, TENSOR_BYTES)
    if size > MOST_TENSOR_BYTES:
        raise WireError(f"a push of {size} bytes")
    return number, destination, size, get


def receive_of(frame: bytes) -> tuple[int, int, bytes]:
    """(id, size, what stands before the data in a SET_TENSOR) of a TUNNEL_RECV. Raises WireError."""
    number, size = _RECV.unpack_from(frame, HEAD_BYTES)
    if size > MOST_TENSOR_BYTES:
        raise WireError(f"a push of {size} bytes")
    return number, size, frame[HEAD_BYTES + 16 :]


def reference_of(frame: bytes) -> tuple[bytes, bytes, int, int]:
    """(sha256, tensor, offset, size) of a TUNNEL_REF. Raises WireError."""
    at = HEAD_BYTES + DIGEST_BYTES
    tensor = frame[at : at + TENSOR_BYTES]
    offset, size = _PAIR.unpack_from(frame, at + TENSOR_BYTES)
    if size > MOST_TENSOR_BYTES or offset > MOST_TENSOR_BYTES:
        raise WireError(f"a reference to {size} bytes at {offset}")
    return frame[HEAD_BYTES:at], tensor, offset, size


# --- what a tunnel writes --------------------------------------------------------------------------------------------


def request(command: int, payload: bytes) -> bytes:
    """One request."""
    return REQUEST_HEAD.pack(command, len(payload)) + payload


def reply(payload: bytes) -> bytes:
    """One reply."""
    return REPLY_HEAD.pack(len(payload)) + payload


def u32_reply(value: int) -> bytes:
    """The reply to DEVICE_COUNT."""
    return reply(_U32.pack(value))


def u64_reply(value: int) -> bytes:
    """A reply of one number."""
    return reply(_U64.pack(value))


def pair_reply(first: int, second: int) -> bytes:
    """A reply of two numbers: GET_DEVICE_MEMORY, ALLOC_BUFFER."""
    return reply(_PAIR.pack(first, second))


def hello() -> bytes:
    """What a client says first; no capabilities beyond TCP."""
    return request(Command.HELLO, bytes(CAPABILITY_BYTES))


def get_base(buffer: int) -> bytes:
    """A BUFFER_GET_BASE."""
    return request(Command.BUFFER_GET_BASE, _U64.pack(buffer))


def set_tensor_head(fixed: bytes, size: int) -> bytes:
    """A SET_TENSOR of `size` bytes up to where its data begin; `fixed` is tensor, cache flag and offset."""
    return REQUEST_HEAD.pack(Command.SET_TENSOR, SET_FIXED_BYTES + size) + fixed


def set_fixed(tensor: bytes, offset: int) -> bytes:
    """Tensor, cache flag and offset of a SET_TENSOR that is not to be kept in a cache."""
    return tensor + _SET_END.pack(0, offset)


def push(number: int, destination: int, get: bytes) -> bytes:
    """A TUNNEL_PUSH; `get` is the payload of a GET_TENSOR."""
    return REQUEST_HEAD.pack(Command.TUNNEL_PUSH, 16 + len(get)) + _PAIR.pack(number, destination) + get


def receive(number: int, size: int, fixed: bytes) -> bytes:
    """A TUNNEL_RECV; `fixed` as in `set_tensor_head`."""
    return REQUEST_HEAD.pack(Command.TUNNEL_RECV, 16 + len(fixed)) + _RECV.pack(number, size) + fixed


def reference(sha256: bytes, tensor: bytes, offset: int, size: int) -> bytes:
    """A TUNNEL_REF."""
    payload = sha256 + tensor + _PAIR.pack(offset, size)
    return REQUEST_HEAD.pack(Command.TUNNEL_REF, len(payload)) + payload
