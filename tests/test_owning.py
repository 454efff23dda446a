"""What the commands of owners do, over a clock of the test; tests/cli/test_owner.py has them as a person meets them."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshnode.errors import StateError
from meshnode.identity import load_or_create
from meshnode.owning import DEFAULT_TTL_S, Owning, key_text, parse_key
from meshnode.rotation import rotate
from meshnode.trust import Trust
from meshnode.wire.owners import BACKDATED_S
from meshnode.wire.registry import LIMIT_CLOCK_SKEW_S

KEY = bytes(range(32))


class Clock:
    now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize("kind", ["owner", "node"])
def test_a_key_is_typed_as_it_is_shown(kind: str) -> None:
    text = key_text(kind, KEY)  # type: ignore[arg-type]
    assert parse_key(f" {text.upper()}\n") == (kind, KEY)
    for wrong in (text[:-1], f"{text}00", text.replace("0", "g"), f"x{text}", "", "owner-", " ".join(text)):
        with pytest.raises(ValueError, match="neither the id"):
            parse_key(wrong)


def test_a_machine_counts_from_when_it_accepts_until_the_certificate_ends(tmp_path: Path, clock: Clock) -> None:
    desk, laptop = Owning(tmp_path / "desk", clock), Owning(tmp_path / "laptop", clock)
    node = load_or_create(tmp_path / "laptop" / "node.key").node_id
    made = desk.init()
    assert made["counts"] and made["ends_at"] == clock.now_s + DEFAULT_TTL_S
    certificate = desk.sign(node.hex(), 3600)["certificate"]
    clock.now_s += 3600
    assert laptop.accept(certificate)["counts"]
    clock.now_s += 1
    assert not laptop.show()["counts"] and laptop.show()["owner"] == made["owner"]
    with pytest.raises(ValueError, match="not the time"):
        laptop.accept(certificate)
    clock.now_s -= BACKDATED_S + 3600 + LIMIT_CLOCK_SKEW_S + 2
    with pytest.raises(ValueError, match="not the time"):
        laptop.accept(certificate)


def test_a_node_with_a_new_key_is_signed_anew(tmp_path: Path, clock: Clock) -> None:
    desk = Owning(tmp_path, clock)
    before = desk.init()
    rotate(tmp_path)
    assert desk.show()["owner"] is None
    assert Trust(tmp_path, bytes(load_or_create(tmp_path / "node.key").node_id), clock=clock).owner is None
    after = desk.init()
    assert after["owner"] == before["owner"] and after["node"] != before["node"]


def test_a_node_of_another_owner_gets_no_owner_key_by_mistake(tmp_path: Path, clock: Clock) -> None:
    desk, laptop = Owning(tmp_path / "desk", clock), Owning(tmp_path / "laptop", clock)
    node = load_or_create(tmp_path / "laptop" / "node.key").node_id
    desk.init()
    laptop.accept(desk.sign(node.hex())["certificate"])
    with pytest.raises(StateError, match="belongs to owner-"):
        laptop.init()
    assert not (tmp_path / "laptop" / "owner.key").exists()
    assert laptop.init(replace=True)["made"]


def test_a_time_that_is_none_is_refused(tmp_path: Path, clock: Clock) -> None:
    desk = Owning(tmp_path, clock)
    desk.init()
    for ttl_s in (0, -1, DEFAULT_TTL_S + 1):
        with pytest.raises(ValueError, match="days at most"):
            desk.sign(KEY.hex(), ttl_s)


def test_untrust_works_on_keys_that_were_never_trusted(tmp_path: Path, clock: Clock) -> None:
    owning = Owning(tmp_path, clock)
    owning.untrust(key_text("owner", KEY))
    [entry] = owning.entries()
    assert (entry["kind"], entry["radius"], entry["key"]) == ("owner", "none", KEY.hex())
