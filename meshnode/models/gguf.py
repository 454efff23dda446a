"""Reading the header of a GGUF model file, bounded and fast.

Only the header is read, never a weight, and the vocabulary is stepped over without making Python objects of it, so
that a file with 150,000 tokens takes well under 100 ms. Every count and length is bounded before it is used: a file
comes from strangers. The values themselves are in `header.py`.

Format: ggml's docs/gguf.md, versions 2 and 3, little endian.
"""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import replace
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

from meshnode.errors import ModelFileInvalid, ModelNotFound
from meshnode.models.header import TENSOR_TYPES, Header, Tensor, Value

MAGIC = b"GGUF"
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_KEY_BYTES = 1 << 16
MAX_TENSOR_NAME_BYTES = 256
MAX_TEXT_BYTES = 1 << 20
MAX_ARRAY = 1 << 24
MAX_SPLITS = 1 << 12
# Longer arrays (token scores, merges) are stepped over; the longest that matters has one value a layer.
KEPT_ARRAY = 1024
FIRST_READ_BYTES = 16 << 20
MAX_HEADER_BYTES = 256 << 20

SPLIT_NAME = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$", re.IGNORECASE)

_ARRAY, _STRING = 9, 8
_SCALARS = {
    code: struct.Struct("<" + letter) for code, letter in [*enumerate("BbHhIif?"), (10, "Q"), (11, "q"), (12, "d")]
}
_U64 = struct.Struct("<Q")


class _NeedMore(Exception):
    """The bytes at hand end before the header does."""


