"""Commands about settings: those of meshnode, those of programs that use it (cli/agents.py), and shell completion."""

from __future__ import annotations

import click

from meshnode.cli.render import command_errors, emit, table
from meshnode.config import find_places


class _ConfigGroup(click.Group):
    """`show`, and beside it a command for each program that can use a node; those are made when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from meshnode.cli.agents import agent_names

        return [*super().list_commands(ctx), *agent_names()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        from meshnode.cli.agents import agent_config, agent_names

        return agent_config(cmd_name) if cmd_name in agent_names() else super().get_command(ctx, cmd_name)


@click.group(cls=_ConfigGroup)
def config() -> None:
    """This node's settings (flag > environment MESHNODE_* > config.toml > built-in), or those of an agent for it."""


@config.command()
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@click.pass_context
@command_errors
def show(ctx: click.Context, as_json: bool) -> None:
    """Every setting with its value and where that came from."""
    from meshnode.cli.main import settings_of

    places = find_places()
    rows = settings_of(ctx).as_rows()
    if as_json:
        settings = {name: {"value": value, "source": source} for name, value, source, _ in rows}
        paths = {"home": str(places.home), "cache": str(places.cache), "file": str(places.config_file)}
        emit({"settings": settings, "paths": paths})
        return
    table(["SETTING", "VALUE", "SOURCE", "MEANING"], [list(row) for row in rows])
    click.echo(f"\nhome {places.home}\ncache {places.cache}\nfile {places.config_file}")


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@command_errors
def completion(shell: str) -> None:
    """Print the completion script for SHELL; the last line says how to use it."""
    from click.shell_completion import get_completion_class

    from meshnode.cli.main import root

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(root, {}, "meshnode", "_MESHNODE_COMPLETE").source())
    place = {
        "bash": '~/.bashrc: eval "$(meshnode completion bash)"',
        "zsh": '~/.zshrc: eval "$(meshnode completion zsh)"',
        "fish": "~/.config/fish/config.fish: meshnode completion fish | source",
    }
    click.echo(f"add this line to {place[shell]}", err=True)
