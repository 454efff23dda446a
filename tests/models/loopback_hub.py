"""A small Hugging Face hub on loopback: real HTTP, with the faults that real hubs and networks have."""

from __future__ import annotations

import hashlib
import json
import random
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub import close_session

COMMIT = "c0ffee" + "0" * 34


@dataclass
class HubRepository:
    """The files of one repository and what goes wrong with them.

    `announced` replaces the hash that the listing gives; `drops` holds, for the next requests of a file, after how
    many bytes the connection is cut; `status` answers every request for a file with this code; `redirects_to` sends
    them to another server, as the hub does with its content network.
    """

    files: dict[str, bytes]
    gated: bool = False
    private: bool = False
    commit: str = COMMIT
    announced: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    drops: list[int] = field(default_factory=list)
    status: int = 0
    ignores_ranges: bool = False
    small: frozenset[str] = frozenset()
    redirects_to: str = ""


class LoopbackHub:
    """Serves `repositories` on a free port until `close`."""

    def __init__(self) -> None:
        self.repositories: dict[str, HubRepository] = {}
        self.requests: list[tuple[str, str]] = []
        self.tokens: list[str] = []
        self.listing: bytes | None = None
        self.before_chunk = lambda: None
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, repo: str, files: dict[str, bytes], **faults: object) -> HubRepository:
        self.repositories[repo] = HubRepository(files, **faults)  # type: ignore[arg-type]
        return self.repositories[repo]

    def ranges(self) -> list[str]:
        """The Range headers of the file requests so far."""
        return [value for path, value in self.requests if "/resolve/" in path]

    def close(self) -> None:
        """Stop serving, and drop the client's open connections to it."""
        close_session()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self.hub.requests.append((path, self.headers.get("Range", "")))
        self.hub.tokens.append(self.headers.get("Authorization", ""))
        if self.hub.listing is not None:
            return self._body(200, self.hub.listing, "text/html")
        if path == "/api/models":
            return self._search(parse_qs(parts.query).get("search", [""])[0])
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            return self._describe(match[1], match[2])
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._serve(match[1], match[3])
        return self._error(404, "", "Not Found")

    def log_message(self, *_: object) -> None:
        pass

    def _search(self, words: str) -> None:
        found = [
            {
                "id": name,
                "modelId": name,
                "downloads": 100 - i,
                "gated": "auto" if repo.gated else False,
                "tags": ["gguf"],
            }
            for i, (name, repo) in enumerate(self.hub.repositories.items())
            if words.lower() in name.lower()
        ]
        self._body(200, json.dumps(found).encode())

    def _describe(self, name: str, revision: str) -> None:
        repo = self.hub.repositories.get(name)
        if repo is None or (repo.private and not self.headers.get("Authorization")):
            return self._error(401, "RepoNotFound", "Invalid username or password.")
        if revision not in ("main", repo.commit):
            return self._error(404, "RevisionNotFound", "Invalid rev id")
        siblings = []
        for file, data in repo.files.items():
            entry: dict[str, object] = {"rfilename": file, "size": len(data), "blobId": git_sha1(data)}
            if file not in repo.small:
                sha = repo.announced.get(file, hashlib.sha256(data).hexdigest())
                entry["lfs"] = {"sha256": sha, "size": repo.sizes.get(file, len(data)), "pointerSize": 134}
            siblings.append(entry)
        body = {"id": name, "sha": repo.commit, "gated": "auto" if repo.gated else False, "siblings": siblings}
        self._body(200, json.dumps(body).encode())

    def _serve(self, name: str, file: str) -> None:
        repo = self.hub.repositories.get(name)
        if repo is None or file not in repo.files:
            return self._error(404, "EntryNotFound", "Entry not found")
        if repo.status:
            refused = "Invalid credentials in Authorization header"
            return self._error(repo.status, "", refused if repo.status == 401 else "Out of order")
        if repo.gated and not self.headers.get("Authorization"):
            return self._error(401, "GatedRepo", "Access to this model is restricted")
        if repo.redirects_to:
            self.send_response(302)
            self.send_header("Location", f"{repo.redirects_to}{self.path}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        data, start, end = repo.files[file], 0, len(repo.files[file])
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if match and not repo.ignores_ranges:
            start, end = int(match[1]), min(int(match[2]) + 1, len(data))
            if start >= len(data):
                return self._error(416, "", "Range Not Satisfiable")
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        limit = repo.drops.pop(0) if repo.drops else end - start
        for at in range(start, min(start + limit, end), 64 << 10):
            self.hub.before_chunk()
            self.wfile.write(data[at : min(at + (64 << 10), start + limit, end)])
        if limit < end - start:
            self.wfile.flush()
            self.close_connection = True

    def _error(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        body = json.dumps({"error": message}).encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _body(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def git_sha1(data: bytes) -> str:
    """What git calls a file of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes that are the same in every run."""
    return random.Random(seed).randbytes(size)
