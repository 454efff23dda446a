"""What widens a radius and what does not; names, states and abilities of models beyond it decide nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from meshnode.api.answering import Answering
from meshnode.api.endpoints import ENDPOINTS
from meshnode.api.gate import Gates
from meshnode.api.paying import Affording
from meshnode.api.peer_requests import PeerRequests
from meshnode.api.radius_control import RadiusControl
from meshnode.api.reaching import asked_radius, find_reachable, out_of_radius
from meshnode.api.request import Limits
from meshnode.api.served import Host, Served, any_ready
from meshnode.api.upstream import Pipe
from meshnode.core.prices import Price
from meshnode.errors import (
    BadRequest,
    EngineCrashed,
    Forbidden,
    MeshnodeError,
    ModelLoading,
    ModelNotFound,
    NoModelServed,
    OutOfRadius,
    PriceAboveCeiling,
)
from tests.api import running
from tests.api.fake_llama import FakeLlamaServer, Received, Script, plain, raw, streaming
from tests.api.raw_http import Connection, ask, request
from tests.api.reading import read
from tests.api.running import DONE, HELLO, LAST, STREAM, TOKEN, InOrder
from tests.api.test_answering import GREEDY, Stage, chunk, dying, host, replaying, stage, two_engines
from tests.api.test_answering import model as on_hosts
from tests.api.test_multipart import TYPE, form
from tests.api.tunnel import Asked, Reply

pytestmark = pytest.mark.anyio
A, B = "a" * 64, "b" * 64
WHOLE = [TOKEN, LAST, DONE]
CHAT, EMBED = "/v1/chat/completions", "/v1/embeddings"


async def connect() -> Pipe:
    raise AssertionError


def model(name: str, *radii: str, state: Any = "ready", **more: Any) -> Served:
    hosts = tuple(
        Host(f"{name}{number}", connect=connect, radius=radius, state=state) for number, radius in enumerate(radii)
    )
    return Served(name, state, hosts=hosts, **more)


def find(name: object, models: Sequence[Served], radius: str = "trusted", path: str = CHAT, **aliases: str) -> str:
    found = find_reachable(name, models, aliases, any_ready, endpoint=ENDPOINTS[path], radius=radius)
    assert all(host in ("local", "trusted", "public")[: 1 + ("local", "trusted", "public").index(radius)]
               for host in (entry.radius for entry in found.hosts))  # fmt: skip
    return found.id


def refused(name: object, models: Sequence[Served], radius: str = "trusted", path: str = CHAT) -> OutOfRadius:
    with pytest.raises(OutOfRadius) as caught:
        find(name, models, radius, path)
    return caught.value


OURS, FRIENDS, FAR = model("ours", "local"), model("friends", "trusted"), model("far", "public", "public")


# --- what is found ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("radius", "found"),
    [("local", ["ours"]), ("trusted", ["ours", "friends"]), ("public", ["ours", "friends", "far"])],
)
def test_a_model_is_found_where_the_request_may_go(radius: str, found: list[str]) -> None:
    models = [OURS, FRIENDS, FAR]
    assert [find(name, models, radius) for name in found] == found
    for name in {"ours", "friends", "far"} - set(found):
        refused(name, models, radius)


def test_a_name_means_a_nearer_model_before_a_strangers() -> None:
    """A stranger may call its model whatever it likes."""
    lure = model("qwen3", "public", names=("gpt-4", "friends"))
    near = model("friends", "trusted", names=("qwen3",))
    for models in ([lure, near], [near, lure]):
        assert find("qwen3", models, "public") == find("friends", models, "public") == "friends"
        assert find(None, models, "public") == "friends"
        assert find("gpt-4", models, "public") == "qwen3"
        assert refused("gpt-4", models)


def test_what_is_missing_near_by_is_told_without_a_word_of_strangers() -> None:
    with pytest.raises(ModelNotFound) as caught:
        find("fart", [OURS, FAR])
    assert caught.value.fix == "served here: ours"
    with pytest.raises(NoModelServed):
        find("auto", [model("far", "public", state="loading")])


def test_a_model_that_loads_near_by_is_worth_waiting_for() -> None:
    both = model("demo", "trusted", state="loading")
    both = replace(both, hosts=(*both.hosts, *model("demo", "public").hosts))
    with pytest.raises(ModelLoading):
        find("demo", [both])
    assert find("demo", [both], "public") == "demo"


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["far", "FAR", "auto", None, "alias"])
def test_the_refusal_says_how_many_could_answer(name: object) -> None:
    with pytest.raises(OutOfRadius) as caught:
        find(name, [FAR], alias="far")
    error = caught.value
    assert (error.http_status, error.exit_code) == (403, 8)
    assert error.detail == "2 public nodes serve far, and this request may go no further than trusted"
    assert "x-meshnode-radius: public" in error.fix


def test_only_hosts_that_are_ready_are_counted_and_each_by_its_radius() -> None:
    mixed = Served("m", "ready", hosts=(*model("m", "public", "public", "trusted").hosts, Host("x", radius="public")))
    error = refused("m", [mixed], "local")
    assert error.detail == "1 trusted and 2 public nodes serve m, and this request may go no further than local"
    assert error.fix == "send the header x-meshnode-radius: trusted"
    assert refused("friends", [FRIENDS], "local").detail.startswith("1 trusted node serves friends,")
    assert out_of_radius(mixed, "public") is None and out_of_radius(OURS, "local") is None


def test_a_model_that_failed_near_by_is_refused_with_who_else_could() -> None:
    broken = model("demo", "local", state="failed", detail="out of memory")
    with pytest.raises(EngineCrashed):
        find("demo", [broken])
    both = replace(broken, hosts=(*broken.hosts, *model("demo", "public").hosts))
    assert "1 public node serves demo" in refused("demo", [both]).message


def test_what_a_nearer_model_cannot_do_is_not_given_to_a_stranger_either() -> None:
    chat = model("chat", "local", capabilities=("completion", "chat"))
    vectors = model("vectors", "public", capabilities=("embedding",))
    assert "1 public node serves vectors" in refused("vectors", [chat, vectors], path=EMBED).message
    assert "1 public node serves vectors" in refused("auto", [vectors], path=EMBED).message
    with pytest.raises(BadRequest, match="needs embedding, and chat can do completion, chat"):
        find("chat", [chat, vectors], path=EMBED)
    with pytest.raises(BadRequest, match="needs embedding"):
        find("auto", [chat], path=EMBED)
    assert find("vectors", [chat, vectors], "public", EMBED) == "vectors"


@pytest.mark.parametrize("name", ["", 7, True, [], {"radius": "public"}])
def test_nonsense_stays_what_it_is(name: object) -> None:
    with pytest.raises(MeshnodeError) as caught:
        find(name, [OURS, FAR])
    assert type(caught.value) is BadRequest


# --- the head of a request ----------------------------------------------------------------------------------------


def head(*values: str) -> dict[str, Any]:
    return {"headers": [(b"host", b"localhost"), *((b"x-meshnode-radius", value.encode()) for value in values)]}


def test_the_header_counts_or_else_the_default() -> None:
    assert asked_radius(head(), "trusted", may_widen=False) == "trusted"
    assert asked_radius(head("public"), "local", may_widen=True) == "public"
    assert asked_radius(head("local"), "public", may_widen=False) == "local"
    for wrong in (["everyone"], [""], ["public", "public"]):
        with pytest.raises(BadRequest, match="x-meshnode-radius"):
            asked_radius(head(*wrong), "trusted", may_widen=True)
    with pytest.raises(Forbidden, match="web page"):
        asked_radius(head("public"), "trusted", may_widen=False)


# --- through the gateway ------------------------------------------------------------------------------------------


@pytest.fixture
async def far(llama: FakeLlamaServer) -> Served:
    """A model that a stranger serves."""
    llama.script = streaming([TOKEN, LAST, DONE])
    hosts = (Host("f" * 64, connect=llama.connect, radius="public"),)
    return Served("demo", "ready", slots=4, context_length=4096, hosts=hosts)


SOUND = form(("model", b"demo"), ("file", b"RIFF"))
BODIES: list[tuple[str, object, dict[str, str]]] = [
    (CHAT, HELLO, {}),
    (CHAT, STREAM, {}),
    (CHAT, {**HELLO, "model": "auto"}, {}),
    (CHAT, {**HELLO, "radius": "public", "x-meshnode-radius": "public", "metadata": {"radius": "public"}}, {}),
    (CHAT, {**HELLO, "messages": [{"role": "system", "content": "x-meshnode-radius: public"}]}, {}),
    ("/v1/completions", {"model": "demo", "prompt": "x-meshnode-radius: public"}, {}),
    ("/v1/messages", HELLO, {}),
    ("/v1/responses", {"model": "demo", "input": "hello"}, {}),
    ("/v1/responses", {"model": "demo", "input": "hello", "stream": True}, {}),
    ("/v1/embeddings", {"model": "demo", "input": "hello"}, {}),
    ("/v1/rerank", {"model": "auto", "query": "hello", "documents": ["a"]}, {}),
    ("/v1/messages/count_tokens", HELLO, {}),
    ("/v1/audio/transcriptions", SOUND, {"content_type": TYPE}),
    (CHAT, HELLO, {"x_forwarded_radius": "public", "x_meshnode_node": "f" * 10, "cookie": "x-meshnode-radius=public"}),
]


@pytest.mark.parametrize(("path", "body", "headers"), BODIES, ids=range(len(BODIES)))
async def test_without_the_header_nothing_leaves_for_a_stranger(
    far: Served, llama: FakeLlamaServer, path: str, body: object, headers: dict[str, str]
) -> None:
    async with running.gateway(far) as gateway:
        reply = await ask(gateway.port, path, body, **headers)
        assert reply.status == 403 and "1 public node serves demo" in reply.error["message"]
        assert "x-meshnode-radius: public" in reply.error["message"]
        if path.startswith("/v1/messages"):
            assert (reply.json["type"], reply.error["type"]) == ("error", "permission_error")
        else:
            assert reply.error["code"] == "out_of_radius"
        assert llama.requests == [] and "x-meshnode-radius" not in reply.headers
        record = await gateway.record(0)
        assert (record.error, record.reached, record.radius) == ("out-of-radius", "", "")


@pytest.mark.parametrize("body", [HELLO, STREAM], ids=["plain", "streamed"])
async def test_with_it_a_stranger_answers_and_is_not_told_of_it(
    far: Served, llama: FakeLlamaServer, body: object
) -> None:
    async with running.gateway(far) as gateway:
        reply = await ask(gateway.port, CHAT, body, x_meshnode_radius="public")
        assert (reply.status, reply.headers["x-meshnode-radius"]) == (200, "public")
        assert "x-meshnode-radius" not in llama.requests[0].headers
        record = await gateway.record(0)
        assert (record.radius, record.reached, record.here, record.node) == ("public", "public", False, "f" * 64)


async def test_the_header_may_say_nothing_else(far: Served, llama: FakeLlamaServer) -> None:
    async with running.gateway(far) as gateway, await Connection.open(gateway.port) as caller:
        for value in ("", "world", "public, local", "2"):
            reply = await caller.ask(CHAT, HELLO, x_meshnode_radius=value)
            assert reply.status == 400 and "x-meshnode-radius" in reply.error["message"]
        twice = request(CHAT, HELLO, headers={"X-Meshnode-Radius": "local\r\nX-Meshnode-Radius: public"})
        await caller.send(twice)
        assert (await caller.reply()).status == 400
        assert llama.requests == []


async def test_a_web_page_widens_nothing(far: Served, llama: FakeLlamaServer) -> None:
    """One on this machine is let in without a key; it may say less, and get what the default allows."""
    radius = RadiusControl("trusted")
    page = {"origin": "http://localhost:8080"}
    async with running.gateway(far, radius=radius) as gateway:
        reply = await ask(gateway.port, CHAT, HELLO, x_meshnode_radius="public", **page)
        assert (reply.status, reply.error["code"]) == (403, "forbidden")
        assert reply.headers["access-control-allow-origin"] == page["origin"], "the page is told, too"
        assert (await ask(gateway.port, CHAT, HELLO, **page)).error["code"] == "out_of_radius"
        assert llama.requests == []
        await radius.change({"radius": "public"})
        assert (await ask(gateway.port, CHAT, HELLO, **page)).status == 200
        assert (await ask(gateway.port, CHAT, HELLO, x_meshnode_radius="local", **page)).status == 403
    async with running.gateway(far, pages_may_widen=True) as gateway:
        assert (await ask(gateway.port, CHAT, HELLO, x_meshnode_radius="public", **page)).status == 200


async def test_the_owner_changes_the_default_while_the_node_runs(far: Served) -> None:
    radius = RadiusControl("trusted")
    async with running.gateway(far, radius=radius) as gateway:
        assert (await ask(gateway.port, CHAT, HELLO)).status == 403
        await radius.change({"radius": "public"})
        assert (await ask(gateway.port, CHAT, HELLO)).headers["x-meshnode-radius"] == "public"
        assert (await ask(gateway.port, CHAT, HELLO, x_meshnode_radius="trusted")).status == 403
        await radius.change({"radius": "local"})
        assert "no further than local" in (await ask(gateway.port, CHAT, HELLO)).error["message"]


async def test_models_of_strangers_are_listed_with_how_far_they_are(far: Served) -> None:
    async with running.gateway(far) as gateway:
        [entry] = (await ask(gateway.port, "/v1/models")).json["data"]
        assert entry["meshnode"]["radius"] == entry["meshnode"]["hosts"][0]["radius"] == "public"


async def test_a_request_of_a_peer_goes_to_nobody_else_whatever_it_says(far: Served, llama: FakeLlamaServer) -> None:
    body = json.dumps({**HELLO, "x-meshnode-radius": "public", "radius": "public"}).encode()
    here = PeerRequests(
        models=lambda: [far],
        gates=Gates(capacity=1, timeout_s=1),
        limits=Limits(1 << 20, 30),
        finished=lambda record: None,
        stopping=lambda: False,
    )
    reply = Reply()
    await here.answer(Asked(CHAT, body), reply)
    assert reply.status == 404 and llama.requests == []


# --- in every attempt -------------------------------------------------------------------------------------------

FAILING = [raw(b""), plain(503, b'{"error":{"message":"no"}}'), plain(500, b'{"error":{"message":"no"}}')]


@asynccontextmanager
async def near_and_far(**options: Any) -> AsyncIterator[Stage]:
    """A friend's host and a stranger's, of the same weights."""
    async with stage(**options) as made:
        made.gateway.models[0] = on_hosts(host(A, made.first.connect), host(B, made.second.connect, radius="public"))
        made.second.script = replaying(chunk("one two"), chunk(None, "stop"), DONE)
        yield made


@pytest.mark.parametrize("script", [*FAILING, plain(429, b'{"error":{"message":"full"}}'), streaming([])])
@pytest.mark.parametrize("body", [STREAM, HELLO], ids=["streamed", "plain"])
async def test_when_a_nearer_host_fails_a_stranger_is_asked_only_if_it_may(
    script: Script, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshnode.api.comebacks.WAIT_S", 0.05)
    async with near_and_far() as made:
        made.first.script = script
        assert (await ask(made.port, CHAT, body)).status >= 429
        assert made.second.requests == []
        assert (await made.gateway.record(0)).reached == "trusted"
        reply = await ask(made.port, CHAT, body, x_meshnode_radius="public")
        assert (reply.status, reply.headers["x-meshnode-radius"]) == (200, "public")
        record = await made.gateway.record(1)
        assert (record.reached, record.radius, record.node, record.here) == ("public", "public", B, False)


async def test_full_queues_of_any_number_of_nearer_hosts_lead_to_a_stranger_that_may_be_asked() -> None:
    async with two_engines() as (first, second):
        first.script, second.script = plain(429, b'{"error":{"message":"full"}}'), streaming(WHOLE)
        near = [host(f"{number:064x}", first.connect) for number in range(5)]
        both = on_hosts(*near, host(B, second.connect, radius="public"))
        async with running.gateway(both, router=InOrder()) as gateway:
            assert (await ask(gateway.port, CHAT, STREAM)).status == 429
            assert second.requests == []
            reply = await ask(gateway.port, CHAT, STREAM, x_meshnode_radius="public")
            assert (reply.status, reply.headers["x-meshnode-radius"]) == (200, "public")


@pytest.mark.parametrize("body", [STREAM, HELLO], ids=["streamed", "plain"])
async def test_an_answer_that_broke_off_is_not_continued_by_a_stranger_unasked(
    body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it asked to count tokens, which would show it the prompt."""
    monkeypatch.setattr("meshnode.api.comebacks.WAIT_S", 0.05)
    async with near_and_far() as made:
        made.first.script = dying(chunk("one "))
        reply = await ask(made.port, CHAT, {**body, "temperature": 0})
        assert made.second.requests == []
        if body is STREAM:
            found = read(CHAT, reply.body)
            assert found.texts == {0: "one "} and len(found.errors) == 1
        else:
            assert reply.status == 502
        record = await made.gateway.record(0)
        assert (record.reached, record.radius, record.resumed) == ("trusted", "trusted", 0)


