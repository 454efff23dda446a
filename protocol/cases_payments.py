"""Vectors of payments: quotes, and what one direction of a paid stream delivers. The keys are made from names and are
worth nothing, and so are the addresses. Receipts: cases_receipts.py; signatures of vouchers: cases_vouchers.py.
"""

from __future__ import annotations

from typing import Any

from cases_messages import map_of
from cases_signed import ALICE, BOB, NOW_S, PADDING, Key, flipped
from cases_values import CODE, packed, plain

from meshnode.wire.messages import MESSAGES
from meshnode.wire.payments import PayAsk, PayDue, PayHttp, PayQuote, PayReceipt, PayRefused, PayVoucher
from meshnode.wire.registry import LIMIT_QUOTE_BYTES, MessageId

HUB = bytes.fromhex("4020074e9df2ce1dee5a9c1b5c3f541d02a10003")
TOKEN = bytes.fromhex("036cbd53842c5426634e7929541ec2318f3dcf7e")
CHAIN = 84532
CHANNEL = bytes(range(32))
MODEL, CONTENT = "qwen3-8b", bytes(range(16))
IDS = {shape: int(number) for number, shape in MESSAGES.items()}


def files() -> dict[str, dict[str, Any]]:
    """The files of this layer."""
    return {
        "quotes.json": {
            "about": "what `node` asks for an answer: 15-payments.md; `now_s` is within its time",
            "valid": [
                {"comment": comment, **_asked(quote(said, signer), signer), "value": plain(said)}
                for comment, said, signer in _quotes()
            ],
            "invalid": [
                {"comment": comment, **_asked(signed, node), "code": CODE} for comment, signed, node in _no_quotes()
            ],
        },
        "paid-streams.json": {
            "about": "what the opener (`payer`) or the other end (`provider`) of an `http` stream with this header "
            "sent behind it: 15-payments.md",
            "valid": [
                {
                    "comment": comment,
                    "from": sender,
                    "header": "01",
                    "hex": delivered,
                    "messages": names,
                    "http": http,
                    "left_bytes": left,
                }
                for comment, sender, delivered, names, http, left in _streams()
            ],
            "invalid": [
                {"comment": comment, "from": sender, "header": header, "hex": delivered, "code": CODE}
                for comment, sender, header, delivered in _no_streams()
            ],
        },
    }


# --- quotes ----------------------------------------------------------------------------------------------------------


def said_in_quote(node: Key = ALICE, **changed: Any) -> dict[int, Any]:
    """The payload of a quote; `changed` replaces members, named m0, m6 and so on; None leaves one out."""
    payload: dict[int, Any] = {
        0: bytes(range(100, 116)),
        2: node.public,
        4: MODEL,
        6: CONTENT,
        8: 200_000,
        10: 600_000,
        12: 32,
        14: 64,
        16: 0,
        18: 2048,
        20: NOW_S + 60,
        22: CHAIN,
        24: HUB,
        26: TOKEN,
        28: b"\x11" * 20,
        30: b"\x22" * 20,
        32: 86_400,
        34: 500_000,
    }
    payload |= {int(name[1:]): value for name, value in changed.items()}
    return {key: payload[key] for key in sorted(payload) if payload[key] is not None}


def quote(said: dict[int, Any], signer: Key = ALICE, purpose: str = "quote") -> bytes:
    """The signed bytes."""
    return signer.seal(purpose, packed(said))


def _asked(signed: bytes, node: Key) -> dict[str, Any]:
    return {"hex": signed.hex(), "node": node.public.hex(), "now_s": NOW_S}


def _of_length(wanted: int) -> dict[int, Any]:
    short = len(quote(said_in_quote()))
    return said_in_quote(**{f"m{PADDING}": bytes(wanted - short - 5)})


_OVER_CHANNEL: dict[str, Any] = {"m36": CHANNEL, "m38": 1_200, "m40": 1_214, "m41": b"\x33" * 64 + b"\x1b"}
_TERMS: dict[str, Any] = {"m4": "", "m6": b"", "m8": 0, "m10": 0}


