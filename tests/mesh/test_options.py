import asyncio
from collections import Counter

import pytest

from meshnode.mesh.options import PUBLIC_LIMITS, MeshLimits, MeshOptions
from meshnode.mesh.streams import StreamDispatch
from meshnode.mesh.tunnel import TunnelReply, TunnelServer, open_tunnel
from meshnode.mesh.tunnel_request import TunnelRequest
from meshnode.net.link import Link
from meshnode.net.stream import MeshStream
from meshnode.wire.registry import (
    LIMIT_ADMISSION_TIMEOUT_S,
    LIMIT_BAN_S,
    LIMIT_HTTP_STREAMS,
    LIMIT_RELAY_FLOWS,
    Close,
    Role,
    StreamType,
)
from tests.mesh.memory_link import memory_links


def test_the_defaults_are_those_of_the_registry() -> None:
    limits = MeshLimits()
    assert limits.sessions.admission_s == LIMIT_ADMISSION_TIMEOUT_S
    assert limits.sessions.ban_s == LIMIT_BAN_S
    assert limits.relay.flows == LIMIT_RELAY_FLOWS
    assert limits.tunnel.streams == LIMIT_HTTP_STREAMS
    assert limits.tunnel.body_bytes >= limits.tunnel.request.max_body_bytes


def test_a_node_is_reachable_by_both_families_unless_told_otherwise() -> None:
    assert (MeshOptions().host, MeshOptions().port, MeshOptions().advertise) == ("::", 0, ())


@pytest.mark.anyio
async def test_a_stranger_that_opens_a_thousand_streams_is_bounded_counted_and_closed() -> None:
    counters: Counter[str] = Counter()
    offences: list[Close] = []
    asked: list[TunnelRequest] = []
    release = asyncio.Event()

    async def answer(request: TunnelRequest, reply: TunnelReply) -> None:
        asked.append(request)
        await release.wait()
        await reply.head(200, [])
        await reply.finish()

    path = "/v1/chat/completions"
    server = TunnelServer(answer, admitted={("POST", path)}, limits=PUBLIC_LIMITS.tunnel, counters=counters)

    async def serve(stream: MeshStream, header: bytes, role: Role | None) -> None:
        await server.serve(stream)

    async def member(link: Link) -> Role | None:
        return Role.MEMBER

    dispatch = StreamDispatch(
        {StreamType.HTTP: serve},
        admission=member,
        offend=lambda _, code: offences.append(code),
        counters=counters,
        limits=PUBLIC_LIMITS.streams,
    )
    link, _ = memory_links(dispatch.opened)
    begun = asyncio.get_running_loop().time()
    for _ in range(1000):
        stream = open_tunnel(link)  # type: ignore[arg-type]
        stream.write(b"POST %s HTTP/1.1\r\nHost: llama-server\r\nContent-Length: 2\r\n\r\n{}" % path.encode())
        await asyncio.sleep(0)
    async with asyncio.timeout(2):
        while server.running < PUBLIC_LIMITS.tunnel.streams:
            await asyncio.sleep(0.01)
    assert len(asked) == server.running == PUBLIC_LIMITS.tunnel.streams
    took_s = asyncio.get_running_loop().time() - begun
    limits = PUBLIC_LIMITS.streams
    assert counters["streams_opened"] <= limits.burst + 1 + limits.rate_per_s * took_s
    assert counters["streams_opened"] + counters["streams_overload"] == 1000
    assert counters["http_refused"] == counters["streams_opened"] - PUBLIC_LIMITS.tunnel.streams
    assert offences and set(offences) == {Close.FLOOD}
    release.set()
    async with asyncio.timeout(2):
        while server.running:
            await asyncio.sleep(0.01)
    assert counters["http_answered"] == PUBLIC_LIMITS.tunnel.streams
    await dispatch.close()


def test_strangers_get_less_than_members_of_everything() -> None:
    mine, theirs = MeshLimits(), PUBLIC_LIMITS
    assert theirs.tunnel.request.max_body_bytes == 1 << 20 < mine.tunnel.request.max_body_bytes
    assert theirs.tunnel.streams < mine.tunnel.streams and theirs.tunnel.stall_s < mine.tunnel.stall_s
    assert theirs.tunnel.body_bytes < mine.tunnel.body_bytes
    for name in ("rate_per_s", "burst", "half_open", "header_s", "most_refused", "forgiven_per_s"):
        assert getattr(theirs.streams, name) < getattr(mine.streams, name)


def test_nothing_is_relayed_for_others_unless_that_is_wanted() -> None:
    options = MeshOptions()
    assert (options.relay, options.guess_ports, options.mapped()) == (False, True, ())
