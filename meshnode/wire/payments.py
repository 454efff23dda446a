"""What travels on a paid `http` stream and on `pay` streams: money for tokens (protocol/15-payments.md).

    who pays                                  who is paid
    stream header: PAID_HEADER
    PayAsk, PayHttp ...             ---->
                                    <----     PayQuote
    PayVoucher                      ---->
                                    <----     PayHttp ..., PayDue where it cannot go on
    PayVoucher ...                  ---->
                                    <----     PayReceipt
    PayVoucher (the exact end), FIN ---->

    PayTerms | PayState | PayOpen | PayRefund  ---->       on a `pay` stream: one question, one answer, FIN
                                    <----     PayQuote | PayStand | PayOpened | PayRefunded, or PayRefused

Amounts are whole micro-USDC, prices micro-USDC per 1,000,000 tokens. A voucher names the sum of all that was ever paid
over its channel, never a difference: a lost or repeated one does no harm. What the signatures sign, and the contract,
are those of x402 `batch-settlement`; the bytes that are hashed for them are made elsewhere (settlement/typed_data.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from meshnode.wire.registry import (
    LIMIT_MODEL_NAME_CHARS,
    LIMIT_MONEY_MICROS,
    LIMIT_PAY_HTTP_BYTES,
    LIMIT_PAY_TEXT_CHARS,
    LIMIT_QUOTE_BYTES,
    LIMIT_RECEIPT_BYTES,
    LIMIT_WITHDRAW_DELAY_MAX_S,
    LIMIT_WITHDRAW_DELAY_MIN_S,
    MessageId,
)
from meshnode.wire.schema import MAX_U8, MAX_U32, MAX_U63, Bytes, Int, Nested, Text, UInt, member
from meshnode.wire.signed import SIGNATURE_BYTES
from meshnode.wire.values import WireError

FREE_HEADER: Final = b""
PAID_HEADER: Final = b"\x01"
"""The headers of an `http` stream: what follows are bytes of HTTP, or frames with the messages below."""
PER_TOKENS: Final = 1_000_000
"""Prices are for as many tokens."""
REQUEST_ID_CHARS: Final = 64
ADDRESS_BYTES: Final = 20
CHANNEL_BYTES: Final = 32
SALT_BYTES: Final = 32
VOUCHER_SIGNATURE_BYTES: Final = 65
"""secp256k1: r 32, s 32 in its lower half, v 27 or 28."""
TRANSACTION_BYTES: Final = 32
QUOTE_ID_BYTES: Final = 16

MICROS: Final = UInt(LIMIT_MONEY_MICROS)
TOKENS: Final = UInt(MAX_U32)
CHAIN: Final = UInt(MAX_U63)
EVM_ADDRESS: Final = Bytes(ADDRESS_BYTES, ADDRESS_BYTES)
WITHDRAW_DELAY: Final = Int(LIMIT_WITHDRAW_DELAY_MIN_S, LIMIT_WITHDRAW_DELAY_MAX_S)
"""Kinds of members that quotes share."""
_Channel = Bytes(CHANNEL_BYTES, CHANNEL_BYTES)
_Signature = Bytes(VOUCHER_SIGNATURE_BYTES, VOUCHER_SIGNATURE_BYTES)
_Transaction = Bytes(TRANSACTION_BYTES, TRANSACTION_BYTES)


@dataclass(frozen=True, slots=True)
class ChannelConfig:
    """What names a channel: its id is the EIP-712 hash of these members under the domain of the contract.

    `payer` and `receiver` own the money of either end, their authorizers sign for them. `withdraw_delay_s` is how long
    the receiver has to claim when the payer withdraws. `salt` is random.
    """

    payer: bytes = member(0, EVM_ADDRESS)
    payer_authorizer: bytes = member(2, EVM_ADDRESS)
    receiver: bytes = member(4, EVM_ADDRESS)
    receiver_authorizer: bytes = member(6, EVM_ADDRESS)
    token: bytes = member(8, EVM_ADDRESS)
    withdraw_delay_s: int = member(10, WITHDRAW_DELAY)
    salt: bytes = member(12, Bytes(SALT_BYTES, SALT_BYTES))

    @property
    def is_sound(self) -> bool:
        """Whether no address of it is zero (a contract would take that for "nobody"), and the ends are two."""
        addresses = (self.payer, self.payer_authorizer, self.receiver, self.receiver_authorizer, self.token)
        return all(map(any, addresses)) and self.payer != self.receiver


# --- a paid `http` stream -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PayHttp:
    """A piece of the HTTP request or answer.

    Who is paid may say how many tokens of the prompt, and of the answer up to and with this piece, it counts.
    """

    data: bytes = member(0, Bytes(1, LIMIT_PAY_HTTP_BYTES))
    tokens_in: int = member(1, TOKENS, 0)
    tokens_out: int = member(3, TOKENS, 0)


@dataclass(frozen=True, slots=True)
class PayAsk:
    """I would like an answer, and pay for it over this channel of this chain.

    `request` names the request, for ever: asked twice, it is charged once. `most_out` bounds the tokens of the answer.
    `channel` is None where none is open yet. `quote` names one that is known from before.
    """

    request: str = member(0, Text(REQUEST_ID_CHARS, 1))
    model: str = member(2, Text(LIMIT_MODEL_NAME_CHARS, 1))
    most_out: int = member(4, TOKENS)
    chain: int = member(6, CHAIN)
    channel: ChannelConfig | None = member(8, Nested(ChannelConfig), None)
    quote: bytes = member(10, Bytes(0, QUOTE_ID_BYTES, QUOTE_ID_BYTES), b"")


@dataclass(frozen=True, slots=True)
class PayQuote:
    """What it costs, and how it is paid: the signed bytes of a quote (wire/quotes.py)."""

    quote: bytes = member(0, Bytes(SIGNATURE_BYTES + 1, LIMIT_QUOTE_BYTES))


@dataclass(frozen=True, slots=True)
class PayVoucher:
    """Of what the channel holds, as much as `cumulative` (micro-USDC since its beginning) may be claimed."""

    channel: bytes = member(0, _Channel)
    cumulative: int = member(2, MICROS)
    signature: bytes = member(4, _Signature)


@dataclass(frozen=True, slots=True)
class PayDue:
    """The answer stands still until a voucher for `cumulative` comes. So many tokens of this request are charged."""

    cumulative: int = member(0, MICROS)
    tokens_in: int = member(2, TOKENS, 0)
    tokens_out: int = member(4, TOKENS, 0)


@dataclass(frozen=True, slots=True)
class PayReceipt:
    """The request is over, and this is what it came to: the text of a receipt (wire/receipts.py)."""

    receipt: bytes = member(0, Bytes(1, LIMIT_RECEIPT_BYTES))


@dataclass(frozen=True, slots=True)
class PayRefused:
    """No, or no further, for the reason with this code (registry, `pay`). From either end."""

    code: int = member(0, UInt(MAX_U8))
    text: str = member(2, Text(LIMIT_PAY_TEXT_CHARS), "")


# --- `pay` streams ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PayTerms:
    """What would `model` cost, and whom would I pay? Without a model: on which terms is a channel to you opened?

    `chain` 0 stands for the one that the asked node prefers. The answer is a quote without a channel.
    """

    model: str = member(0, Text(LIMIT_MODEL_NAME_CHARS), "")
    chain: int = member(2, CHAIN, 0)


@dataclass(frozen=True, slots=True)
class PayState:
    """How does this channel stand?"""

    channel: bytes = member(0, _Channel)


@dataclass(frozen=True, slots=True)
class PayStand:
    """So much was charged, and this is the highest voucher, with its signature (empty where none has come yet).

    `balance` and `claimed` are what the chain says; who asks reads the chain itself.
    """

    charged: int = member(0, MICROS, 0)
    vouched: int = member(2, MICROS, 0)
    signature: bytes = member(4, Bytes(0, VOUCHER_SIGNATURE_BYTES, VOUCHER_SIGNATURE_BYTES), b"")
    balance: int = member(6, MICROS, 0)
    claimed: int = member(8, MICROS, 0)


@dataclass(frozen=True, slots=True)
class PayOpen:
    """Submit this deposit, please: an EIP-3009 authorization to receive `amount` from the payer of the channel.

    It is good after `valid_after` and before `valid_before` (seconds of the chain). Its nonce is
    keccak256(channel id, salt), so that it can fund no other channel.
    """

    channel: ChannelConfig = member(0, Nested(ChannelConfig))
    chain: int = member(2, CHAIN)
    amount: int = member(4, MICROS)
    valid_after: int = member(6, UInt(MAX_U63))
    valid_before: int = member(8, UInt(MAX_U63))
    salt: bytes = member(10, Bytes(SALT_BYTES, SALT_BYTES))
    signature: bytes = member(12, _Signature)


@dataclass(frozen=True, slots=True)
class PayOpened:
    """It is submitted in this transaction. Whether it counts, the chain says."""

    transaction: bytes = member(0, _Transaction)


@dataclass(frozen=True, slots=True)
class PayRefund:
    """Give back `amount` of the channel, or what is not claimed of it. Signed by the authorizer of the payer.

    `nonce` is greater than that of every refund that was asked for before.
    """

    channel: bytes = member(0, _Channel)
    nonce: int = member(2, UInt(MAX_U63))
    amount: int = member(4, MICROS)
    signature: bytes = member(6, _Signature)


@dataclass(frozen=True, slots=True)
class PayRefunded:
    """It is submitted in this transaction."""

    transaction: bytes = member(0, _Transaction)


FROM_PAYER: Final[dict[int, type[Any]]] = {
    MessageId.PAY_HTTP: PayHttp,
    MessageId.PAY_ASK: PayAsk,
    MessageId.PAY_VOUCHER: PayVoucher,
    MessageId.PAY_REFUSED: PayRefused,
}
"""What may come on a paid `http` stream from its opener."""
FROM_PROVIDER: Final[dict[int, type[Any]]] = {
    MessageId.PAY_HTTP: PayHttp,
    MessageId.PAY_QUOTE: PayQuote,
    MessageId.PAY_DUE: PayDue,
    MessageId.PAY_RECEIPT: PayReceipt,
    MessageId.PAY_REFUSED: PayRefused,
}
"""What may come back."""
PAY_QUESTIONS: Final[dict[int, type[Any]]] = {
    MessageId.PAY_TERMS: PayTerms,
    MessageId.PAY_STATE: PayState,
    MessageId.PAY_OPEN: PayOpen,
    MessageId.PAY_REFUND: PayRefund,
}
"""What may be asked on a `pay` stream."""
ANSWERS: Final[dict[type[Any], type[Any]]] = {
    PayTerms: PayQuote,
    PayState: PayStand,
    PayOpen: PayOpened,
    PayRefund: PayRefunded,
}
"""What answers a question, if PayRefused does not."""
PAY_ANSWERS: Final[dict[int, type[Any]]] = {
    MessageId.PAY_QUOTE: PayQuote,
    MessageId.PAY_STAND: PayStand,
    MessageId.PAY_OPENED: PayOpened,
    MessageId.PAY_REFUNDED: PayRefunded,
    MessageId.PAY_REFUSED: PayRefused,
}
"""What may be answered on a `pay` stream."""
PAY_MESSAGES: Final = FROM_PAYER | FROM_PROVIDER | PAY_QUESTIONS | PAY_ANSWERS


def is_paid(header: bytes) -> bool:
    """Whether the header of an `http` stream announces frames. Raises WireError for one that no version knows."""
    if header in (FREE_HEADER, PAID_HEADER):
        return header == PAID_HEADER
    raise WireError("an http stream of an unknown kind")


def pieces(data: bytes) -> Iterator[PayHttp]:
    """Bytes of HTTP as messages, none of them too large; no bytes, no message."""
    for at in range(0, len(data), LIMIT_PAY_HTTP_BYTES):
        yield PayHttp(data[at : at + LIMIT_PAY_HTTP_BYTES])
