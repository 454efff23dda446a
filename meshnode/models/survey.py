"""Making the manifest of a model on this disk, in the one pass that its hash takes anyway, and keeping it.

What was found is kept beside the notes of `digest.py`: the manifest under its digest, and which files it belongs to
under their paths, sizes and times of change, so that the next start is quick and a changed file is read anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from meshnode import durable
from meshnode.errors import HomeNotWritable, ModelFileInvalid
from meshnode.models.digest import DigestStopped, note, note_key, noted
from meshnode.models.gguf import merge_headers, read_header, split_parts
from meshnode.models.header import Header
from meshnode.models.manifest import (
    CHUNK_BYTES,
    HASH_BYTES,
    MAX_MANIFEST_BYTES,
    FileEntry,
    Manifest,
    ManifestInvalid,
    decode,
    spans_of,
    tensors_of_header,
)
from meshnode.models.references import check_all_there

MAX_KEPT = 512


@dataclass(frozen=True, slots=True)
class ManifestShelf:
    """Where manifests are kept. `notes` is the file of content hashes; the folder `manifests` beside it is ours."""

    notes: Path

    @property
    def folder(self) -> Path:
        """One file a manifest, named by its digest; `index.json` says of which files they were made."""
        return self.notes.with_name("manifests")

    def known(self, path: Path) -> Manifest | None:
        """The manifest of the model at `path`, if its files are those that were read; None when not known."""
        try:
            key = _key(split_parts(path))
        except (OSError, ModelFileInvalid):
            return None
        return next((self.load(digest) for _, noted_key, digest in self._entries() if noted_key == key), None)

    def surveyed(self) -> Iterator[Path]:
        """The first files of all models whose manifests were made, as far as they are unchanged."""
        for path, key, _ in self._entries():
            try:
                unchanged = _key(split_parts(path)) == key
            except (OSError, ModelFileInvalid):
                continue
            if unchanged:
                yield path

    def load(self, digest: bytes) -> Manifest | None:
        """The manifest with this digest, if it is kept here and undamaged."""
        try:
            with (self.folder / digest.hex()).open("rb") as file:
                data = file.read(MAX_MANIFEST_BYTES + 1)
            return decode(data) if hashlib.sha256(data).digest() == digest else None
        except (OSError, ManifestInvalid):
            return None

    def survey(self, path: Path, *, sha256: str = "", stopped: Callable[[], bool] = lambda: False) -> Manifest:
        """The manifest of the model at `path` (any part of a split one), read from its files unless it is known.

        `sha256` is the hash of the first file, where the disk tells it. Blocks for the time of reading the files.
        Raises ModelFileInvalid, ModelNotFound, OSError, and DigestStopped when `stopped` says so. A manifest that
        cannot be kept only costs the time.
        """
        found = self.known(path)
        if found is not None:
            return found
        parts = split_parts(path)
        check_all_there(parts)
        key = _key(parts)
        headers = [read_header(part) for part in parts]
        merge_headers(headers)
        files: list[FileEntry] = []
        hashes: list[bytes] = []
        for number, (part, header) in enumerate(zip(parts, headers, strict=True)):
            own_key = note_key(part)
            known = (sha256 if number == 0 else "") or noted(self.notes, own_key)
            entry = _read(part, header, hashes, known, stopped)
            files.append(entry)
            note(self.notes, own_key, entry.sha256.hex())
        if _key(parts) != key:
            raise ModelFileInvalid(f"{parts[0].name}: it changes while it is read")
        try:
            manifest = Manifest(tuple(files), b"".join(hashes))
            self._keep(path, key, manifest)
        except ManifestInvalid as reason:
            raise ModelFileInvalid(f"{parts[0].name}: {reason}") from None
        return manifest

    def _keep(self, path: Path, key: str, manifest: Manifest) -> None:
        """Put the manifest on the shelf, and note whose it is. The oldest beyond MAX_KEPT are forgotten."""
        entries = [entry for entry in self._entries() if entry[0] != path.absolute()]
        entries = [*entries[-MAX_KEPT + 1 :], (path.absolute(), key, manifest.digest)]
        noted = [[str(named), its_key, digest.hex()] for named, its_key, digest in entries]
        known = {digest.hex() for _, _, digest in entries}
        with contextlib.suppress(HomeNotWritable, OSError):
            durable.write(self.folder / manifest.digest.hex(), manifest.encoded)
            durable.write(self._index, json.dumps(noted).encode())
            for old in self.folder.iterdir():
                if len(old.name) == 2 * HASH_BYTES and old.name not in known:
                    old.unlink(missing_ok=True)

    def _entries(self) -> list[tuple[Path, str, bytes]]:
        """(path, what its files looked like, digest), the oldest first; none where the index is damaged."""
        try:
            found = json.loads(self._index.read_bytes())
            return [(Path(path), str(key), bytes.fromhex(digest)) for path, key, digest in found]
        except (OSError, ValueError, TypeError, RecursionError):
            return []

    @property
    def _index(self) -> Path:
        return self.folder / "index.json"


def _key(parts: Sequence[Path]) -> str:
    return "\n".join(note_key(part) for part in parts)


def _read(path: Path, header: Header, hashes: list[bytes], known: str, stopped: Callable[[], bool]) -> FileEntry:
    """The entry of one file, and the hashes of its chunks behind those that are in the list."""
    size = header.file_bytes
    tensors = tensors_of_header(header)
    spans = list(spans_of([FileEntry(size, bytes(32), tensors)]))
    if any(span.end < span.start for span in spans):
        raise ModelFileInvalid(f"{path.name}: its tensors overlap")
    whole = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        _read_once(file.fileno())
        for span in spans:
            for start in range(span.start, span.end, CHUNK_BYTES):
                if stopped():
                    raise DigestStopped
                piece = buffer[: min(CHUNK_BYTES, span.end - start)]
                at = 0
                while at < len(piece):
                    count = file.readinto(piece[at:])
                    if not count:
                        raise ModelFileInvalid(f"{path.name}: it changes while it is read")
                    at += count
                hashes.append(hashlib.sha256(piece).digest())
                if not known:
                    whole.update(piece)
    return FileEntry(size, bytes.fromhex(known) if known else whole.digest(), tensors)


def _read_once(descriptor: int) -> None:
    """Tell the system to read ahead, where it listens."""
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
