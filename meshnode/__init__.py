"""meshnode: a peer-to-peer node that pools machines to serve language models through llama.cpp.

Programs use `meshnode.Client` (docs/python.md). It is imported when it is asked for, so that `meshnode --version` stays
fast. Start reading at ARCHITECTURE.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshnode.client import Client

__version__ = "0.1.0"
__all__ = ["Client", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Client":
        from meshnode.client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