def _quotes() -> list[tuple[str, dict[int, Any], Key]]:
    longest = _of_length(LIMIT_QUOTE_BYTES)
    assert len(quote(longest)) == LIMIT_QUOTE_BYTES
    return [
        ("for a model, over no channel yet", said_in_quote(), ALICE),
        ("over a channel that has been used", said_in_quote(**_OVER_CHANNEL), ALICE),
        ("over a channel without a voucher", said_in_quote(m36=CHANNEL), ALICE),
        ("charged on credit, before any voucher", said_in_quote(m36=CHANNEL, m38=900), ALICE),
        ("of another node", said_in_quote(BOB), BOB),
        ("terms of a channel, for no model", said_in_quote(**_TERMS), ALICE),
        ("for nothing", said_in_quote(m8=0, m10=0), ALICE),
        ("the least window", said_in_quote(m12=1, m14=1), ALICE),
        ("the greatest window", said_in_quote(m12=256, m14=256, m16=64), ALICE),
        ("vouchers as rare as they may be", said_in_quote(m12=64, m14=64), ALICE),
        ("the greatest prices", said_in_quote(m8=10**12, m10=10**12), ALICE),
        ("the longest delay, the greatest deposit", said_in_quote(m32=2_592_000, m34=10**15), ALICE),
        ("the shortest delay, no deposit", said_in_quote(m32=900, m34=0), ALICE),
        ("an unknown odd member", said_in_quote(m43="later"), ALICE),
        ("the longest", longest, ALICE),
    ]


def _no_quotes() -> list[tuple[str, bytes, Key]]:
    good = quote(said_in_quote(**_OVER_CHANNEL))
    wrong: dict[str, dict[str, Any]] = {
        "an id of 15 bytes": {"m0": bytes(15)},
        "no node": {"m2": None},
        "a model without the hash of its weights": {"m6": b""},
        "a hash without a model": {"m4": ""},
        "a hash of 32 bytes": {"m6": bytes(32)},
        "a model with an escape sequence in its name": {"m4": "\x1b[2J"},
        "a price of nothing": {"m4": "", "m6": b"", "m10": 0},
        "a price above the greatest": {"m8": 10**12 + 1},
        "a price below nothing": {"m10": -1},
        "a price that is a text": {"m10": "600000"},
        "no vouchers": {"m12": 0},
        "nothing paid ahead": {"m14": 0},
        "more paid ahead than may be": {"m14": 257},
        "vouchers too rare for the window": {"m12": 65, "m14": 64, "m16": 32},
        "more credit than may be": {"m16": 65},
        "an end of 2^63": {"m20": 1 << 63},
        "on no chain": {"m22": 0},
        "a contract at nowhere": {"m24": bytes(20)},
        "a token at nowhere": {"m26": bytes(20)},
        "paid to nobody": {"m28": bytes(20)},
        "signed for by nobody": {"m30": bytes(20)},
        "an address of 32 bytes": {"m28": bytes(12) + b"\x11" * 20},
        "an address as a text": {"m28": "0x" + "11" * 20},
        "a delay below the shortest": {"m32": 899},
        "a delay above the longest": {"m32": 2_592_001},
        "a deposit above the greatest": {"m34": 10**15 + 1},
        "a channel of 31 bytes": {"m36": CHANNEL[:31]},
        "charged over no channel": {"m38": 1},
        "a voucher of no channel": {"m40": 5, "m41": bytes(65)},
        "a voucher without its signature": {**_OVER_CHANNEL, "m41": None},
        "a signature without its voucher": {**_OVER_CHANNEL, "m40": None},
        "a signature of 64 bytes": {**_OVER_CHANNEL, "m41": bytes(64)},
        "more charged than there can be": {"m36": CHANNEL, "m38": 10**15 + 1},
        "an unknown even member": {"m42": 0},
    }
    return [
        ("nothing", b"", ALICE),
        ("a signature alone", good[:64], ALICE),
        ("cut short", good[:-1], ALICE),
        ("a byte too many", good + b"\0", ALICE),
        ("one byte too long", quote(_of_length(LIMIT_QUOTE_BYTES + 1)), ALICE),
        ("shown by another node", good, BOB),
        ("signed by another node", quote(said_in_quote(), BOB), ALICE),
        ("a changed signature", flipped(good, 7), ALICE),
        ("a changed amount", quote(said_in_quote())[:64] + quote(said_in_quote(m10=600_001))[64:], ALICE),
        ("signed for another purpose", quote(said_in_quote(), purpose="statement"), ALICE),
        ("not in canonical form", ALICE.seal("quote", b"\xdf\0\0\0\x12" + quote(said_in_quote())[67:]), ALICE),
        *((comment, quote(said_in_quote(**changes)), ALICE) for comment, changes in wrong.items()),
    ]


