"""meshnode launch AGENT and meshnode config AGENT: the programs that people already use, on the models of this node.

`launch` runs a program with its environment alone; where no node runs it starts one for as long (cli/companion.py).
`config` prints what the program wants, with the ids and context lengths of now, or merges it into the program's files.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from meshnode.agents.recipe import KEY_VARIABLE, Recipe
from meshnode.agents.recipes import LAUNCHABLE, MAKERS, recipe
from meshnode.cli.client import find_node
from meshnode.cli.ready_models import choose, models_of, other_names
from meshnode.cli.render import command_errors, emit, say, write_line
from meshnode.errors import MeshnodeError


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("agent", type=click.Choice(LAUNCHABLE))
@click.option("--model", metavar="NAME", help="the model to use; without it the first that is ready and chats")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
@command_errors
def launch(ctx: click.Context, agent: str, model: str | None, arguments: tuple[str, ...]) -> None:
    """Run AGENT with the models of this node: meshnode launch codex -- exec "fix the tests".

    Nothing is written: the agent gets its settings by environment and arguments. Where no node runs, one is started
    for as long as the agent does.
    """
    from meshnode.agents import launching
    from meshnode.cli.companion import node_for_now
    from meshnode.cli.main import settings_of

    settings = settings_of(ctx)
    launching.find(recipe(agent, "", (), key=None), os.environ)
    with node_for_now(model, configured=bool(settings.model)) as (node, chosen):
        status = node.call("GET", "/api/status")
        made = recipe_of(agent, status, chosen.id)
        key = node_key(settings.api_key) if status["api"]["key_required"] else None
        say(f"{made.title} with {made.model} on {status['api']['url']}")
        code = launching.run(made, arguments, os.environ, key=key)
    raise SystemExit(code)


def node_key(key: str | None) -> str:
    """The key that callers of this node must send, from the settings of this invocation. Raises MeshnodeError."""
    if not key:
        raise MeshnodeError(
            "this node asks for an API key, and there is none here", fix=f"set {KEY_VARIABLE}, as for the node itself"
        )
    return key


def recipe_of(agent: str, status: dict[str, Any], model: str) -> Recipe:
    """The recipe of an agent for a running node."""
    api = status["api"]
    return recipe(agent, api["url"], models_of(status), key="set" if api["key_required"] else None, model=model)


# --- config ---------------------------------------------------------------------------------------------------


def agent_config(agent: str) -> click.Command:
    """The command `meshnode config AGENT`."""

    @click.command(agent, help=f"What {agent} needs to use this node; --write merges it into its own files.")
    @click.option("--model", metavar="NAME", help="the model to use; without it the first that is ready and chats")
    @click.option("--write", is_flag=True, help="merge it into the files of the program, with a backup beside each")
    @click.option("--dry-run", is_flag=True, help="show what --write would change, as a diff")
    @click.option("--json", "as_json", is_flag=True, help="print one JSON object")
    @command_errors
    def command(model: str | None, write: bool, dry_run: bool, as_json: bool) -> None:
        node = find_node()
        status = node.call("GET", "/api/status")
        others = other_names(node) if model else None
        made = recipe_of(agent, status, choose(status, model, others).id)
        if write or dry_run:
            _change(made, dry_run=dry_run, as_json=as_json)
        elif as_json:
            emit(made.as_dict())
        else:
            _show(made)

    return command


def _show(made: Recipe) -> None:
    """A recipe for people: the shell's part first, then the files, then what else to know."""
    say(f"{made.title}: {made.summary}  ({made.homepage})")
    if made.environment:
        for name, value in made.environment.items():
            # A reference to the key is for the shell to fill in; all else is taken as it is.
            shown = f'"{value}"' if value == f"${KEY_VARIABLE}" else shlex.quote(value)
            write_line(f"export {name}={shown}")
    if made.command:
        write_line(shlex.join(made.command))
    for file in made.files:
        say(f"\n{file.path or 'an example'}:" if made.environment or made.command else f"{file.path or 'an example'}:")
        write_line(file.content.rstrip())
    for note in made.notes:
        say(f"  {note}")
    if made.install:
        say(f"  to install it: {made.install}")
    if made.writable:
        say(f"  to merge this into its files: meshnode config {made.id} --write")
    if made.launchable:
        say(f"  to run it at once, with no file changed: meshnode launch {made.id}")


def _change(made: Recipe, *, dry_run: bool, as_json: bool) -> None:
    """Merge a recipe into the files of its program, or show that. Raises SettingsNotMergeable, HomeNotWritable."""
    from meshnode.agents import writing

    if not made.writable:
        raise MeshnodeError(
            f"{made.title} is not set up by a file of its own", fix=f"use what it prints: meshnode config {made.id}"
        )
    # All is planned before anything is written: one file that cannot be changed leaves the others as they were.
    changes = writing.plan(made, os.environ)
    done = []
    for change in changes:
        backup = writing.write(change) if change.needed and not dry_run else None
        done.append({"path": str(change.path), "changed": change.needed, "backup": str(backup) if backup else None})
        if not as_json:
            _tell(change, backup, dry_run=dry_run)
    if as_json:
        diffs = [{**facts, "diff": change.diff()} for facts, change in zip(done, changes, strict=True)]
        emit({"agent": made.id, "model": made.model, "written": not dry_run, "files": diffs})
    elif not dry_run:
        for note in made.notes:
            say(f"  {note}")


def _tell(change: Any, backup: Path | None, *, dry_run: bool) -> None:
    if not change.needed:
        say(f"{change.path} has it already")
    elif dry_run:
        write_line(change.diff().rstrip("\n"))
    else:
        say(f"{change.path} {'changed' if backup else 'made'}{f'; as it was: {backup}' if backup else ''}")


def agent_names() -> Sequence[str]:
    """What can stand behind `meshnode config`, beside `show`."""
    return tuple(MAKERS)
