"""The models that were fetched from peers: a folder with one folder of pieces each, and the room they may take.

What lies here came from peers and can come again, so it may be deleted: the longest unused first, and never what is in
use. The Hugging Face cache and files of the user lie elsewhere and are not looked at.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from meshnode.errors import DiskFull, HomeNotWritable
from meshnode.models import pieces
from meshnode.models.cache import LocalModel
from meshnode.models.manifest import Manifest
from meshnode.models.names import file_ref
from meshnode.models.pieces import Pieces
from meshnode.models.store import SPARE_BYTES
from meshnode.models.transfer import disk_error
from meshnode.telemetry import LOG

FOLDER_NAME_CHARS = 64
InUse = Callable[[Pieces], bool]
"""Whether this process reads or writes the files of a model."""


@dataclass(frozen=True, slots=True)
class FetchedModels:
    """`folder` holds one folder a manifest, named by its digest. `most_bytes` bounds them together; None: no bound."""

    folder: Path
    most_bytes: int | None = None

    def open(self, manifest: Manifest, name: str) -> Pieces:
        """The pieces of a model, begun if need be. Raises DiskFull, CacheNotWritable, ModelFileInvalid."""
        return Pieces.create(self.folder / manifest.digest.hex(), manifest, name)

    def find(self, digest: bytes) -> Pieces | None:
        """The pieces of the model with this manifest, if some were begun here."""
        try:
            return Pieces.load(self.folder / digest.hex())
        except OSError:
            return None

    def all(self) -> Iterator[Pieces]:
        """Everything that was begun here."""
        try:
            folders = [entry for entry in self.folder.iterdir() if len(entry.name) == FOLDER_NAME_CHARS]
        except OSError:
            return
        for folder in sorted(folders):
            try:
                found = Pieces.load(folder)
            except OSError:
                continue
            if found is not None:
                yield found

    def whole(self) -> list[LocalModel]:
        """The models that are complete and proven, as any other file on this disk: engines may be given their paths."""
        return [local_model(found) for found in self.all() if found.is_proven]

    def make_room(self, needed_bytes: int, in_use: InUse) -> list[bytes]:
        """Delete what was longest not used until `needed_bytes` more fit within the bound and on the disk.

        Returns the digests of what was deleted. Raises DiskFull when it does not fit even so; nothing is deleted then.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            short_bytes = self._short_bytes(needed_bytes)
            if short_bytes <= 0:
                return []
            chosen = list(self._longest_unused(short_bytes, in_use))
            if sum(size for _, size in chosen) < short_bytes:
                raise DiskFull(self._words(needed_bytes), fix=self._fix())
            for folder, size in chosen:
                LOG.info("deleting %s, %.1f GB that were fetched from peers", folder.name[:12], size / 1e9)
                pieces.remove(folder)
            return [bytes.fromhex(folder.name) for folder, _ in chosen]
        except HomeNotWritable as error:
            raise DiskFull(error.detail) from error
        except OSError as error:
            raise disk_error(error, self.folder) from error

    def taken_bytes(self) -> int:
        """What all of this takes of the disk."""
        return sum(found.disk_bytes() for found in self.all())

    def _short_bytes(self, needed_bytes: int) -> int:
        """How many bytes have to be deleted first; not above 0 when none have."""
        on_disk = needed_bytes + SPARE_BYTES - shutil.disk_usage(self.folder).free
        if self.most_bytes is None:
            return on_disk
        return max(on_disk, needed_bytes + self.taken_bytes() - self.most_bytes)

    def _longest_unused(self, short_bytes: int, in_use: InUse) -> Iterable[tuple[Path, int]]:
        candidates = [found for found in self.all() if not in_use(found) and not found.is_held()]
        for found in sorted(candidates, key=Pieces.used_s):
            if short_bytes <= 0:
                return
            size = found.disk_bytes()
            short_bytes -= size
            yield found.folder, size

    def _words(self, needed_bytes: int) -> str:
        needed, free = needed_bytes / 1e9, shutil.disk_usage(self.folder).free / 1e9
        if self.most_bytes is None:
            return f"{needed:.1f} GB are needed, {self.folder} has {free:.1f} GB free"
        return (
            f"{needed:.1f} GB are needed; models from peers may take {self.most_bytes / 1e9:.1f} GB "
            f"and take {self.taken_bytes() / 1e9:.1f}, the disk has {free:.1f} GB free"
        )

    def _fix(self) -> str:
        larger = "" if self.most_bytes is None else ", or give --max-disk a larger number"
        return f"free some space{larger}; what has come is kept, and the next try goes on from there"


def local_model(found: Pieces) -> LocalModel:
    """A complete model in the form that the rest of meshnode has for files on this disk."""
    size = found.manifest.size_bytes
    return LocalModel(
        ref=file_ref(found.path),
        path=found.path,
        parts=found.paths,
        size_bytes=size,
        total_bytes=size,
        sha256=found.manifest.sha256.hex(),
        modified_s=found.used_s(),
    )
