"""Serves the page of the console: the files of `static/`, read and compressed once, under a strict content policy.

`/` is `index.html` with the token of this start of the node in a <meta> element; nothing else of the page holds a
secret. The rooms around it decide who may ask (Host, Origin); here every answer tells the browser to load nothing
from elsewhere, to run no inline script and to show the page in no frame (Content Security Policy Level 3).
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import html
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ASGIApp = Callable[..., Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

STATIC = Path(__file__).parent / "static"
TOKEN_MARK = b"{{token}}"
MEDIA_TYPES = {
    "": "text/plain; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
"""By suffix; a file of another kind is not served. One without a suffix holds licence texts."""
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "font-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "object-src 'none'",
    )
)
UNUSED_FEATURES = (
    "accelerometer",
    "autoplay",
    "camera",
    "display-capture",
    "encrypted-media",
    "fullscreen",
    "geolocation",
    "gyroscope",
    "hid",
    "magnetometer",
    "microphone",
    "midi",
    "payment",
    "picture-in-picture",
    "publickey-credentials-get",
    "screen-wake-lock",
    "serial",
    "usb",
    "xr-spatial-tracking",
)
HARDENING: Mapping[str, str] = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": ", ".join(f"{feature}=()" for feature in UNUSED_FEATURES),
}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is sent. `packed` is its gzip form, or None where that saves nothing; `etag` is a strong one."""

    media_type: str
    raw: bytes
    packed: bytes | None
    etag: str


def asset(raw: bytes, media_type: str) -> Asset:
    """The content of a file, with its gzip form and its entity tag."""
    packed = gzip.compress(raw, 9, mtime=0)
    return Asset(
        media_type=media_type,
        raw=raw,
        packed=packed if len(packed) < len(raw) else None,
        etag=f'"{hashlib.sha256(raw).hexdigest()[:32]}"',
    )


@cache
def load(folder: Path = STATIC) -> Mapping[str, Asset]:
    """Every file of a folder by its path below it ("views/chat.js"). Blocks; the files are read once a process."""
    return {
        path.relative_to(folder).as_posix(): asset(path.read_bytes(), MEDIA_TYPES[path.suffix])
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in MEDIA_TYPES and not path.name.startswith(".")
    }


def site(token: str) -> ASGIApp:
    """The application that answers GET and HEAD for the page and its files; `token` is what `/` carries."""
    index: list[Asset] = []

    async def app(scope: dict[str, Any], _: Any, send: Any) -> None:
        assets = await asyncio.to_thread(load)
        name = scope["path"].removeprefix(scope.get("root_path", "")).lstrip("/")
        if scope["method"] not in ("GET", "HEAD"):
            await _refuse(send, 405, "only GET and HEAD", [(b"allow", b"GET, HEAD")])
        elif name in ("", "index.html"):
            if not index:
                index.append(_page(assets["index.html"], token))
            await _answer(scope, send, index[0], "no-store")
        elif name in assets:
            await _answer(scope, send, assets[name], "no-cache")
        else:
            await _refuse(send, 404, "there is no such file", [])

    return app


def _page(template: Asset, token: str) -> Asset:
    return asset(template.raw.replace(TOKEN_MARK, html.escape(token).encode()), template.media_type)


async def _answer(scope: dict[str, Any], send: Any, found: Asset, caching: str) -> None:
    asked = {name: value.decode("latin-1") for name, value in scope["headers"]}
    headers = {**HARDENING, "cache-control": caching, "vary": "accept-encoding"}
    if caching != "no-store":
        headers["etag"] = found.etag
        if _matches(asked.get(b"if-none-match", ""), found.etag):
            await _send(send, 304, headers, b"")
            return
    body = found.raw
    if found.packed is not None and _takes_gzip(asked.get(b"accept-encoding", "")):
        body = found.packed
        headers["content-encoding"] = "gzip"
    headers |= {"content-type": found.media_type, "content-length": str(len(body))}
    await _send(send, 200, headers, b"" if scope["method"] == "HEAD" else body)


async def _refuse(send: Any, status: int, words: str, more: Headers) -> None:
    body = f"{words}\n".encode()
    headers = {**HARDENING, "content-type": MEDIA_TYPES[""], "content-length": str(len(body))}
    await _send(send, status, headers, body, more)


async def _send(send: Any, status: int, headers: Mapping[str, str], body: bytes, more: Headers | None = None) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw + (more or [])})
    await send({"type": "http.response.body", "body": body})


def _matches(header: str, etag: str) -> bool:
    """If-None-Match compares weakly (RFC 9110, 13.1.2)."""
    given = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return etag in given or given == ["*"]


def _takes_gzip(header: str) -> bool:
    """Whether Accept-Encoding names gzip with a weight above zero (RFC 9110, 12.5.3)."""
    for item in header.lower().split(","):
        coding, _, weight = item.partition(";")
        if coding.strip() in ("gzip", "*"):
            return weight.replace(" ", "").removeprefix("q=") not in ("0", "0.0", "0.00", "0.000")
    return False
