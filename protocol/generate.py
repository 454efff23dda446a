"""Write what follows from registry.toml and from the shapes of meshnode/wire: `python protocol/generate.py`.

    meshnode/wire/registry.py    the numbers as Python
    protocol/schema/*.json       JSON Schema of every message, statement and signed document
    protocol/vectors/*.json      valid and invalid input for every decoder (cases_*.py)

`--check` writes nothing and fails when a file is not what it would write.
"""

from __future__ import annotations

import importlib
import json
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
    "messages": ("MessageId", "The messages of the streams that carry frames."),
    "statements": ("StatementKind", "What a signed statement says."),
    "rpc": ("RpcKind", "What an `rpc` stream is for."),
    "lease": ("LeaseCode", "Why a lease is refused or ends."),
    "bulk": ("BulkKind", "What a `bulk` stream asks for."),
    "relay": ("RelayCode", "Why a node does not carry a flow, or carries it no more."),
    "pay": ("PayCode", "Why a payment, or what is asked about one, is refused."),
    "nat": ("Nat", "What a node knows of the address translation before it."),
    "close": ("Close", "Application close codes of a connection (RFC 9000, 20.2)."),
    "reset": ("Reset", "Application codes with which one stream is reset."),
}
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def registry_module(registry: dict[str, Any]) -> str:
    """The text of meshnode/wire/registry.py."""
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
    for section in ("lease", "relay", "pay", "close", "reset"):
        parts.append(f"{section.upper()}_TEXTS: Final[dict[int, str]] = {{\n")
        parts += [f'    {_number(section, value)}: "{value["text"]}",\n' for value in registry[section].values()]
        parts.append("}\n")
    parts.append("\n")
    parts += [f"LIMIT_{name.upper()}: Final = {value}\n" for name, value in registry["limits"].items()]
    return "".join(parts)


def _no_roles(key: str) -> str:
    return f"    StreamType.{key.upper()}: frozenset(),\n"


def _number(section: str, value: Any) -> str:
    if section == "streams":
        return str(value["id"])
    if section in ("lease", "relay", "pay"):
        return str(value["code"])
    return f"0x{value['code']:X}" if section in ("close", "reset") else str(value)


def schemas() -> dict[str, dict[str, Any]]:
    """File name -> JSON Schema of every shape that travels by itself."""
    from meshnode.wire import certificates, dht, invites, messages, owners, quotes, registry, statements
    from meshnode.wire.schema import describe

    numbered = {registry.MessageId(number): shape for number, shape in messages.MESSAGES.items()}
    said = {registry.StatementKind(kind): shape for kind, shape in statements.BODIES.items()}
    found = {f"message-{number.name.lower()}": (shape, {"id": int(number)}) for number, shape in numbered.items()}
    found |= {f"statement-{kind.name.lower()}": (shape, {"kind": int(kind)}) for kind, shape in said.items()}
    opened = {registry.StreamType(kind): shape for kind, shape in messages.OPENINGS.items()}
    found |= {f"stream-{kind.name.lower()}": (shape, {"stream": int(kind)}) for kind, shape in opened.items()}
    found["statement"] = (statements.Payload, {"purpose": statements.PURPOSE})
    found["certificate"] = (certificates.Certificate, {"purpose": certificates.PURPOSE})
    found["invite"] = (invites.Invite, {"purpose": invites.PURPOSE})
    found["provider"] = (dht.Provider, {"purpose": dht.PURPOSE})
    found["owner"] = (owners.OwnerCertificate, {"purpose": owners.PURPOSE})
    found["quote"] = (quotes.Quote, {"purpose": quotes.PURPOSE})
    files = {}
    for name, (shape, extra) in sorted(found.items()):
        about = " ".join((shape.__doc__ or "").split())
        files[f"{name}.json"] = {"$schema": DIALECT, "description": about, **extra, **describe(shape)}
    return files


def vectors() -> dict[str, str]:
    """File name -> text of every file of vectors: one case a line, so that a change can be read."""
    files: dict[str, dict[str, Any]] = {}
    for module in (
        "cases_values",
        "cases_messages",
        "cases_streams",
        "cases_manifests",
        "cases_signed",
        "cases_owners",
        "cases_providers",
        "cases_pairing",
        "cases_tunnels",
        "cases_listings",
        "cases_payments",
        "cases_receipts",
        "cases_vouchers",
    ):
        files |= importlib.import_module(module).files()
    return {name: _case_by_case(content) for name, content in files.items()}


def _case_by_case(content: dict[str, Any]) -> str:
    lines = []
    for key, value in content.items():
        if isinstance(value, list):
            cases = ",\n".join("    " + json.dumps(case) for case in value)
            lines.append(f"  {json.dumps(key)}: [\n{cases}\n  ]")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> None:
    """Write or check every file."""
    check = "--check" in sys.argv[1:]
    _settle({MODULE: registry_module(tomllib.loads((HERE / "registry.toml").read_text("utf-8")))}, check)
    # From here on the new numbers count: the shapes import them.
    sys.path.insert(0, str(HERE))
    described = {name: json.dumps(schema, indent=2) + "\n" for name, schema in schemas().items()}
    for folder, texts in (("schema", described), ("vectors", vectors())):
        _settle({HERE / folder / name: text for name, text in texts.items()}, check)
        gone = {file for file in (HERE / folder).glob("*.json") if file.name not in texts}
        if gone and check:
            sys.exit(f"protocol/{folder} has {sorted(file.name for file in gone)}, which nothing generates")
        for file in gone:
            file.unlink()


def _settle(files: dict[Path, str], check: bool) -> None:
    for file, text in files.items():
        current = file.read_text("utf-8") if file.is_file() else None
        if current == text:
            continue
        if check:
            sys.exit(f"{file.name} is not what it follows from: run python protocol/generate.py")
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
