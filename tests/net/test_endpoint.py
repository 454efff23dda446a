"""Whole endpoints on loopback: dialling, accepting, who is refused, duplicates, ends, floods."""

import asyncio
import os
import socket
import ssl
from dataclasses import replace

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from meshnode.errors import PeerRefused, PeerUnreachable, WrongPeer
from meshnode.net import endpoint as module
from meshnode.net import tls
from meshnode.net.acceptance import MOST_HALF_OPEN, RETRY_ABOVE
from meshnode.net.address import Address, from_socket
from meshnode.net.quic import configuration
from meshnode.wire.registry import Close
from tests.net.nodes import HOST, IDENTITIES, LIMIT_S, linked, node, read_all, two_nodes, until

pytestmark = pytest.mark.anyio
both = pytest.mark.parametrize("fast", [False, True], ids=["stock", "fast"])


class Raw:
    """A bare QuicConnection on a socket of its own, for what no endpoint of ours would do."""

    def __init__(self, options: QuicConfiguration, destination: Address) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((HOST, 0))
        self.socket.setblocking(False)
        self.quic = QuicConnection(configuration=options)
        self.destination = (destination.host, destination.port)
        self.loop = asyncio.get_running_loop()
        self.quic.connect(self.destination, self.loop.time())

    def flush(self) -> None:
        for data, _ in self.quic.datagrams_to_send(self.loop.time()):
            self.socket.sendto(data, self.destination)

    def read(self) -> int:
        size = 0
        while True:
            try:
                data = self.socket.recv(65536)
            except BlockingIOError:
                return size
            size += len(data)
            self.quic.receive_datagram(data, self.destination, self.loop.time())

    async def run(self, limit_s: float = LIMIT_S) -> tuple[int, str]:
        """Until the connection ends; returns code and reason."""
        async with asyncio.timeout(limit_s):
            while self.quic._close_event is None:
                self.flush()
                await asyncio.sleep(0.002)
                self.read()
        event = self.quic._close_event
        self.socket.close()
        return event.error_code, event.reason_phrase


def client_options(**changes: object) -> QuicConfiguration:
    one = IDENTITIES[2]
    made = configuration(tls.certificate(one), one.private_key, is_client=True, congestion_control="reno")
    return replace(made, **changes)  # type: ignore[arg-type]


# --- links --------------------------------------------------------------------------------------------------


@both
async def test_a_link_comes_up_at_both_ends(fast: bool) -> None:
    async with linked(fast=fast) as (one, other, here, there):
        assert here.peer == other.node_id and there.peer == one.node_id
        assert here.dialled and not there.dialled
        assert one.endpoint.link(other.node_id) is here and other.endpoint.link(one.node_id) is there
        assert list(one.endpoint.links) == [here]
        assert here.alive and here.address == other.address and there.address == one.address
        assert here.exporter("EXPORTER-x", 32) == there.exporter("EXPORTER-x", 32)
        assert one.recorder.up == [here]
        await until(lambda: here.rtt_s is not None and here.datagram_bytes == 16384)
        assert here.rtt_s is not None and 0 < here.rtt_s < 0.1
        assert 0 < await here.echo() < 0.5
        assert await one.dial(other) is here


@both
async def test_an_end_tells_the_peer_the_code_once(fast: bool) -> None:
    async with linked(fast=fast) as (one, other, here, there):
        here.close(Close.BANNED)
        await until(lambda: bool(other.recorder.down and one.recorder.down))
        assert [(link, code) for link, code, _ in other.recorder.down] == [(there, Close.BANNED)]
        assert other.recorder.down[0][2] == "the peer has broken the rules lately"
        assert [(link, code) for link, code, _ in one.recorder.down] == [(here, Close.BANNED)]
        assert not here.alive and one.endpoint.link(other.node_id) is None
        with pytest.raises(PeerUnreachable):
            await here.echo()
        again = await one.dial(other)
        assert again is not here and again.alive


