"""What is believed of a router's answer."""

from __future__ import annotations

import pytest

from meshnode.net.mapping import SHORTEST_LIFETIME_S, WANTED_LIFETIME_S, NoMapping, granted, outside
from meshnode.wire.address import Address


def test_a_mapping_as_it_should_be() -> None:
    found = granted("11.7.1.2", 40_000, 9337, 3600, "pcp", b"nonce")
    assert (found.external, found.port, found.lifetime_s) == (Address("11.7.1.2", 40_000), 9337, 3600.0)
    assert (found.way, found.secret) == ("pcp", b"nonce")


@pytest.mark.parametrize("lifetime_s", [WANTED_LIFETIME_S + 1, (1 << 32) - 1])
def test_a_longer_life_than_was_wanted_is_not_relied_upon(lifetime_s: int) -> None:
    assert granted("11.7.1.2", 1, 9337, lifetime_s, "pcp").lifetime_s == WANTED_LIFETIME_S


@pytest.mark.parametrize("lifetime_s", [0, 1, SHORTEST_LIFETIME_S - 1])
def test_a_life_that_is_too_short(lifetime_s: int) -> None:
    with pytest.raises(NoMapping, match=f"for {lifetime_s} s only"):
        granted("11.7.1.2", 1, 9337, lifetime_s, "pcp")


@pytest.mark.parametrize("port", [0, -1, 1 << 16])
def test_a_port_that_is_none(port: int) -> None:
    with pytest.raises(NoMapping, match="outside port"):
        granted("11.7.1.2", port, 9337, 3600, "pcp")


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "127.0.0.1", "10.0.0.1", "192.168.0.1", "172.16.0.1", "100.64.0.1", "169.254.0.1", "224.0.0.1", "::1"],
)
def test_an_outside_that_is_not_outside(host: str) -> None:
    with pytest.raises(NoMapping, match=f"no address of the internet itself: its outside is {host}"):
        outside(host)


@pytest.mark.parametrize("host", ["", "router.example", "1.2.3", "1.2.3.4.5", "x" * 10_000])
def test_an_outside_that_is_no_address(host: str) -> None:
    with pytest.raises(NoMapping, match="that is none"):
        granted(host, 1, 9337, 3600, "upnp")
