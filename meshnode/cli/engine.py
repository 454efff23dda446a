"""`meshnode engine`: the llama.cpp that this node runs. Building it, finding it, removing it."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import click

from meshnode.cli.render import command_errors, emit, human_bytes, progress_report, say, table
from meshnode.config import find_places
from meshnode.errors import EngineNotBuilt


@click.group()
def engine() -> None:
    """The inference engine (llama.cpp), built once on each machine and then reused."""


def _wanted_backend(ctx: click.Context, flag: str | None) -> str | None:
    from meshnode.cli.main import settings_of

    return flag or settings_of(ctx).backend


_BACKEND = click.option(
    "--backend",
    type=click.Choice(["cpu", "cuda", "hip", "metal", "vulkan"]),
    help="instead of the best one that this machine can build and use",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="print one JSON object")


@engine.command()
@_BACKEND
@_JSON
@click.pass_context
@command_errors
def status(ctx: click.Context, backend: str | None, as_json: bool) -> None:
    """Which engine this machine uses, what it was built from, and how much disk it takes."""
    from meshnode.cli.main import settings_of
    from meshnode.engine import provision

    cache, given = find_places().cache, settings_of(ctx).engine
    found = provision.status(cache, backend=_wanted_backend(ctx, backend))
    if as_json:
        facts = dataclasses.asdict(found) | {
            "engine": found.engine.as_dict() if found.engine else None,
            "others": [other.engine.as_dict() for other in found.others],
            "log": str(found.log) if found.log else None,
            "cache": str(cache),
            "given": str(given) if given else None,
        }
        emit(facts)
        return
    rows = [
        ["engine", str(found.engine.folder) if found.engine else "not built yet"],
        [
            "version",
            f"llama.cpp {found.engine.version}, RPC {_dotted(found.engine.rpc_version)}" if found.engine else "",
        ],
        ["backend", f"{found.backend} ({found.reason})"],
        ["source", found.source],
        ["patches", ", ".join(found.patches) or "none"],
        ["others", ", ".join(other.engine.backend for other in found.others)],
        ["disk", f"{human_bytes(found.size_bytes)} in {cache}"],
        ["log", str(found.log or "")],
    ]
    table(["WHAT", "VALUE"], [row for row in rows if row[1]])
    if given:
        say(f"the settings name another one, which nodes use instead: {given}")
    elif found.building:
        say("a build is in progress")
    elif found.engine is None:
        say("build it now (minutes, once): meshnode engine build")


def _dotted(version: tuple[int, int, int] | None) -> str:
    return ".".join(map(str, version)) if version else "unknown"


@engine.command()
@_BACKEND
@click.option("--jobs", type=click.IntRange(1, 1024), help="compilers at once (one a core, as far as memory goes)")
@_JSON
@click.pass_context
@command_errors
def build(ctx: click.Context, backend: str | None, jobs: int | None, as_json: bool) -> None:
    """Build the engine now; an interrupted build goes on where it was."""
    from meshnode.engine import provision

    cache, wanted, started = find_places().cache, _wanted_backend(ctx, backend), time.monotonic()
    known = provision.find(cache, backend=wanted)
    with progress_report() as report:
        built = known or provision.ensure(cache, backend=wanted, jobs=jobs, report=report)
    seconds = time.monotonic() - started
    if as_json:
        emit(built.as_dict() | {"seconds": round(seconds, 1), "already_built": known is not None})
    elif known:
        say(f"already built: {built.folder}")
    else:
        say(f"built in {seconds:.0f} s: {built.folder}\nnow start a node: meshnode --model demo")


@engine.command()
@_BACKEND
@_JSON
@click.pass_context
@command_errors
def path(ctx: click.Context, backend: str | None, as_json: bool) -> None:
    """Print the folder that holds llama-server and its tools."""
    from meshnode.engine import provision

    found = provision.find(find_places().cache, backend=_wanted_backend(ctx, backend))
    if found is None:
        raise EngineNotBuilt
    if as_json:
        emit(found.as_dict())
    else:
        click.echo(found.folder)


@engine.command()
@_JSON
@command_errors
def clean(as_json: bool) -> None:
    """Remove every built engine, its source and its build tools; models stay."""
    from meshnode.engine import provision

    cache: Path = find_places().cache
    freed = provision.clean(cache)
    if as_json:
        emit({"freed_bytes": freed, "cache": str(cache)})
    else:
        say(f"{human_bytes(freed)} freed; the next `meshnode --model X` builds the engine again")