async def test_a_stream_that_goes_on_further_away_says_so_in_its_comment() -> None:
    async with near_and_far() as made:
        made.first.script = dying(chunk("one "))
        reply = await ask(made.port, CHAT, GREEDY, x_meshnode_radius="public")
        assert reply.headers["x-meshnode-radius"] == "trusted"  # it was, when the head went out
        assert reply.body.startswith(chunk("one ") + b": meshnode-resumed 1 radius=public\n\n")
        assert read(CHAT, reply.body).texts == {0: "one two"}
        record = await made.gateway.record(0)
        assert (record.radius, record.reached, record.resumed) == ("public", "public", 1)


async def test_a_plain_answer_that_goes_on_further_away_says_so_in_its_head() -> None:
    async with near_and_far() as made:
        made.first.script = dying(chunk("one "))
        reply = await ask(made.port, CHAT, {**HELLO, "temperature": 0}, x_meshnode_radius="public")
        assert (reply.headers["x-meshnode-radius"], reply.headers["x-meshnode-resumed"]) == ("public", "1")


async def test_the_furthest_that_took_part_is_told_also_where_a_nearer_one_ends_the_answer() -> None:
    async with near_and_far() as made:
        stranger = host(A, made.first.connect, radius="public")

        async def first(request: Received) -> None:
            made.gateway.models[0] = on_hosts(stranger, host(B, made.second.connect, radius="trusted"))
            await dying(chunk("one "))(request)

        made.first.script = first
        for body, where in (({**HELLO, "temperature": 0}, "b" * 10), (GREEDY, "a" * 10)):
            made.gateway.models[0] = on_hosts(stranger)
            reply = await ask(made.port, CHAT, body, x_meshnode_radius="public")
            assert (reply.headers["x-meshnode-radius"], reply.headers["x-meshnode-node"]) == ("public", where)
        assert b": meshnode-resumed 1\n\n" in reply.body
        assert {(record.radius, record.resumed) for record in made.gateway.records} == {("public", 1)}


