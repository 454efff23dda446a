"""Write meshnode/wire/registry.py from registry.toml: `python protocol/generate.py`.

`--check` writes nothing and fails when the module is not what it would write.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MODULE = HERE.parent / "meshnode" / "wire" / "registry.py"
HEAD = '''"""The numbers that two nodes must agree on. Generated from protocol/registry.toml; do not edit."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

'''
ENUMS = {
    "streams": ("StreamType", "The first byte of a stream."),
    "roles": ("Role", "What a member may be."),
    "messages": ("MessageId", "The messages of the control stream."),
    "statements": ("StatementKind", "What a signed statement says."),
    "close": ("Close", "Application close codes of a connection (RFC 9000, 20.2)."),
    "reset": ("Reset", "Application codes with which one stream is reset."),
}


def render(registry: dict[str, Any]) -> str:
    """The text of the module."""
    parts = [HEAD]
    parts += [f"{name.upper()}: Final = {value!r}\n".replace("'", '"') for name, value in registry["protocol"].items()]
    parts += [f"PORT_{name.upper()}: Final = {value}\n" for name, value in registry["ports"].items()]
    for section, (name, text) in ENUMS.items():
        parts.append(f'\n\nclass {name}(IntEnum):\n    """{text}"""\n\n')
        parts += [f"    {key.upper()} = {_number(section, value)}\n" for key, value in registry[section].items()]
    parts.append("\n\nMAY_OPEN: Final[dict[StreamType, frozenset[Role]]] = {\n")
    for key, value in registry["streams"].items():
        roles = ", ".join(f"Role.{role.upper()}" for role in value["roles"])
        parts.append(f"    StreamType.{key.upper()}: frozenset({{{roles}}}),\n" if roles else _no_roles(key))
    parts.append('}\n"""Which roles may open a stream of each type."""\n')
    early = [f"StreamType.{key.upper()}" for key, value in registry["streams"].items() if value.get("before_admission")]
    parts.append(f"BEFORE_ADMISSION: Final = frozenset({{{', '.join(early)}}})\n\n")
    for section in ("close", "reset"):
        parts.append(f"{section.upper()}_TEXTS: Final[dict[int, str]] = {{\n")
        parts += [f'    0x{value["code"]:X}: "{value["text"]}",\n' for value in registry[section].values()]
        parts.append("}\n")
    parts.append("\n")
    parts += [f"LIMIT_{name.upper()}: Final = {value}\n" for name, value in registry["limits"].items()]
    return "".join(parts)


def _no_roles(key: str) -> str:
    return f"    StreamType.{key.upper()}: frozenset(),\n"


def _number(section: str, value: Any) -> str:
    if section == "streams":
        return str(value["id"])
    return f"0x{value['code']:X}" if section in ("close", "reset") else str(value)


def main() -> None:
    """Write or check the module."""
    text = render(tomllib.loads((HERE / "registry.toml").read_text("utf-8")))
    if "--check" in sys.argv[1:]:
        if MODULE.read_text("utf-8") != text:
            sys.exit(f"{MODULE.name} is not what registry.toml says: run python protocol/generate.py")
        return
    MODULE.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
