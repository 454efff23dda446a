"""Asking a router that answers late, wrongly, too much or not at all."""

from __future__ import annotations

import asyncio
import time

import pytest

from meshnode.net.gateway import Gateway
from meshnode.net.mapping import NoMapping
from meshnode.net.router_question import MOST_WRONG_ANSWERS, ask
from tests.net.fake_router import router

pytestmark = pytest.mark.anyio
SHORT = (0.05, 0.05, 0.05)


def read(data: bytes) -> str | None:
    if data == b"no":
        raise NoMapping("it said no")
    return "yes" if data == b"yes" else None


async def test_the_first_answer_that_is_understood() -> None:
    async with router(lambda _: [b"?", b"", b"yes", b"no"]) as (gateway, _):
        assert await ask(gateway, b"question", read) == "yes"


async def test_what_the_reader_refuses_is_refused() -> None:
    async with router(lambda _: [b"no"]) as (gateway, _):
        with pytest.raises(NoMapping, match="it said no") as refusal:
            await ask(gateway, b"question", read)
    assert refusal.value.answered


async def test_a_lost_question_is_asked_again() -> None:
    answers = iter([[], [], [b"yes"]])
    async with router(lambda _: next(answers)) as (gateway, fake):
        assert await ask(gateway, b"question", read, pauses_s=(0.05, 0.05, 2.0)) == "yes"
    assert fake.heard == [b"question"] * 3


async def test_silence() -> None:
    async with router(lambda _: []) as (gateway, fake):
        with pytest.raises(NoMapping, match="does not answer") as refusal:
            await ask(gateway, b"question", read, pauses_s=SHORT)
    assert len(fake.heard) == 3 and not refusal.value.answered


async def test_nobody_listens() -> None:
    """The system says so at once; no pause is waited for."""
    async with router(lambda _: []) as (gateway, _):
        pass
    begun = time.monotonic()
    with pytest.raises(NoMapping, match="does not listen"):
        await ask(gateway, b"question", read, pauses_s=(10.0,))
    assert time.monotonic() - begun < 5


async def test_an_answer_from_elsewhere_is_none() -> None:
    async with router(lambda _: [b"yes"], another_voice=True) as (gateway, fake):
        with pytest.raises(NoMapping, match="does not answer"):
            await ask(gateway, b"question", read, pauses_s=SHORT)
    assert fake.heard


async def test_a_flood_is_cut_off() -> None:
    async with router(lambda _: [b"?" * 1000] * (MOST_WRONG_ANSWERS // 2)) as (gateway, fake):
        with pytest.raises(NoMapping, match="nothing to do with the question"):
            await ask(gateway, b"question", read, pauses_s=(0.2,) * 5)
    assert len(fake.heard) < 5


async def test_an_address_that_this_machine_does_not_have() -> None:
    with pytest.raises(NoMapping, match="cannot be asked"):
        await ask(Gateway("127.0.0.1", "192.0.2.1"), b"question", read)


async def test_it_can_be_given_up() -> None:
    async with router(lambda _: []) as (gateway, _):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await ask(gateway, b"question", read)
