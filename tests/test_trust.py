"""Who counts as what while a node runs: certificates that end, are forged or replayed, files that change or break."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from meshnode.core.effects import Member
from meshnode.errors import StateError
from meshnode.identity import Identity as Key
from meshnode.identity import ephemeral
from meshnode.ownership import Entry, OwnerFiles, sign_for
from meshnode.trust import LOOK_S, REMEMBERED, Trust
from meshnode.wire.registry import Role
from meshnode.wire.statements import Identity

ME, LAPTOP, FRIEND = (bytes(ephemeral().node_id) for _ in range(3))
OWNER, OTHER = ephemeral(), ephemeral()
DAY_S = 86_400


@dataclass
class Clock:
    now_s: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


class Home:
    """A home folder whose node belongs to OWNER, and its Trust."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.files = OwnerFiles(folder)
        self.files.keep_certificate(sign_for(OWNER, ME, self.clock()))
        self.news: list[None] = []
        self.told: list[StateError | None] = []
        self.trust = Trust(folder, ME, clock=self.clock, changed=lambda: self.news.append(None), told=self.told.append)

    def say(self, key: bytes, radius: str, kind: str = "node") -> None:
        """What a command does, and the moment after which the node looks again."""
        self.files.put(Entry(key, kind, "", radius))  # type: ignore[arg-type]
        self.clock.now_s += LOOK_S

    def signed(self, node: bytes = LAPTOP, owner: Key = OWNER, ttl_s: int = DAY_S) -> bytes:
        return sign_for(owner, node, self.clock(), ttl_s)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_what_is_signed_by_ones_own_owner_is_local(home: Home) -> None:
    assert home.trust.owner == OWNER.node_id
    assert home.trust.of_node(LAPTOP, home.signed()) == "local"
    assert home.trust.of_node(LAPTOP) == "trusted" and home.trust.of_stranger(LAPTOP) == "public"


def test_members_are_judged_by_their_identity_statement(home: Home) -> None:
    def member(identity: Identity | None) -> Member:
        return Member(LAPTOP, "alive", 1, Role.MEMBER, identity, None, None, True, True, None, None, 0.0, 0.0)

    assert home.trust.of_member(member(Identity(b"c" * 100, owner=home.signed()))) == "local"
    assert home.trust.of_member(member(Identity(b"c" * 100))) == "trusted"
    assert home.trust.of_member(member(None)) == "trusted"


# --- what does not widen ------------------------------------------------------------------------------------------


def test_an_expired_certificate_counts_no_more_from_one_moment_to_the_next(home: Home) -> None:
    signed = home.signed(ttl_s=100)
    before = home.trust.epoch
    assert home.trust.of_node(LAPTOP, signed) == "local" and home.trust.epoch == before
    home.clock.now_s += 101
    assert home.trust.epoch > before, "what was said before is wrong now"
    assert home.trust.of_node(LAPTOP, signed) == "trusted"
    assert home.trust.epoch == home.trust.epoch


def test_nor_one_that_is_forged_or_of_another_node_or_no_certificate(home: Home) -> None:
    good = home.signed()
    for shown in (bytes(64) + good[64:], good[:-1], good + b"\0", b"x" * 100, home.signed(FRIEND)):
        for _ in range(2):  # remembered or not
            assert home.trust.of_node(LAPTOP, shown) == "trusted"
    assert home.trust.of_node(FRIEND, good) == "trusted"
    claims_to_be = sign_for(OTHER, LAPTOP, home.clock())
    assert home.trust.of_node(LAPTOP, claims_to_be[:64] + good[64:]) == "trusted"


def test_nor_one_of_an_owner_that_is_not_known(home: Home) -> None:
    assert home.trust.of_node(LAPTOP, home.signed(owner=OTHER)) == "trusted"


def test_a_certificate_that_is_shown_again_after_untrust_gives_nothing(home: Home) -> None:
    mine, theirs = home.signed(), home.signed(FRIEND, OTHER)
    home.say(OTHER.node_id, "local", "owner")
    assert (home.trust.of_node(LAPTOP, mine), home.trust.of_node(FRIEND, theirs)) == ("local", "local")
    home.say(LAPTOP, "none")
    home.say(OTHER.node_id, "none", "owner")
    for _ in range(2):
        assert (home.trust.of_node(LAPTOP, mine), home.trust.of_node(FRIEND, theirs)) == ("trusted", "trusted")
    newer = home.signed(ttl_s=2 * DAY_S)
    assert home.trust.of_node(LAPTOP, newer) == "trusted", "nor does one that is signed afterwards"
    home.say(OWNER.node_id, "none", "owner")
    assert home.trust.of_node(FRIEND, home.signed(FRIEND)) == "trusted", "nor one's own owner, once that is distrusted"


