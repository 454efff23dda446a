"""One look at several relays: what each of them is called, who is waited for, and that nobody else is delayed."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from nostr_sdk import Keys

from meshnode.discovery.look import ENOUGH, PATIENCE_S, Fetched
from meshnode.discovery.nostr import NostrRelays
from meshnode.discovery.nostr_key import NostrKey
from meshnode.discovery.relays import MOST_OF_ALL
from meshnode.wire.listings import write
from meshnode.wire.nostr import to_json
from tests.discovery.listing_events import relays_of, said, signed, signer
from tests.lab import rogue_relays as rogue
from tests.lab.nostr_relays import gone_url
from tests.lab.rogue_relays import Conduct, rogue_relay
from tests.wire.listing_samples import BITS, tags_of

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def asking(folder: Path, *conducts: Conduct, gone: int = 0) -> AsyncIterator[NostrRelays]:
    """Relays that behave so, and some that are gone."""
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(rogue_relay(conduct)) for conduct in conducts]
        relays = relays_of([*urls, *[await gone_url() for _ in range(gone)]], folder / "nostr.key")
        await relays.prepare()
        yield relays
        await relays.close()


def states(fetched: Fetched) -> list[tuple[str, int]]:
    return [(report.state, report.count) for report in fetched.relays]


def names(fetched: Fetched) -> set[str]:
    return {each.name for each in fetched.listings}


def changed(event: dict[str, Any], **members: Any) -> dict[str, Any]:
    return event | members


@pytest.mark.parametrize(
    ("events", "report", "dropped"),
    [
        (lambda: [signed(1)], ("ok", 1), {}),
        (list, ("empty", 0), {}),
        (lambda: [signed(1, bits=0)], ("empty", 0), {"no_work": 1}),
        (lambda: [signed(1, age_s=181)], ("empty", 0), {"expired": 1}),
        (lambda: [signed(1, age_s=-90)], ("empty", 0), {"future": 1}),
        (
            lambda: [signed(1), changed(signed(1), content=signed(1)["content"].replace("demo", "omed"))],
            ("lying", 1),
            None,
        ),
        (lambda: [signed(1, kind=30079)], ("lying", 0), {"wrong_tag": 1}),
        (lambda: [changed(signed(1), tags=[])], ("lying", 0), {"wrong_tag": 1}),
        (lambda: [changed(signed(1), sig="00" * 64)], ("lying", 0), {"forged": 1}),
        (lambda: [changed(signed(1), pubkey=signed(2)["pubkey"])], ("lying", 0), {"forged": 1}),
        (lambda: [changed(signed(1), content="x" * 65_536)], ("empty", 0), {"too_large": 1}),
        (lambda: [{}, None, 7, "x", []], ("empty", 0), {"malformed": 5}),
        (lambda: [signed(1, age_s=9), signed(1), signed(1, age_s=5)], ("ok", 2), {"replayed": 1}),
    ],
    ids=[
        *("good", "empty", "no work", "expired", "future", "forged", "kind", "tags", "signature", "key"),
        *("64 KB", "nothing", "older"),
    ],
)
async def test_what_a_relay_gives_is_judged_and_so_is_the_relay(
    events: Callable[[], list[Any]], report: tuple[str, int], dropped: dict[str, int] | None, tmp_path: Path
) -> None:
    # Made now: they are judged by the clock.
    async with asking(tmp_path, rogue.honest(*events())) as relays:
        fetched = await relays.fetch()
    assert states(fetched) == [report]
    assert dropped in (None, dict(fetched.dropped))
    assert len(fetched.listings) == min(1, report[1])
    assert fetched.answered


async def test_a_listing_that_claims_anothers_node_key(tmp_path: Path) -> None:
    """Its event is in order, so the relay is not to blame."""
    key = NostrKey(Keys.generate())
    stolen = said(1, publisher=key.public)
    event = key.sign(30078, tags_of(stolen), write(stolen, signer(2).sign), stolen.created_at, work_bits=BITS)
    async with asking(tmp_path, rogue.honest(to_json(event))) as relays:
        fetched = await relays.fetch()
    assert states(fetched) == [("empty", 0)]
    assert fetched.dropped == {"impostor": 1}


async def test_each_relay_is_told_apart(tmp_path: Path) -> None:
    conducts = [
        rogue.honest(signed(1)),
        rogue.honest(),
        rogue.stalling(signed(2, name="slow")),
        rogue.forging(signed(3)),
        rogue.refusing("restricted: members only"),
        rogue.dropping(signed(4, name="dropped")),
        rogue.flooding(lambda _: {}, 5000),
    ]
    async with asking(tmp_path, *conducts, gone=1) as relays:
        fetched = await relays.fetch(0.8)
    assert [report.state for report in fetched.relays] == [
        "ok",
        "empty",
        "slow",
        "lying",
        "refused",
        "down",
        "lying",
        "down",
    ]
    assert [report.url for report in fetched.relays] == list(relays.urls)
    assert names(fetched) == {"meshnode", "slow", "dropped"}
    assert fetched.dropped == {"forged": 1, "malformed": MOST_OF_ALL // 8}


async def test_a_question_for_one_mesh(tmp_path: Path) -> None:
    here, there = said(name="here"), said(name="there")
    events = [signed(1, name="here"), signed(2, name="there")]
    async with asking(tmp_path, rogue.honest(*events)) as relays:
        fetched = await relays.fetch(mesh=here.mesh)
        assert (names(fetched), states(fetched)) == ({"here"}, [("lying", 1)])
        assert names(await relays.fetch(mesh=there.mesh)) == {"there"}
        assert names(await relays.fetch()) == {"here", "there"}


async def test_an_older_listing_is_not_taken_at_a_later_look(tmp_path: Path) -> None:
    shown = [signed(1, age_s=1, nodes=7)]

    async def conduct(asked: rogue.Asked) -> None:
        await rogue.honest(*shown)(asked)

    async with asking(tmp_path, conduct) as relays:
        assert [each.nodes for each in (await relays.fetch()).listings] == [7]
        shown[:] = [signed(1, age_s=60, nodes=5000)]
        fetched = await relays.fetch()
        assert (fetched.listings, fetched.dropped) == ((), {"replayed": 1})


# --- who is waited for ------------------------------------------------------------------------------------------------


async def timed(relays: NostrRelays, **options: Any) -> tuple[Fetched, float]:
    begun = time.monotonic()
    return await relays.fetch(**options), time.monotonic() - begun


async def test_an_eager_look_ends_when_two_have_answered(tmp_path: Path) -> None:
    conducts: Sequence[Conduct] = [rogue.honest(signed(1)), rogue.stalling(), rogue.honest(signed(2))]
    async with asking(tmp_path, *conducts, gone=1) as relays:
        fetched, seconds = await timed(relays, eager=True)
    assert [report.state for report in fetched.relays] == ["ok", "slow", "ok", "down"]
    assert len(fetched.listings) == ENOUGH
    assert seconds < PATIENCE_S


async def test_two_that_know_nothing_are_no_reason_to_stop(tmp_path: Path) -> None:
    async with asking(tmp_path, rogue.honest(), rogue.honest(), rogue.waiting(0.3, signed(1))) as relays:
        fetched = await relays.fetch(eager=True)
    assert [report.state for report in fetched.relays] == ["empty", "empty", "ok"]


async def test_an_eager_look_gives_the_others_a_while_after_the_first(tmp_path: Path) -> None:
    async with asking(tmp_path, rogue.honest(signed(1)), rogue.stalling(), rogue.stalling()) as relays:
        fetched, seconds = await timed(relays, eager=True, timeout_s=60)
    assert [report.state for report in fetched.relays] == ["ok", "slow", "slow"]
    assert PATIENCE_S * 0.9 < seconds < PATIENCE_S * 2


async def test_one_that_lies_is_no_reason_to_wait_no_longer(tmp_path: Path) -> None:
    async with asking(
        tmp_path, rogue.forging(signed(1)), rogue.forging(signed(2)), rogue.waiting(0.3, signed(3))
    ) as relays:
        fetched, _ = await timed(relays, eager=True)
    assert [report.state for report in fetched.relays] == ["lying", "lying", "ok"]


async def test_where_nobody_answers_the_time_is_the_bound(tmp_path: Path) -> None:
    async with asking(tmp_path, rogue.stalling(), gone=1) as relays:
        fetched, seconds = await timed(relays, eager=True, timeout_s=0.3)
    assert [report.state for report in fetched.relays] == ["slow", "down"]
    assert not fetched.answered
    assert seconds < 1


async def test_where_all_are_gone_nothing_is_waited_for(tmp_path: Path) -> None:
    async with asking(tmp_path, gone=3) as relays:
        fetched, seconds = await timed(relays, timeout_s=60)
    assert [report.state for report in fetched.relays] == ["down"] * 3
    assert seconds < 1


async def test_no_relays_at_all(tmp_path: Path) -> None:
    fetched = await relays_of([], tmp_path / "nostr.key").fetch()
    assert (fetched.listings, fetched.relays, fetched.answered) == ((), (), False)


async def test_the_first_listing_is_there_before_the_others(tmp_path: Path) -> None:
    conducts = [rogue.honest(signed(1)), rogue.waiting(0.3, signed(2)), rogue.stalling()]
    async with (
        asking(tmp_path, *conducts) as relays,
        aclosing(relays.fetching(2.0, eager=False)) as parts,
    ):
        seen = [(len(part.listings), len(part.relays)) async for part in parts]
    assert seen[0][0] == 1
    assert [count for count, _ in seen] == sorted(count for count, _ in seen)
    assert seen[-1] == (2, 3)


async def test_whoever_looks_no_further_leaves_nothing_behind(tmp_path: Path) -> None:
    async with (
        asking(tmp_path, rogue.stalling(signed(1)), rogue.stalling()) as relays,
        aclosing(relays.fetching(60, eager=False)) as parts,
    ):
        async for part in parts:
            assert len(part.listings) == 1
            break
    names = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]
    assert not [name for name in names if name.startswith("Look.")]


async def test_the_loop_goes_on_while_a_flood_is_judged(tmp_path: Path) -> None:
    """Thousands of events with work and a signature that is wrong: each takes the dearest way."""
    good = signed(1)
    forged = [changed(good, sig=f"{number:0128x}") for number in range(400)]
    busy = [0.0]

    async def watch() -> None:
        """By the clock of this thread, which stands still while others have the processor."""
        while True:
            before = time.thread_time()
            await asyncio.sleep(0.001)
            busy.append(time.thread_time() - before)

    async with asking(
        tmp_path, rogue.flooding(lambda number: forged[number % 400], 2000), rogue.honest(good)
    ) as relays:
        watching = asyncio.create_task(watch())
        fetched = await relays.fetch(20)
        watching.cancel()
    assert fetched.dropped == {"forged": 2000}
    assert len(fetched.listings) == 1
    assert max(busy) < 0.05


async def test_ten_thousand_listings_from_six_relays(tmp_path: Path) -> None:
    """Each reason is counted, nothing is kept but what holds, and the honest relay is heard."""
    good = signed(1)
    kinds: dict[str, dict[str, Any]] = {
        "no_work": signed(2, bits=0),
        "expired": signed(3, age_s=600),
        "future": signed(4, age_s=-600),
        "wrong_tag": signed(5, kind=1),
        "too_large": changed(signed(6), content="x" * 16_385),
    }
    floods = [rogue.flooding(lambda _, event=event: event, 10_000) for event in kinds.values()]
    async with asking(tmp_path, rogue.honest(good), *floods) as relays:
        fetched = await relays.fetch(60)
    assert [report.state for report in fetched.relays] == ["ok", *["lying"] * 5]
    assert len(fetched.listings) == 1
    # A relay is cut off after its share of 10,000 events, or after 8 MiB of them.
    assert 400 < fetched.dropped.pop("too_large") < 520
    assert fetched.dropped == dict.fromkeys(("no_work", "expired", "future", "wrong_tag"), MOST_OF_ALL // 6)


async def test_many_that_flood_do_not_crowd_out_one_that_is_late(tmp_path: Path) -> None:
    idle = signed(2, bits=0)
    floods = [rogue.flooding(lambda _: idle, 10_000)] * 15
    async with asking(tmp_path, *floods, rogue.waiting(1.0, signed(1))) as relays:
        fetched = await relays.fetch(60)
    assert [report.state for report in fetched.relays] == ["lying"] * 15 + ["ok"]
    assert fetched.dropped == {"no_work": 15 * (MOST_OF_ALL // 16)}
    assert len(fetched.listings) == 1


async def test_a_fault_of_our_own_is_told_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        kept: tuple[Any, ...] = ()
        dropped: Counter[str] = Counter()

        def judge(self, raw: Any, now: float) -> object:
            raise KeyError("a fault")

    async with rogue_relay(rogue.honest(signed(1))) as url:
        relays = NostrRelays([url], tmp_path / "nostr.key", sieve=lambda _: Broken())
        fetched = await relays.fetch()
        await relays.close()
    assert [report.text for report in fetched.relays] == ["its answer could not be judged"]
    assert "a fault" in caplog.text
