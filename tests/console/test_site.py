"""The files of the page as the ASGI application hands them out: content policy, caching, compression, the token."""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass
from typing import Any

import pytest

from meshnode.console.site import HARDENING, STATIC, asset, load, site

pytestmark = pytest.mark.anyio

TOKEN = 'a"<b>&token'


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


async def ask(path: str, method: str = "GET", **headers: str) -> Answer:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await site(TOKEN)({"type": "http", "method": method, "path": path, "headers": raw}, None, send)
    start, body = sent
    names = [name for name, _ in start["headers"]]
    assert len(names) == len(set(names))
    return Answer(start["status"], {k.decode(): v.decode() for k, v in start["headers"]}, body["body"])


@pytest.mark.parametrize("path", ["/", "/index.html", "/app.js", "/vendor/LICENSES", "/none", "/../site.py"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_every_answer_is_hardened(path: str, method: str) -> None:
    answer = await ask(path, method)
    assert HARDENING.items() <= answer.headers.items()


def test_the_policy_lets_nothing_inline_and_nothing_foreign_in() -> None:
    policy = HARDENING["content-security-policy"]
    assert "unsafe" not in policy and "http" not in policy and "*" not in policy
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")


async def test_the_page_has_the_token_and_is_not_kept() -> None:
    answer = await ask("/", accept_encoding="gzip")
    text = gzip.decompress(answer.body).decode()
    assert '<meta name="meshnode-token" content="a&quot;&lt;b&gt;&amp;token">' in text
    assert "{{" not in text
    assert answer.headers["cache-control"] == "no-store"
    assert "etag" not in answer.headers


async def test_only_the_page_has_the_token() -> None:
    assert not [name for name, found in load().items() if b"{{token}}" in found.raw and name != "index.html"]


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/app.js", "text/javascript; charset=utf-8"),
        ("/style.css", "text/css; charset=utf-8"),
        ("/icon.svg", "image/svg+xml"),
        ("/vendor/VENDOR.json", "application/json"),
        ("/vendor/LICENSES", "text/plain; charset=utf-8"),
        ("/", "text/html; charset=utf-8"),
    ],
)
async def test_media_types(path: str, media_type: str) -> None:
    assert (await ask(path)).headers["content-type"] == media_type


@pytest.mark.parametrize("coding", ["gzip", "br, GZIP;q=0.5", "*"])
async def test_compressed_for_those_who_take_it(coding: str) -> None:
    answer = await ask("/app.js", accept_encoding=coding)
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["vary"] == "accept-encoding"
    assert gzip.decompress(answer.body) == (STATIC / "app.js").read_bytes()
    assert int(answer.headers["content-length"]) == len(answer.body)


@pytest.mark.parametrize("coding", ["", "br", "gzip;q=0", "identity"])
async def test_plain_for_all_others(coding: str) -> None:
    answer = await ask("/app.js", accept_encoding=coding)
    assert "content-encoding" not in answer.headers
    assert answer.body == (STATIC / "app.js").read_bytes()


def test_what_does_not_shrink_is_not_compressed() -> None:
    assert asset(b"ab", "text/plain").packed is None


async def test_a_browser_that_has_the_file_is_told_so() -> None:
    etag = (await ask("/app.js")).headers["etag"]
    assert re.fullmatch('"[0-9a-f]{32}"', etag)
    for header in (etag, f'"x", W/{etag}', "*"):
        answer = await ask("/app.js", if_none_match=header)
        assert (answer.status, answer.body) == (304, b"")
    assert (await ask("/app.js", if_none_match='"x"')).status == 200
    assert (await ask("/app.js")).headers["cache-control"] == "no-cache"


async def test_head_is_get_without_a_body() -> None:
    head, whole = await ask("/app.js", "HEAD"), await ask("/app.js")
    assert head.body == b"" and head.headers == whole.headers


@pytest.mark.parametrize(
    "path",
    ["/none", "/static/app.js", "/../site.py", "/..%2fsite.py", "//etc/passwd", "/vendor", "/views/", "/app.js/"],
)
async def test_nothing_else_is_there(path: str) -> None:
    assert (await ask(path)).status == 404


async def test_nothing_is_changed_here() -> None:
    answer = await ask("/", "DELETE")
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