async def test_leaving_is_an_orderly_end_for_all_peers() -> None:
    async with node(0) as one, node(1) as second, node(2) as third:
        await one.dial(second)
        await one.dial(third)
        await one.endpoint.close()
        await until(lambda: bool(second.recorder.down and third.recorder.down))
        assert second.recorder.down[0][1] == third.recorder.down[0][1] == 0
        assert one.recorder.down and list(one.endpoint.links) == []


async def test_ipv6_and_ipv4_at_the_same_port() -> None:
    async with node(0, host="::") as one, node(1, host="::") as other, node(2) as four:
        if not one.address.is_ipv6:
            pytest.skip("no IPv6 here")
        link = await one.endpoint.dial([Address("::1", other.address.port)], expected=other.node_id)
        assert link.address.host == "::1"
        link = await four.endpoint.dial([Address(HOST, other.address.port)], expected=other.node_id)
        await until(lambda: len(other.recorder.up) == 2)
        assert other.recorder.up[1].address == four.address
        with pytest.raises(PeerUnreachable):
            await four.endpoint.dial([Address("::1", one.address.port)], expected=one.node_id)


# --- who is refused -----------------------------------------------------------------------------------------


@both
async def test_another_peer_than_was_meant(fast: bool) -> None:
    async with two_nodes(fast=fast) as (one, other):
        with pytest.raises(WrongPeer) as caught:
            await one.endpoint.dial([other.address], expected=IDENTITIES[3].node_id)
        assert caught.value.close_code == Close.WRONG_PEER
        assert one.recorder.up == []
        await until(lambda: bool(other.recorder.down))
        assert other.recorder.down[0][1] == Close.WRONG_PEER


async def test_a_node_that_dials_itself() -> None:
    async with node(0) as one:
        with pytest.raises(WrongPeer):
            await one.endpoint.dial([one.address], expected=None)
        assert one.recorder.up == []


@both
async def test_a_client_without_a_certificate(fast: bool) -> None:
    async with node(0, fast=fast) as one:
        options = client_options(certificate=None, private_key=None, verify_mode=ssl.CERT_NONE)
        assert await Raw(options, one.address).run() == (Close.NO_CERTIFICATE, "the peer has proven no key")
        assert one.recorder.up == []


async def test_a_forged_certificate() -> None:
    async with node(0) as one:
        code, _ = await Raw(client_options(private_key=IDENTITIES[3].private_key), one.address).run()
        assert code == 0x100 + 51, "decrypt_error"
        assert one.recorder.up == []


async def test_another_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_nodes() as (one, other):
        one.endpoint._configurations[True].alpn_protocols = ["meshnode/0"]
        with pytest.raises(PeerRefused) as caught:
            await one.dial(other)
        assert caught.value.close_code == Close.BAD_VERSION
        assert other.recorder.up == []


async def test_more_links_than_a_node_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT_LINKS", 1)
    async with node(0) as one, node(1) as second, node(2) as third:
        await second.dial(one)
        with pytest.raises(PeerRefused):
            await third.dial(one)
        assert one.endpoint.counters.links_refused == 1
        assert len(list(one.endpoint.links)) == 1


# --- two links ----------------------------------------------------------------------------------------------


@both
async def test_both_dial_at_once(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.1)
    async with two_nodes(fast=fast) as (small, large):
        here, there = await asyncio.gather(small.dial(large), large.dial(small))
        await until(lambda: small.endpoint.counters.links_up == large.endpoint.counters.links_up == 2)
        kept_here, kept_there = small.endpoint.link(large.node_id), large.endpoint.link(small.node_id)
        assert kept_here is not None and kept_there is not None
        assert kept_here.dialled and not kept_there.dialled, "the smaller NodeId dialled"
        assert kept_here.exporter("EXPORTER-x", 16) == kept_there.exporter("EXPORTER-x", 16)
        await until(lambda: len(small.endpoint._links[large.node_id]) == len(large.endpoint._links[small.node_id]) == 1)
        stream = kept_here.open_stream()
        stream.write(b"still here")
        stream.write_eof()
        assert await read_all(await large.stream()) == b"still here"
        for recorder, kept in ((small.recorder, kept_here), (large.recorder, kept_there)):
            assert kept in recorder.up
            assert all(link is not kept and code == Close.DUPLICATE for link, code, _ in recorder.down)


