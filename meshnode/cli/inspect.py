"""Commands that look at the running node: status, ps, logs. All facts come from /api/status."""

from __future__ import annotations

import os
import time
from collections import deque
from pathlib import Path
from typing import Any

import click

from meshnode.cli.client import find_node
from meshnode.cli.render import command_errors, emit, human_bytes, printable, say, table, write_line
from meshnode.config import find_places
from meshnode.errors import StateError

FOLLOW_S = 0.25


@click.command()
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@command_errors
def status(as_json: bool) -> None:
    """What this node is doing: where it answers, what it serves, what is wrong."""
    facts = find_node().call("GET", "/api/status")
    if as_json:
        emit(facts)
    else:
        show_status(facts)


def show_status(facts: dict[str, Any]) -> None:
    """/api/status for people."""
    node, requests = facts["node"], facts["requests"]
    ready = "ready" if facts["ready"] else facts["state"]
    write_line(f'{ready}   node {node["short"]} "{node["name"]}"   meshnode {facts["version"]}   pid {facts["pid"]}')
    write_line(f"API      {facts['api']['url']}{'   (key required)' if facts['api']['key_required'] else ''}")
    write_line(f"console  {facts['console']['url']}")
    if facts["engine"]:
        write_line(f"engine   llama.cpp {facts['engine']['version']} ({facts['engine']['backend']})")
    write_line(f"mesh     {mesh_sentence(facts['mesh'])}")
    if facts["swarm"]:
        write_line(f"public   {public_sentence(facts['swarm'])}")
    write_line(
        f"requests {requests['finished']} finished, {requests['active']} running, {requests['waiting']} waiting\n"
    )
    show_models(facts["models"])
    for problem in facts["problems"]:
        write_line(f"\n{problem['severity']}: {problem['title']} ({problem['code']})")
        write_line(f"  {problem['text']}\n  fix: {problem['fix']}")


def mesh_sentence(mesh: dict[str, Any] | None) -> str:
    """The mesh as one line: which, how many of its other nodes answer, and where this one can be dialled."""
    if mesh is None:
        return "none"
    peers = [peer for peer in mesh["peers"] if peer["state"] != "left"]
    answering = sum(peer["state"] == "alive" and peer["reachable"] for peer in peers)
    company = f"{answering} of {len(peers)} other nodes answer" if peers else "no other node yet"
    reach = f"; reachable at {', '.join(mesh['addresses'])}" if mesh["addresses"] else ""
    return f'"{printable(mesh["name"])}" as {mesh["role"]}; {company}{reach}'


def public_sentence(swarm: dict[str, Any]) -> str:
    """The public mesh as one line: where this node is in it, and what strangers may do here."""
    parts = [printable(swarm["sentence"], 300)]
    if swarm["state"] != "failed":
        answering = sum(peer["state"] == "alive" and peer["reachable"] for peer in swarm["peers"])
        parts.append(f"{answering} of {len(swarm['peers'])} other nodes answer")
        if swarm["publishing"]:
            served = swarm["strangers"]["served"]
            parts.append("strangers are paused" if swarm["paused"] else f"{served} requests of strangers served")
    return "; ".join(parts)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@command_errors
def ps(as_json: bool) -> None:
    """The models being served: where, how large, how busy."""
    facts = find_node().call("GET", "/api/status")
    if as_json:
        emit({"models": facts["models"]})
    else:
        show_models(facts["models"])


def show_models(models: list[dict[str, Any]]) -> None:
    """The table of `ps`."""
    rows = []
    for model in models:
        state = model["state"] if not model["detail"] else f"{model['state']}: {model['detail']}"
        busy = f"{model['busy']}/{model['parallel']}" + (f" +{model['waiting']}" if model["waiting"] else "")
        since = time.strftime("%H:%M:%S", time.localtime(model["since"])) if model["since"] else "-"
        rows.append(
            [
                model["id"],
                *_where(model),
                str(model["context_length"]),
                busy,
                state,
                since,
            ]
        )
    table(["MODEL", "WHERE", "SIZE", "GPU", "CONTEXT", "BUSY", "STATE", "SINCE"], rows)


def _where(model: dict[str, Any]) -> tuple[str, str, str]:
    """Where a model runs, how large it is, and the share of its layers on GPUs where one machine has them all."""
    plan = model["plan"] or {"gpu_layers": 0, "shares": []}
    size = human_bytes(model["size_bytes"])
    if "stages" in plan:
        others = len({stage["node"] for stage in plan["stages"]})
        return f"split (here + {others})", size, "-"
    layers = sum(share["layers"] for share in plan["shares"])
    return model["where"], size, f"{round(100 * plan['gpu_layers'] / layers)} %" if layers else "-"


@click.command()
@click.option("--engine", is_flag=True, help="the log of llama-server instead of the node's")
@click.option("-f", "--follow", is_flag=True, help="go on as the log grows")
@click.option("-n", "--lines", default=100, show_default=True, help="how many lines to begin with")
@command_errors
def logs(engine: bool, follow: bool, lines: int) -> None:
    """The log of this node, also of one that has ended. Prompts and answers are never in it."""
    while _show_log(engine=engine, follow=follow, lines=lines):
        pass  # the file was rotated: go on with the new one


def _show_log(*, engine: bool, follow: bool, lines: int) -> bool:
    folder = find_places().logs
    file = _newest(folder, "engine-*.log") if engine else folder / "node.log"
    if file is None or not file.exists():
        raise StateError(f"there is no log in {folder} yet", fix="start a node first: meshnode --model demo")
    say(str(file))
    with file.open("r", encoding="utf-8", errors="replace") as opened:
        for line in deque(opened, maxlen=max(0, lines)):
            click.echo(line, nl=False)
        while follow:
            line = opened.readline()
            if line:
                click.echo(line, nl=False)
            elif _was_rotated(file, opened.fileno()):
                return True
            else:
                time.sleep(FOLLOW_S)
    return False


def _newest(folder: Path, pattern: str) -> Path | None:
    return max(folder.glob(pattern), key=lambda file: file.stat().st_mtime, default=None)


def _was_rotated(file: Path, descriptor: int) -> bool:
    try:
        return file.stat().st_ino != os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False
