"""Commands that change the running node: load, unload, stop."""

from __future__ import annotations

import time

import click

from meshnode.cli.client import RunningNode, find_node, is_held, reported
from meshnode.cli.render import command_errors, emit, say
from meshnode.config import find_places
from meshnode.errors import MeshnodeError

POLL_S = 0.05


@click.command()
@click.argument("model")
@click.option("--wait/--no-wait", default=True, help="wait until the model answers (default)")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@command_errors
def load(model: str, wait: bool, as_json: bool) -> None:
    """Serve MODEL on the running node, beside those it serves already."""
    node = find_node()
    accepted = node.call("POST", "/api/load", {"model": model})
    entry = _follow(node, accepted["model"], quiet=as_json) if wait else accepted
    if as_json:
        emit(entry)
    else:
        say(f"{accepted['model']} is {entry.get('state', 'loading')}")


def _follow(node: RunningNode, name: str, *, quiet: bool) -> dict[str, object]:
    """Wait until the model is ready. Raises the failure that the node reports."""
    told = ""
    while True:
        entry = next((item for item in node.call("GET", "/api/status")["models"] if item["id"] == name), None)
        if entry is None:
            raise MeshnodeError(f"{name} was unloaded meanwhile")
        if entry["state"] == "failed":
            raise reported(entry["error"] or {"message": entry["detail"]})
        if entry["state"] == "ready":
            return dict(entry)
        if entry["detail"] != told and not quiet:
            told = entry["detail"]
            say(f"{name}: {told or entry['state']}")
        time.sleep(POLL_S * 4)


@click.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@command_errors
def unload(model: str, as_json: bool) -> None:
    """Stop serving MODEL; answers that are under way end first."""
    answer = find_node().call("POST", "/api/unload", {"model": model}, timeout_s=120)
    if as_json:
        emit(answer)
    else:
        say(f"{answer['model']} is unloaded")


@click.command()
@click.option("--now", is_flag=True, help="cut running answers instead of letting them finish")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@command_errors
def stop(now: bool, as_json: bool) -> None:
    """Stop the running node: no new requests, running answers finish, then the engine ends."""
    places = find_places()
    node = find_node(places)
    node.call("POST", "/api/stop", {"now": now})
    while is_held(places.lock_file):
        time.sleep(POLL_S)
    if as_json:
        emit({"stopped": True, "pid": node.pid})
    else:
        say(f"the node (pid {node.pid}) has stopped")