async def test_a_stream_on_the_link_that_is_not_kept_is_delivered_and_can_finish() -> None:
    async with two_nodes() as (small, large):
        await large.dial(small)
        await until(lambda: bool(small.recorder.up))
        stream = large.recorder.up[0].open_stream()
        stream.write(b"question")
        stream.write_eof()
        kept = await small.endpoint._reach([large.address], large.node_id, 5.0)
        answer = await small.stream()
        assert answer.link is not kept
        assert await read_all(answer) == b"question"
        answer.write(b"answer")
        answer.write_eof()
        assert await read_all(stream) == b"answer"
        await until(lambda: bool(small.recorder.down))
        assert small.recorder.down[0][1] == Close.DUPLICATE


async def test_a_long_answer_on_the_link_that_is_not_kept_comes_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_S", 0.05)
    async with two_nodes() as (small, large):
        await large.dial(small)
        await until(lambda: bool(small.recorder.up))
        control, stream = (large.recorder.up[0].open_stream() for _ in range(2))
        for each in (control, stream):
            each.write(b"?")
        kept = await small.endpoint._reach([large.address], large.node_id, 5.0)
        answers = [await small.stream() for _ in range(2)]
        answer = next(each for each in answers if each.id == stream.id)
        for _ in range(10):  # four times the grace
            answer.write(b"word ")
            assert await stream.read(5) == b"word "
            await asyncio.sleep(0.02)
        assert small.recorder.down == [] and answer.link is not kept
        answer.write_eof()
        stream.write_eof()
        await until(lambda: bool(small.recorder.down))
        assert small.recorder.down[0][1] == Close.DUPLICATE


async def test_a_peer_that_restarted_replaces_its_old_link() -> None:
    async with node(0) as one:
        async with node(1) as other:
            await other.dial(one)
            await until(lambda: bool(one.recorder.up))
            old = one.recorder.up[0]
            other.endpoint._socket.close()  # no goodbye
            other.endpoint._closing = True
        async with node(1) as other:
            await other.dial(one)
            await until(lambda: one.endpoint.link(other.node_id) is not old)
            new = one.endpoint.link(other.node_id)
            assert new is not None and new.alive
            await until(lambda: any(link is old for link, _, _ in one.recorder.down))
            assert one.endpoint.link(other.node_id) is new


# --- strangers ----------------------------------------------------------------------------------------------


async def test_junk_is_dropped_without_an_answer_and_counted() -> None:
    async with linked() as (one, other, here, _), asyncio.timeout(LIMIT_S):
        sent_before = other.endpoint.counters.datagrams_out
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind((HOST, 0))
            stranger.setblocking(False)
            destination = (HOST, other.address.port)
            initial = bytes([0xC3, 0, 0, 0, 1, 8]) + os.urandom(8) + b"\x08" + os.urandom(8) + b"\x00\x44\x96"
            shapes = [b"\0", b"\xff", b"\x40" * 30, b"\xc0\0\0\0\1" + bytes(1300), os.urandom(1300)]
            shapes += [initial + os.urandom(1200), initial[:5], b"\xc0" + bytes(4) + os.urandom(1250)]
            for _ in range(20):
                for shape in shapes:
                    stranger.sendto(shape, destination)
            await until(lambda: other.endpoint.counters.junk >= 20 * len(shapes))
            with pytest.raises(BlockingIOError):
                stranger.recv(2000)
        assert len(other.endpoint._unfinished) == 0
        assert other.endpoint.counters.datagrams_out - sent_before < 20, "only the link's own"
        assert await here.echo() < 1.0


