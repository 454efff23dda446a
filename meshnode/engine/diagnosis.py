"""From the last lines of a llama-server that did not come up to the one sentence the user reads.

The lines are those of the pinned llama.cpp (ggml/src/gguf.cpp, src/llama-model-loader.cpp, tools/server). What is
not recognised stays a crash, told with the engine's own last error line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from meshnode.engine import guard
from meshnode.engine.process import Exit
from meshnode.errors import (
    EngineCrashed,
    EngineIncompatible,
    MeshnodeError,
    ModelDoesNotFit,
    ModelFileInvalid,
    WorkerLost,
)

# "0.00.004.939 E srv    load_model: text" and "0.00.004.939 E llama_model_load: text"
_PREFIX = re.compile(r"^\d+\.\d\d\.\d{3}\.\d{3} [A-Z] (?:\w+ +)?[\w()]+: ")
_ERROR = re.compile(r"^\d+\.\d\d\.\d{3}\.\d{3} E ")
_QUOTING = re.compile(
    r"(got (?:another )?exception|failed to apply template|unparsed .{0,40} output|string not as expected"
    r"|Tool call mismatch|Responses tool type|content part type|sampler by (?:name|char))[: ].*"
    r"|(what\(\):[^'\"]*)['\"].*"
)
_TIMED = re.compile(r"\d+\.\d\d\.\d{3}\.\d{3} [A-Z] ")
_LAST_WORDS = re.compile(
    r"\S+:\d+: (?:GGML_|fatal error|Remote RPC|Failed to connect|RPC )"
    r"|GGML_|ggml_|llama_|CUDA |ROCm |HIP |terminate called|  what\(\):"
)
_ADDRESS_TAKEN = "couldn't bind HTTP server socket"

_DAMAGED = (
    (r"tensor '([^']{1,100})' data is not within the file bounds", "it is cut short: tensor {0} lies beyond its end"),
    (r"invalid magic characters", "it is not a GGUF model"),
    (r"GGUF file is version (\d{1,10}) but", "its GGUF version {0} is newer than this engine reads"),
    (r"failed to read (?:magic|header|key|tensor)", "it is empty, cut short or damaged"),
    (r"failed to open GGUF file .*\((.{1,100})\)$", "it cannot be opened ({0})"),
    (r"invalid split file|split(?:s)? (?:count|number|mismatch)|missing split", "a part of the split model is missing"),
)
_UNKNOWN_ARCHITECTURE = re.compile(r"unknown model architecture: '([^']{0,60})'")
_LOADING = re.compile(r"error loading model: (.{1,200})")
_MEMORY = re.compile(
    r"out of memory|insufficient memory|unable to allocate|failed to allocate|OutOfDeviceMemory|OutOfHostMemory"
    r"|bad_alloc|cudaMalloc failed|failed to create context|failed to create_context|Cannot allocate memory",
    re.IGNORECASE,
)
_OTHER_FILE = re.compile(r"failed to load (draft|multimodal) model, '(.{1,300})'")
_BAD_FLAG = re.compile(r"error: invalid argument: (\S{1,60})|error while handling argument \"(\S{1,60})\": (.{1,100})")
_LIBRARY = re.compile(r"error while loading shared libraries: ([^:]{1,100})|Library not loaded: (.{1,100})")
# ggml-rpc.cpp of the client: it ends the process where a connection does.
_WORKER_GONE = re.compile(r"Remote RPC server crashed|Failed to connect to \S+:\d+|RPC handshake failed")
_PROCESSOR = re.compile(r"CPU is too old|unsupported.*instruction", re.IGNORECASE)


def redact(line: str) -> str:
    """What may be kept of a line that llama-server writes while it answers requests; "" for nothing.

    It quotes bodies, grammars and answers that it could not parse, over several lines; only the first of those
    carries a time. Lines without one are kept when they are a crash's last words.
    """
    if _TIMED.match(line) or _LAST_WORDS.match(line):
        return _QUOTING.sub(r"\1\2", line)
    return ""


def address_was_taken(tail: Sequence[str]) -> bool:
    """Whether llama-server left because something else listens on its address: worth another try elsewhere."""
    return any(_ADDRESS_TAKEN in line for line in tail[-20:])


def last_error(tail: Sequence[str]) -> str:
    """The first error line among the last lines, without time and place; "" if none of them is an error."""
    errors = [line for line in tail[-40:] if _ERROR.match(line) or "GGML_ASSERT" in line or "error" in line.lower()]
    return _PREFIX.sub("", errors[0])[:300] if errors else ""


def is_permanent(error: MeshnodeError) -> bool:
    """Whether another start of the same command would end the same way. Memory may be free again; a file stays cut."""
    return isinstance(error, ModelFileInvalid | EngineIncompatible)


def worker_went_away(tail: Sequence[str], end: Exit) -> bool:
    """Whether llama-server ended because an rpc-server that it uses, or the tunnel to it, was no longer there."""
    return not end.asked and end.code != 0 and any(_WORKER_GONE.search(line) for line in tail[-20:])


def explain_load_failure(tail: Sequence[str], end: Exit, model: Path) -> MeshnodeError:
    """The error for a llama-server that ended before it was ready; see `is_permanent`."""
    if worker_went_away(tail, end):
        return WorkerLost(f"the worker went away while loading {model.name}")
    text = "\n".join(tail[-60:])
    other = _OTHER_FILE.search(text)
    file = f"the {other[1]} model {other[2]}" if other else str(model)
    for pattern, sentence in _DAMAGED:
        if found := re.search(pattern, text, re.MULTILINE):
            return ModelFileInvalid(f"{file}: {sentence.format(*found.groups())}")
    if found := _UNKNOWN_ARCHITECTURE.search(text):
        fix = "choose another model, or update meshnode for a newer engine"
        return ModelFileInvalid(f"{file}: this engine does not know its architecture '{found[1]}'", fix=fix)
    if _MEMORY.search(text):
        fix = "use a smaller context (--ctx-size), a smaller quantization, or free some memory"
        return ModelDoesNotFit(f"{file}: memory ran out while loading ({last_error(tail)})", fix=fix)
    if end.signal == "SIGKILL" and not end.asked:
        fix = "use a smaller model or context (--ctx-size), or free some memory"
        return ModelDoesNotFit(f"{file}: the system ended the engine while loading; memory ran out", fix=fix)
    if found := _BAD_FLAG.search(text):
        reason = f"it does not accept {found[1]}" if found[1] else f"it does not accept {found[2]}: {found[3]}"
        return EngineIncompatible(reason)
    if found := _LIBRARY.search(text):
        fix = "build the engine again: meshnode engine clean, then meshnode engine build"
        return EngineIncompatible(f"the library {found[1] or found[2]} is missing", fix=fix)
    if end.signal == "SIGILL" or _PROCESSOR.search(text):
        fix = "build the engine on this machine: meshnode engine clean, then meshnode engine build"
        return EngineIncompatible("it was built for another processor", fix=fix)
    if found := _LOADING.search(text):
        return ModelFileInvalid(f"{file}: {found[1]}")
    if end.code == guard.NOT_RUN:
        return EngineIncompatible(tail[-1][:300] if tail else end.words)
    words = last_error(tail) or "".join(tail[-1:])[:300]
    return EngineCrashed(f"{end.words} while loading {model.name}" + (f": {words}" if words else ""))