# --- paid streams ----------------------------------------------------------------------------------------------------


def frame(shape: type[Any], plain: dict[int, Any] | None = None) -> bytes:
    """A message as a frame."""
    body = packed(map_of(shape, full=True) if plain is None else plain)
    return (2 + len(body)).to_bytes(4, "big") + IDS[shape].to_bytes(2, "big") + body


def _http(data: bytes, **counts: int) -> bytes:
    return frame(PayHttp, {0: data} | {int(name[1:]): value for name, value in counts.items()})


_REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: llama-server\r\ncontent-length: 2\r\n\r\n{}"
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


def _streams() -> list[tuple[str, str, str, list[str], str, int]]:
    ask, voucher = frame(PayAsk), frame(PayVoucher)
    parts = _http(_REQUEST[:40]) + _http(_REQUEST[40:])
    odd = b"\0\0\0\x03\xff\xff\xc0"
    answer = [frame(PayQuote), _http(_HEAD), _http(b"data: a\n\n", m1=17, m3=1), frame(PayDue), frame(PayReceipt)]
    names = ["pay_quote", "pay_http", "pay_http", "pay_due", "pay_receipt"]
    body = (_HEAD + b"data: a\n\n").hex()
    return [
        ("nothing yet", "payer", "", [], "", 0),
        ("an ask alone", "payer", ask.hex(), ["pay_ask"], "", 0),
        (
            "everything at once",
            "payer",
            (ask + voucher + parts).hex(),
            ["pay_ask", "pay_voucher", "pay_http", "pay_http"],
            _REQUEST.hex(),
            0,
        ),
        ("a voucher that has not come whole", "payer", (ask + voucher[:-1]).hex(), ["pay_ask"], "", len(voucher) - 1),
        ("the payer goes no further", "payer", (ask + frame(PayRefused)).hex(), ["pay_ask", "pay_refused"], "", 0),
        (
            "an unknown odd message is passed over",
            "payer",
            (ask + odd + voucher).hex(),
            ["pay_ask", "pay_voucher"],
            "",
            0,
        ),
        ("an answer", "provider", b"".join(answer).hex(), names, body, 0),
        ("a refusal", "provider", frame(PayRefused).hex(), ["pay_refused"], "", 0),
        ("the beginning of the largest frame", "provider", "00010000007e8100", [], "", 8),
    ]


def _no_streams() -> list[tuple[str, str, str, str]]:
    ask, quoted, voucher = frame(PayAsk).hex(), frame(PayQuote).hex(), frame(PayVoucher).hex()
    found = [
        ("a header of 02", "payer", "02", ask),
        ("a header of two bytes", "payer", "0101", ask),
        ("a header of 00", "payer", "00", ask),
        ("a piece without bytes", "payer", "01", ask + _http(b"").hex()),
        ("a count that is negative", "provider", "01", _http(b"x", m3=-1).hex()),
        ("a quote from the payer", "payer", "01", ask + quoted),
        ("a receipt from the payer", "payer", "01", ask + frame(PayReceipt).hex()),
        ("a voucher from the provider", "provider", "01", quoted + voucher),
        ("an ask from the provider", "provider", "01", ask),
        ("HTTP without frames", "payer", "01", _REQUEST.hex()),
        ("a frame of no length", "payer", "01", ask + "00000000"),
        ("an unknown even message", "payer", "01", ask + "00000003fffec0"),
    ]
    stray = (MessageId.HELLO, MessageId.PAY_TERMS, MessageId.PAY_STAND, MessageId.RELAY_RESERVE)
    return found + [
        (f"{number.name.lower()}, which has no place here", "provider", "01", frame(MESSAGES[number]).hex())
        for number in stray
    ]
