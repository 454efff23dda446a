"""The membership benchmark runs, and the model of memberlist has the timers of the real one."""

from __future__ import annotations

import math

import pytest

from bench import membership
from bench.memberlist_model import LAN, WAN, Memberlist, Settings
from bench.record import Run
from tests.sim.world import World


def test_the_parts_give_figures_within_their_limits() -> None:
    run = Run("membership", quick=True, machine={})
    effort = membership.Effort(crashes=2, large=60, node_hours=0.1, sizes=(12,), losses=(0.0,), traffic_s=2.0)
    for name, part in membership.PARTS.items():
        if name != "memberlist":
            part(run, effort)
    assert len(run.figures) == 18
    assert [figure.name for figure in run.figures if figure.reached is False] == []


@pytest.mark.parametrize("settings, least_s, most_s", [(LAN, 4.0, 15.0), (WAN, 30.0, 90.0)])
def test_memberlist_finds_the_dead_in_its_time(settings: Settings, least_s: float, most_s: float) -> None:
    world = World(1)
    model = Memberlist(world, 20, settings)
    world.run(5)
    at = world.now
    model.crash(3)
    world.run(100)
    assert least_s < model.known_to(0.99, 3, at) < most_s
    assert model.false_dead == 0
    assert math.isinf(model.known_to(0.99, 4, at))


def test_suspicions_are_shorter_the_more_confirm_them() -> None:
    model = Memberlist(World(2), 100, LAN)
    times = [model.timeout_s(confirmed) for confirmed in range(4)]
    assert times[0] == pytest.approx(6 * 4 * 2 * 1.0)
    assert times == sorted(times, reverse=True)
    assert times[2] == times[3] == pytest.approx(8.0)
