"""Who may talk to this node at all, decided from the head of a request before its body is read.

Any web page in the user's browser can send requests to a loopback port, and a name server can make a foreign name
point there (DNS rebinding). So the Host must be a name of this node, a page's Origin must be one the user trusts,
and a key is compared in constant time. Callers' credentials stop here: nothing of them is forwarded.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from meshnode.errors import BadRequest, Forbidden, Unauthorized

Scope = dict[str, Any]

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]{1,253})(:[0-9]{1,5})?")


_EXPOSED = "x-meshnode-request-id, x-meshnode-node, x-meshnode-radius, x-meshnode-resumed, retry-after"


def cors_headers(origin: str | None) -> dict[str, str]:
    """What lets a page of `origin` read an answer and those of its headers that browsers hide (Fetch, section 3.3)."""
    if not origin:
        return {}
    return {"access-control-allow-origin": origin, "access-control-expose-headers": _EXPOSED, "vary": "origin"}


class Access:
    """The rules of one listener.

    `public` says that it accepts other machines, so that its own addresses and names are good hosts too. With
    `same_origin` the only page that may use it is its own, whatever keys and origins are trusted.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        public: bool = False,
        hosts: Iterable[str] = (),
        origins: Iterable[str] = (),
        same_origin: bool = False,
    ) -> None:
        self._key = api_key.encode() if api_key else None
        self._public = public
        self._hosts = {host.lower() for host in hosts}
        if public:
            self._hosts.add(socket.gethostname().lower())
        self._origins = {origin.rstrip("/").lower() for origin in origins}
        self._same_origin = same_origin

    def check(self, scope: Scope, *, needs_key: bool = True) -> str | None:
        """Accept the request or raise BadRequest, Forbidden or Unauthorized.

        Returns the Origin to name in `access-control-allow-origin`, or None when the caller is not a web page.
        """
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name == b"host" and name in headers:
                raise BadRequest("two Host headers")
            headers[name] = value
        self._check_host(headers.get(b"host"))
        if self._same_origin:
            _check_own_page(scope, headers)
            return None
        keyed = self._key is not None and self._has_key(headers)
        origin = self._check_origin(headers, keyed=keyed)
        if needs_key and self._key is not None and not keyed:
            raise Unauthorized
        return origin

    def _check_host(self, header: bytes | None) -> None:
        text = (header or b"").decode("latin-1")
        match = _HOST.fullmatch(text)
        if not match:
            raise BadRequest("the Host header is missing or malformed")
        name = match[1].strip("[]").lower().rstrip(".")
        if name in self._hosts or name == "localhost" or name.endswith(".localhost"):
            return
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            # Names that only the local network can resolve are as good as an address, when other machines may come.
            if self._public and name.endswith((".local", ".internal", ".home.arpa")):
                return
        else:
            if address.is_loopback or self._public:
                return
        raise Forbidden(
            f"this node is not called {name[:80]!r}",
            fix="use http://localhost, or start the node with MESHNODE_ALLOWED_HOSTS=NAME",
        )

    def _check_origin(self, headers: dict[bytes, bytes], *, keyed: bool) -> str | None:
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if not origin:
            if headers.get(b"sec-fetch-site") == b"cross-site" and not keyed:
                raise Forbidden("a web page of another site sent this request")
            return None
        if origin in self._origins or keyed or _is_loopback_origin(origin):
            return origin
        raise Forbidden(
            f"the web page {origin[:120]!r} may not use this node",
            fix="if you trust it, start the node with MESHNODE_ALLOWED_ORIGINS=ORIGIN",
        )

    def _has_key(self, headers: dict[bytes, bytes]) -> bool:
        scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        given = [headers.get(b"x-api-key", b"")]
        if scheme.lower() == b"bearer":
            given.append(bearer.strip())
        return any(hmac.compare_digest(key, self._key or b"") for key in given)


def _is_loopback_origin(origin: str) -> bool:
    try:
        host = urlsplit(origin).hostname or ""
        return host == "localhost" or host.endswith(".localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_own_page(scope: Scope, headers: dict[bytes, bytes]) -> None:
    """Refuse what the browser says came from any page but that of this listener.

    Origin is compared as a whole: another port of this machine is another program. Where browsers send no Origin they
    send Sec-Fetch-Site (Fetch Metadata); "none" is the user's own doing, and a link may lead to the page itself.
    """
    origin = headers.get(b"origin")
    own = f"{scope.get('scheme', 'http')}://".encode() + headers[b"host"]
    if origin is not None and origin.lower() != own.lower():
        raise Forbidden(f"the web page {origin.decode('latin-1')[:120]!r} may not use the console of this node")
    if headers.get(b"sec-fetch-site", b"none") in (b"none", b"same-origin"):
        return
    opens_the_page = (
        scope["method"] == "GET"
        and scope["path"] == "/"
        and headers.get(b"sec-fetch-mode") == b"navigate"
        and headers.get(b"sec-fetch-dest", b"document") == b"document"
    )
    if not opens_the_page:
        raise Forbidden("a web page of another site sent this request", fix="open the console at its own address")
