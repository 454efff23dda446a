"""Starts a node in this terminal and says what it does, ending with what to do next."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import click

from meshnode import __version__
from meshnode.cli.render import command_errors, emit, progress_report, say
from meshnode.config import Places, Settings, find_places

MAX_INVITE_CHARS = 4096

QUICK_START = """\
meshnode {version} is open and serves nothing yet. From another terminal:

  Look around       {console:<33}the console: load, chat, join, invite
  A first model     meshnode load demo               tiny, ships with meshnode, no download
  A real model      meshnode search qwen             then: meshnode show NAME, meshnode load NAME
  Ask it            curl -s {api}/chat/completions -d '{{"model":"demo",
                      "messages":[{{"role":"user","content":"count from 1 to 20"}}]}}'
  More machines     meshnode invite                  prints a token; there: meshnode --join TOKEN
  Join others       meshnode join TOKEN              a thin laptop: meshnode --client --join TOKEN
  An agent          meshnode launch codex            or goose, opencode, pi, claude, aider
  Next time         meshnode --model NAME            fetch it, load it, serve it
  If in trouble     meshnode doctor                  Ctrl-C stops this node
"""


@command_errors
def start(ctx: click.Context, *, as_json: bool, quiet: bool, verbose: int) -> None:
    """What `meshnode` does without a command: run a node; without any option, one that waits to be told what to do."""
    from meshnode.cli.main import settings_of

    places = find_places()
    settings = with_pasted_invite(settings_of(ctx))
    asked = any(value not in (None, ()) for value in ctx.obj["flags"].values())
    idle = not asked and not (settings.model or settings.join or settings.client)
    if idle and _showed_running_node(places, as_json=as_json):
        return
    if verbose:
        from dataclasses import replace

        settings = replace(settings, log_level="debug")
    run_node(settings, places, as_json=as_json, quiet=quiet, idle=idle)


def with_pasted_invite(settings: Settings) -> Settings:
    """`--join -` reads the invite from stdin, so that it shows in no list of processes. Raises SettingsError."""
    if settings.join != "-":
        return settings
    from dataclasses import replace

    return replace(settings, join=pasted_invite("meshnode invite | meshnode --join -"))


def pasted_invite(example: str) -> str:
    """The invite on the first line of stdin. Raises SettingsError, with the example, when there is none."""
    from meshnode.errors import SettingsError

    if sys.stdin.isatty():
        say("paste the invite, then press Enter:")
    token = sys.stdin.readline(MAX_INVITE_CHARS).strip()
    if not token:
        raise SettingsError("there is no invite on stdin", fix=example)
    return token


def _showed_running_node(places: Places, *, as_json: bool) -> bool:
    """Show the status of the node that runs here; False when none does."""
    from meshnode.cli.client import find_node
    from meshnode.errors import NodeNotRunning

    try:
        facts = find_node(places).call("GET", "/api/status")
    except NodeNotRunning:
        return False
    from meshnode.cli.inspect import show_status

    emit(facts) if as_json else show_status(facts)
    return True


def run_node(settings: Settings, places: Places, *, as_json: bool, quiet: bool, idle: bool = False) -> None:
    """Run a node until it is stopped; an `idle` one builds no engine before one is needed.

    Raises MeshnodeError when it could not start.
    """
    begun = time.monotonic()
    if not (quiet or as_json):
        say(f"meshnode {__version__}")

    def tell(label: str, text: str) -> None:
        if label == "up":
            urls = json.loads(text)
            if as_json:
                emit({"ready": True, "version": __version__, **urls})
            elif idle and not quiet:
                say(QUICK_START.format(version=__version__, **urls).rstrip())
            elif not quiet:
                _say_ready(settings, urls, time.monotonic() - begun)
        elif not (quiet or as_json):
            say(f"{label:<8} {text}")

    with progress_report(quiet=quiet or as_json) as report:
        asyncio.run(_run(settings, places, report, tell, idle=idle))
    if not (quiet or as_json):
        say("stopped")


async def _run(settings: Settings, places: Places, report: Any, tell: Any, *, idle: bool) -> None:
    from meshnode.node import Node, install_signals

    node = Node(settings, places, report=report, tell=tell, idle=idle)
    install_signals(node)
    await node.run()
    if node.interrupted:
        raise KeyboardInterrupt


def _say_ready(settings: Settings, urls: dict[str, Any], seconds: float) -> None:
    base = urls["api"]
    say(
        f"ready in {seconds:.1f} s\n"
        if urls.get("ready", True)
        else "waiting for other machines: the invite below adds them\n"
    )
    say(f"  API      {base}")
    say(f"  console  {urls['console']}")
    reach = "other machines reach it with the API key" if settings.listen_all else "only this machine can reach it"
    say(f"  {reach}; Ctrl-C stops\n")
    key = " -H 'Authorization: Bearer '$MESHNODE_API_KEY" if settings.api_key else ""
    if settings.model:
        name = settings.model[0]
        question = "count from 1 to 20" if name == "demo" else "hello"
        body = json.dumps({"model": name, "stream": True, "messages": [{"role": "user", "content": question}]})
        say(f"  try:     curl -N {base}/chat/completions{key} -d '{body}'")
    elif settings.client or settings.join:
        say(f"  models:  curl {base}/models{key}")
    else:
        say("  next:    meshnode load NAME      (meshnode search finds names)")
    mesh = urls.get("mesh")
    if mesh and mesh["invite"]:
        say(f'\n  "{mesh["name"]}" is private: nobody can join without this invite (24 h, 5 uses)')
        say("  (as a QR code: meshnode invite --qr; by a spoken code: meshnode pair)")
        say(f"  On another machine:  meshnode --join {mesh['invite']}")
