"""Commands about meshnode itself: its settings and shell completion."""

from __future__ import annotations

import click

from meshnode.cli.render import command_errors, emit, table
from meshnode.config import find_places


@click.group()
def config() -> None:
    """Settings: flag > environment MESHNODE_* > config.toml > built-in."""


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