async def test_a_head_that_goes_out_before_anyone_answers_tells_no_radius_and_a_comment_does() -> None:
    async with near_and_far(ping_interval_s=0.05) as made:
        slow = asyncio.Event()

        async def late(request: Received) -> None:
            await slow.wait()
            await streaming(WHOLE)(request)

        made.gateway.models[0] = on_hosts(host(A, made.first.connect))
        made.first.script = late
        async with await Connection.open(made.port) as caller:
            await caller.send(request(CHAT, STREAM))
            head = await caller.head()
            assert head.status == 200 and "x-meshnode-radius" not in head.headers
            slow.set()
            body = b""
            while piece := await caller.chunk():
                body += piece
        assert b": meshnode-radius trusted\n\n" + TOKEN in body and body.count(b"meshnode-radius") == 1


async def test_a_refusal_that_a_host_passed_on_says_how_far_the_prompt_went() -> None:
    async with near_and_far() as made:
        made.first.script, made.second.script = FAILING[0], plain(400, b'{"error":{"message":"too long"}}')
        reply = await ask(made.port, CHAT, STREAM, x_meshnode_radius="public")
        assert (reply.status, reply.headers["x-meshnode-radius"]) == (400, "public")


async def test_when_only_strangers_are_left_their_number_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The nearer host was there when the model was looked up, and is gone when it is to be asked."""
    async with near_and_far() as made:
        far = made.gateway.models[0].hosts[1:]
        gone = Served("demo", "ready", hosts=far)
        monkeypatch.setattr(
            "meshnode.api.answering.Answering.run", _after(lambda: made.gateway.models.__setitem__(0, gone))
        )
        reply = await ask(made.port, CHAT, STREAM)
        assert reply.status == 403 and "1 public node serves demo" in reply.error["message"]
        assert made.first.requests == made.second.requests == []


def _after(change: Callable[[], None]) -> Callable[[Answering], Awaitable[None]]:
    """Answering.run, after something has changed."""
    run = Answering.run

    async def changed(answering: Answering) -> None:
        change()
        await run(answering)

    return changed


# --- hosts that want to be paid -----------------------------------------------------------------------------------


class Ceiling:
    """Pays up to 10 a million."""

    def refusal(self, price: Price, chain: int, model: str, /) -> MeshnodeError | None:
        return PriceAboveCeiling(f"{model} costs {price.tokens_out}") if price.tokens_out > 10 else None


def selling(name: str, *prices: int, **more: Any) -> Served:
    hosts = [
        Host(f"{name}{price}", connect=connect, radius="public", price=Price(0, price), connect_paid=connect)
        for price in prices
    ]
    return Served(name, "ready", hosts=tuple(hosts), **more)


def reach(name: object, *models: Served, radius: str = "public") -> Served:
    return find_reachable(
        name,
        models,
        {},
        any_ready,
        endpoint=ENDPOINTS[CHAT],
        radius=radius,
        affording=Affording(Ceiling()),  # type: ignore[arg-type]
    )


def test_a_model_has_the_hosts_whose_price_is_paid() -> None:
    found = reach("demo", selling("demo", 9, 10, 11))
    assert [host.node for host in found.hosts] == ["demo9", "demo10"]


def test_a_model_that_costs_too_much_is_refused_with_the_figure() -> None:
    with pytest.raises(PriceAboveCeiling, match="demo costs 11"):
        reach("demo", selling("demo", 12, 11), model("other", "public"))
    with pytest.raises(PriceAboveCeiling):
        reach(None, selling("demo", 11))
    with pytest.raises(PriceAboveCeiling):
        reach("auto", selling("demo", 11))


def test_what_costs_too_much_decides_nothing_as_long_as_something_else_is_found() -> None:
    assert reach("auto", selling("dear", 11), model("free", "public")).id == "free"
    assert reach("name", selling("dear", 11, names=("name",)), model("free", "public", names=("name",))).id == "free"
    with pytest.raises(ModelNotFound):
        reach("nothing", selling("dear", 11), model("free", "public"))


def test_a_request_that_may_not_go_to_strangers_is_told_that_first() -> None:
    with pytest.raises(OutOfRadius):
        reach("demo", selling("demo", 11), radius="trusted")


def test_a_dear_stranger_within_reach_counts_before_anybody_beyond_it() -> None:
    far = model("demo", "trusted")
    assert isinstance(far, Served)
    with pytest.raises(OutOfRadius):
        reach("demo", far, radius="local")
