import socket

from meshnode.net.address import Address, for_socket, from_socket


def test_ipv4_on_a_dual_stack_socket() -> None:
    address = Address("1.2.3.4", 5)
    assert for_socket(address, socket.AF_INET6) == ("::ffff:1.2.3.4", 5, 0, 0)
    assert for_socket(address, socket.AF_INET) == ("1.2.3.4", 5)
    assert from_socket(("::ffff:1.2.3.4", 5, 0, 0)) == address
    assert from_socket(("1.2.3.4", 5)) == address


def test_ipv6_needs_its_own_socket() -> None:
    address = Address("2001:db8::1", 5)
    assert for_socket(address, socket.AF_INET6) == ("2001:db8::1", 5, 0, 0)
    assert for_socket(address, socket.AF_INET) is None
    assert from_socket(("fe80::1%eth0", 5, 0, 2)) == Address("fe80::1", 5)
