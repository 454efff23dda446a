import asyncio
from time import monotonic

import pytest

from meshnode.net import liveness
from meshnode.net.watch import Watch
from tests.net.nodes import until

pytestmark = pytest.mark.anyio
QUICK_S = 0.03


class Peer:
    """A watch and what it did. `answers` decides whether a probe is heard."""

    def __init__(self, *, answers: bool) -> None:
        self.answers = answers
        self.quiet_s: float | None = QUICK_S
        self.probes: list[float] = []
        self.reads = 0
        self.verdicts: list[bool] = []
        self.in_socket = False
        self.watch = Watch(
            asyncio.get_running_loop(),
            quiet=lambda: self.quiet_s,
            probe=self._probe,
            read=self._read,
            rtt=lambda: 0.001,
            verdict=self.verdicts.append,
        )

    def _probe(self) -> None:
        self.probes.append(monotonic())
        if self.answers:
            self.watch.heard(monotonic())

    def _read(self) -> None:
        self.reads += 1
        if self.in_socket:
            self.watch.heard(monotonic())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "PROBE_LEAST_S", 0.01)
    monkeypatch.setattr(liveness, "PROBE_MOST_S", 0.03)
    monkeypatch.setattr(liveness, "SILENT_LEAST_S", 0.1)
    monkeypatch.setattr(liveness, "LAG_S", 10.0)


async def test_a_peer_that_answers_is_never_silent() -> None:
    peer = Peer(answers=True)
    peer.watch.consider()
    await until(lambda: len(peer.probes) >= 5)
    assert peer.verdicts == [] and not peer.watch.silent
    peer.quiet_s = None
    await until(lambda: not peer.watch.is_running)


async def test_a_peer_that_does_not_is_silent_until_it_is_heard() -> None:
    peer = Peer(answers=False)
    peer.watch.consider()
    await until(lambda: peer.verdicts == [True])
    assert peer.watch.silent and len(peer.probes) >= 3
    asked = len(peer.probes)
    await until(lambda: len(peer.probes) > asked)
    peer.watch.heard(monotonic())
    assert peer.verdicts == [True, False]
    peer.watch.stop()


async def test_what_waits_in_the_socket_counts() -> None:
    peer = Peer(answers=False)
    peer.in_socket = True
    peer.watch.consider()
    await until(lambda: peer.reads >= 5)
    assert peer.probes == [] and peer.verdicts == []
    peer.watch.stop()


async def test_nobody_who_waits_no_watch_and_a_hint_starts_one() -> None:
    peer = Peer(answers=False)
    peer.quiet_s = None
    peer.watch.consider()
    assert not peer.watch.is_running
    peer.watch.hint()
    await until(lambda: peer.verdicts == [True])
    peer.watch.stop()
    peer.watch.hint()
    peer.watch.consider()
    assert not peer.watch.is_running


async def test_who_begins_to_wait_is_served_before_the_next_look_of_an_idle_watch() -> None:
    peer = Peer(answers=True)
    peer.quiet_s = 3600.0
    peer.watch.consider()
    await asyncio.sleep(2 * QUICK_S)
    assert peer.watch.is_running and peer.probes == []
    peer.quiet_s = QUICK_S
    peer.watch.consider()
    await until(lambda: len(peer.probes) >= 2)
    peer.watch.stop()


async def test_a_wish_to_know_less_soon_changes_nothing_that_runs() -> None:
    peer = Peer(answers=True)
    peer.watch.consider()
    peer.quiet_s = 3600.0
    peer.watch.consider()
    timer = peer.watch._timer
    peer.watch.consider()
    assert peer.watch._timer is timer
    peer.watch.stop()
