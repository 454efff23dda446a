"""The folders of the Hugging Face cache: which GGUF models lie there, whole or half.

    models--OWNER--REPO/refs/main                    the commit that the branch pointed to
                       /snapshots/COMMIT/FILE.gguf   a link to the blob
                       /blobs/SHA256                 the bytes; `SHA256.incomplete` while they come

llama.cpp (`-hf`) and the `hf` tool use the same folders, so what one of them fetched is here for all. Reading them
touches names and sizes only, never a hash. What is fetched, and when, is decided in `store.py`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from meshnode.errors import ModelNotFound
from meshnode.models.gguf import split_parts
from meshnode.models.names import ModelRef, choose_files, is_model_file, pinned, stem_of
from meshnode.models.transfer import Note, bytes_here, discard, incomplete_path, read_note, write_durably

MAX_ENTRIES = 100_000
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REPO_FOLDER = re.compile(r"models--([\w.-]+?)--([\w.-]+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model on this disk.

    `path` is the file to give to the engine (part 1 of a split model), `size_bytes` what is on the disk of it and
    `total_bytes` what belongs there; they differ while it is `incomplete`. `sha256` is of part 1, "" when the disk
    does not tell. `draft` is a small model with the same tokenizer that came with it (the demo has one).
    """

    ref: ModelRef
    path: Path
    parts: tuple[Path, ...]
    size_bytes: int
    total_bytes: int
    sha256: str = ""
    mmproj: Path | None = None
    draft: Path | None = None
    incomplete: bool = False
    modified_s: float = 0.0

    @property
    def name(self) -> str:
        """The stem of the file, as llama.cpp and other tools show it."""
        return stem_of(self.path.name)


