"""Finding UPnP routers, and what becomes of one that lies, stalls or never ends."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from meshnode.net import upnp
from meshnode.net.gateway import Gateway
from meshnode.net.mapping import Mapping, NoMapping
from meshnode.wire.address import Address
from tests.lab.nat_lab import NatLab, why_not
from tests.net.fake_igd import FakeIgd, igd

HOME = Gateway("192.168.1.1", "192.168.1.7", 24)
HERE = Gateway("127.0.0.1", "127.0.0.1", 8)
URL = "http://192.168.1.1:5000/rootDesc.xml"


def found_at(url: str, head: str = "HTTP/1.1 200 OK") -> bytes:
    return f"{head}\r\nCACHE-CONTROL: max-age=120\r\nST: upnp:rootdevice\r\nLocation: {url}\r\nEXT:\r\n\r\n".encode()


def known(device: FakeIgd) -> Mapping:
    """A mapping of that device, so that it need not be looked for."""
    return Mapping(Address("11.7.1.2", 9337), 9337, 7200.0, upnp.WAY, device.url.encode())


@pytest.fixture
def device() -> Iterator[FakeIgd]:
    with igd() as fake:
        yield fake


def test_the_question() -> None:
    lines = upnp.search_request("InternetGatewayDevice:1").split(b"\r\n")
    assert lines[0] == b"M-SEARCH * HTTP/1.1" and lines[-2:] == [b"", b""]
    assert b"ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1" in lines and b"MX: 1" in lines


def test_the_router_and_others_of_its_network_are_followed() -> None:
    assert upnp.location(found_at(URL), "192.168.1.1", HOME) == URL
    other = "http://192.168.1.9:80/x"
    assert upnp.location(found_at(other), "192.168.1.9", HOME) == other


@pytest.mark.parametrize(
    ("url", "source"),
    [
        (URL, "192.168.1.9"),  # speaks for another
        ("http://11.7.9.9/x", "11.7.9.9"),  # not of this network
        ("https://192.168.1.1/x", "192.168.1.1"),
        ("file:///etc/passwd", "192.168.1.1"),
        ("http://router.example/x", "192.168.1.1"),
        ("http://127.0.0.1:9337/x", "192.168.1.1"),
        ("http://192.168.1.1@11.7.9.9/x", "192.168.1.1"),
        ("http://a@192.168.1.1/x", "192.168.1.1"),
        ("http://192.168.1.1:99999/x", "192.168.1.1"),
        ("http://192.168.1.1:0/x", "192.168.1.1"),
        ("http://[::1/x", "192.168.1.1"),
        ("http://192.168.1.1/" + "x" * 200, "192.168.1.1"),
        ("http://192.168.1.1/a b", "192.168.1.1"),
        ("http://192.168.1.1/\x07", "192.168.1.1"),
        ("", "192.168.1.1"),
    ],
)
def test_urls_that_are_not_followed(url: str, source: str) -> None:
    assert upnp.location(found_at(url), source, HOME) is None


@pytest.mark.parametrize("answer", [b"", b"\xff" * 100, found_at(URL, "NOTIFY * HTTP/1.1"), b"HTTP/1.1 200 OK\r\n\r\n"])
def test_what_is_no_answer(answer: bytes) -> None:
    assert upnp.location(answer, "192.168.1.1", HOME) is None


@pytest.mark.anyio
async def test_mapping_renewing_and_giving_back(device: FakeIgd) -> None:
    made = await upnp.map_port(HERE, 9337, known(device))
    assert made == known(device)
    assert device.mappings[9337]["NewInternalClient"] == "127.0.0.1"
    await upnp.unmap_port(HERE, made)
    assert device.mappings == {}
    with pytest.raises(NoMapping, match="refuses"):
        await upnp.unmap_port(HERE, made)


@pytest.mark.anyio
@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1", "192.168.9.9", "100.64.0.1"])
async def test_nothing_is_mapped_where_it_would_be_of_no_use(host: str, device: FakeIgd) -> None:
    device.outside = host
    with pytest.raises(NoMapping, match=f"outside is {host}"):
        await upnp.map_port(HERE, 9337, known(device))
    assert device.mappings == {}


@pytest.mark.anyio
@pytest.mark.parametrize("host", ["router.example", "<b>", "1.2.3.4.5"])
async def test_an_outside_that_is_no_address(host: str, device: FakeIgd) -> None:
    device.outside = host
    with pytest.raises(NoMapping):
        await upnp.map_port(HERE, 9337, known(device))
    assert device.mappings == {}


@pytest.mark.anyio
@pytest.mark.parametrize("fault", ["endless", "stalls"])
async def test_a_device_that_never_comes_to_an_end(
    fault: str, device: FakeIgd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes are bounded as the time is, and no process is left behind (warnings are errors here)."""
    setattr(device, fault, True)
    monkeypatch.setattr(upnp, "CHILD_LIMIT_S", 1.0)
    begun = time.monotonic()
    with pytest.raises(NoMapping):
        await upnp.map_port(HERE, 9337, known(device))
    assert time.monotonic() - begun < 5


@pytest.mark.anyio
async def test_no_device_at_all() -> None:
    begun = time.monotonic()
    with pytest.raises(NoMapping, match="no router on the local network") as refusal:
        await upnp.map_port(HERE, 9337, search_s=0.1)
    assert not refusal.value.answered and time.monotonic() - begun < 3


# --- on a network -----------------------------------------------------------------------------------------------------


@contextmanager
def answering(lab: NatLab, answers: Callable[[], list[bytes]]) -> Iterator[list[bytes]]:
    """A program on the router of `home` that answers each M-SEARCH so; gives what it has heard."""
    heard: list[bytes] = []
    with lab.inside(lab.router("home")):
        device = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    device.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    device.bind(("", upnp.SSDP_PORT))
    place = socket.inet_aton(upnp.GROUP) + socket.inet_aton(lab.gateway("home"))
    device.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, place)
    device.settimeout(0.05)
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            try:
                data, source = device.recvfrom(2048)
            except TimeoutError:
                continue
            heard.append(data)
            for answer in answers():
                device.sendto(answer, source)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield heard
    finally:
        over.set()
        thread.join()
        device.close()


@pytest.fixture
def lab() -> Iterator[NatLab]:
    if reason := why_not():
        pytest.skip(reason)
    with NatLab({"home": "masquerade"}) as built:
        yield built


async def found_from(lab: NatLab, search_s: float) -> list[str]:
    """What is found from the host at home."""
    with lab.inside("home"):
        gateway = Gateway(lab.gateway("home"), lab.host_address("home"), 24)
        return await upnp.find_devices(gateway, search_s=search_s)


@pytest.mark.anyio
async def test_the_router_is_found_by_multicast(lab: NatLab) -> None:
    url = f"http://{lab.gateway('home')}:5000/rootDesc.xml"
    with answering(lab, lambda: [found_at("http://11.7.9.9/x"), b"\xff", found_at(url)]) as heard:
        begun = time.monotonic()
        assert await found_from(lab, 5.0) == [url]
        assert time.monotonic() - begun < 3, "the router itself has answered: nobody else is waited for"
    assert heard[0].startswith(b"M-SEARCH")


@pytest.mark.anyio
async def test_a_flood_of_answers_leads_nowhere(lab: NatLab) -> None:
    with answering(lab, lambda: [found_at("http://11.7.9.9/x")] * 500):
        begun = time.monotonic()
        assert await found_from(lab, 1.0) == []
        assert time.monotonic() - begun < 3
