"""Compares JSON values with the schemas of a document: as much of JSON Schema 2020-12 as openapi.json uses.

Stricter than the standard in one place: a member that `properties` does not list is a fault unless
`additionalProperties` lets it in, so that what a node shows is documented.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

KNOWN = {"$ref", "additionalProperties", "anyOf", "const", "enum", "items", "properties", "required", "type"}
BOUNDS = {"default", "description", "examples", "maximum", "maxLength", "minimum", "minLength", "pattern"}
"""For the reader: the tests of the calls hold them."""
KINDS = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "integer": int,
    "number": int | float,
}


def is_kind(value: object, kind: str) -> bool:
    return isinstance(value, KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool))


def faults(value: Any, schema: Mapping[str, Any], document: Mapping[str, Any], at: str = "$") -> Iterator[str]:
    """What of the value is not as the schema says, each with its place."""
    assert not set(schema) - KNOWN - BOUNDS, f"{at}: unknown keywords in {schema}"
    if "$ref" in schema:
        yield from faults(value, resolved(schema, document), document, at)
        return
    if "anyOf" in schema:
        tried = [list(faults(value, option, document, at)) for option in schema["anyOf"]]
        if all(tried):
            yield from min(tried, key=lambda found: (found[0].startswith(f"{at}:"), len(found)))
        return
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(is_kind(value, kind) for kind in kinds):
        yield f"{at}: {value!r:.80} is no {' or '.join(kinds)}"
        return
    if "const" in schema and value != schema["const"]:
        yield f"{at}: {value!r:.80} is not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: {value!r:.80} is none of {schema['enum']}"
    if isinstance(value, dict):
        yield from _members(value, schema, document, at)
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from faults(item, schema.get("items", {}), document, f"{at}[{number}]")


def _members(
    value: Mapping[str, Any], schema: Mapping[str, Any], document: Mapping[str, Any], at: str
) -> Iterator[str]:
    known = schema.get("properties", {})
    others = schema.get("additionalProperties", not known)
    yield from (f"{at}: {name} is missing" for name in schema.get("required", ()) if name not in value)
    for name, item in value.items():
        if name in known:
            yield from faults(item, known[name], document, f"{at}.{name}")
        elif isinstance(others, dict):
            yield from faults(item, others, document, f"{at}.{name}")
        elif not others:
            yield f"{at}: {name} is not documented"


def resolved(value: Any, document: Mapping[str, Any]) -> Any:
    """What a reference means; anything else is itself."""
    while isinstance(value, dict) and "$ref" in value:
        found: Any = document
        for part in value["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        value = found
    return value