def cache_folder(environment: dict[str, str] | None = None) -> Path:
    """The cache that huggingface_hub and llama.cpp use: HF_HUB_CACHE, HF_HOME/hub, else ~/.cache/huggingface/hub."""
    env = dict(os.environ) if environment is None else environment
    home = env.get("HF_HOME") or os.path.join(env.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")  # noqa: PTH118
    chosen = env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")  # noqa: PTH118
    return Path(os.path.expandvars(chosen)).expanduser()


def repo_folder(cache: Path, repo: str) -> Path:
    """The folder of a repository. `repo` has been checked by `names.resolve`."""
    return cache / f"models--{repo.replace('/', '--')}"


def repositories(cache: Path) -> Iterator[tuple[str, Path]]:
    """Names and folders of all model repositories in the cache."""
    try:
        entries = sorted(os.scandir(cache), key=lambda entry: entry.name)[:MAX_ENTRIES]
    except OSError:
        return
    for entry in entries:
        match = _REPO_FOLDER.fullmatch(entry.name)
        if match and entry.is_dir(follow_symlinks=True):
            yield f"{match[1]}/{match[2]}", Path(entry.path)


def snapshots(folder: Path, revision: str = "") -> list[Path]:
    """Snapshot folders of a repository: the one of `revision` (a branch or a commit) first, then the newest."""
    root = folder / "snapshots"
    try:
        found = [entry for entry in root.iterdir() if _COMMIT.fullmatch(entry.name) and entry.is_dir()]
        found.sort(key=lambda entry: entry.stat().st_mtime, reverse=True)
    except OSError:
        return []
    wanted = revision if _COMMIT.fullmatch(revision) else read_ref(folder, revision or "main")
    return sorted(found, key=lambda entry: entry.name != wanted)


def read_ref(folder: Path, revision: str) -> str:
    """The commit that a branch pointed to when it was fetched; "" when unknown."""
    try:
        with (folder / "refs" / revision).open("rb") as file:
            text = file.read(64).decode("ascii", "replace").strip()
    except OSError:
        return ""
    return text if _COMMIT.fullmatch(text) else ""


def gguf_files(snapshot: Path) -> dict[str, Path]:
    """GGUF files of a snapshot whose bytes are there, by their path inside the repository."""
    found: dict[str, Path] = {}
    for parent, _, names in os.walk(snapshot):
        for name in names:
            path = Path(parent, name)
            if name.lower().endswith(".gguf") and path.exists():
                found[path.relative_to(snapshot).as_posix()] = path
        if len(found) > MAX_ENTRIES:
            break
    return found


def half_files(folder: Path) -> dict[str, tuple[Note, Path]]:
    """Files that are still coming, by their path inside the repository: what they will be, and their blob."""
    found: dict[str, tuple[Note, Path]] = {}
    try:
        notes = list((folder / "blobs").glob("*.incomplete.json"))[:MAX_ENTRIES]
    except OSError:
        return found
    for path in notes:
        blob = path.with_name(path.name.removesuffix(".incomplete.json"))
        note = read_note(path)
        if note and not blob.exists() and incomplete_path(blob).exists():
            found[note.name] = (note, blob)
    return found


def find_in_repo(folder: Path, ref: ModelRef) -> LocalModel | None:
    """The model of `ref` as far as this repository's folder has it, whole models before half ones."""
    halves = half_files(folder)
    best: LocalModel | None = None
    pinned = bool(_COMMIT.fullmatch(ref.revision))
    for snapshot in snapshots(folder, ref.revision):
        if pinned and snapshot.name != ref.revision:
            continue
        model = _from_snapshot(ref, gguf_files(snapshot), halves, snapshot)
        if model and not model.incomplete:
            return model
        best = best or model
    return best or _from_snapshot(ref, {}, halves, folder / "snapshots" / ref.revision)


def models_in_repo(folder: Path, repo: str) -> list[LocalModel]:
    """Every model of a repository's folder; of one that several snapshots have, the newest."""
    found: dict[str, LocalModel] = {}
    halves = half_files(folder)
    for snapshot in snapshots(folder) or [folder / "snapshots" / "none"]:
        files = gguf_files(snapshot)
        for name in filter(is_model_file, sorted({*files, *halves})):
            ref = ModelRef(repo, "hub", repo=repo, filename=name)
            model = _from_snapshot(ref, files, halves, snapshot)
            if model and (model.name not in found or found[model.name].incomplete):
                found[model.name] = model
    return list(found.values())


def blob_of(path: Path) -> Path:
    """The blob that a snapshot's link points to; the path itself where links are not used."""
    try:
        return path.parent / path.readlink() if path.is_symlink() else path
    except OSError:
        return path


def link_blob(blob: Path, link: Path) -> None:
    """Put a finished blob into a snapshot: a relative link, or where the disk has none, a hard link or a copy."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.exists():
        return
    link.unlink(missing_ok=True)
    try:
        link.symlink_to(os.path.relpath(blob, link.parent))
    except OSError:
        try:
            link.hardlink_to(blob)
        except OSError:
            shutil.copyfile(blob, link)


def write_ref(folder: Path, revision: str, commit: str) -> None:
    """Remember which commit a branch pointed to; nothing to do for a commit."""
    if revision != commit:
        path = folder / "refs" / revision
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, commit)


def delete_model(folder: Path, model: LocalModel) -> int:
    """Remove a model from a repository's folder and return the bytes that became free.

    A blob that another file still points to stays; so does the projector while another model needs it.
    """
    names = {part.as_posix() for part in split_parts(Path(model.ref.filename))}
    others = [other for other in models_in_repo(folder, model.ref.repo) if other.name != model.name]
    links = [path for snapshot in snapshots(folder) for path in _all_files(snapshot)]
    gone = {path for path in links if _inner(path, folder) in names}
    if not others:
        gone |= {path for path in links if "mmproj" in path.name.lower() and path.name.lower().endswith(".gguf")}
    blobs = {blob_of(path).resolve() for path in gone} - {path.resolve() for path in links if path not in gone}
    freed = 0
    for path in gone:
        blob = blob_of(path)
        path.unlink(missing_ok=True)
        if blob.resolve() in blobs:
            freed += _delete_blob(blob, folder.parent)
    for name, (_, blob) in half_files(folder).items():
        if name in names or not others:
            freed += bytes_here(blob)
            discard(blob)
    _prune(folder)
    return freed


def _all_files(snapshot: Path) -> list[Path]:
    return [Path(parent, name) for parent, _, names in os.walk(snapshot) for name in names]


def _inner(path: Path, folder: Path) -> str:
    """The path of a snapshot's file inside the repository."""
    return "/".join(path.relative_to(folder / "snapshots").parts[1:])


def _delete_blob(blob: Path, cache: Path) -> int:
    """Delete a blob. One that is a link into the store shared by repositories is left to huggingface_hub to count."""
    if not blob.is_symlink():
        size = blob.stat().st_size if blob.exists() else 0
        blob.unlink(missing_ok=True)
        return size
    shared = blob.resolve()
    blob.unlink()
    try:
        from huggingface_hub.utils._shared_blobs import sweep_shared_blob

        return int(sweep_shared_blob(shared, cache_dir=cache))
    except Exception:  # a private function: without it the bytes stay until `hf cache prune`
        return 0


def _prune(folder: Path) -> None:
    """Remove folders that hold nothing any more, and the repository's own when no snapshot has a file."""
    if not any(_all_files(folder / "snapshots")) and not half_files(folder):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(folder.parent / ".locks" / folder.name, ignore_errors=True)
        return
    for parent, _, _ in os.walk(folder / "snapshots", topdown=False):
        with contextlib.suppress(OSError):
            Path(parent).rmdir()


def _from_snapshot(
    ref: ModelRef, files: dict[str, Path], halves: dict[str, tuple[Note, Path]], snapshot: Path
) -> LocalModel | None:
    names = _with_missing_parts([*files, *(name for name in halves if name not in files)])
    try:
        # The catalog's file may have another name here; its quantisation is what was meant.
        known = ref.filename in names or not ref.quant
        choice = choose_files(names, ref.quant, ref.filename if known else "")
    except ModelNotFound:
        return None
    parts = tuple(files.get(name, snapshot / name) for name in choice.parts)
    size = total = 0
    modified = 0.0
    for name in choice.parts:
        here, whole, changed = _sizes(name, files, halves)
        size, total, modified = size + here, total + whole, max(modified, changed)
    if not size and not any(name in halves for name in choice.parts):
        return None
    blob = blob_of(parts[0]).name
    return LocalModel(
        ref=pinned(ref, choice.parts[0], names),
        path=parts[0],
        parts=parts,
        size_bytes=size,
        total_bytes=total,
        sha256=blob if _SHA256.fullmatch(blob) else "",
        mmproj=files.get(choice.mmproj),
        incomplete=any(name not in files for name in choice.parts),
        modified_s=modified,
    )


def _with_missing_parts(names: list[str]) -> list[str]:
    """The names, and those of the parts that a split model still lacks, so that a half set is seen as one model."""
    wanted = dict.fromkeys(names)
    for name in names:
        for part in split_parts(Path(name)):
            wanted.setdefault(part.as_posix())
    return list(wanted)


def _sizes(name: str, files: dict[str, Path], halves: dict[str, tuple[Note, Path]]) -> tuple[int, int, float]:
    """Bytes here, bytes in the end (as far as known) and time of the last change of one file."""
    try:
        if name in files:
            facts = files[name].stat()
            return facts.st_size, facts.st_size, facts.st_mtime
        if name in halves:
            note, blob = halves[name]
            facts = incomplete_path(blob).stat()
            return facts.st_size, note.size_bytes, facts.st_mtime
    except OSError:
        pass
    return 0, 0, 0.0
