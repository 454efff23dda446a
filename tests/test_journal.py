"""The end of a log: its last lines, bounded, from the log folder only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from meshnode.config import Places
from meshnode.errors import BadRequest, StateError
from meshnode.journal import MOST_BYTES, MOST_LINES, last_lines, tail

pytestmark = pytest.mark.anyio


@pytest.fixture
def places(tmp_path: Path) -> Places:
    found = Places(tmp_path / "home", tmp_path / "cache", tmp_path / "config.toml")
    found.logs.mkdir(parents=True)
    return found


async def test_the_last_lines_of_the_node(places: Places) -> None:
    file = places.logs / "node.log"
    file.write_text("".join(f"line {number}\n" for number in range(10)))
    assert await tail(places, "node", 3) == {
        "source": "node",
        "file": str(file),
        "lines": ["line 7", "line 8", "line 9"],
    }
    assert len((await tail(places, "node", 99))["lines"]) == 10
    assert (await tail(places, "node", 0))["lines"] == (await tail(places, "node", -5))["lines"] == []


async def test_the_engine_that_wrote_last(places: Places) -> None:
    for number, name in enumerate(("engine-a.log", "engine-c.log", "engine-b.log")):
        (places.logs / name).write_text(name)
        os.utime(places.logs / name, (number, number))
    assert (await tail(places, "engine", 5))["lines"] == ["engine-b.log"]


@pytest.mark.parametrize("source", ["node", "engine"])
async def test_where_nothing_was_written_yet(places: Places, source: str) -> None:
    assert await tail(places, source, 5) == {"source": source, "file": "", "lines": []}
    places.logs.rmdir()
    assert await tail(places, source, 5) == {"source": source, "file": "", "lines": []}


@pytest.mark.parametrize("source", ["", "../node", "node.log", "/etc/passwd", "x" * 10_000])
async def test_other_names_are_refused(places: Places, source: str) -> None:
    with pytest.raises(BadRequest, match="there is no log") as caught:
        await tail(places, source, 5)
    assert len(caught.value.message) < 200


async def test_links_folders_and_pipes_are_no_logs(places: Places, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (places.logs / "node.log").symlink_to(tmp_path / "secret")
    (places.logs / "engine-a.log").mkdir()
    os.mkfifo(places.logs / "engine-b.log")
    assert (await tail(places, "node", 5))["lines"] == []
    assert (await tail(places, "engine", 5))["lines"] == []
    with pytest.raises(OSError, match="Too many levels"):
        last_lines(places.logs / "node.log", 5)


async def test_a_log_that_may_not_be_read(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    (places.logs / "node.log").write_text("words")

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StateError, match="cannot be read: Permission denied"):
        await tail(places, "node", 5)


async def test_a_log_that_is_rotated_away_meanwhile(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    (places.logs / "node.log").write_text("words")

    def gone(*_: object) -> int:
        raise FileNotFoundError(2, "gone")

    monkeypatch.setattr(os, "open", gone)
    assert await tail(places, "node", 5) == {"source": "node", "file": "", "lines": []}


async def test_lines_and_bytes_are_bounded(places: Places) -> None:
    file = places.logs / "node.log"
    file.write_text("".join(f"{number}\n" for number in range(3 * MOST_LINES)))
    assert len((await tail(places, "node", 1 << 40))["lines"]) == MOST_LINES
    file.write_text("x" * (4 * MOST_BYTES))
    (line,) = (await tail(places, "node", 5))["lines"]
    assert line == "x" * MOST_BYTES


def test_a_line_that_was_cut_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"a long line\nsecond\nthird\n")
    assert last_lines(file, 9, most_bytes=16) == ["second", "third"]
    assert last_lines(file, 9, most_bytes=4) == ["ird"]


def test_bytes_that_are_no_text_stay_one_line(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"one\x0b\xff\x85\xe2\x80\xa8two\r\n\nthree")
    assert last_lines(file, 9) == ["one\x0b\ufffd\ufffd\u2028two", "", "three"]
