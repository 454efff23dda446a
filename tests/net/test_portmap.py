"""The keeper of one mapped port: with ways that the test makes up, and with a real router in a namespace."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from meshnode.net import portmap
from meshnode.net.gateway import Gateway
from meshnode.net.mapping import Mapping, NoMapping
from meshnode.net.portmap import MapperOptions, PortMapper, Way
from meshnode.wire.address import Address
from tests.lab.nat_lab import NatLab, why_no_mapping, why_not

HOME = Gateway("192.168.1.1", "192.168.1.7")
OUTSIDE = Address("11.7.1.2", 40_000)
QUICK = MapperOptions(look_s=0.01, retry_s=0.05, shortest_s=0.01)


class Router:
    """One way of asking; it grants what the test says, for as long as it says."""

    def __init__(self, name: str = "way", *, lifetime_s: float = 1000.0) -> None:
        self.grant = Mapping(OUTSIDE, 9337, lifetime_s, name)
        self.refusal: NoMapping | None = None
        self.asked: list[Mapping | None] = []
        self.given_back: list[Mapping] = []
        self.stalls = False
        self.way = Way(name, self.map_port, self.unmap_port)

    async def map_port(self, gateway: Gateway, port: int, before: Mapping | None) -> Mapping:
        self.asked.append(before)
        if self.stalls:
            await asyncio.Event().wait()
        if self.refusal is not None:
            raise self.refusal
        return replace(self.grant, port=port)

    async def unmap_port(self, gateway: Gateway, mapping: Mapping) -> None:
        self.given_back.append(mapping)
        if self.stalls:
            await asyncio.Event().wait()


class Bench:
    """A mapper and what it tells."""

    def __init__(self, *routers: Router, gateway: Gateway | None = HOME) -> None:
        self.gateway = gateway
        self.told: list[str] = []
        self.mapper = PortMapper(
            changed=lambda: self.told.append(self.mapper.facts["state"]),
            find=lambda: self.gateway,
            ways=tuple(router.way for router in routers),
            options=QUICK,
        )

    async def started(self) -> PortMapper:
        await self.mapper.start(9337)
        async with asyncio.timeout(5):
            await self.mapper.settled()
        return self.mapper


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


pytestmark = pytest.mark.anyio


async def test_the_first_way_that_grants_it_is_kept() -> None:
    first, second, third = Router("pcp"), Router("nat-pmp"), Router("upnp")
    first.refusal = NoMapping("silence", answered=False)
    bench = Bench(first, second, third)
    mapper = await bench.started()
    assert mapper.mapped == (OUTSIDE,)
    assert mapper.facts == {
        "state": "mapped",
        "sentence": "the router forwards 11.7.1.2:40000 to this machine (nat-pmp)",
        "way": "nat-pmp",
        "external": "11.7.1.2:40000",
        "router": "192.168.1.1",
    }
    await mapper.close()
    assert [mapping.external for mapping in second.given_back] == [OUTSIDE]
    assert not first.given_back and not third.asked
    assert bench.told == ["asking", "mapped", "off"]
    assert mapper.mapped == () and mapper.facts["state"] == "off"


async def test_before_it_was_started_and_after_it_was_ended() -> None:
    bench = Bench(Router())
    assert bench.mapper.facts["state"] == "off" and bench.mapper.mapped == ()
    await bench.mapper.close()
    await bench.mapper.close()


async def test_it_is_renewed_at_half_of_its_life() -> None:
    router = Router(lifetime_s=0.2)
    bench = Bench(router)
    mapper = await bench.started()
    begun = asyncio.get_running_loop().time()
    await until(lambda: len(router.asked) == 4)
    assert 0.25 < asyncio.get_running_loop().time() - begun < 3
    assert router.asked[0] is None and all(before is not None for before in router.asked[1:])
    assert mapper.mapped == (OUTSIDE,) and bench.told == ["asking", "mapped"], "nothing has changed for anybody"
    await mapper.close()


async def test_another_port_after_the_renewal_is_told() -> None:
    router = Router(lifetime_s=0.1)
    bench = Bench(router)
    mapper = await bench.started()
    router.grant = replace(router.grant, external=Address("11.7.1.9", 5))
    await until(lambda: mapper.mapped == (Address("11.7.1.9", 5),))
    assert bench.told == ["asking", "mapped", "mapped"]
    await mapper.close()


async def test_a_renewal_that_fails_is_tried_until_the_end_of_its_life() -> None:
    router = Router(lifetime_s=0.2)
    bench = Bench(router)
    mapper = await bench.started()
    router.refusal = NoMapping("busy")
    await until(lambda: len(router.asked) >= 3)
    assert mapper.mapped == (OUTSIDE,), "it is still alive"
    await until(lambda: mapper.mapped == ())
    await until(lambda: mapper.facts["state"] == "refused")
    router.refusal = None
    await until(lambda: mapper.mapped == (OUTSIDE,))
    await mapper.close()


async def test_what_the_router_says_is_told_rather_than_that_others_are_silent() -> None:
    routers = [Router("pcp"), Router("nat-pmp"), Router("upnp")]
    for router in routers:
        router.refusal = NoMapping("the router does not answer", answered=False)
    routers[1].refusal = NoMapping("the router refuses: it is not allowed to")
    bench = Bench(*routers)
    mapper = await bench.started()
    assert mapper.facts["state"] == "refused" and mapper.mapped == ()
    words = "the router 192.168.1.1 forwards no port; nat-pmp: the router refuses: it is not allowed to"
    assert mapper.facts["sentence"] == words
    await mapper.close()
    assert not any(router.given_back for router in routers)


async def test_no_router() -> None:
    router = Router()
    bench = Bench(router, gateway=None)
    mapper = await bench.started()
    assert mapper.facts["state"] == "no-router" and not router.asked
    bench.gateway = HOME
    await until(lambda: mapper.mapped == (OUTSIDE,))
    await mapper.close()


async def test_a_machine_that_needs_none() -> None:
    router = Router()
    bench = Bench(router, gateway=Gateway("11.7.1.1", "11.7.1.2"))
    mapper = await bench.started()
    assert mapper.facts["state"] == "needless" and "11.7.1.2" in mapper.facts["sentence"]
    assert not router.asked
    await mapper.close()


async def test_on_another_network_it_begins_anew() -> None:
    router = Router()
    bench = Bench(router)
    mapper = await bench.started()
    bench.gateway = Gateway("10.0.0.1", "10.0.0.9")
    await until(lambda: len(router.asked) == 2)
    assert router.asked[1] is None, "the mapping of the other router is not renewed here"
    await until(lambda: mapper.mapped == (OUTSIDE,))
    assert mapper.facts["router"] == "10.0.0.1"
    await mapper.close()


async def test_the_end_does_not_wait_for_a_router_that_stalls() -> None:
    router = Router()
    bench = Bench(router)
    bench.mapper._options = replace(QUICK, close_s=0.05)
    mapper = await bench.started()
    router.stalls = True
    async with asyncio.timeout(2):
        await mapper.close()
    assert len(router.given_back) == 1


async def test_the_end_in_the_middle_of_a_question() -> None:
    router = Router()
    router.stalls = True
    bench = Bench(router)
    await bench.mapper.start(9337)
    await until(lambda: bool(router.asked))
    async with asyncio.timeout(2):
        await bench.mapper.close()
    assert not router.given_back


# --- a real router ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(bool(why_not() or why_no_mapping()), reason=why_not() or why_no_mapping())
@pytest.mark.parametrize("name", [way.name for way in portmap.WAYS])
async def test_a_stranger_reaches_the_port_until_it_is_given_back(name: str, tmp_path: Path) -> None:
    ways = tuple(way for way in portmap.WAYS if way.name == name)
    with (
        NatLab({"home": "symmetric", "far": "open"}) as lab,
        lab.mapping("home", tmp_path),
        closing(udp(lab, "far")) as stranger,
        closing(udp(lab, "far")) as late,
        closing(udp(lab, "home")) as here,
        lab.inside("home"),
    ):
        mapper = PortMapper(ways=ways, options=MapperOptions(retry_s=0.1))  # the router may be just coming up
        await mapper.start(here.getsockname()[1])
        await until(lambda: bool(mapper.mapped))
        (outside,) = mapper.mapped
        assert outside.host == lab.address("home")
        stranger.sendto(b"hello", (outside.host, outside.port))
        here.settimeout(2)
        assert here.recv(100) == b"hello"
        await mapper.close()
        late.sendto(b"too late", (outside.host, outside.port))
        here.settimeout(0.05)
        with pytest.raises(TimeoutError):
            here.recv(100)


def udp(lab: NatLab, site: str) -> socket.socket:
    with lab.inside(site):
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.bind((lab.host_address(site), 0))
    return opened
