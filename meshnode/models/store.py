"""The models of this machine: find, list, fetch, remove, search.

`ModelStore` is what the rest of meshnode uses. It joins the cache's folders (`cache.py`), the hub (`hub.py`), the
catalog and the demo model that ships with the package. Calls block: the node makes them in threads.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from meshnode.errors import (
    DiskFull,
    DownloadStopped,
    HubOffline,
    MeshnodeError,
    ModelError,
    ModelFileInvalid,
    ModelInUse,
    ModelNotFound,
)
from meshnode.models import cache
from meshnode.models.cache import LocalModel
from meshnode.models.catalog import DEMO_DRAFT, DEMO_TARGET, Catalog, CatalogEntry, load_catalog
from meshnode.models.gguf import merge_headers, read_model, split_parts
from meshnode.models.header import Header
from meshnode.models.hub import Found, Hub, HubFile, Listing
from meshnode.models.names import FileChoice, LocalName, ModelRef, choose_files, pinned, resolve
from meshnode.models.transfer import bytes_here, discard, disk_error, receive
from meshnode.telemetry import Progress, Report, silent

# Left free on the disk after a download.
SPARE_BYTES = 256 << 20
REPORT_EVERY_S = 0.1
LOCK_STEP_S = 0.5


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What `search` found: in the catalog, on the hub; and why the hub was silent, if it was."""

    catalog: tuple[CatalogEntry, ...]
    hub: tuple[Found, ...]
    problem: MeshnodeError | None = None


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model as the hub describes it: its files, and what a download would bring."""

    ref: ModelRef
    listing: Listing
    choice: FileChoice
    size_bytes: int

    @property
    def parts(self) -> tuple[HubFile, ...]:
        """The files of the model itself, in order."""
        return tuple(self.listing.file(name) for name in self.choice.parts)

    @property
    def files(self) -> tuple[HubFile, ...]:
        """The same with the projector, which comes first so that a model is not taken for whole without it."""
        return ((self.listing.file(self.choice.mmproj),) if self.choice.mmproj else ()) + self.parts


@dataclass(frozen=True, slots=True)
class ModelStore:
    """The models of one machine. `folder` is the Hugging Face cache."""

    folder: Path
    hub: Hub
    catalog: Catalog

    @classmethod
    def from_environment(cls) -> ModelStore:
        """The store that HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE describe now."""
        return cls(cache.cache_folder(), Hub.from_environment(), load_catalog())

    def resolve(self, text: str) -> ModelRef:
        """What a person's `text` means here. Raises ModelNotFound with the nearest names."""
        try:
            return resolve(text, catalog=self.catalog, is_file=_is_file)
        except ModelNotFound:
            # Only a name that the catalog does not know is worth a look through the whole cache.
            names = [LocalName(model.name, model.ref) for model in self.list_local()]
            return resolve(text, catalog=self.catalog, local=names, is_file=_is_file)

    def find(self, ref: ModelRef) -> LocalModel | None:
        """The model on this disk, perhaps half; None when nothing of it is here. Touches no network and no hash."""
        if ref.kind == "demo":
            return _demo() if DEMO_TARGET.exists() else None
        if ref.kind == "file":
            return _plain_file(ref) if ref.path and _is_file(ref.path) else None
        model = cache.find_in_repo(cache.repo_folder(self.folder, ref.repo), ref)
        return replace(model, ref=replace(model.ref, alias=ref.alias)) if model else None

    def list_local(self) -> list[LocalModel]:
        """Every model on this disk, the demo first, then by name."""
        found = [_demo()] if DEMO_TARGET.exists() else []
        for repo, folder in cache.repositories(self.folder):
            for model in cache.models_in_repo(folder, repo):
                entry = self.catalog.of_repo(repo, model.ref.quant) if model.ref.quant else None
                found.append(replace(model, ref=replace(model.ref, alias=entry.alias)) if entry else model)
        return found

    def read(self, model: LocalModel) -> Header:
        """The merged header of a model on this disk. Raises ModelFileInvalid, also for one that is not complete."""
        if model.incomplete and model.ref.kind == "hub":
            raise ModelFileInvalid(
                f"{model.name}: {model.total_bytes - model.size_bytes:,} bytes are still missing",
                fix=f"finish the download: meshnode pull {model.ref.short_name}",
            )
        return read_model(model.path)

    def look_up(self, ref: ModelRef) -> RemoteModel:
        """What the hub has for `ref`; nothing is fetched. Raises ModelNotFound and what the hub raises."""
        if ref.kind != "hub":
            raise ModelNotFound(f"{ref.canonical} is not on the hub")
        listing = self.hub.listing(ref.repo, ref.revision)
        try:
            # The catalog's file may have been renamed; its quantisation is what was meant.
            known = ref.filename in listing.names or not ref.quant
            choice = choose_files(listing.names, ref.quant, ref.filename if known else "")
        except ModelNotFound as error:
            raise ModelNotFound(f"{ref.repo}: {error.detail}", fix=error.fix) from None
        found = RemoteModel(pinned(ref, choice.parts[0], listing.names), listing, choice, 0)
        return replace(found, size_bytes=sum(file.size_bytes for file in found.files))

    def read_remote(self, remote: RemoteModel) -> Header:
        """The merged header of a model that is only on the hub, from the first megabytes of each part."""
        return merge_headers([self.hub.header(remote.ref.repo, remote.listing.commit, file) for file in remote.parts])

    def pull(self, ref: ModelRef, report: Report = silent, cancelled: Callable[[], bool] = lambda: False) -> LocalModel:
        """Fetch a model (all parts and the projector), or the rest of it; verified against the hub's hashes.

        Raises ModelNotFound, GatedRepository, HubRefused, HubOffline, HubUnreachable, DiskFull,
        CacheNotWritable, DownloadCorrupt (the bytes are thrown away) and DownloadStopped (they are kept).
        """
        if ref.kind != "hub" or self.hub.offline:
            model = self.find(ref)
            if model and not model.incomplete:
                return model
            raise HubOffline(ref.canonical) if ref.kind == "hub" else ModelNotFound(ref.canonical)
        remote = self.look_up(ref)
        folder = cache.repo_folder(self.folder, ref.repo)
        here = {file.name: _already_here(folder, file) for file in remote.files}
        self._check_space(remote.size_bytes - sum(here.values()))
        progress = _DownloadProgress(report, remote, sum(here.values()))
        for file in remote.files:
            progress.now(file)
            self._fetch(remote, file, folder, progress, cancelled)
        cache.write_ref(folder, ref.revision, remote.listing.commit)
        model = self.find(replace(remote.ref, revision=remote.listing.commit))
        if model is None or model.incomplete:
            raise ModelFileInvalid(f"{remote.ref.canonical} disappeared while it was fetched")
        progress.finish()
        return replace(model, ref=remote.ref)

    def remove(self, ref: ModelRef, *, in_use: Callable[[str], bool] = lambda canonical: False) -> int:
        """Delete a model from the cache and return the bytes that became free.

        Raises ModelInUse, ModelNotFound, and ModelError for one that is not in the cache (the demo, a file of yours).
        """
        model = self.find(ref)
        if model is None:
            raise ModelNotFound(f"{ref.short_name} is not on this disk")
        if in_use(model.ref.canonical):
            raise ModelInUse(model.ref.canonical, fix=f"unload it first: meshnode unload {ref.short_name}")
        if ref.kind != "hub":
            what = "ships with meshnode" if ref.kind == "demo" else "is a file of yours outside of the cache"
            raise ModelError(
                f"{ref.canonical} {what}", fix="" if ref.kind == "demo" else f"delete it yourself: {ref.path}"
            )
        folder = cache.repo_folder(self.folder, ref.repo)
        try:
            return cache.delete_model(folder, model)
        except OSError as error:
            raise disk_error(error, folder) from error

    def search(self, words: str, limit: int = 20) -> SearchResult:
        """Models of the catalog and GGUF repositories of the hub. A silent hub is a problem in the result, no error."""
        known = tuple(self.catalog.search(words))[:limit]
        try:
            return SearchResult(known, tuple(self.hub.search(words, limit)))
        except MeshnodeError as problem:
            return SearchResult(known, (), problem)

    def _check_space(self, needed_bytes: int) -> None:
        folder = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(folder).free
        if needed_bytes > 0 and needed_bytes + SPARE_BYTES > free:
            raise DiskFull(f"{needed_bytes / 1e9:.1f} GB are needed, {folder} has {free / 1e9:.1f} GB free")

    def _fetch(
        self,
        remote: RemoteModel,
        file: HubFile,
        folder: Path,
        progress: _DownloadProgress,
        cancelled: Callable[[], bool],
    ) -> None:
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # as in its own guides

        blob = folder / "blobs" / file.oid
        link = folder / "snapshots" / remote.listing.commit / file.name
        # The same lock file that huggingface_hub takes, so that two programs do not write one blob.
        lock = self.folder / ".locks" / folder.name / f"{file.oid}.lock"
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            while not cancelled():
                try:
                    with WeakFileLock(lock, timeout=LOCK_STEP_S):
                        self._fetch_locked(remote, file, blob, progress, cancelled)
                        cache.link_blob(blob, link)
                        return
                except TimeoutError:
                    progress.now(file, "another program is fetching it; waiting")
            raise DownloadStopped(file.name)
        except OSError as error:
            raise disk_error(error, folder) from error

    def _fetch_locked(
        self, remote: RemoteModel, file: HubFile, blob: Path, progress: _DownloadProgress, cancelled: Callable[[], bool]
    ) -> None:
        if blob.exists():
            if blob.stat().st_size == file.size_bytes:
                discard(blob)
                return
            blob.unlink()
        receive(
            self.hub,
            remote.ref.repo,
            commit=remote.listing.commit,
            file=file,
            blob=blob,
            advance=progress.advance,
            cancelled=cancelled,
        )


