"""The `meshnode` command: its options start a node, its subcommands look at one or steer it.

Subcommands are imported when they are called, so that `--version` and `--help` stay fast.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import click

from meshnode import __version__
from meshnode.config import Settings, find_places, load, setting_fields

COMMANDS = {
    "status": ("meshnode.cli.inspect", "What this node is doing"),
    "ps": ("meshnode.cli.inspect", "The models being served"),
    "doctor": ("meshnode.cli.doctor", "Check this machine, with a fix for each finding"),
    "logs": ("meshnode.cli.inspect", "The log of the node or of its engine"),
    "plan": ("meshnode.cli.plan", "Where a model would run: alone or split, on which machines, how fast, and why"),
    "load": ("meshnode.cli.control", "Serve one more model"),
    "unload": ("meshnode.cli.control", "Stop serving a model"),
    "stop": ("meshnode.cli.control", "Stop the running node"),
    "invite": ("meshnode.cli.admission", "Print an invite for other machines; list or revoke invites"),
    "join": ("meshnode.cli.admission", "Join the mesh of an invite with the running node"),
    "pair": ("meshnode.cli.admission", "Add a machine by a short spoken code"),
    "peers": ("meshnode.cli.mesh", "The other nodes of the mesh"),
    "ping": ("meshnode.cli.mesh", "Measure round trips to another node"),
    "leave": ("meshnode.cli.mesh", "Leave the mesh"),
    "discover": ("meshnode.cli.discover", "Public meshes: what they serve, how far away, which one suits"),
    "pause": ("meshnode.cli.public", "Serve no strangers for now"),
    "resume": ("meshnode.cli.public", "Serve strangers again"),
    "providers": ("meshnode.cli.public", "Who in the public mesh offers a model"),
    "owner": ("meshnode.cli.owner", "The key that makes your machines one owner's; whom you trust"),
    "audit": ("meshnode.cli.audit", "What went to strangers and what strangers were served"),
    "wallet": ("meshnode.cli.wallet", "Money for strangers: keys, what may be spent, channels"),
    "spend": ("meshnode.cli.spend", "What strangers were paid this month, and what is left"),
    "earn": ("meshnode.cli.earn", "What strangers pay this node: status, claim"),
    "receipts": ("meshnode.cli.receipts", "What each paid answer cost, signed by who gave it: list, verify"),
    "pull": ("meshnode.cli.models", "Fetch a model"),
    "ls": ("meshnode.cli.models", "Models on this disk"),
    "show": ("meshnode.cli.models", "A model: what it is, what it needs, whether it fits"),
    "quantize": ("meshnode.cli.quantize", "Make a smaller file of a model: fewer bits for its weights"),
    "rm": ("meshnode.cli.models", "Remove a model from this disk"),
    "search": ("meshnode.cli.models", "Find models"),
    "engine": ("meshnode.cli.engine", "The inference engine: status, build, path, clean"),
    "launch": ("meshnode.cli.agents", "Run goose, opencode, pi, claude, codex or aider with the models of this node"),
    "config": ("meshnode.cli.configure", "Settings, each with its source; or what an agent needs: config codex"),
    "service": ("meshnode.cli.service", "A node that starts by itself: install, status, uninstall"),
    "rotate-key": ("meshnode.cli.mesh", "Give this node a new key while it is stopped"),
    "completion": ("meshnode.cli.configure", "Shell completion for bash, zsh or fish"),
}
SYNONYMS = {"download": "pull", "drop": "rm", "list": "ls"}


class LazyGroup(click.Group):
    """A group whose subcommands are found by name in COMMANDS and imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = SYNONYMS.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(COMMANDS[name][0]), name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], [*COMMANDS, *SYNONYMS], 1)
            if near:
                raise click.UsageError(f"{error.message} Did you mean {near[0]!r}?", ctx) from None
            raise


def _node_options() -> list[click.Parameter]:
    """One option for each setting that may stand on a command line; their values are parsed in config.py."""
    options: list[click.Parameter] = []
    for item in setting_fields():
        if not item.metadata["flag"]:
            continue
        flag = f"--{item.name.replace('_', '-')}"
        if item.default is True:
            negative = [item.name, f"--no-{item.name.replace('_', '-')}"]
            options.append(click.Option(negative, flag_value=False, default=None, help=item.metadata["help"]))
        elif isinstance(item.default, bool):
            options.append(click.Option([flag], is_flag=True, default=None, help=item.metadata["help"]))
        else:
            options.append(
                click.Option(
                    [flag],
                    multiple=isinstance(item.default, tuple),
                    metavar="PATH" if item.name == "engine" else "N" if isinstance(item.default, int) else "TEXT",
                    help=item.metadata["help"],
                )
            )
    return options


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: meshnode --model demo",
)
@click.option("--config", "config_file", type=click.Path(path_type=Path), metavar="PATH", help="another config.toml")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object when the node is ready")
@click.option("-q", "--quiet", is_flag=True, help="say nothing but errors")
@click.option("-v", "--verbose", count=True, help="show the log too; twice for more")
@click.version_option(__version__, prog_name="meshnode")
@click.pass_context
def root(
    ctx: click.Context, /, config_file: Path | None, as_json: bool, quiet: bool, verbose: int, **flags: Any
) -> None:
    """Serve language models on your own machines.

    With options, meshnode starts a node on this machine; with a command, it looks after one.
    """
    ctx.obj = {"flags": flags, "config_file": config_file, "as_json": as_json, "quiet": quiet, "verbose": verbose}
    if ctx.invoked_subcommand is None:
        from meshnode.cli.serve import start

        start(ctx, as_json=as_json, quiet=quiet, verbose=verbose)


root.params.extend(_node_options())


def settings_of(ctx: click.Context) -> Settings:
    """The settings that this invocation means. Raises SettingsError."""
    given = ctx.find_root().obj or {"flags": {}, "config_file": None}
    file = given["config_file"] or find_places().config_file
    return load(given["flags"], environment=os.environ, file=file, file_required=given["config_file"] is not None)


def main() -> None:
    """Entry point of the console script."""
    root.main(prog_name="meshnode")
