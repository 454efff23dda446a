"""The errors of one module of meshnode.errors, as a table."""

from __future__ import annotations

import inspect
from types import ModuleType

from meshnode.errors import MeshnodeError


def table_of(module: ModuleType) -> dict[str, tuple[str, int, int]]:
    """Name -> (code, HTTP status, exit code) of what the module defines."""
    kinds = [kind for kind in vars(module).values() if inspect.isclass(kind) and kind.__module__ == module.__name__]
    assert all(issubclass(kind, MeshnodeError) for kind in kinds)
    return {kind.__name__: (kind.code, kind.http_status, kind.exit_code) for kind in kinds}
