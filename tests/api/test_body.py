import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.api.body import LARGE_BODY_BYTES, JsonObject, parse_object
from meshnode.errors import BadRequest

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(TEXT, VALUES, max_size=5)
SPACE = st.text(" \t\r\n", max_size=3)


@st.composite
def written(draw: Any) -> tuple[dict[str, Any], str]:
    """An object and one of the many ways to write it."""
    value = draw(OBJECTS)
    space = [draw(SPACE) for _ in range(4)]
    indent, ascii_only = draw(st.sampled_from([None, 0, 2])), draw(st.booleans())
    items = (
        f"{space[1]}{json.dumps(key, ensure_ascii=ascii_only)}{space[2]}:{space[3]}"
        f"{json.dumps(item, ensure_ascii=ascii_only, indent=indent)}{space[1]}"
        for key, item in value.items()
    )
    return value, f"{space[0]}{{{','.join(items) or space[1]}}}{space[3]}"


@given(written())
def test_parse_agrees_with_json_loads(case: tuple[dict[str, Any], str]) -> None:
    value, text = case
    found = JsonObject.parse(text.encode())
    assert found.members == json.loads(text) == value
    assert found.replaced() == text.rstrip(" \t\r\n").encode()


@given(written(), OBJECTS)
def test_replaced_changes_exactly_the_named_members(case: tuple[dict[str, Any], str], changes: dict[str, Any]) -> None:
    value, text = case
    raw = JsonObject.parse(text.encode()).replaced(**changes)
    again = JsonObject.parse(raw)
    assert again.members == {**value, **changes}
    assert list(again.members) == [*value, *(name for name in changes if name not in value)]
    # What was not named is there in the very bytes in which it came.
    before, after = JsonObject.parse(text.encode()), again
    for name, (start, end) in before._spans.items():
        if name not in changes:
            first, last = after._spans[name]
            assert after.text[first:last] == before.text[start:end]


@given(st.text(max_size=30) | st.binary(max_size=30) | OBJECTS.map(json.dumps).map(lambda text: text[:-1]))
def test_whatever_comes_is_an_object_or_a_bad_request(raw: str | bytes) -> None:
    data = raw if isinstance(raw, bytes) else raw.encode("utf-8", "surrogatepass")
    try:
        found = JsonObject.parse(data)
    except BadRequest:
        with pytest.raises((ValueError, AssertionError)):
            assert isinstance(json.loads(data.decode("utf-8")), dict)
    else:
        assert found.members == json.loads(data)


@pytest.mark.parametrize(
    ("raw", "part"),
    [
        (b'{"a":1,"a":1}', "'a' appears twice"),
        (b'{"a":1,"\\u0061":1}', "'a' appears twice"),
        (b'{"a":[1,NaN]}', "NaN is not JSON"),
        (b'{"a":Infinity}', "Infinity is not JSON"),
        (b'\xef\xbb\xbf{"a":1}', "expected an object at character 0"),
        (b'{"a":"\xc3"}', "not UTF-8 at byte 6"),
        (b'{"a":01}', "expected ',' or '}'"),
        (b'{"a":1,}', "expected a member name"),
        (b"{'a':1}", "expected a member name"),
        (b'{"a" 1}', "expected ':'"),
        (b'{"a":[1 2]}', "expected ',' or ']'"),
        (b'{"a":[1,', "Expecting value"),
        (b'{"a":', "Expecting value at character 5"),
        (b'{"a":"\n"}', "control character"),
        (b'{"a":1}x', "more text after the object"),
        (b'{"a":' + b"9" * 5000 + b"}", "too many digits"),
    ],
)
def test_faults_are_named_with_their_place(raw: bytes, part: str) -> None:
    with pytest.raises(BadRequest, match=part.replace("[", r"\[")):
        JsonObject.parse(raw)


def test_names_twice_further_down_are_left_to_the_engine() -> None:
    assert JsonObject.parse(b'{"a":{"b":1,"b":2}}').members == {"a": {"b": 2}}


@pytest.mark.anyio
async def test_a_large_body_is_parsed_in_a_thread_with_the_same_result() -> None:
    value = {"model": "demo", "input": ["é" * 100] * 2000, "deep": [[1, [2]], []]}
    raw = json.dumps(value).encode()
    assert len(raw) > LARGE_BODY_BYTES
    assert (await parse_object(raw)).members == value
    with pytest.raises(BadRequest, match="too deeply"):
        await parse_object(b'{"a":' + b"[" * 200_000)
