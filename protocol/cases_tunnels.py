"""Vectors of RPC tunnels: frames of llama.cpp's RPC as a tunnel cuts them, blocks, packed blocks, pushes.

Nothing here uses the code that is tested: frames are put together field by field, records are deflated by zlib.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

CODE = "protocol_error"
SHA256 = bytes(range(32))


def files() -> dict[str, dict[str, Any]]:
    """The files of this layer."""
    return {
        "rpc-requests.json": {
            "about": "requests of an RPC client, the complete ones and what is left: 10-rpc-tunnels.md",
            "valid": [_request_case(comment, data, left) for comment, data, left in _requests()],
            "invalid": [_bad(comment, hex=data.hex()) for comment, data in _no_requests()],
        },
        "rpc-replies.json": {
            "about": "replies of an rpc-server to requests whose replies have these sizes: 10-rpc-tunnels.md",
            "valid": [
                {"comment": comment, "expected": expected, "hex": data.hex(), "complete": complete}
                for comment, expected, data, complete in _replies()
            ],
            "invalid": [_bad(comment, expected=expected, hex=data.hex()) for comment, expected, data in _no_replies()],
        },
        "tunnel-blocks.json": {
            "about": "blocks of a tunnel, the complete ones and what is left: 10-rpc-tunnels.md",
            "valid": [_blocks_case(comment, data, left) for comment, data, left in _blocks()],
            "invalid": [_bad(comment, hex=data.hex()) for comment, data in _no_blocks()],
        },
        "tunnel-packed.json": {
            "about": "bodies of packed blocks of one tunnel, in order, and what they are: 10-rpc-tunnels.md",
            "valid": [
                {"comment": comment, "bodies": [body.hex() for body in bodies], "plain": [each.hex() for each in plain]}
                for comment, bodies, plain in _packed()
            ],
            "invalid": [_bad(comment, bodies=[body.hex() for body in bodies]) for comment, bodies in _no_packed()],
        },
        "tunnel-pushes.json": {
            "about": "pushes on one stream, the complete ones and what is left: 10-rpc-tunnels.md",
            "valid": [
                {
                    "comment": comment,
                    "hex": data.hex(),
                    "pushes": [{"id": number, "flags": flags, "hex": body.hex()} for number, flags, body in pushes],
                    "left_bytes": left,
                }
                for comment, data, pushes, left in _pushes()
            ],
            "invalid": [_bad(comment, hex=data.hex()) for comment, data in _no_pushes()],
        },
    }


def _bad(comment: str, **fields: Any) -> dict[str, Any]:
    return {"comment": comment, **fields, "code": CODE}


# --- requests and replies -----------------------------------------------------------------------------------------


def _tensor(name: bytes = b"l_out-3", address: int = 0x7F0000001000) -> bytes:
    """id, type, buffer, ne[4], nb[4], op, op_params, flags, src[10], view_src, view_offs, data, name, use_count."""
    packed = struct.pack("<QIQ4I4II", 7, 0, 0xB0, 4, 1, 1, 1, 4, 16, 16, 16, 0) + bytes(64 + 4 + 80 + 16)
    return packed + struct.pack("<Q", address) + name.ljust(64, b"\0") + bytes(4)


def _frame(command: int, payload: bytes = b"") -> bytes:
    return struct.pack("<BQ", command, len(payload)) + payload


def _pair(one: int, other: int) -> bytes:
    return struct.pack("<QQ", one, other)


_GET = _tensor() + _pair(0, 16)
_FIXED = _tensor() + b"\0" + bytes(8)


def _requests() -> list[tuple[str, bytes, int]]:
    token = _frame(6, _FIXED + b"\1" * 16) + _frame(16, bytes(4)) + _frame(64, _pair(1, 50052) + _GET)
    return [
        ("nothing", b"", 0),
        ("a greeting", _frame(14, bytes(24)), 0),
        ("a request without payload", _frame(15), 0),
        ("a step of decoding: an input, the same graph, a push", token, 0),
        ("the next stage: a receive, the same graph, a result", _frame(65, _pair(1, 16) + _FIXED) + _frame(8, _GET), 0),
        ("weights by reference", _frame(66, SHA256 + _tensor(b"blk.0.attn_q.weight") + _pair(0, 16)), 0),
        ("a tensor without data", _frame(6, _FIXED), 0),
        ("every other command of one size", b"".join(_frame(number, bytes(size)) for number, size in _SIZES), 0),
        ("a graph of no nodes", _frame(10, bytes(12)), 0),
        ("a head that is not complete", _frame(15) + b"\1\4\0", 3),
        ("a payload that is not complete", _frame(16, bytes(4))[:-1], 12),
    ]


_SIZES = [
    (0, 12),
    (1, 4),
    (2, 4),
    (3, 8),
    (4, 8),
    (5, 9),
    (7, 312),
    (9, 592),
    (11, 4),
    (12, 296),
    (13, 3260),
    (17, 313),
]


def _request_case(comment: str, data: bytes, left: int) -> dict[str, Any]:
    found, at = [], 0
    while at < len(data) - left:
        command, size = struct.unpack_from("<BQ", data, at)
        found.append({"command": command, "bytes": 9 + size})
        at += 9 + size
    return {"comment": comment, "hex": data.hex(), "requests": found, "left_bytes": left}


def _no_requests() -> list[tuple[str, bytes]]:
    return [
        ("a command that is not there", _frame(18)),
        ("the last number before the tunnel's", _frame(63)),
        ("a command above the tunnel's", _frame(67)),
        ("the greatest number", _frame(255)),
        ("a tensor of 2^63 bytes", struct.pack("<BQ", 6, 1 << 63)),
        ("a tensor of 2^64 - 1 bytes", struct.pack("<BQ", 6, (1 << 64) - 1)),
        ("a tensor of one byte more than 2^40", struct.pack("<BQ", 6, 305 + (1 << 40) + 1)),
        ("a tensor without its offset", _frame(6, _FIXED[:-1])),
        ("a graph of a million nodes", struct.pack("<BQ", 10, 12 + 304 * 10**6)),
        ("a graph without its counts", _frame(10, bytes(11))),
        ("a greeting of 2^63 bytes", struct.pack("<BQ", 14, 1 << 63)),
        ("a greeting one byte short", _frame(14, bytes(23))),
        ("a request without payload that has one", _frame(15, b"\0")),
        ("a push one byte long", _frame(64, _pair(1, 2) + _GET + b"\0")),
        ("a receive with data", _frame(65, _pair(1, 16) + _FIXED + bytes(16))),
        ("a reference with half a digest", _frame(66, SHA256[:16] + _GET)),
        ("an impossible one behind a good one", _frame(15) + _frame(63)),
    ]


def _reply(payload: bytes) -> bytes:
    return struct.pack("<Q", len(payload)) + payload


def _replies() -> list[tuple[str, list[int], bytes, int]]:
    return [
        ("nothing asked, nothing answered", [], b"", 0),
        ("a number", [8], _reply(bytes(8)), 1),
        ("three, of which two have come", [16, 1, 8], _reply(bytes(16)) + _reply(b"\1"), 2),
        ("an empty tensor", [0], _reply(b""), 1),
        ("a reply that is not complete", [28], _reply(bytes(28))[:-1], 0),
        ("half a head", [8], _reply(bytes(8))[:4], 0),
    ]


def _no_replies() -> list[tuple[str, list[int], bytes]]:
    return [
        ("nothing was asked", [], _reply(b"")),
        ("one byte, and nothing was asked", [], b"\0"),
        ("one more than was asked", [8], _reply(bytes(8)) * 2),
        ("longer than asked", [8], _reply(bytes(9))),
        ("shorter than asked", [8], _reply(bytes(7))),
        ("2^63 bytes", [8], struct.pack("<Q", 1 << 63)),
        ("two in the wrong order", [8, 16], _reply(bytes(16)) + _reply(bytes(8))),
    ]


# --- blocks -------------------------------------------------------------------------------------------------------


def _block(kind: int, body: bytes = b"") -> bytes:
    return struct.pack("!BI", kind, len(body)) + body


def _blocks() -> list[tuple[str, bytes, int]]:
    return [
        ("options: version 1, halves and pushes", _block(0, b"\1\3"), 0),
        (
            "a host: options, bytes, a new connection",
            _block(0, b"\1\0") + _block(1, b"abc") + _block(3, b"\0\0\0\1"),
            0,
        ),
        ("a worker: a sign of life, a base, a reply", _block(5) + _block(6, bytes(16)) + _block(1, bytes(9)), 0),
        ("a new connection is there", _block(4, b"\0\0\0\1"), 0),
        ("an end in words", _block(7, b"no room on this machine"), 0),
        ("an end without words", _block(7), 0),
        ("the most words", _block(7, b"a" * 500), 0),
        ("a packed block", _block(2, struct.pack("!I", 1) + b"\0"), 0),
        ("a head that is not complete", _block(5) + b"\1\0", 2),
        ("a body that is not complete", _block(1, b"abc")[:-1], 7),
    ]


def _blocks_case(comment: str, data: bytes, left: int) -> dict[str, Any]:
    found, at = [], 0
    while at < len(data) - left:
        kind, size = struct.unpack_from("!BI", data, at)
        found.append({"kind": kind, "hex": data[at + 5 : at + 5 + size].hex()})
        at += 5 + size
    return {"comment": comment, "hex": data.hex(), "blocks": found, "left_bytes": left}


def _no_blocks() -> list[tuple[str, bytes]]:
    return [
        ("a kind that is not there", _block(8)),
        ("the greatest kind", _block(255)),
        ("bytes that are none", _block(1)),
        ("more bytes than a block may have", struct.pack("!BI", 1, (1 << 20) + 1025)),
        ("2^32 - 1 bytes", struct.pack("!BI", 1, 0xFFFFFFFF)),
        ("a packed block without data", _block(2, bytes(4))),
        ("options of one byte", _block(0, b"\1")),
        ("options of three bytes", _block(0, b"\1\0\0")),
        ("a sign of life with a body", _block(5, b"\0")),
        ("a base of half its size", _block(6, bytes(8))),
        ("a generation of eight bytes", _block(3, bytes(8))),
        ("501 bytes of words", _block(7, b"a" * 501)),
        ("an impossible one behind a good one", _block(5) + _block(9)),
    ]


# --- packed blocks --------------------------------------------------------------------------------------------------


def _deflated(*batches: bytes, sizes: list[int] | None = None) -> list[bytes]:
    """Bodies of one tunnel; `sizes` for those that lie about their length."""
    deflate = zlib.compressobj(1, zlib.DEFLATED, -15)
    found = []
    for number, batch in enumerate(batches):
        size = len(batch) if sizes is None else sizes[number]
        found.append(struct.pack("!I", size) + deflate.compress(batch) + deflate.flush(zlib.Z_SYNC_FLUSH))
    return found


def _plain(data: bytes) -> bytes:
    return struct.pack("!BI", 0, len(data)) + data


def _kept(kind: int, slot: int, data: bytes) -> bytes:
    return struct.pack("!BBI", kind, slot, len(data)) + data


def _packed() -> list[tuple[str, list[bytes], list[bytes]]]:
    return [
        ("frames as they are", _deflated(_plain(b"abc") + _plain(b"def")), [b"abcdef"]),
        ("no record at all", _deflated(b""), [b""]),
        (
            "a slot, and what differs from it",
            _deflated(_kept(1, 0, b"aaaa"), _kept(2, 0, b"\0\0\0\3")),
            [b"aaaa", b"aaab"],
        ),
        (
            "differences add up",
            _deflated(_kept(1, 63, b"\1\1"), _kept(2, 63, b"\2\0"), _kept(2, 63, b"\0\4")),
            [b"\1\1", b"\3\1", b"\3\5"],
        ),
        (
            "a slot is taken anew",
            _deflated(_kept(1, 1, b"ab") + _kept(1, 1, b"xyz"), _kept(2, 1, bytes(3))),
            [b"abxyz", b"xyz"],
        ),
        (
            "the window reaches back into earlier blocks",
            _deflated(_plain(b"mesh" * 99), _plain(b"mesh" * 99)),
            [b"mesh" * 99] * 2,
        ),
    ]


def _no_packed() -> list[tuple[str, list[bytes]]]:
    whole = _deflated(_plain(b"abc"))[0]
    return [
        ("longer than it says", _deflated(_plain(b"abc"), sizes=[7])),
        ("shorter than it says", _deflated(_plain(b"abc"), sizes=[9])),
        ("a thousand times longer than it says", _deflated(_plain(bytes(100_000)), sizes=[100])),
        ("it says more than a megabyte", _deflated(_plain(b"abc"), sizes=[(1 << 20) + 1])),
        ("no DEFLATE", [struct.pack("!I", 3) + b"\xff\xff\xff"]),
        ("cut short", [whole[:-6]]),
        ("the end of the DEFLATE stream", [struct.pack("!I", 8) + zlib.compress(_plain(b"abc"), wbits=-15)]),
        ("a record of a kind that is not there", _deflated(_kept(3, 0, b"a"))),
        ("a record longer than the rest", _deflated(struct.pack("!BI", 0, 4) + b"abc")),
        ("half a record", _deflated(b"\0\0")),
        ("a slot that is not there", _deflated(_kept(1, 64, b"a"))),
        ("differences from an empty slot", _deflated(_kept(2, 5, b"a"))),
        ("differences of another length", _deflated(_kept(1, 0, b"aa"), _kept(2, 0, b"a"))),
        ("something kept that is larger than a frame that is held", _deflated(_kept(1, 0, bytes((256 << 10) + 1)))),
    ]


# --- pushes ---------------------------------------------------------------------------------------------------------


def _push(number: int, flags: int, data: bytes) -> bytes:
    return struct.pack("!QBI", number, flags, len(data)) + data


def _pushes() -> list[tuple[str, bytes, list[tuple[int, int, bytes]], int]]:
    return [
        ("nothing", b"", [], 0),
        ("one", _push(0, 0, b"abcd"), [(0, 0, b"abcd")], 0),
        ("two, the second in halves", _push(1, 0, b"abcd") + _push(7, 1, b"ab"), [(1, 0, b"abcd"), (7, 1, b"ab")], 0),
        ("a head that is not complete", _push(1, 0, b"a") + b"\0\0", [(1, 0, b"a")], 2),
        ("data that are not complete", _push(1, 0, b"ab")[:-1], [], 14),
    ]


def _no_pushes() -> list[tuple[str, bytes]]:
    return [
        ("no data", _push(1, 0, b"")),
        ("an id twice", _push(1, 0, b"a") * 2),
        ("an id that falls", _push(2, 0, b"a") + _push(1, 0, b"a")),
        ("a flag that is not there", _push(1, 2, b"a")),
        ("every flag", _push(1, 255, b"a")),
        ("one byte more than 256 MiB", struct.pack("!QBI", 1, 0, (256 << 20) + 1)),
        ("2^32 - 1 bytes", struct.pack("!QBI", 1, 0, 0xFFFFFFFF)),
    ]