async def test_half_open_handshakes_are_bounded_and_real_clients_still_get_in() -> None:
    async with node(0) as one, node(1) as other:
        raws = [Raw(client_options(), one.address) for _ in range(RETRY_ABOVE + 20)]
        initials = [raw.quic.datagrams_to_send(0.0)[0][0] for raw in raws]
        for raw, initial in zip(raws, initials, strict=True):
            raw.socket.sendto(initial, raw.destination)
        await until(lambda: one.endpoint.counters.retries_sent >= 20)
        assert len(one.endpoint._unfinished) == RETRY_ABOVE
        link = await other.dial(one)
        assert link.alive
        for raw in raws:
            raw.socket.close()


async def test_the_bound_on_half_open_handshakes(monkeypatch: pytest.MonkeyPatch) -> None:
    async with node(0) as one:
        for number in range(MOST_HALF_OPEN):
            one.endpoint._unfinished[number] = 1e12  # type: ignore[index]
        raw = Raw(client_options(), one.address)
        raw.flush()
        await until(lambda: one.endpoint.counters.handshakes_refused == 1)
        assert raw.read() == 0
        raw.socket.close()
        one.endpoint._unfinished.clear()


async def test_half_open_handshakes_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK_S", 0.05)
    async with node(0, handshake_timeout_s=0.1) as one:
        raw = Raw(client_options(), one.address)
        raw.flush()
        await until(lambda: one.endpoint.counters.handshakes_begun == 1)
        await until(lambda: one.endpoint.counters.handshakes_failed == 1)
        assert not one.endpoint._unfinished
        raw.socket.close()


async def test_an_address_that_never_answers_gets_three_times_what_it_sent() -> None:
    async with node(0) as one:
        raw = Raw(client_options(), one.address)
        raw.flush()
        await until(lambda: one.endpoint.counters.handshakes_begun == 1)
        await asyncio.sleep(0.5)  # time for retransmissions
        assert one.endpoint.counters.bytes_out <= 3 * one.endpoint.counters.bytes_in
        raw.socket.close()


async def test_a_retry_for_everybody() -> None:
    async with two_nodes(always_retry=True) as (one, other):
        assert (await one.dial(other)).alive
        assert other.endpoint.counters.retries_sent == 1


async def test_the_address_of_a_handshake_cannot_be_borrowed() -> None:
    """Packets for a half-open connection from elsewhere raise no limit for the address that began it."""
    async with node(0) as one:
        raw = Raw(client_options(), one.address)
        raw.flush()
        await until(lambda: one.endpoint.counters.handshakes_begun == 1)
        link = next(iter(one.endpoint._unfinished))
        before = link.quic._network_paths[0].bytes_received
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as elsewhere:
            packet = bytes([0xE3, 0, 0, 0, 1, 8]) + link.quic.host_cid + b"\x08" + bytes(8) + b"\x44\x96" + bytes(1300)
            for _ in range(20):
                elsewhere.sendto(packet, raw.destination)
            seen = one.endpoint.counters.datagrams_in
            await until(lambda: one.endpoint.counters.datagrams_in >= seen + 19)
        assert link.quic._network_paths[0].bytes_received == before
        raw.socket.close()


async def test_the_end_of_an_endpoint_ends_its_dials() -> None:
    async with node(0) as one, asyncio.timeout(LIMIT_S):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
            deaf.bind((HOST, 0))
            dial = asyncio.create_task(
                one.endpoint.dial([from_socket(deaf.getsockname())], expected=IDENTITIES[1].node_id)
            )
            await asyncio.sleep(0.02)
            await one.endpoint.close()
            with pytest.raises(PeerUnreachable):
                await dial
