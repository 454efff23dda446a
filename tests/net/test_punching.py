"""Puncher on real endpoints: ways that are found, strangers, bounds."""

import asyncio
import os
import random
import socket
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest

from meshnode.net import punching
from meshnode.net.address import Address
from meshnode.net.punches import PUNCH, PUNCH_BYTES
from meshnode.net.punching import LINGER_S, MOST_ATTEMPTS, Puncher
from tests.lab.udp_relay import Faults, UdpRelay
from tests.net.nodes import HOST, Node, node, two_nodes, until

pytestmark = pytest.mark.anyio

NOWHERE = Address(HOST, 9)


def nonce() -> bytes:
    return os.urandom(16)


async def both_punch(
    one: Node, other: Node, to_other: list[Address], to_one: list[Address], **options: Any
) -> tuple[Address | None, Address | None]:
    """Both ends at once, with the same nonce."""
    shared = nonce()
    options.setdefault("timeout_s", 3.0)
    found = await asyncio.gather(
        one.endpoint.puncher.punch(shared, to_other, opens=True, **options),
        other.endpoint.puncher.punch(shared, to_one, opens=False, **options),
    )
    return found[0], found[1]


async def test_two_ends_find_each_other_at_once() -> None:
    async with two_nodes() as (one, other):
        started = monotonic()
        found = await both_punch(one, other, [NOWHERE, other.address], [NOWHERE, one.address])
        assert found == (other.address, one.address) and monotonic() - started < 0.2
        link = await one.endpoint.dial([other.address], expected=other.node_id)
        assert link.alive, "the same socket serves QUIC"


async def test_an_address_that_only_shows_itself_is_found() -> None:
    """One end knows no address of the other, or a wrong one, as with a translator that no one has looked behind."""
    async with two_nodes() as (one, other):
        found = await both_punch(one, other, [other.address], [NOWHERE])
        assert found == (other.address, one.address)
        with UdpRelay(server=(HOST, other.address.port), front=(HOST, 0)) as line:
            front = Address(*line.address)
            one_found, other_found = await both_punch(one, other, [front], [])
            assert one_found == front and other_found not in (None, one.address, front)
            assert one_found is not None
            link = await one.endpoint.dial([one_found], expected=other.node_id)
            await until(lambda: bool(other.recorder.up))
            assert link.alive and other.recorder.up[0].address == other_found


async def test_over_a_line_that_loses_a_fifth() -> None:
    async with two_nodes() as (one, other):
        for seed in range(5):
            with UdpRelay(server=(HOST, other.address.port), front=(HOST, 0), seed=seed) as line:
                line.faults = Faults(loss=0.2)
                found = await both_punch(one, other, [Address(*line.address)], [NOWHERE])
                assert found[0] == Address(*line.address) and found[1] is not None


async def test_an_end_does_not_find_itself() -> None:
    """Both may have the same address on their own networks."""
    async with two_nodes() as (one, other):
        started = monotonic()
        found = await both_punch(one, other, [one.address], [other.address], timeout_s=0.4)
        assert found == (None, None) and monotonic() - started < 0.8
        assert one.endpoint.puncher.counters.ignored > 3


async def test_ipv6_is_preferred_by_a_hair() -> None:
    async with node(0, host="::") as one, node(1, host="::") as other:
        if not one.endpoint.address.is_ipv6:
            pytest.skip("no IPv6 here")
        fourth, sixth = Address(HOST, other.address.port), Address("::1", other.address.port)
        back = [Address(HOST, one.address.port), Address("::1", one.address.port)]
        assert await both_punch(one, other, [fourth, sixth], back) == (sixth, Address("::1", one.address.port))


async def test_the_other_end_is_answered_for_a_while_after_this_one_is_through() -> None:
    async with two_nodes() as (one, other):
        shared = nonce()
        first = await one.endpoint.puncher.punch(shared, [other.address], opens=True, timeout_s=0.05)
        assert first is None, "nobody answers yet"
        assert await other.endpoint.puncher.punch(shared, [one.address], opens=False, timeout_s=2.0) == one.address
        one.endpoint.puncher.tick(monotonic() + LINGER_S + 1, ())
        before = one.endpoint.puncher.counters.ignored
        assert await other.endpoint.puncher.punch(shared, [one.address], opens=False, timeout_s=0.1) is None
        assert one.endpoint.puncher.counters.ignored > before and one.endpoint.puncher._searches == {}


# --- strangers ----------------------------------------------------------------------------------------------


@pytest.fixture
def stranger() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind((HOST, 0))
        made.setblocking(False)
        yield made


