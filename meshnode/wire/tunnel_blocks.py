"""What lies in the streams of RPC tunnels: blocks between the two ends of a tunnel, pushes between two workers.

    block   kind u8 | length u32 | body                     push   id u64 | flags u8 | size u32 | data

Integers are big-endian, but for what is inside RPC frames. The bodies of BYTES, one after the other, are a stream of
RPC frames (protocol/10-rpc-tunnels.md).
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final

from meshnode.wire.values import WireError

BLOCK_HEAD: Final = Struct("!BI")
PUSH_HEAD: Final = Struct("!QBI")
MOST_BLOCK_BYTES: Final = (1 << 20) + 1024
MOST_PUSH_BYTES: Final = 256 << 20
"""Activations of 2048 tokens in a model of width 32768."""
MOST_WORDS_BYTES: Final = 500
TUNNEL_VERSION: Final = 1
WHOLE_BLOCK_BYTES: Final = 64 << 10
"""Up to this size the body of a BYTES block is held until it is complete."""

_U16: Final = Struct("!BB")
_GENERATION: Final = Struct("!I")
_BASE: Final = Struct("!QQ")


class Block(IntEnum):
    """Kinds of blocks. Host to worker: OPTIONS first, then BYTES, PACKED, RESTART. The others go to the host."""

    OPTIONS = 0
    BYTES = 1
    PACKED = 2
    RESTART = 3
    RESTARTED = 4
    ALIVE = 5
    BASE = 6
    FAILED = 7


class Option(IntFlag):
    """What the host wants of a tunnel."""

    HALF = 1
    PUSH = 2


class PushFlag(IntFlag):
    """How the data of a push are written: HALF for two bytes where the tensor has four."""

    HALF = 1


_BODY_BYTES: Final[dict[int, tuple[int, int]]] = {
    Block.OPTIONS: (2, 2),
    Block.BYTES: (1, MOST_BLOCK_BYTES),
    Block.PACKED: (5, MOST_BLOCK_BYTES),
    Block.RESTART: (4, 4),
    Block.RESTARTED: (4, 4),
    Block.ALIVE: (0, 0),
    Block.BASE: (16, 16),
    Block.FAILED: (0, MOST_WORDS_BYTES),
}


class BlockReader:
    """Cuts a stream into blocks. Holds at most one block; the work is linear in the bytes.

    Of a BYTES block of more than WHOLE_BLOCK_BYTES the body passes in pieces, as it comes, each like a block.
    """

    def __init__(self) -> None:
        self._held = bytearray()
        self._need = BLOCK_HEAD.size
        self._passing = 0
        """So much of a large BYTES block is still to come."""

    @property
    def waiting_bytes(self) -> int:
        """Bytes that are held of a block that is not complete."""
        return len(self._held)

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """(kind, body) of every block that is complete. Raises WireError for a kind or length that cannot be."""
        found: list[tuple[int, bytes]] = []
        at = 0
        if self._passing:
            at = self._pass(data, 0, found)
        elif self._held:
            self._held += data
            if len(self._held) < self._need:
                return found
            data = bytes(self._held)
            self._held.clear()
        end, need = len(data), BLOCK_HEAD.size
        while end - at >= BLOCK_HEAD.size:
            kind, size = BLOCK_HEAD.unpack_from(data, at)
            bounds = _BODY_BYTES.get(kind)
            if bounds is None:
                raise WireError(f"no block has the kind {kind}")
            if not bounds[0] <= size <= bounds[1]:
                raise WireError(f"a block of kind {kind} with {size} bytes")
            body_at = at + BLOCK_HEAD.size
            if kind == Block.BYTES and size > WHOLE_BLOCK_BYTES:
                self._passing = size
                at = self._pass(data, body_at, found)
                continue
            if body_at + size > end:
                need = BLOCK_HEAD.size + size
                break
            at = body_at + size
            found.append((kind, data[body_at:at]))
        if at < end:
            self._held += data[at:]
            self._need = need
        return found

    def _pass(self, data: bytes, at: int, found: list[tuple[int, bytes]]) -> int:
        piece = data[at : at + self._passing]
        if piece:
            self._passing -= len(piece)
            found.append((Block.BYTES, piece))
        return at + len(piece)


def block(kind: Block, body: bytes = b"") -> bytes:
    """One block. Raises WireError for a body of the wrong size."""
    least, most = _BODY_BYTES[kind]
    if not least <= len(body) <= most:
        raise WireError(f"a block of kind {kind} with {len(body)} bytes")
    return BLOCK_HEAD.pack(kind, len(body)) + body


def bytes_block(pieces: list[bytes], size: int) -> bytes:
    """A BYTES block of these pieces, `size` bytes in all, at most MOST_BLOCK_BYTES."""
    return b"".join((BLOCK_HEAD.pack(Block.BYTES, size), *pieces))


def options_block(options: Option) -> bytes:
    """The first block of a tunnel."""
    return block(Block.OPTIONS, _U16.pack(TUNNEL_VERSION, options))


def read_options(body: bytes) -> Option:
    """Flags of an OPTIONS block; unknown ones are passed over. Raises WireError for another version."""
    version, flags = _U16.unpack(body)
    if version != TUNNEL_VERSION:
        raise WireError(f"version {version} of RPC tunnels")
    return Option(flags & (Option.HALF | Option.PUSH))


def generation_block(kind: Block, generation: int) -> bytes:
    """RESTART or RESTARTED."""
    return block(kind, _GENERATION.pack(generation))


def read_generation(body: bytes) -> int:
    """The number in RESTART or RESTARTED."""
    return int(_GENERATION.unpack(body)[0])


def base_block(buffer: int, base: int) -> bytes:
    """Where a buffer begins, told before anybody asks."""
    return block(Block.BASE, _BASE.pack(buffer, base))


def read_base(body: bytes) -> tuple[int, int]:
    """(buffer, where it begins)."""
    buffer, base = _BASE.unpack(body)
    return buffer, base


def failed_block(words: str) -> bytes:
    """Why a tunnel ends, in words for a person; cut where they are too long."""
    return block(Block.FAILED, words.encode()[:MOST_WORDS_BYTES])


def read_failed(body: bytes) -> str:
    """The words of a FAILED block, one line of printable characters."""
    return "".join(each if each.isprintable() else " " for each in body.decode("utf-8", "replace"))


def push_head(number: int, flags: PushFlag, size: int) -> bytes:
    """What stands before the data of a push. Raises WireError for one that is too large."""
    if not 0 < size <= MOST_PUSH_BYTES:
        raise WireError(f"a push of {size} bytes")
    return PUSH_HEAD.pack(number, flags, size)


class PushReader:
    """Cuts a push stream into pushes. Ids rise on each stream: a push is never sent twice, nor in another order."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._have = 0
        self._need = PUSH_HEAD.size
        self._head: tuple[int, PushFlag, int] | None = None
        self._last = -1

    @property
    def is_between(self) -> bool:
        """Whether the last push has come to its end."""
        return self._head is None and not self._have

    def feed(self, data: bytes) -> list[tuple[int, PushFlag, bytes]]:
        """(id, flags, data) of every push that is complete. Raises WireError for an id that does not rise, for flags
        that are not known, and for a size out of bounds.
        """
        self._pieces.append(data)
        self._have += len(data)
        if self._have < self._need:
            return []
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        found: list[tuple[int, PushFlag, bytes]] = []
        at, end = 0, len(data)
        while end - at >= self._need:
            if self._head is None:
                self._head = self._read_head(data, at)
                at += PUSH_HEAD.size
                self._need = self._head[2]
            else:
                number, flags, size = self._head
                found.append((number, flags, data[at : at + size]))
                at += size
                self._head, self._need = None, PUSH_HEAD.size
        self._have = end - at
        if self._have:
            self._pieces.append(data[at:])
        return found

    def _read_head(self, data: bytes, at: int) -> tuple[int, PushFlag, int]:
        number, flags, size = PUSH_HEAD.unpack_from(data, at)
        if number <= self._last:
            raise WireError(f"push {number} after {self._last}")
        if flags & ~int(PushFlag.HALF):
            raise WireError(f"a push with the flags {flags:#x}")
        if not 0 < size <= MOST_PUSH_BYTES:
            raise WireError(f"a push of {size} bytes")
        self._last = number
        return number, PushFlag(flags), size
