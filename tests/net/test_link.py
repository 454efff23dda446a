"""What belongs to one link: datagrams, caps on streams, liveness, the size of datagrams."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from time import monotonic

import pytest

from meshnode.errors import PeerUnreachable
from meshnode.net import endpoint
from meshnode.net.address import Address
from meshnode.net.link import Link
from meshnode.net.quic import MOST_DATAGRAMS_QUEUED
from meshnode.net.stream import StreamReset
from meshnode.wire.registry import LIMIT_STREAMS_A_LINK, Reset
from tests.net.nodes import HOST, IDENTITIES, Node, linked, node, two_nodes, until

pytestmark = pytest.mark.anyio
both = pytest.mark.parametrize("fast", [False, True], ids=["stock", "fast"])


@both
async def test_datagrams(fast: bool) -> None:
    async with linked(fast=fast, most_datagram_bytes=1452) as (_, other, here, there):
        assert here.send_datagram(b"one") and there.send_datagram(b"back")
        await until(lambda: other.recorder.datagrams == [b"one"])
        assert not here.send_datagram(bytes(2000)), "too large for the path"
        accepted = sum(here.send_datagram(bytes([number % 256]) * 1000) for number in range(500))
        assert accepted == MOST_DATAGRAMS_QUEUED
        await until(lambda: len(other.recorder.datagrams) == 1 + accepted)
        here.close(0x100)
        assert not here.send_datagram(b"late")


@both
async def test_the_size_of_datagrams_follows_the_path_and_the_option(fast: bool) -> None:
    async with linked(fast=fast, most_datagram_bytes=1452) as (_, _, here, there):
        await until(lambda: here.datagram_bytes == there.datagram_bytes == 1452)
    async with linked(fast=fast) as (_, _, here, there):
        await until(lambda: here.datagram_bytes == there.datagram_bytes == 16384)


@both
async def test_a_peer_that_opens_ten_thousand_streams(fast: bool) -> None:
    async with linked(fast=fast) as (_, other, here, there):
        blocks = []
        for number in range(10_001):
            stream = here.open_stream()
            stream.write(b"x")
            stream.reset(Reset.CANCELLED)
            if number % 250 == 0:
                await until(lambda: not here.quic._streams and not there.quic._streams)
                while not other.recorder.streams.empty():
                    other.recorder.streams.get_nowait()
            if number in (2000, 10_000):
                gc.collect()
                blocks.append(sys.getallocatedblocks())
        assert there.streams == here.streams == 0
        assert len(there._streams._ended_by_us) <= 3 * LIMIT_STREAMS_A_LINK
        assert blocks[1] - blocks[0] < 4000, "memory blocks for 8,000 streams"
        assert await here.echo() < 2.0


@both
async def test_more_streams_than_allowed_are_refused_with_a_code(fast: bool) -> None:
    async with linked(fast=fast) as (_, other, here, there):
        streams = [here.open_stream() for _ in range(LIMIT_STREAMS_A_LINK + 10)]
        for stream in streams:
            stream.write(b"?")
        await until(lambda: other.endpoint.counters.streams_refused == 10)
        assert there.streams == LIMIT_STREAMS_A_LINK
        await until(lambda: sum(stream.is_closing() for stream in streams) == 10)
        refused = [stream for stream in streams if stream.is_closing()]
        with pytest.raises(StreamReset) as caught:
            refused[0].write(b"?")
        assert caught.value.code == Reset.OVERLOAD
        streams[0].abort()
        await until(lambda: there.streams == LIMIT_STREAMS_A_LINK - 1)
        again = here.open_stream()
        again.write(b"?")
        await until(lambda: there.streams == LIMIT_STREAMS_A_LINK)
        assert not again.is_closing()


async def test_streams_beyond_what_is_advertised_wait() -> None:
    async with linked() as (_, other, here, there):
        streams = [here.open_stream() for _ in range(500)]
        for stream in streams:
            stream.write(b"?")
        await until(lambda: other.recorder.streams.qsize() == LIMIT_STREAMS_A_LINK)
        for stream in streams:
            stream.abort()
        await until(lambda: not there.quic._streams and not here.quic._streams)
        assert await here.echo() < 1.0


# --- liveness -----------------------------------------------------------------------------------------------


def cut_off(peer: Node) -> None:
    """The peer's process dies: its port is closed, and nothing more comes from it."""
    peer.endpoint._closing = True
    peer.endpoint._socket.close()


@pytest.mark.skipif(sys.platform != "linux", reason="needs the error queue of Linux")
@both
async def test_a_dead_process_on_a_near_host_is_noticed_at_once(fast: bool) -> None:
    async with linked(fast=fast) as (one, other, here, _):
        here.open_stream().write(b"question")
        await other.stream()
        died_at = monotonic()
        cut_off(other)
        await until(lambda: bool(one.recorder.silences))
        silent, at = one.recorder.silences[0]
        assert silent and here.silent and here.alive
        assert at - died_at < 0.65
        assert one.endpoint.counters.unreachable_hints > 0


