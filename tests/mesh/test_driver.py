import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

import pytest

from meshnode.core.effects import (
    CancelTimer,
    Close,
    Counted,
    Dial,
    Effect,
    MemberChanged,
    MembershipSnapshot,
    SaveIncarnation,
    Send,
    SetTimer,
)
from meshnode.core.events import DialFailed, Event, LeaveAsked, PeerUp, Received, TimerFired
from meshnode.mesh.driver import Driver
from meshnode.wire.address import Address
from meshnode.wire.messages import Probe, Statements

pytestmark = pytest.mark.anyio
PEER = b"p" * 32


class Script:
    """In the place of the machine: answers events with prepared effects."""

    def __init__(self, answers: Callable[[Event], list[Effect]] = lambda _: []) -> None:
        self.answers = answers
        self.events: list[Event] = []
        self.snapshots = 0

    def handle(self, event: Event, now: float) -> list[Effect]:
        assert abs(now - monotonic()) < 1
        self.events.append(event)
        return self.answers(event)

    def snapshot(self) -> MembershipSnapshot:
        self.snapshots += 1
        return MembershipSnapshot(node=b"n" * 32, members={})


class Outside:
    """Notes what is done. `disk` holds up the writing of incarnations."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.disk = asyncio.Event()
        self.disk.set()
        self.broken = False
        self.driver: Driver

    def send(self, peer: bytes, message: Any, reliable: bool) -> None:
        self.done.append(("send", message, reliable))

    def dial(self, peer: bytes, addresses: Sequence[Address]) -> None:
        self.done.append(("dial", peer))
        self.driver.handle(DialFailed(peer))

    def close_peer(self, peer: bytes, code: int) -> None:
        self.done.append(("close", code))

    async def save_incarnation(self, value: int) -> None:
        await self.disk.wait()
        if self.broken:
            raise OSError("the disk is full")
        self.done.append(("saved", value))


def running(script: Script) -> tuple[Driver, Outside, Counter[str], list[None]]:
    outside, counters, changes = Outside(), Counter[str](), []
    driver = Driver(script, outside, changed=lambda: changes.append(None), counters=counters)  # type: ignore[arg-type]
    outside.driver = driver
    return driver, outside, counters, changes


async def test_effects_are_carried_out_in_their_order() -> None:
    effects = [
        Send(PEER, Probe(1), False),
        Counted("something"),
        Close(PEER, 0x105),
        MemberChanged(PEER, "alive"),
        Send(PEER, Probe(2), True),
    ]
    driver, outside, counters, changes = running(Script(lambda _: effects))
    driver.handle(PeerUp(PEER))
    assert outside.done == [("send", Probe(1), False), ("close", 0x105), ("send", Probe(2), True)]
    assert (counters, len(changes)) == ({"something": 1}, 1)
    driver.close()


async def test_what_an_effect_brings_about_comes_after_the_others() -> None:
    def answers(event: Event) -> list[Effect]:
        if isinstance(event, DialFailed):
            return [Send(PEER, Probe(9), True)]
        return [Dial(PEER, ()), Send(PEER, Probe(1), True)]

    script = Script(answers)
    driver, outside, _, _ = running(script)
    driver.handle(PeerUp(PEER))
    assert outside.done == [("dial", PEER), ("send", Probe(1), True), ("send", Probe(9), True)]
    assert script.events == [PeerUp(PEER), DialFailed(PEER)]
    driver.close()


async def test_an_incarnation_is_on_the_disk_before_it_is_told() -> None:
    def answers(event: Event) -> list[Effect]:
        if isinstance(event, LeaveAsked):
            return [Send(PEER, Probe(3), True)]
        return [Send(PEER, Probe(1), True), SaveIncarnation(7), Send(PEER, Probe(2), True)]

    driver, outside, _, _ = running(Script(answers))
    outside.disk.clear()
    driver.handle(PeerUp(PEER))
    driver.handle(LeaveAsked())
    await asyncio.sleep(0.01)
    assert outside.done == [("send", Probe(1), True)]
    outside.disk.set()
    await driver.settled()
    assert outside.done[1:] == [("saved", 7), ("send", Probe(2), True), ("send", Probe(3), True)]
    driver.close()


async def test_a_full_disk_does_not_stop_it(caplog: pytest.LogCaptureFixture) -> None:
    driver, outside, _, _ = running(Script(lambda _: [SaveIncarnation(7), Send(PEER, Probe(2), True)]))
    outside.broken = True
    driver.handle(PeerUp(PEER))
    await driver.settled()
    assert outside.done == [("send", Probe(2), True)]
    assert "the disk is full" in caplog.text
    driver.close()


async def test_timers_come_back_as_events() -> None:
    fired = asyncio.Event()

    def answers(event: Event) -> list[Effect]:
        if isinstance(event, TimerFired):
            fired.set()
            return []
        now = monotonic()
        return [SetTimer("a", now + 0.01), SetTimer(("b", PEER), now + 0.005), CancelTimer(("b", PEER))]

    script = Script(answers)
    driver, _, _, _ = running(script)
    driver.handle(PeerUp(PEER))
    await asyncio.wait_for(fired.wait(), 2)
    assert script.events[1:] == [TimerFired("a")]
    driver.close()


async def test_a_snapshot_is_made_only_when_something_may_have_changed() -> None:
    script = Script()
    driver, _, _, _ = running(script)
    assert driver.snapshot() is driver.snapshot()
    driver.handle(Received(PEER, Probe(1)))
    driver.snapshot()
    assert script.snapshots == 1
    driver.handle(Received(PEER, Statements(())))
    driver.snapshot()
    driver.handle(PeerUp(PEER))
    driver.snapshot()
    assert script.snapshots == 3
    script.answers = lambda _: [MemberChanged(PEER, "unreachable")]
    driver.handle(Received(PEER, Probe(1)))
    driver.snapshot()
    assert script.snapshots == 4
    driver.close()


async def test_nothing_happens_after_the_end() -> None:
    script = Script(lambda _: [SaveIncarnation(1), Send(PEER, Probe(1), True), SetTimer("a", 0.0)])
    driver, outside, _, _ = running(script)
    outside.disk.clear()
    driver.handle(PeerUp(PEER))
    driver.close()
    outside.disk.set()
    await driver.settled()
    driver.handle(PeerUp(PEER))
    assert outside.done == [("saved", 1)]
    assert len(script.events) == 1
