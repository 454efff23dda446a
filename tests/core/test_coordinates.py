import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.core.coordinates import (
    DIMENSIONS,
    LIMIT_S,
    MOST_STEP_S,
    NEIGHBOURS,
    CoordinateSystem,
    distance_s,
)
from meshnode.wire.schema import pack, unpack
from meshnode.wire.statements import Coordinate

ORIGIN = Coordinate((0, 0, 0, 0), 2000, 1500)


def wide_area(nodes: int, seed: int) -> np.ndarray:
    """Round trips in seconds between nodes in six regions, each with an access line of its own.

    Routes are 18 % longer or shorter at random (lognormal), and of 15 % of the pairs they are 1.2 to 2 times as long,
    which breaks the triangle inequality.
    """
    source = np.random.default_rng(seed)
    centres = np.array([[0, 0], [35, 10], [75, -5], [120, 30], [150, 60], [60, 70]], dtype=float)
    places = centres[source.integers(0, len(centres), nodes)] + source.normal(0, 6, (nodes, 2))
    access = source.exponential(5, nodes) + 1.5
    trips = 1.1 * np.linalg.norm(places[:, None] - places[None], axis=2) + access[:, None] + access[None]
    trips *= source.lognormal(0, 0.18, trips.shape)
    detour = source.random(trips.shape) < 0.15
    trips = np.triu(np.where(detour, trips * source.uniform(1.2, 2.0, trips.shape), trips), 1)
    return (trips + trips.T) / 1000


class Mesh:
    """Nodes that each measure one neighbour a second: 6 near ones, 10 at random; queues add 3 ms on average."""

    def __init__(self, nodes: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.trips = wide_area(nodes, seed)
        self.systems = [CoordinateSystem(self.random) for _ in range(nodes)]
        self.places = [system.coordinate() for system in self.systems]
        self.neighbours = [
            [*np.argsort(row)[1:7], *self.random.sample([other for other in range(nodes) if other != node], 10)]
            for node, row in enumerate(self.trips)
        ]

    def pass_seconds(self, begin: int, end: int) -> None:
        for second in range(begin, end):
            for node, system in enumerate(self.systems):
                other = self.random.choice(self.neighbours[node])
                rtt_s = self.trips[node][other] + self.random.expovariate(1 / 0.003)
                system.update(self.places[other], rtt_s, float(second), peer=bytes([other]))
                self.places[node] = system.coordinate()

    def relative_errors(self) -> list[float]:
        return [
            abs(distance_s(one, self.places[other]) - self.trips[number][other]) / self.trips[number][other]
            for number, one in enumerate(self.places)
            for other in range(number)
        ]

    def regrets_s(self, times: int) -> list[float]:
        """How much farther than the nearest of ten is the one that seems the nearest."""
        found = []
        for _ in range(times):
            node, *others = self.random.sample(range(len(self.places)), 11)
            trips = self.trips[node]
            seems = min(others, key=lambda other: distance_s(self.places[node], self.places[other]))
            found.append(trips[seems] - min(trips[other] for other in others))
        return found


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * len(values))]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_two_hundred_nodes_of_a_wide_area_are_told_apart(seed: int) -> None:
    mesh = Mesh(200, seed)
    assert statistics.median(mesh.relative_errors()) > 0.5
    mesh.pass_seconds(0, 60)
    assert statistics.median(mesh.relative_errors()) <= 0.25
    mesh.pass_seconds(60, 120)
    assert statistics.median(mesh.relative_errors()) <= 0.24
    regrets = mesh.regrets_s(1000)
    assert statistics.median(regrets) <= 0.001
    assert quantile(regrets, 0.9) <= 0.02


@pytest.mark.parametrize("rtt_s", [0.0003, 0.02, 0.3])
def test_two_nodes_agree_on_what_they_measure(rtt_s: float) -> None:
    source = random.Random(4)
    one, other = CoordinateSystem(source), CoordinateSystem(source)
    for second in range(200):
        one.update(other.coordinate(), rtt_s, float(second))
        other.update(one.coordinate(), rtt_s, float(second))
    assert distance_s(one.coordinate(), other.coordinate()) == pytest.approx(rtt_s, rel=0.05)
    assert one.coordinate().error_permille < 100


def test_a_single_delay_does_not_move_a_node() -> None:
    quiet, disturbed = CoordinateSystem(random.Random(4)), CoordinateSystem(random.Random(4))
    there = Coordinate((30_000, 0, 0, 0), 2000, 100)
    for second in range(100):
        quiet.update(there, 0.05, float(second), peer=b"a")
        disturbed.update(there, 5.0 if second == 90 else 0.05, float(second), peer=b"a")
    assert disturbed.coordinate() == quiet.coordinate()


def test_neighbours_that_are_filtered_are_bounded() -> None:
    system = CoordinateSystem(random.Random(4))
    for number in range(NEIGHBOURS + 50):
        system.update(ORIGIN, 0.05, 0.0, peer=number.to_bytes(4, "big"))
    assert len(system._samples) == NEIGHBOURS


@pytest.mark.parametrize("rtt_s", [0.0, -1.0, LIMIT_S + 1, math.inf, math.nan])
def test_round_trips_that_cannot_be_are_passed_over(rtt_s: float) -> None:
    system = CoordinateSystem(random.Random(4))
    before = system.coordinate()
    system.update(ORIGIN, rtt_s, 0.0)
    assert system.coordinate() == before


def test_a_liar_moves_a_node_by_a_bounded_step_only() -> None:
    system = CoordinateSystem(random.Random(4))
    far = Coordinate((2**31 - 1,) * 8, 2**32 - 1, 0)
    before = system.coordinate()
    system.update(far, 0.001, 0.0, peer=b"liar")
    moved = math.dist(before.axes, system.coordinate().axes) / 1e6
    assert 0 < moved <= MOST_STEP_S + 1e-3


def test_a_distance_is_a_round_trip() -> None:
    """Both ways through the space, and twice through each access line; further dimensions than ours do not count."""
    one, other = Coordinate((3000, 0), 500, 0), Coordinate((0, 4000, 0, 0, 99), 1500, 0)
    assert distance_s(one, other) == pytest.approx(2 * (0.005 + 0.0005 + 0.0015))
    assert distance_s(other, one) == pytest.approx(distance_s(one, other))


WIRE = st.builds(
    Coordinate,
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=8).map(tuple),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**16 - 1),
)


@settings(max_examples=60)
@given(st.lists(st.tuples(WIRE, st.floats(0, 20), st.binary(max_size=1)), max_size=8))
def test_whatever_peers_claim_the_own_place_fits_the_wire(samples: list[tuple[Coordinate, float, bytes]]) -> None:
    system = CoordinateSystem(random.Random(4))
    for remote, rtt_s, peer in samples:
        system.update(remote, rtt_s, 0.0, peer=peer)
        own = system.coordinate()
        assert unpack(Coordinate, pack(own)) == own
        assert len(own.axes) == DIMENSIONS
        assert distance_s(own, remote) >= 0
