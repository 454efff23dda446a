"""PCP: bytes against the figures of RFC 6887, and routers that do not keep to it."""

from __future__ import annotations

import ipaddress
import random
import struct
from collections.abc import Callable
from contextlib import suppress

import pytest

from meshnode.net import pcp
from meshnode.net.mapping import NoMapping
from meshnode.wire.address import Address
from tests.net.fake_router import router

NONCE = bytes(range(12))
V4 = b"\0" * 10 + b"\xff\xff"
SHORT = (0.05, 0.05)


def answer(
    asked: bytes,
    *,
    nonce: bytes | None = None,
    opcode: int = 0x81,
    version: int = 2,
    result: int = 0,
    lifetime_s: int = 7200,
    protocol: int = 17,
    internal: int | None = None,
    external: int = 40_000,
    host: str = "11.7.1.2",
) -> bytes:
    """What a router says to that MAP request."""
    packed = ipaddress.ip_address(host).packed
    head = struct.pack("!BBBBII12x", version, opcode, 0, result, lifetime_s, 4711)
    port = struct.unpack_from("!H", asked, 40)[0] if internal is None else internal
    body = (nonce or asked[24:36]) + struct.pack("!B3xHH", protocol, port, external)
    return head + body + (packed if len(packed) == 16 else V4 + packed)


def test_the_request_as_the_rfc_draws_it() -> None:
    assert pcp.request(NONCE, "10.0.1.2", 9337, 7200) == bytes.fromhex(
        "02 01 0000 00001c20"  # version, opcode, reserved, lifetime
        "00000000000000000000ffff 0a000102"  # this host
        "000102030405060708090a0b 11 000000 2479 2479"  # nonce, UDP, internal port, suggested outside port
        "00000000000000000000ffff 00000000"  # any outside address
    )
    renewed = pcp.request(NONCE, "10.0.1.2", 9337, 7200, Address("11.7.1.2", 40_000))
    assert renewed[42:] == struct.pack("!H", 40_000) + V4 + bytes([11, 7, 1, 2])


def test_the_answer() -> None:
    asked = pcp.request(NONCE, "10.0.1.2", 9337, 7200)
    assert pcp.read(answer(asked), NONCE, 9337) == (Address("11.7.1.2", 40_000), 7200)
    assert pcp.read(answer(asked) + bytes(20), NONCE, 9337) is not None, "options may follow"


@pytest.mark.parametrize(
    "wrong",
    [
        {"nonce": bytes(12)},
        {"opcode": 0x01},
        {"opcode": 0x82},
        {"version": 1},
        {"protocol": 6},
        {"internal": 9338},
        {"nonce": bytes(12), "result": 2},
    ],
)
def test_an_answer_to_another_question(wrong: dict[str, int | bytes]) -> None:
    asked = pcp.request(NONCE, "10.0.1.2", 9337, 7200)
    assert pcp.read(answer(asked, **wrong), NONCE, 9337) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("code", [*pcp.RESULTS, 14, 255])
def test_a_refusal_in_words(code: int) -> None:
    asked = pcp.request(NONCE, "10.0.1.2", 9337, 7200)
    with pytest.raises(NoMapping, match=pcp.RESULTS.get(code, f"unknown code {code}")) as refusal:
        pcp.read(answer(asked, result=code), NONCE, 9337)
    assert refusal.value.answered == (code != 1)


def test_a_router_that_speaks_nat_pmp_only() -> None:
    with pytest.raises(NoMapping, match="NAT-PMP only") as refusal:
        pcp.read(bytes.fromhex("00 81 0001 00000000"), NONCE, 9337)
    assert not refusal.value.answered


def test_bytes_that_are_anything() -> None:
    """Cut anywhere, or changed anywhere: never another exception, and never another port's answer."""
    good = answer(pcp.request(NONCE, "10.0.1.2", 9337, 7200))
    chance = random.Random(1)
    for size in range(len(good)):
        assert pcp.read(good[:size], NONCE, 9337) is None
    assert pcp.read(good + bytes(1100), NONCE, 9337) is None
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(chance.randrange(1, 5)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        with suppress(NoMapping):
            pcp.read(bytes(data), NONCE, 9337)


@pytest.mark.anyio
async def test_mapping_renewing_and_giving_back() -> None:
    async with router(lambda asked: [answer(asked, nonce=bytes(12)), answer(asked)]) as (gateway, fake):
        first = await pcp.map_port(gateway, 9337)
        again = await pcp.map_port(gateway, 9337, first)
        await pcp.unmap_port(gateway, again)
    assert first == again and first.external == Address("11.7.1.2", 40_000) and first.way == "pcp"
    assert {asked[24:36] for asked in fake.heard} == {first.secret}
    assert [struct.unpack_from("!I", asked, 4)[0] for asked in fake.heard] == [7200, 7200, 0]
    assert fake.heard[1][42:44] == struct.pack("!H", 40_000), "the same outside port is wished for"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("says", "words"),
    [
        (lambda asked: answer(asked, nonce=bytes(12)), "does not answer"),
        (lambda asked: answer(asked, opcode=0x82), "does not answer"),
        (lambda asked: answer(asked, lifetime_s=0), "for 0 s only"),
        (lambda asked: answer(asked, external=0), "outside port"),
        (lambda asked: answer(asked, host="0.0.0.0"), "outside is 0.0.0.0"),
        (lambda asked: answer(asked, host="192.168.0.1"), "outside is 192.168.0.1"),
        (lambda asked: answer(asked, host="127.0.0.1"), "outside is 127.0.0.1"),
        (lambda asked: answer(asked, host="::"), "outside is ::"),
        (lambda asked: answer(asked, result=8), "no resources left"),
    ],
)
async def test_a_hostile_router(says: Callable[[bytes], bytes], words: str) -> None:
    async with router(lambda asked: [says(asked)]) as (gateway, _):
        with pytest.raises(NoMapping, match=words):
            await pcp.map_port(gateway, 9337, pauses_s=SHORT)


@pytest.mark.anyio
async def test_a_life_without_end_is_not_believed() -> None:
    async with router(lambda asked: [answer(asked, lifetime_s=(1 << 32) - 1)]) as (gateway, _):
        assert (await pcp.map_port(gateway, 9337)).lifetime_s == 7200


@pytest.mark.anyio
async def test_what_is_of_no_use_is_given_back() -> None:
    async with router(lambda asked: [answer(asked, host="10.9.9.9")]) as (gateway, fake):
        with pytest.raises(NoMapping):
            await pcp.map_port(gateway, 9337, pauses_s=SHORT)
    assert [struct.unpack_from("!I", asked, 4)[0] for asked in fake.heard] == [7200, 0]
