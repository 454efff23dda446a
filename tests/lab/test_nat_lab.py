"""The NAT laboratory itself, with plain UDP: each router maps and filters as the name of its type says."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Self

import pytest

from tests.e2e.waiting import eventually
from tests.lab.namespaces import MOUNTED
from tests.lab.nat_lab import CARRIER, TYPES, NatLab, why_no_mapping, why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

SILENCE_S = 0.05
LIMIT_S = 2.0
KINDS = (*TYPES, CARRIER)
CONSTANT = {"open", "full", "port_restricted", "masquerade", CARRIER}
"""Endpoint-independent mapping."""
UNFILTERED = {"open", "full"}
"""Endpoint-independent filtering."""
KEEPS_PORTS = {"open", "masquerade"}


class Ends:
    """UDP sockets on the hosts of a lab, closed at the end."""

    def __init__(self, lab: NatLab) -> None:
        self.lab = lab
        self._stack = ExitStack()

    def open(self, site: str, port: int = 0) -> socket.socket:
        with self.lab.inside(site):
            opened = self._stack.enter_context(closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)))
        opened.bind((self.lab.host_address(site), port))
        return opened

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


@pytest.fixture(scope="module")
def lab() -> Iterator[NatLab]:
    """Two open sites and two of each kind."""
    sites = {"near": "open", "far": "open"} | {f"{kind}{number}": kind for kind in KINDS for number in (1, 2)}
    with NatLab(sites) as built:
        yield built


@pytest.fixture
def ends(lab: NatLab) -> Iterator[Ends]:
    with Ends(lab) as found:
        yield found
    lab.lose(0)
    lab.split()


def heard(listener: socket.socket, within_s: float = LIMIT_S) -> tuple[bytes, tuple[str, int]] | None:
    """The next datagram and where it came from; None when none comes."""
    listener.settimeout(within_s)
    try:
        data, (host, port) = listener.recvfrom(2000)
    except TimeoutError:
        return None
    return data, (host, port)


def silent(listener: socket.socket) -> bool:
    """Whether nothing comes for a while."""
    return heard(listener, SILENCE_S) is None


def seen_at(listener: socket.socket, speaker: socket.socket) -> tuple[str, int]:
    """Where `listener` sees what `speaker` sends."""
    speaker.sendto(b"?", listener.getsockname())
    found = heard(listener)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("kind", KINDS)
def test_mapping(kind: str, lab: NatLab, ends: Ends) -> None:
    inside = ends.open(f"{kind}1")
    listeners = [ends.open("near"), ends.open("near"), ends.open("far")]
    found = [seen_at(listener, inside) for listener in listeners]
    assert {host for host, _ in found} == {lab.address(f"{kind}1")}
    assert len(set(found)) == (1 if kind in CONSTANT else 3)
    assert [seen_at(listener, inside) for listener in listeners] == found, "a mapping lasts"
    if kind in KEEPS_PORTS:
        assert found[0][1] == inside.getsockname()[1]
    else:
        assert found[0][1] != inside.getsockname()[1]


@pytest.mark.parametrize("kind", KINDS)
def test_filtering(kind: str, ends: Ends) -> None:
    inside, near, same_host, far = ends.open(f"{kind}1"), ends.open("near"), ends.open("near"), ends.open("far")
    mapped = seen_at(near, inside)
    near.sendto(b"an answer", mapped)
    assert heard(inside) == (b"an answer", near.getsockname())
    for stranger in (same_host, far):
        stranger.sendto(b"hello", mapped)
        if kind in UNFILTERED:
            assert heard(inside) == (b"hello", stranger.getsockname())
        else:
            assert silent(inside)


@pytest.mark.parametrize("kind", KINDS)
def test_sockets_of_one_host_are_told_apart(kind: str, ends: Ends) -> None:
    near = ends.open("near")
    inside = [ends.open(f"{kind}1") for _ in range(5)]
    places = [seen_at(near, one) for one in inside]
    assert len(set(places)) == 5
    for one, place in zip(inside, places, strict=True):
        near.sendto(repr(place).encode(), place)
        assert heard(one) == (repr(place).encode(), near.getsockname())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "open"])
def test_what_comes_unasked_is_dropped_and_occupies_nothing(kind: str, lab: NatLab, ends: Ends) -> None:
    """A datagram to the router's own address would take its port in the connection table, were it let in."""
    inside, near, far = ends.open(f"{kind}1"), ends.open("near"), ends.open("far")
    guessed = inside.getsockname()[1]
    for port in (guessed, guessed + 1, 20_000):
        near.sendto(b"early", (lab.address(f"{kind}1"), port))
    assert silent(inside)
    near_sees, far_sees = seen_at(near, inside), seen_at(far, inside)
    if kind in CONSTANT:
        assert near_sees == far_sees
    if kind in KEEPS_PORTS:
        assert near_sees[1] == guessed


