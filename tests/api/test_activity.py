"""What is under way, and how fast it goes, over a clock that stands still unless it is moved."""

from __future__ import annotations

import pytest

from meshnode.api.activity import MOST_SHOWN, WINDOW_S, Activity, Running
from meshnode.api.record import Record
from tests.api.running import DONE, LAST, TOKEN

ANTHROPIC = b'event: content_block_delta\ndata: {"type":"content_block_delta"}\n\n'


class Clock:
    """Monotonic seconds that go on when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def begun(activity: Activity, name: str = "req_1", model: str = "demo") -> Running:
    return activity.begin(Record(name, "/v1/chat/completions", 1000.0, model=model, stream=True))


def test_a_request_is_shown_from_when_its_model_is_known_until_it_ends(clock: Clock) -> None:
    told: list[int] = []
    activity = Activity(lambda: told.append(1), clock=clock)
    running = begun(activity, model="")
    assert activity.running() == [] and len(told) == 1
    running.record.model = "demo"
    running.record.started_at = 0.0  # what is shown does not move
    [shown] = activity.running()
    assert shown.pop("since") == pytest.approx(activity._wall_minus_clock + 1000.0, abs=0.001)
    assert shown == {
        "id": "req_1",
        "model": "demo",
        "node": "",
        "where": "here",
        "radius": "",
        "peer": "",
        "stream": True,
        "pieces": 0,
    }
    activity.end(running)
    assert activity.running() == [] and len(told) == 2


@pytest.mark.parametrize(
    ("node", "here", "radius", "where"),
    [
        ("ab" * 32, True, "local", "here"),
        ("ab" * 32, True, "trusted", "here"),  # with the help of others
        ("ab" * 32, False, "local", "ababababab"),
        ("ab" * 32, False, "public", "ababababab"),
        ("", True, "", "here"),
    ],
)
def test_it_is_said_where_a_request_runs(node: str, here: bool, radius: str, where: str, clock: Clock) -> None:
    activity = Activity(clock=clock)
    running = begun(activity)
    running.record.node, running.record.radius, running.record.peer = node, radius, "cd" * 32
    running.record.here = here
    [shown] = activity.running()
    assert (shown["node"], shown["radius"], shown["where"], shown["peer"]) == (node, radius, where, "cd" * 32)


@pytest.mark.parametrize(
    ("piece", "count"),
    [
        (TOKEN, 1),
        (TOKEN * 40 + LAST + DONE, 41),
        (ANTHROPIC * 3, 3),
        (DONE, 0),
        (b": ping\n\n", 0),
        (b"", 0),
        (b'{"choices":[]}', 0),
        (TOKEN.replace(b'"a"', rb'"data: {\"x\" data: data:"'), 1),
    ],
)
def test_events_are_counted_and_nothing_that_looks_like_one(piece: bytes, count: int, clock: Clock) -> None:
    activity = Activity(clock=clock)
    running = begun(activity)
    running.take(piece)
    assert running.pieces == activity.running()[0]["pieces"] == count


def test_the_rate_is_that_of_the_last_seconds_over_all_answers(clock: Clock) -> None:
    activity = Activity(clock=clock)
    assert activity.tokens_per_s() == 0.0
    one, other = begun(activity), begun(activity)
    for _ in range(100):  # 20 a second together
        clock.now += 0.1
        one.take(TOKEN)
        other.take(TOKEN)
    assert activity.tokens_per_s() == pytest.approx(20, abs=2)
    activity.end(one)
    assert activity.tokens_per_s() == pytest.approx(20, abs=2)  # what it gave still went out
    clock.now += WINDOW_S / 2
    assert activity.tokens_per_s() == pytest.approx(10, abs=2)
    clock.now += WINDOW_S
    assert activity.facts() == {"running": activity.running(), "tokens_per_s": 0.0}
    clock.now += 1e6
    other.take(TOKEN)
    assert 0 < activity.tokens_per_s() < 1


def test_counting_holds_no_more_than_its_window(clock: Clock) -> None:
    activity = Activity(clock=clock)
    running = begun(activity)
    for _ in range(10_000):
        clock.now += 0.07
        running.take(TOKEN)
    assert len(activity._steps) < 20 and running.pieces == 10_000


def test_the_newest_requests_are_shown_and_all_are_known(clock: Clock) -> None:
    activity = Activity(clock=clock)
    all_of_them = [begun(activity, f"req_{number}") for number in range(MOST_SHOWN + 10)]
    names = [entry["id"] for entry in activity.running()]
    assert names == [f"req_{number}" for number in range(10, MOST_SHOWN + 10)]
    for running in all_of_them[10:]:
        activity.end(running)
    assert len(activity.running()) == 10


def test_two_requests_of_one_name_end_apart(clock: Clock) -> None:
    """A peer chooses the ids of its requests."""
    activity = Activity(clock=clock)
    first, second = begun(activity), begun(activity)
    activity.end(first)
    second.take(TOKEN)
    assert [entry["pieces"] for entry in activity.running()] == [1]
