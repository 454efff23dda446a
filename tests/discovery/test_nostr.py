"""Publishing and looking through real relays: the one embedded in nostr-sdk, and another implementation."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import nostr_sdk
import pytest

from meshnode.discovery.nostr import NostrRelays, accepted
from meshnode.errors import StateError
from meshnode.wire.listings import Listing
from meshnode.wire.registry import LIMIT_LISTING_TTL_S, LIMIT_LISTING_WORK_BITS
from meshnode.wire.values import WireError
from tests.discovery.listing_events import relays_of, signed
from tests.lab import rogue_relays as rogue
from tests.lab.nostr_relays import embedded_relay, gone_url, independent_relay
from tests.lab.rogue_relays import rogue_relay
from tests.wire.listing_samples import ALICE, listing

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def independent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with independent_relay(tmp_path_factory.mktemp("relay")) as url:
        yield url


@pytest.fixture(params=["embedded", "independent"])
async def url(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """A relay of each implementation."""
    if request.param == "independent":
        yield request.getfixturevalue("independent")
        return
    async with embedded_relay() as found:
        yield found


@contextlib.asynccontextmanager
async def node(folder: Path, *urls: str, **options: Any) -> AsyncIterator[NostrRelays]:
    folder.mkdir(exist_ok=True)
    relays = relays_of(urls, folder / "nostr.key", **options)
    yield relays
    await relays.close()


async def listed(relays: NostrRelays, mesh: bytes) -> list[Listing]:
    return list((await relays.fetch(mesh=mesh)).listings)


def mesh_of(request: pytest.FixtureRequest, **changes: Any) -> Listing:
    """A mesh of this test alone: one relay serves several tests."""
    name = "".join(letter for letter in request.node.name.lower() if letter.isalnum())[-40:]
    return listing(name=name, **changes)


async def test_what_one_publishes_another_finds(url: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    said = mesh_of(request)
    async with node(tmp_path / "a", url) as here, node(tmp_path / "b", url) as there:
        (report,) = await here.publish(said, ALICE.sign)
        assert (report.state, report.count) == ("ok", 1)
        (found,) = await listed(there, said.mesh)
        assert (found.node, found.models, found.entries) == (said.node, said.models, said.entries)
        assert abs(found.created_at - time.time()) < 5
        everything = await there.fetch()
        assert said.mesh in {each.mesh for each in everything.listings}


async def test_a_refresh_takes_the_place_of_what_was_before(
    url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Even within one second, in which relays would keep the one with the lower id."""
    said = mesh_of(request)
    async with node(tmp_path / "a", url) as relays:
        for number in range(4):
            reports = await relays.publish(mesh_of(request, nodes=number), ALICE.sign)
            assert accepted(reports) == 1, reports
        found = await relays.fetch(mesh=said.mesh)
        assert [each.nodes for each in found.listings] == [3]


