"""The default route, from tables of several systems and from this one."""

from __future__ import annotations

import sys

import pytest

from meshnode.net.gateway import Gateway, default_of_bsd, default_of_linux, find_gateway, own_address

HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
LITTLE = sys.byteorder == "little"
pytestmark = pytest.mark.skipif(not LITTLE, reason="the tables are those of a little-endian machine")


def route(destination: str, gateway: str, flags: str, metric: int, mask: str = "00000000") -> str:
    return f"eth0\t{destination}\t{gateway}\t{flags}\t0\t0\t{metric}\t{mask}\t0\t0\t0\n"


NETWORK = route("0001A8C0", "00000000", "0001", 100, "00FFFFFF")
DEFAULT = route("00000000", "0101A8C0", "0003", 100)


def test_a_home() -> None:
    assert default_of_linux(HEAD + NETWORK + DEFAULT) == "192.168.1.1"


def test_the_smallest_metric_wins() -> None:
    wifi = route("00000000", "0100000A", "0003", 600)
    assert default_of_linux(HEAD + wifi + DEFAULT) == "192.168.1.1"
    assert default_of_linux(HEAD + DEFAULT + route("00000000", "0100000A", "0003", 50)) == "10.0.0.1"


@pytest.mark.parametrize(
    "table",
    [
        "",
        HEAD,
        HEAD + NETWORK,
        HEAD + route("00000000", "00000000", "0001", 0),  # a line without a next hop, as a tunnel is
        HEAD + route("00000000", "0101A8C0", "0002", 0),  # not up
        HEAD + route("00000000", "0101A8C0", "0003", 0, "00000080"),  # half of the internet, as some tunnels say it
        HEAD + "eth0\t00000000\n",
    ],
)
def test_no_default_route(table: str) -> None:
    assert default_of_linux(table) is None


def test_macos() -> None:
    text = (
        "   route to: default\ndestination: default\n       mask: default\n    gateway: 192.168.1.1\n  interface: en0\n"
    )
    assert default_of_bsd(text) == "192.168.1.1"
    assert default_of_bsd("route: writing to routing socket: not in table\n") is None


def test_what_is_near() -> None:
    gateway = Gateway("192.168.1.1", "192.168.1.7", 24)
    assert gateway.is_near("192.168.1.1") and gateway.is_near("192.168.1.200")
    for host in ("192.168.2.1", "127.0.0.1", "11.7.1.2", "router.example", "::1", ""):
        assert not gateway.is_near(host)


def test_this_machine() -> None:
    """Whatever its network is: what is found is consistent."""
    assert own_address("127.0.0.1") == "127.0.0.1"
    found = find_gateway()
    assert found is None or (found.is_near(found.own) and own_address(found.host) == found.own)