class _Cursor:
    """Reads values from bytes and never past their end."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def scalar(self, kind: struct.Struct) -> Any:
        end = self.at + kind.size
        if end > len(self.data):
            raise _NeedMore
        (value,) = kind.unpack_from(self.data, self.at)
        self.at = end
        return value

    def u32(self) -> int:
        return int(self.scalar(_SCALARS[4]))

    def u64(self) -> int:
        return int(self.scalar(_U64))

    def text(self, limit: int, what: str) -> str:
        size = self.u64()
        if size > limit:
            raise ModelFileInvalid(f"{what} claims {size:,} bytes, at most {limit:,} are allowed")
        end = self.at + size
        if end > len(self.data):
            raise _NeedMore
        value = self.data[self.at : end].decode("utf-8", "replace")
        self.at = end
        return value

    def skip_texts(self, count: int) -> None:
        """Step over `count` texts; the tight loop is what makes a large vocabulary cheap."""
        data, at, unpack = self.data, self.at, _U64.unpack_from
        try:
            for _ in range(count):
                at += unpack(data, at)[0] + 8
        except (struct.error, OverflowError) as error:
            if at > MAX_HEADER_BYTES:
                raise ModelFileInvalid("a text in a list is longer than any header may be") from error
            raise _NeedMore from error
        if at > len(data):
            raise _NeedMore
        self.at = at


def parse_header(data: bytes, file_bytes: int, *, check_size: bool = True) -> Header | None:
    """Read a header from the first bytes of a file of `file_bytes`; None when `data` ends before the header does.

    With `check_size`, tensors must lie inside the file. Raises ModelFileInvalid with the reason.
    """
    if data[:4] != MAGIC:
        raise ModelFileInvalid(_not_gguf(data))
    cursor = _Cursor(data)
    cursor.at = 4
    try:
        version = cursor.u32()
        if version > 0xFFFF:
            raise ModelFileInvalid("it is a big-endian GGUF file; this machine and most others need little-endian ones")
        if version not in (2, 3):
            raise ModelFileInvalid(f"GGUF version {version} is not supported (2 and 3 are)")
        tensor_count, key_count = cursor.u64(), cursor.u64()
        if tensor_count > MAX_TENSORS or key_count > MAX_KEYS:
            raise ModelFileInvalid(f"it claims {tensor_count:,} tensors and {key_count:,} keys, which cannot be")
        metadata, lengths, digest = _read_metadata(cursor, key_count)
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 16 or alignment & (alignment - 1):
            raise ModelFileInvalid(f"its alignment is {alignment}, which is not a small power of two")
        tensors = tuple(_read_tensor(cursor, alignment) for _ in range(tensor_count))
    except _NeedMore:
        return None
    data_offset = -(-cursor.at // alignment) * alignment
    header = Header(
        version, MappingProxyType(metadata), MappingProxyType(lengths), tensors, file_bytes, data_offset, digest
    )
    _check_counts(header)
    if check_size:
        _check_size(header)
    return header


def read_header(path: Path, *, check_size: bool = True) -> Header:
    """Read the header of one file.

    Raises ModelFileInvalid (not GGUF, truncated, absurd counts) and ModelNotFound (no such file).
    """
    try:
        file_bytes = path.stat().st_size
        with path.open("rb", buffering=0) as file:
            wanted = FIRST_READ_BYTES
            while True:
                file.seek(0)
                data = file.read(min(wanted, file_bytes)) or b""
                header = parse_header(data, file_bytes, check_size=check_size)
                if header is not None:
                    return header
                if len(data) >= file_bytes or wanted >= MAX_HEADER_BYTES:
                    raise ModelFileInvalid(
                        f"it ends inside its header, after {file_bytes:,} bytes: an unfinished download"
                    )
                wanted *= 4
    except ModelFileInvalid as error:
        raise ModelFileInvalid(f"{path.name}: {error.detail}", fix=error.fix) from None
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ModelNotFound(f"there is no file {path}") from error
    except OSError as error:
        raise ModelFileInvalid(
            f"{path.name}: {error.strerror or error}", fix="check that you may read the file"
        ) from error


def split_parts(path: Path) -> tuple[Path, ...]:
    """All parts of a split model, from the name of any of them; the path itself when it is a whole file."""
    match = SPLIT_NAME.match(path.name)
    if match is None:
        return (path,)
    count = int(match["count"])
    if not 1 <= count <= MAX_SPLITS:
        raise ModelFileInvalid(f"{path.name}: it claims {count} parts")
    return tuple(path.with_name(f"{match['stem']}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1))


def read_model(path: Path, *, check_size: bool = True) -> Header:
    """Read a model that may be split: the metadata of part 1 with the tensors and bytes of all parts.

    Raises ModelFileInvalid naming the parts that are missing or do not belong together, and what read_header raises.
    """
    parts = split_parts(path)
    missing = [part.name for part in parts if not part.exists()]
    if missing and len(parts) > 1:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise ModelFileInvalid(f"{len(missing)} of {len(parts)} parts are missing: {shown}")
    return merge_headers([read_header(part, check_size=check_size) for part in parts])


def merge_headers(headers: list[Header]) -> Header:
    """One header for the parts of a split model, in order. Raises ModelFileInvalid when they are not one set."""
    first = headers[0]
    if first.split_count != len(headers):
        raise ModelFileInvalid(
            f"part 1 says that the model has {first.split_count} parts, its file name {len(headers)}"
        )
    for number, header in enumerate(headers):
        if header.split_number != number or header.split_count != first.split_count:
            raise ModelFileInvalid(f"part {number + 1} belongs to another set or another place in it")
    tensors = tuple(tensor for header in headers for tensor in header.tensors)
    announced = first.number("split.tensors.count", len(tensors))
    if len(headers) > 1 and announced != len(tensors):
        raise ModelFileInvalid(f"the parts hold {len(tensors)} tensors, part 1 announces {announced}")
    return replace(first, tensors=tensors, file_bytes=sum(header.file_bytes for header in headers))


def _not_gguf(data: bytes) -> str:
    head = data[:64].lstrip().lower()
    if not data:
        return "it is empty"
    if head.startswith((b"<!doctype", b"<html", b"{")):
        return "it is a web page or an error message, not a model"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; the model itself was not downloaded"
    if data[:4] in (b"ggml", b"ggjt", b"lmgg", b"tjgg"):
        return "it is in the old GGML format; look for a GGUF version"
    return "it is not a GGUF file"


def _read_metadata(cursor: _Cursor, count: int) -> tuple[dict[str, Value], dict[str, int], str]:
    metadata: dict[str, Value] = {}
    lengths: dict[str, int] = {}
    digest = ""
    for _ in range(count):
        key = cursor.text(MAX_KEY_BYTES, "a key")
        if key in metadata or key in lengths:
            raise ModelFileInvalid(f"the key {key[:80]} is there twice")
        start = cursor.at
        kind = cursor.u32()
        if kind != _ARRAY:
            metadata[key] = _read_value(cursor, kind, key)
            continue
        values, lengths[key] = _read_array(cursor, key)
        if values is not None:
            metadata[key] = values
        if key == "tokenizer.ggml.tokens":
            digest = hashlib.blake2b(memoryview(cursor.data)[start : cursor.at], digest_size=16).hexdigest()
    return metadata, lengths, digest


def _read_value(cursor: _Cursor, kind: int, key: str) -> Value:
    if kind == _STRING:
        return cursor.text(MAX_TEXT_BYTES, f"the text of {key[:80]}")
    if kind not in _SCALARS:
        raise ModelFileInvalid(f"{key[:80]} has the unknown type {kind}")
    value: Value = cursor.scalar(_SCALARS[kind])
    return value


def _read_array(cursor: _Cursor, key: str) -> tuple[tuple[Value, ...] | None, int]:
    """The values, or None for a list too long to keep; and how many there are."""
    kind, count = cursor.u32(), cursor.u64()
    if count > MAX_ARRAY:
        raise ModelFileInvalid(f"{key[:80]} claims {count:,} values")
    if kind == _STRING:
        if count > KEPT_ARRAY or key.startswith("tokenizer."):
            cursor.skip_texts(count)
            return None, count
        return tuple(cursor.text(MAX_TEXT_BYTES, key[:80]) for _ in range(count)), count
    if kind not in _SCALARS:
        raise ModelFileInvalid(f"{key[:80]} is a list of the unknown type {kind}")
    item = _SCALARS[kind]
    end = cursor.at + count * item.size
    if end > len(cursor.data):
        raise _NeedMore
    values = None
    if count <= KEPT_ARRAY:
        values = tuple(value for (value,) in item.iter_unpack(memoryview(cursor.data)[cursor.at : end]))
    cursor.at = end
    return values, count


def _read_tensor(cursor: _Cursor, alignment: int) -> Tensor:
    name = cursor.text(MAX_TENSOR_NAME_BYTES, "the name of a tensor")
    rank = cursor.u32()
    if not 1 <= rank <= 4:
        raise ModelFileInvalid(f"tensor {name} has {rank} dimensions")
    shape = tuple(cursor.u64() for _ in range(rank))
    kind, offset = cursor.u32(), cursor.u64()
    if kind not in TENSOR_TYPES:
        raise ModelFileInvalid(
            f"tensor {name} has type {kind}, which this version does not know",
            fix="choose another quantisation (Q4_K_M works everywhere), or update meshnode",
        )
    type_name, block, block_bytes = TENSOR_TYPES[kind]
    elements = prod(shape)
    if min(shape) <= 0 or elements >= 1 << 48:
        raise ModelFileInvalid(f"tensor {name} has the impossible shape {'x'.join(map(str, shape))}")
    if shape[0] % block:
        raise ModelFileInvalid(f"tensor {name}: rows of {shape[0]} do not fit {type_name}")
    if offset % alignment:
        raise ModelFileInvalid(f"tensor {name} does not start on a multiple of {alignment}")
    return Tensor(name, shape, type_name, offset, elements // block * block_bytes)


def _check_counts(header: Header) -> None:
    """Counts that other code multiplies by must be sane; 512 layers is llama.cpp's own limit."""
    if len({tensor.name for tensor in header.tensors}) != len(header.tensors):
        raise ModelFileInvalid("two tensors have the same name")
    if not header.architecture:
        raise ModelFileInvalid("it does not say which architecture it has")
    if not 0 <= header.layer_count <= 512:
        raise ModelFileInvalid(f"it claims {header.layer_count:,} layers")
    if not 1 <= header.split_count <= MAX_SPLITS:
        raise ModelFileInvalid(f"it claims to be one of {header.split_count:,} parts")


def _check_size(header: Header) -> None:
    end = max((tensor.offset + tensor.n_bytes for tensor in header.tensors), default=0)
    missing = header.data_offset + end - header.file_bytes
    if header.tensors and missing > 0:
        raise ModelFileInvalid(
            f"the last {missing:,} of {header.data_offset + end:,} bytes are missing: an unfinished download"
        )
