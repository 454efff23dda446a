import json

import pytest

from meshnode.api.body import JsonObject
from meshnode.api.endpoints import ENDPOINTS
from meshnode.api.request import Request, as_stream, choose_served
from meshnode.api.served import Host, Served

CHAT = ENDPOINTS["/v1/chat/completions"]
PEER, OWN = Host("b" * 64), Host(here=True)


def request(text: str, endpoint=CHAT, **more: object) -> Request:
    values = {"stream": True, "rebuild": False, "parsed": JsonObject.parse(text.encode())}
    return Request(endpoint, Served("demo", "ready"), "me", text.encode(), "application/json", **(values | more))


def test_a_peer_is_told_the_id_and_nothing_else_changes() -> None:
    aliased = request('{"model" : "gpt-4", "seed":1e2,  "messages":[]}')
    assert aliased.body_for(OWN) is aliased.body
    assert aliased.body_for(PEER) == b'{"model" : "demo", "seed":1e2,  "messages":[]}'
    for text in ('{"model":"demo"}', '{ "model":"demo" ,"a":1}'):
        assert request(text).body_for(PEER) == text.encode()
    assert json.loads(request("{}").body_for(PEER)) == {"model": "demo"}
    form = request("{}", ENDPOINTS["/v1/audio/transcriptions"], parsed=None)
    assert form.body_for(PEER) == b"{}" and form.members == {}


def test_the_form_that_is_sent_on_is_changed_for_a_peer_and_not_the_one_that_came() -> None:
    plain = request('{"model":"x","stream":false}')
    assert plain.parsed is not None
    sent = Request(CHAT, plain.model, "me", as_stream(plain.parsed, CHAT), "a/b", False, True, plain.parsed)
    body = json.loads(sent.body_for(PEER))
    assert body == {"model": "demo", "stream": True, "stream_options": {"include_usage": True}}
    assert sent.streams and plain.streams


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        ('{"messages":[]}', {"completion"}),
        ('{"tools":[]}', {"completion"}),
        ('{"tools":[{}]}', {"completion", "tools"}),
        ('{"tools":[{}],"tool_choice":"none"}', {"completion"}),
    ],
)
def test_what_a_host_must_be_able_to_do(text: str, needs: set[str]) -> None:
    assert request(text).needs == needs
    assert request(text, ENDPOINTS["/v1/messages/count_tokens"]).needs == needs - {"completion"}


def test_auto_means_a_model_that_can_take_the_request() -> None:
    small = Served("small", "ready", size_bytes=10, hosts=(Host("a" * 64, context_length=512),))
    large = Served("large", "ready", size_bytes=90, hosts=(Host("b" * 64, context_length=9999),))
    tools = Served(
        "tools", "ready", size_bytes=5, hosts=(Host("c" * 64, capabilities=("completion", "chat", "tools")),)
    )
    gone = Served("gone", "loading", size_bytes=999, hosts=(Host("d" * 64, state="loading"),))
    models = [small, gone, tools, large]

    def chosen(body_bytes: int = 100, **members: object) -> str:
        return choose_served(models, members=members, endpoint=CHAT, body_bytes=body_bytes).id

    assert chosen() == "large"
    assert chosen(8000) == "large"
    models.remove(large)
    assert chosen() == "small"
    assert chosen(8000) == "tools"  # its context is not known, that of the other is too short
    models.remove(small)
    models.append(Served("dumb", "ready", size_bytes=50, hosts=(Host("e" * 64, capabilities=("completion", "chat")),)))
    assert chosen(tools=[{}]) == "tools" and chosen() == "dumb"


def test_auto_does_not_look_beyond_the_radius() -> None:
    near = Served("near", "ready", size_bytes=1, hosts=(Host("a" * 64, radius="trusted"),))
    far = Served("far", "ready", size_bytes=99, hosts=(Host("b" * 64, radius="public"),))
    own = Served("own", "ready", size_bytes=2, hosts=(Host(here=True),))
    values = {"members": {}, "endpoint": CHAT, "body_bytes": 10}
    assert choose_served([far, near, own], **values).id == "own"
    assert choose_served([far, near], **values).id == "near"
    assert choose_served([far, near, own], **values, radius="local").id == "own"
    assert choose_served([far, near], **values, radius="public").id == "near"
