from dataclasses import replace
from random import Random

import pytest

from meshnode.api.body import JsonObject
from meshnode.api.candidates import Candidates
from meshnode.api.endpoints import ENDPOINTS
from meshnode.api.gate import Gates
from meshnode.api.paying import Affording
from meshnode.api.request import Request
from meshnode.api.served import Host, Served
from meshnode.api.upstream import Pipe
from meshnode.core.prices import Price
from meshnode.core.routing import Router
from meshnode.errors import MeshnodeError, OutOfRadius, PaymentsOff, PriceAboveCeiling
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
        assert [(entry.busy, entry.waiting) for entry in found.hosts(request())] == [(1, 0), (1, 0)]
    assert [entry.busy for entry in found.hosts(request())] == [0, 1]
    own = found.find(request(), host("", here=True))
    assert own is not None and own.here
    assert found.find(request(), host(C)) is None
    assert found.find(replace(request(), model=Served("none", "ready")), host(B)) is None


def test_where_all_are_unfit_the_roomiest_ready_one_words_the_refusal() -> None:
    class Nobody(InOrder):
        def rank(self, wanted, hosts, now):  # type: ignore[no-untyped-def]
            return []

    hosts = [host(A, context_length=100), host(B, context_length=900), host(C, state="loading", context_length=9999)]
    assert order(candidates(*hosts, router=Nobody())) == [B, A]


def test_with_the_real_router_failures_and_conversations_are_remembered() -> None:
    found = candidates(host(A), host(B), router=Router(Random(1)))
    asked = request()
    chosen = next(entry for entry in found.hosts(request()) if entry.node == B)
    with found.trying(asked, chosen):
        found.failed(asked, chosen)
    assert order(found, asked)[0] == A
    with found.trying(asked, chosen):
        found.succeeded(asked, chosen)
    assert order(found, asked)[0] == B


# --- the radius -----------------------------------------------------------------------------------------------------

NEAR_AND_FAR = (host(C, radius="public"), host(B, radius="trusted"), host(A, radius="local"))


@pytest.mark.parametrize(("radius", "seen"), [("local", [A]), ("trusted", [A, B]), ("public", [A, B, C])])
@pytest.mark.parametrize("router", [InOrder(), None], ids=["any router", "the real one"])
def test_hosts_beyond_the_radius_are_never_seen(radius: str, seen: list[str], router: object) -> None:
    """Whatever the router would say of them."""
    found = candidates(*NEAR_AND_FAR, router=router)
    asked = replace(request(), radius=radius)  # type: ignore[arg-type]
    assert order(found, asked) == seen
    assert sorted(entry.node for entry in found.hosts(asked)) == sorted(seen)
    assert [entry.node for entry in NEAR_AND_FAR if found.find(asked, entry)] == seen[::-1]
    assert order(found, asked, without={A}) == seen[1:]


def test_without_a_word_a_stranger_is_no_candidate_even_as_the_only_one() -> None:
    found = candidates(host(C, radius="public", content_hash="w"))
    assert order(found) == order(found, content_hash="w") == []
    refusal = found.refusal(request())
    assert refusal is not None and "1 public node serves demo" in refusal.message
    assert found.refusal(replace(request(), radius="public")) is None
    assert candidates().refusal(request()) is None


def test_a_node_that_is_known_in_two_ways_is_asked_in_the_nearer_one() -> None:
    far, near = host(B, radius="public", slots=9), host(B, radius="trusted", slots=1)
    for hosts in ((far, near), (near, far)):
        [found] = candidates(*hosts).order(replace(request(), radius="public"))
        assert (found.radius, found.slots) == ("trusted", 1)


def test_a_host_that_is_trusted_no_more_is_gone_for_the_request() -> None:
    """Between its choice and the moment in which something is sent there."""
    hosts = [host(B, radius="trusted")]
    models = [Served("demo", "ready", hosts=tuple(hosts))]
    found = Candidates(lambda: models, Gates(capacity=1, timeout_s=1))
    [chosen] = found.order(request())
    assert found.find(request(), chosen) is not None
    models[0] = Served("demo", "ready", hosts=(host(B, radius="public"),))
    assert found.find(request(), chosen) is None


def test_where_none_is_fit_a_nearer_one_words_the_refusal() -> None:
    class Nobody(InOrder):
        def rank(self, wanted, hosts, now):  # type: ignore[no-untyped-def]
            return []

    hosts = [host(A, radius="public", context_length=9999), host(B, radius="trusted", context_length=10)]
    assert order(candidates(*hosts, router=Nobody()), replace(request(), radius="public")) == [B, A]


def test_hosts_whose_price_is_not_paid_are_never_seen() -> None:
    class Ceiling:
        """Pays up to 10 a million."""

        def refusal(self, price: Price, chain: int, model: str, /) -> MeshnodeError | None:
            return PriceAboveCeiling(f"{price.tokens_out} on {chain}") if price.tokens_out > 10 else None

    def selling(node: str, price: int) -> Host:
        return host(node, price=Price(price, price), chain=7, connect_paid=connect, radius="public")

    models = [Served("demo", "ready", hosts=(selling(A, 11), selling(B, 10)))]
    asked = replace(request(), radius="public")
    found = Candidates(lambda: models, Gates(capacity=1, timeout_s=1), affording=Affording(Ceiling()))  # type: ignore[arg-type]
    assert order(found, asked) == [B] and found.refusal(asked) is not None
    assert found.find(asked, models[0].hosts[0]) is None
    models[0] = replace(models[0], hosts=(selling(A, 11),))
    assert order(found, asked) == []
    refusal = found.refusal(asked)
    assert isinstance(refusal, PriceAboveCeiling) and refusal.detail == "11 on 7"
    assert isinstance(found.refusal(replace(asked, radius="trusted")), OutOfRadius), "not asked for at all"
    without = Candidates(lambda: models, Gates(capacity=1, timeout_s=1))
    assert order(without, asked) == [] and isinstance(without.refusal(asked), PaymentsOff)
