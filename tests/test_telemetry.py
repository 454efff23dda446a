import json
import logging
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshnode import telemetry
from meshnode.telemetry import (
    LOG,
    PROBLEM_KINDS,
    JsonFormatter,
    Problem,
    ProblemBoard,
    Progress,
    TextFormatter,
    configure_logging,
    new_request_id,
    silent,
)


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """Whatever a test does to the log of the package is undone."""
    before = LOG.handlers[:], LOG.level, LOG.propagate, logging.raiseExceptions
    yield
    for handler in LOG.handlers:
        if handler not in before[0]:
            handler.close()
    LOG.handlers, LOG.level, LOG.propagate, logging.raiseExceptions = before  # type: ignore[assignment]


def line(level: int = logging.INFO, message: str = "hello %s", **extra: object) -> logging.LogRecord:
    record = logging.LogRecord("meshnode", level, __file__, 1, message, ("you",), None)
    vars(record).update(extra)
    return record


# --- problems -------------------------------------------------------------------------------------------------


def test_a_problem_is_printable_with_and_without_its_facts() -> None:
    for kind in PROBLEM_KINDS.values():
        names = set(re.findall(r"{(\w+)}", kind.text + kind.fix))
        shown = Problem(kind, facts=dict.fromkeys(names, "X")).as_dict()
        words = f"{shown['text']} {shown['fix']}"
        assert not any(mark in words for mark in ("{", "}", *(f"({name})" for name in names)))
        bare = Problem(kind).as_dict()
        assert all(f"({name})" in f"{bare['text']}{bare['fix']}" for name in names)
        assert (bare["code"], bare["severity"]) == (kind.code, kind.severity)
        assert set(kind.hides) <= set(PROBLEM_KINDS)


def test_facts_are_never_taken_for_a_format() -> None:
    kind = PROBLEM_KINDS["probe-failed"]
    assert Problem(kind, facts={"probe": "{reason}", "reason": "{0} %s"}).as_dict()["text"] == "{reason}: {0} %s"


def test_a_board_keeps_the_start_replaces_the_facts_and_tells_of_changes() -> None:
    calls: list[int] = []
    board = ProblemBoard(lambda: calls.append(1))
    board.put("model-load-failed", "demo", model="demo", reason="one", fix="a")
    [first] = board
    board.put("model-load-failed", "demo", model="demo", reason="two", fix="b")
    [second] = board
    assert (second.since, second.as_dict()["text"]) == (first.since, "demo: two")
    board.put("model-load-failed", "other")
    assert [problem.subject for problem in board] == ["demo", "other"]
    board.clear("model-load-failed", "demo")
    board.clear("model-load-failed", "never there")
    assert [problem.subject for problem in board] == ["other"]
    assert len(calls) == 4
    with pytest.raises(KeyError):
        board.put("not-declared")


def test_a_cause_hides_its_consequence_for_the_same_subject_only() -> None:
    board = ProblemBoard()
    board.put("engine-restarting", "a")
    board.put("engine-restarting", "b")
    board.put("engine-crash-loop", "a")
    assert [(problem.kind.code, problem.subject) for problem in board] == [
        ("engine-restarting", "b"),
        ("engine-crash-loop", "a"),
    ]
    board.clear("engine-crash-loop", "a")
    assert len(list(board)) == 2


def test_a_board_may_be_used_from_many_threads() -> None:
    board = ProblemBoard()

    def work(number: int) -> None:
        for _ in range(200):
            board.put("probe-failed", str(number))
            list(board)
            board.clear("probe-failed", str(number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(board) == []


# --- logs -----------------------------------------------------------------------------------------------------


def test_a_json_line_is_one_object_whatever_is_in_it() -> None:
    text = JsonFormatter().format(line(message="a\nb %s", facts={"model": "é", "path": Path("/x"), "level": "mine"}))
    assert "\n" not in text
    assert json.loads(text) == {
        "time": json.loads(text)["time"],
        "level": "mine",
        "logger": "meshnode",
        "message": "a\nb you",
        "model": "é",
        "path": "/x",
    }


def test_a_text_line_is_short_and_carries_the_facts() -> None:
    text = TextFormatter().format(line(facts={"model": "demo", "status": 200}))
    assert re.fullmatch(r"\d\d:\d\d:\d\d info    hello you model=demo status=200", text)
    assert re.fullmatch(r"\d\d:\d\d:\d\d warning hello you", TextFormatter().format(line(logging.WARNING)))


def test_faults_come_with_their_traceback() -> None:
    try:
        raise ZeroDivisionError("why")
    except ZeroDivisionError:
        record = line(exc_info=sys.exc_info())
    assert "ZeroDivisionError: why" in TextFormatter().format(record)
    assert "ZeroDivisionError: why" in json.loads(JsonFormatter().format(record))["traceback"]


def test_logs_go_to_the_file_and_to_stderr_only_when_asked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "node.log"
    end = configure_logging(level="debug", form="json", file=file)
    LOG.debug("to the file")
    end()
    end = configure_logging(level="info", file=file, terminal=True)
    LOG.debug("to nobody")
    LOG.info("to both")
    end()
    lines = file.read_text("utf-8").splitlines()
    assert json.loads(lines[0])["message"] == "to the file"
    assert lines[1].endswith("to both")
    assert len(lines) == 2
    assert capfd.readouterr().err.splitlines()[-1].endswith("to both")
    end = configure_logging()
    LOG.error("nowhere")
    end()
    assert capfd.readouterr() == ("", "")


def test_the_file_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "LOG_FILE_BYTES", 500)
    end = configure_logging(file=tmp_path / "node.log")
    for number in range(200):
        LOG.info("line %d", number)
    end()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["node.log", "node.log.1", "node.log.2", "node.log.3"]
    assert all(path.stat().st_size <= 500 for path in tmp_path.iterdir())


def test_a_log_that_cannot_be_written_costs_the_log_and_nothing_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    end = configure_logging(file=tmp_path / "missing" / "node.log")
    LOG.info("lost")
    end()
    assert capfd.readouterr() == ("", "")


def test_a_disk_that_stands_still_drops_lines_and_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "LOG_LINES_WAITING", 5)
    moving = threading.Event()

    def stand_still(handler: logging.Handler, record: logging.LogRecord) -> None:
        moving.wait(10)

    monkeypatch.setattr(logging.FileHandler, "emit", stand_still)
    end = configure_logging(file=tmp_path / "node.log")
    for number in range(100):
        LOG.info("line %d", number)
    (hand,) = [handler for handler in LOG.handlers if isinstance(handler, logging.handlers.QueueHandler)]
    assert hand.queue.qsize() == 5
    moving.set()
    while hand.queue.qsize():
        threading.Event().wait(0.001)
    end()


# --- the rest -------------------------------------------------------------------------------------------------


def test_request_ids_are_fresh() -> None:
    ids = {new_request_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch(r"req_[0-9a-f]{24}", value) for value in ids)


def test_progress_has_an_open_end_by_default() -> None:
    report = Progress("engine", "compiling")
    assert (report.done, report.total, report.unit, report.finished) == (0, None, "steps", False)
    assert silent(report) is None