class _DownloadProgress:
    """Counts the bytes of one `pull` and reports them, at most every `REPORT_EVERY_S`."""

    def __init__(self, report: Report, remote: RemoteModel, done_bytes: int) -> None:
        self._report = report
        self._names = [file.name for file in remote.files]
        self._total = remote.size_bytes
        self._done = done_bytes
        self._text = remote.ref.short_name
        self._name = remote.ref.short_name
        self._last = 0.0

    def now(self, file: HubFile, what: str = "") -> None:
        """Say which file is being fetched, or why it waits."""
        number = self._names.index(file.name) + 1
        several = f" ({number} of {len(self._names)} files)" if len(self._names) > 1 else ""
        self._text = f"{self._name}{several}" + (f": {what}" if what else "")
        self._send()

    def advance(self, count: int) -> None:
        """Count bytes that came; negative ones were thrown away."""
        self._done = max(0, self._done + count)
        if time.monotonic() - self._last >= REPORT_EVERY_S:
            self._send()

    def finish(self) -> None:
        """Say that all is here."""
        self._report(Progress("download", self._name, self._total, self._total, "bytes", finished=True))

    def _send(self) -> None:
        self._last = time.monotonic()
        self._report(Progress("download", self._text, min(self._done, self._total), self._total, "bytes"))


