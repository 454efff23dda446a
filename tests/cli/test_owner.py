"""meshnode owner as a person and as a script meet it: two machines become one owner's, others are trusted or not."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from meshnode.cli.owner import owner
from meshnode.identity import load_or_create


class Machine:
    """A home folder, with the key of its node."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.node = load_or_create(home / "node.key").node_id.hex()

    def run(self, *arguments: str, stdin: str = "") -> Result:
        runner = CliRunner(env={"MESHNODE_HOME": str(self.home), "NO_COLOR": "1"})
        return runner.invoke(owner, arguments, input=stdin)

    def json(self, *arguments: str) -> dict[str, Any]:
        done = self.run(*arguments, "--json")
        assert done.exit_code == 0, done.stderr
        assert done.stdout.count("\n") == 1
        facts = json.loads(done.stdout)
        assert facts.pop("schema") == 1
        return dict(facts)


@pytest.fixture
def desk(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "desk")


@pytest.fixture
def laptop(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "laptop")


def test_two_machines_become_one_owners(desk: Machine, laptop: Machine) -> None:
    made = desk.run("init")
    key = made.stdout.strip()
    assert made.exit_code == 0 and key.startswith("owner-") and "back that file up" in made.stderr
    shown = laptop.run("show")
    assert shown.stdout.splitlines() == [f"node   {laptop.node}", "owner  nobody"]
    signed = desk.run("sign", laptop.node)
    assert signed.stdout.strip().startswith("mo1") and signed.stdout.count("\n") == 1
    taken = laptop.run("accept", signed.stdout)
    assert taken.exit_code == 0 and key in taken.stderr
    assert laptop.run("show").stdout.splitlines()[1] == f"owner  {key}"
    assert "counts for" in laptop.run("show").stderr
    assert desk.json("show")["owner"] == laptop.json("show")["owner"] == key.removeprefix("owner-")
    assert (desk.json("show")["owner_key_here"], laptop.json("show")["owner_key_here"]) == (key[6:], None)


def test_the_files_are_for_their_user_alone(desk: Machine) -> None:
    desk.run("init")
    desk.run("trust", "ab" * 32)
    for name in ("owner.key", "owner.cert", "trust.json"):
        assert stat.S_IMODE((desk.home / name).stat().st_mode) == 0o600


def test_a_certificate_can_come_through_a_pipe(desk: Machine, laptop: Machine) -> None:
    desk.run("init")
    assert laptop.run("accept", "-", stdin=desk.run("sign", laptop.node, "--ttl", "1d").stdout).exit_code == 0
    assert 0 <= laptop.json("show")["ends_at"] - desk.json("show")["ends_at"] + 364 * 86_400 < 100


def test_init_again_keeps_the_key_and_signs_anew(desk: Machine) -> None:
    first, second = desk.json("init"), desk.json("init")
    assert first["owner"] == second["owner"] == second["owner_key_here"]
    assert (first["made"], second["made"]) == (True, False)


def test_another_owner_must_be_meant(desk: Machine, laptop: Machine, tmp_path: Path) -> None:
    other = Machine(tmp_path / "other")
    for machine in (desk, other):
        machine.run("init")
    assert laptop.run("accept", desk.json("sign", laptop.node)["certificate"]).exit_code == 0
    theirs = other.json("sign", laptop.node)["certificate"]
    for arguments in (("accept", theirs), ("init",)):
        refused = laptop.run(*arguments)
        assert refused.exit_code == 1 and "--replace" in refused.stderr and "belongs to owner-" in refused.stderr
    assert laptop.json("show")["owner"] == desk.json("show")["owner"]
    assert laptop.run("accept", theirs, "--replace").exit_code == 0
    assert laptop.json("show")["owner"] == other.json("show")["owner"]


