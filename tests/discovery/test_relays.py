"""One exchange with one relay: each way to behave has its state and its words, and nothing grows without a bound."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from meshnode.discovery import relays
from meshnode.discovery.relays import MOST_EVENTS, MOST_MESSAGE_BYTES, Exchange, Outcome, RelayReport
from tests.lab import rogue_relays as rogue
from tests.lab.nostr_relays import gone_url
from tests.lab.rogue_relays import Asked, Conduct, rogue_relay

pytestmark = pytest.mark.anyio

LIMIT_S = 10.0
PATIENCE_S = 0.3


@pytest.fixture
async def goodbyes() -> AsyncIterator[set[asyncio.Task[None]]]:
    """What exchanges leave to be closed; nothing of it fails."""
    tasks: set[asyncio.Task[None]] = set()
    raised: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
    yield tasks
    for task in (left := list(tasks)):
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    assert raised == []


class Asking:
    """An exchange, and the events it has taken."""

    def __init__(self, url: str, goodbyes: set[asyncio.Task[None]]) -> None:
        self.exchange = Exchange(url, None, goodbyes)
        self.events: list[Any] = []
        self.batches: list[int] = []

    async def take(self, events: list[Any]) -> None:
        self.events += events
        self.batches.append(len(events))

    async def ask(self, seconds: float = LIMIT_S) -> Outcome:
        try:
            async with asyncio.timeout(seconds):
                return await self.exchange.ask({"kinds": [30078]}, self.take)
        except TimeoutError:
            return self.exchange.late(seconds)


async def asked(
    conduct: Conduct, goodbyes: set[asyncio.Task[None]], seconds: float = LIMIT_S
) -> tuple[Outcome, Asking]:
    async with rogue_relay(conduct) as url:
        asking = Asking(url, goodbyes)
        return await asking.ask(seconds), asking


async def test_all_events_up_to_the_end(goodbyes: set[asyncio.Task[None]]) -> None:
    outcome, asking = await asked(rogue.honest(1, {"a": 2}, [3]), goodbyes)
    assert outcome == ("ok", "")
    assert asking.events == [1, {"a": 2}, [3]]


async def test_the_question_is_a_filter_as_it_was_given(goodbyes: set[asyncio.Task[None]]) -> None:
    seen: list[dict[str, Any]] = []

    async def conduct(question: Asked) -> None:
        seen.append(question.condition)
        await question.end()

    await asked(conduct, goodbyes)
    assert seen == [{"kinds": [30078]}]


@pytest.mark.parametrize(
    ("conduct", "outcome", "events"),
    [
        (rogue.stalling(1, 2), ("slow", "the end of its answer did not come within 0.3 s"), [1, 2]),
        (rogue.stalling(), ("slow", "an answer did not come within 0.3 s"), []),
        (rogue.dropping(1), ("down", "the connection broke before the end of the answer"), [1]),
        (rogue.refusing("auth-required: who are you"), ("refused", "auth-required: who are you"), []),
        (rogue.refusing("x\u202e\x1b[2J" * 99), ("refused", None), []),
        (rogue.noticing("too many requests"), ("refused", "too many requests"), []),
    ],
    ids=["stall", "silence", "drop", "refusal", "steering refusal", "notice"],
)
async def test_ways_to_misbehave(
    conduct: Conduct, outcome: tuple[str, str | None], events: list[Any], goodbyes: set[asyncio.Task[None]]
) -> None:
    (state, text), asking = await asked(conduct, goodbyes, PATIENCE_S)
    assert state == outcome[0]
    assert text.isprintable() and len(text) <= 120
    assert outcome[1] in (None, text)
    assert asking.events == events


async def test_events_of_one_that_stalls_are_there_at_once(goodbyes: set[asyncio.Task[None]]) -> None:
    async with rogue_relay(rogue.stalling("early")) as url:
        asking, here = Asking(url, goodbyes), asyncio.Event()

        async def take(events: list[Any]) -> None:
            asking.events += events
            here.set()

        task = asyncio.create_task(asking.exchange.ask({}, take))
        await asyncio.wait_for(here.wait(), LIMIT_S)
        assert asking.events == ["early"]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_flood_ends_at_its_bound(goodbyes: set[asyncio.Task[None]]) -> None:
    (state, text), asking = await asked(rogue.flooding(lambda number: number, 10_000), goodbyes)
    assert state == "lying"
    assert "2000 events" in text
    assert asking.events == list(range(MOST_EVENTS))
    assert max(asking.batches) <= relays.BATCH


async def test_a_flood_of_bytes_ends_at_its_bound(
    goodbyes: set[asyncio.Task[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "MOST_BYTES", 1 << 20)
    outcome, asking = await asked(rogue.flooding(lambda _: "x" * 65_536, 10_000), goodbyes)
    assert outcome[0] == "lying"
    assert 15 <= len(asking.events) <= 17


async def test_one_event_of_64_kib_is_taken_and_larger_messages_are_not(goodbyes: set[asyncio.Task[None]]) -> None:
    outcome, asking = await asked(rogue.honest("x" * 65_536), goodbyes)
    assert (outcome, len(asking.events)) == (("ok", ""), 1)
    outcome, asking = await asked(rogue.honest(1, "x" * MOST_MESSAGE_BYTES), goodbyes)
    assert outcome == ("lying", "sent a message of more than 128 KiB")
    assert asking.events == [1]


@pytest.mark.parametrize(
    "messages",
    [
        ["not json {"],
        ["[" * 5000],
        ["7", "{}", "[]", "null", '"EVENT"'],
        [b"\x00\xff" * 9],
        [json.dumps(["EVENT", "another", {}]), json.dumps(["EOSE", "another"])],
        [json.dumps(["EVENT"]), json.dumps(["EOSE", 7]), json.dumps(["AUTH", "challenge"])],
    ],
    ids=["no JSON", "depth", "no arrays", "bytes", "other questions", "half messages"],
)
async def test_what_answers_nothing_ends_after_a_while(
    messages: list[str | bytes], goodbyes: set[asyncio.Task[None]]
) -> None:
    (state, text), asking = await asked(rogue.babbling(messages), goodbyes)
    assert (state, asking.events) == ("lying", [])
    assert text == "sent 64 messages that answer nothing"


# --- no relay at all --------------------------------------------------------------------------------------------------


async def test_nobody_there(goodbyes: set[asyncio.Task[None]]) -> None:
    assert await Asking(await gone_url(), goodbyes).ask() == ("down", "nobody listens there")


@pytest.mark.parametrize(
    ("server", "outcome"),
    [
        (lambda: rogue.mute_port(), ("slow", "a connection did not come within 0.3 s")),
        (lambda: rogue.web_server("403 Forbidden"), ("refused", "answered with the HTTP status 403")),
        (lambda: rogue.web_server("200 OK"), ("refused", "answered with the HTTP status 200")),
        (lambda: rogue.web_server("nonsense"), ("down", None)),
    ],
    ids=["mute", "403", "200", "no HTTP"],
)
async def test_something_else_there(
    server: Callable[[], AbstractAsyncContextManager[str]],
    outcome: tuple[str, str | None],
    goodbyes: set[asyncio.Task[None]],
) -> None:
    async with server() as url:
        state, text = await Asking(url, goodbyes).ask(PATIENCE_S)
        assert state == outcome[0]
        assert outcome[1] in (None, text)


async def test_no_relay_sends_us_elsewhere(goodbyes: set[asyncio.Task[None]]) -> None:
    visited: list[str] = []

    async def conduct(question: Asked) -> None:
        visited.append(question.name)
        await question.end()

    async with rogue_relay(conduct) as elsewhere, rogue.web_server("302 Found", f"location: {elsewhere}") as url:
        assert await Asking(url, goodbyes).ask() == ("refused", "answered with the HTTP status 302")
    assert visited == []


async def test_a_name_that_is_none(goodbyes: set[asyncio.Task[None]]) -> None:
    state, text = await Asking("ws://no-such-host.invalid", goodbyes).ask()
    assert state == "down"
    assert text


async def test_a_secure_relay_that_is_none(goodbyes: set[asyncio.Task[None]]) -> None:
    async with rogue_relay(rogue.honest()) as url:
        exchange = Exchange(url.replace("ws:", "wss:"), ssl.create_default_context(), goodbyes)
        state, text = await asyncio.wait_for(exchange.ask({}, Asking(url, goodbyes).take), LIMIT_S)
        assert state == "down"
        assert text


# --- giving an event --------------------------------------------------------------------------------------------------

EVENT = {"id": "ab" * 32, "content": "\u00fc"}


async def given(conduct: Conduct, goodbyes: set[asyncio.Task[None]], seconds: float = LIMIT_S) -> Outcome:
    async with rogue_relay(conduct) as url:
        exchange = Exchange(url, None, goodbyes)
        try:
            async with asyncio.timeout(seconds):
                return await exchange.send(EVENT)
        except TimeoutError:
            return exchange.late(seconds)


def receipt(*rest: Any) -> Conduct:
    async def conduct(question: Asked) -> None:
        assert question.event == EVENT
        await question.say("NOTICE", "welcome")
        await question.say("OK", "another", True, "")
        await question.say("OK", EVENT["id"], *rest)

    return conduct


@pytest.mark.parametrize(
    ("rest", "outcome"),
    [
        ((True, ""), ("ok", "")),
        ((True,), ("ok", "")),
        ((True, "duplicate: had it"), ("ok", "duplicate: had it")),
        ((False, "rate-limited: slow down"), ("refused", "rate-limited: slow down")),
        ((False, ""), ("refused", "gave no reason")),
        ((False, 7), ("refused", "gave no reason")),
        ((False,), ("refused", "gave no reason")),
        (("true", ""), ("refused", "welcome")),
    ],
    ids=str,
)
async def test_receipts(rest: tuple[Any, ...], outcome: Outcome, goodbyes: set[asyncio.Task[None]]) -> None:
    assert await given(receipt(*rest), goodbyes, PATIENCE_S if rest[0] == "true" else LIMIT_S) == outcome


async def test_no_receipt(goodbyes: set[asyncio.Task[None]]) -> None:
    async def silence(_: Asked) -> None:
        pass

    assert await given(silence, goodbyes, PATIENCE_S) == ("slow", "an answer did not come within 0.3 s")
    assert (await given(rogue.dropping(), goodbyes))[0] == "down"
    assert (await given(rogue.babbling(["[]"]), goodbyes))[0] == "lying"


async def test_goodbyes_end_by_themselves(goodbyes: set[asyncio.Task[None]]) -> None:
    await asked(rogue.honest(1), goodbyes)
    await asyncio.wait_for(asyncio.gather(*goodbyes), LIMIT_S)
    assert not goodbyes


def test_reports() -> None:
    report = RelayReport("ws://x", "lying", "", 0, 1.23456)
    assert report.answered
    assert report.as_dict() == {"url": "ws://x", "state": "lying", "text": "", "count": 0, "elapsed_s": 1.235}
    assert not any(RelayReport("", state, "", 0, 0).answered for state in ("slow", "down", "refused"))