async def test_a_peer_that_says_nothing_is_silent_after_a_second_and_heard_again() -> None:
    async with linked() as (one, other, here, there):
        here.watch(True)
        # It is stopped: its port is open, but nothing is read and nothing is sent.
        port = other.endpoint._socket
        other.endpoint._loop.remove_reader(port._socket.fileno())
        real, other.endpoint.transmit = other.endpoint.transmit, lambda *_: None  # type: ignore[method-assign]
        stopped_at = monotonic()
        await until(lambda: bool(one.recorder.silences))
        assert 0.9 < one.recorder.silences[0][1] - stopped_at < 2.9
        with pytest.raises(PeerUnreachable):
            await here.echo(timeout_s=0.1)
        other.endpoint.transmit = real  # type: ignore[method-assign]
        other.endpoint._loop.add_reader(port._socket.fileno(), port._readable)
        await until(lambda: len(one.recorder.silences) == 2)
        assert [silent for silent, _ in one.recorder.silences] == [True, False]
        assert not here.silent


async def test_a_peer_that_stays_away_is_given_up() -> None:
    async with linked(idle_timeout_s=0.5) as (one, other, here, _):
        cut_off(other)
        await until(lambda: bool(one.recorder.down))
        link, code, reason = one.recorder.down[0]
        assert (link, code, reason) == (here, 1, "Idle timeout")
        assert one.endpoint.link(other.node_id) is None


async def test_an_idle_link_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "TICK_S", 0.05)
    async with linked(idle_timeout_s=0.5, keepalive_s=0.1) as (one, other, here, there):
        await asyncio.sleep(1.2)
        assert here.alive and there.alive
        assert one.recorder.down == other.recorder.down == []


async def test_the_own_lag_accuses_nobody() -> None:
    async with linked() as (one, other, here, _):
        here.open_stream().write(b"question")
        await other.stream()
        import time

        for _ in range(2):
            time.sleep(0.8)  # the loop is blocked: nothing can be heard meanwhile
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.4)
        assert one.recorder.silences == other.recorder.silences == []


async def test_watching_an_idle_link_costs_a_packet_a_second() -> None:
    async with linked() as (one, _, here, there):
        await until(lambda: here.datagram_bytes == there.datagram_bytes == 16384)
        here.watch(True)
        await asyncio.sleep(0.1)
        before = one.endpoint.counters.datagrams_out
        await asyncio.sleep(2.2)
        assert 2 <= one.endpoint.counters.datagrams_out - before <= 8
        assert here._watch.is_running and one.recorder.silences == []
        here.watch(False)
        await until(lambda: not here._watch.is_running)


async def test_an_idle_link_is_not_probed_for_nobody() -> None:
    async with linked() as (one, other, here, there):
        stream = here.open_stream()
        stream.watched = False
        stream.write(b"control")
        (await other.stream()).watched = False
        await until(lambda: here.datagram_bytes == there.datagram_bytes == 16384)
        await asyncio.sleep(0.1)
        before = one.endpoint.counters.datagrams_out
        await asyncio.sleep(0.7)
        assert one.endpoint.counters.datagrams_out - before <= 3, "an echo at most"
        assert not here._watch.is_running


async def test_a_forged_hint_costs_a_few_probes_and_no_verdict() -> None:
    async with linked() as (one, other, here, _):
        for _ in range(20):
            one.endpoint._unreachable((HOST, other.address.port))
            await asyncio.sleep(0.01)
        assert one.recorder.silences == []
        await until(lambda: not here._watch.is_running)


async def test_kill_minus_nine() -> None:
    """A real process with a link dies without a word."""
    root = Path(__file__).parents[2]
    code = textwrap.dedent(
        """
        import asyncio
        from tests.net.nodes import *
        async def main():
            async with node(1) as other:
                print(other.address.port, flush=True)
                await asyncio.sleep(60)
        asyncio.run(main())
        """
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        port = int(await asyncio.to_thread(process.stdout.readline))
        async with node(0) as one:
            link = await one.endpoint.dial([Address(HOST, port)], expected=IDENTITIES[1].node_id)
            link.open_stream().write(b"question")
            await asyncio.sleep(0.05)
            os.kill(process.pid, signal.SIGKILL)
            killed_at = monotonic()
            await until(lambda: bool(one.recorder.silences))
            limit_s = 0.7 if sys.platform == "linux" else 2.0
            assert one.recorder.silences[0][1] - killed_at < limit_s


# --- faults -------------------------------------------------------------------------------------------------


async def test_a_fault_ends_one_link_and_not_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    async with node(0) as one, node(1) as second, node(2) as third:
        bad, good = await one.dial(second), await one.dial(third)

        def fault(*_: object) -> None:
            raise AssertionError("a bug")

        monkeypatch.setattr(bad.quic, "feed", fault)
        with pytest.raises(PeerUnreachable):
            await bad.echo()
        await until(lambda: bool(one.recorder.down and second.recorder.down))
        assert [(link, hex(code)) for link, code, _ in one.recorder.down] == [(bad, "0x1ff")]
        assert second.recorder.down[0][1] == 0x1FF
        assert await good.echo() < 1.0


async def test_the_loss_of_the_first_goodbye() -> None:
    async with two_nodes() as (one, other):
        link = await one.dial(other)
        await until(lambda: bool(other.recorder.up))
        there: Link = other.recorder.up[0]
        real, lost = one.endpoint.transmit, []
        one.endpoint.transmit = lambda datagrams, _: lost.extend(datagrams)  # type: ignore[method-assign]
        link.close(0x119)
        one.endpoint.transmit = real  # type: ignore[method-assign]
        assert lost and there.alive
        there.send_datagram(b"anybody?")
        await until(lambda: bool(other.recorder.down))
        assert other.recorder.down[0][1] == 0x119
