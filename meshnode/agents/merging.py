"""Puts what belongs to a node into the text of a settings file, and leaves everything else in it as it was.

Objects and tables are merged key by key, in the order they have. In a list of objects with an `id` or a `name`, ours
take the place of those called alike, the others stay; any other value is replaced. Merging twice changes nothing.

A file that does not parse is never touched. JSON with comments is not JSON: a rewrite would lose them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, MutableMapping
from typing import Any

from meshnode.agents.recipe import Format
from meshnode.errors import StateError

MOST_BYTES = 4 << 20
KEYS_OF_ITEMS = ("id", "name")
DEEPEST = 64
BYTE_ORDER_MARK = "\ufeff"
_COMMENT_OR_TEXT = re.compile(r'"(?:\\.|[^"\\])*"|(//|/\*)')


class SettingsNotMergeable(StateError):
    """The settings file of the program cannot be changed."""

    code = "settings-not-mergeable"


def merged(text: str, content: str, kind: Format, *, name: str) -> str:
    """`text` of the file called `name` with `content` in it; the very `text` when it has all of that already.

    Raises SettingsNotMergeable with what is wrong and where.
    """
    if not text.strip(" \t\r\n" + BYTE_ORDER_MARK):
        return content
    if kind == "json":
        return _merged_json(text, content, name)
    if kind == "toml":
        return _merged_toml(text, content, name)
    if text == content:
        return text
    raise SettingsNotMergeable(f"{name} exists, and {kind} is not merged", fix=_paste(name, content))


def _paste(name: str, content: str) -> str:
    return f"put this into {name} yourself:\n{content.rstrip()}"


# --- JSON -----------------------------------------------------------------------------------------------------


def _merged_json(text: str, content: str, name: str) -> str:
    mark = BYTE_ORDER_MARK if text.startswith(BYTE_ORDER_MARK) else ""
    try:
        value = json.loads(text.removeprefix(mark), object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as reason:
        if any(found[1] for found in _COMMENT_OR_TEXT.finditer(text)):
            raise SettingsNotMergeable(
                f"{name} has comments, which a rewrite would lose", fix=_paste(name, content)
            ) from None
        raise SettingsNotMergeable(
            f"{name} is not JSON ({reason})", fix=f"mend it, or {_paste(name, content)}"
        ) from None
    if not isinstance(value, dict):
        raise SettingsNotMergeable(f"{name} holds no object", fix=_paste(name, content))
    if not _merge(value, json.loads(content), name):
        return text
    dumped = json.dumps(value, indent=_indentation(text), ensure_ascii=False)
    if not dumped.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in dumped):
        # Half of a pair can stand in JSON as an escape, and nowhere in UTF-8.
        dumped = json.dumps(value, indent=_indentation(text))
    if "\r\n" in text:
        dumped = dumped.replace("\n", "\r\n")
    return mark + dumped + text[len(text.rstrip()) :]


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. Two values under one key would become one, so that is an error."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return made


def _indentation(text: str) -> str | int | None:
    """What the file indents with; None when it is all on one line."""
    found = re.search(r"^[ \t]+(?=\S)", text, re.MULTILINE)
    if found:
        return found[0]
    return 2 if "\n" in text.strip() else None


# --- TOML -----------------------------------------------------------------------------------------------------


def _merged_toml(text: str, content: str, name: str) -> str:
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(text)
        ours = tomlkit.parse(content).unwrap()
        if not _merge(document, ours, name):
            return text
        return tomlkit.dumps(document)
    except (TOMLKitError, ValueError, RecursionError) as reason:
        raise SettingsNotMergeable(
            f"{name} is not TOML ({reason})", fix=f"mend it, or {_paste(name, content)}"
        ) from None


# --- both -----------------------------------------------------------------------------------------------------


def _merge(
    theirs: MutableMapping[str, Any], ours: Mapping[str, Any], name: str, path: str = "", depth: int = 0
) -> bool:
    """Put `ours` into `theirs`; whether that changed anything."""
    changed = False
    for key, value in ours.items():
        where = f"{path}.{key}" if path else key
        known = theirs.get(key)
        if isinstance(value, Mapping) and key in theirs:
            if not isinstance(known, MutableMapping) or depth > DEEPEST:
                raise SettingsNotMergeable(
                    f"{where} in {name} is no object", fix=f"remove or rename {where}, then again"
                )
            changed |= _merge(known, value, name, where, depth + 1)
        elif isinstance(value, list) and isinstance(known, list) and (item := _key_of(value)):
            changed |= _merge_list(known, value, item, name, where, depth)
        elif key not in theirs or known != value or isinstance(known, bool) != isinstance(value, bool):
            theirs[key] = value
            changed = True
    return changed


def _key_of(items: list[Any]) -> str | None:
    """What tells objects of this list apart: a text under the same key in each."""
    for key in KEYS_OF_ITEMS:
        if items and all(isinstance(item, Mapping) and isinstance(item.get(key), str) for item in items):
            return key
    return None


def _merge_list(theirs: list[Any], ours: list[Any], key: str, name: str, path: str, depth: int) -> bool:
    changed = False
    for item in ours:
        known = next((one for one in theirs if isinstance(one, MutableMapping) and one.get(key) == item[key]), None)
        if known is None:
            theirs.append(item)
            changed = True
        else:
            changed |= _merge(known, item, name, f"{path}[{item[key]}]", depth + 1)
    return changed
