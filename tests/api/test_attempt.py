import asyncio
import json

import pytest

from meshnode.api.aggregate import StreamFailed
from meshnode.api.attempt import (
    EngineRefused,
    Errand,
    Failure,
    HostFailed,
    error_of,
    exchange_with,
    is_part,
    may_go_elsewhere,
    part_id,
    tells_against,
)
from meshnode.api.endpoints import ENDPOINTS
from meshnode.api.gate import Gates
from meshnode.api.joining import Differs
from meshnode.api.served import Host
from meshnode.api.upstream import UpstreamBroken
from meshnode.errors import EngineCrashed, MonthlyCapReached, PriceAboveCeiling
from tests.api.fake_llama import FakeLlamaServer, plain, raw

pytestmark = pytest.mark.anyio


def errand(path: str = "/v1/chat/completions") -> Errand:
    return Errand("demo", ENDPOINTS[path], b"{}", "application/json", "me")


async def attempt(
    host: Host | None, *, here: bool, gates: Gates | None = None, path: str = "/v1/chat/completions"
) -> bytes:
    gates = gates or Gates(capacity=0, timeout_s=1)
    async with exchange_with(lambda: host, errand(path), here=here, gates=gates, slots=1) as exchange:
        return await exchange.read_all(100)


@pytest.mark.parametrize(
    ("status", "here", "failed", "elsewhere", "cool_down"),
    [
        (400, True, False, False, False),
        (402, True, False, False, False),
        (402, False, False, True, True),
        (404, True, False, False, False),
        (404, False, False, True, True),
        (408, False, False, True, True),
        (429, False, False, True, True),
        (422, False, False, False, False),
        (500, False, False, True, False),
        (500, True, False, True, False),
        (501, False, False, False, False),
        (502, False, False, True, True),
        (503, False, False, True, True),
        (503, True, True, True, True),
        (401, True, True, True, True),
        (403, False, True, True, True),
    ],
)
async def test_what_each_status_means(
    status: int, here: bool, failed: bool, elsewhere: bool, cool_down: bool, llama: FakeLlamaServer
) -> None:
    llama.script = plain(status, b'{"error":{"message":"because","type":"t"}}')
    with pytest.raises(HostFailed if failed else EngineRefused) as caught:
        await attempt(Host("b" * 64, here, llama.connect), here=here)
    assert caught.value.cool_down is cool_down
    if isinstance(caught.value, EngineRefused):
        assert (caught.value.status, caught.value.elsewhere, str(caught.value)) == (status, elsewhere, "because")


async def test_a_broken_connection_is_a_failure_of_the_host(llama: FakeLlamaServer) -> None:
    for answer in (b"", b"garbage", b"HTTP/1.1 500 X\r\nContent-Length: 9\r\n\r\n{"):
        llama.script = raw(answer)
        with pytest.raises(HostFailed) as caught:
            await attempt(Host("b" * 64, connect=llama.connect), here=False)
        assert caught.value.cool_down and caught.value.error.code == "engine-connection-lost"


async def test_a_host_that_is_gone_or_loads_is_no_host(llama: FakeLlamaServer) -> None:
    for host, here in ((None, True), (Host(state="restarting"), True), (Host("b" * 64), False)):
        with pytest.raises(HostFailed) as caught:
            await attempt(host, here=here)
        assert caught.value.error.http_status == 503 and caught.value.cool_down is not here


async def test_only_our_own_engine_is_waited_for_in_our_queue(llama: FakeLlamaServer) -> None:
    llama.script = plain(200, b"{}")
    gates = Gates(capacity=0, timeout_s=1)
    async with gates.slot("demo", slots=1, caller="other"):
        own = Host(here=True, connect=llama.connect)
        with pytest.raises(HostFailed) as caught:
            await attempt(own, here=True, gates=gates)
        assert (caught.value.error.http_status, caught.value.cool_down) == (429, False)
        assert await attempt(own, here=True, gates=gates, path="/v1/messages/count_tokens") == b"{}"
        assert await attempt(Host("b" * 64, connect=llama.connect), here=False, gates=gates) == b"{}"
    assert await attempt(own, here=True, gates=gates) == b"{}"
    assert gates.snapshot("demo").busy == 0


async def test_when_to_come_back_is_passed_on(llama: FakeLlamaServer) -> None:
    llama.script = raw(b"HTTP/1.1 429 X\r\nRetry-After: 7\r\nContent-Length: 2\r\n\r\n{}")
    with pytest.raises(EngineRefused) as caught:
        await attempt(Host("b" * 64, connect=llama.connect), here=False)
    assert caught.value.retry_after == "7"


async def test_a_peer_learns_the_id_of_the_request_and_whether_it_is_the_rest_of_an_answer(
    llama: FakeLlamaServer,
) -> None:
    llama.script = plain(200, b"{}")
    gates = Gates(capacity=0, timeout_s=1)
    for continues in (False, True):
        sent = Errand("demo", ENDPOINTS["/v1/messages"], b"{}", "a/b", "me", "req_1", continues=continues)
        for here in (False, True):
            found = Host("b" * 64, here, llama.connect)
            async with exchange_with(lambda found=found: found, sent, here=here, gates=gates, slots=1):
                pass
    ids = [received.headers.get("x-meshnode-request-id") for received in llama.requests]
    assert ids == ["req_1", None, "req_1.part", None]
    assert [is_part(part_id("req_1", continues=continues)) for continues in (False, True)] == [False, True]


async def test_the_rest_of_an_answer_goes_ahead_of_our_own_queue(llama: FakeLlamaServer) -> None:
    llama.script = plain(200, b"{}")
    gates, order = Gates(capacity=3, timeout_s=5), []
    own = Host(here=True, connect=llama.connect)

    async def run(name: str, continues: bool) -> None:
        sent = Errand("demo", ENDPOINTS["/v1/messages"], b"{}", "a/b", name, continues=continues)
        async with exchange_with(lambda: own, sent, here=True, gates=gates, slots=1):
            order.append(name)

    async with gates.slot("demo", slots=1, caller="x"):
        tasks = [asyncio.create_task(run(name, name == "rest")) for name in ("one", "two", "rest")]
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert order == ["rest", "one", "two"]


def test_whatever_an_engine_says_becomes_an_error_object() -> None:
    assert error_of(json.dumps({"error": {"message": "a"}}).encode()) == {"message": "a"}
    for said in (b"<html>", b'{"error":"text"}', b"[1]", b"[" * 100_000, b"\xff"):
        assert set(error_of(said)) == {"message"}


@pytest.mark.parametrize(
    ("failure", "elsewhere", "against"),
    [
        (HostFailed(EngineCrashed(), cool_down=True), True, True),
        (HostFailed(MonthlyCapReached(), cool_down=False), True, False),
        (HostFailed(PriceAboveCeiling("in its quote"), cool_down=True), True, True),
        (EngineRefused(503, {}, elsewhere=True), True, True),
        (EngineRefused(400, {}), False, False),
        (StreamFailed({"code": 400}), False, True),
        (StreamFailed({"code": 500}), True, True),
        (UpstreamBroken(), True, True),
        (Differs("it differs"), True, False),
    ],
)
def test_what_a_failure_means_for_other_hosts_and_for_this_one(
    failure: Failure, elsewhere: bool, against: bool
) -> None:
    assert (may_go_elsewhere(failure), tells_against(failure)) == (elsewhere, against)