async def test_a_listing_is_taken_back_and_comes_again_at_once(
    url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    said = mesh_of(request)
    async with node(tmp_path / "a", url) as relays:
        await relays.publish(said, ALICE.sign)
        assert accepted(await relays.delete(said.mesh)) == 1
        assert await listed(relays, said.mesh) == []
        assert accepted(await relays.publish(said, ALICE.sign)) == 1
        assert len(await listed(relays, said.mesh)) == 1


async def test_publishers_of_one_mesh_stand_side_by_side(
    url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    said = mesh_of(request)
    async with node(tmp_path / "a", url) as one, node(tmp_path / "b", url) as other:
        await one.publish(said, ALICE.sign)
        await other.publish(said, ALICE.sign)
        assert len(await listed(one, said.mesh)) == 2
        await one.delete(said.mesh)
        assert len(await listed(one, said.mesh)) == 1


async def test_the_key_stays_over_a_restart(url: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    said = mesh_of(request)
    later = time.time() + 5
    async with node(tmp_path / "a", url) as relays:
        await relays.publish(said, ALICE.sign)
    async with node(tmp_path / "a", url, clock=lambda: later) as relays:
        await relays.publish(said, ALICE.sign)
        (found,) = await listed(relays, said.mesh)
        assert found.created_at == int(later)


# --- the event --------------------------------------------------------------------------------------------------------


async def raw_events(url: str) -> list[nostr_sdk.Event]:
    """What a client of another make gets."""
    client = nostr_sdk.ClientBuilder().build()
    await client.add_relay(nostr_sdk.RelayUrl.parse(url))
    await client.connect()
    filter = nostr_sdk.Filter().kind(nostr_sdk.Kind(30078)).hashtag("meshnode")
    try:
        return list(await client.fetch_events(nostr_sdk.ReqTarget.auto([filter])))
    finally:
        await client.shutdown()


async def test_the_event_is_what_the_specification_says(tmp_path: Path) -> None:
    async with embedded_relay(work_bits=LIMIT_LISTING_WORK_BITS) as url:
        relays = NostrRelays([url], tmp_path / "nostr.key", sieve=lambda _: pytest.fail("not asked"))
        said = listing()
        (report,) = await relays.publish(said, ALICE.sign)
        assert report.state == "ok", report
        await relays.close()
        (event,) = await raw_events(url)
    assert event.verify() and not event.is_expired()
    plain = json.loads(event.as_json())
    tags = {tag[0]: tag[1:] for tag in plain["tags"] if tag[0] != "t"}
    assert tags["d"] == [f"meshnode:{said.mesh.hex()}"]
    assert tags["expiration"] == [str(plain["created_at"] + LIMIT_LISTING_TTL_S)]
    assert tags["nonce"][1] == str(LIMIT_LISTING_WORK_BITS)
    assert [tag[1] for tag in plain["tags"] if tag[0] == "t"] == ["meshnode", "meshnode-v1"]
    assert nostr_sdk.get_leading_zero_bits(bytes.fromhex(plain["id"])) >= LIMIT_LISTING_WORK_BITS


async def test_nothing_secret_is_said_or_logged(
    url: str, tmp_path: Path, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with node(tmp_path / "a", url) as relays:
        reports = await relays.publish(mesh_of(request), ALICE.sign)
        await relays.fetch()
        await relays.delete(mesh_of(request).mesh)
    secret = (tmp_path / "a" / "nostr.key").read_text().strip()
    assert secret not in caplog.text
    assert secret not in repr(reports) + repr(vars(relays))


async def test_work_does_not_hold_the_loop(tmp_path: Path) -> None:
    busy = [0.0]

    async def watch() -> None:
        """By the clock of this thread, which stands still while others have the processor."""
        while True:
            before = time.thread_time()
            await asyncio.sleep(0.001)
            busy.append(time.thread_time() - before)

    async with embedded_relay() as url:
        relays = NostrRelays([url], tmp_path / "nostr.key", sieve=lambda _: pytest.fail("not asked"), work_bits=18)
        await relays.prepare()
        watching = asyncio.create_task(watch())
        assert accepted(await relays.publish(listing(), ALICE.sign)) == 1
        watching.cancel()
        await relays.close()
    assert max(busy) < 0.05


# --- relays that do not do what they should ---------------------------------------------------------------------------


async def test_one_relay_is_enough_and_each_says_why_not(tmp_path: Path) -> None:
    async with (
        embedded_relay() as good,
        rogue_relay(rogue.refusing("blocked: not here")) as refusing,
        rogue_relay(rogue.noticing("pay first")) as noticing,
        rogue_relay(rogue.dropping()) as dropping,
        rogue.mute_port() as mute,
        node(tmp_path / "a", good, refusing, noticing, dropping, mute, await gone_url()) as relays,
    ):
        reports = await relays.publish(listing(), ALICE.sign, timeout_s=0.4)
        assert [report.state for report in reports] == ["ok", "refused", "refused", "down", "slow", "down"]
        assert [report.text for report in reports[1:3]] == ["blocked: not here", "pay first"]
        assert accepted(reports) == 1


async def test_a_relay_that_limits_says_so(tmp_path: Path) -> None:
    async with embedded_relay(work_bits=20) as url, node(tmp_path / "a", url) as relays:
        (report,) = await relays.publish(listing(), ALICE.sign)
        assert report.state == "refused"
        assert "pow" in report.text


async def test_a_relay_that_comes_back_is_used_again(tmp_path: Path) -> None:
    url = await gone_url()
    async with node(tmp_path / "a", url) as relays:
        assert [report.state for report in await relays.publish(listing(), ALICE.sign)] == ["down"]
        async with embedded_relay(port=int(url.rpartition(":")[2])):
            assert accepted(await relays.publish(listing(), ALICE.sign)) == 1
            assert len((await relays.fetch()).listings) == 1


async def test_a_listing_that_cannot_be_is_not_sent(tmp_path: Path) -> None:
    async with rogue_relay(lambda _: pytest.fail("sent")) as url, node(tmp_path / "a", url) as relays:
        with pytest.raises(WireError):
            await relays.publish(listing(vram_bytes=-1), ALICE.sign)
        (tmp_path / "a" / "nostr.key").chmod(0o644)
        again = relays_of([url], tmp_path / "a" / "nostr.key")
        with pytest.raises(StateError):
            await again.publish(listing(), ALICE.sign)


async def test_the_same_relay_twice_is_one(tmp_path: Path) -> None:
    async with rogue_relay(rogue.honest(signed(1))) as url, node(tmp_path / "a", url, url) as relays:
        assert [report.count for report in (await relays.fetch()).relays] == [1]


async def test_first_results_come_at_once_with_one_relay_up_and_two_dead(tmp_path: Path) -> None:
    async with embedded_relay() as url, node(tmp_path / "a", url, await gone_url(), await gone_url()) as relays:
        await relays.publish(listing(), ALICE.sign)
        taken = []
        for _ in range(5):
            begun = time.monotonic()
            async with contextlib.aclosing(relays.fetching()) as parts:
                async for part in parts:
                    assert len(part.listings) == 1
                    break
            taken.append(time.monotonic() - begun)
        assert min(taken) < 0.15
