"""What a person types, resolved to one model; and which file of a repository that means.

Pure: no disk, no network. The caller passes the names that are on disk and a way to ask whether a path exists.

    qwen3-8b  qwen3-8b:Q8_0                        a catalog alias, with another quantisation if you like
    owner/repo  owner/repo:Q4_K_M  hf://owner/repo  a Hugging Face repository
    owner/repo/file.gguf  https://huggingface.co/owner/repo/blob/main/file.gguf
    Qwen2.5-3B-Instruct-Q4_K_M                     the stem of a file on this disk or in the catalog
    ./model.gguf  ~/models/model.gguf              a path
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from meshnode.errors import ModelNotFound
from meshnode.models.catalog import Catalog, CatalogEntry
from meshnode.models.gguf import SPLIT_NAME

MAX_NAME_CHARACTERS = 512
# In order, what an unqualified repository means; the first model file comes last (as llama.cpp does).
PREFERRED = ("Q4_K_M", "Q8_0")
# GGUF files that are not the model itself: projectors, importance matrices, draft heads.
NOT_A_MODEL = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
HUB_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")

_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9][\w.-]{0,47}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,99}", re.ASCII)
_OLLAMA = re.compile(r"(?:[a-z0-9._-]+/)?[a-z0-9._-]+:[a-z0-9._-]+", re.ASCII | re.IGNORECASE)
_QUANT = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q[1-8]_[A-Z0-9_]+|TQ[12]_0|BF16|F(?:P)?16|F(?:P)?32|MXFP4(?:_MOE)?|NVFP4))(?=[-._/]|$)",
    re.ASCII | re.IGNORECASE,
)

Kind = Literal["hub", "file", "demo"]


@dataclass(frozen=True, slots=True)
class ModelRef:
    """One model, as asked for.

    `canonical` is its name in configuration, logs and the mesh: `owner/repo:QUANT`, `file:STEM` or `demo`. `quant` is
    "" until the files of a repository are known, `filename` the path inside it when one file was meant. `is_open`: no
    quantisation was named (an alias, a repository), so another one may be chosen; it is no part of what the model is.
    """

    canonical: str
    kind: Kind
    alias: str = ""
    repo: str = ""
    quant: str = ""
    filename: str = ""
    revision: str = "main"
    path: Path | None = None
    is_open: bool = field(default=False, compare=False)

    def with_quant(self, quant: str) -> ModelRef:
        """The same repository with this quantisation."""
        return replace(self, quant=quant, canonical=f"{self.repo}:{quant}" if quant else self.repo)

    @property
    def short_name(self) -> str:
        """What to show and to accept in an API request: the alias, else the canonical name."""
        return self.alias or self.canonical


@dataclass(frozen=True, slots=True)
class LocalName:
    """A model on this disk, as far as names go: the stem of its first file, and what it resolves to."""

    stem: str
    ref: ModelRef


@dataclass(frozen=True, slots=True)
class FileChoice:
    """Files of a repository that make one model: all parts in order, and the projector.

    `quant` is "" where the file name states none, `mmproj` where there is none.
    """

    parts: tuple[str, ...]
    quant: str
    mmproj: str = ""


def resolve(
    text: str,
    *,
    catalog: Catalog,
    local: Iterable[LocalName] = (),
    is_file: Callable[[Path], bool] = lambda path: False,
) -> ModelRef:
    """The model that `text` means. Raises ModelNotFound, with the nearest names or what to type instead."""
    text = text.strip()
    _refuse_hostile(text)
    local = tuple(local)
    if entry := catalog.find(text):
        return replace(alias_ref(entry), is_open=bool(entry.repo))
    if _is_url(text):
        return _from_url(text)
    if _is_path(text) or (text.lower().endswith(".gguf") and is_file(Path(text))):
        return _from_path(text, is_file)
    if "/" in text:
        return _from_repo(text)
    name, _, tag = text.partition(":")
    if tag and (entry := catalog.find(name)) and entry.repo and _QUANT.fullmatch(tag):
        return replace(alias_ref(entry).with_quant(tag.upper()), alias=f"{entry.alias}:{tag.upper()}", filename="")
    if found := _from_stem(text, catalog, local):
        return found
    raise _not_found(text, catalog, local)


def alias_ref(entry: CatalogEntry) -> ModelRef:
    """The model behind a catalog entry."""
    if not entry.repo:
        return ModelRef(entry.alias, "demo", alias=entry.alias)
    return ModelRef(
        f"{entry.repo}:{entry.quant}", "hub", alias=entry.alias, repo=entry.repo, quant=entry.quant, filename=entry.file
    )


def file_ref(path: Path) -> ModelRef:
    """A model that is a file somewhere on this disk."""
    return ModelRef(f"file:{stem_of(path.name)}", "file", path=path, quant=quant_of(path.name))


def stem_of(filename: str) -> str:
    """`Qwen3-8B-Q4_K_M` of `sub/Qwen3-8B-Q4_K_M-00001-of-00002.gguf`."""
    name = filename.rsplit("/", 1)[-1]
    if match := SPLIT_NAME.match(name):
        return match["stem"]
    return name[:-5] if name.lower().endswith(".gguf") else name


def quant_of(filename: str) -> str:
    """The quantisation that a file name states (`Q4_K_M`, `UD-Q4_K_XL`), or ""."""
    found = _QUANT.findall(stem_of(filename)) or _QUANT.findall(filename)
    return found[-1].upper() if found else ""


def choose_files(names: Sequence[str], quant: str = "", filename: str = "") -> FileChoice:
    """Which of a repository's files are the model. Raises ModelNotFound, naming what there is.

    Without a quantisation: Q4_K_M, then Q8_0, then the first. A match is the tag followed by `.` or `-` in the path.
    """
    models = sorted(name for name in names if is_model_file(name))
    if not models:
        raise ModelNotFound(
            "the repository has no GGUF files", fix="look for one whose name ends in -GGUF: meshnode search NAME"
        )
    if filename:
        first = filename if filename in names else ""
        if not first:
            raise ModelNotFound(f"the repository has no file {filename}", fix=_offer(models))
    else:
        first = _first_match(models, quant)
        if not first:
            raise ModelNotFound(f"the repository has no {quant} file", fix=_offer(models))
    parts = _parts_of(first, names)
    return FileChoice(parts, quant_of(parts[0]), _projector(names, parts[0]))


def pinned(ref: ModelRef, filename: str, names: Sequence[str]) -> ModelRef:
    """`ref` once its first file is known among the `names` of its repository.

    It is called `owner/repo:QUANT` when that finds this very file again, otherwise `owner/repo/FILE`.
    """
    quant = quant_of(filename)
    unique = quant and choose_files(names, quant).parts[0] == filename
    canonical = f"{ref.repo}:{quant}" if unique else f"{ref.repo}/{filename}"
    return replace(ref, canonical=canonical, quant=quant, filename=filename)


def did_you_mean(text: str, names: Iterable[str], limit: int = 3) -> list[str]:
    """The nearest of `names`, best first; those that contain what was typed count as near."""
    lowered: dict[str, str] = {}
    for name in names:
        lowered.setdefault(name.lower(), name)
    wanted = text.lower()[:80]
    near = difflib.get_close_matches(wanted, lowered, n=limit, cutoff=0.55)
    inside = sorted((key for key in lowered if len(wanted) >= 3 and wanted in key and key not in near), key=len)
    return [lowered[key] for key in (near + inside)[:limit]]


def _refuse_hostile(text: str) -> None:
    if not text:
        raise ModelNotFound("the name is empty", fix="meshnode ls shows the models on this disk; demo always works")
    if len(text) > MAX_NAME_CHARACTERS:
        raise ModelNotFound(f"the name has {len(text):,} characters, at most {MAX_NAME_CHARACTERS} are allowed")
    if not text.isprintable():
        raise ModelNotFound("the name contains control characters")


def _is_url(text: str) -> bool:
    lowered = text.lower()
    return "://" in lowered or lowered.startswith(tuple(f"{host}/" for host in HUB_HOSTS))


def _is_path(text: str) -> bool:
    return text.startswith(("/", "./", "../", "~", ".\\", "..\\")) or bool(re.match(r"[A-Za-z]:[\\/]", text))


def _from_path(text: str, is_file: Callable[[Path], bool]) -> ModelRef:
    path = Path(text)
    with contextlib.suppress(RuntimeError):  # the home of someone who does not exist
        path = path.expanduser()
    if not is_file(path):
        raise ModelNotFound(f"there is no file {path}")
    return file_ref(path)


def _from_url(text: str) -> ModelRef:
    """`hf://owner/repo[...]` and the pages, blobs and downloads of huggingface.co."""
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
    except ValueError:
        raise _malformed(text) from None
    path = unquote(parts.path).strip("/")
    if parts.scheme == "hf":
        # `urlsplit` lowers nothing here, but takes the owner for the host and the tag for a port.
        path = unquote(text.partition("://")[2]).strip("/")
        return _from_repo(path.removeprefix("models/"), shown=text)
    if parts.scheme not in ("http", "https") or parts.hostname not in HUB_HOSTS:
        raise ModelNotFound(
            f"{text[:120]} is not on Hugging Face",
            fix="download the file yourself and pass its path, or name a repository: owner/repo",
        )
    pieces = path.split("/")
    if len(pieces) > 3 and pieces[2] in ("blob", "resolve", "tree", "raw"):
        repo, revision, inner = "/".join(pieces[:2]), pieces[3], "/".join(pieces[4:])
        ref = _from_repo(f"{repo}/{inner}" if inner.lower().endswith(".gguf") else repo, shown=text)
        if not _REVISION.fullmatch(revision) or ".." in revision:
            raise _malformed(text)
        return replace(ref, revision=revision)
    return _from_repo("/".join(pieces[:2]) if len(pieces) > 2 and not path.endswith(".gguf") else path, shown=text)


def _from_repo(text: str, shown: str = "") -> ModelRef:
    """`owner/repo[@revision][:QUANT]` or `owner/repo/folder/file.gguf`."""
    pieces = text.split("/")
    if len(pieces) > 2:
        repo, inner = "/".join(pieces[:2]), "/".join(pieces[2:])
        if not inner.lower().endswith(".gguf") or any(piece in ("", ".", "..") for piece in pieces) or "\\" in inner:
            raise _malformed(shown or text)
        _check_repo(repo, shown or text)
        quant = quant_of(inner)
        canonical = f"{repo}:{quant}" if quant else f"{repo}/{inner}"
        return ModelRef(canonical, "hub", repo=repo, quant=quant, filename=inner)
    text, _, tag = text.partition(":")
    repo, _, revision = text.partition("@")
    _check_repo(repo, shown or text)
    if (tag and not _TAG.fullmatch(tag)) or (revision and (not _REVISION.fullmatch(revision) or ".." in revision)):
        raise _malformed(shown or text)
    quant = "" if tag.lower() == "latest" else tag.upper()
    return ModelRef(repo, "hub", repo=repo, revision=revision or "main", is_open=not quant).with_quant(quant)


def _check_repo(repo: str, shown: str) -> None:
    # `--` separates owner and name in the cache's folder names; the hub allows neither it nor `..`.
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo or repo.endswith((".", "-", ".git")):
        raise _malformed(shown)


def _malformed(shown: str) -> ModelNotFound:
    return ModelNotFound(
        f"{shown[:120]!r} is not a model name", fix="write owner/repo:QUANT, an alias, or a path to a .gguf"
    )


def _from_stem(text: str, catalog: Catalog, local: Sequence[LocalName]) -> ModelRef | None:
    wanted = stem_of(text).lower()
    for name in local:
        if name.stem.lower() == wanted:
            return name.ref
    for entry in catalog.entries:
        if entry.file and stem_of(entry.file).lower() == wanted:
            return alias_ref(entry)
    return None


def _not_found(text: str, catalog: Catalog, local: Sequence[LocalName]) -> ModelNotFound:
    names = [entry.alias for entry in catalog.entries] + [name.stem for name in local]
    names += [stem_of(entry.file) for entry in catalog.entries if entry.file]
    near = did_you_mean(text, names)
    if _OLLAMA.fullmatch(text):
        near = near or did_you_mean(text.replace(":", "-"), names) or did_you_mean(text.partition(":")[0], names)
        hint = f"try {near[0]}" if near else "search the hub: meshnode search " + text.partition(":")[0]
        return ModelNotFound(f"{text} looks like an Ollama name; models come from Hugging Face here", fix=hint)
    if near:
        return ModelNotFound(f"nothing is called {text[:120]}", fix=f"did you mean {' or '.join(near)}?")
    return ModelNotFound(f"nothing is called {text[:120]}")


def is_model_file(name: str) -> bool:
    """True for a GGUF file that is a model by its name, not a projector or the like."""
    lowered = name.lower()
    return lowered.endswith(".gguf") and not any(word in lowered for word in NOT_A_MODEL)


def _first_match(models: Sequence[str], quant: str) -> str:
    starts = [name for name in models if not (match := SPLIT_NAME.match(name)) or int(match["number"]) == 1]
    for tag in (quant,) if quant else PREFERRED:
        # `Q4_K_M` must not take `UD-Q4_K_M` or `IQ4_K_M` while a file that is exactly this one is there.
        exact = [name for name in starts if quant_of(name) == tag.upper()]
        loose = [name for name in starts if re.search(re.escape(tag) + r"[.-]", name, re.IGNORECASE)]
        if exact or loose:
            return (exact or loose)[0]
    return "" if quant or not starts else starts[0]


def _parts_of(first: str, names: Sequence[str]) -> tuple[str, ...]:
    match = SPLIT_NAME.match(first)
    if match is None:
        return (first,)
    count = int(match["count"])
    parts = tuple(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, min(count, 4096) + 1))
    missing = sorted(set(parts) - set(names))
    if missing or not parts:
        raise ModelNotFound(f"the repository lacks {len(missing)} of {count} parts: {', '.join(missing[:3])}")
    return parts


def _projector(names: Sequence[str], model: str) -> str:
    """The mmproj beside the model or at the top of the repository; F16 is the usual choice for quality and size."""
    folders = ("", model.rpartition("/")[0])
    found = sorted(
        name
        for name in names
        if name.lower().endswith(".gguf") and "mmproj" in name.lower() and name.rpartition("/")[0] in folders
    )
    for tag in ("f16", "bf16", "q8_0"):
        for name in found:
            if quant_of(name).lower() == tag or f"-{tag}" in name.lower():
                return name
    return found[0] if found else ""


def _offer(models: Sequence[str]) -> str:
    quants = sorted({quant for name in models if (quant := quant_of(name))})
    return "it has " + ", ".join(quants[:16] or [stem_of(name) for name in models[:8]])
