import random

import pytest

from meshnode.core.deadlines import Deadlines
from meshnode.core.effects import Outbox, Send
from meshnode.core.probing import Probing
from meshnode.core.tuning import MembershipOptions
from meshnode.wire.messages import Probe
from tests.core.alone import ME, name


class Watching:
    """Probing with a clock; `answers` decides whether a probe is answered, after `rtt_s`."""

    def __init__(self, count: int = 1, rtt_s: float = 0.05) -> None:
        self.out, self.deadlines = Outbox(), Deadlines()
        options, chance = MembershipOptions(), random.Random(1)
        self.probing = Probing(ME, options, chance, self.out, self.deadlines, lambda peer: peer == name(0))
        self.rtt_s = rtt_s
        self.answers = lambda peer, number: True
        self.probes: list[tuple[float, bytes]] = []
        self.missed: dict[bytes, float] = {}
        for index in range(count):
            self.probing.watch(name(index), rtt_s, 0.0)

    def run(self, since: float, until: float) -> None:
        acks: list[tuple[float, bytes, int]] = []
        while True:
            at = min([self.deadlines.next_at() or until, *(ack[0] for ack in acks)])
            if at >= until:
                return
            for due, peer, number in [ack for ack in acks if ack[0] <= at]:
                self.probing.acknowledged(peer, number, due)
                self.probing.heard(peer, due)
            acks = [ack for ack in acks if ack[0] > at]
            while (key := self.deadlines.take(at)) is not None:
                if self.probing.due(key[1], at):
                    self.missed[key[1]] = at
            for effect in self.out.take():
                assert isinstance(effect, Send) and isinstance(effect.message, Probe) and not effect.reliable
                self.probes.append((at, effect.peer))
                if self.answers(effect.peer, effect.message.number):
                    acks.append((at + self.rtt_s, effect.peer, effect.message.number))


def test_an_idle_edge_is_probed_once_a_second() -> None:
    watching = Watching()
    watching.run(0.0, 20.0)
    assert 17 <= len(watching.probes) <= 21
    assert watching.missed == {}


def test_with_many_edges_only_those_who_count_on_this_node_are_probed_so_often() -> None:
    watching = Watching(count=48)
    watching.run(0.0, 30.0)
    counts = [sum(peer == name(index) for _, peer in watching.probes) for index in (0, 1)]
    assert counts[0] >= 27 and 8 <= counts[1] <= 12


def test_who_never_answers_is_missed_within_two_seconds() -> None:
    watching = Watching()
    watching.answers = lambda peer, number: False
    watching.run(0.0, 10.0)
    assert 0.9 <= watching.missed[name(0)] <= 2.0
    first = [at for at, _ in watching.probes if at <= watching.missed[name(0)]]
    assert len(first) == 4
    assert watching.probing.heard(name(0), 10.0), "it was missed until now"
    assert not watching.probing.heard(name(0), 10.1)


@pytest.mark.parametrize("loss, tries", [(0.0, 4), (0.1, 4), (0.2, 6), (0.36, 8), (0.9, 8)])
def test_tries_follow_the_measured_loss(loss: float, tries: int) -> None:
    watching = Watching(count=4)
    chance = random.Random(2)
    watching.answers = lambda peer, number: chance.random() >= loss
    if loss < 0.9:
        watching.run(0.0, 300.0)
        watching.probing._loss = (watching.probing._loss + loss) / 2  # the estimate wanders about the truth
        assert abs(watching.probing._loss - loss) < 0.12
    watching.probing._loss = loss
    assert watching.probing.tries_needed() == tries
    assert watching.probing.tries_needed(hurried=True) == tries // 2


def test_another_ones_doubt_is_checked_at_once_and_quickly() -> None:
    watching = Watching()
    watching.run(0.0, 3.0)
    watching.answers = lambda peer, number: False
    watching.probing.heard(name(0), 3.0)
    watching.probing.ask_now(name(0), 3.0)
    watching.run(3.0, 6.0)
    assert watching.missed[name(0)] - 3.0 < 0.5


def test_timeouts_follow_the_round_trip() -> None:
    near, far = Watching(rtt_s=0.002), Watching(rtt_s=0.3)
    for watching in (near, far):
        watching.run(0.0, 30.0)
        assert watching.missed == {}
    assert near.probing.timeout_s(near.probing.edges[name(0)]) == pytest.approx(0.225)
    assert 0.3 < far.probing.timeout_s(far.probing.edges[name(0)]) < 0.6


def test_most_missing_is_isolation() -> None:
    watching = Watching(count=5)
    for index in range(3):
        assert not watching.probing.is_isolated()
        watching.probing.miss(name(index), 1.0)
    assert watching.probing.is_isolated()
    two = Watching(count=1)
    two.probing.miss(name(0), 1.0)
    assert not two.probing.is_isolated(), "in a mesh of two it is not known who is cut off"


def test_acks_of_unknown_probes_say_nothing_of_round_trips() -> None:
    watching = Watching()
    assert watching.probing.acknowledged(name(0), 12345, 1.0) is None
    assert watching.probing.acknowledged(name(9), 1, 1.0) is None
    assert not watching.probing.heard(name(9), 1.0)


def test_a_closed_link_is_missed_until_it_is_back() -> None:
    watching = Watching()
    assert watching.probing.unlinked(name(0), 1.0)
    assert not watching.probing.unlinked(name(0), 1.1)
    watching.run(1.1, 5.0)
    assert watching.probes == [], "nothing can be sent without a link"
    watching.probing.watch(name(0), None, 5.0)
    assert watching.probing.heard(name(0), 5.0)
    watching.probing.forget(name(0))
    assert watching.probing.edges == {} and watching.deadlines.next_at() is None
