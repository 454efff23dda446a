"""The manifest of a model: what its files consist of, chunk by chunk, so that strangers can bring it in pieces.

A file is cut into spans: its header (all before the first tensor), then each tensor with the padding behind it. A span
is cut into chunks of 4 MiB, the last of which is shorter. So a chunk never holds bytes of two tensors, equal tensors of
two models have equal chunks, and all chunks together are the files, byte for byte.

    "MNWM" | version u8 = 1 | files u16
    of each file:    size u64 | SHA-256 32 | tensors u32
    of each tensor:  length of its name u16 | name, UTF-8 | position u64 | size u64
    SHA-256 of every chunk, 32 bytes each, in the order of the files and of their bytes

Integers are big-endian, positions count from the beginning of the file. A manifest has one form only; the SHA-256 of
its bytes is its digest, which pins every byte of the model. Format and rules: protocol/11-weights.md.

Nothing here reads a file: `survey.py` makes manifests, `pieces.py` brings what they describe.
"""

from __future__ import annotations

import hashlib
import re
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from meshnode.models.gguf import MAX_SPLITS, MAX_TENSORS
from meshnode.models.header import Header

CHUNK_BYTES = 4 << 20
HASH_BYTES = 32
MAX_FILE_BYTES = 1 << 50
MAX_NAME_BYTES = 768
MAX_MANIFEST_BYTES = 64 << 20
"""Two million chunks: a model of 8 TB."""
SMALL_BYTES = 1 << 20
"""Tensors below that belong to every layer range: norms, rope factors, which llama.cpp may want anywhere."""
MAGIC = b"MNWM"
VERSION = 1

_HEAD = struct.Struct(">4sBH")
_FILE = struct.Struct(">Q32sI")
_NAME = struct.Struct(">H")
_PLACE = struct.Struct(">QQ")
_LAYER = re.compile(r"(?:^|\.)blk\.(\d{1,6})\.")


class ManifestInvalid(ValueError):
    """Bytes that are no manifest, or a manifest that does not describe these files."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor: its name, its first byte in the file, its size without padding."""

    name: str
    position: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file: its size, its SHA-256 (32 bytes), and its tensors in the order of their bytes."""

    size_bytes: int
    sha256: bytes
    tensors: tuple[TensorEntry, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """The header of a file (`tensor` is "") or a tensor with its padding: bytes `start` to `end` of file `file`."""

    file: int
    tensor: str
    start: int
    end: int
    first_chunk: int

    @property
    def chunks(self) -> range:
        """The numbers of its chunks."""
        return range(self.first_chunk, self.first_chunk + -(-(self.end - self.start) // CHUNK_BYTES))


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk: where it lies, and the SHA-256 of its bytes."""

    number: int
    file: int
    position: int
    size_bytes: int
    sha256: bytes


