from random import Random

import pytest

from meshnode.api.body import JsonObject
from meshnode.api.candidates import Candidates
from meshnode.api.endpoints import ENDPOINTS
from meshnode.api.gate import Gates
from meshnode.api.request import Request
from meshnode.api.served import Host, Served
from meshnode.api.upstream import Pipe
from meshnode.core.routing import Router
from tests.api.running import InOrder

A, B, C = "a" * 64, "b" * 64, "c" * 64


async def connect() -> Pipe:
    raise AssertionError


def host(node: str, **more: object) -> Host:
    return Host(**({"node": node, "connect": connect, "context_length": 4096, "rtt_s": 0.01} | more))  # type: ignore[arg-type]


def request(body: str = '{"messages":[{"role":"user","content":"hi"}]}', path: str = "/v1/chat/completions") -> Request:
    parsed = JsonObject.parse(body.encode())
    return Request(ENDPOINTS[path], Served("demo", "ready"), "me", body.encode(), "a/b", True, False, parsed)


def candidates(*hosts: Host, router: object = None, gates: Gates | None = None) -> Candidates:
    models = [Served("demo", "ready", hosts=hosts), Served("other", "ready", hosts=(host("d" * 64),))]
    return Candidates(lambda: models, gates or Gates(capacity=1, timeout_s=1), router)  # type: ignore[arg-type]


def order(found: Candidates, asked: Request | None = None, **more: object) -> list[str]:
    return [entry.node for entry in found.order(asked or request(), **more)]  # type: ignore[arg-type]


def test_the_router_orders_and_gets_what_it_needs() -> None:
    router = InOrder()
    found = candidates(host(B), host(A, capabilities=("completion", "tools")), host(C, state="loading"), router=router)
    asked = request('{"tools":[{}],"messages":[{"role":"user","content":"%s"}]}' % ("x" * 4000))
    assert order(found, asked) == [B, A]
    [wanted] = router.wanted
    assert (wanted.model, wanted.needs) == ("demo", {"completion", "tools"})
    assert 1000 <= wanted.prompt_tokens < 1030 and len(wanted.prefix) == 2


def test_a_need_that_no_host_has_does_not_empty_the_list() -> None:
    router = InOrder()
    order(candidates(host(A, capabilities=("completion",)), host(B), router=router), request('{"tools":[{}]}'))
    assert router.wanted[0].needs == {"completion"}


def test_those_that_failed_and_those_of_other_weights_are_left_out() -> None:
    hosts = [host(A, content_hash="w"), host(B, content_hash="v"), host(C, content_hash="w")]
    found = candidates(*hosts, router=InOrder())
    assert order(found, without={A}) == [B, C]
    assert order(found, content_hash="w") == [A, C]
    assert order(found, without={A}, content_hash="w") == [C]
    assert order(found, without={A, B, C}) == []


@pytest.mark.anyio
async def test_our_own_host_is_seen_with_its_present_queue() -> None:
    gates = Gates(capacity=1, timeout_s=1)
    found = candidates(host("", here=True, slots=1), host(B, busy=1), gates=gates)
    async with gates.slot("demo", slots=1, caller="x"):
        assert [(entry.busy, entry.waiting) for entry in found.hosts("demo")] == [(1, 0), (1, 0)]
    assert [entry.busy for entry in found.hosts("demo")] == [0, 1]
    own = found.find("demo", host("", here=True))
    assert own is not None and own.here
    assert found.find("demo", host(C)) is None and found.find("none", host(B)) is None


def test_where_all_are_unfit_the_roomiest_ready_one_words_the_refusal() -> None:
    class Nobody(InOrder):
        def rank(self, wanted, hosts, now):  # type: ignore[no-untyped-def]
            return []

    hosts = [host(A, context_length=100), host(B, context_length=900), host(C, state="loading", context_length=9999)]
    assert order(candidates(*hosts, router=Nobody())) == [B, A]


def test_with_the_real_router_failures_and_conversations_are_remembered() -> None:
    found = candidates(host(A), host(B), router=Router(Random(1)))
    asked = request()
    chosen = next(entry for entry in found.hosts("demo") if entry.node == B)
    with found.trying(asked, chosen):
        found.failed(asked, chosen)
    assert order(found, asked)[0] == A
    with found.trying(asked, chosen):
        found.succeeded(asked, chosen)
    assert order(found, asked)[0] == B
