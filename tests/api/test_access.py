import socket
from typing import Any

import pytest

from meshnode.api.access import Access, cors_headers
from meshnode.errors import BadRequest, Forbidden, MeshnodeError, Unauthorized


def scope(method: str = "GET", path: str = "/", **headers: str) -> dict[str, Any]:
    pairs = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {"method": method, "path": path, "scheme": "http", "headers": pairs}


def verdict(access: Access, *line: str, **headers: str) -> type[MeshnodeError] | None:
    try:
        access.check(scope(*line, **headers))
    except MeshnodeError as error:
        return type(error)
    return None


def test_a_loopback_node_answers_to_loopback_names_only() -> None:
    access = Access(hosts=["Mesh.Example"])
    for host in ("localhost", "localhost:9337", "127.0.0.1", "[::1]:9337", "mesh.example:80"):
        assert verdict(access, host=host) is None, host
    for host in ("10.0.0.1", "[fe80::1]", "box.local", "mesh.example.evil", "1", "[:::]", "127.0.0.1.evil"):
        assert verdict(access, host=host) is Forbidden, host
    for host in (
        "",
        " ",
        "[",
        "[::1",
        "a" * 254,
        "localhost:",
        "localhost:x",
        "a,b",
        "löcal",
        "a\0b",
        "http://localhost",
    ):
        assert verdict(access, host=host) is BadRequest, host
    assert verdict(access) is BadRequest


def test_a_public_node_answers_to_its_addresses_and_to_local_names_but_not_to_any_name() -> None:
    access = Access(public=True, api_key="k")
    good = ("192.168.1.5:9337", "[fe80::1]", "box.local", "node.home.arpa", "vm.internal", socket.gethostname())
    for host in good:
        assert verdict(access, host=host, x_api_key="k") is None, host
    assert verdict(access, host="evil.example", x_api_key="k") is Forbidden


def test_two_hosts_are_refused_even_when_they_agree() -> None:
    with pytest.raises(BadRequest, match="two Host"):
        Access().check({"headers": [(b"host", b"localhost"), (b"host", b"localhost")]})


def test_origins() -> None:
    access = Access(origins=["https://App.example:8443/"])
    for origin in ("http://localhost", "http://a.localhost:3", "http://127.0.0.1:1", "https://app.example:8443"):
        assert access.check(scope(host="localhost", origin=origin)) == origin
    strangers = ("null", "https://app.example", "http://localhost.evil", "http://[::1", "http://[zz]", "localhost", "é")
    for origin in strangers:
        assert verdict(access, host="localhost", origin=origin) is Forbidden, origin
    assert access.check(scope(host="localhost")) is None


def test_a_page_needs_the_key_or_the_same_site() -> None:
    access = Access(api_key="k")
    assert verdict(access, host="localhost", sec_fetch_site="cross-site") is Forbidden
    assert verdict(access, host="localhost", sec_fetch_site="cross-site", authorization="Bearer k") is None
    assert verdict(access, host="localhost", origin="https://x", authorization="Bearer k") is None
    # A node without a key trusts no page because it sent some key.
    assert verdict(Access(), host="localhost", origin="https://x", authorization="Bearer k") is Forbidden
    assert verdict(Access(), host="localhost", origin="https://x", x_api_key="") is Forbidden


def test_keys_are_compared_whole() -> None:
    access = Access(api_key="näh")
    for given in ("n", "näh ", "NÄH", ""):
        assert verdict(access, host="localhost", x_api_key=given) is Unauthorized
    utf8 = "näh".encode().decode("latin-1")
    assert verdict(access, host="localhost", x_api_key=utf8) is None
    assert verdict(access, host="localhost", authorization=f"BEARER {utf8} ") is None
    access.check(scope(host="localhost"), needs_key=False)
    with pytest.raises(Forbidden):
        access.check(scope(host="evil.example"), needs_key=False)


# --- the page of the node itself ------------------------------------------------------------------------------

CONSOLE = Access(hosts=["Mesh.Example"], origins=["https://app.example", "http://localhost:5173"], same_origin=True)