@pytest.mark.parametrize("one", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_which_pairs_a_single_exchange_of_punches_opens(one: str, other: str, ends: Ends) -> None:
    """Each sends twice to where a third host saw the other. Nobody else knows the port that a symmetric router takes
    for a new destination: only who lets all in hears that side.
    """
    third = ends.open("far")
    first, second = ends.open(f"{one}1"), ends.open(f"{other}2")
    places = seen_at(third, first), seen_at(third, second)
    for _ in range(2):
        first.sendto(b"one", places[1])
        second.sendto(b"other", places[0])
    opens = "symmetric" not in (one, other) or bool({one, other} & UNFILTERED)
    assert any([heard(listener, SILENCE_S) for listener in (first, second)]) == opens


def test_tcp_goes_out_and_not_in(lab: NatLab) -> None:
    with lab.inside("far"), closing(socket.create_server((lab.host_address("far"), 80))) as server:
        for kind in KINDS:
            with lab.inside(f"{kind}1"), closing(socket.create_connection(server.getsockname(), timeout=2)):
                accepted, (host, _) = server.accept()
                accepted.close()
                assert host == lab.address(f"{kind}1")
    with lab.inside("symmetric1"):
        hidden = socket.create_server(("", 80))
    with closing(hidden), lab.inside("near"), pytest.raises(TimeoutError):
        socket.create_connection((lab.address("symmetric1"), 80), timeout=SILENCE_S)


def test_a_share_of_all_packets_is_lost(lab: NatLab, ends: Ends) -> None:
    inside, near = ends.open("full1"), ends.open("near")
    lab.lose(30)
    for _ in range(300):
        inside.sendto(b"?", near.getsockname())
    assert 160 <= sum(1 for _ in iter(lambda: heard(near, SILENCE_S), None)) <= 255
    lab.lose(0)
    assert all(seen_at(near, inside) for _ in range(100))


def test_a_split_is_silent_and_heals(lab: NatLab, ends: Ends) -> None:
    inside, near, far = ends.open("masquerade1"), ends.open("near"), ends.open("far")
    seen_at(near, inside)
    lab.split({"masquerade1", "far"})
    inside.sendto(b"?", near.getsockname())
    assert silent(near)
    assert seen_at(far, inside)
    lab.split()
    assert seen_at(near, inside)


@pytest.mark.parametrize("kind", ["open", "full", "symmetric", CARRIER])
def test_another_public_address(kind: str) -> None:
    with NatLab({"a": kind, "near": "open"}) as lab, Ends(lab) as ends:
        inside, near = ends.open("a"), ends.open("near")
        before = seen_at(near, inside)
        lab.renumber("a")
        if kind == "open":
            inside = ends.open("a")
        after = seen_at(near, inside)
        assert after[0] == lab.address("a") != before[0]
        near.sendto(b"back", after)
        assert heard(inside) == (b"back", near.getsockname())
        near.sendto(b"to the former place", before)
        assert silent(inside)


@pytest.mark.skipif(bool(why_no_mapping()), reason=why_no_mapping())
def test_a_router_that_maps_ports(tmp_path: Path) -> None:
    """By NAT-PMP (RFC 6886, 3.3), spelt out: a datagram of a stranger then reaches the host behind the NAT."""
    with NatLab({"a": "symmetric", "near": "open"}) as lab, lab.mapping("a", tmp_path), Ends(lab) as ends:
        inside, near, asking = ends.open("a", 9337), ends.open("near"), ends.open("a")
        answers: list[bytes] = []

        def answered() -> bool:
            asking.sendto(struct.pack("!BBHHHI", 0, 1, 0, 9337, 40_000, 60), (lab.gateway("a"), 5351))
            with suppress(TimeoutError, ConnectionRefusedError):
                asking.settimeout(SILENCE_S)
                answers.append(asking.recv(100))
            return bool(answers)

        eventually(answered, within_s=10)
        version, code, result, _, private, public, lifetime = struct.unpack("!BBHIHHI", answers[0])
        assert (version, code, result, private, public, lifetime) == (0, 129, 0, 9337, 40_000, 60)
        near.sendto(b"hello", (lab.address("a"), 40_000))
        assert heard(inside) == (b"hello", near.getsockname())


def test_it_is_up_in_no_time() -> None:
    begun = time.monotonic()
    with NatLab({"a": "symmetric", "b": CARRIER, "relay": "open"}, loss=10):
        assert time.monotonic() - begun < 1


def test_links_are_up_at_once() -> None:
    """Nodes look at that when they start."""
    with NatLab({"a": "symmetric", "b": CARRIER, "c": "open"}) as lab:
        for host in ("a", "b", "c", lab.router("a"), lab.router("b")):
            command = ["ip", "-netns", lab.namespace(host), "-json", "link"]
            links = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            assert {link["operstate"] for link in links} == {"UP", "UNKNOWN"}, "that of lo is unknown"


def test_words_for_what_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="types open, full, port_restricted, masquerade, symmetric"):
        NatLab({"a": "magic"})


def test_nothing_is_left_behind() -> None:
    with NatLab({"x": CARRIER}) as lab:
        spaces = [lab.namespace(name) for name in ("x", "x.router", "x.carrier", "internet")]
        assert all((MOUNTED / space).exists() for space in spaces)
    assert not any((MOUNTED / space).exists() for space in spaces)
