"""When a host that failed a request is asked again: the rules by themselves, and whole answers over fake engines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from meshnode.api import comebacks
from meshnode.api.attempt import EngineRefused, HostFailed
from meshnode.api.comebacks import Comebacks, is_loading, is_lost
from meshnode.api.gate import Gates
from meshnode.api.peer_requests import PeerRequests
from meshnode.api.request import Limits
from meshnode.api.served import Host, Served
from meshnode.api.upstream import Pipe, UpstreamBroken
from meshnode.errors import EngineCrashed, ModelLoading
from tests.api import running
from tests.api.fake_llama import FakeLlamaServer, Received, Script, plain, raw, streaming
from tests.api.raw_http import ask
from tests.api.reading import read
from tests.api.running import CHAT, DONE, HELLO, STREAM, until
from tests.api.test_answering import GREEDY, A, B, C, chunk, dying, host, model, replaying
from tests.api.tunnel import TunnelPipe

pytestmark = pytest.mark.anyio
LOST = UpstreamBroken("cut short")
LOADING = EngineRefused(503, {"type": "model_loading"}, elsewhere=True)


def unreached() -> UpstreamBroken:
    error = UpstreamBroken("no connection")
    error.reached = False
    return error


async def nowhere() -> Pipe:
    raise ConnectionRefusedError(111, "Connection refused")


def here(state: str = "ready", key: str = "first", **more: Any) -> Host:
    return host(A, nowhere if state == "ready" else None, here=True, state=state, api_key=key, **more)


def peer(state: str = "ready", node: str = B, **more: Any) -> Host:
    return host(node, nowhere, state=state, **more)


class Hosts:
    """What the mesh shows, changed while a request waits."""

    def __init__(self, *hosts: Host) -> None:
        self.now = list(hosts)
        self.looks = 0

    def __call__(self) -> list[Host]:
        self.looks += 1
        return self.now


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """All times a hundredth of what they are, but for what bounds a wait."""
    for name in ("LOOK_S", "ASK_FIRST_S", "ASK_LAST_S"):
        monkeypatch.setattr(comebacks, name, getattr(comebacks, name) / 100)


# --- what a failure means -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "lost_here", "lost_there", "loading"),
    [
        (LOST, True, True, False),
        (HostFailed(LOST, cool_down=True), True, True, False),
        (HostFailed(unreached(), cool_down=True), True, False, False),
        (HostFailed(ModelLoading("x"), cool_down=False), False, False, True),
        (HostFailed(EngineCrashed("x"), cool_down=False), False, False, False),
        (EngineRefused(502, {"type": "engine_connection_lost"}), True, True, False),
        (LOADING, False, False, True),
        (EngineRefused(503, {"type": "unavailable_error"}), False, False, False),
        (EngineRefused(500, {"type": ["a", "list"]}), False, False, False),
    ],
)
def test_what_a_failure_says_of_the_engine(
    failure: Exception, lost_here: bool, lost_there: bool, loading: bool
) -> None:
    assert is_lost(failure, here=True) is lost_here
    assert is_lost(failure, here=False) is lost_there
    assert is_loading(failure) is loading


# --- our own engine -------------------------------------------------------------------------------------------


async def test_nothing_is_waited_for_where_nothing_has_failed() -> None:
    hosts = Hosts(here("restarting"))
    assert await Comebacks(hosts).next("w") is None and hosts.looks == 0


async def test_our_engine_is_back_under_another_key() -> None:
    hosts = Hosts(here())
    past = Comebacks(hosts)
    assert past.failed(here(), LOST, gave=True)
    waiting = asyncio.create_task(past.next("w"))
    await until(lambda: hosts.looks > 2)
    assert not waiting.done(), "it is ready by its last word, which is older than its death"
    hosts.now = [here(key="second")]
    assert await waiting == here(key="second")


async def test_our_engine_is_back_after_it_was_seen_down() -> None:
    hosts = Hosts(here("restarting"))
    past = Comebacks(hosts)
    past.failed(here(), LOST, gave=True)
    waiting = asyncio.create_task(past.next("w"))
    await until(lambda: hosts.looks > 2)
    hosts.now = [here("loading")]
    await until(lambda: hosts.looks > 5)
    assert not waiting.done()
    hosts.now = [here()]
    assert await waiting == here()


async def test_an_engine_that_lives_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    past = Comebacks(Hosts(here()))
    past.failed(here(), LOST, gave=True)
    assert await past.next("w") is None
    monkeypatch.setattr(comebacks, "NOTICE_S", 100)
    past = Comebacks(Hosts(here()))
    past.failed(here(), HostFailed(EngineCrashed("it refuses"), cool_down=False), gave=True)
    assert await past.next("w") is None, "it did not die"


@pytest.mark.parametrize("gone", [here("failed"), here("restarting", content_hash="v"), None])
async def test_what_does_not_come_back_is_not_waited_for(gone: Host | None) -> None:
    past = Comebacks(Hosts(*([gone] if gone else [])))
    past.failed(here(), LOST, gave=True)
    assert await past.next("w") is None


async def test_a_wait_has_an_end_which_new_text_puts_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comebacks, "WAIT_S", 0.05)
    hosts = Hosts(here("restarting"))
    past = Comebacks(hosts)
    past.failed(here(), LOST, gave=True)
    assert await past.next("w") is None and hosts.looks > 2
    hosts.now = [here(key="second")]
    assert await past.next("w") == here(key="second")
    hosts.now = [here("restarting")]
    hosts.looks = 0
    assert await past.next("w") is None and hosts.looks == 1, "the time of this request is used up"
    past.failed(here(key="second"), LOST, gave=True)
    assert await past.next("w") is None and hosts.looks > 3


async def test_a_request_that_kills_each_engine_is_not_sent_for_ever() -> None:
    """Four crashes in a row end a model (engine/server); one request may not bring that about."""
    hosts = Hosts(here(key="0"))
    for gave, most in ((False, 2), (True, 3)):
        past, crashes = Comebacks(hosts), 0
        found: Host | None = here(key="0")
        while found is not None:
            past.failed(found, LOST, gave=gave and crashes == 0)
            crashes += 1
            hosts.now = [here(key=str(crashes))]
            found = await past.next("w")
        assert crashes == most


async def test_an_answer_that_gets_on_may_return_only_so_often() -> None:
    hosts = Hosts(here(key="0"))
    past, returns = Comebacks(hosts), 0
    found: Host | None = here(key="0")
    while found is not None:
        past.failed(found, LOST, gave=True)
        returns += 1
        hosts.now = [here(key=str(returns))]
        found = await past.next("w")
    assert returns == comebacks.LIMIT + 1


# --- peers ----------------------------------------------------------------------------------------------------


async def test_a_peer_is_asked_again_with_growing_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comebacks, "ASK_FIRST_S", 0.02)
    monkeypatch.setattr(comebacks, "ASK_LAST_S", 0.06)
    monkeypatch.setattr(comebacks, "NOTICE_S", 5)
    past = Comebacks(Hosts(peer()))
    assert past.failed(peer(), LOST, gave=True)
    loop = asyncio.get_running_loop()
    pauses = []
    for _ in range(4):
        before = loop.time()
        assert await past.next("w") == peer()
        pauses.append(loop.time() - before)
        assert not past.failed(peer(), LOADING, gave=False), "that it still loads is no news"
    for pause, least in zip(pauses, (0.02, 0.04, 0.06, 0.06), strict=True):
        assert least <= pause < least + 0.2
    past.failed(peer(), LOST, gave=False)
    past.failed(peer(), LOST, gave=False)
    assert await past.next("w") is None


async def test_a_peer_that_cannot_be_reached_is_not_waited_for_unless_it_said_that_it_loads() -> None:
    hosts = Hosts(peer())
    past = Comebacks(hosts)
    past.failed(peer(), HostFailed(unreached(), cool_down=True), gave=False)
    assert await past.next() is None
    hosts.now = [peer("restarting")]
    waiting = asyncio.create_task(past.next())
    await until(lambda: hosts.looks > 3)
    hosts.now = [peer()]
    assert await waiting == peer()


async def test_a_peer_that_was_seen_down_is_asked_before_it_is_seen_up() -> None:
    """News of a peer may be seconds old."""
    past = Comebacks(Hosts(peer("restarting")))
    past.failed(peer(), LOST, gave=True)
    assert await past.next("w") == peer("restarting")
    unasked = Comebacks(Hosts(replace(peer("restarting"), connect=None)))
    unasked.failed(peer(), LOST, gave=True)
    waiting = asyncio.create_task(unasked.next("w"))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    waiting.cancel()


async def test_others_with_the_same_weights_may_come_up_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comebacks, "ASK_FIRST_S", 60)
    monkeypatch.setattr(comebacks, "ASK_LAST_S", 60)
    hosts = Hosts(peer("restarting"), peer("loading", node=C))
    past = Comebacks(hosts)
    past.failed(peer(), LOST, gave=True)
    waiting = asyncio.create_task(past.next("w"))
    await until(lambda: hosts.looks > 2)
    hosts.now = [peer("restarting"), peer(node=C, content_hash="v"), peer(node="d" * 64)]
    assert (await waiting) == peer(node="d" * 64)


async def test_before_the_first_byte_only_those_count_that_failed_or_were_down() -> None:
    hosts = Hosts(peer("failed"), peer(node=C))
    past = Comebacks(hosts)
    past.failed(peer(), LOST, gave=False)
    assert await past.next() is None, "there is a bound for hosts that were never asked"


# --- whole answers --------------------------------------------------------------------------------------------


@asynccontextmanager
async def one_engine(**options: Any) -> AsyncIterator[tuple[running.Gateway, FakeLlamaServer]]:
    """A gateway with one engine of its own, whose first generation has the key "first"."""
    async with (
        FakeLlamaServer.running() as llama,
        running.gateway(model(own(llama, "first")), **options) as gateway,
    ):
        yield gateway, llama


def own(llama: FakeLlamaServer, key: str, state: str = "ready") -> Host:
    return host(A, llama.connect if state == "ready" else None, here=True, api_key=key, state=state, slots=4)


def dies_and_is_rebuilt(
    gateway: running.Gateway, llama: FakeLlamaServer, die: Script, after: Script, *, down: asyncio.Event
) -> Script:
    """The engine dies as `die` does; it is down until `down` is set, and then answers as `after`."""

    async def rebuild() -> None:
        gateway.models[0] = model(own(llama, "", "restarting"))
        await down.wait()
        llama.script = after
        gateway.models[0] = model(own(llama, "second"))

    tasks = []

    async def script(request: Received) -> None:
        await die(request)
        tasks.append(asyncio.create_task(rebuild()))

    return script


REST = replaying(chunk("one two"), chunk(None, "stop"), DONE)


@pytest.mark.parametrize(
    ("body", "die"),
    [
        pytest.param(GREEDY, dying(chunk("one ")), id="a stream that has begun"),
        pytest.param({**HELLO, "temperature": 0}, dying(chunk("one ")), id="a plain answer that has begun"),
        pytest.param(GREEDY, raw(b""), id="a stream before its first byte"),
        pytest.param(HELLO, raw(b""), id="a plain answer before its first byte"),
    ],
)
async def test_an_answer_waits_for_its_engine_and_goes_on(body: dict[str, Any], die: Script) -> None:
    down = asyncio.Event()
    async with one_engine(ping_interval_s=0.02) as (gateway, llama):
        llama.script = dies_and_is_rebuilt(gateway, llama, die, REST, down=down)
        asked = asyncio.create_task(ask(gateway.port, CHAT, body))
        await llama.request(0)
        await until(lambda: not gateway.models[0].ready or gateway.models[0].hosts[0].state == "restarting")
        await asyncio.sleep(0.1)  # several heartbeats
        assert not asked.done()
        down.set()
        reply = await asked
        if body.get("stream"):
            found = read(CHAT, reply.body)
            assert (found.texts, found.errors) == ({0: "one two"}, [])
            assert reply.body.count(b": ") >= 2, "pings go on while it waits"
        else:
            assert reply.json["choices"][0]["message"]["content"] == "one two"
        record = await gateway.record(0)
        assert record.error == "" and not record.resume_failed
        assert llama.requests[-1].headers["authorization"] == "Bearer second"


async def test_a_plain_answer_that_cannot_be_continued_begins_anew_in_the_next_engine() -> None:
    """A begun tool call lives in the engine that began it."""
    down = asyncio.Event()
    down.set()
    call = {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]}
    choice = {"index": 0, "delta": call, "finish_reason": None}
    begun = b"data: " + json.dumps({"id": "one", "created": 1, "choices": [choice]}).encode() + b"\n\n"
    drawn = {**HELLO, "temperature": 0.7}
    async with one_engine() as (gateway, llama):
        whole = replaying(chunk("no tool"), chunk(None, "stop"), DONE)
        llama.script = dies_and_is_rebuilt(gateway, llama, dying(begun), whole, down=down)
        reply = await ask(gateway.port, CHAT, drawn)
        assert reply.json["choices"][0]["message"]["content"] == "no tool"
        llama.script = dies_and_is_rebuilt(gateway, llama, dying(begun), whole, down=down)
        found = read(CHAT, (await ask(gateway.port, CHAT, {**drawn, "stream": True})).body)
        assert len(found.errors) == 1, "what its caller has seen cannot be taken back"


async def test_an_engine_that_does_not_come_back_ends_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comebacks, "WAIT_S", 0.2)
    async with one_engine() as (gateway, llama):
        for state in ("restarting", "failed"):
            gateway.models[0] = model(own(llama, "first"))
            script = dying(chunk("one "))

            async def dies(request: Received, state: str = state, script: Script = script) -> None:
                gateway.models[0] = model(own(llama, "", state))
                await script(request)

            llama.script = dies
            found = read(CHAT, (await ask(gateway.port, CHAT, GREEDY)).body)
            assert found.texts == {0: "one "} and found.errors[0]["error"]["code"] == "engine_connection_lost"


# --- over a tunnel --------------------------------------------------------------------------------------------


@asynccontextmanager
async def a_peer(llama: FakeLlamaServer) -> AsyncIterator[tuple[list[Served], Host]]:
    """Another node with an engine: its models as it sees them, which may be changed, and it as a host."""
    there = [model(own(llama, "first"))]
    requests = PeerRequests(
        models=lambda: there,
        gates=Gates(capacity=8, timeout_s=30),
        limits=Limits(4 << 20, 30),
        finished=lambda _: None,
        stopping=lambda: False,
    )
    yield there, host(B, TunnelPipe.to(requests), slots=4)


@pytest.mark.parametrize("told", [True, False], ids=["its state is known", "no news of it"])
@pytest.mark.parametrize("begun", [True, False], ids=["begun", "not begun"])
async def test_a_client_goes_on_at_the_peer_that_rebuilds_its_engine(told: bool, begun: bool) -> None:
    die = dying(chunk("one ")) if begun else raw(b"")
    async with (
        FakeLlamaServer.running() as llama,
        a_peer(llama) as (there, seen),
        running.gateway(model(seen)) as gateway,
    ):
        back = asyncio.Event()

        async def rebuild() -> None:
            there[0] = Served("demo", "restarting", slots=4, hosts=(own(llama, "", "restarting"),))
            if told:
                gateway.models[0] = model(replace(seen, state="restarting"))
            await back.wait()
            llama.script = REST
            there[0] = model(own(llama, "second"))
            gateway.models[0] = model(seen)

        async def dies(request: Received) -> None:
            rebuilding.append(asyncio.create_task(rebuild()))
            await asyncio.sleep(0)
            await die(request)

        rebuilding: list[asyncio.Task[None]] = []
        llama.script = dies
        asked = asyncio.create_task(ask(gateway.port, CHAT, GREEDY))
        await llama.request(0)
        await asyncio.sleep(0.1)  # several questions
        assert not asked.done()
        back.set()
        found = read(CHAT, (await asked).body)
        assert (found.texts, found.errors) == ({0: "one two"}, [])
        record = await gateway.record(0)
        assert (record.node, record.resumed, record.error) == (B, int(begun), "")


async def test_a_peer_whose_engine_is_not_there_says_that_it_loads() -> None:
    async with FakeLlamaServer.running() as llama, a_peer(llama) as (there, seen):
        there[0] = model(host(A, nowhere, here=True))
        async with running.gateway(model(seen)) as gateway:
            llama.script = plain(200, b"{}")
            asked = asyncio.create_task(ask(gateway.port, CHAT, STREAM))
            await asyncio.sleep(0.05)
            llama.script = streaming([chunk("one"), chunk(None, "stop"), DONE])
            there[0] = model(own(llama, "second"))
            assert read(CHAT, (await asked).body).texts == {0: "one"}
