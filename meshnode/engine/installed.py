"""Engines that are ready to use: the value that describes one, and the ones built into the cache folder.

Reading only: a node looks here each time it starts. `list_devices` alone starts a process, a short one.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from meshnode.engine.backend import Backend
from meshnode.engine.build import MANIFEST, MANIFEST_SCHEMA, TARGETS, engine_flags
from meshnode.engine.source import Upstream

MANIFEST_LIMIT_BYTES = 1 << 20
ENGINES_LIMIT = 200
LIST_DEVICES_TIMEOUT_S = 30

Origin = Literal["built", "given", "path"]


@dataclass(frozen=True, slots=True)
class Engine:
    """The programs of one llama.cpp. What a foreign one does not bring is None; `losses` says what that costs."""

    server: Path
    rpc_server: Path | None
    quantize: Path | None
    bench: Path | None
    fit_params: Path | None
    version: str
    rpc_version: tuple[int, int, int] | None
    backend: str
    patched: bool
    origin: Origin
    losses: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return self.server.parent

    def as_dict(self) -> dict[str, object]:
        """The form used in `--json` output and by `/api/status`."""
        tools = (self.server, self.rpc_server, self.quantize, self.bench, self.fit_params)
        paths = {name: str(tool) for name, tool in zip(TOOL_FIELDS, tools, strict=True) if tool is not None}
        return {
            **paths,
            "version": self.version,
            "rpc_version": ".".join(map(str, self.rpc_version)) if self.rpc_version else None,
            "backend": self.backend,
            "patched": self.patched,
            "origin": self.origin,
            "losses": list(self.losses),
        }


TOOL_FIELDS = ("server", "rpc_server", "quantize", "bench", "fit_params")


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """One folder of `<cache>/engine` whose manifest can be read and whose files are all there."""

    engine: Engine
    source: str
    flags: tuple[str, ...]
    kind: str
    compiler: str
    asked: bool
    seconds: float
    built_at: float


def built_engines(cache: Path) -> list[BuiltEngine]:
    """Every usable engine in the cache, the newest first; damaged ones are left out."""
    try:
        folders = sorted((cache / "engine").iterdir())[:ENGINES_LIMIT]
    except OSError:
        return []
    found = [built for folder in folders if (built := read_built(folder)) is not None]
    return sorted(found, key=lambda built: built.built_at, reverse=True)


def read_built(folder: Path) -> BuiltEngine | None:
    """The engine in `folder` if its manifest is sound and each of its files has the recorded size."""
    try:
        path = folder / MANIFEST
        if path.stat().st_size > MANIFEST_LIMIT_BYTES:
            return None
        fields: dict[str, Any] = json.loads(path.read_bytes())
        if fields["schema"] != MANIFEST_SCHEMA:
            return None
        for name, size in fields["files"].items():
            if os.path.basename(name) != name or (folder / name).stat().st_size != size:  # noqa: PTH119
                return None
        major, minor, patch = (int(number) for number in fields["rpc"])
        tools = [folder / name for name in TARGETS]
        if not all(os.access(tool, os.X_OK) for tool in tools):
            return None
        server, rpc_server, quantize, bench, fit_params = tools
        engine = Engine(
            server,
            rpc_server,
            quantize,
            bench,
            fit_params,
            version=str(fields["version"]),
            rpc_version=(major, minor, patch),
            backend=str(fields["backend"]),
            patched=True,
            origin="built",
        )
        return BuiltEngine(
            engine,
            source=str(fields["source"]),
            flags=tuple(map(str, fields["flags"])),
            kind=str(fields["kind"]),
            compiler=str(fields["compiler"]),
            asked=fields["asked"] is True,
            seconds=float(fields["seconds"]),
            built_at=float(fields["built_at"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def find_built(cache: Path, upstream: Upstream, backend: Backend, *, others: bool = False) -> BuiltEngine | None:
    """The newest engine made from exactly this source for exactly this backend and processor.

    With `others`, an engine for another backend of this processor also counts if somebody once asked for it by
    name: whoever chose the processor over a GPU is not sent into the same failing build again.
    """
    candidates = [built for built in built_engines(cache) if built.source == upstream.key]
    wanted = engine_flags(upstream, backend)
    for built in candidates:
        if built.flags == wanted:
            return built
    cpu = {flag for flag in backend.flags if flag.startswith(_CPU_OPTIONS)}
    for built in candidates:
        if others and built.asked and {flag for flag in built.flags if flag.startswith(_CPU_OPTIONS)} == cpu:
            return built
    return None


_CPU_OPTIONS = ("-DGGML_SSE", "-DGGML_AVX", "-DGGML_F16C", "-DGGML_FMA", "-DGGML_BMI", "-DGGML_CPU_ARM_ARCH")


def list_devices(engine: Engine) -> str:
    """What `llama-server --list-devices` prints. Blocks for the time of one short process.

    Raises OSError or subprocess.SubprocessError.
    """
    done = subprocess.run(
        [str(engine.server), "--list-devices"],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=LIST_DEVICES_TIMEOUT_S,
        check=True,
    )
    return done.stdout + done.stderr
