"""Every other key survives, in its place; what cannot be understood is not touched."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.agents.merging import SettingsNotMergeable, merged

OURS = json.dumps({"provider": {"meshnode": {"url": "new", "models": [{"id": "a", "size": 2}]}}}) + "\n"


def merge(text: str, content: str = OURS, kind: Any = "json") -> str:
    return merged(text, content, kind, name="FILE")


@pytest.mark.parametrize("text", ["", "\n", " \t\r\n", "\ufeff"])
@pytest.mark.parametrize("kind", ["json", "toml", "yaml", "text"])
def test_an_empty_file_gets_the_content(text: str, kind: str) -> None:
    assert merge(text, "content\n", kind) == "content\n"


def test_other_keys_stay_in_their_order() -> None:
    text = """\
{
    "z": 1,
    "provider": {
        "mine": {"é": "\\u00fc"},
        "meshnode": {"url": "old", "x": 0}
    },
    "a": null
}"""
    result = merge(text)
    value = json.loads(result)
    assert list(value) == ["z", "provider", "a"] and list(value["provider"]) == ["mine", "meshnode"]
    assert value["provider"]["mine"] == {"é": "ü"}
    assert value["provider"]["meshnode"] == {"url": "new", "x": 0, "models": [{"id": "a", "size": 2}]}
    assert result.startswith('{\n    "z"') and not result.endswith("\n")


@pytest.mark.parametrize("indent", [1, 2, 3, 8, "\t"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_indentation_and_end_are_kept(indent: int | str, end: str) -> None:
    text = json.dumps({"a": {"b": [1, 2]}}, indent=indent) + end
    result = merge(text)
    assert result.startswith(text[: text.index("[")])
    assert result[len(result.rstrip()) :] == end


def test_line_ends_and_byte_order_mark_are_kept() -> None:
    result = merge('\ufeff{\r\n  "a": 1\r\n}\r\n')
    assert result.startswith('\ufeff{\r\n  "a": 1,\r\n') and "\n" not in result.replace("\r\n", "")


def test_items_of_a_list_are_known_by_their_id() -> None:
    theirs = {"provider": {"meshnode": {"models": [{"id": "b"}, {"id": "a", "size": 1, "mine": True}, "odd"]}}}
    models = json.loads(merge(json.dumps(theirs)))["provider"]["meshnode"]["models"]
    assert models == [{"id": "b"}, {"id": "a", "size": 2, "mine": True}, "odd"]


def test_true_is_not_one() -> None:
    assert json.loads(merge('{"a": 1}', '{"a": true}')) == {"a": True}
    assert '"a": true' in merge('{"a": 1}', '{"a": true}')


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=6).filter(lambda key: key != "provider"), VALUES), st.sampled_from([None, 2]))
def test_nothing_is_lost_and_twice_is_once(theirs: dict[str, Any], indent: int | None) -> None:
    once = merge(json.dumps(theirs, indent=indent))
    assert json.loads(once) == {**theirs, **json.loads(OURS)}
    assert merge(once) == once
    once.encode()


def test_half_a_pair_stays_an_escape() -> None:
    result = merge('{"a": "\\ud800"}')
    assert json.loads(result)["a"] == "\ud800" and result.encode()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{\n  // mine\n  "a": 1\n}', "has comments"),
        ('{"a": 1 /* mine */}', "has comments"),
        ('{"a": 1,}', "is not JSON"),
        ('{"url": "http://x" ,}', "is not JSON"),
        ('{"a": 1, "a": 2}', "stands twice"),
        ("[1]", "holds no object"),
        ("nothing", "is not JSON"),
        ("[" * 100000, "is not JSON"),
        ('{"provider": 3}', "provider in FILE is no object"),
        ('{"provider": {"meshnode": []}}', "provider.meshnode in FILE is no object"),
    ],
)
def test_what_is_not_understood_is_refused_with_the_text_to_paste(text: str, why: str) -> None:
    with pytest.raises(SettingsNotMergeable) as refusal:
        merge(text)
    assert why in refusal.value.detail
    assert OURS.strip() in refusal.value.fix or "rename" in refusal.value.fix


TOML = """\
# my settings
model = "mine"      # keep

[model_providers.other]
name = 'other'  # single quotes

[model_providers.meshnode]
base_url = "old"
"""


def test_toml_keeps_comments_and_quotes() -> None:
    content = '[model_providers.meshnode]\nbase_url = "new"\nwire_api = "responses"\n'
    result = merge(TOML, content, "toml")
    assert result.startswith(TOML[: TOML.index("[model_providers.meshnode]")])
    assert tomllib.loads(result)["model_providers"]["meshnode"] == {"base_url": "new", "wire_api": "responses"}
    assert merge(result, content, "toml") == result


def test_toml_gets_a_table_it_did_not_have() -> None:
    result = merge("a = 1\n", "[analytics]\nenabled = false\n", "toml")
    assert result.startswith("a = 1\n") and tomllib.loads(result)["analytics"] == {"enabled": False}


@pytest.mark.parametrize("text", ["a = ", "a = 1\na = 2\n", "model_providers = 3\n"])
def test_toml_that_does_not_fit_is_refused(text: str) -> None:
    with pytest.raises(SettingsNotMergeable):
        merge(text, "[model_providers.meshnode]\nname = 'x'\n", "toml")


def test_yaml_is_written_when_new_and_refused_when_there() -> None:
    assert merge("a: 1\n", "a: 1\n", "yaml") == "a: 1\n"
    with pytest.raises(SettingsNotMergeable) as refusal:
        merge("b: 1\n", "a: 1\n", "yaml")
    assert "a: 1" in refusal.value.fix
