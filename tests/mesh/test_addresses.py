import ipaddress

import psutil
import pytest

from meshnode.mesh.addresses import MOST_OUTSIDE, OBSERVERS, Observed, advertised, interface_hosts
from meshnode.net.nat import Observation
from meshnode.wire.address import Address
from meshnode.wire.registry import LIMIT_ADDRESSES

EVERY = Address("::", 5)


def texts(*arguments: object) -> list[str]:
    return [str(address) for address in advertised(*arguments)]  # type: ignore[arg-type]


def test_a_node_bound_to_one_address_names_that_one() -> None:
    assert texts(Address("127.0.0.1", 5), ["192.0.2.1"]) == ["127.0.0.1:5"]
    assert texts(Address("192.0.2.7", 5), ["192.0.2.1"], [Address("198.51.100.1", 77)]) == [
        "192.0.2.7:5",
        "198.51.100.1:77",
    ]


def test_every_usable_address_is_named_private_ones_first() -> None:
    hosts = ["127.0.0.1", "::1", "fe80::1", "8.8.8.8", "2001:db8::5", "192.168.1.7", "224.0.0.1", "0.0.0.0", "no", ""]
    assert texts(EVERY, hosts) == ["192.168.1.7:5", "8.8.8.8:5", "[2001:db8::5]:5"]
    assert texts(Address("0.0.0.0", 5), hosts) == ["192.168.1.7:5", "8.8.8.8:5"]


def test_a_machine_without_a_network_has_loopback() -> None:
    assert texts(EVERY, ["127.0.0.1", "::1", "fe80::1"]) == ["127.0.0.1:5"]


def test_what_peers_see_has_its_place_among_many() -> None:
    hosts = [f"10.0.0.{number}" for number in range(1, 30)]
    seen = Address("198.51.100.1", 77)
    named = texts(EVERY, hosts, [seen])
    assert len(named) == LIMIT_ADDRESSES
    assert str(seen) in named
    assert texts(EVERY, ["10.0.0.1"], [Address("10.0.0.1", 5)]) == ["10.0.0.1:5"]


def test_what_the_outside_knows_does_not_push_out_the_local_network() -> None:
    seen = [Address(f"198.51.100.{number}", 7) for number in range(20)]
    named = texts(EVERY, ["192.168.1.7", "8.8.8.8"], seen)
    assert named[:2] == ["192.168.1.7:5", "8.8.8.8:5"] and len(named) == 2 + MOST_OUTSIDE


A, B = Address("192.0.2.1", 9), Address("192.0.2.2", 9)
"""Where two peers are."""


def test_two_hosts_must_agree_on_what_they_see() -> None:
    observed = Observed()
    here, elsewhere = Address("198.51.100.1", 5), Address("203.0.113.1", 5)
    observed.note(b"a", here, A)
    observed.note(b"a", here, A)
    observed.note(b"b", elsewhere, B)
    assert observed.agreed() == ()
    observed.note(b"c", here, Address(A.host, 10))
    assert observed.agreed() == (), "as many identities of one host as it likes have one voice"
    observed.note(b"b", here, B)
    assert observed.agreed() == (here,)
    for number, peer in enumerate((b"c", b"d")):
        observed.note(peer, Address("127.0.0.1", 5), Address(f"127.0.0.{number}", 9))
    assert observed.agreed() == (here,)
    for number in range(OBSERVERS):
        observed.note(bytes((number,)), Address("127.0.0.1", 5), A)
    assert observed.agreed() == ()


def test_what_some_peers_see() -> None:
    observed = Observed()
    here, there = Address("198.51.100.1", 5), Address("198.51.100.1", 6)
    observed.note(b"a", here, A)
    observed.note(b"b", here, B)
    observed.note(b"a", there, A)
    assert observed.of({b"a"}) == [Observation(A, there)]
    assert observed.of({b"a", b"b", b"c"}) == [Observation(B, here), Observation(A, there)]


def test_the_interfaces_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(ipaddress.ip_address(host) for host in interface_hosts())
    loopback = psutil.net_if_addrs()
    name = next(iter(loopback))
    entries = loopback[name]
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"docker0": entries, "eth0": entries, "down0": entries})
    state = psutil.net_if_stats()[name]
    monkeypatch.setattr(psutil, "net_if_stats", lambda: {"eth0": state, "down0": state._replace(isup=False)})
    assert len(interface_hosts()) == 2 * len([entry for entry in entries if entry.family.name.startswith("AF_INET")])
