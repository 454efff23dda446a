"""What the board of tasks keeps, hands on and forgets."""

from __future__ import annotations

import threading

from meshnode.tasks import CHANGES_A_SECOND, MOST_TASKS, QUIET_S, TaskBoard
from meshnode.telemetry import Progress


class Clock:
    """A time that tests move."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_every_report_is_handed_on_and_the_last_one_kept() -> None:
    heard: list[Progress] = []
    board = TaskBoard(heard.append)
    reports = [Progress("engine", "compiling", 1, 10), Progress("engine", "compiling", 2, 10)]
    for report in reports:
        board(report)
    assert heard == reports
    assert board.facts() == [{"task": "engine", "text": "compiling", "done": 2, "total": 10, "unit": "steps"}]


def test_what_has_finished_vanishes() -> None:
    heard: list[Progress] = []
    board = TaskBoard(heard.append)
    board(Progress("download", "m", 5, 10, "bytes"))
    board(Progress("engine", "configuring"))
    board(Progress("download", "m", 10, 10, "bytes", finished=True))
    assert [task["task"] for task in board.facts()] == ["engine"]
    assert heard[-1].finished


def test_what_failed_is_forgotten_when_it_is_said_or_when_it_is_silent_for_long() -> None:
    clock = Clock()
    told: list[int] = []
    board = TaskBoard(changed=lambda: told.append(1), clock=clock)
    board(Progress("engine", "compiling", 1, 10))
    board(Progress("download", "m", 1, 10, "bytes"))
    told.clear()
    board.forget("engine")
    board.forget("engine")
    assert [task["task"] for task in board.facts()] == ["download"] and told == [1]
    clock.now += QUIET_S - 1
    assert board.facts()
    clock.now += 1
    assert board.facts() == []


def test_watchers_are_told_a_few_times_a_second_and_at_every_end() -> None:
    clock = Clock()
    told: list[float] = []
    board = TaskBoard(changed=lambda: told.append(clock.now), clock=clock)
    for number in range(100):
        clock.now = 100 + number / 100
        board(Progress("download", "m", number, 100, "bytes"))
    assert 1 < len(told) <= CHANGES_A_SECOND
    before = len(told)
    board(Progress("download", "m", 100, 100, "bytes", finished=True))
    assert len(told) == before + 1
    board(Progress("other", "was never shown", finished=True))
    assert len(told) == before + 1


def test_the_board_is_bounded() -> None:
    clock = Clock()
    board = TaskBoard(clock=clock)
    for number in range(MOST_TASKS + 5):
        clock.now += 1
        board(Progress(f"task{number:02}", ""))
    tasks = [task["task"] for task in board.facts()]
    assert tasks == [f"task{number:02}" for number in range(5, MOST_TASKS + 5)]


def test_reports_of_many_threads() -> None:
    board = TaskBoard()

    def work(name: str) -> None:
        for number in range(200):
            board(Progress(name, "", number, 200))
            board.facts()
        if name != "left":
            board(Progress(name, "", finished=True))

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b", "c", "left")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(task["task"], task["done"]) for task in board.facts()] == [("left", 199)]
