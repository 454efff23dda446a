"""Weights by reference: where the bytes of a tensor lie in the files of a model whose hash is known here.

A host that splits a model over several nodes names its weights (tensor, offset, size) in place of sending them. A
worker that has the same files reads them itself. What a peer says is only ever looked up in a table that was made
from the header of files that this node chose, so no name and no number of a peer opens a file or leaves a tensor.

The files are watched: one that has changed since is not the model any more, and nothing is found in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from meshnode.errors import ModelFileInvalid, ModelNotFound
from meshnode.models.gguf import merge_headers, read_header, split_parts

SHA256_BYTES = 32


@dataclass(frozen=True, slots=True)
class Place:
    """Where a whole tensor lies: which file, from which byte, how many bytes."""

    part: int
    position: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a file looked like when its header was read."""

    path: Path
    size_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> _Seen:
        facts = path.stat()
        return cls(path, facts.st_size, facts.st_mtime_ns)

    def is_unchanged(self, *, modified: bool) -> bool:
        """Whether the file is still that one; without `modified`, new bytes in its holes do not count."""
        try:
            now = _Seen.of(self.path)
        except OSError:
            return False
        return now.size_bytes == self.size_bytes and (not modified or now.modified_ns == self.modified_ns)


def _everything(tensor: str) -> bool:
    return True


class References:
    """The tensors of one model on this disk. Make it with `open`.

    `sha256` is what the mesh calls the model by: the hash of its first file, 32 bytes.
    """

    def __init__(
        self, sha256: bytes, files: Sequence[_Seen], places: dict[str, Place], present: Callable[[str], bool] | None
    ) -> None:
        self.sha256 = sha256
        self._files = tuple(files)
        self._places = places
        self._sparse = present is not None
        self._present = present or _everything

    @classmethod
    def open(cls, sha256: bytes, path: Path, *, present: Callable[[str], bool] | None = None) -> References:
        """The model at `path` (any part of a split one). Blocks for the time of reading its headers.

        The caller vouches for the hash. `present` says which tensors are really in a sparse file whose holes are
        being filled; None stands for a whole one. Raises ModelNotFound, and ModelFileInvalid with the reason: parts
        that are missing by name, a header that is none, a tensor that is there twice or ends outside of its file.
        """
        if len(sha256) != SHA256_BYTES:
            raise ValueError(f"a SHA-256 of {len(sha256)} bytes")
        parts = split_parts(path)
        check_all_there(parts)
        try:
            files = [_Seen.of(part) for part in parts]
        except OSError as error:
            raise ModelNotFound(f"there is no file {path}") from error
        headers = [read_header(part) for part in parts]
        merge_headers(headers)
        places: dict[str, Place] = {}
        for number, header in enumerate(headers):
            if header.file_bytes != files[number].size_bytes:
                raise ModelFileInvalid(f"{parts[number].name}: it changes while it is read")
            for tensor in header.tensors:
                if tensor.name in places:
                    raise ModelFileInvalid(f"{parts[number].name}: the tensor {tensor.name} is in another part, too")
                places[tensor.name] = Place(number, header.data_offset + tensor.offset, tensor.n_bytes)
        return cls(sha256, files, places, present)

    def find(self, tensor: str, offset: int, size: int) -> tuple[Path, int] | None:
        """File and position of `size` bytes from `offset` of a tensor; None when these are not held here.

        Made for what a peer says: nothing is raised, whatever the values are.
        """
        place = self._places.get(tensor)
        if place is None or offset < 0 or size <= 0 or offset + size > place.n_bytes or not self._present(tensor):
            return None
        file = self._files[place.part]
        if not file.is_unchanged(modified=not self._sparse):
            return None
        return file.path, place.position + offset

    def is_whole(self, tensor: str) -> bool:
        """Whether all bytes of a tensor are held here."""
        return tensor in self._places and self._present(tensor)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of all tensors of the model, also of those whose bytes are not here."""
        return tuple(self._places)

    @property
    def held_bytes(self) -> int:
        """Bytes of the tensors that are held here."""
        return sum(place.n_bytes for tensor, place in self._places.items() if self._present(tensor))


def check_all_there(parts: Sequence[Path]) -> None:
    """Raise ModelFileInvalid with the names of parts that are missing, ModelNotFound for a file that is not there."""
    missing = [part.name for part in parts if not part.is_file()]
    if missing and len(parts) > 1:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise ModelFileInvalid(f"{len(missing)} of {len(parts)} parts are missing: {shown}")
    if missing:
        raise ModelNotFound(f"there is no file {parts[0]}")
