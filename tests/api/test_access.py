import socket
from typing import Any

import pytest

from meshnode.api.access import Access
from meshnode.errors import BadRequest, Forbidden, MeshnodeError, Unauthorized


def scope(**headers: str) -> dict[str, Any]:
    pairs = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {"headers": pairs}


def verdict(access: Access, **headers: str) -> type[MeshnodeError] | None:
    try:
        access.check(scope(**headers))
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
