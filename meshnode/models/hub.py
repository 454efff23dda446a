"""The Hugging Face hub over HTTP: what a repository holds, ranges of its files, search.

`huggingface_hub` supplies the session (proxies, certificates, token, offline switch), the API calls and the error
classes; this module turns its answers into plain bounded values and its errors into sentences. Where files go on the
disk is `store.py`; how one is received and verified is `transfer.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from meshnode.errors import (
    DownloadCorrupt,
    GatedRepository,
    HubOffline,
    HubRefused,
    HubUnreachable,
    MeshnodeError,
    ModelFileInvalid,
    ModelNotFound,
)
from meshnode.models.gguf import MAX_HEADER_BYTES, parse_header
from meshnode.models.header import Header

DEFAULT_ENDPOINT = "https://huggingface.co"
TIMEOUT_S = 10.0
MAX_FILES = 20_000
# A content network may refuse to serve a file above 50 GB whole; pieces of it are served.
SEGMENT_BYTES = 8 << 30
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TRUE = {"1", "on", "yes", "true"}


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository. `oid` names its blob: a SHA-256 for a large file, a git SHA-1 for a small one."""

    name: str
    size_bytes: int
    oid: str


@dataclass(frozen=True, slots=True)
class Listing:
    """What a repository holds at one commit."""

    repo: str
    commit: str
    files: tuple[HubFile, ...]
    gated: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The paths of all files."""
        return tuple(file.name for file in self.files)

    def file(self, name: str) -> HubFile:
        """The file of this name; KeyError when there is none."""
        for file in self.files:
            if file.name == name:
                return file
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class Found:
    """One search result."""

    repo: str
    downloads: int
    gated: bool


@dataclass(frozen=True, slots=True)
class Hub:
    """One hub. Make it with `from_environment`; tests point `endpoint` at loopback.

    `token` is one, False for none, or None for what huggingface_hub finds (HF_TOKEN, or what `hf auth login` saved).
    """

    endpoint: str = DEFAULT_ENDPOINT
    token: str | bool | None = False
    offline: bool = False
    timeout_s: float = TIMEOUT_S

    @classmethod
    def from_environment(cls) -> Hub:
        """The hub of HF_ENDPOINT, HF_HUB_OFFLINE and HF_HUB_DOWNLOAD_TIMEOUT, read now; the token when it is needed."""
        endpoint = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or DEFAULT_ENDPOINT
        offline = (os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or "").lower() in _TRUE
        timeout = os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT", "")
        return cls(endpoint, None, offline, float(timeout) if timeout.isdecimal() and int(timeout) else TIMEOUT_S)

    def listing(self, repo: str, revision: str = "main") -> Listing:
        """All files of a repository.

        Raises ModelNotFound, GatedRepository, HubRefused, HubOffline, HubUnreachable.
        """
        from huggingface_hub import HfApi

        with self._sentences(repo):
            api = HfApi(endpoint=self.endpoint, token=self.token, library_name="meshnode")
            info = api.model_info(repo, revision=revision, files_metadata=True, timeout=self.timeout_s)
            return _checked_listing(repo, info)

    def search(self, words: str, limit: int = 20) -> list[Found]:
        """GGUF repositories whose name matches, most downloaded first. Raises HubOffline and HubUnreachable."""
        # Not HfApi.list_models: that tries a dead hub for 23 s before it says so.
        from huggingface_hub import get_session, hf_raise_for_status

        limit = max(1, min(limit, 100))
        query: dict[str, str | int] = {"search": words[:200], "filter": "gguf", "sort": "downloads", "limit": limit}
        with self._sentences(words):
            response = get_session().get(
                f"{self.endpoint}/api/models", params=query, headers=self._headers(), timeout=self.timeout_s
            )
            hf_raise_for_status(response)
            return [
                Found(str(item["id"])[:200], int(item.get("downloads") or 0), bool(item.get("gated")))
                for item in response.json()[:limit]
            ]

    @contextmanager
    def open_range(
        self, repo: str, commit: str, name: str, start: int, end: int
    ) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Bytes `start` to `end` (exclusive) of a file: where they really start (0 if ranges are ignored), and chunks.

        Raises what `listing` raises, also while the chunks are read.
        """
        import httpx2
        from huggingface_hub import get_session, hf_raise_for_status

        url = f"{self.endpoint}/{quote(repo)}/resolve/{commit}/{quote(name)}"
        headers = self._headers() | {"Range": f"bytes={start}-{max(start, end - 1)}", "Accept-Encoding": "identity"}
        timeout = httpx2.Timeout(self.timeout_s)
        with (
            self._sentences(repo),
            get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response,
        ):
            if response.status_code >= 400:
                # The error class is read from headers; the body is only for its message, and may be of any size.
                response.close()
            hf_raise_for_status(response)
            yield _range_start(response.status_code, response.headers.get("Content-Range", "")), response.iter_raw()

    def header(self, repo: str, commit: str, file: HubFile) -> Header:
        """The GGUF header of a file that is not on this disk, from its first megabytes.

        Raises ModelFileInvalid and what `listing` raises.
        """
        wanted = 2 << 20
        while True:
            wanted = min(wanted * 4, file.size_bytes, MAX_HEADER_BYTES)
            data = bytearray()
            with self.open_range(repo, commit, file.name, 0, wanted) as (_, chunks):
                for chunk in chunks:
                    data += chunk
                    if len(data) >= wanted:
                        break
            header = parse_header(bytes(data[:wanted]), file.size_bytes)
            if header is not None:
                return header
            if wanted >= min(file.size_bytes, MAX_HEADER_BYTES) or len(data) < wanted:
                raise ModelFileInvalid(
                    f"{file.name}: it ends inside its header", fix="choose another file or repository"
                )

    def _headers(self) -> dict[str, str]:
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented there

        return dict(build_hf_headers(token=self.token, library_name="meshnode"))

    @contextmanager
    def _sentences(self, repo: str) -> Iterator[None]:
        """Every error of the network and of huggingface_hub leaves as one of ours."""
        if self.offline:
            raise HubOffline(repo)
        try:
            yield
        except (MeshnodeError, KeyboardInterrupt, GeneratorExit):
            raise
        except Exception as error:
            raise self._translated(error, repo) from error

    def _translated(self, error: Exception, repo: str) -> MeshnodeError:
        import httpx2
        from huggingface_hub import errors as hf

        host, page = self._host, f"{self._shown}/{repo}"
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if isinstance(error, hf.OfflineModeIsEnabled):
            return HubOffline(repo)
        if isinstance(error, hf.GatedRepoError):
            return GatedRepository(
                repo, fix=f"accept the licence at {page}, then log in: hf auth login (or set HF_TOKEN)"
            )
        if isinstance(error, hf.RevisionNotFoundError):
            return ModelNotFound(f"{repo} has no such revision", fix=f"see its branches at {page}/tree/main")
        if isinstance(error, hf.RemoteEntryNotFoundError):
            return ModelNotFound(f"{repo} no longer has this file", fix=f"see what it has at {page}/tree/main")
        if isinstance(error, hf.RepositoryNotFoundError | hf.HFValidationError) or status == 404:
            return ModelNotFound(
                f"{host} has no repository {repo}, or it is private",
                fix="check the spelling (meshnode search NAME); for a private one log in: hf auth login",
            )
        if status:
            return self._by_status(status, str(getattr(error, "response").url), repo)  # noqa: B009
        if isinstance(error, httpx2.TimeoutException):
            return HubUnreachable(f"{host} does not answer in time")
        if isinstance(error, httpx2.HTTPError | OSError):
            return HubUnreachable(f"{host}: {_reason(error)}")
        return HubUnreachable(
            f"{host} answers something that is not a model hub's reply ({type(error).__name__})",
            fix="check HF_ENDPOINT, and whether a login page of the network is in between",
        )

    def _by_status(self, status: int, url: str, repo: str) -> MeshnodeError:
        host = self._host
        if status == 401:
            return HubRefused(
                f"{host} does not accept this token", fix="log in again: hf auth login (or mend HF_TOKEN)"
            )
        if status == 403 and urlsplit(url).netloc != urlsplit(self.endpoint).netloc:
            # The signed address of a content network has expired; the next try gets a fresh one.
            return HubUnreachable(f"the download address of {host} has expired")
        if status == 403:
            return GatedRepository(repo, fix=f"your token may not read it: ask for access at {self._shown}/{repo}")
        if status == 429:
            return HubRefused(f"too many requests to {host}", fix="wait a few minutes, or log in: hf auth login")
        if status == 416:
            return DownloadCorrupt("the file on the hub is shorter than announced", fix="try another repository")
        if status >= 500:
            return HubUnreachable(f"{host} answers with HTTP status {status}")
        return HubRefused(f"{host} answers with HTTP status {status}")

    @property
    def _host(self) -> str:
        """The hub as errors name it, without a password that HF_ENDPOINT may hold."""
        return urlsplit(self.endpoint).netloc.rpartition("@")[2]

    @property
    def _shown(self) -> str:
        return f"{urlsplit(self.endpoint).scheme}://{self._host}"


