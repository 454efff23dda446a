"""What of all models on this disk can be shown to others: by the hash of a model, by the digest of its manifest.

Three kinds of models come together here: files whose manifest was made (`survey.py`), models that were fetched from
peers, and those that are just being fetched, as far as they are here. Whoever asks names hashes and numbers; which
files these stand for is decided here alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakSet

from meshnode.errors import ModelError
from meshnode.models.digest import note_key
from meshnode.models.fetched import FetchedModels
from meshnode.models.gguf import split_parts
from meshnode.models.manifest import Manifest
from meshnode.models.pieces import Pieces, read_chunk
from meshnode.models.references import References
from meshnode.models.survey import ManifestShelf


@dataclass(frozen=True, slots=True)
class WholeModel:
    """The files of a model whose manifest is known; `keys` say what they looked like when it was made."""

    manifest: Manifest
    paths: tuple[Path, ...]
    keys: tuple[str, ...]

    def is_unchanged(self) -> bool:
        """Whether the files are still those."""
        try:
            return self.keys == tuple(note_key(path) for path in self.paths)
        except OSError:
            return False


@dataclass(slots=True)
class ModelLibrary:
    """See the module. Its methods may be called from several threads; they read disks, and raise nothing where the
    docstring names nothing: it is the Library of `mesh/bulk.py`.
    """

    shelf: ManifestShelf
    fetched: FetchedModels
    _whole: dict[bytes, WholeModel] = field(default_factory=dict)
    _pieces: dict[bytes, Pieces] = field(default_factory=dict)
    _lent: WeakSet[References] = field(default_factory=WeakSet)
    _lent_from: dict[int, Path] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def open(self) -> None:
        """Take in what is known from earlier runs."""
        for path in self.shelf.surveyed():
            manifest = self.shelf.known(path)
            if manifest is not None:
                self.add(path, manifest)
        for found in self.fetched.all():
            self.add_pieces(found)

    def survey(self, path: Path, *, sha256: str = "", stopped: Callable[[], bool] = lambda: False) -> Manifest:
        """Make the manifest of a model, and have it shown. Raises as ManifestShelf.survey."""
        manifest = self.shelf.survey(path, sha256=sha256, stopped=stopped)
        self.add(path, manifest)
        return manifest

    def add(self, path: Path, manifest: Manifest) -> None:
        """Show a model that was surveyed."""
        paths = split_parts(path)
        try:
            found = WholeModel(manifest, paths, tuple(note_key(part) for part in paths))
        except OSError:
            return
        with self._guard:
            self._whole[manifest.digest] = found

    def add_pieces(self, pieces: Pieces) -> None:
        """Show what is here of a model that is or was fetched."""
        with self._guard:
            self._pieces[pieces.manifest.digest] = pieces

    def pieces_of(self, digest: bytes) -> Pieces | None:
        """What was fetched of a model, as it is shown to others: one object for all who write and read it."""
        with self._guard:
            return self._pieces.get(digest)

    def drop(self, digest: bytes) -> None:
        """Show the fetched pieces of a model no more: they are deleted."""
        with self._guard:
            self._pieces.pop(digest, None)

    # --- for peers: the Library of mesh/bulk ------------------------------------------------------------------------

    def manifest(self, model: bytes, digest: bytes) -> tuple[bytes, bytes] | None:
        """A manifest by the hash of its model, by its digest or both (b"": not given), and one bit a chunk."""
        for manifest in self._manifests(proven=not digest):
            if (not digest or manifest.digest == digest) and (not model or manifest.sha256 == model):
                bits = self.have(manifest.digest)
                if bits is not None:
                    return manifest.encoded, bits
        return None

    def have(self, digest: bytes) -> bytes | None:
        """One bit for each chunk of a manifest, the first in the lowest bit of the first byte."""
        whole = self._whole_of(digest)
        if whole is not None:
            count = whole.manifest.chunk_count
            return ((1 << count) - 1).to_bytes(-(-count // 8), "little")
        pieces = self._pieces.get(digest)
        return None if pieces is None else pieces.bitmap

    def read(self, digest: bytes, chunk: int) -> bytes | None:
        """The bytes of a chunk; None when they are not here."""
        whole = self._whole_of(digest)
        try:
            if whole is not None:
                return read_chunk(whole.paths, whole.manifest.chunk(chunk))
            pieces = self._pieces.get(digest)
            return None if pieces is None else pieces.read(chunk)
        except IndexError:
            return None

    # --- for this node ------------------------------------------------------------------------------------------------

    def path_of(self, model: bytes, digest: bytes = b"") -> Path | None:
        """The file to give to an engine, if the whole model is here; without `digest` one that is proven."""
        for manifest in self._manifests(proven=not digest):
            if manifest.sha256 != model or (digest and manifest.digest != digest):
                continue
            whole = self._whole_of(manifest.digest)
            if whole is not None:
                return whole.paths[0]
            pieces = self._pieces.get(manifest.digest)
            if pieces is not None and pieces.is_complete:
                return pieces.path
        return None

    def manifest_of(self, model: bytes, digest: bytes = b"") -> Manifest | None:
        """The manifest of a model, if it is known here: by its digest, else of a proven model in one file."""
        for manifest in self._manifests(proven=not digest):
            if manifest.sha256 == model and (manifest.digest == digest if digest else len(manifest.files) == 1):
                return manifest
        return self.shelf.load(digest) if digest else None

    def references(self, model: bytes, digest: bytes = b"") -> References | None:
        """The tensors of a model that are on this disk, to be read by name; None when nothing of it is.

        The hash of its first file pins a model in one file. Of one in several files only the manifest pins the rest,
        so without `digest` nothing is found of such.
        """
        manifest = self.manifest_of(model, digest)
        if manifest is None:
            return None
        whole, pieces = self._whole_of(manifest.digest), self._pieces.get(manifest.digest)
        try:
            if whole is not None:
                return References.open(model, whole.paths[0])
            if pieces is None:
                return None
            found = pieces.references()
        except ModelError:
            return None
        pieces.use()
        with self._guard:
            self._lent.add(found)
            self._lent_from[id(found)] = pieces.folder
        return found

    def is_lent(self, folder: Path) -> bool:
        """Whether somebody still holds references into the folder of a fetched model."""
        with self._guard:
            self._lent_from = {key: self._lent_from[key] for key in (id(found) for found in self._lent)}
            return folder in self._lent_from.values()

    def models(self) -> tuple[bytes, ...]:
        """The hashes of the models that are whole on this disk, and proven."""
        return tuple(dict.fromkeys(manifest.sha256 for manifest in self._manifests(proven=True)))

    def unproven(self) -> list[Pieces]:
        """Fetched models that are complete and whose hash nobody has seen yet."""
        with self._guard:
            found = [*self._pieces.values()]
        return [pieces for pieces in found if pieces.is_complete and not pieces.is_proven]

    def copies_of(self, wanted: Manifest, chunks: Collection[int]) -> Iterator[tuple[int, Path, int]]:
        """(chunk, file, position) of chunks that lie on this disk already, as a part of this or another model."""
        missing: dict[bytes, list[int]] = {}
        for number in chunks:
            missing.setdefault(wanted.hash_of(number), []).append(number)
        for manifest in self._manifests():
            whole, pieces = self._whole_of(manifest.digest), self._pieces.get(manifest.digest)
            paths = whole.paths if whole is not None else pieces.paths if pieces is not None else ()
            for number in range(manifest.chunk_count) if paths else ():
                if manifest.hash_of(number) not in missing or (whole is None and pieces and not pieces.has(number)):
                    continue
                chunk = manifest.chunk(number)
                for same in missing.pop(chunk.sha256):
                    yield same, paths[chunk.file], chunk.position

    def _manifests(self, *, proven: bool = False) -> list[Manifest]:
        """What is known here; with `proven` only what was seen to have the hash that its manifest says."""
        with self._guard:
            whole, pieces = [*self._whole.values()], [*self._pieces.values()]
        found = [one.manifest for one in whole if one.is_unchanged()]
        return found + [one.manifest for one in pieces if not proven or one.is_proven]

    def _whole_of(self, digest: bytes) -> WholeModel | None:
        found = self._whole.get(digest)
        return found if found is not None and found.is_unchanged() else None
