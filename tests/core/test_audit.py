import json
import random

import pytest

from meshnode.core.audit import (
    FIELDS,
    GENESIS,
    MOST_FINDINGS,
    MOST_TEXT_CHARACTERS,
    Finding,
    Head,
    Verifier,
    checked,
    digest_of,
    extended,
    read_line,
)

LENGTH = 12
START = Head()


def log(count: int = LENGTH, head: Head = START) -> tuple[list[bytes], Head]:
    lines = []
    for number in range(count):
        line, head = extended(head, "served", 1000.0 + number, {"request": f"req_{number}", "tokens_out": number})
        lines.append(line[:-1])
    return lines, head


def findings(lines: list[bytes], known: Head | None = None, head: Head = START) -> list[Finding]:
    verifier = Verifier(head, known=known)
    for number, line in enumerate(lines, 1):
        verifier.take("audit.log", number, line)
    return verifier.finish()


def forged(line: bytes, **changes: object) -> bytes:
    return json.dumps(json.loads(line) | changes, separators=(",", ":")).encode()


LINES, HEAD = log()


def test_a_record_is_one_line_that_names_the_one_before() -> None:
    first, second = (json.loads(line) for line in LINES[:2])
    assert first == {
        "n": 0,
        "prev": GENESIS,
        "at": 1000.0,
        "kind": "served",
        "request": "req_0",
        "tokens_out": 0,
    }
    assert second["prev"] == digest_of(LINES[0])
    assert Head(LENGTH, digest_of(LINES[-1])) == HEAD


def test_a_whole_log_has_no_findings() -> None:
    assert findings(LINES) == findings(LINES, HEAD) == findings([]) == []
    more, head = log(3, HEAD)
    assert findings(more, head, HEAD) == []
    assert findings(LINES + more, HEAD) == []  # the head is written after the records


@pytest.mark.parametrize("place", range(LENGTH))
@pytest.mark.parametrize(
    "changes", [{"tokens_out": 99}, {"n": 77}, {"prev": "ab" * 32}, {"n": 77, "prev": "ab" * 32}, {"x": 1}]
)
def test_any_line_that_is_changed_is_named(place: int, changes: dict[str, object]) -> None:
    lines = list(LINES)
    lines[place] = forged(lines[place], **changes)
    found = findings(lines, HEAD)
    assert place + 1 in [finding.line for finding in found], found
    assert {finding.line for finding in found} <= {place, place + 1}


@pytest.mark.parametrize("place", range(LENGTH))
@pytest.mark.parametrize("garbage", [b"", b"{}", b"null", b"\xff\xfe", b"[" * 5000, b'{"n":1}', b"x" * 20_000])
def test_a_line_that_is_no_record_is_named_and_no_other(place: int, garbage: bytes) -> None:
    lines = list(LINES)
    lines[place] = garbage
    [found] = findings(lines, HEAD)
    assert found.line == place + 1 and "no record" in found.text


@pytest.mark.parametrize("place", range(LENGTH))
def test_any_line_that_is_removed_is_named(place: int) -> None:
    [found] = findings([*LINES[:place], *LINES[place + 1 :]], HEAD)
    if place == LENGTH - 1:
        assert found.line == place and f"up to number {place}" in found.text
    else:
        assert found.line == place + 1 and f"record {place} is missing" in found.text


def test_the_end_that_is_cut_off_is_noticed_by_the_head() -> None:
    [found] = findings(LINES[:5], HEAD)
    assert (found.line, "the end is missing" in found.text) == (5, True)
    [found] = findings([], HEAD)
    assert found.line == 0 and "number 11" in found.text
    assert findings(LINES[:5]) == []  # and by nothing else
    [found] = findings(LINES[8:], HEAD)
    assert found.line == 1 and "records 0 to 7 are missing" in found.text


@pytest.mark.parametrize("place", range(LENGTH))
def test_any_line_that_is_inserted_is_named(place: int) -> None:
    inserted = forged(LINES[place], request="req_never")  # number and hash of the line before fit
    found = findings([*LINES[:place], inserted, *LINES[place:]], HEAD)
    assert place + 1 in [finding.line for finding in found], found
    found = findings([*LINES[: place + 1], LINES[place], *LINES[place + 1 :]], HEAD)
    assert place + 2 in [finding.line for finding in found], found


@pytest.mark.parametrize("seed", range(20))
def test_lines_in_another_order_are_named(seed: int) -> None:
    lines = list(LINES)
    while lines == LINES:
        random.Random(seed).shuffle(lines)
        seed += 100
    first = next(place for place, line in enumerate(lines) if line != LINES[place])
    found = findings(lines, HEAD)
    assert found[0].line == first + 1


def test_a_log_that_was_written_anew_is_found_by_its_head() -> None:
    rewritten, _ = log(LENGTH - 1, extended(Head(), "served", 1.0, {})[1])
    lines = [extended(Head(), "served", 1.0, {})[0][:-1], *rewritten]
    assert findings(lines) == []
    [found] = findings(lines, HEAD)
    assert found.line == LENGTH and "head of the log" in found.text


def test_a_log_of_nothing_but_rubbish_gives_so_many_findings_and_no_more() -> None:
    assert len(findings([b"rubbish"] * 1000)) == MOST_FINDINGS


@pytest.mark.parametrize("seed", range(10))
def test_whatever_stands_in_a_file_reading_it_raises_nothing(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(100):
        lines = list(LINES)
        for _ in range(chance.randrange(1, 4)):
            place = chance.randrange(len(lines))
            line = bytearray(lines[place])
            line[chance.randrange(len(line))] = chance.randrange(256)
            lines[place] = bytes(line)
        if lines != LINES:
            assert findings(lines, HEAD)


def test_only_listed_facts_are_kept_so_that_no_text_of_a_prompt_can_be() -> None:
    assert not {"prompt", "answer", "messages", "content", "text", "address"} & FIELDS
    with pytest.raises(ValueError, match="'prompt' is not kept"):
        checked("served", {"prompt": "hello"})
    with pytest.raises(ValueError, match="list"):
        checked("served", {"model": ["a"]})
    with pytest.raises(ValueError, match="no kind"):
        checked("Served!", {})
    kept = checked("served", {"model": "m" * 999, "duration_s": 1.23456789, "verdict": None, "places": float("nan")})
    assert kept == {"model": "m" * MOST_TEXT_CHARACTERS, "duration_s": 1.2346, "verdict": None, "places": None}


def test_text_of_any_kind_stays_on_its_line() -> None:
    line, _ = extended(Head(), "served", 1.0, checked("served", {"request": 'a\n"b\u2028\ud800'}))
    assert line.count(b"\n") == 1 and line.isascii()
    assert read_line(line[:-1])["request"] == 'a\n"b\u2028\ud800'


def test_a_head_is_read_as_it_was_written_and_nothing_else() -> None:
    assert Head.decode(HEAD.encode()) == HEAD
    for raw in (b"", b"[]", b'{"count":-1,"digest":"x"}', b'{"count":true}', b'{"count":1,"digest":"zz"}'):
        with pytest.raises(ValueError):
            Head.decode(raw)


@pytest.mark.parametrize(
    "changes", [{"at": float("inf")}, {"at": "1"}, {"at": -1}, {"kind": 1}, {"n": True}, {"n": 1 << 60}, {"prev": "x"}]
)
def test_records_have_the_form_that_readers_count_on(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        read_line(forged(LINES[0], **changes))
