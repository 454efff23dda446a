"""Commands that look at the mesh of this node or change its place there: peers, ping, leave, rotate-key."""

from __future__ import annotations

import statistics
import time
from typing import Any

import click

from meshnode.cli.client import ReportedError, find_node
from meshnode.cli.render import command_errors, emit, human_bytes, printable, say, table, write_line
from meshnode.config import find_places
from meshnode.errors import AlreadyRunning, PeerUnreachable

PING_GAP_S = 0.2
PING_LIMIT_S = 60.0
LEAVE_LIMIT_S = 60.0
STATES = ("alive", "unreachable", "dead", "left")
HOST_DEVICE = "host"
"""The name under which a machine states the memory of its processor, beside its GPUs."""


# --- peers ----------------------------------------------------------------------------------------------------


@click.command()
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@command_errors
def peers(as_json: bool) -> None:
    """The other nodes of your mesh and of the public one: how far away, over which path, with which models."""
    facts = find_node().call("GET", "/api/status")
    mesh, swarm = facts["mesh"], facts["swarm"]
    strangers = swarm["peers"] if swarm and "peers" in swarm else []
    if as_json:
        shown = ("id", "name", "role", "may_invite", "state", "node", "nat")
        about = {name: mesh[name] for name in shown} if mesh else None
        return emit({"mesh": about, "peers": mesh["peers"] if mesh else [], "strangers": strangers})
    if strangers:
        return show_peers([*(mesh["peers"] if mesh else []), *strangers])
    if mesh is None:
        return say("this node is in no mesh; meshnode join TOKEN changes that, unless it was started with --solo")
    if not mesh["peers"]:
        hint = "; meshnode invite prints what another machine needs" if mesh["may_invite"] else ""
        return say(f'no other node of "{printable(mesh["name"])}" has been heard of{hint}')
    show_peers(mesh["peers"])


def show_peers(peers: list[dict[str, Any]]) -> None:
    """The table of `peers`: those that can be reached first. Every text in it was written by another machine."""
    rows = [
        [
            printable(peer["name"], 40) or "-",
            peer["short"],
            peer["role"],
            "not answering" if peer["state"] == "alive" and not peer["reachable"] else peer["state"],
            peer["radius"],
            peer["path"] or "-",
            _round_trip(peer),
            _free_memory(peer),
            peer["address"] or "-",
            ", ".join(_model(model) for model in peer["models"]) or "-",
        ]
        for peer in sorted(peers, key=_rank)
    ]
    table(["NAME", "ID", "ROLE", "STATE", "RADIUS", "PATH", "RTT", "FREE MEMORY", "ADDRESS", "MODELS"], rows)


def _rank(peer: dict[str, Any]) -> tuple[int, bool, str, str]:
    state = STATES.index(peer["state"]) if peer["state"] in STATES else len(STATES)
    return state, not peer["reachable"], peer["name"].casefold(), peer["id"]


def _round_trip(peer: dict[str, Any]) -> str:
    if peer["rtt_ms"] is not None:
        return _milliseconds(peer["rtt_ms"])
    return "-" if peer["estimated_rtt_ms"] is None else f"~{_milliseconds(peer['estimated_rtt_ms'])}"


def _milliseconds(value: float) -> str:
    return f"{value:.2f} ms" if value < 10 else f"{value:.0f} ms"


def _free_memory(peer: dict[str, Any]) -> str:
    """That of the GPUs where there are any, as layers go there first."""
    gpus = [device for device in peer["devices"] if device["name"] != HOST_DEVICE]
    counted = gpus or peer["devices"]
    total = sum(device["total_bytes"] for device in counted)
    if not total:
        return "-"
    free = sum(device["free_bytes"] for device in counted)
    return f"{human_bytes(free)} of {human_bytes(total)}{' VRAM' if gpus else ''}"


def _model(model: dict[str, Any]) -> str:
    name = printable(model["id"], 64)
    return name if model["state"] == "ready" else f"{name} ({model['state']})"


# --- ping -----------------------------------------------------------------------------------------------------


@click.command()
@click.argument("node")
@click.option("-c", "--count", type=click.IntRange(1), default=4, show_default=True, help="how many round trips")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@command_errors
def ping(node: str, count: int, as_json: bool) -> None:
    """Measure round trips to NODE: its name, or the beginning of its id."""
    here = find_node()
    if not as_json:
        say(f"asking {printable(node)} ...")
    answer: dict[str, Any] = {}
    rtts_ms: list[float] = []
    lost = 0
    try:
        for number in range(1, count + 1):
            try:
                answer = here.call("POST", "/api/ping", {"node": node, "count": 1}, timeout_s=PING_LIMIT_S)
            except ReportedError as error:
                if not rtts_ms or error.code != PeerUnreachable.code:
                    raise
                lost += 1
                text = "no answer"
            else:
                rtts_ms += answer["rtts_ms"]
                text = f"{answer['rtts_ms'][-1]:.2f} ms"
            if not as_json:
                write_line(f"{_who(answer)}: {number}  {text}")
            if number < count:
                time.sleep(PING_GAP_S)
    finally:
        if rtts_ms and not as_json:
            lowest, median, highest = _spread(rtts_ms)
            write_line(f"min {lowest:.2f}  median {median:.2f}  max {highest:.2f} ms, {lost} lost")
    if as_json:
        lowest, median, highest = _spread(rtts_ms)
        spread = {"min_ms": lowest, "median_ms": median, "max_ms": highest}
        emit({**answer, "rtts_ms": rtts_ms, "lost": lost, **spread})


def _who(answer: dict[str, Any]) -> str:
    name = printable(answer["name"], 40)
    return f"{name or '-'} {answer['node'][:10]} at {answer['address'] or 'an unknown address'}"


def _spread(values: list[float]) -> tuple[float, float, float]:
    return min(values), round(statistics.median(values), 3), max(values)


# --- leave and rotate-key -------------------------------------------------------------------------------------


@click.command()
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@command_errors
def leave(as_json: bool) -> None:
    """Leave the mesh for good: this node needs a new invite to come back. It goes on in a mesh of its own."""
    node = find_node()
    before = node.call("GET", "/api/status")["mesh"]
    left = node.call("POST", "/api/leave", {}, timeout_s=LEAVE_LIMIT_S)
    if as_json:
        return emit(left)
    say(f'left "{printable(left["left"])}"')
    if before and before["may_invite"]:
        say("  the invites that were made here add nobody any more")
    after = node.call("GET", "/api/status")["mesh"]
    where = f'on its own, in "{printable(after["name"])}"' if after else "in no mesh"
    say(f"  this node is {where} now; another is joined with: meshnode join TOKEN")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@command_errors
def rotate_key(as_json: bool) -> None:
    """Give this node a new key and id, while it is stopped. Its place in the mesh is kept; the old key is refused."""
    from meshnode.home import home_lock
    from meshnode.rotation import rotate

    places = find_places()
    try:
        with home_lock(places):
            old, new = rotate(places.home)
    except AlreadyRunning as error:
        raise AlreadyRunning(error.detail, fix="stop it first: meshnode stop; start it again afterwards") from None
    if as_json:
        return emit({"old": old.hex(), "new": new.hex()})
    write_line(f"{old.hex()[:10]} -> {new.hex()[:10]}")
    say("peers learn of it when the node starts; open invites of this node have ended with its old key")