def test_what_is_no_certificate_for_this_node_is_refused_with_what_to_do(desk: Machine, laptop: Machine) -> None:
    desk.run("init")
    good = desk.json("sign", "ab" * 32)["certificate"]
    for text in ("", "mo1", good, good[:-3], "mn1" + good[3:], "x" * 5000):
        refused = laptop.run("accept", text)
        assert refused.exit_code == 2 and f"meshnode owner sign {laptop.node}" in refused.stderr.replace("\n", " ")
    assert laptop.json("show")["owner"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sign", "abcd"), "neither the id of a node"),
        (("sign", "zz" * 32), "neither the id of a node"),
        (("sign", "owner-" + "ab" * 32), "key of an owner"),
        (("sign", "ab" * 32, "--ttl", "366d"), "365 days"),
        (("sign", "ab" * 32, "--ttl", "soon"), "no length of time"),
        (("trust", ""), "neither the id of a node"),
        (("trust", "ab" * 32, "--radius", "public"), "local"),
        (("trust", "ab" * 32, "--name", "\x1b[2J"), "can be shown"),
        (("trust", "ab" * 32, "--name", "n" * 41), "40"),
        (("untrust", "nobody"), "neither the id of a node"),
    ],
)
def test_what_means_nothing_is_a_usage_error(desk: Machine, arguments: tuple[str, ...], words: str) -> None:
    desk.run("init")
    refused = desk.run(*arguments)
    assert refused.exit_code == 2 and words in refused.stderr.replace("\n", " ")
    assert desk.json("list") == {"entries": []}


def test_signing_needs_the_owner_key(desk: Machine) -> None:
    refused = desk.run("sign", "ab" * 32)
    assert refused.exit_code == 1 and "not on this machine" in refused.stderr and "owner init" in refused.stderr
    own = desk.json("init")["owner"]
    assert desk.run("sign", own).exit_code == 2


def test_a_home_where_no_node_has_run(tmp_path: Path) -> None:
    empty = Machine(tmp_path / "empty")
    (empty.home / "node.key").unlink()
    refused = empty.run("show")
    assert refused.exit_code == 1 and "start a node first" in refused.stderr
    assert empty.run("accept", "mo1").exit_code == 1
    assert empty.run("init").exit_code == 0 and (empty.home / "node.key").is_file()


def test_trust_and_untrust_by_key_name_and_first_digits(desk: Machine) -> None:
    ann, box = "owner-" + "a1" * 32, "b0" * 32
    assert desk.json("trust", ann, "--name", "Ann")["radius"] == "trusted"
    assert desk.json("trust", box.upper(), "--name", "box", "--radius", "local")["key"] == box
    assert desk.run("list").stdout.splitlines()[1:] == [
        f"owner  trusted  Ann   {ann}",
        f"node   local    box   {box}",
    ]
    assert desk.json("untrust", "Ann") == {
        "key": "a1" * 32, "kind": "owner", "name": "Ann", "radius": "none", "text": ann,
    }  # fmt: skip
    assert "within a second" in desk.run("untrust", box[:8]).stderr
    assert [entry["radius"] for entry in desk.json("list")["entries"]] == ["none", "none"]
    assert desk.json("trust", ann)["name"] == ""
    unknown = "c2" * 32
    assert desk.json("untrust", unknown)["radius"] == "none" and len(desk.json("list")["entries"]) == 3


def test_what_means_several_keys_changes_none(desk: Machine) -> None:
    desk.run("trust", "ab" * 32, "--name", "box")
    desk.run("trust", "ab" * 31 + "cd", "--name", "box")
    before = desk.json("list")
    for text in ("box", "abababab"):
        refused = desk.run("untrust", text)
        assert refused.exit_code == 2 and "2 keys" in refused.stderr
    assert desk.json("list") == before


def test_damage_is_told_in_words_and_as_json(desk: Machine) -> None:
    desk.run("trust", "ab" * 32)
    (desk.home / "trust.json").write_text("[")
    for arguments in (("list",), ("trust", "cd" * 32), ("untrust", "cd" * 32)):
        refused = desk.run(*arguments)
        assert refused.exit_code == 1 and "is damaged" in refused.stderr
        assert json.loads(desk.run(*arguments, "--json").stdout)["error"]["code"] == "state"
    assert "nobody is on the list" in Machine(desk.home / "new").run("list").stderr
