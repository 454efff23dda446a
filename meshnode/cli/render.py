"""How the command line shows things: tables and JSON on stdout; talk, progress and errors on stderr.

The one place that turns errors into words and exit codes. Names come from files and from other machines: nothing that
passes here can steer the terminal. rich is imported only when something is drawn.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
import traceback
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import click

from meshnode.errors import MeshnodeError
from meshnode.telemetry import Progress, Report, silent

SCHEMA = 1
EXIT_INTERRUPTED = 130
PLAIN_STEP = 0.1
PLAIN_PAUSE_S = 10.0
MOST_CELL_CHARS = 1000

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


_above_the_bars: Callable[[str], None] | None = None
"""Prints a line while bars are drawn: they own the last lines of the terminal."""


def say(text: str) -> None:
    """Talk: one line on stderr, above the bars if there are any."""
    text = _without_commands(text)
    if _above_the_bars is not None:
        _above_the_bars(text)
    else:
        click.echo(text, err=True)


def emit(facts: Mapping[str, object]) -> None:
    """Data: one JSON object on stdout, with its schema number. What cannot be printed is escaped."""
    text = json.dumps({"schema": SCHEMA, **facts}, ensure_ascii=False, default=str)
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in text)
    click.echo(text)


def write_line(text: str) -> None:
    """Facts for people: a line on stdout."""
    click.echo(_without_commands(text))


def printable(text: str, most: int = 60) -> str:
    """A stranger's text on one line: spaces for what would steer a terminal, turn the line, or stand beyond `most`
    characters (an ellipsis).
    """
    plain = "".join(letter if letter.isprintable() else " " for letter in text[: most + 1]).strip()
    return plain if len(text) <= most else f"{plain[: most - 1]}…"


def _without_commands(text: str) -> str:
    """Text of several lines at most, without what would steer a terminal or hide in it (C0, C1, bidi and the like)."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in "\n\t" else " " for letter in text)


def _columns(text: str) -> int:
    """How many columns of a terminal the text takes: two for a wide letter (UAX #11), none for a mark above another."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.category(letter) in ("Mn", "Me") for letter in text)


def _fitted(text: str, columns: int) -> str:
    """The beginning of a text that fits into so many columns, with an ellipsis where it was cut."""
    if _columns(text) <= columns:
        return text
    while text and _columns(text) >= columns:
        text = text[:-1]
    return f"{text}…"


def human_bytes(size: float) -> str:
    """4.2 GB, 13 MB: decimal units, as disks and downloads are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def human_seconds(seconds: float) -> str:
    """0:07, 12:30, 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def human_span(seconds: float) -> str:
    """45 s, 90 min, 23 h, 6 d: a length of time with as much precision as a person wants."""
    for unit, length_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds > 2 * length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Left-aligned columns on stdout, each as wide as its widest cell; the last one is cut to the terminal."""
    lines = [columns, *([printable(cell, MOST_CELL_CHARS) for cell in row] for row in rows)]
    widths = [max(_columns(line[index]) for line in lines) for index in range(len(columns))]
    limit = _terminal_width() if sys.stdout.isatty() else 0
    for line in lines:
        padded = [cell + " " * (width - _columns(cell)) for cell, width in zip(line, widths, strict=True)]
        text = "  ".join(padded).rstrip()
        click.echo(_fitted(text, limit) if limit else text)


def fail(error: MeshnodeError, *, as_json: bool = False) -> None:
    """Show an error: what happened, and below it what to do."""
    if as_json:
        emit({"error": error.as_dict()})
        return
    red = None if os.environ.get("NO_COLOR") else "red"
    click.echo(f"{click.style('error:', fg=red)} {_without_commands(f'{error.message} ({error.code})')}", err=True)
    if error.fix:
        click.echo(f"  {_without_commands(error.fix)}", err=True)