def _demo() -> LocalModel:
    size = DEMO_TARGET.stat().st_size
    return LocalModel(
        ref=ModelRef("demo", "demo", alias="demo", path=DEMO_TARGET),
        path=DEMO_TARGET,
        parts=(DEMO_TARGET,),
        size_bytes=size,
        total_bytes=size,
        draft=DEMO_DRAFT if DEMO_DRAFT.exists() else None,
        modified_s=DEMO_TARGET.stat().st_mtime,
    )


def _plain_file(ref: ModelRef) -> LocalModel:
    """A file outside of the cache; a projector counts when it lies beside it and is the only one."""
    assert ref.path is not None
    parts = split_parts(ref.path)
    size = sum(part.stat().st_size for part in parts if part.exists())
    beside = [path for path in sorted(ref.path.parent.glob("*mmproj*.gguf")) if path not in parts]
    return LocalModel(
        ref=ref,
        path=parts[0],
        parts=parts,
        size_bytes=size,
        total_bytes=size,
        mmproj=beside[0] if len(beside) == 1 else None,
        incomplete=not all(part.exists() for part in parts),
        modified_s=ref.path.stat().st_mtime,
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _already_here(folder: Path, file: HubFile) -> int:
    return min(file.size_bytes, bytes_here(folder / "blobs" / file.oid))
