"""What is made of DNS records that anybody may have sent: no sockets here."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.discovery.services import (
    MAX_NEIGHBOURS,
    TEXT_BYTES,
    Neighbourhood,
    Text,
    day_of,
    lan_hosts,
    mesh_tag,
    new_instance,
    tags_around,
)
from meshnode.wire.address import Address
from meshnode.wire.registry import LIMIT_ADDRESSES

MESH = bytes(range(32))
DAY = 20_000
HOST = b"\x0a\0\0\7"


def name(number: int) -> str:
    """Of a service."""
    return f"mn-{number:08}".translate(str.maketrans("0189", "abcd"))


def appear(around: Neighbourhood, number: int, text: Text, *, port: int = 9, host: bytes = HOST) -> str:
    """All records of one service."""
    instance = name(number)
    around.pointed(instance)
    around.served(instance, port)
    around.said(instance, text.encode())
    around.lives(instance, host)
    return instance


# --- tags ---------------------------------------------------------------------------------------------------------


def test_days_are_those_of_utc() -> None:
    assert [day_of(each) for each in (0.0, 86_399.9, 86_400.0, 1_795_000_000.5)] == [0, 0, 1, 20775]


def test_the_tag_is_that_of_another_implementation() -> None:
    """`openssl dgst -blake2s256` over the 32 bytes of the key and 00004e20."""
    assert mesh_tag(MESH, DAY) == "cfe144c94569fa6a"


def test_tags_of_two_days_and_of_two_meshes_differ() -> None:
    tags = {mesh_tag(mesh, day) for mesh in (MESH, MESH[::-1]) for day in range(DAY, DAY + 50)}
    assert len(tags) == 100


def test_a_member_is_known_on_both_sides_of_midnight() -> None:
    around = tags_around(MESH, DAY)
    assert [mesh_tag(MESH, day) in around for day in range(DAY - 2, DAY + 3)] == [False, True, True, True, False]
    assert tags_around(None, DAY) == frozenset()


def test_names_are_random_and_of_the_form_that_readers_take() -> None:
    draw = random.Random(1).randrange
    names = {new_instance(draw) for _ in range(500)}
    assert len(names) == 500
    around = Neighbourhood("")
    assert all(around.pointed(each) for each in names)
    assert {letter for each in names for letter in each[3:]} == set("abcdefghijklmnopqrstuvwxyz234567")


# --- hosts --------------------------------------------------------------------------------------------------------

EVERYWHERE = [
    "127.0.0.1",
    "::1",
    "8.8.4.4",
    "192.168.1.5",
    "10.1.2.3",
    "172.16.0.1",
    "172.32.0.1",
    "100.64.0.1",
    "169.254.3.4",
    "fe80::1",
    "fd12::3",
    "2a00::1",
    "0.0.0.0",
    "224.0.0.251",
    "not an address",
    "10.1.2.3",
]


@pytest.mark.parametrize(
    ("setting", "hosts", "used"),
    [
        ("off", EVERYWHERE, ()),
        ("auto", EVERYWHERE, ("192.168.1.5", "10.1.2.3", "172.16.0.1", "fd12::3")),
        (
            "on",
            EVERYWHERE,
            ("8.8.4.4", "192.168.1.5", "10.1.2.3", "172.16.0.1", "172.32.0.1", "100.64.0.1", "fd12::3", "2a00::1"),
        ),
        ("auto", ["127.0.0.1"], ()),
        ("on", ["127.0.0.1"], ("127.0.0.1",)),
        ("on", ["127.0.0.1", "::1"], ("127.0.0.1",)),
        ("on", ["::1"], ()),
        ("on", ["127.0.0.1", "fe80::1"], ()),
        ("on", ["127.0.0.1", "10.0.0.1"], ("10.0.0.1",)),
        ("on", [], ()),
    ],
)
def test_where_to_announce(setting: str, hosts: list[str], used: tuple[str, ...]) -> None:
    assert lan_hosts(hosts, setting=setting) == used


def test_no_more_hosts_than_a_node_may_name() -> None:
    assert len(lan_hosts([f"10.0.0.{last}" for last in range(1, 60)], setting="auto")) == LIMIT_ADDRESSES


def test_a_setting_that_is_none() -> None:
    with pytest.raises(ValueError, match="yes"):
        lan_hosts([], setting="yes")


# --- the text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "data"),
    [
        (Text(), b"\3v=1"),
        (Text(shows_code=True), b"\3v=1\3s=1"),
        (Text("0123456789abcdef"), b"\3v=1\x12g=0123456789abcdef"),
        (Text("0123456789abcdef", True), b"\3v=1\x12g=0123456789abcdef\3s=1"),
    ],
)
def test_texts(text: Text, data: bytes) -> None:
    assert text.encode() == data
    assert Text.decode(data) == text


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\3s=1\3v=1", Text(shows_code=True)),
        (b"\3V=1\3S=1", Text(shows_code=True)),
        (b"\3v=1\3s=0\3s=1", Text()),
        (b"\3v=1\1s", Text()),
        (b"\3v=1\2s=", Text()),
        (b"\3v=1\4s=11", Text()),
        (b"\3v=1\0\2=x\5new=1", Text()),
        (b"\3v=1\x03g=1", Text()),
        (b"\3v=1\x12g=0123456789ABCDEF", Text()),
        (b"\3v=1\x12g=\xff\xfe\xfd\xfc0123456789ab", Text()),
        (b"\3v=1\x13g=0123456789abcdef\n", Text()),
        (b"\3v=1" + b"\0" * (TEXT_BYTES - 4), Text()),
        (b"\3v=1" + b"\0" * (TEXT_BYTES - 3), None),
        (b"", None),
        (b"\3s=1", None),
        (b"\3v=2", None),
        (b"\1v", None),
        (b"\4v=01", None),
        (b"\3v=1\3s=", None),
        (b"\3v=1\xff", None),
    ],
)
def test_odd_texts(data: bytes, text: Text | None) -> None:
    assert Text.decode(data) == text


@given(st.binary(max_size=120))
def test_any_text_is_read_or_passed_over(data: bytes) -> None:
    text = Text.decode(data)
    assert text is None or Text.decode(text.encode()) == text


# --- services -----------------------------------------------------------------------------------------------------


def test_a_service_is_a_neighbour_when_all_is_known() -> None:
    around = Neighbourhood("")
    around.tags = tags_around(MESH, DAY)
    instance = name(1)
    assert around.pointed(instance) and around.neighbours == ()
    assert around.said(instance, Text(mesh_tag(MESH, DAY)).encode()) and around.neighbours == ()
    assert around.lives(instance, HOST) and around.neighbours == ()
    assert around.served(instance, 9337)
    (found,) = around.neighbours
    assert (found.instance, found.addresses) == (instance, (Address("10.0.0.7", 9337),))
    assert found.ours and not found.shows_code


def test_what_is_known_is_nothing_new() -> None:
    around = Neighbourhood("")
    instance = appear(around, 1, Text())
    assert not around.pointed(instance)
    assert not around.served(instance, 9)
    assert not around.said(instance, Text().encode())
    assert not around.lives(instance, HOST)
    assert around.left(instance) and not around.left(instance)
    assert around.neighbours == ()


def test_only_the_own_mesh_is_ours() -> None:
    around = Neighbourhood("")
    appear(around, 1, Text(mesh_tag(MESH, DAY + 1)))
    appear(around, 2, Text(mesh_tag(MESH, DAY + 2)))
    appear(around, 3, Text(mesh_tag(MESH[::-1], DAY)))
    appear(around, 4, Text())
    assert [each.ours for each in around.neighbours] == [False] * 4
    around.tags = tags_around(MESH, DAY)
    assert [each.ours for each in around.neighbours] == [True, False, False, False]


def test_a_text_that_cannot_be_read_takes_the_service_away_until_one_can() -> None:
    around = Neighbourhood("")
    instance = appear(around, 1, Text())
    assert around.said(instance, b"\3v=2") and around.neighbours == ()
    assert around.said(instance, Text(shows_code=True).encode()) and around.neighbours[0].shows_code


def test_the_own_records_and_odd_names_are_passed_over() -> None:
    around = Neighbourhood(name(1))
    odd = [
        "",
        "mn-",
        "mn-abcdefg",
        "mn-abcdefgh2",
        "MN-ABCDEFGH",
        "mn-abcdefg1",
        "mn-abcdefgh\n",
        "mn-ａbcdefgh",
        "x" * 500,
    ]
    assert not any(map(around.pointed, [name(1), *odd]))
    assert not around.served(name(2), 9)
    assert not around.said(name(2), Text().encode())
    assert not around.lives(name(2), HOST)


@pytest.mark.parametrize(
    "host",
    [
        b"",
        b"\0\0\0\0",
        b"\x7f\0\0\1",
        b"\xa9\xfe\1\1",
        b"\xe0\0\0\xfb",
        b"\xff\xff\xff\xff",
        b"\x0a\0\0",
        bytes(16),
        bytes(15) + b"\1",
        b"\xfe\x80" + bytes(13) + b"\1",
        b"\xff\2" + bytes(13) + b"\xfb",
        bytes(10) + b"\xff\xff\x0a\0\0\1",
        bytes(17),
    ],
)
def test_addresses_that_nobody_should_dial(host: bytes) -> None:
    around = Neighbourhood("")
    around.pointed(name(1))
    assert not around.lives(name(1), host)


def test_loopback_addresses_for_a_node_that_is_bound_to_one() -> None:
    around = Neighbourhood("", loopback=True)
    appear(around, 1, Text(), host=b"\x7f\0\0\1")
    assert around.neighbours[0].addresses == (Address("127.0.0.1", 9),)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_ports_that_are_none(port: int) -> None:
    around = Neighbourhood("")
    appear(around, 1, Text(), port=port)
    assert around.neighbours == ()


def test_the_number_of_addresses_is_bounded() -> None:
    around = Neighbourhood("")
    instance = appear(around, 1, Text())
    assert sum(around.lives(instance, bytes([10, 1, 0, last])) for last in range(200)) == LIMIT_ADDRESSES - 1
    assert len(around.neighbours[0].addresses) == LIMIT_ADDRESSES


def test_a_flood_displaces_only_what_is_of_no_use() -> None:
    around = Neighbourhood("")
    around.tags = tags_around(MESH, DAY)
    ours = appear(around, 0, Text(mesh_tag(MESH, DAY)))
    code = appear(around, 1, Text(shows_code=True))
    for number in range(2, 2000):
        appear(around, number, Text())
    found = [each.instance for each in around.neighbours]
    assert len(found) == MAX_NEIGHBOURS
    assert found[:2] == [ours, code]
    assert found[2:] == [name(number) for number in range(2000 - MAX_NEIGHBOURS + 2, 2000)]


def test_where_all_are_of_use_nobody_else_is_taken() -> None:
    around = Neighbourhood("")
    for number in range(MAX_NEIGHBOURS):
        appear(around, number, Text(shows_code=True))
    before = around.neighbours
    appear(around, MAX_NEIGHBOURS, Text(shows_code=True))
    assert around.neighbours == before
    around.left(name(5))
    appear(around, MAX_NEIGHBOURS, Text(shows_code=True))
    assert around.neighbours[-1].instance == name(MAX_NEIGHBOURS)