async def test_a_storm_of_punches_is_answered_by_nothing(stranger: socket.socket) -> None:
    chance = random.Random(5)
    async with two_nodes() as (one, other):
        running = asyncio.create_task(one.endpoint.puncher.punch(nonce(), [], opens=True, timeout_s=5.0))
        sent = 0
        for _ in range(40):
            for _ in range(100):
                size = chance.choice((1, 2, 17, PUNCH_BYTES, PUNCH_BYTES, 100, 1200))
                data = bytes([chance.choice((1, 2))]) + chance.randbytes(size - 1)
                stranger.sendto(data, (HOST, one.address.port))
                sent += 1
            await asyncio.sleep(0)
        assert (await one.dial(other)).alive
        await until(lambda: one.endpoint.puncher.counters.ignored > sent // 2)
        with pytest.raises(BlockingIOError):
            stranger.recv(2048)
        assert one.endpoint.puncher.counters.answers_out == one.endpoint.puncher.counters.punches_in == 0
        assert len(one.endpoint.puncher._searches) == 1
        running.cancel()


async def test_whoever_knows_the_nonce_gets_no_more_than_a_trickle(stranger: socket.socket) -> None:
    async with two_nodes() as (one, _):
        shared = nonce()
        running = asyncio.create_task(one.endpoint.puncher.punch(shared, [NOWHERE], opens=True, timeout_s=5.0))
        await asyncio.sleep(0)
        punch = bytes([PUNCH]) + shared + b"\x00" + bytes(8)
        for _ in range(1000):
            stranger.sendto(punch, (HOST, one.address.port))
        await until(lambda: one.endpoint.puncher.counters.punches_in == 1000)
        back = 0
        while True:
            try:
                back += len(stranger.recv(2048))
            except BlockingIOError:
                break
        assert 0 < back < 70 * PUNCH_BYTES, "of 1000 that were sent"
        running.cancel()


# --- bounds -------------------------------------------------------------------------------------------------


async def test_attempts_are_bounded() -> None:
    async with two_nodes() as (one, _):
        puncher = one.endpoint.puncher
        running = [
            asyncio.create_task(puncher.punch(nonce(), [NOWHERE], opens=True, timeout_s=5.0))
            for _ in range(MOST_ATTEMPTS)
        ]
        await until(lambda: len(puncher._searches) == MOST_ATTEMPTS)
        assert await puncher.punch(nonce(), [NOWHERE], opens=True, timeout_s=5.0) is None
        assert puncher.counters.attempts_refused == 1
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        puncher.tick(monotonic() + LINGER_S + 1, ())
        assert puncher._searches == {}


async def test_punches_come_in_the_rhythm_that_was_agreed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_nodes() as (one, _):
        sent: list[float] = []
        monkeypatch.setattr(one.endpoint.puncher, "_transmit", lambda *_: sent.append(monotonic()))
        await one.endpoint.puncher.punch(nonce(), [NOWHERE], opens=True, timeout_s=0.5)
        gaps = [later - earlier for earlier, later in zip(sent, sent[1:], strict=False)]
        assert 7 <= len(sent) <= 9 and gaps[0] < 0.045 and gaps == sorted(gaps)


async def test_virtual_candidates_and_wrong_nonces() -> None:
    async with two_nodes() as (one, _):
        puncher: Puncher = one.endpoint.puncher
        assert await puncher.punch(nonce(), [Address("100::1", 3)], opens=True, timeout_s=0.05) is None
        assert one.endpoint._detours.counters.lost_ways == 0, "not even tried"
        with pytest.raises(ValueError):
            await puncher.punch(b"short", [], opens=True, timeout_s=1.0)
        shared = nonce()
        running = asyncio.create_task(puncher.punch(shared, [], opens=True, timeout_s=5.0))
        await asyncio.sleep(0)
        with pytest.raises(ValueError, match="being punched"):
            await puncher.punch(shared, [], opens=True, timeout_s=1.0)
        await one.endpoint.close()
        assert await running is None
        assert await puncher.punch(nonce(), [], opens=True, timeout_s=1.0) is None


async def test_no_more_than_two_guess_at_a_time_and_others_wait_for_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(punching, "GUESS_AFTER_S", 0.0)
    async with two_nodes() as (one, _):
        puncher = one.endpoint.puncher
        guess = punching.Guess("prober", HOST)
        running = [
            asyncio.create_task(puncher.punch(nonce(), [NOWHERE], opens=True, timeout_s=1.0, guess=guess))
            for _ in range(4)
        ]
        await until(lambda: puncher.counters.guesses_waited == 2)
        assert puncher.counters.guesses == 2
        for task in running[:2]:
            task.cancel()
        await until(lambda: puncher.counters.guesses == 4)
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        assert not puncher._guessing.locked()
