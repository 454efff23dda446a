"""NAT-PMP: bytes against the figures of RFC 6886, and routers that do not keep to it."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress

import pytest

from meshnode.net import nat_pmp
from meshnode.net.mapping import NoMapping
from meshnode.wire.address import Address
from tests.net.fake_router import router

SHORT = (0.05, 0.05)


def address_answer(host: str = "11.7.1.2", *, result: int = 0, opcode: int = 128, version: int = 0) -> bytes:
    return struct.pack("!BBHI", version, opcode, result, 4711) + socket.inet_aton(host)


def map_answer(
    port: int = 9337, external: int = 40_000, lifetime_s: int = 7200, *, result: int = 0, opcode: int = 129
) -> bytes:
    return struct.pack("!BBHIHHI", 0, opcode, result, 4711, port, external, lifetime_s)


def honest(asked: bytes, host: str = "11.7.1.2", **answer: int) -> Iterable[bytes]:
    return [address_answer(host)] if asked == nat_pmp.address_request() else [map_answer(**answer)]


def test_the_requests_as_the_rfc_draws_them() -> None:
    assert nat_pmp.address_request() == bytes.fromhex("00 00")
    assert nat_pmp.map_request(9337, 40_000, 7200) == bytes.fromhex("00 01 0000 2479 9c40 00001c20")


def test_the_answers() -> None:
    assert nat_pmp.read_address(address_answer()) == "11.7.1.2"
    assert nat_pmp.read_mapping(map_answer(), 9337) == (40_000, 7200)


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        map_answer(),
        address_answer()[:11],
        address_answer() + bytes(20),
        address_answer(opcode=0),
        address_answer(version=2),
    ],
)
def test_what_is_no_answer_to_the_first_question(wrong: bytes) -> None:
    assert nat_pmp.read_address(wrong) is None


@pytest.mark.parametrize(
    "wrong",
    [b"", address_answer(), map_answer()[:15], map_answer() + bytes(30), map_answer(9338), map_answer(opcode=130)],
)
def test_what_is_no_answer_to_the_second(wrong: bytes) -> None:
    assert nat_pmp.read_mapping(wrong, 9337) is None


@pytest.mark.parametrize("code", [*nat_pmp.RESULTS, 6, 65535])
def test_a_refusal_in_words(code: int) -> None:
    with pytest.raises(NoMapping, match=nat_pmp.RESULTS.get(code, f"unknown code {code}")):
        nat_pmp.read_mapping(map_answer(result=code), 9337)


def test_a_refusal_may_be_short() -> None:
    with pytest.raises(NoMapping, match="not allowed"):
        nat_pmp.read_mapping(map_answer(result=2)[:8], 9337)


def test_bytes_that_are_anything() -> None:
    chance = random.Random(1)
    for _ in range(3000):
        data = bytearray(map_answer())
        for _ in range(chance.randrange(1, 5)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        for read in (nat_pmp.read_address, lambda data: nat_pmp.read_mapping(data, 9337)):
            with suppress(NoMapping):
                read(bytes(data[: chance.randrange(17)]))


@pytest.mark.anyio
async def test_mapping_renewing_and_giving_back() -> None:
    async with router(honest) as (gateway, fake):
        first = await nat_pmp.map_port(gateway, 9337)
        again = await nat_pmp.map_port(gateway, 9337, first)
        await nat_pmp.unmap_port(gateway, again)
    assert first == again and first.external == Address("11.7.1.2", 40_000) and first.way == "nat-pmp"
    asked = [struct.unpack_from("!HHI", data, 4) for data in fake.heard if len(data) == 12]
    assert asked == [(9337, 9337, 7200), (9337, 40_000, 7200), (9337, 0, 0)]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("says", "words"),
    [
        (lambda asked: honest(asked, port=1), "does not answer"),
        (lambda asked: honest(asked, opcode=130), "does not answer"),
        (lambda asked: honest(asked, lifetime_s=0), "for 0 s only"),
        (lambda asked: honest(asked, external=0), "outside port"),
        (lambda asked: honest(asked, "0.0.0.0"), "outside is 0.0.0.0"),
        (lambda asked: honest(asked, "100.64.0.9"), "outside is 100.64.0.9"),
        (lambda asked: honest(asked, "127.0.0.1"), "outside is 127.0.0.1"),
        (lambda asked: honest(asked, result=4), "no resources left"),
    ],
)
async def test_a_hostile_router(says: Callable[[bytes], Iterable[bytes]], words: str) -> None:
    async with router(says) as (gateway, _):
        with pytest.raises(NoMapping, match=words):
            await nat_pmp.map_port(gateway, 9337, pauses_s=SHORT)


@pytest.mark.anyio
async def test_nothing_is_mapped_where_it_would_be_of_no_use() -> None:
    """The router's own outside is private: it is not even asked for the port."""
    async with router(lambda asked: honest(asked, "192.168.0.9")) as (gateway, fake):
        with pytest.raises(NoMapping):
            await nat_pmp.map_port(gateway, 9337)
    assert fake.heard == [nat_pmp.address_request()]


@pytest.mark.anyio
async def test_a_life_without_end_is_not_believed() -> None:
    async with router(lambda asked: honest(asked, lifetime_s=(1 << 32) - 1)) as (gateway, _):
        assert (await nat_pmp.map_port(gateway, 9337)).lifetime_s == 7200
