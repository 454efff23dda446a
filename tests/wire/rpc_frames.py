"""RPC frames as llama.cpp's client writes them, put together field by field."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from meshnode.wire.ggml_rpc import Command

MUL_MAT, FLASH_ATTENTION = 29, 70
"""Two different operations; which ones makes no difference here."""


def tensor(
    name: bytes = b"x",
    *,
    address: int = 0x1000,
    shape: Sequence[int] = (4, 1, 1, 1),
    kind: int = 0,
    operation: int = 0,
    number: int = 7,
) -> bytes:
    """An rpc_tensor of 296 bytes; f32 unless `kind` says otherwise, rows without gaps."""
    width = {0: 4, 1: 2}.get(kind, 1)
    strides = [width, width * shape[0], width * shape[0] * shape[1], width * shape[0] * shape[1] * shape[2]]
    packed = struct.pack("<QIQ4I4II", number, kind, 0xB0, *shape, *strides, operation)
    packed += bytes(64 + 4 + 80) + struct.pack("<QQQ", 0, 0, address) + name.ljust(64, b"\0") + bytes(4)
    assert len(packed) == 296
    return packed


def frame(command: int, payload: bytes = b"") -> bytes:
    """One request."""
    return struct.pack("<BQ", command, len(payload)) + payload


def set_tensor(data: bytes, name: bytes = b"x", *, address: int = 0x1000, offset: int = 0) -> bytes:
    """A SET_TENSOR."""
    return frame(Command.SET_TENSOR, tensor(name, address=address) + b"\0" + struct.pack("<Q", offset) + data)


def get_tensor(size: int, name: bytes = b"x", *, address: int = 0x1000, offset: int = 0) -> bytes:
    """A GET_TENSOR."""
    return frame(Command.GET_TENSOR, tensor(name, address=address) + struct.pack("<QQ", offset, size))


def allocate(size: int, device: int = 0) -> bytes:
    """An ALLOC_BUFFER."""
    return frame(Command.ALLOC_BUFFER, struct.pack("<IQ", device, size))


def free(buffer: int) -> bytes:
    """A FREE_BUFFER."""
    return frame(Command.FREE_BUFFER, struct.pack("<Q", buffer))


def get_base(buffer: int) -> bytes:
    """A BUFFER_GET_BASE."""
    return frame(Command.BUFFER_GET_BASE, struct.pack("<Q", buffer))


def allocation_size(described: bytes, *, device: int = 0) -> bytes:
    """A GET_ALLOC_SIZE for a tensor without sources."""
    return frame(Command.GET_ALLOC_SIZE, struct.pack("<I", device) + described + bytes(2960))


def compute(device: int = 0) -> bytes:
    """A GRAPH_RECOMPUTE."""
    return frame(Command.GRAPH_RECOMPUTE, struct.pack("<I", device))


def push(number: int, destination: int, size: int, name: bytes = b"x", *, address: int = 0x1000) -> bytes:
    """A TUNNEL_PUSH."""
    get = get_tensor(size, name, address=address)[9:]
    return frame(Command.TUNNEL_PUSH, struct.pack("<QQ", number, destination) + get)


def receive(number: int, size: int, name: bytes = b"x", *, address: int = 0x1000) -> bytes:
    """A TUNNEL_RECV."""
    fixed = tensor(name, address=address) + b"\0" + bytes(8)
    return frame(Command.TUNNEL_RECV, struct.pack("<QQ", number, size) + fixed)


def reference(sha256: bytes, name: bytes, size: int, *, address: int = 0x1000, offset: int = 0) -> bytes:
    """A TUNNEL_REF."""
    return frame(Command.TUNNEL_REF, sha256 + tensor(name, address=address) + struct.pack("<QQ", offset, size))


def reply(payload: bytes) -> bytes:
    """One reply."""
    return struct.pack("<Q", len(payload)) + payload