def test_only_the_very_origin_of_the_host_header_may_come() -> None:
    for host, origin in (
        ("localhost:3131", "http://localhost:3131"),
        ("LOCALHOST:3131", "http://localhost:3131"),
        ("[::1]:3131", "http://[::1]:3131"),
        ("127.0.0.1", "http://127.0.0.1"),
        ("mesh.example:80", "http://mesh.example:80"),
    ):
        assert verdict(CONSOLE, "POST", "/api/load", host=host, origin=origin) is None, origin
    for origin in (
        "http://localhost",
        "http://localhost:3130",
        "http://localhost:31310",
        "https://localhost:3131",
        "http://127.0.0.1:3131",
        "http://[::1]:3131",
        "http://a.localhost:3131",
        "http://localhost:3131/",
        "http://user@localhost:3131",
        "http://localhost:3131.evil.example",
        "https://app.example",
        "http://localhost:5173",
        "null",
        "",
        "é",
    ):
        for method, path in (("GET", "/"), ("GET", "/api/status"), ("POST", "/api/load")):
            assert verdict(CONSOLE, method, path, host="localhost:3131", origin=origin) is Forbidden, origin


def test_no_answer_of_the_console_may_be_read_by_any_origin() -> None:
    assert CONSOLE.check(scope(host="localhost:3131", origin="http://localhost:3131")) is None


def test_a_name_that_was_bound_to_this_machine_by_others_is_refused_though_its_origin_agrees() -> None:
    for name in ("rebound.example", "localhost.rebound.example", "3131.127.0.0.1.example", "127.0.0.1.rebound.example"):
        own = {"host": f"{name}:3131", "origin": f"http://{name}:3131", "sec_fetch_site": "same-origin"}
        assert verdict(CONSOLE, "POST", "/api/load", **own) is Forbidden
        assert verdict(CONSOLE, "GET", "/", host=name, sec_fetch_site="none") is Forbidden
    assert verdict(CONSOLE, "GET", "/", host="mesh.example:3131", sec_fetch_site="none") is None


def test_what_the_browser_says_of_the_site_decides_where_no_origin_is_sent() -> None:
    link = {"host": "localhost", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
    for site in ("cross-site", "same-site", "", "something new"):
        assert verdict(CONSOLE, "GET", "/", sec_fetch_site=site, **link) is None
        for method, path in (("GET", "/api/status"), ("GET", "/x"), ("GET", "//"), ("POST", "/"), ("HEAD", "/")):
            assert verdict(CONSOLE, method, path, sec_fetch_site=site, **link) is Forbidden, (method, path)
        for changed in ({"sec_fetch_mode": "cors"}, {"sec_fetch_mode": "no-cors"}, {"sec_fetch_dest": "iframe"}):
            assert verdict(CONSOLE, "GET", "/", sec_fetch_site=site, **(link | changed)) is Forbidden
        assert verdict(CONSOLE, "GET", "/", host="localhost", sec_fetch_site=site) is Forbidden
    for site in ("none", "same-origin"):
        assert verdict(CONSOLE, "POST", "/api/load", host="localhost", sec_fetch_site=site) is None
    assert verdict(CONSOLE, "POST", "/api/load", host="localhost") is None  # a program, not a browser


def test_no_key_opens_the_console_to_another_page() -> None:
    access = Access(api_key="k", same_origin=True)
    assert verdict(access, host="localhost", x_api_key="k", origin="https://x.example") is Forbidden
    assert verdict(access, host="localhost") is None  # the token is asked for elsewhere


def test_pages_read_the_headers_of_the_node() -> None:
    headers = cors_headers("http://localhost:5173")
    assert headers["access-control-allow-origin"] == "http://localhost:5173" and headers["vary"] == "origin"
    exposed = headers["access-control-expose-headers"].split(", ")
    assert {"x-meshnode-node", "x-meshnode-radius", "x-meshnode-request-id", "x-meshnode-resumed"} < set(exposed)
    assert cors_headers(None) == {} == cors_headers("")
