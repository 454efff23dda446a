"""The web applications are made of the settings that a person gave."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from meshnode.api.activity import Activity
from meshnode.api.charging import Sale
from meshnode.api.events import Events
from meshnode.api.gate import Gates
from meshnode.api.metrics import Metrics
from meshnode.api.paying import PaidCall, PaidRequest
from meshnode.api.record import Record
from meshnode.api.served import Host, Served
from meshnode.api.upstream import Pipe
from meshnode.config import Settings
from meshnode.core.prices import Price
from meshnode.doors import DoorParts, api_door, console_door, gateway_door, guest_door, guests_of, peer_door
from meshnode.errors import MeshnodeError, PriceAboveCeiling
from meshnode.wire.payments import PayAsk
from tests.api.console import TOKEN, Console
from tests.api.raw_http import ask
from tests.api.running import CHAT, HELLO, serving
from tests.api.tunnel import Asked, Reply

pytestmark = pytest.mark.anyio


def parts(**settings: Any) -> DoorParts:
    return DoorParts(
        settings=Settings(**settings),
        gates=Gates(capacity=1, timeout_s=1),
        here=list,
        models=list,
        stopping=lambda: False,
    )


def both_doors(made: DoorParts, records: list[Record]) -> tuple[Any, Any]:
    """The applications of the API and of the console, over one gateway."""
    controls = Console().controls
    gateway = gateway_door(made, node="ab" * 32, finished=records.append)
    console = console_door(
        made,
        controls=controls,
        events=Events(lambda: {"schema": 1, "models": []}),
        metrics=Metrics(lambda: iter(())),
        gateway=gateway,
    )
    return api_door(made, gateway=gateway), console


async def test_the_api_wants_the_key_of_the_settings() -> None:
    door, _ = both_doors(parts(api_key="secret", listen_all=True), [])
    async with serving(door) as port:
        refused = await ask(port, "/v1/models")
        let_in = await ask(port, "/v1/models", **{"x-api-key": "secret"})
    assert refused.status == 401 and let_in.status == 200


async def test_the_console_shows_the_status_and_its_page_which_has_the_token() -> None:
    _, door = both_doors(parts(), [])
    async with serving(door) as port:
        status = await ask(port, "/api/status")
        page = await ask(port, "/")
        refused = await ask(port, "/", host="evil.example")
    assert status.status == 200 and status.json == {"schema": 1, "models": []}
    assert page.status == 200 and f'content="{TOKEN}"'.encode() in page.body
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert refused.status == 403 and f'content="{TOKEN}"'.encode() not in refused.body


async def test_the_page_needs_the_token_and_no_key_where_other_callers_need_the_key() -> None:
    records: list[Record] = []
    api, console = both_doors(parts(api_key="secret"), records)
    async with serving(api) as api_port, serving(console) as port:
        own = {"host": f"localhost:{port}", "origin": f"http://localhost:{port}"}
        assert (await ask(port, "/v1/models", **own, x_meshnode_token=TOKEN)).json["data"] == []
        for headers in ({}, {"x_api_key": "secret"}, {"authorization": "Bearer secret"}):
            assert (await ask(port, "/v1/models", **own, **headers)).status == 403
        assert (await ask(api_port, "/v1/models", x_meshnode_token=TOKEN)).status == 401
        # Both lead to the same place: there is no model, and the request is recorded.
        for answer in (
            await ask(port, CHAT, HELLO, **own, x_meshnode_token=TOKEN),
            await ask(api_port, CHAT, HELLO, x_api_key="secret"),
        ):
            assert (answer.status, answer.error["code"]) == (503, "no_model_served")
            assert answer.headers["retry-after"] and "meshnode join TOKEN" in answer.error["message"]
    assert [(record.status, record.error) for record in records] == [(503, "no-model-served")] * 2


async def test_requests_of_all_doors_are_known_in_one_place_while_they_are_under_way() -> None:
    told: list[int] = []
    made = replace(parts(), activity=Activity(lambda: told.append(1)))
    api, console = both_doors(made, [])
    async with serving(api) as api_port, serving(console) as port:
        await ask(api_port, CHAT, HELLO)
        assert len(told) == 2  # its begin and its end
        await ask(port, CHAT, HELLO, x_meshnode_token=TOKEN)
        assert len(told) == 4
    await peer_door(made, finished=lambda record: None).answer(Asked(CHAT, b"{}"), Reply())
    assert len(told) == 6


def test_peers_are_answered_from_here_alone() -> None:
    made = peer_door(parts(), finished=lambda record: None)
    assert callable(made.answer)


class NoTrail:
    """An audit log that cannot be written."""

    writable = False

    def record(self, kind: str, /, **facts: object) -> None:
        raise AssertionError(kind)

    def mask(self, prefix: str, /) -> str:
        return ""


async def test_strangers_are_bounded_as_the_settings_say_and_served_only_with_an_audit_log() -> None:
    made = parts(public_slots=3, public_requests=7, public_tokens=5000, public_answer=99)
    guests = guests_of(made.settings)
    limits = guests.limits
    assert (limits.requests, limits.tokens, limits.answer_tokens) == (7, 5000, 99)
    records: list[Record] = []
    door = guest_door(made, guests, NoTrail(), records.append, address_of=lambda node: None, is_near=lambda node: False)
    assert door.facts()["slots"] == 3
    reply = Reply()
    await door.answer(Asked(CHAT, b"{}"), reply)
    assert reply.status == 503 and records[0].error == "public-paused"
    assert door.facts()["refused"] == 1


async def test_the_purse_of_the_node_pays_and_its_till_is_paid() -> None:
    """Both reach where they are used: a purse that refuses words the answer, a till that has a price asks for it."""

    class Purse:
        """Pays nothing."""

        def refusal(self, price: Price, chain: int, model: str, /) -> MeshnodeError | None:
            return PriceAboveCeiling("of the purse")

        async def begin(self, call: PaidCall, /) -> PaidRequest:
            raise AssertionError

    class Till:
        """Sells everything."""

        def price(self, model: str, /) -> Price:
            return Price(1, 2)

        async def open(self, node: bytes, ask: PayAsk, /, *, model: str, content_hash: bytes) -> Sale:
            raise AssertionError

    async def nowhere() -> Pipe:
        raise AssertionError

    class WritableTrail(NoTrail):
        """Takes everything."""

        @property
        def writable(self) -> bool:
            return True

    seller = Host("a" * 64, connect=nowhere, radius="public", price=Price(1, 2), connect_paid=nowhere)
    model = Served("demo", "ready", hosts=(seller,))
    own = Served("demo", "ready").here(nowhere)
    made = replace(parts(), purse=Purse(), models=lambda: [model], here=lambda: [own], radius=lambda: "public")
    door, _ = both_doors(made, [])
    async with serving(door) as port:
        refused = await ask(port, CHAT, HELLO)
    assert refused.status == 402 and "of the purse" in refused.error["message"]
    guest = guest_door(
        made,
        guests_of(made.settings),
        WritableTrail(),
        lambda record: None,
        address_of=lambda node: None,
        is_near=lambda node: False,
        till=Till(),
    )
    reply = Reply()
    await guest.answer(Asked(CHAT, json.dumps({**HELLO, "stream": True}).encode()), reply)
    assert reply.status == 402 and b"payment_required" in reply.content
