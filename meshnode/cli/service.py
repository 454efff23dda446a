"""`meshnode service`: a node that starts with the machine, kept by systemd or launchd."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import click

from meshnode.cli.client import find_node, is_held
from meshnode.cli.render import command_errors, emit, human_span, say, write_line
from meshnode.config import Places, Settings, find_places, load, setting_fields
from meshnode.errors import AlreadyRunning, MeshnodeError, SettingsError, StateError

CARRIED = ("MESHNODE_HOME", "MESHNODE_CACHE", "HF_HOME", "HF_ENDPOINT")
"""What of this shell the service gets, too; everything else belongs into config.toml."""
SECRET = ("MESHNODE_API_KEY", "HF_TOKEN", "HTTPS_PROXY")
"""A proxy may be named with a password."""
TALK = {"config_file", "as_json", "quiet", "verbose"}
"""Options of `meshnode` that are no settings, and may stand in a service all the same."""
JOIN_FIRST = "join once by hand, which is remembered: meshnode join TOKEN, or: meshnode --join - (it reads the invite)"


@click.group()
def service() -> None:
    """A node that starts by itself: a systemd user unit, or a launchd agent."""


@service.command()
@click.option("--force", is_flag=True, help="replace a file that somebody edited; it is kept beside as .bak")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@command_errors
def install(force: bool, as_json: bool, options: tuple[str, ...]) -> None:
    """Start a node now and at every login, with the OPTIONS of `meshnode` that stand after `--`.

    \b
    meshnode service install -- --model qwen2.5-3b
    """
    from meshnode.service.supervisors import read_installed
    from meshnode.service.units import Service

    places = find_places()
    settings = _settings_of(options, places)
    supervisor = _supervisor(places)
    there, edited = read_installed(supervisor)
    if edited and not force:
        raise StateError(f"{supervisor.file} was edited", fix="replace it with --force; a copy is kept beside it")
    if is_held(places.lock_file) and not supervisor.state().pid:
        raise AlreadyRunning(f"home {places.home}", fix="stop it first: meshnode stop")
    if edited:
        supervisor.file.replace(supervisor.file.with_name(f"{supervisor.file.name}.bak"))
    supervisor.write(
        Service(
            command=(*_program(), "--quiet", *options),
            environment={name: os.environ[name] for name in CARRIED if os.environ.get(name)},
            secrets={name: os.environ[name] for name in SECRET if os.environ.get(name)},
            secrets_file=_secrets_file(places),
            log_file=places.logs / "service.log",
            stop_s=settings.drain_timeout,
        )
    )
    works = supervisor.works()
    if works:
        supervisor.start()
    notes = _notes(settings)
    if as_json:
        facts: dict[str, Any] = {"file": str(supervisor.file), "started": works, "notes": notes}
        return emit(facts if works else {**facts, "commands": supervisor.start_words()})
    say(f"{'replaced' if there else 'wrote'} {supervisor.file}")
    if works:
        say("the node starts now and at every login; meshnode service status shows how far it is")
    else:
        say(f"{supervisor.name} does not answer in this session; where it does, run:")
        for words in supervisor.start_words():
            write_line(words)
    for note in [*notes, supervisor.hint()]:
        say(f"  {note}")


@service.command()
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@command_errors
def status(as_json: bool) -> None:
    """Whether the service is installed, enabled and running, and what its node says."""
    from meshnode.service.supervisors import read_installed

    places = find_places()
    supervisor = _supervisor(places)
    there, edited = read_installed(supervisor)
    state = supervisor.state()
    node = _node_says(places)
    facts = {
        "installed": there,
        "file": str(supervisor.file),
        "edited": edited,
        "enabled": state.enabled,
        "active": state.active,
        "pid": state.pid or None,
        "since": state.since,
        "node": node,
    }
    if as_json:
        return emit(facts)
    if not there:
        write_line("not installed")
        return say("  meshnode service install -- --model NAME")
    write_line(f"file     {supervisor.file}{' (edited)' if edited else ''}")
    since = f" for {human_span(time.time() - state.since)}" if state.since and state.pid else ""
    process = f", pid {state.pid}" if state.pid else ""
    write_line(f"service  {'enabled' if state.enabled else 'not enabled'}, {state.active}{since}{process}")
    write_line(f"node     {node['state']}, serving {', '.join(node['models']) or 'nothing'}" if node else "node     -")


@service.command()
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@command_errors
def uninstall(as_json: bool) -> None:
    """Stop the service, as `meshnode stop` does, and remove its files. Models and settings stay."""
    from meshnode.service.supervisors import read_installed

    supervisor = _supervisor(find_places())
    there, edited = read_installed(supervisor)
    if there and supervisor.works():
        supervisor.stop()
    kept = supervisor.file.with_name(f"{supervisor.file.name}.bak") if edited else None
    if kept is not None:
        supervisor.file.replace(kept)
    supervisor.remove()
    if as_json:
        return emit({"removed": there, "file": str(supervisor.file), "kept": str(kept) if kept else None})
    say(f"removed {supervisor.file}" if there else "it was not installed")
    if kept is not None:
        say(f"  it was edited: a copy is {kept}")


def _supervisor(places: Places) -> Any:
    from meshnode.service.supervisors import supervisor_here

    return supervisor_here(_secrets_file(places))


def _secrets_file(places: Places) -> Path:
    return places.config_file.with_name("service.env")


def _settings_of(options: tuple[str, ...], places: Places) -> Settings:
    """The settings that a node with these options has. Raises SettingsError for what it would not start with."""
    from meshnode.cli.main import root

    try:
        context = click.Context(root, info_name="meshnode")
        values, rest, _ = root.make_parser(context).parse_args(list(options))
    except click.UsageError as error:
        raise SettingsError(error.format_message(), fix="meshnode --help lists the options of a node") from None
    fields = {item.name for item in setting_fields()}
    flags = {name: value for name, value in values.items() if name in fields}
    other = [f"--{name.replace('_', '-')}" for name, value in values.items() if value and name not in fields | TALK]
    if rest or other:
        raise SettingsError(f"{(rest or other)[0]!r} starts no node", fix="only options of `meshnode` follow `--`")
    if flags.get("join"):
        raise SettingsError("an invite does not belong into a file that others can read", fix=JOIN_FIRST)
    file = values.get("config_file")
    # A command that stands in a file is started anywhere: what it names must be found from there, too.
    files = [file, flags.get("engine"), *filter(_is_file, (*flags.get("model", ()), flags.get("draft", "")))]
    for name in files:
        if name and not Path(name).expanduser().is_absolute():
            raise SettingsError(f"{name!r} is no absolute path", fix="give the whole path of the file")
    environment = {name: os.environ[name] for name in (*CARRIED, *SECRET) if name in os.environ}
    chosen = Path(file) if file else places.config_file
    return load(flags, environment=environment, file=chosen, file_required=bool(file))


def _is_file(model: str) -> bool:
    """Whether a model is named by a path of this machine; owner/repo/file.gguf is none."""
    return model.startswith((".", "~")) or (model.endswith(".gguf") and Path(model).exists())


def _program() -> tuple[str, ...]:
    """How this very meshnode is started, whatever PATH a service has."""
    script = Path(sys.executable).with_name("meshnode")
    return (str(script),) if os.access(script, os.X_OK) else (sys.executable, "-m", "meshnode")


def _notes(settings: Settings) -> list[str]:
    left = sorted(name for name in os.environ if name.startswith("MESHNODE_") and name not in (*CARRIED, *SECRET))
    notes = []
    if left:
        notes.append(f"not passed on: {', '.join(left)}; the service reads config.toml (meshnode config show)")
    if not (settings.model or settings.client or settings.join):
        notes.append("no --model: the node serves what the mesh asks for, or what `meshnode load` says")
    return notes


def _node_says(places: Places) -> dict[str, Any] | None:
    try:
        facts = find_node(places).call("GET", "/api/status")
    except MeshnodeError:
        return None
    models = [str(model["id"]) for model in facts["models"] if model["state"] == "ready"]
    return {"state": facts["state"], "models": models, "api": facts["api"]["url"]}
