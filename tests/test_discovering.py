"""Looking for meshes: the best are asked while relays still answer, and all is told, also when nothing is there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from meshnode.config import Settings
from meshnode.core.choosing import SHORTLIST, Candidate, Probe, Wishes
from meshnode.discovering import Discovery, discover, discover_here, open_relays
from meshnode.discovery.nostr import NostrRelays
from meshnode.errors import NoNostrRelay, NoPublicMesh
from tests.discovery.listing_events import relays_of, signed
from tests.lab import rogue_relays as rogue
from tests.lab.nostr_relays import embedded_relay, gone_url
from tests.lab.rogue_relays import Conduct, rogue_relay
from tests.wire.listing_samples import ALICE, listing

pytestmark = pytest.mark.anyio

HASH = bytes(range(16)).hex()


@asynccontextmanager
async def asking(folder: Path, *conducts: Conduct, gone: int = 0) -> AsyncIterator[NostrRelays]:
    async with AsyncExitStack() as stack:
        urls = [await stack.enter_async_context(rogue_relay(conduct)) for conduct in conducts]
        relays = relays_of([*urls, *[await gone_url() for _ in range(gone)]], folder / "nostr.key")
        await relays.prepare()
        yield relays
        await relays.close()


def probe(rtt_s: float = 0.01, **changes: Any) -> Probe:
    shown = {"nodes": 3, "free_slots": 2, "models": frozenset({"demo", HASH}), "vram_bytes": 24_000_000_000}
    return Probe(rtt_s=rtt_s, room=True, **(shown | changes))


class Meshes:
    """Answers for meshes by their names, after a while; who is not there does not answer."""

    def __init__(self, **answers: Probe | float) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.running = self.most = 0

    async def __call__(self, candidate: Candidate) -> Probe | None:
        self.asked.append(candidate.name)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            answer = self.answers.get(candidate.name)
            if isinstance(answer, float):
                await asyncio.sleep(answer)
                return probe()
            await asyncio.sleep(0.01)
            return answer
        finally:
            self.running -= 1


async def look(relays: NostrRelays, meshes: Meshes, wishes: Wishes | None = None) -> Discovery:
    return await discover(relays, meshes, wishes or Wishes())


def order(found: Discovery) -> list[tuple[str, str]]:
    return [(mesh["name"], mesh["refusal"]) for mesh in found.facts()["meshes"]]


async def test_meshes_are_asked_and_put_in_order(tmp_path: Path) -> None:
    events = [signed(n, name=name) for n, name in enumerate(("near", "far", "gone", "liar"))]
    meshes = Meshes(near=probe(0.001), far=probe(0.2), liar=probe(nodes=1))
    async with asking(tmp_path, rogue.honest(*events)) as relays:
        found = await look(relays, meshes)
    assert order(found) == [
        ("near", ""),
        ("far", ""),
        *sorted(
            [("gone", "nobody answers"), ("liar", "claims more than twice the nodes it shows")],
            key=lambda each: listing(name=each[0]).mesh,
        ),
    ]
    assert found.problem is None
    near = found.facts()["meshes"][0]
    assert near["listed"]["nodes"] == 3
    assert near["shown"] == {
        "rtt_s": 0.001,
        "models": ["demo"],
        "nodes": 3,
        "free_slots": 2,
        "vram_bytes": 24_000_000_000,
        "room": True,
    }
    assert near["reasons"][0].endswith("away")


async def test_the_best_eight_are_asked_together_and_the_others_are_told(tmp_path: Path) -> None:
    events = [signed(n, name=f"mesh-{n}") for n in range(12)]
    meshes = Meshes(**{f"mesh-{n}": 0.05 for n in range(12)})
    async with asking(tmp_path, rogue.honest(*events)) as relays:
        found = await look(relays, meshes)
    assert len(meshes.asked) == meshes.most == SHORTLIST
    assert [why for _, why in order(found)] == [""] * 8 + ["not asked"] * 4


async def test_full_meshes_are_told_and_not_asked(tmp_path: Path) -> None:
    meshes = Meshes(full=probe())
    async with asking(tmp_path, rogue.honest(signed(1, name="full", clients=5, max_clients=5))) as relays:
        found = await look(relays, meshes)
    assert (order(found), meshes.asked) == ([("full", "full")], [])
    assert isinstance(found.problem, NoPublicMesh)


async def test_a_mesh_is_asked_while_a_slow_relay_still_answers(tmp_path: Path) -> None:
    conducts = [rogue.honest(signed(1, name="early")), rogue.waiting(0.4, signed(2, name="late"))]
    async with asking(tmp_path, *conducts) as relays:
        begun = time.monotonic()
        found = await look(relays, Meshes(early=0.35, late=probe()))
        assert 0.4 < time.monotonic() - begun < 0.7, "one after the other"
    assert {name for name, why in order(found) if not why} == {"early", "late"}


@pytest.mark.parametrize("seconds", [0.0, 0.4], ids=["while relays answer", "after the last relay"])
async def test_a_mesh_is_asked_again_at_entries_that_come_later(tmp_path: Path, seconds: float) -> None:
    """The first relay knows only of a publisher that does not answer."""
    asked: list[int] = []

    async def ask(candidate: Candidate) -> Probe | None:
        asked.append(len(candidate.entries))
        await asyncio.sleep(seconds)
        return probe() if len(candidate.entries) > 1 else None

    async with asking(tmp_path, rogue.honest(signed(1)), rogue.waiting(0.2, signed(2))) as relays:
        found = await discover(relays, ask, Wishes())
    assert asked == [1, 2]
    assert order(found) == [("meshnode", "")]


async def test_one_that_never_answers_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshnode.discovering.ASK_S", 0.2)
    meshes = Meshes(mute=60.0, near=probe())
    async with asking(tmp_path, rogue.honest(signed(1, name="mute"), signed(2, name="near"))) as relays:
        found = await look(relays, meshes)
    assert order(found) == [("near", ""), ("mute", "nobody answers")]
    assert meshes.running == 0


async def test_wishes_decide(tmp_path: Path) -> None:
    events = [signed(1, name="other", models=()), signed(2, name="right")]
    meshes = Meshes(other=probe(0.001, models=frozenset()), right=probe(0.5))
    async with asking(tmp_path, rogue.honest(*events)) as relays:
        found = await look(relays, meshes, Wishes(models=("demo",)))
        assert order(found) == [("right", ""), ("other", "does not serve the model that is wished for")]
        found = await look(relays, meshes, Wishes(min_vram_bytes=1 << 40))
    assert isinstance(found.problem, NoPublicMesh)
    assert "has less memory than wished for" in found.problem.message


async def test_no_relay_and_no_mesh_are_told_apart(tmp_path: Path) -> None:
    async with asking(tmp_path, rogue.honest()) as relays:
        found = await look(relays, Meshes())
    assert isinstance(found.problem, NoPublicMesh)
    assert found.facts()["error"]["code"] == "no-public-mesh"
    async with asking(tmp_path, rogue.refusing("restricted: no"), gone=2) as relays:
        found = await look(relays, Meshes())
    assert isinstance(found.problem, NoNostrRelay)
    assert "restricted: no" in found.problem.message
    assert found.facts()["meshes"] == []


async def test_what_was_dropped_is_told(tmp_path: Path) -> None:
    events = [signed(1, age_s=500), signed(2, bits=0), signed(3, bits=0)]
    async with asking(tmp_path, rogue.honest(*events), rogue.forging(signed(4))) as relays:
        facts = (await look(relays, Meshes())).facts()
    assert facts["dropped"] == {"expired": 1, "forged": 1, "no_work": 2}
    assert facts["drops"] == ["2 without the work that listings take", "1 expired", "1 forged events"]
    assert [relay["state"] for relay in facts["relays"]] == ["empty", "lying"]


async def test_the_relays_of_a_node_ask_for_all_the_work_and_remember(tmp_path: Path) -> None:
    async with embedded_relay() as url, rogue_relay(rogue.honest(signed(1))) as lazy:
        relays = open_relays([url, lazy], tmp_path / "nostr.key")
        await relays.publish(listing(), ALICE.sign, timeout_s=0.5)
        fetched = await relays.fetch()
        await relays.close()
    assert len(fetched.listings) == 1
    assert fetched.dropped == {"no_work": 1}
    assert [report.state for report in fetched.relays] == ["ok", "empty"]


def test_a_process_without_a_node(tmp_path: Path) -> None:
    """Nothing is published, so no key is made."""
    settings = Settings(nostr_relay=("ws://127.0.0.1:9",), bind_host="127.0.0.1")
    found = discover_here(settings, tmp_path / "nostr.key", models=(), region="", vram=0)
    assert isinstance(found.problem, NoNostrRelay)
    assert not (tmp_path / "nostr.key").exists()
