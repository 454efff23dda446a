"""Vectors of the lowest layer: values, texts, addresses, frames, stream headers.

Bytes are hex. A value is written so that JSON keeps it: an integer, a text, true, false and null as they are; an
integer beyond 2^53 as {"int": "decimal"}; bytes as {"hex": "..."}; an array as an array; a map as
{"map": [[key, value], ...]}.
"""

from __future__ import annotations

from typing import Any

import msgpack

from meshnode.wire.registry import LIMIT_FRAME_BYTES, LIMIT_STREAM_HEADER_BYTES, StreamType

SAFE = 1 << 53
CODE = "protocol_error"


def plain(value: Any) -> Any:
    """A decoded value as JSON keeps it."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, dict):
        return {"map": [[key, plain(inner)] for key, inner in value.items()]}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= SAFE:
        return {"int": str(value)}
    return value


def packed(value: Any) -> bytes:
    """Shortest forms and keys in order, but nothing refused: the bytes of invalid cases."""

    def ordered(inner: Any) -> Any:
        if isinstance(inner, dict):
            return {key: ordered(inner[key]) for key in sorted(inner)}
        return [ordered(item) for item in inner] if isinstance(inner, list) else inner

    found: bytes = msgpack.packb(ordered(value))
    return found


def files() -> dict[str, dict[str, Any]]:
    """The files of this layer."""
    return {
        "values.json": {
            "about": "values in canonical form: 02-framing.md",
            "valid": _values(),
            "invalid": _no_values(),
        },
        "texts.json": {
            "about": "texts of 1 to 8 characters as members of messages: 02-framing.md",
            "valid": [{"text": text} for text in _TEXTS],
            "invalid": [{"comment": comment, "text": text, "code": CODE} for comment, text in _HIDDEN],
        },
        "addresses.json": {
            "about": "packed addresses: 02-framing.md",
            "valid": [{"hex": packed, "text": text} for packed, text in _ADDRESSES],
            "invalid": [{"comment": comment, "hex": packed, "code": CODE} for comment, packed in _NO_ADDRESSES],
        },
        "frames.json": {
            "about": "what a control stream delivered, its complete frames and what is left: 02-framing.md",
            "valid": _frames(),
            "invalid": _no_frames(),
        },
        "stream-headers.json": {
            "about": "the first five bytes of a stream: 02-framing.md",
            "valid": [{"hex": text, "type": kind, "header_bytes": size} for text, kind, size in _HEADERS],
            "invalid": [{"comment": comment, "hex": text, "code": CODE} for comment, text in _NO_HEADERS],
        },
    }


def _values() -> list[dict[str, Any]]:
    deepest: Any = 0
    nested = "00"
    for _ in range(8):
        deepest, nested = [deepest], "91" + nested
    cases: list[tuple[str, str, Any]] = [
        ("nil", "c0", None),
        ("false", "c2", False),
        ("true", "c3", True),
        ("zero", "00", 0),
        ("the greatest integer of one byte", "7f", 127),
        ("the least unsigned integer of two bytes", "cc80", 128),
        ("255", "ccff", 255),
        ("256", "cd0100", 256),
        ("65535", "cdffff", 65535),
        ("65536", "ce00010000", 65536),
        ("2^32 - 1", "ceffffffff", (1 << 32) - 1),
        ("2^32", "cf0000000100000000", 1 << 32),
        ("2^53 + 1, which no double holds", "cf0020000000000001", SAFE + 1),
        ("the greatest integer, 2^64 - 1", "cfffffffffffffffff", (1 << 64) - 1),
        ("-1", "ff", -1),
        ("-32, the least integer of one byte", "e0", -32),
        ("-33", "d0df", -33),
        ("-128", "d080", -128),
        ("-129", "d1ff7f", -129),
        ("-32768", "d18000", -32768),
        ("-32769", "d2ffff7fff", -32769),
        ("-2^31", "d280000000", -(1 << 31)),
        ("-2^31 - 1", "d3ffffffff7fffffff", -(1 << 31) - 1),
        ("the least integer, -2^63", "d38000000000000000", -(1 << 63)),
        ("no bytes", "c400", b""),
        ("three bytes", "c403000102", b"\0\1\2"),
        ("256 bytes", "c50100" + "ab" * 256, b"\xab" * 256),
        ("an empty text", "a0", ""),
        ("a text", "a3616263", "abc"),
        ("a text of 31 bytes", "bf" + "61" * 31, "a" * 31),
        ("a text of 32 bytes", "d920" + "61" * 32, "a" * 32),
        ("a text of 256 bytes", "da0100" + "61" * 256, "a" * 256),
        ("a text of two, three and four bytes a character", "a9c3bce282acf09f9980", "\u00fc\u20ac\U0001f640"),
        ("a text that begins with U+FEFF: values may, members may not", "a4efbbbf61", "\ufeffa"),
        ("an empty array", "90", []),
        ("an array of unlike things", "95c001a16190c401ff", [None, 1, "a", [], b"\xff"]),
        ("an array of 15", "9f" + "00" * 15, [0] * 15),
        ("an array of 16", "dc0010" + "00" * 16, [0] * 16),
        ("an array of 4096, the greatest", "dc1000" + "c0" * 4096, [None] * 4096),
        ("an empty map", "80", {}),
        ("a map", "8200010aa178", {0: 1, 10: "x"}),
        ("the greatest key", "81cdffffc0", {65535: None}),
        ("a map of 16", "de0010" + "".join(f"{key:02x}00" for key in range(16)), dict.fromkeys(range(16), 0)),
        (
            "a map of 64, the greatest",
            "de0040" + "".join(f"{key:02x}00" for key in range(64)),
            dict.fromkeys(range(64), 0),
        ),
        ("a map in an array in a map", "810091810190", {0: [{1: []}]}),
        ("eight arrays deep", nested, deepest),
    ]
    return [{"comment": comment, "hex": text, "value": plain(value)} for comment, text, value in cases]


def _no_values() -> list[dict[str, Any]]:
    cases = [
        ("nothing", ""),
        ("a byte too many", "c0c0"),
        ("the unused byte", "c1"),
        ("float 32", "ca3f800000"),
        ("float 64", "cb3ff0000000000000"),
        ("a float inside a map", "8101cb3ff0000000000000"),
        ("not a number", "cb7ff8000000000000"),
        ("fixext 1", "d40100"),
        ("fixext 4, type -1: a timestamp", "d6ff00000000"),
        ("ext 8", "c7020100ff"),
        ("ext 8 of no bytes", "c70005"),
        ("1 in two bytes", "cc01"),
        ("128 in three bytes", "cd0080"),
        ("1 in nine bytes", "cf0000000000000001"),
        ("1 as a signed integer", "d001"),
        ("128 as a signed integer of two bytes", "d10080"),
        ("-1 in two bytes", "d0ff"),
        ("-1 in nine bytes", "d3ffffffffffffffff"),
        ("-32 in two bytes", "d0e0"),
        ("a short text with the header of a longer one", "d90161"),
        ("a short text with the longest header", "db0000000161"),
        ("bytes with the header of longer ones", "c5000161"),
        ("a short array with the header of a longer one", "dc000100"),
        ("a short map with the header of a longer one", "de00010000"),
        ("a text cut short", "a261"),
        ("an integer cut short", "cd01"),
        ("bytes cut short", "c40300"),
        ("an array cut short", "9200"),
        ("a map without its last value", "8100"),
        ("2^32 - 1 bytes, none there", "c6ffffffff"),
        ("2^32 - 1 items, none there", "ddffffffff"),
        ("2^32 - 1 members, none there", "dfffffffff"),
        ("an array of 4097", "dc1001" + "c0" * 4097),
        ("a map of 65", "de0041" + "".join(f"{key:02x}00" for key in range(65))),
        ("keys in descending order", "8201000000"),
        ("a key twice", "8200000001"),
        ("a key twice, the second in a longer form", "820000cc0001"),
        ("keys in descending order, further in", "91820a000500"),
        ("a negative key", "81ff00"),
        ("the key 65536", "81ce0001000000"),
        ("a text as key", "81a16100"),
        ("bytes as key", "81c4016100"),
        ("nil as key", "81c000"),
        ("true as key, beside 0", "820000c300"),
        ("a float as key", "81ca3f80000000"),
        ("an array as key", "819000"),
        ("a map as key", "818000"),
        ("invalid UTF-8: a lone continuation", "a180"),
        ("invalid UTF-8: cut short", "a2e282"),
        ("invalid UTF-8: an overlong slash", "a2c0af"),
        ("invalid UTF-8: a surrogate", "a3eda080"),
        ("invalid UTF-8: above U+10FFFF", "a4f4908080"),
        ("invalid UTF-8: a byte that never occurs", "a1ff"),
        ("nine arrays deep", "91" * 9 + "00"),
        ("nine deep, the last an empty map", "91" * 8 + "80"),
        ("a thousand arrays deep", "91" * 1000 + "00"),
        ("a thousand maps deep", "8100" * 1000 + "00"),
        ("at every depth room for 4096 items", "dc1000" * 1500),
    ]
    return [{"comment": comment, "hex": text, "code": CODE} for comment, text in cases]


_TEXTS = (
    "a",
    "a b",
    "~!\"'<>&\\",
    "\u00fcber",
    "\u65e5\u672c\u8a9e",
    "\u05e9\u05dc\u05d5\u05dd",
    "\U0001f600",
    "e\u0301",
    "\u2764\ufe0f",
    "\ufffd",
    "\U000323b0",
    "abcdefgh",
    "\U0001f600" * 8,
)
_HIDDEN = (
    ("nothing", ""),
    ("nine characters", "abcdefghi"),
    ("NUL", "a\u0000b"),
    ("a tab", "a\tb"),
    ("a new line", "a\nb"),
    ("an escape, as of a terminal", "\u001b[2J"),
    ("delete", "a\u007f"),
    ("a control of the second set", "\u0085"),
    ("a space that does not break", "a\u00a0b"),
    ("a soft hyphen", "a\u00adb"),
    ("a grapheme joiner", "a\u034fb"),
    ("an Arabic letter mark", "\u061c"),
    ("a Hangul filler", "\u115f"),
    ("an Ogham space", "\u1680"),
    ("a Mongolian vowel separator", "\u180e"),
    ("a thin space", "\u2009"),
    ("a space of no width", "a\u200bb"),
    ("a joiner of no width", "a\u200db"),
    ("a mark from right to left", "\u200f"),
    ("a line separator", "a\u2028b"),
    ("text turned from right to left", "a\u202eb"),
    ("a word joiner", "a\u2060b"),
    ("an isolate from right to left", "\u2067a"),
    ("an empty Braille pattern", "\u2800"),
    ("an ideographic space", "\u3000"),
    ("a blank letter", "\u3164"),
    ("private use", "\ue000"),
    ("a byte order mark", "\ufeffa"),
    ("a half-wide blank letter", "\uffa0"),
    ("an annotation", "\ufff9"),
    ("no character", "\uffff"),
    ("no character, in an Arabic block", "\ufdd0"),
    ("a tag", "a\U000e0061"),
    ("private use, far out", "\U00100000"),
)

_ADDRESSES = (
    ("c0000201" + "2479", "192.0.2.1:9337"),
    ("7f000001" + "0001", "127.0.0.1:1"),
    ("0a000001" + "ffff", "10.0.0.1:65535"),
    ("a9fe0001" + "2479", "169.254.0.1:9337"),
    ("fffffffe" + "2479", "255.255.255.254:9337"),
    ("20010db8" + "00" * 11 + "01" + "2479", "[2001:db8::1]:9337"),
    ("00" * 15 + "01" + "2479", "[::1]:9337"),
    ("fe80" + "00" * 13 + "01" + "2479", "[fe80::1]:9337"),
    ("20010db8000100000001000100010001" + "2479", "[2001:db8:1:0:1:1:1:1]:9337"),
)
_NO_ADDRESSES = (
    ("nothing", ""),
    ("no port", "c0000201"),
    ("seven bytes", "c000020100" + "2479"),
    ("17 bytes", "20010db8" + "00" * 11 + "2479"),
    ("19 bytes", "20010db8" + "00" * 13 + "2479"),
    ("port 0", "c0000201" + "0000"),
    ("port 0, IPv6", "20010db8" + "00" * 11 + "01" + "0000"),
    ("0.0.0.0", "00000000" + "2479"),
    ("0.1.2.3, of this network", "00010203" + "2479"),
    ("224.0.0.251, multicast", "e00000fb" + "2479"),
    ("239.255.255.255, multicast", "efffffff" + "2479"),
    ("255.255.255.255, broadcast", "ffffffff" + "2479"),
    ("::", "00" * 16 + "2479"),
    ("ff02::fb, multicast", "ff02" + "00" * 12 + "00fb" + "2479"),
    ("::ffff:192.0.2.1, an IPv4 address in IPv6", "00" * 10 + "ffff" + "c0000201" + "2479"),
    ("::ffff:0.0.0.0", "00" * 10 + "ffff" + "00000000" + "2479"),
)


def _frame(number: int, body: str) -> str:
    return f"{2 + len(body) // 2:08x}{number:04x}{body}"


def _frames() -> list[dict[str, Any]]:
    probe, prune, odd = _frame(6, "810007"), _frame(14, "80"), _frame(0xFFFF, "")
    as_list = {"probe": {"id": 6, "hex": "810007"}, "prune": {"id": 14, "hex": "80"}, "odd": {"id": 0xFFFF, "hex": ""}}
    largest = LIMIT_FRAME_BYTES - 2
    cases: list[tuple[str, str, list[str], int]] = [
        ("nothing yet", "", [], 0),
        ("half a length", "0000", [], 2),
        ("a length alone", "00000005", [], 4),
        ("all but the last byte", probe[:-2], [], 8),
        ("one frame", probe, ["probe"], 0),
        ("two frames", probe + prune, ["probe", "prune"], 0),
        ("a frame without a body: what its id means decides whether that is right", odd, ["odd"], 0),
        ("two frames and the beginning of a third", prune + probe + "000000", ["prune", "probe"], 3),
    ]
    found: list[dict[str, Any]] = [
        {"comment": comment, "hex": text, "frames": [as_list[name] for name in names], "left_bytes": left}
        for comment, text, names, left in cases
    ]
    comment = "the beginning of the largest frame"
    return [*found, {"comment": comment, "hex": f"{largest + 2:08x}0006", "frames": [], "left_bytes": 6}]


def _no_frames() -> list[dict[str, Any]]:
    first = [{"id": 14, "hex": "80"}]
    cases: list[tuple[str, str, list[Any]]] = [
        ("a length of 0", "00000000", []),
        ("a length of 1: no room for the id", "0000000100", []),
        ("one byte more than the largest", f"{LIMIT_FRAME_BYTES + 1:08x}", []),
        ("the same, and all that it claims to be", f"{LIMIT_FRAME_BYTES + 1:08x}0006", []),
        ("2^32 - 1 bytes", "ffffffff", []),
        ("a length in little-endian order", "05000000" + "0600810007", []),
        ("an HTTP request", b"GET / HTTP/1.1\r\n\r\n".hex(), []),
        ("a good frame, then a length of 0", _frame(14, "80") + "00000000", first),
        ("a good frame, then an impossible length", _frame(14, "80") + "7fffffff", first),
        ("zeros", "00" * 64, []),
    ]
    return [{"comment": comment, "hex": text, "frames": before, "code": CODE} for comment, text, before in cases]


_HEADERS = (
    (f"{StreamType.CONTROL:02x}00000000", int(StreamType.CONTROL), 0),
    (f"{StreamType.HTTP:02x}00000001", int(StreamType.HTTP), 1),
    (f"{StreamType.HTTP:02x}{LIMIT_STREAM_HEADER_BYTES:08x}", int(StreamType.HTTP), LIMIT_STREAM_HEADER_BYTES),
    (f"{StreamType.PAIR:02x}00000000", int(StreamType.PAIR), 0),
    ("ff00000000", 0xFF, 0),
)
_NO_HEADERS = (
    ("nothing: the stream ended at once", ""),
    ("a type alone", "02"),
    ("ended within the length", "02000000"),
    ("one byte more than the largest header", f"02{LIMIT_STREAM_HEADER_BYTES + 1:08x}"),
    ("2^32 - 1 bytes", "02ffffffff"),
    ("a length in little-endian order", "0201000000"),
    ("an HTTP request without a header", b"GET /".hex()),
)