@dataclass(frozen=True)
class Manifest:
    """All files of a model, and the hashes of all chunks one after the other (32 bytes each)."""

    files: tuple[FileEntry, ...]
    hashes: bytes

    @property
    def sha256(self) -> bytes:
        """What the mesh calls the model by: the hash of its first file."""
        return self.files[0].sha256

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def chunk_count(self) -> int:
        """Chunks of all files."""
        return len(self.hashes) // HASH_BYTES

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """Headers and tensors in the order of the files and of their bytes."""
        return tuple(spans_of(self.files))

    @cached_property
    def span_of(self) -> dict[str, Span]:
        """The span of each tensor by its name."""
        return {span.tensor: span for span in self.spans if span.tensor}

    @cached_property
    def encoded(self) -> bytes:
        """The canonical bytes."""
        return encode(self)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the canonical bytes: pins every byte of the model."""
        return hashlib.sha256(self.encoded).digest()

    @cached_property
    def _first_chunks(self) -> list[int]:
        return [span.first_chunk for span in self.spans]

    def chunk(self, number: int) -> Chunk:
        """The chunk with this number. Raises IndexError for one that there is not."""
        if not 0 <= number < self.chunk_count:
            raise IndexError(f"chunk {number} of {self.chunk_count}")
        span = self.spans[bisect_right(self._first_chunks, number) - 1]
        position = span.start + (number - span.first_chunk) * CHUNK_BYTES
        size = min(CHUNK_BYTES, span.end - position)
        return Chunk(number, span.file, position, size, self.hash_of(number))

    def hash_of(self, number: int) -> bytes:
        """The SHA-256 of a chunk."""
        return self.hashes[number * HASH_BYTES : (number + 1) * HASH_BYTES]

    def header_chunks(self) -> list[int]:
        """The chunks of the headers of all files."""
        return [number for span in self.spans if not span.tensor for number in span.chunks]

    def chunks_of(self, tensors: Iterable[str]) -> list[int]:
        """The chunks of these tensors, in order. Names that are not there are passed over."""
        wanted = set(tensors)
        return [number for span in self.spans if span.tensor in wanted and span.tensor for number in span.chunks]

    def tensors_of_layers(self, layers: range, *, ends: bool) -> list[str]:
        """The tensors that a device with these layers reads; with `ends` also embedding and output head."""
        found = []
        for file in self.files:
            for tensor in file.tensors:
                layer = layer_of(tensor.name)
                if layer in layers if layer is not None else ends or tensor.n_bytes < SMALL_BYTES:
                    found.append(tensor.name)
        return found

    def check_header(self, file: int, header: Header) -> None:
        """Raise ManifestInvalid unless the header of a file names the same tensors in the same places."""
        found = {tensor.name: (header.data_offset + tensor.offset, tensor.n_bytes) for tensor in header.tensors}
        if found != {tensor.name: (tensor.position, tensor.n_bytes) for tensor in self.files[file].tensors}:
            raise ManifestInvalid(f"the header of file {file + 1} has other tensors than the manifest says")


def layer_of(tensor: str) -> int | None:
    """The layer that a tensor belongs to; None for embedding, output head and what all layers share."""
    found = _LAYER.search(tensor)
    return int(found[1]) if found else None


def tensors_of_header(header: Header) -> tuple[TensorEntry, ...]:
    """The tensors of a file in the order of their bytes."""
    entries = (TensorEntry(item.name, header.data_offset + item.offset, item.n_bytes) for item in header.tensors)
    return tuple(sorted(entries, key=lambda entry: entry.position))


def spans_of(files: Iterable[FileEntry]) -> Iterator[Span]:
    """The spans of files whose tensors are in order and do not overlap."""
    first = 0
    for number, file in enumerate(files):
        starts = [("", 0), *((tensor.name, tensor.position) for tensor in file.tensors)]
        ends = [start for _, start in starts[1:]] + [file.size_bytes]
        for (name, start), end in zip(starts, ends, strict=True):
            span = Span(number, name, start, end, first)
            first += len(span.chunks)
            yield span


def encode(manifest: Manifest) -> bytes:
    """The canonical bytes. Raises ManifestInvalid for a manifest that breaks the rules."""
    check(manifest)
    pieces = [_HEAD.pack(MAGIC, VERSION, len(manifest.files))]
    for file in manifest.files:
        pieces.append(_FILE.pack(file.size_bytes, file.sha256, len(file.tensors)))
        for tensor in file.tensors:
            name = tensor.name.encode()
            pieces += [_NAME.pack(len(name)), name, _PLACE.pack(tensor.position, tensor.n_bytes)]
    return b"".join([*pieces, manifest.hashes])


def decode(data: bytes) -> Manifest:
    """The manifest in `data`, all of it, every value checked. Raises ManifestInvalid."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestInvalid(f"{len(data)} bytes, at most {MAX_MANIFEST_BYTES}")
    try:
        files, at = _decode_files(data)
    except struct.error:
        raise ManifestInvalid("it is cut short") from None
    manifest = Manifest(files, data[at:])
    check(manifest)
    return manifest


def _decode_files(data: bytes) -> tuple[tuple[FileEntry, ...], int]:
    magic, version, count = _HEAD.unpack_from(data, 0)
    if magic != MAGIC or version != VERSION:
        raise ManifestInvalid("it is not a manifest of version 1")
    files, at, left = [], _HEAD.size, MAX_TENSORS
    for _ in range(count):
        size, sha256, tensor_count = _FILE.unpack_from(data, at)
        at += _FILE.size
        left -= tensor_count
        if left < 0:
            raise ManifestInvalid(f"more than {MAX_TENSORS} tensors")
        tensors = []
        for _ in range(tensor_count):
            (length,) = _NAME.unpack_from(data, at)
            name_at, at = at + _NAME.size, at + _NAME.size + length
            position, n_bytes = _PLACE.unpack_from(data, at)
            try:
                name = data[name_at:at].decode("utf-8")
            except UnicodeDecodeError:
                raise ManifestInvalid("a name that is not UTF-8") from None
            at += _PLACE.size
            tensors.append(TensorEntry(name, position, n_bytes))
        files.append(FileEntry(size, sha256, tuple(tensors)))
    return tuple(files), at


def check(manifest: Manifest) -> None:
    """Raise ManifestInvalid for a manifest that breaks the rules: counts, order, names, bounds, number of hashes."""
    if not 1 <= len(manifest.files) <= MAX_SPLITS:
        raise ManifestInvalid(f"{len(manifest.files)} files")
    names: set[str] = set()
    for file in manifest.files:
        if not 1 <= file.size_bytes <= MAX_FILE_BYTES or len(file.sha256) != HASH_BYTES:
            raise ManifestInvalid(f"a file of {file.size_bytes} bytes")
        free = 1
        for tensor in file.tensors:
            if not 1 <= len(tensor.name.encode()) <= MAX_NAME_BYTES or tensor.name in names:
                raise ManifestInvalid("a tensor without a name, or with one that is too long or there twice")
            names.add(tensor.name)
            if tensor.position < free or tensor.n_bytes < 1:
                raise ManifestInvalid("tensors are not in the order of their bytes, or overlap")
            free = tensor.position + tensor.n_bytes
        if free > file.size_bytes:
            raise ManifestInvalid("a tensor ends outside of its file")
    if sum(file.size_bytes for file in manifest.files) > MAX_FILE_BYTES:
        raise ManifestInvalid("files of an impossible size")
    chunks = sum(len(span.chunks) for span in spans_of(manifest.files))
    if len(manifest.hashes) != chunks * HASH_BYTES:
        raise ManifestInvalid(f"{len(manifest.hashes)} bytes of hashes for {chunks} chunks")
