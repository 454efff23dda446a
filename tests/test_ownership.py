"""The files of owners and trust: what is written comes back, what is damaged is told, and never counts in part."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from meshnode import identity
from meshnode.core.radius import TrustList
from meshnode.errors import HomeNotWritable, StateError
from meshnode.ownership import MOST_BYTES, MOST_ENTRIES, Entry, OwnerFiles, read_certificate, sign_for, trust_list
from meshnode.wire import owners
from meshnode.wire.registry import LIMIT_OWNER_TTL_S
from meshnode.wire.values import WireError
from tests.crashes import at_every_step

NOW_S = 1_800_000_000.0
NODE = bytes(identity.ephemeral().node_id)
OWNER = identity.ephemeral()
ANN = Entry(b"\xa1" * 32, "owner", "Ann", "trusted")
BOX = Entry(b"\xb0" * 32, "node", "", "local")


@pytest.fixture
def files(tmp_path: Path) -> OwnerFiles:
    return OwnerFiles(tmp_path)


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


# --- the owner key ----------------------------------------------------------------------------------------------


def test_an_owner_key_is_made_once_and_for_its_user_alone(files: OwnerFiles) -> None:
    assert files.load_owner() is None
    made = files.make_owner()
    assert mode(files.key_file) == 0o600
    assert files.make_owner().node_id == made.node_id
    again = files.load_owner()
    assert again is not None and again.node_id == made.node_id


@pytest.mark.parametrize("text", [b"", b"nonsense", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_damaged_owner_key_is_told_and_not_replaced(files: OwnerFiles, text: bytes) -> None:
    files.key_file.write_bytes(text)
    files.key_file.chmod(0o600)
    for use in (files.load_owner, files.make_owner):
        with pytest.raises(StateError, match="not the key of an owner") as caught:
            use()
        assert "sign your machines anew" in caught.value.fix
    assert files.key_file.read_bytes() == text


def test_an_owner_key_that_cannot_be_read_is_told_as_that(files: OwnerFiles) -> None:
    files.key_file.mkdir()
    with pytest.raises(StateError, match="cannot be read"):
        files.load_owner()


def test_an_owner_key_that_others_can_read_is_refused(files: OwnerFiles) -> None:
    files.make_owner()
    files.key_file.chmod(0o640)
    with pytest.raises(StateError, match="others can read") as caught:
        files.load_owner()
    assert "chmod 600" in caught.value.fix


# --- certificates -----------------------------------------------------------------------------------------------


def test_a_certificate_is_for_one_node_and_for_a_year_at_most(files: OwnerFiles) -> None:
    signed = sign_for(OWNER, NODE, NOW_S)
    found = read_certificate(signed, NODE)
    assert (found.owner, found.node) == (OWNER.node_id, NODE)
    assert found.not_after == NOW_S + LIMIT_OWNER_TTL_S and found.not_before < NOW_S
    with pytest.raises(WireError):
        read_certificate(signed, b"x" * 32)
    for wrong in (0, -1, LIMIT_OWNER_TTL_S + 1):
        with pytest.raises(ValueError, match="seconds"):
            sign_for(OWNER, NODE, NOW_S, wrong)


def test_the_certificate_of_this_node_comes_back(files: OwnerFiles) -> None:
    assert files.load_certificate(NODE) is None
    signed = sign_for(OWNER, NODE, NOW_S, 1)
    files.keep_certificate(signed)
    assert mode(files.certificate_file) == 0o600
    assert files.load_certificate(NODE) == (signed, read_certificate(signed, NODE))


def test_that_of_a_key_that_was_given_up_gives_nothing_and_stops_nothing(files: OwnerFiles) -> None:
    files.keep_certificate(sign_for(OWNER, b"o" * 32, NOW_S))
    assert files.load_certificate(NODE) is None


@pytest.mark.parametrize("of_node", [NODE, b"o" * 32], ids=["own", "other"])
def test_a_forged_or_damaged_certificate_is_told(files: OwnerFiles, of_node: bytes) -> None:
    good = sign_for(OWNER, of_node, NOW_S)
    for text in (owners.to_text(bytes(64) + good[64:]), owners.to_text(good)[:-1], "mo1", "", "\xff" * 300):
        files.certificate_file.write_text(text, "utf-8")
        files.certificate_file.chmod(0o600)
        with pytest.raises(StateError, match="is damaged") as caught:
            files.load_certificate(NODE)
        assert "meshnode owner accept" in caught.value.fix


# --- the list ---------------------------------------------------------------------------------------------------


def test_what_is_said_of_a_key_counts_until_something_else_is(files: OwnerFiles) -> None:
    files.put(ANN)
    files.put(BOX)
    assert files.load_list() == [ANN, BOX] and mode(files.list_file) == 0o600
    no_more = Entry(ANN.key, "owner", "Ann", "none")
    files.put(no_more)
    assert files.load_list() == [no_more, BOX]
    same_key = Entry(ANN.key, "node", "Ann's box", "trusted")
    files.put(same_key)
    assert files.load_list() == [no_more, BOX, same_key]
    assert trust_list(files.load_list()) == TrustList(
        {BOX.key: "local", ANN.key: "trusted"},
        {ANN.key: "none"},
    )


def test_the_file_is_what_the_contract_says(files: OwnerFiles) -> None:
    files.put(ANN)
    assert json.loads(files.list_file.read_text()) == [
        {"key": "a1" * 32, "kind": "owner", "name": "Ann", "radius": "trusted"}
    ]


def plain(**changes: Any) -> dict[str, Any]:
    return {"key": "a1" * 32, "kind": "node", "name": "", "radius": "local"} | changes


DAMAGED = [
    "",
    "{}",
    "null",
    "[[]]",
    '[{"key":"' + "a1" * 32 + '"}]',
    "[" * 5000,
    json.dumps([plain(radius="public")]),
    json.dumps([plain(radius=None)]),
    json.dumps([plain(kind="mesh")]),
    json.dumps([plain(key="a1" * 31)]),
    json.dumps([plain(key="A1" * 32)]),
    json.dumps([plain(key=" 1" * 32)]),
    json.dumps([plain(key="zz" * 32)]),
    json.dumps([plain(key=7)]),
    json.dumps([plain(name="x" * 41)]),
    json.dumps([plain(name="\x1b[2J")]),
    json.dumps([plain(name=7)]),
    json.dumps([plain(more=1)]),
    json.dumps([plain(), plain(radius="none")]),
    json.dumps([plain()])[:-2] + ',"radius":"none"}]',
    json.dumps([plain(key=f"{number:064x}") for number in range(MOST_ENTRIES + 1)]),
    json.dumps([plain()])[:-9],
]


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_list_is_told_and_neither_read_in_part_nor_written_over(files: OwnerFiles, text: str) -> None:
    files.list_file.write_text(text)
    files.list_file.chmod(0o600)
    for use in (files.load_list, lambda: files.put(ANN)):
        with pytest.raises(StateError, match=r"trust\.json is damaged \(") as caught:
            use()
        assert caught.value.fix and len(caught.value.message) < 500
    assert files.list_file.read_text() == text


def test_a_list_that_others_can_change_or_that_is_huge_is_refused(files: OwnerFiles) -> None:
    files.put(ANN)
    files.list_file.chmod(0o606)
    with pytest.raises(StateError, match="others can read or change"):
        files.load_list()
    files.list_file.write_bytes(b" " * (MOST_BYTES + 1))
    files.list_file.chmod(0o600)
    with pytest.raises(StateError, match="more than"):
        files.load_list()
    files.list_file.unlink()
    files.list_file.mkdir(mode=0o700)
    with pytest.raises(StateError, match="cannot be read"):
        files.load_list()


def test_a_full_list_still_takes_trust_away(files: OwnerFiles) -> None:
    full = [plain(key=f"{number:064x}") for number in range(MOST_ENTRIES)]
    files.list_file.write_text(json.dumps(full))
    files.list_file.chmod(0o600)
    with pytest.raises(StateError, match="as many as it may"):
        files.put(ANN)
    files.put(Entry((5).to_bytes(32, "big"), "node", "", "none"))
    assert [entry.radius for entry in files.load_list()][4:7] == ["local", "none", "local"]


def test_what_was_said_survives_a_crash_at_any_step(tmp_path: Path) -> None:
    homes = count()

    def prepare() -> OwnerFiles:
        made = OwnerFiles(tmp_path / str(next(homes)))
        made.put(ANN)
        return made

    def check(made: OwnerFiles) -> None:
        assert made.load_list() in ([ANN], [ANN, BOX])

    assert at_every_step(prepare, lambda made: made.put(BOX), check) == 1


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    there = OwnerFiles(tmp_path / "file" / "home")
    works: list[Callable[[], object]] = [there.make_owner, lambda: there.put(ANN)]
    for work in works:
        with pytest.raises(HomeNotWritable):
            work()