def test_an_own_certificate_that_has_ended_makes_nobody_local(home: Home) -> None:
    home.clock.now_s += 366 * DAY_S
    assert home.trust.owner is None and home.trust.certificate == b""
    assert home.trust.of_node(LAPTOP, home.signed()) == "trusted"
    assert home.trust.facts("local")["owner"] is None


def test_without_an_own_certificate_all_are_what_the_mesh_makes_them(tmp_path: Path) -> None:
    trust = Trust(tmp_path, ME, clock=(clock := Clock()))
    assert trust.of_node(LAPTOP, sign_for(OWNER, LAPTOP, clock())) == "trusted"
    assert (trust.owner, trust.certificate) == (None, b"")
    assert trust.facts("trusted") == {"radius": "trusted", "owner": None, "ends_at": None}
    assert list(tmp_path.iterdir()) == []


def test_a_crowd_of_certificates_costs_bounded_memory(home: Home) -> None:
    for number in range(REMEMBERED + 100):
        home.trust.of_node(LAPTOP, number.to_bytes(80, "big"))
    assert len(home.trust._genuine) <= REMEMBERED
    assert home.trust.of_node(LAPTOP, home.signed()) == "local"


# --- files that change while the node runs --------------------------------------------------------------------------


def test_what_a_command_says_counts_a_moment_later_and_is_told(home: Home) -> None:
    before = home.trust.epoch
    home.say(FRIEND, "trusted")
    assert home.trust.of_stranger(FRIEND) == "trusted"
    assert home.trust.epoch > before and home.news == [None]
    home.say(FRIEND, "local")
    assert home.trust.of_stranger(FRIEND) == home.trust.of_node(FRIEND) == "local"
    home.clock.now_s += 9
    assert home.trust.of_stranger(FRIEND) == "local" and len(home.news) == 2


def test_a_certificate_that_is_accepted_while_the_node_runs_is_shown(tmp_path: Path) -> None:
    clock = Clock()
    trust = Trust(tmp_path, ME, clock=clock)
    assert trust.certificate == b""
    signed = sign_for(OWNER, ME, clock())
    OwnerFiles(tmp_path).keep_certificate(signed)
    clock.now_s += LOOK_S
    assert trust.certificate == signed and trust.owner == OWNER.node_id
    assert trust.facts("public")["owner"] == OWNER.node_id.hex()[:10]


@pytest.mark.parametrize("file", ["trust.json", "owner.cert"])
def test_damage_at_the_start_is_an_error_and_later_a_problem_with_less_trust(home: Home, file: str) -> None:
    signed = home.signed()
    home.say(FRIEND, "local")
    assert (home.trust.of_stranger(FRIEND), home.trust.of_node(LAPTOP, signed)) == ("local", "local")
    folder = home.files.home
    good = (folder / file).read_bytes()
    (folder / file).write_bytes(good[:-20])
    home.clock.now_s += LOOK_S
    assert (home.trust.of_stranger(FRIEND), home.trust.of_node(LAPTOP, signed)) == ("public", "trusted")
    assert home.trust.owner is None and home.trust.certificate == b""
    assert len(home.told) == 1 and file in str(home.told[0])
    with pytest.raises(StateError, match="damaged"):
        Trust(folder, ME, clock=home.clock)
    (folder / file).write_bytes(good)
    home.clock.now_s += LOOK_S
    assert (home.trust.of_stranger(FRIEND), home.trust.of_node(LAPTOP, signed)) == ("local", "local")
    assert home.told[1:] == [None]


def test_a_list_that_is_taken_away_takes_its_trust_along(home: Home) -> None:
    home.say(FRIEND, "local")
    assert home.trust.of_stranger(FRIEND) == "local"
    home.files.list_file.unlink()
    home.clock.now_s += LOOK_S
    assert home.trust.of_stranger(FRIEND) == "public" and home.told == []


def test_a_clock_that_is_set_back_does_not_keep_the_node_from_looking(home: Home) -> None:
    home.clock.now_s -= 1000
    home.files.put(Entry(FRIEND, "node", "", "trusted"))
    assert home.trust.of_stranger(FRIEND) == "trusted"
