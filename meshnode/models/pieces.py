"""The files of a model while they come in pieces: sparse, every chunk verified before it is written, resumed after a
crash.

    FOLDER/manifest       what will be there (its digest names the folder)
           name           what people call the model
           have           one bit a chunk: written, and synced
           whole          there once the files were seen to have the hashes that the manifest says
           lock           held (flock) by the process that writes
           NAME.gguf      the file, or NAME-00001-of-00003.gguf ...; holes where nothing came yet

A bit is set after its chunk was synced, never before, and never unset; so `have` is written in place, where it needs
no new room on a disk that is full, and a crash in the middle of it loses some bits and invents none.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from meshnode import durable
from meshnode.errors import CacheNotWritable, ModelFileInvalid
from meshnode.models.digest import DigestStopped
from meshnode.models.gguf import SPLIT_NAME, merge_headers, read_header
from meshnode.models.manifest import MAX_MANIFEST_BYTES, Chunk, Manifest, ManifestInvalid, decode
from meshnode.models.references import References
from meshnode.models.transfer import disk_error

SYNC_BYTES = 128 << 20
"""So much may have to be fetched again after a crash."""
READ_BYTES = 4 << 20
BLOCK_BYTES = 512
"""The unit of st_blocks."""
MANIFEST, NAME, HAVE, WHOLE, LOCK = "manifest", "name", "have", "whole", "lock"
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


class PiecesBusy(Exception):
    """Another process of this machine is bringing the same model."""


class Pieces:
    """One model in one folder. Its methods may be called from several threads, and block as disks do.

    Make it with `create` or `load`. Chunks are written by whoever holds `lock()`.
    """

    def __init__(self, folder: Path, manifest: Manifest, name: str) -> None:
        self.folder = folder
        self.manifest = manifest
        self.name = name
        self.paths = _paths(folder, manifest, name)
        self._guard = threading.Condition()
        self._have = bytearray(-(-manifest.chunk_count // 8))
        self._written: set[int] = set()
        self._unsynced_bytes = 0
        self._files: list[int] = []
        self._have_file = -1
        self._writers = 0
        self._wholly_here: set[str] = set()

    # --- opening and closing ------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, folder: Path, manifest: Manifest, name: str) -> Pieces:
        """The pieces in `folder`, which is named by the digest and made if need be; a damaged one is made anew.

        Raises DiskFull, CacheNotWritable.
        """
        try:
            found = cls.load(folder)
            if found is not None:
                return found
            if folder.exists():
                remove(folder)
            folder.mkdir(parents=True)
            durable.write(folder / NAME, safe_name(name).encode())
            durable.write(folder / MANIFEST, manifest.encoded)
            return cls(folder, manifest, safe_name(name))
        except OSError as error:
            raise disk_error(error, folder) from error

    @classmethod
    def load(cls, folder: Path) -> Pieces | None:
        """What lies in `folder`; None when it is nothing of this module. Raises OSError."""
        try:
            with (folder / MANIFEST).open("rb") as file:
                manifest = decode(file.read(MAX_MANIFEST_BYTES + 1))
            name = (folder / NAME).read_text("ascii")
        except (FileNotFoundError, NotADirectoryError, ManifestInvalid, UnicodeDecodeError):
            return None
        if manifest.digest.hex() != folder.name or safe_name(name) != name:
            return None
        pieces = cls(folder, manifest, name)
        pieces._read_have()
        return pieces

    def _read_have(self) -> None:
        """The bits, unless the files are not those they were made for."""
        try:
            have = (self.folder / HAVE).read_bytes()
            sizes = [path.stat().st_size for path in self.paths]
        except FileNotFoundError:
            return
        if len(have) == len(self._have) and sizes == [file.size_bytes for file in self.manifest.files]:
            self._have[:] = have

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for writing. Raises PiecesBusy while another process does, DiskFull, CacheNotWritable."""
        try:
            lock_file = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise disk_error(error, self.folder) from error
        try:
            try:
                fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PiecesBusy(self.name) from None
            try:
                self._open_files()
            except OSError as error:
                raise disk_error(error, self.folder) from error
            yield
        finally:
            self._close_files()
            os.close(lock_file)

    def _open_files(self) -> None:
        self._read_have()
        have = self.folder / HAVE
        if not have.exists() or have.stat().st_size != len(self._have):
            durable.write(have, bytes(len(self._have)))
            self._have[:] = bytes(len(self._have))
        for path, file in zip(self.paths, self.manifest.files, strict=True):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            self._files.append(descriptor)
            if os.fstat(descriptor).st_size != file.size_bytes:
                os.ftruncate(descriptor, file.size_bytes)
        self._have_file = os.open(have, os.O_RDWR)

    def _close_files(self) -> None:
        """Let go of the files once no thread writes any more: their numbers will be those of other files."""
        with self._guard:
            descriptors = [*self._files, self._have_file]
            self._files, self._have_file = [], -1
            while self._writers:
                self._guard.wait()
            self._written.clear()
            self._unsynced_bytes = 0
        for descriptor in descriptors:
            if descriptor >= 0:
                os.close(descriptor)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[tuple[list[int], int]]:
        """The open files and that of the bits, which stay open for the length of the block."""
        with self._guard:
            if not self._files:
                raise CacheNotWritable(f"{self.folder} is not held for writing")
            files, have_file = self._files, self._have_file
            self._writers += 1
        try:
            yield files, have_file
        except OSError as error:
            raise disk_error(error, self.folder) from error
        finally:
            with self._guard:
                self._writers -= 1
                self._guard.notify_all()

    # --- what is here -------------------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The file that the engine is given: the first."""
        return self.paths[0]

    @property
    def is_complete(self) -> bool:
        """Whether every chunk is here: this is what the digest of the manifest says."""
        return not self.missing(range(self.manifest.chunk_count))

    @property
    def is_proven(self) -> bool:
        """Whether it is complete and the manifest was seen to tell the truth: this is what the model's hash says."""
        return (self.folder / WHOLE).exists()

    @property
    def bitmap(self) -> bytes:
        """One bit a chunk, the first in the lowest bit of the first byte: written and synced."""
        with self._guard:
            return bytes(self._have)

    def has(self, number: int) -> bool:
        """Whether a chunk is here (written, perhaps not yet synced)."""
        return number in self._written or bool(self._have[number >> 3] >> (number & 7) & 1)

    def missing(self, chunks: Iterable[int]) -> list[int]:
        """Those of these chunks that are not here."""
        return [number for number in chunks if not self.has(number)]

    def has_tensor(self, tensor: str) -> bool:
        """Whether all bytes of a tensor are here and synced. Once that is so it stays so."""
        if tensor in self._wholly_here:
            return True
        with self._guard:
            span = self.manifest.span_of.get(tensor)
            here = span is not None and all(self._have[n >> 3] >> (n & 7) & 1 for n in span.chunks)
        if here:
            self._wholly_here.add(tensor)
        return here

    def references(self) -> References:
        """The tensors that are here, for whoever reads them by name. Raises ModelFileInvalid, ModelNotFound.

        The header has to be here, and is compared with the manifest.
        """
        self.check_headers()
        return References.open(self.manifest.sha256, self.path, present=self.has_tensor)

    def check_headers(self) -> None:
        """Raise ModelFileInvalid unless the headers are here and say of the tensors what the manifest says."""
        if self.missing(self.manifest.header_chunks()):
            raise ModelFileInvalid(f"{self.name}: its header has not come yet")
        headers = [read_header(path) for path in self.paths]
        merge_headers(headers)
        for number, header in enumerate(headers):
            try:
                self.manifest.check_header(number, header)
            except ManifestInvalid as reason:
                raise ModelFileInvalid(f"{self.name}: {reason}") from None

    def is_held(self) -> bool:
        """Whether some process holds the folder for writing."""
        try:
            file = os.open(self.folder / LOCK, os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(file)
        return False

    def disk_bytes(self) -> int:
        """What the files take of the disk, holes not counted."""
        return sum(path.stat().st_blocks * BLOCK_BYTES for path in self.paths if path.exists())

    def used_s(self) -> float:
        """When the model was last used, in seconds since the epoch."""
        return (self.folder / MANIFEST).stat().st_mtime

    def use(self) -> None:
        """The model is used now."""
        with contextlib.suppress(OSError):
            os.utime(self.folder / MANIFEST)

    # --- bringing chunks ----------------------------------------------------------------------------------------------

    def write(self, number: int, data: bytes) -> bool:
        """Write a chunk, if these are its bytes. False when they are not, and nothing is written.

        Raises DiskFull and CacheNotWritable; what came before stays.
        """
        chunk = self.manifest.chunk(number)
        if len(data) != chunk.size_bytes or hashlib.sha256(data).digest() != chunk.sha256:
            return False
        if self.has(number):
            return True
        with self._writing() as (files, _):
            _write_all(files[chunk.file], data, chunk.position)
            with self._guard:
                self._written.add(number)
                self._unsynced_bytes += len(data)
                due = self._unsynced_bytes >= SYNC_BYTES
        if due:
            self.sync()
        return True

    def copy(self, number: int, path: Path, position: int) -> bool:
        """Write a chunk from another file of this disk. False when its bytes are not there (any more).

        Read and verified rather than cloned by the file system: what is not read cannot be verified, and chunks of two
        files hardly ever lie on the same multiple of a disk's block, which a clone asks for.
        """
        chunk = self.manifest.chunk(number)
        try:
            with path.open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), chunk.size_bytes, position)
        except OSError:
            return False
        return self.write(number, data)

    def sync(self) -> None:
        """Bring what was written to the disk, then the bits that say so. Raises DiskFull, CacheNotWritable."""
        with self._writing() as (files, have_file):
            with self._guard:
                fresh, self._unsynced_bytes = set(self._written), 0
            for descriptor in files:
                _sync(descriptor)
            with self._guard:
                for number in fresh:
                    self._have[number >> 3] |= 1 << (number & 7)
                self._written -= fresh
                _write_all(have_file, bytes(self._have), 0)
            _sync(have_file)

    def prove(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Read the complete files once more, and note that they have the hashes that the manifest says.

        Every chunk was verified; what this adds is that the manifest itself tells the truth. Raises ModelFileInvalid
        when it does not, and DigestStopped when `stopped` says so.
        """
        if not self.is_complete:
            raise ModelFileInvalid(f"{self.name}: it is not complete")
        self.check_headers()
        for path, file in zip(self.paths, self.manifest.files, strict=True):
            if _sha256(path, stopped) != file.sha256:
                raise ModelFileInvalid(f"{path.name}: it is not the model that the manifest names")
        durable.write(self.folder / WHOLE, b"")

    def read(self, number: int) -> bytes | None:
        """The bytes of a chunk; None when it is not here."""
        return read_chunk(self.paths, self.manifest.chunk(number)) if self.has(number) else None


def read_chunk(paths: Sequence[Path], chunk: Chunk) -> bytes | None:
    """The bytes of a chunk from the files of its model; None when they cannot be read."""
    try:
        with paths[chunk.file].open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), chunk.size_bytes, chunk.position)
    except OSError:
        return None
    return data if len(data) == chunk.size_bytes else None


def remove(folder: Path) -> None:
    """Delete a folder of pieces; half done, it claims nothing. Raises HomeNotWritable, OSError."""
    for name in (WHOLE, HAVE, MANIFEST):
        durable.remove(folder / name)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def safe_name(text: str) -> str:
    """A name for files out of what a peer calls a model: no path, no dots at its ends, never that of a split part."""
    name = _UNSAFE.sub("-", text)[:80].strip("-.") or "model"
    name = name.removesuffix(".gguf").strip("-.") or "model"
    return name.replace("-of-", "_of_") if SPLIT_NAME.match(f"{name}.gguf") else name


def _paths(folder: Path, manifest: Manifest, name: str) -> tuple[Path, ...]:
    count = len(manifest.files)
    if count == 1:
        return (folder / f"{name}.gguf",)
    return tuple(folder / f"{name}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1))


def _write_all(descriptor: int, data: bytes, position: int) -> None:
    left = memoryview(data)
    while left:
        count = os.pwrite(descriptor, left, position)
        left, position = left[count:], position + count


def _sync(descriptor: int) -> None:
    os.fsync(descriptor)


def _sha256(path: Path, stopped: Callable[[], bool]) -> bytes:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(READ_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            if stopped():
                raise DigestStopped
    return digest.digest()
