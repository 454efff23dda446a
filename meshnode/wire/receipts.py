"""Receipts: what a paid request came to, signed by the node that answered it, for anyone to verify offline.

A receipt is one JSON object in the canonical form of RFC 8785. All of its values are texts: integers in decimal, bytes
in lower-case hex digits, with 0x before what an explorer of the chain shows. It holds the public key that signed it:

    {"at":"1800000000","chain":"84532","channel":"0x...", ... ,"sig":"<128 hex digits>", ... ,"v":"1"}

What is signed is the same object without `sig`. Members that are not known are passed over, and signed as well. Nothing
in it tells of the prompt or the answer but the SHA-256 of the answer. Protocol: 15-payments, "Receipts".
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from typing import Any, Final

from meshnode.wire.payments import ADDRESS_BYTES, CHANNEL_BYTES, PER_TOKENS, QUOTE_ID_BYTES, REQUEST_ID_CHARS
from meshnode.wire.registry import (
    LIMIT_MODEL_NAME_CHARS,
    LIMIT_MONEY_MICROS,
    LIMIT_PRICE_MICROS,
    LIMIT_RECEIPT_BYTES,
    VERSION,
)
from meshnode.wire.schema import MAX_U32, MAX_U63, Text
from meshnode.wire.signed import KEY_BYTES, SIGNATURE_BYTES, Sign, Verify, purposed
from meshnode.wire.statements import CONTENT_HASH_BYTES
from meshnode.wire.values import WireError

PURPOSE = "receipt"
FINISHES: Final = ("stop", "length", "cancelled", "broken")
"""How an answer ended: by itself, at its bound, because nobody waited for it any more, or because something failed."""
SHA256_BYTES: Final = 32

_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_HEX = frozenset("0123456789abcdef")
_BYTES: Final[dict[str, tuple[str, int]]] = {
    "quote": ("", QUOTE_ID_BYTES),
    "node": ("", KEY_BYTES),
    "content_hash": ("", CONTENT_HASH_BYTES),
    "payer": ("0x", ADDRESS_BYTES),
    "channel": ("0x", CHANNEL_BYTES),
    "hub": ("0x", ADDRESS_BYTES),
    "output_sha256": ("", SHA256_BYTES),
}
_NUMBERS: Final[dict[str, int]] = {
    "chain": MAX_U63,
    "price_in": LIMIT_PRICE_MICROS,
    "price_out": LIMIT_PRICE_MICROS,
    "tokens_in": MAX_U32,
    "tokens_out": MAX_U32,
    "charged_micros": LIMIT_MONEY_MICROS,
    "channel_charged_micros": LIMIT_MONEY_MICROS,
    "at": MAX_U63,
}
_TEXTS: Final = {"request": Text(REQUEST_ID_CHARS, 1), "model": Text(LIMIT_MODEL_NAME_CHARS, 1)}


@dataclass(frozen=True, slots=True)
class Receipt:
    """What `node` charged for one request, under which quote, to which channel.

    Prices are micro-USDC per 1,000,000 tokens; `payer` is the authorizer of the payer, whose vouchers paid.
    `channel_charged_micros` is all that was ever charged to the channel, this request included. `output_sha256` is the
    hash of the bytes of the answer as they were delivered, `at` the wall time in seconds.
    """

    request: str
    quote: bytes
    node: bytes
    model: str
    content_hash: bytes
    payer: bytes
    channel: bytes
    chain: int
    hub: bytes
    price_in: int
    price_out: int
    tokens_in: int
    tokens_out: int
    charged_micros: int
    channel_charged_micros: int
    finish: str
    output_sha256: bytes
    at: int


def write(receipt: Receipt, sign: Sign) -> bytes:
    """The text of a signed receipt. `sign` belongs to `receipt.node`.

    Raises WireError for members that no reader would take: that is our own mistake.
    """
    plain = {item.name: _packed(item.name, getattr(receipt, item.name)) for item in fields(receipt)}
    plain["v"] = str(VERSION)
    text = _canonical(plain | {"sig": sign(purposed(PURPOSE, _canonical(plain))).hex()})
    read(text)
    return text


def read(text: bytes) -> Receipt:
    """The receipt in this text, its signature unchecked. Raises WireError, also where its sums cannot be."""
    return _parsed(text)[0]


def read_genuine(text: bytes, verify: Verify) -> Receipt:
    """The receipt, if the node that it names has signed it. Whether that is the right node is asked elsewhere.

    Raises WireError.
    """
    receipt, plain = _parsed(text)
    signature = bytes.fromhex(plain.pop("sig"))
    if not verify(receipt.node, signature, purposed(PURPOSE, _canonical(plain))):
        raise WireError("the receipt is forged")
    return receipt


def most_micros(price_in: int, price_out: int, tokens_in: int, tokens_out: int) -> int:
    """What so many tokens cost at these prices, rounded up once."""
    return -(-(tokens_in * price_in + tokens_out * price_out) // PER_TOKENS)


def _parsed(text: bytes) -> tuple[Receipt, dict[str, str]]:
    if len(text) > LIMIT_RECEIPT_BYTES:
        raise WireError(f"a receipt of more than {LIMIT_RECEIPT_BYTES} bytes")
    try:
        plain = json.loads(text.decode("utf-8"))
        same = isinstance(plain, dict) and all(type(value) is str for value in plain.values())
        same = same and _canonical(plain) == text
    except (ValueError, RecursionError):
        raise WireError("a receipt is a JSON object") from None
    if not same or not all(map(_NAME.fullmatch, plain)):
        raise WireError("a receipt is an object of texts in canonical form")
    if plain.get("v") != str(VERSION):
        raise WireError("not a receipt of this version")
    _bytes_of("sig", plain, "", SIGNATURE_BYTES)
    receipt = Receipt(**{item.name: _unpacked(item.name, plain) for item in fields(Receipt)})
    most = most_micros(receipt.price_in, receipt.price_out, receipt.tokens_in, receipt.tokens_out)
    if not receipt.charged_micros <= min(most, receipt.channel_charged_micros):
        raise WireError("more is charged than the tokens cost, or than the channel was charged in all")
    return receipt, plain


def _canonical(plain: dict[str, str]) -> bytes:
    """RFC 8785, for objects of texts whose names are ASCII."""
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def _packed(name: str, value: Any) -> str:
    if name in _BYTES:
        return _BYTES[name][0] + bytes(value).hex()
    return str(value)


def _unpacked(name: str, plain: dict[str, str]) -> Any:
    if name in _BYTES:
        return _bytes_of(name, plain, *_BYTES[name])
    value = plain.get(name)
    if value is None:
        raise WireError(f"a receipt lacks {name}")
    if name in _TEXTS:
        return _TEXTS[name].unpack(value, 0)
    if name == "finish":
        if value not in FINISHES:
            raise WireError("an answer that ended in no known way")
        return value
    if not _NUMBER.fullmatch(value) or int(value) > _NUMBERS[name]:
        raise WireError(f"{name} is no number, or too great")
    return int(value)


def _bytes_of(name: str, plain: dict[str, str], prefix: str, size_bytes: int) -> bytes:
    value = plain.get(name, "")
    digits = value.removeprefix(prefix)
    if not value.startswith(prefix) or len(digits) != 2 * size_bytes or not set(digits) <= _HEX:
        raise WireError(f"{name} is not {size_bytes} bytes in hex digits")
    return bytes.fromhex(digits)
