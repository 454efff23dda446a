"""Addresses as text, as bytes, and what no peer can make us dial."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.wire.address import Address
from tests.wire.samples import STEADY, addresses, cases


@cases("addresses", "valid")
def test_valid(case: dict[str, Any]) -> None:
    address = Address.from_bytes(bytes.fromhex(case["hex"]))
    assert str(address) == case["text"]
    assert address.to_bytes().hex() == case["hex"]
    assert Address.parse(case["text"]) == address


@cases("addresses", "invalid")
def test_invalid(case: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Address.from_bytes(bytes.fromhex(case["hex"]))


@STEADY
@given(addresses())
def test_an_address_comes_back(address: Address) -> None:
    assert Address.from_bytes(address.to_bytes()) == address == Address.parse(str(address))


@STEADY
@given(st.binary(max_size=20))
def test_any_bytes_are_an_address_or_refused(data: bytes) -> None:
    try:
        address = Address.from_bytes(data)
    except ValueError:
        return
    assert address.to_bytes() == data


@STEADY
@given(st.text(max_size=30) | st.text("0123456789.:[]%fe", max_size=30))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        address = Address.parse(text)
    except ValueError:
        return
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "192.0.2.1",
        "192.0.2.1:",
        "192.0.2.1:0",
        "192.0.2.1:65536",
        "192.0.2.1:-1",
        "192.0.2.1:+1",
        "192.0.2.1:٣",
        "192.0.2.1:" + "9" * 5000,
        "192.0.2.01:1",
        "192.0.2:1",
        " 192.0.2.1:1",
        "localhost:1",
        "example.org:443",
        "::1:1",
        "[::1]",
        "[::1]1",
        "[192.0.2.1]:1",
        "[fe80::1%eth0]:1",
        "192.0.2.1%eth0:1",
        "[::1:1",
        "::1]:1",
        "http://192.0.2.1:1",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError):
        Address.parse(text)


def test_what_a_socket_reports() -> None:
    assert str(Address.of("::ffff:192.0.2.1", 5)) == "192.0.2.1:5"
    assert str(Address.of("fe80::1%eth0", 5)) == "[fe80::1]:5"
    assert str(Address.of("2001:DB8:0:0::1", 5)) == "[2001:db8::1]:5"
    with pytest.raises(ValueError):
        Address.of("192.0.2.1%x", 5)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255"])
def test_an_address_to_bind_to_is_not_sent(host: str) -> None:
    address = Address.of(host, 9337)
    with pytest.raises(ValueError, match="no address of a node"):
        address.to_bytes()


@pytest.mark.parametrize("port", [0, -1, 1 << 16])
def test_a_port_that_is_none_is_not_sent(port: int) -> None:
    with pytest.raises(ValueError):
        Address.of("192.0.2.1", port).to_bytes()


def test_what_kind_it_is() -> None:
    assert Address.parse("127.0.0.1:1").is_loopback
    assert Address.parse("[::1]:1").is_loopback
    assert not Address.parse("10.0.0.1:1").is_loopback
    assert Address.parse("10.0.0.1:1").is_private
    assert not Address.parse("1.1.1.1:1").is_private
    assert Address.parse("[2001:db8::1]:1").is_ipv6
    assert not Address.parse("10.0.0.1:1").is_ipv6