def command_errors(command: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Wrap a command: MeshnodeError becomes words and its exit code, Ctrl-C 130, anything else one sentence and 1."""

    @functools.wraps(command)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return command(*args, **kwargs)
        except MeshnodeError as error:
            fail(error, as_json=bool(kwargs.get("as_json")))
            raise SystemExit(error.exit_code) from None
        except KeyboardInterrupt:
            say("interrupted")
            raise SystemExit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            # The reader of our output (head, less) has left; Python must not complain about it at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            say(f"error: this is a fault of meshnode ({type(error).__name__}: {error}) (internal)")
            if _is_verbose():
                say(traceback.format_exc())
            else:
                say("  `meshnode -v ...` shows where; please report it with the output of `meshnode doctor --json`")
            raise SystemExit(1) from None

    return wrapped


def _is_verbose() -> bool:
    context = click.get_current_context(silent=True)
    return bool(context and (context.find_root().obj or {}).get("verbose"))


# --- progress -------------------------------------------------------------------------------------------------


@contextmanager
def progress_report(*, quiet: bool = False) -> Iterator[Report]:
    """A Report for the length of the block: bars on a terminal, else a line per 10 % or 10 s."""
    if quiet:
        yield silent
    elif sys.stderr.isatty():
        bars = _Bars()
        try:
            yield bars
        finally:
            bars.close()
    else:
        yield _Lines()


class _Lines:
    """Progress for a log: the first and last report of a task, and now and then one between."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[float, float]] = {}

    def __call__(self, progress: Progress) -> None:
        share = progress.done / progress.total if progress.total else 0.0
        now = time.monotonic()
        told_share, told_at = self._told.get(progress.task, (-1.0, 0.0))
        due = share >= told_share + PLAIN_STEP or now - told_at >= PLAIN_PAUSE_S
        if not due and not progress.finished:
            return
        self._told[progress.task] = (share, now)
        if progress.finished:
            del self._told[progress.task]
        say(f"{progress.task:<8} {progress.text}  {_amount(progress)}".rstrip())


def _amount(progress: Progress) -> str:
    if not progress.total:
        return ""
    percent = f"{100 * progress.done / progress.total:.0f} %"
    if progress.unit == "bytes":
        return f"{percent}  {human_bytes(progress.done)} of {human_bytes(progress.total)}"
    return f"{percent}  {progress.done:.0f}/{progress.total:.0f}"


class _Bars:
    """Progress on a terminal. Drawn only while a task is under way: an idle node redraws nothing."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        columns: list[Any] = [
            TextColumn("{task.fields[name]:<8} {task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[amount]}"),
        ]
        self._bars = RichProgress(*columns, console=Console(stderr=True), transient=True)
        self._tasks: dict[str, tuple[Any, float]] = {}

    def __call__(self, progress: Progress) -> None:
        if progress.task not in self._tasks:
            # A task that is already over (a cached download) needs no bar.
            if progress.finished:
                return
            self._begin(progress)
        task, begun = self._tasks[progress.task]
        amount = _bar_amount(progress, time.monotonic() - begun)
        text = progress.text[:60]
        self._bars.update(task, description=text, completed=progress.done, total=progress.total, amount=amount)
        if progress.finished:
            self._bars.remove_task(task)
            del self._tasks[progress.task]
            if not self._tasks:
                self.close()
            say(f"{progress.task:<8} {progress.text}")

    def _begin(self, progress: Progress) -> None:
        global _above_the_bars
        if not self._tasks:
            self._bars.start()
            console = self._bars.console
            _above_the_bars = functools.partial(console.print, markup=False, highlight=False, soft_wrap=True)
        task = self._bars.add_task(progress.text, name=progress.task, amount="", total=progress.total)
        self._tasks[progress.task] = (task, time.monotonic())

    def close(self) -> None:
        """Wipe the bars and leave the terminal to others."""
        global _above_the_bars
        _above_the_bars = None
        self._bars.stop()


def _bar_amount(progress: Progress, seconds: float) -> str:
    """`12/230  1:20 left` or `0.4/2.1 GB  34 MB/s  0:50 left`."""
    if not progress.total:
        return ""
    left = ""
    if progress.done and seconds > 2:
        left = f"  {human_seconds(seconds * (progress.total - progress.done) / progress.done)} left"
    if progress.unit == "bytes":
        rate = f"  {human_bytes(progress.done / seconds)}/s" if seconds > 1 else ""
        return f"{human_bytes(progress.done)} of {human_bytes(progress.total)}{rate}{left}"
    return f"{progress.done:.0f}/{progress.total:.0f}{left}"


def _terminal_width() -> int:
    import shutil

    return shutil.get_terminal_size().columns
