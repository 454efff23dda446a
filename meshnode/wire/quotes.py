"""Quotes: what a provider asks for an answer, and whom it wants paid where, signed by the key of its node.

    signature 64 | payload

A quote binds its provider for LIMIT_QUOTE_TTL_S: prices and window of a request are those of its quote, whatever
is advertised meanwhile. A quote without a model is the terms on which a channel is opened, and no price of anything.
What a quote says of a channel is the word of the provider, but for the voucher, which proves itself.
Protocol: 15-payments, "Quotes".
"""

from __future__ import annotations

from dataclasses import dataclass

from meshnode.wire.payments import (
    CHAIN,
    CHANNEL_BYTES,
    EVM_ADDRESS,
    MICROS,
    QUOTE_ID_BYTES,
    TOKENS,
    VOUCHER_SIGNATURE_BYTES,
    WITHDRAW_DELAY,
)
from meshnode.wire.registry import (
    LIMIT_CLOCK_SKEW_S,
    LIMIT_MODEL_NAME_CHARS,
    LIMIT_PAY_AHEAD_TOKENS,
    LIMIT_PAY_CREDIT_TOKENS,
    LIMIT_PRICE_MICROS,
    LIMIT_QUOTE_BYTES,
)
from meshnode.wire.schema import MAX_U63, Bytes, Int, Text, UInt, member
from meshnode.wire.signed import KEY_BYTES, Sign, Verify, is_signed_by, open_payload, seal
from meshnode.wire.statements import CONTENT_HASH_BYTES
from meshnode.wire.values import WireError

PURPOSE = "quote"

_Key = Bytes(KEY_BYTES, KEY_BYTES)
_Price = UInt(LIMIT_PRICE_MICROS)
_Window = Int(1, LIMIT_PAY_AHEAD_TOKENS)


@dataclass(frozen=True, slots=True)
class Quote:
    """What an answer of `model` costs at `node`, and how it is paid.

    Prices are micro-USDC per 1,000,000 tokens. A voucher comes every `every_tokens` and pays `ahead_tokens` more than
    have come; the provider goes on for `credit_tokens` beyond what is paid, and reads prompts of up to
    `unpaid_prefill_tokens` before they are. `not_after` is wall time in seconds.

    A channel to this provider is one of `chain`, in the contract `hub`, with these `token`, `receiver`,
    `receiver_authorizer`, at least this `withdraw_delay_s`, and not less than `min_deposit` in it. `channel` is empty,
    or the one that was asked about: of it `charged` was used up, and `vouched` is its highest voucher with `signature`.
    While other requests run over the channel, `charged` is `vouched`: what they will come to is not known yet.
    """

    id: bytes = member(0, Bytes(QUOTE_ID_BYTES, QUOTE_ID_BYTES))
    node: bytes = member(2, _Key)
    model: str = member(4, Text(LIMIT_MODEL_NAME_CHARS))
    content_hash: bytes = member(6, Bytes(0, CONTENT_HASH_BYTES, CONTENT_HASH_BYTES))
    price_in: int = member(8, _Price)
    price_out: int = member(10, _Price)
    every_tokens: int = member(12, _Window)
    ahead_tokens: int = member(14, _Window)
    credit_tokens: int = member(16, UInt(LIMIT_PAY_CREDIT_TOKENS))
    unpaid_prefill_tokens: int = member(18, TOKENS)
    not_after: int = member(20, UInt(MAX_U63))
    chain: int = member(22, CHAIN)
    hub: bytes = member(24, EVM_ADDRESS)
    token: bytes = member(26, EVM_ADDRESS)
    receiver: bytes = member(28, EVM_ADDRESS)
    receiver_authorizer: bytes = member(30, EVM_ADDRESS)
    withdraw_delay_s: int = member(32, WITHDRAW_DELAY)
    min_deposit: int = member(34, MICROS)
    channel: bytes = member(36, Bytes(0, CHANNEL_BYTES, CHANNEL_BYTES), b"")
    charged: int = member(38, MICROS, 0)
    vouched: int = member(40, MICROS, 0)
    signature: bytes = member(41, Bytes(0, VOUCHER_SIGNATURE_BYTES, VOUCHER_SIGNATURE_BYTES), b"")


def issue(quote: Quote, sign: Sign) -> bytes:
    """The signed bytes. `sign` belongs to `quote.node`. Raises WireError for a quote that no reader would take."""
    signed = seal(PURPOSE, quote, sign)
    read(signed)
    return signed


def read(signed: bytes) -> Quote:
    """The quote in these bytes, its signature unchecked. Raises WireError, also for one that contradicts itself."""
    if len(signed) > LIMIT_QUOTE_BYTES:
        raise WireError(f"a quote of {len(signed)} bytes")
    quote = open_payload(Quote, signed, limit_bytes=LIMIT_QUOTE_BYTES)
    if bool(quote.model) != bool(quote.content_hash):
        raise WireError("a quote names a model and the hash of its weights, or neither")
    if not quote.model and (quote.price_in or quote.price_out):
        raise WireError("a price of nothing")
    if quote.every_tokens > quote.ahead_tokens:
        raise WireError("the answer would stand still before each voucher")
    if not (quote.chain and all(map(any, (quote.hub, quote.token, quote.receiver, quote.receiver_authorizer)))):
        raise WireError("a quote says whom to pay where")
    if not quote.channel and (quote.charged or quote.vouched):
        raise WireError("charged over no channel")
    if bool(quote.vouched) != bool(quote.signature):
        raise WireError("a voucher is shown with its signature")
    return quote


def read_genuine(signed: bytes, *, node: bytes, verify: Verify) -> Quote:
    """The quote, if `node` made it; whether it is still good is asked elsewhere. Raises WireError."""
    quote = read(signed)
    if quote.node != node:
        raise WireError("the quote is of another node")
    if not is_signed_by(node, PURPOSE, signed, verify):
        raise WireError("the quote is forged")
    return quote


def is_timely(quote: Quote, now_s: float) -> bool:
    """Whether it counts at this wall time; a clock may be LIMIT_CLOCK_SKEW_S slow."""
    return now_s <= quote.not_after + LIMIT_CLOCK_SKEW_S


def expect(quote: Quote, *, model: str, content_hash: bytes, chain: int, channel: bytes) -> None:
    """Raise WireError, which says what differs, unless this quote is for that model over that channel (empty: none
    yet). An empty `content_hash` stands for whichever weights have that name.
    """
    if quote.model != model or (content_hash and quote.content_hash != content_hash):
        raise WireError("the quote is for another model")
    if quote.chain != chain:
        raise WireError("the quote is for another chain")
    if quote.channel != channel:
        raise WireError("the quote is for another channel")
