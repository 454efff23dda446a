"""How things are shown, and how errors become words and exit codes."""

from __future__ import annotations

import json
import os
import shutil
import threading

import click
import pytest
from click.testing import CliRunner

from meshnode.cli.render import (
    _bar_amount,
    _Lines,
    command_errors,
    emit,
    fail,
    human_bytes,
    human_seconds,
    human_span,
    printable,
    progress_report,
    say,
    table,
    write_line,
)
from meshnode.errors import EngineError, ModelNotFound
from meshnode.telemetry import Progress


def test_data_goes_to_stdout_and_talk_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"name": "größe"})
    say("hello")
    out, err = capsys.readouterr()
    assert json.loads(out) == {"schema": 1, "name": "größe"} and "größe" in out
    assert err == "hello\n"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (64_000, "64 kB"), (999_600, "1.0 MB"), (4.2e9, "4.2 GB"),
     (47e9, "47 GB"), (3e12, "3.0 TB"), (5e15, "5000.0 TB")],
)  # fmt: skip
def test_sizes(size: float, text: str) -> None:
    assert human_bytes(size) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (67, "1:07"), (3723, "1:02:03")])
def test_durations(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s"), (45.4, "45 s"), (1800, "30 min"), (5400, "90 min"), (86_399.7, "24 h"), (82_900, "23 h"),
     (604_800, "7 d")],
)  # fmt: skip
def test_spans(seconds: float, text: str) -> None:
    assert human_span(seconds) == text


def test_a_table_is_as_wide_as_its_widest_cell(capsys: pytest.CaptureFixture[str]) -> None:
    table(["A", "LONGER"], [["something", "x"], ["y", "z"]])
    assert capsys.readouterr().out == "A          LONGER\nsomething  x\ny          z\n"
    table(["A", "B"], [])
    assert capsys.readouterr().out == "A  B\n"


def test_a_table_counts_columns_and_not_characters(capsys: pytest.CaptureFixture[str]) -> None:
    table(["A", "B"], [["日本", "x"], ["e\u0301", "x"], ["1234", "x"]])
    assert capsys.readouterr().out.splitlines() == ["A     B", "日本  x", "e\u0301     x", "1234  x"]


def test_a_table_is_cut_to_the_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((10, 24)))
    table(["A", "B"], [["1234", "5678"], ["1234", "56789"], ["1234", "日本語"]])
    assert capsys.readouterr().out.splitlines() == ["A     B", "1234  5678", "1234  567…", "1234  日…"]


STEERING = "\x1b[2J \x9b31m \x07 \r \u202e \u2066 \u200b \u2028 \U000e0041 \ud800"


def test_nothing_that_is_shown_can_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"a{STEERING}z")
    write_line(f"a{STEERING}z")
    table(["A"], [[f"a{STEERING}z"]])
    fail(EngineError(f"a{STEERING}z", fix=f"a{STEERING}z\nsecond line"))
    out, err = capsys.readouterr()
    lines = [*out.splitlines(), *err.splitlines()]
    assert len(lines) == 7 and all(line.isprintable() for line in lines)
    assert sum("a" in line and "z" in line for line in lines) == 5 and lines[-1] == "second line"


def test_json_holds_every_character_and_shows_none_that_steers(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"name": f"größe {STEERING}"})
    out = capsys.readouterr().out
    assert json.loads(out)["name"] == f"größe {STEERING}"
    assert "größe" in out and out.rstrip("\n").isprintable()


@pytest.mark.parametrize(
    ("text", "most", "shown"),
    [("name", 4, "name"), ("names", 4, "nam…"), (" a\nb\t", 9, "a b"), ("\x1b[31m", 9, "[31m"), ("", 4, ""),
     ("x" * 10**6, 3, "xx…")],
)  # fmt: skip
def test_a_strangers_text_becomes_one_short_line(text: str, most: int, shown: str) -> None:
    assert printable(text, most) == shown


def test_an_error_says_what_happened_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    fail(ModelNotFound("nothing is called x", fix="did you mean y?"))
    out, err = capsys.readouterr()
    assert out == "" and err == "error: No such model: nothing is called x (model-not-found)\n  did you mean y?\n"
    fail(ModelNotFound("nothing is called x"), as_json=True)
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["code"] == "model-not-found" and err == ""


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (EngineError("it broke"), 6, "it broke (engine)"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("secret detail"), 1, "this is a fault of meshnode (ZeroDivisionError"),
    ],
)
def test_exit_codes(raised: BaseException, code: int, words: str) -> None:
    @click.command()
    @command_errors
    def command() -> None:
        raise raised

    result = CliRunner().invoke(command)
    assert result.exit_code == code
    assert words in result.output
    assert "Traceback" not in result.output


def test_a_fault_shows_its_traceback_only_when_asked() -> None:
    @click.group()
    @click.option("-v", "--verbose", count=True)
    @click.pass_context
    def group(ctx: click.Context, verbose: int) -> None:
        ctx.obj = {"verbose": verbose}

    @group.command()
    @command_errors
    def broken() -> None:
        raise ZeroDivisionError

    assert "Traceback" in CliRunner().invoke(group, ["-v", "broken"]).output
    assert "Traceback" not in CliRunner().invoke(group, ["broken"]).output


def test_clicks_own_errors_pass_through() -> None:
    @click.command()
    @command_errors
    def command() -> None:
        raise click.UsageError("wrong words")

    assert CliRunner().invoke(command).exit_code == 2


def test_without_a_terminal_progress_is_a_line_per_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_report() as report:
        for step in range(101):
            report(Progress("download", "model.gguf", step * 1e6, 1e8, "bytes"))
        report(Progress("download", "model.gguf", 1e8, 1e8, "bytes", finished=True))
    lines = capsys.readouterr().err.splitlines()
    assert 11 <= len(lines) <= 13
    assert lines[0] == "download model.gguf  0 %  0 B of 100 MB" and lines[-1].endswith("100 %  100 MB of 100 MB")


def test_a_slow_task_without_a_total_is_heard_of_once_in_a_while(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    lines = _Lines()
    for _ in range(25):
        lines(Progress("engine", "waiting"))
        now[0] += 1
    assert capsys.readouterr().err.splitlines() == ["engine   waiting"] * 3


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_report(quiet=True) as report:
        report(Progress("engine", "x", 1, 2))
    assert capsys.readouterr() == ("", "")


def test_bars_are_drawn_only_while_something_is_under_way(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    before = threading.active_count()
    with progress_report() as report:
        assert threading.active_count() == before
        report(Progress("engine", "compiling x.cpp", 5, 10))
        assert threading.active_count() == before + 1
        say("a line above")
        report(Progress("engine", "built", 10, 10, finished=True))
        for drawing in set(threading.enumerate()) - {threading.current_thread()}:
            drawing.join(5)
        assert threading.active_count() == before
        say("plain again")
        report(Progress("download", "here already", 1, 1, finished=True))
    told = capsys.readouterr().err
    assert "compiling x.cpp" in told and "a line above" in told and "engine   built" in told
    assert told.rstrip().endswith("plain again")


def test_bars_tell_amount_rate_and_time_left() -> None:
    assert _bar_amount(Progress("e", "x", 50, 200), 10) == "50/200  0:30 left"
    assert _bar_amount(Progress("d", "x", 1e9, 2e9, "bytes"), 10) == "1.0 GB of 2.0 GB  100 MB/s  0:10 left"
    assert _bar_amount(Progress("d", "x", 1e9, 2e9, "bytes"), 0.5) == "1.0 GB of 2.0 GB"
    assert _bar_amount(Progress("e", "x"), 10) == ""
