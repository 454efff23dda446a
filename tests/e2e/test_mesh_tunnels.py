"""What an admitted peer may ask a real node for: listed paths over its tunnel, and nothing else of the machine.

A canary listens on loopback, and must hear of nobody.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from meshnode.net.stream import StreamReset
from meshnode.wire.messages import Probe
from meshnode.wire.registry import (
    Reset,
    Role,
    RpcKind,
    StreamType,
)
from meshnode.wire.splits import open_header
from tests.conftest import StartNode
from tests.e2e.canary import Canary
from tests.e2e.victims import CHAT, Victim, a_victim, chat, request, unharmed
from tests.e2e.waiting import eventually
from tests.lab.rogue_peer import reset_code, rogue

pytestmark = [pytest.mark.engine, pytest.mark.anyio]


@pytest.fixture(scope="module")
def node(start_shared_node: StartNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    with a_victim(start_shared_node, tmp_path_factory.mktemp("nice")) as node:
        yield node


@pytest.fixture
def victim(node: Victim) -> Iterator[Victim]:
    """The node, of which this must be true again after every test: see victims.unharmed."""
    with unharmed(node):
        yield node


# --- tunnels --------------------------------------------------------------------------------------------------------


@pytest.fixture
def canary() -> Iterator[Canary]:
    with closing(Canary()) as found:
        socket.create_connection(("127.0.0.1", found.port)).close()
        eventually(lambda: found.heard == 1, within_s=5)
        found.heard = 0
        yield found
        assert found.heard == 0, "the node went where a peer sent it"


GOOD = chat(3)


def targets(port: int) -> list[tuple[str, bytes, int]]:
    """What a peer asks for, and the status that it gets."""
    here = f"127.0.0.1:{port}"
    plain = [
        ("GET", "/slots", 404),
        ("POST", "/slots/0?action=save", 404),
        ("GET", "/props", 404),
        ("GET", "/metrics", 404),
        ("GET", "/api/status", 404),
        ("POST", "/api/invite", 404),
        ("GET", "/../", 404),
        ("POST", "/../", 404),
        ("POST", "/v1/../slots", 404),
        ("POST", "/v1/chat/completions/../../../slots", 404),
        ("POST", "/v1/chat/completions?x=1", 404),
        ("POST", "/v1/chat/completions#x", 404),
        ("POST", "/v1//chat/completions", 404),
        ("POST", "/v1/chat%2Fcompletions", 404),
        ("POST", "/V1/CHAT/COMPLETIONS", 404),
        ("GET", CHAT, 404),
        ("post", CHAT, 404),
        ("POST", "http://169.254.169.254/latest/meta-data/", 404),
        ("POST", f"http://{here}/", 404),
        ("POST", f"http://{here}{CHAT}", 404),
        ("GET", f"http://{here}/", 404),
        ("POST", f"//{here}/", 404),
        ("CONNECT", here, 404),
        ("OPTIONS", "*", 404),
        ("TRACE", CHAT, 404),
    ]
    heads = [
        ("upgrade: websocket\r\nconnection: upgrade\r\n", 400),
        ("transfer-encoding: chunked\r\n", 400),
        ("content-length: 5\r\n", 400),
        ("content-length : 5\r\n", 400),
        ("content-length: 5, 5\r\n", 400),
        ("expect: 100-continue\r\n", 400),
        ("te: trailers\r\n", 400),
        (f"host: {here}\r\n", 400),
        ("x: a\r\n b\r\n", 400),
        ("x: a\nhost: b\r\n", 400),
        ("x: a\rb\r\n", 400),
        ("x\0: a\r\n", 400),
        ("no colon\r\n", 400),
    ]
    return [
        *((f"{method} {path}", request(path, b"", method=method), status) for method, path, status in plain),
        *((repr(more), request(CHAT, GOOD, more=more), status) for more, status in heads),
        ("another host", request(CHAT, GOOD, host=here), 421),
        ("a huge head", request(CHAT, GOOD, more=f"x: {'y' * 20_000}\r\n"), 431),
        ("many headers", request(CHAT, GOOD, more="x: y\r\n" * 5000), 431),
        ("bytes behind the body", request(CHAT, GOOD) + b"GET /slots HTTP/1.1\r\n\r\n", 400),
        ("no length", f"POST {CHAT} HTTP/1.1\r\nhost: llama-server\r\n\r\n".encode(), 411),
        ("an absurd length", request(CHAT, b"").replace(b": 0", b": 9999999999"), 413),
        ("a negative length", request(CHAT, b"").replace(b": 0", b": -1"), 400),
        ("HTTP/1.0", request(CHAT, GOOD).replace(b"HTTP/1.1", b"HTTP/1.0"), 400),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        ("not HTTP", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
    ]  # fmt: skip


async def test_tunnel_leads_to_listed_paths_and_nowhere_else(victim: Victim, tmp_path: Path, canary: Canary) -> None:
    async with rogue(tmp_path) as peer:
        await peer.join(victim.token)
        before, wrong = victim.counter("http_refused"), []
        asked = targets(canary.port)
        for words, raw, status in asked:
            answer = await peer.ask(raw)
            if not answer.startswith(f"HTTP/1.1 {status} ".encode()):
                wrong.append((words, status, answer[:60]))
        assert wrong == []
        assert victim.counter("http_refused") == before + len(asked)
        assert b" 200 " in await peer.ask(request(CHAT, GOOD)), "and a decent request is answered"


async def test_tunnel_fetches_nothing_for_a_peer(victim: Victim, tmp_path: Path, canary: Canary) -> None:
    """Addresses in what looks like an ordinary request."""
    url = f"http://127.0.0.1:{canary.port}/x.png"
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    schemas = {"type": "json_schema", "json_schema": {"schema": {"$ref": url}}}
    async with rogue(tmp_path) as peer:
        await peer.join(victim.token)
        for body in (
            {"model": "demo", "messages": picture},
            {"model": url, "messages": []},
            {"model": "demo", "messages": [{"role": "user", "content": "hello"}], "response_format": schemas},
        ):
            answer = await peer.ask(request(CHAT, json.dumps(body).encode(), more=f"x-forwarded-host: {url}\r\n"))
            assert re.match(rb"HTTP/1\.1 (4|50)\d", answer), answer[:200]


async def test_request_that_ends_too_early(victim: Victim, tmp_path: Path) -> None:
    async with rogue(tmp_path) as peer:
        await peer.join(victim.token)
        for raw in (b"", b"POST ", request(CHAT, GOOD)[:-5]):
            with pytest.raises(StreamReset) as caught:
                await peer.ask(raw, end=True)
            assert caught.value.code == Reset.MALFORMED


@pytest.mark.parametrize("role", list(Role), ids=lambda role: role.name.lower())
async def test_streams_that_a_role_may_not_open(victim: Victim, tmp_path: Path, role: Role) -> None:
    before = victim.counter("streams_not_allowed")
    async with rogue(tmp_path) as peer:
        await peer.join(victim.token, role)
        kinds = () if role is Role.MEMBER else (StreamType.RPC, StreamType.BULK)
        assert [await reset_code(peer.open(kind)) for kind in kinds] == [Reset.REFUSED] * len(kinds)
        assert victim.counter("streams_not_allowed") == before + len(kinds)
        if role is Role.MEMBER:
            # It may open them, and gets no further without a plan that it has a part in.
            unheard_of = [peer.open(StreamType.RPC, header=open_header(kind, bytes(16))) for kind in RpcKind if kind]
            assert [await reset_code(stream) for stream in unheard_of] == [Reset.REFUSED] * 2
            assert await reset_code(peer.open(StreamType.RPC, header=b"no plan")) == Reset.MALFORMED
        assert b" 200 " in await peer.ask(request(CHAT, GOOD))


async def test_streams_before_admission(victim: Victim, tmp_path: Path) -> None:
    """What a stranger opens waits for its admission, and is never read further."""
    async with rogue(tmp_path) as peer:
        await peer.dial(victim.token)
        stream = peer.open(StreamType.HTTP, request(CHAT, GOOD))
        peer.throw(Probe(1))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await stream.read(1)
        assert peer.datagrams == [] and victim.counter("datagrams_dropped") >= 1
