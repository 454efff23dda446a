"""The pure functions of the page: numbers, times and foreign names as text, and what stays itself in a new status."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.engine

GB = 10**9
CASES = [
    ("bytes", [0], "0 B"),
    ("bytes", [999], "999 B"),
    ("bytes", [1000], "1.00 kB"),
    ("bytes", [999_999], "1.00 MB"),
    ("bytes", [5_584_128], "5.58 MB"),
    ("bytes", [25.3 * GB], "25.3 GB"),
    ("bytes", [None], "–"),
    ("bytes", ["7"], "–"),
    ("count", [1234567], "1,234,567"),
    ("seconds", [0], "0.0 s"),
    ("seconds", [0.04], "0.04 s"),
    ("seconds", [9.96], "10.0 s"),
    ("seconds", [59.6], "1 min"),
    ("seconds", [200], "3 min 20 s"),
    ("seconds", [3599.7], "1 h"),
    ("seconds", [7500], "2 h 5 min"),
    ("seconds", [273_600], "3 d 4 h"),
    ("milliseconds", [0.81], "0.8 ms"),
    ("milliseconds", [24.4], "24 ms"),
    ("milliseconds", [1250], "1.3 s"),
    ("rate", [0], "0"),
    ("rate", [3.42], "3.4"),
    ("rate", [1459.3], "1,459"),
    ("ago", [100, 101_000], "now"),
    ("ago", [100, 112_500], "12 s ago"),
    ("ago", [100, 3_700_000], "1 h ago"),
    ("ago", [0, 3_700_000], "–"),
    ("percent", [1, 3], "33 %"),
    ("percent", [999_999, 1_000_000], "99 %"),
    ("percent", [1, 1_000_000], "1 %"),
    ("percent", [3, 3], "100 %"),
    ("percent", [1, 0], "–"),
    ("short", ["007ec878f9ede6d6"], "007ec878f9"),
    ("short", [None], ""),
    ("clean", ["plain name"], "plain name"),
    ("clean", ["<b>&amp;"], "<b>&amp;"),
    ("clean", ["abc\u202egpj.exe"], "abc gpj.exe"),
    ("clean", ["\u2066a\u2069\u200f\ufeff b\u0000\u001b[31m\u0085"], "a b [31m"),
    ("clean", ["two\nlines\u2028three"], "two lines three"),
    ("clean", ["e" + "\u0301" * 50 + "x"], "e\u0301\u0301x"),
    ("clean", ["tag\U000e0041\U000e007fs"], "tag s"),
    ("clean", ["漢字 имя שם 🙂"], "漢字 имя שם 🙂"),
    ("clean", ["🙂" * 5, 3], "🙂🙂…"),
    ("clean", ["w" * 500], "w" * 199 + "…"),
    ("clean", [None], ""),
    ("clean", [12], "12"),
    ("sentence", ["no model is served"], "No model is served."),
    ("usd", [0], "$0.00"),
    ("usd", [12], "$0.000012"),
    ("usd", [500_000], "$0.50"),
    ("usd", [1_234_567], "$1.234567"),
    ("usd", [100_000_000], "$100.00"),
    ("usd", [10**15], "$1,000,000,000.00"),
    ("usd", [-5], "-$0.000005"),
    ("usd", [0.5], "–"),
    ("usd", [None], "–"),
    ("sentence", ["Done!"], "Done!"),
    ("sentence", [""], ""),
]
CALL = """async (cases) => {
  const format = await import("./format.js");
  return cases.map(([name, given]) => format[name](...given));
}"""
SHARE = """async ([old, fresh]) => {
  const { share } = await import("./store.js");
  const kept = share(old, structuredClone(fresh));
  return { kept, whole: kept === old, parts: Object.keys(fresh).filter((key) => kept[key] === old[key]) };
}"""


def test_what_people_read(open_console, demo_server) -> None:
    page = open_console(demo_server, "spending")
    found = page.evaluate(CALL, [[name, given] for name, given, _ in CASES])
    wrong = [
        (name, given, text, wanted) for (name, given, wanted), text in zip(CASES, found, strict=True) if text != wanted
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("old", "fresh", "whole", "parts"),
    [
        ({"a": {"b": [1, 2]}, "c": {}}, {"a": {"b": [1, 2]}, "c": {}}, True, ["a", "c"]),
        ({"a": {"b": [1, 2]}, "c": {}}, {"a": {"b": [1, 3]}, "c": {}}, False, ["c"]),
        ({"a": [{}, {"x": 1}]}, {"a": [{}]}, False, []),
        ({"a": []}, {"a": {}}, False, []),
        ({"a": None}, {"a": {"b": 1}}, False, []),
        ({"a": 1, "b": 2}, {"a": 1}, False, ["a"]),
    ],
)
def test_what_is_equal_stays_itself(
    open_console, demo_server, old: Any, fresh: Any, whole: bool, parts: list[str]
) -> None:
    page = open_console(demo_server, "spending")
    assert page.evaluate(SHARE, [old, fresh]) == {"kept": fresh, "whole": whole, "parts": parts}
