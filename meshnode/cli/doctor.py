"""`meshnode doctor`: looks at everything a node needs on this machine, with a fix on each line that is not ok."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import click

from meshnode import __version__
from meshnode.cli.client import find_node
from meshnode.cli.render import command_errors, emit, human_bytes
from meshnode.config import Places, Settings, find_places
from meshnode.errors import MeshnodeError, NodeNotRunning

LOW_DISK_BYTES = 5 << 30
BUILD_DISK_BYTES = 2 << 30
EXIT_FAILED = 7

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, the verdict, what was seen, and what mends it."""

    check: str
    verdict: Verdict
    seen: str
    fix: str = ""


@click.command()
@click.option("--net", is_flag=True, help="look at how this machine is reached from the internet instead")
@click.option("--json", "as_json", is_flag=True, help="print one JSON object, good for a bug report")
@click.pass_context
@command_errors
def doctor(ctx: click.Context, net: bool, as_json: bool) -> None:
    """Check this machine: every line says ok, or what is wrong and the command that mends it."""
    from meshnode.cli.main import settings_of

    places = find_places()
    settings = settings_of(ctx)
    if net:
        _show_net(places, settings, as_json)
        return
    findings = []
    for check in CHECKS:
        try:
            found = list(check(places, settings))
        except MeshnodeError as error:
            found = [Finding(check.__name__.lstrip("_"), "fail", error.message, error.fix)]
        findings += found
        if not as_json:
            for finding in found:
                _show(finding)
    failed = [finding for finding in findings if finding.verdict == "fail"]
    if as_json:
        emit({"version": __version__, "ok": not failed, "findings": [asdict(finding) for finding in findings]})
    else:
        click.echo(f"\n{len(failed)} failed" if failed else "\nnothing failed")
    ctx.exit(EXIT_FAILED if failed else 0)


def _show_net(places: Places, settings: Settings, as_json: bool) -> None:
    from meshnode.cli.doctor_net import look

    found, remarks = look(places, settings)
    findings = [Finding(remark.about, remark.verdict, remark.seen, remark.fix) for remark in remarks]
    if as_json:
        facts = [asdict(finding) for finding in findings]
        emit({"version": __version__, "ok": True, "findings": facts, "net": found.facts()})
        return
    for finding in findings:
        _show(finding)


def _show(finding: Finding) -> None:
    colour = {"ok": "green", "warn": "yellow", "fail": "red"}[finding.verdict]
    mark = click.style(f"{finding.verdict:<4}", fg=None if os.environ.get("NO_COLOR") else colour)
    click.echo(f"{mark} {finding.check:<10} {finding.seen}")
    if finding.fix:
        click.echo(f"     {'':<10} fix: {finding.fix}")


def _python(places: Places, settings: Settings) -> Iterator[Finding]:
    names = ("aioquic", "cryptography", "huggingface_hub", "starlette", "uvicorn")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}; {versions}")
    if sys.maxsize < 1 << 32:
        yield Finding("python", "fail", "a 32-bit Python", "install a 64-bit Python 3.11 or newer")


def _folders(places: Places, settings: Settings) -> Iterator[Finding]:
    from meshnode.models.cache import cache_folder

    for name, folder in (("home", places.home), ("cache", places.cache), ("models", cache_folder())):
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not os.access(existing, os.W_OK):
            yield Finding(name, "fail", f"{folder} cannot be written", f"make it writable, or move it ({_mover(name)})")
            continue
        free = shutil.disk_usage(existing).free
        low = free < LOW_DISK_BYTES
        yield Finding(
            name,
            "warn" if low else "ok",
            f"{folder}, {human_bytes(free)} free",
            f"free some space, or move it ({_mover(name)})" if low else "",
        )


def _mover(name: str) -> str:
    return {"home": "MESHNODE_HOME", "cache": "MESHNODE_CACHE", "models": "HF_HOME"}[name]


def _engine(places: Places, settings: Settings) -> Iterator[Finding]:
    from meshnode.engine.provision import find
    from meshnode.engine.toolchain import find_toolchain
    from meshnode.errors import ToolchainMissing

    engine = find(places.cache)
    if engine is not None:
        yield Finding("engine", "ok", f"llama.cpp {engine.version} for {engine.backend}, {engine.server}")
        return
    try:
        toolchain = find_toolchain(places.cache)
    except ToolchainMissing as error:
        yield Finding("engine", "fail", f"not built yet, and {error.message}", error.fix)
    else:
        yield Finding(
            "engine",
            "warn",
            f"not built yet; {toolchain.compiler.name} is there",
            "meshnode engine build, or just start a node",
        )


def _devices(places: Places, settings: Settings) -> Iterator[Finding]:
    from meshnode.engine.installed import list_devices
    from meshnode.engine.provision import find
    from meshnode.hardware import probe_all
    from meshnode.status import devices_sentence

    engine = find(places.cache)
    inventory = probe_all((lambda: list_devices(engine)) if engine else None, settings.max_vram)
    yield Finding("devices", "ok", devices_sentence(inventory))
    for note in inventory.notes:
        yield Finding("devices", "ok", f"{note.probe} skipped: {note.reason}")


def _ports(places: Places, settings: Settings) -> Iterator[Finding]:
    try:
        node = find_node(places)
    except NodeNotRunning:
        for name, port in (("API port", settings.port), ("console", settings.console)):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError as reason:
                    flag = "--port" if name == "API port" else "--console"
                    yield Finding(name, "fail", f"{port}: {reason.strerror}", f"end the program there, or use {flag} N")
                else:
                    yield Finding(name, "ok", f"{port} is free")
    else:
        yield Finding("node", "ok", f"running, pid {node.pid}, {node.api}")


def _problems(places: Places, settings: Settings) -> Iterator[Finding]:
    try:
        facts = find_node(places).call("GET", "/api/status")
    except NodeNotRunning:
        return
    verdicts: dict[str, Verdict] = {"info": "ok", "warning": "warn", "failure": "fail"}
    for problem in facts["problems"]:
        verdict = verdicts[problem["severity"]]
        yield Finding("node", verdict, f"{problem['title']}: {problem['text']}", problem["fix"])


CHECKS: tuple[Callable[[Places, Settings], Iterator[Finding]], ...] = (
    _python,
    _folders,
    _engine,
    _devices,
    _ports,
    _problems,
)
