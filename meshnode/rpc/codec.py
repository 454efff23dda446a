"""Delta and compression of what goes from the host to a worker. No IO.

The inputs of a step differ little from those of the step before: the headers not at all, masks in a few bytes. Each
SET_TENSOR is XOR-ed with the last one of the same tensor and length, and batches of frames pass through one DEFLATE
stream a tunnel (RFC 1951, Z_SYNC_FLUSH at the end of each batch), whose window remembers what is no SET_TENSOR.

    packed   plain length u32 | DEFLATE of records
    record   0 | length u32 | bytes            as they are
             1 | slot u8 | length u32 | bytes  as they are, and kept in the slot
             2 | slot u8 | length u32 | bytes  XOR with what is in the slot; the result is kept there
"""

from __future__ import annotations

import zlib
from struct import Struct
from typing import Final

from meshnode.wire import ggml_rpc as rpc
from meshnode.wire.values import WireError

MOST_PLAIN_BYTES: Final = 1 << 20
SLOTS: Final = 64
_LENGTH: Final = Struct("!I")
_RECORD: Final = Struct("!BI")
_SLOT_RECORD: Final = Struct("!BBI")
_PLAIN, _KEEP, _XOR = range(3)
_LEVEL = 1
_WINDOW_BITS = -15
_MEMORY = 8
_KEY_AT = rpc.HEAD_BYTES + rpc.NAME_AT - 8
_KEY_END = rpc.HEAD_BYTES + rpc.NAME_AT + rpc.NAME_BYTES
"""Address of the data and name of the tensor that a SET_TENSOR sets."""
SAMPLE_BYTES = 64 << 10
WORTH_WHILE = 0.9


def xor(one: bytes, other: bytes) -> bytes:
    """Byte by byte; both are of the same length."""
    size = len(one)
    return (int.from_bytes(one, "little") ^ int.from_bytes(other, "little")).to_bytes(size, "little")


def is_worth_packing(data: bytes) -> bool:
    """Whether DEFLATE makes a beginning of `data` clearly smaller; weights it does not."""
    sample = data[:SAMPLE_BYTES]
    return len(zlib.compress(sample, _LEVEL)) < WORTH_WHILE * len(sample)


class Packer:
    """The sending side of one tunnel."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS, _MEMORY)
        self._slots: dict[bytes, int] = {}
        self._kept: list[bytes] = []

    def record(self, command: int, data: bytes) -> list[bytes]:
        """Pieces of the records for one frame of `command`, or for a run of others."""
        if command != rpc.Command.SET_TENSOR:
            return [_RECORD.pack(_PLAIN, len(data)), data]
        key = data[:9] + data[_KEY_AT:_KEY_END]
        slot = self._slots.get(key)
        if slot is not None:
            changed = xor(data, self._kept[slot])
            self._kept[slot] = data
            return [_SLOT_RECORD.pack(_XOR, slot, len(data)), changed]
        if len(self._kept) < SLOTS:
            slot = len(self._kept)
            self._kept.append(data)
        else:
            # The oldest gives way: a graph of another shape has other inputs.
            oldest = next(iter(self._slots))
            slot = self._slots.pop(oldest)
            self._kept[slot] = data
        self._slots[key] = slot
        return [_SLOT_RECORD.pack(_KEEP, slot, len(data)), data]

    def pack(self, records: list[bytes]) -> bytes:
        """The body of a PACKED block of these records, MOST_PLAIN_BYTES at most. Batches in the order of the calls."""
        plain = b"".join(records)
        deflated = self._deflate.compress(plain) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        return _LENGTH.pack(len(plain)) + deflated


class Unpacker:
    """The receiving side of one tunnel. What it holds is bounded: SLOTS frames of WHOLE_BYTES."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(_WINDOW_BITS)
        self._kept: dict[int, bytes] = {}

    @staticmethod
    def plain_bytes(body: bytes) -> int:
        """How large a PACKED body will become. Raises WireError for too large."""
        (size,) = _LENGTH.unpack_from(body)
        if size > MOST_PLAIN_BYTES:
            raise WireError(f"a packed block of {size} bytes")
        return int(size)

    def unpack(self, body: bytes) -> bytes:
        """The RPC bytes in a PACKED body. Raises WireError for anything that a `Packer` does not write."""
        size = self.plain_bytes(body)
        try:
            plain = self._inflate.decompress(body[_LENGTH.size :], size + 1)
        except zlib.error as error:
            raise WireError(f"a packed block: {error}") from None
        if len(plain) != size or self._inflate.unconsumed_tail or self._inflate.eof:
            raise WireError("a packed block of another length than it says")
        return b"".join(self._records(plain))

    def _records(self, plain: bytes) -> list[bytes]:
        found: list[bytes] = []
        at, end = 0, len(plain)
        while at < end:
            kind = plain[at]
            head = _RECORD if kind == _PLAIN else _SLOT_RECORD
            if kind > _XOR or end - at < head.size:
                raise WireError("a packed block with a broken record")
            fields = head.unpack_from(plain, at)
            size, at = fields[-1], at + head.size
            data = plain[at : at + size]
            at += size
            if len(data) != size or (kind != _PLAIN and size > rpc.WHOLE_BYTES):
                raise WireError("a packed record of a wrong length")
            if kind != _PLAIN:
                data = self._keep(kind, fields[1], data)
            found.append(data)
        return found

    def _keep(self, kind: int, slot: int, data: bytes) -> bytes:
        if slot >= SLOTS:
            raise WireError(f"no slot {slot}")
        if kind == _XOR:
            before = self._kept.get(slot)
            if before is None or len(before) != len(data):
                raise WireError(f"nothing of that length in slot {slot}")
            data = xor(data, before)
        self._kept[slot] = data
        return data
