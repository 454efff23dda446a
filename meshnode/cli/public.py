"""Commands for the public mesh of a running node: pause, resume, providers."""

from __future__ import annotations

from typing import Any

import click

from meshnode.cli.client import find_node
from meshnode.cli.render import command_errors, emit, printable, say, table

PROVIDERS_LIMIT_S = 30.0


@click.command()
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@command_errors
def pause(as_json: bool) -> None:
    """Serve no strangers for now. Answers that have begun are finished; members of your own mesh notice nothing."""
    answer = find_node().call("POST", "/api/swarm/pause", {"paused": True})
    emit(answer) if as_json else say("strangers are served no more; meshnode resume serves them again")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@command_errors
def resume(as_json: bool) -> None:
    """Serve strangers again."""
    answer = find_node().call("POST", "/api/swarm/pause", {"paused": False})
    emit(answer) if as_json else say("strangers are served again")


@click.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@command_errors
def providers(model: str, as_json: bool) -> None:
    """Who in the public mesh offers MODEL: a name, or the hash of its weights. No relay is asked, only nodes."""
    from urllib.parse import quote

    name = quote(model, safe="")
    found = find_node().call("GET", f"/api/providers?model={name}", timeout_s=PROVIDERS_LIMIT_S)
    if as_json:
        return emit(found)
    if found["content_hash"] is None:
        return say(f"nobody here knows which weights {printable(model)} are; their hash does as well")
    if not found["providers"]:
        return say(f"of {found['asked']} nodes that were asked, none knows who offers {printable(model)}")
    table(["NODE", "SAYS SO FOR", "ADDRESSES"], [_row(each) for each in found["providers"]])


def _row(provider: dict[str, Any]) -> list[str]:
    minutes = provider["expires_in_s"] / 60
    return [provider["node"][:10], f"{minutes:.0f} min", ", ".join(map(str, provider["addresses"])) or "-"]
