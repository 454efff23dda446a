"""peers, ping, leave and rotate-key as a person and as a script meet them."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

from meshnode.cli import mesh as commands
from meshnode.errors import NodeNotFound, NotInMesh, PeerUnreachable
from meshnode.identity import load_or_create
from tests.cli.conftest import Run, ScriptedNode

HOSTILE = "\x1b]0;owned\x07\x9b31m\u202ereversed\u2066\n\U000e0041\u200b"


def peer(**changes: Any) -> dict[str, Any]:
    """A peer as /api/status shows it."""
    made = {
        "id": "3f9a1c02be" + "0" * 54,
        "short": "3f9a1c02be",
        "name": "studio",
        "state": "alive",
        "reachable": True,
        "role": "member",
        "address": "192.0.2.1:9337",
        "path": "direct",
        "radius": "trusted",
        "linked": True,
        "rtt_ms": 1.234,
        "estimated_rtt_ms": None,
        "software": "meshnode 0.1.0",
        "models": [model("qwen")],
        "memory": {"total_bytes": 40_000_000_000, "free_bytes": 30_000_000_000},
        "devices": [device("RTX 4090", 24, 21), device("host", 64, 50)],
    }
    return made | changes


def device(name: str, total_gb: int, free_gb: int) -> dict[str, Any]:
    return {"name": name, "total_bytes": total_gb * 10**9, "free_bytes": free_gb * 10**9}


def model(name: str, state: str = "ready") -> dict[str, Any]:
    return {"id": name, "state": state}


def mesh_of(*peers: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The `mesh` member of /api/status."""
    facts = {"id": "ab" * 32, "name": "home", "role": "member", "may_invite": True, "state": "joined"} | {"nat": {}}
    return {**facts, "node": "1234567890", "peers": list(peers), **changes}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "PING_GAP_S", 0)


# --- peers ----------------------------------------------------------------------------------------------------


def test_peers_as_a_table_with_those_that_answer_first(scripted: ScriptedNode, run: Run) -> None:
    scripted.show_mesh(
        mesh_of(
            peer(
                name="zoe",
                state="dead",
                reachable=False,
                path=None,
                rtt_ms=None,
                estimated_rtt_ms=14.4,
                models=[],
                devices=[],
            ),
            peer(name="bob", reachable=False, rtt_ms=31.6, devices=[device("host", 16, 12)]),
            peer(name="", role="client", path="relayed", rtt_ms=None, address=None, models=[], devices=[]),
            peer(radius="local", models=[model("qwen"), model("demo", "loading")]),
        )
    )
    header, *rows = run("peers").stdout.splitlines()
    names = ["NAME", "ID", "ROLE", "STATE", "RADIUS", "PATH", "RTT", "FREE MEMORY", "ADDRESS", "MODELS"]
    starts = [header.index(name) for name in names]
    cells = [[row[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)] for row in rows]
    assert cells == [
        ["-", "3f9a1c02be", "client", "alive", "trusted", "relayed", "-", "-", "-", "-"],
        ["studio", "3f9a1c02be", "member", "alive", "local", "direct", "1.23 ms", "21 GB of 24 GB VRAM",
         "192.0.2.1:9337", "qwen, demo (loading)"],
        ["bob", "3f9a1c02be", "member", "not answering", "trusted", "direct", "32 ms", "12 GB of 16 GB",
         "192.0.2.1:9337", "qwen"],
        ["zoe", "3f9a1c02be", "member", "dead", "trusted", "-", "~14 ms", "-", "192.0.2.1:9337", "-"],
    ]  # fmt: skip


def test_what_peers_say_of_themselves_cannot_steer_the_terminal(scripted: ScriptedNode, run: Run) -> None:
    hostile = peer(name=HOSTILE, address=HOSTILE, role=HOSTILE, state=HOSTILE, models=[model(HOSTILE, HOSTILE)])
    endless = peer(name="x" * 5000, models=[model("y" * 5000)] * 3)
    scripted.show_mesh(mesh_of(hostile, endless, name=HOSTILE), mesh_of(name=HOSTILE), mesh_of(hostile))
    told = run("peers").stdout.splitlines()
    assert len(told) == 3 and all(line.isprintable() for line in told)
    assert max(map(len, told)) < 500
    assert all(line.isprintable() for line in run("peers").stderr.splitlines())
    shown = run("peers", "--json").stdout
    assert shown.rstrip("\n").isprintable() and json.loads(shown)["peers"][0]["name"] == HOSTILE


