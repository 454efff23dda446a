"""What the control API can do, for programs: openapi.json beside this module, as OpenAPI 3.1 has it.

The document is written by hand; a test compares it with the calls of control.py and with the answers of a real node.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("openapi.json")


@cache
def document() -> bytes:
    """The document as it is served; read from the disk once."""
    return FILE.read_bytes()