def _reason(error: Exception) -> str:
    """One short line without the address, in words that help ("Name or service not known" and the like)."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return re.sub(r"^\[(?:Errno|SSL)[^\]]*\]\s*", "", text)[:200]


def _range_start(status: int, content_range: str) -> int:
    if status != 206:
        return 0
    match = re.match(r"bytes (\d+)-", content_range)
    if match is None:
        raise HubUnreachable("the hub sends a part of the file without saying which")
    return int(match[1])


def _checked_listing(repo: str, info: object) -> Listing:
    """Names and hashes become paths on this disk, so none is taken on trust."""
    commit = str(getattr(info, "sha", "") or "")
    siblings = list(getattr(info, "siblings", None) or ())
    if not _COMMIT.fullmatch(commit) or len(siblings) > MAX_FILES:
        raise HubUnreachable(f"the hub describes {repo} in a way that cannot be used", fix="check HF_ENDPOINT")
    files = []
    for sibling in siblings:
        name, lfs = str(sibling.rfilename), sibling.lfs
        size = (lfs.size if lfs else sibling.size) or 0
        oid = (lfs.sha256 if lfs else sibling.blob_id) or ""
        named = isinstance(oid, str) and (_SHA256.fullmatch(oid) or _COMMIT.fullmatch(oid))
        if named and _is_safe_path(name) and isinstance(size, int) and 0 <= size < 1 << 50:
            files.append(HubFile(name, size, oid))
    return Listing(repo, commit, tuple(files), bool(getattr(info, "gated", False)))


def _is_safe_path(name: str) -> bool:
    pieces = name.split("/")
    return (
        0 < len(name) <= 512
        and name.isprintable()
        and not any(piece in ("", ".", "..") or piece.endswith((" ", ".")) for piece in pieces)
        and not any(letter in name for letter in '\\:*?"<>|')
    )