def test_peers_for_a_script(scripted: ScriptedNode, run: Run) -> None:
    scripted.show_mesh(mesh_of(peer(), invites=["secret"], addresses=[]), None)
    shown = json.loads(run("peers", "--json").stdout)
    assert shown["peers"] == [peer()]
    assert shown["mesh"].keys() == {"id", "name", "role", "may_invite", "state", "node", "nat"}
    assert json.loads(run("peers", "--json").stdout) == {"schema": 1, "mesh": None, "peers": [], "strangers": []}


def test_strangers_stand_below_in_the_same_table(scripted: ScriptedNode, run: Run) -> None:
    strangers = [peer(name="mallory", radius="public", path="relayed")]
    scripted.answer_with("/api/status", *[{"mesh": mesh_of(peer()), "swarm": {"peers": strangers}}] * 2)
    told = run("peers").stdout.splitlines()
    assert len(told) == 3 and "public" in told[1] + told[2] and "mallory" in told[1] + told[2]
    assert json.loads(run("peers", "--json").stdout)["strangers"] == strangers
    scripted.answer_with("/api/status", {"mesh": None, "swarm": {"state": "failed", "sentence": "no port"}})
    assert "in no mesh" in run("peers").stderr


def test_a_node_that_is_alone_is_told_so(scripted: ScriptedNode, run: Run) -> None:
    scripted.show_mesh(mesh_of(), mesh_of(may_invite=False), None)
    alone, not_inviting, nowhere = (run("peers") for _ in range(3))
    assert alone.exit_code == 0 and alone.stdout == "" and "meshnode invite" in alone.stderr
    assert 'no other node of "home"' in not_inviting.stderr and "invite" not in not_inviting.stderr
    assert nowhere.exit_code == 0 and "in no mesh" in nowhere.stderr


# --- ping -----------------------------------------------------------------------------------------------------


def pong(rtt_ms: float, name: str = "studio") -> dict[str, Any]:
    return {"node": "3f9a1c02be" + "0" * 54, "name": name, "address": "192.0.2.1:9337", "rtts_ms": [rtt_ms]}


def test_each_round_trip_is_a_line_and_the_last_sums_up(scripted: ScriptedNode, run: Run) -> None:
    scripted.answer_with("/api/ping", pong(3.0), pong(1.25), pong(2.0))
    result = run("ping", "studio", "-c", "3")
    assert result.exit_code == 0 and result.stdout.splitlines() == [
        "studio 3f9a1c02be at 192.0.2.1:9337: 1  3.00 ms",
        "studio 3f9a1c02be at 192.0.2.1:9337: 2  1.25 ms",
        "studio 3f9a1c02be at 192.0.2.1:9337: 3  2.00 ms",
        "min 1.25  median 2.00  max 3.00 ms, 0 lost",
    ]
    assert scripted.calls == [("/api/ping", {"node": "studio", "count": 1})] * 3


def test_lost_round_trips_are_counted(scripted: ScriptedNode, run: Run) -> None:
    answers = [pong(3.0), PeerUnreachable("studio"), pong(2.0)]
    scripted.answer_with("/api/ping", *answers)
    told = run("ping", "studio", "-c", "3").stdout.splitlines()
    assert told[1].endswith("2  no answer") and told[3] == "min 2.00  median 2.50  max 3.00 ms, 1 lost"
    scripted.answer_with("/api/ping", *answers)
    shown = json.loads(run("ping", "studio", "-c", "3", "--json").stdout)
    assert shown["rtts_ms"] == [3.0, 2.0] and shown["lost"] == 1
    assert (shown["min_ms"], shown["median_ms"], shown["max_ms"], shown["name"]) == (2.0, 2.5, 3.0, "studio")


@pytest.mark.parametrize("error", [PeerUnreachable("studio"), NodeNotFound("none"), NotInMesh()])
def test_a_node_that_was_never_heard_ends_it_at_once(
    error: PeerUnreachable | NodeNotFound | NotInMesh, scripted: ScriptedNode, run: Run
) -> None:
    scripted.answer_with("/api/ping", error)
    result = run("ping", "studio")
    assert result.exit_code == 5 and result.stdout == "" and f"({error.code})" in result.stderr
    assert len(scripted.calls) == 1
    assert json.loads(run("ping", "studio", "--json").stdout)["error"]["code"] == error.code


