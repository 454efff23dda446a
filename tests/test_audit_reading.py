"""Reading an audit log that nobody writes, or that somebody writes meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshnode import audit_reading as module
from meshnode.audit_reading import first_number, last_records, log_files, old_name, read_newest, records, verify
from meshnode.core.audit import Head, digest_of, extended
from meshnode.errors import StateError


def written(home: Path, *counts: int, torn: bytes = b"") -> Head:
    """A log of several files; the last of them is the newest, and has `torn` at its end."""
    head = Head()
    for place, count in enumerate(counts):
        lines, first = [], head.count
        for _ in range(count):
            line, head = extended(head, "served", 1000.0 + head.count, {"request": f"req_{head.count}"})
            lines.append(line)
        newest = place == len(counts) - 1
        file = home / ("audit.log" if newest else old_name(first))
        file.write_bytes(b"".join(lines) + (torn if newest else b""))
    (home / "audit.head").write_bytes(head.encode())
    return head


def test_files_come_in_the_order_of_their_records_and_others_do_not_count(tmp_path: Path) -> None:
    written(tmp_path, 3, 4, 5)
    for name in ("audit-1.log", "audit-0000000x.log", "audit.log.bak", "node.log"):
        (tmp_path / name).write_bytes(b"")
    assert log_files(tmp_path) == ["audit-00000000.log", "audit-00000003.log", "audit.log"]
    assert [record["n"] for record in records(tmp_path)] == list(range(12))
    assert log_files(tmp_path / "nowhere") == [] == list(records(tmp_path / "nowhere"))
    assert first_number(tmp_path / "audit-00000003.log") == 3


def test_the_last_records_over_several_files_the_newest_first(tmp_path: Path) -> None:
    written(tmp_path, 3, 4, 5, torn=b'{"n":12')
    for limit in (0, 1, 5, 7, 100):
        numbers = [record["n"] for record in last_records(tmp_path, limit)]
        assert numbers == list(range(11, -1, -1))[:limit]


def test_of_a_long_file_only_the_end_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, 50)
    monkeypatch.setattr(module, "TAIL_BYTES", 1000)
    found = [record["n"] for record in last_records(tmp_path, 50)]
    assert 3 <= len(found) < 10 and found == list(range(49, 49 - len(found), -1))


def test_a_whole_log_is_verified_with_its_head(tmp_path: Path) -> None:
    head = written(tmp_path, 3, 4)
    found = verify(tmp_path)
    assert found.as_dict() == {
        "records": 7,
        "files": ["audit-00000000.log", "audit.log"],
        "head": {"count": 7, "digest": head.digest},
        "findings": [],
        "torn_bytes": 0,
        "whole": True,
    }


def test_no_log_is_whole_too(tmp_path: Path) -> None:
    assert verify(tmp_path).as_dict() | {"head": 0} == {
        "records": 0,
        "files": [],
        "head": 0,
        "findings": [],
        "torn_bytes": 0,
        "whole": True,
    }


def test_a_hash_that_was_written_down_must_be_there(tmp_path: Path) -> None:
    head = written(tmp_path, 3, 4)
    old = digest_of((tmp_path / "audit-00000000.log").read_bytes().splitlines()[1])
    assert not verify(tmp_path, head.digest).findings and not verify(tmp_path, old).findings
    [found] = verify(tmp_path, "ab" * 32).findings
    assert "no record has the hash" in found.text


def test_a_file_that_is_put_away_while_it_is_read_is_no_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, 3, 4)
    later = tmp_path / "later"
    later.mkdir()
    written(later, 3, 4, 2)
    real = module.log_files
    calls = 0

    def files(home: Path) -> list[str]:
        nonlocal calls
        calls += 1
        names = real(home)
        if calls == 1:
            for file in later.iterdir():
                file.replace(tmp_path / file.name)
        return names

    monkeypatch.setattr(module, "log_files", files)
    found = verify(tmp_path)
    assert (found.records, found.findings, calls) == (9, (), 2)


def test_findings_name_file_and_line(tmp_path: Path) -> None:
    written(tmp_path, 3, 4)
    file = tmp_path / "audit-00000000.log"
    file.write_bytes(file.read_bytes().replace(b"req_2", b"req_7"))
    [found] = verify(tmp_path).findings
    assert found.as_dict() == {"file": "audit-00000000.log", "line": 3, "text": "it was changed"}


def test_an_unfinished_line_is_no_finding_and_no_record(tmp_path: Path) -> None:
    written(tmp_path, 3, torn=b'{"n":3,"prev"')
    found = verify(tmp_path)
    assert (found.records, found.findings, found.torn_bytes) == (3, (), 13)
    assert len(list(records(tmp_path))) == 3


def test_the_newest_file_is_checked_against_what_is_before_it(tmp_path: Path) -> None:
    head = written(tmp_path, 3, 4, torn=b"abc")
    newest = read_newest(tmp_path)
    size = (tmp_path / "audit.log").stat().st_size
    assert (newest.head, newest.first, newest.size_bytes, newest.torn_bytes) == (head, 3, size - 3, 3)
    assert newest.findings == ()
    (tmp_path / "audit-00000000.log").unlink()
    [found] = read_newest(tmp_path).findings
    assert "records 0 to 2 are missing" in found.text


def test_a_head_that_is_none_does_not_count(tmp_path: Path) -> None:
    written(tmp_path, 3)
    (tmp_path / "audit.head").write_bytes(b"rubbish")
    assert verify(tmp_path).findings == ()


def test_lines_that_are_no_records_are_passed_over(tmp_path: Path) -> None:
    written(tmp_path, 2)
    with (tmp_path / "audit.log").open("ab") as file:
        file.write(b"rubbish\n\xff\n")
    assert len(list(records(tmp_path))) == len(last_records(tmp_path, 9)) == 2
    assert [finding.line for finding in verify(tmp_path).findings] == [3, 4]


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "audit.log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateError, match=r"audit\.log cannot be read"):
        verify(tmp_path)