def test_a_node_that_leaves_meanwhile_ends_it_after_the_sum(scripted: ScriptedNode, run: Run) -> None:
    scripted.answer_with("/api/ping", pong(3.0), NodeNotFound("it has left"))
    result = run("ping", "studio")
    assert result.exit_code == 5 and "it has left" in result.stderr
    assert result.stdout.splitlines()[-1] == "min 3.00  median 3.00  max 3.00 ms, 0 lost"


def test_ctrl_c_sums_up_what_there_is(scripted: ScriptedNode, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands.time, "sleep", interrupt)
    scripted.answer_with("/api/ping", pong(3.0))
    result = run("ping", "studio")
    assert result.exit_code == 130 and result.stdout.splitlines()[-1].startswith("min 3.00")


def test_a_hostile_name_is_one_plain_line(scripted: ScriptedNode, run: Run) -> None:
    scripted.answer_with("/api/ping", pong(3.0, HOSTILE) | {"address": None})
    told = run("ping", HOSTILE, "-c", "1")
    assert all(line.isprintable() for line in told.output.splitlines())
    assert "an unknown address" in told.stdout and len(told.stdout.splitlines()) == 2


def test_ping_wants_at_least_one_round_trip(run: Run) -> None:
    assert run("ping", "studio", "-c", "0").exit_code == 2


# --- leave ----------------------------------------------------------------------------------------------------


def test_leave_says_what_was_left_and_what_that_means(scripted: ScriptedNode, run: Run) -> None:
    client_before = mesh_of(may_invite=False, role="client")
    scripted.show_mesh(mesh_of(), mesh_of(name=f"new{HOSTILE}"), client_before, None)
    scripted.answer_with("/api/leave", {"left": HOSTILE + "home"})
    founder, client = run("leave"), run("leave")
    assert founder.exit_code == 0 and founder.stdout == ""
    assert all(line.isprintable() for line in founder.stderr.splitlines()) and "home" in founder.stderr
    assert "invites that were made here add nobody any more" in founder.stderr
    assert 'on its own, in "new' in founder.stderr and "join TOKEN" in founder.stderr
    assert "invites" not in client.stderr and "in no mesh" in client.stderr and "join TOKEN" in client.stderr
    assert scripted.calls == [("/api/leave", {})] * 2


def test_leave_for_a_script_and_in_no_mesh(scripted: ScriptedNode, run: Run) -> None:
    scripted.show_mesh(mesh_of(), None)
    scripted.answer_with("/api/leave", {"left": "home"}, NotInMesh())
    assert json.loads(run("leave", "--json").stdout) == {"schema": 1, "left": "home"}
    refused = run("leave")
    assert refused.exit_code == 5 and "(not-in-mesh)" in refused.stderr


@pytest.mark.parametrize("command", [["peers"], ["ping", "x"], ["leave"]])
def test_without_a_node_it_is_exit_code_3(command: list[str], run: Run) -> None:
    assert run(*command).exit_code == 3
    assert json.loads(run(*command, "--json").stdout)["error"]["code"] == "no-node"


# --- rotate-key -----------------------------------------------------------------------------------------------


def test_a_new_key_is_told_by_both_ids(run: Run, tmp_path: Path) -> None:
    first = load_or_create(tmp_path / "node.key").node_id.hex()
    result = run("rotate-key")
    second = load_or_create(tmp_path / "node.key").node_id.hex()
    assert result.exit_code == 0 and result.stdout == f"{first[:10]} -> {second[:10]}\n" and first != second
    shown = json.loads(run("rotate-key", "--json").stdout)
    assert shown == {"schema": 1, "old": second, "new": load_or_create(tmp_path / "node.key").node_id.hex()}


def test_a_running_node_keeps_its_key(run: Run, tmp_path: Path) -> None:
    before = load_or_create(tmp_path / "node.key").node_id
    with (tmp_path / "node.lock").open("a+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        result = run("rotate-key")
    assert result.exit_code == 1 and "stop it first: meshnode stop" in result.stderr and result.stdout == ""
    assert load_or_create(tmp_path / "node.key").node_id == before


def test_a_home_without_a_key_has_none_to_change(run: Run) -> None:
    result = run("rotate-key", "--json")
    assert result.exit_code == 1 and "no key" in json.loads(result.stdout)["error"]["message"]
