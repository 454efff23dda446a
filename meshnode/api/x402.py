"""x402 version 2, scheme `batch-settlement`, as it travels over plain HTTP: what is asked, brought and answered.

    402  PAYMENT-REQUIRED    what the request costs at most, whom to pay and how   required()
         PAYMENT-SIGNATURE   which of that is taken, a channel, one voucher,
                             and perhaps a deposit for the channel               -> read_payment()
    200  PAYMENT-RESPONSE    what it came to                                       settled()

Each is one JSON object in base64. Amounts are decimal texts of micro-USDC, bytes hex digits with 0x, networks CAIP-2.
The names of members, and of the reasons for a refusal, are those of the scheme, which its clients act upon. Protocol:
15-payments, "Plain HTTP"; x402: specs/transports-v2/http.md, specs/schemes/batch-settlement.

Rules of this file: pure; whatever a stranger sends is a Payment or a BadRequest.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from meshnode.core.prices import Price
from meshnode.errors import BadRequest
from meshnode.wire.payments import (
    ADDRESS_BYTES,
    CHANNEL_BYTES,
    SALT_BYTES,
    VOUCHER_SIGNATURE_BYTES,
    ChannelConfig,
    PayOpen,
    PayStand,
    PayVoucher,
)
from meshnode.wire.registry import (
    LIMIT_MONEY_MICROS,
    LIMIT_WITHDRAW_DELAY_MAX_S,
    LIMIT_WITHDRAW_DELAY_MIN_S,
    PAY_TEXTS,
    PayCode,
)
from meshnode.wire.schema import MAX_U63

VERSION: Final = 2
SCHEME: Final = "batch-settlement"
MOST_HEADER_BYTES: Final = 8 << 10
"""Of PAYMENT-SIGNATURE. What clients send has some 2 KiB."""
TIMEOUT_S: Final = 900
"""How long a payment may take: a client makes its deposit good for that long."""

WANTED: Final = "PAYMENT-SIGNATURE header is required"
OTHER_TERMS: Final = "No matching payment requirements"
PENDING: Final = "the deposit is not in the channel yet"
_REASON: Final = "invalid_batch_settlement_evm_"
WRONG_NETWORK: Final = _REASON + "network_mismatch"
WRONG_TOKEN: Final = _REASON + "token_mismatch"
WRONG_RECEIVER: Final = _REASON + "receiver_mismatch"
WRONG_AUTHORIZER: Final = _REASON + "receiver_authorizer_mismatch"
WRONG_DELAY: Final = _REASON + "withdraw_delay_mismatch"
WRONG_CHANNEL: Final = _REASON + "channel_id_mismatch"
WRONG_SIGNATURE: Final = _REASON + "voucher_signature"
WRONG_PAYLOAD: Final = _REASON + "voucher_payload"
WRONG_AMOUNT: Final = _REASON + "cumulative_amount_mismatch"
TOO_MUCH: Final = _REASON + "cumulative_exceeds_balance"
SMALL_DEPOSIT: Final = _REASON + "deposit_below_min_deposit"
BUSY: Final = _REASON + "channel_busy"
"""Why a payment is not taken, in the words of the scheme; the first three of these are for people."""
_OF_CODE: Final[Mapping[int, str]] = {
    PayCode.CHANNEL_BUSY: BUSY,
    PayCode.CUM_MISMATCH: WRONG_AMOUNT,
    PayCode.INSUFFICIENT_BALANCE: TOO_MUCH,
    PayCode.BAD_SIGNATURE: WRONG_SIGNATURE,
    PayCode.UNSUPPORTED_NETWORK: WRONG_NETWORK,
    PayCode.UNKNOWN_CHANNEL: _REASON + "channel_not_found",
    PayCode.TOO_SMALL: SMALL_DEPOSIT,
    PayCode.CHAIN_REFUSED: _REASON + "deposit_simulation_failed",
}

_NETWORK: Final = re.compile(r"eip155:([1-9][0-9]{0,17})")
_DIGITS: Final = re.compile(r"0|[1-9][0-9]{0,18}")
_PAYER_MARK: Final = b"x402" + bytes(8)


@dataclass(frozen=True, slots=True)
class Terms:
    """Whom this node has paid, over which chain and in which token; addresses are 20 bytes, the name and version are
    those of the token's EIP-712 domain.
    """

    chain: int
    token: bytes
    token_name: str
    token_version: str
    receiver: bytes
    receiver_authorizer: bytes
    withdraw_delay_s: int
    least_deposit_micros: int

    @property
    def network(self) -> str:
        """CAIP-2."""
        return f"eip155:{self.chain}"


@dataclass(frozen=True, slots=True)
class Offer:
    """What one request can cost: at most `amount` micros, for so many tokens of `model` at this price."""

    model: str
    price: Price
    most_in: int
    most_out: int
    amount: int


@dataclass(frozen=True, slots=True)
class Deposit:
    """An EIP-3009 authorization to take `amount` micros into the channel; times in seconds of the chain."""

    amount: int
    valid_after: int
    valid_before: int
    salt: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Payment:
    """What a payer has sent: the requirements that it took, its channel and its voucher, nothing of it verified."""

    network: str
    asset: bytes
    pay_to: bytes
    amount: int
    config: ChannelConfig
    voucher: PayVoucher
    deposit: Deposit | None = None

    def opening(self, chain: int) -> PayOpen:
        """Its deposit, as a provider is asked to submit it. There is one."""
        given = self.deposit
        assert given is not None
        return PayOpen(
            channel=self.config,
            chain=chain,
            amount=given.amount,
            valid_after=given.valid_after,
            valid_before=given.valid_before,
            salt=given.salt,
            signature=given.signature,
        )


def payer_id(authorizer: bytes) -> bytes:
    """What stands for the node id of a payer that has none: a mark, and the address whose vouchers pay.

    No node has an id of this form but by 2^96 trials, and all that it then could do still takes the payer's signature.
    """
    return _PAYER_MARK + authorizer


# --- what comes -------------------------------------------------------------------------------------------------------


def read_payment(header: bytes) -> Payment:
    """The payment in a PAYMENT-SIGNATURE header. Raises BadRequest with what is wrong with it."""
    if len(header) > MOST_HEADER_BYTES:
        raise _bad(f"it has more than {MOST_HEADER_BYTES} bytes")
    try:
        # JSON as well as base64 has characters of ASCII and no others: neither can hide anything from another reader.
        text = base64.b64decode(header.strip(), validate=True).decode("utf-8")
        whole = json.loads(text, object_pairs_hook=_without_doubles, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise _bad("it is not a JSON object in base64") from None
    version = whole.get("x402Version") if isinstance(whole, dict) else None
    if type(version) is not int or version != VERSION:
        raise _bad(f"it is not of x402 version {VERSION}")
    accepted, payload = _object(whole, "accepted"), _object(whole, "payload")
    if accepted.get("scheme") != SCHEME:
        raise _bad(f"the only scheme here is {SCHEME}")
    kind = payload.get("type")
    if kind not in ("voucher", "deposit"):
        raise _bad("what is paid with is a voucher, or a deposit with one")
    return Payment(
        network=_network(accepted),
        asset=_bytes(accepted, "asset", ADDRESS_BYTES),
        pay_to=_bytes(accepted, "payTo", ADDRESS_BYTES),
        amount=_amount(accepted, "amount"),
        config=_config(_object(payload, "channelConfig")),
        voucher=_voucher(_object(payload, "voucher")),
        deposit=_deposit(_object(payload, "deposit")) if kind == "deposit" else None,
    )


def objection(payment: Payment, terms: Terms, amount: int) -> str:
    """Why a payment is not one for a request of at most `amount` on these terms; empty where it is."""
    config = payment.config
    checks = (
        (payment.network == terms.network, WRONG_NETWORK),
        ((payment.asset, config.token) == (terms.token, terms.token), WRONG_TOKEN),
        ((payment.pay_to, config.receiver) == (terms.receiver, terms.receiver), WRONG_RECEIVER),
        (config.receiver_authorizer == terms.receiver_authorizer, WRONG_AUTHORIZER),
        (config.withdraw_delay_s >= terms.withdraw_delay_s, WRONG_DELAY),
        (config.is_sound, WRONG_PAYLOAD),
        (payment.amount == amount, OTHER_TERMS),
    )
    return next((reason for fits, reason in checks if not fits), "")


def _config(given: dict[str, Any]) -> ChannelConfig:
    delay_s = given.get("withdrawDelay")
    if type(delay_s) is not int or not LIMIT_WITHDRAW_DELAY_MIN_S <= delay_s <= LIMIT_WITHDRAW_DELAY_MAX_S:
        raise _bad("`withdrawDelay` is a number of seconds from 15 minutes to 30 days")
    return ChannelConfig(
        payer=_bytes(given, "payer", ADDRESS_BYTES),
        payer_authorizer=_bytes(given, "payerAuthorizer", ADDRESS_BYTES),
        receiver=_bytes(given, "receiver", ADDRESS_BYTES),
        receiver_authorizer=_bytes(given, "receiverAuthorizer", ADDRESS_BYTES),
        token=_bytes(given, "token", ADDRESS_BYTES),
        withdraw_delay_s=delay_s,
        salt=_bytes(given, "salt", SALT_BYTES),
    )


def _voucher(given: dict[str, Any]) -> PayVoucher:
    return PayVoucher(
        channel=_bytes(given, "channelId", CHANNEL_BYTES),
        cumulative=_amount(given, "maxClaimableAmount"),
        signature=_bytes(given, "signature", VOUCHER_SIGNATURE_BYTES),
    )


def _deposit(given: dict[str, Any]) -> Deposit:
    authorization = _object(given, "authorization")
    if "erc3009Authorization" not in authorization:
        raise _bad("a deposit is authorized by EIP-3009 here")
    signed = _object(authorization, "erc3009Authorization")
    return Deposit(
        amount=_amount(given, "amount"),
        valid_after=_amount(signed, "validAfter", MAX_U63),
        valid_before=_amount(signed, "validBefore", MAX_U63),
        salt=_bytes(signed, "salt", SALT_BYTES),
        signature=_bytes(signed, "signature", VOUCHER_SIGNATURE_BYTES),
    )


def _network(given: dict[str, Any]) -> str:
    value = given.get("network")
    if not isinstance(value, str) or not _NETWORK.fullmatch(value):
        raise _bad("`network` is a chain of EVM, such as eip155:84532")
    return value


def _object(given: dict[str, Any], name: str) -> dict[str, Any]:
    value = given.get(name)
    if not isinstance(value, dict):
        raise _bad(f"`{name}` is missing, or no object")
    return value


def _amount(given: dict[str, Any], name: str, most: int = LIMIT_MONEY_MICROS) -> int:
    value = given.get(name)
    if not isinstance(value, str) or not _DIGITS.fullmatch(value) or int(value) > most:
        raise _bad(f"`{name}` is a text of decimal digits, of at most {most}")
    return int(value)


def _bytes(given: dict[str, Any], name: str, size_bytes: int) -> bytes:
    value = given.get(name)
    if isinstance(value, str) and re.fullmatch(rf"0x[0-9a-fA-F]{{{2 * size_bytes}}}", value):
        return bytes.fromhex(value[2:])
    raise _bad(f"`{name}` is 0x and {2 * size_bytes} hex digits")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in an object")
    return found


def _refuse(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _bad(text: str) -> BadRequest:
    return BadRequest(f"PAYMENT-SIGNATURE: {text}")


# --- what goes --------------------------------------------------------------------------------------------------------


def header(value: Mapping[str, object]) -> str:
    """An object as the value of a header."""
    return base64.b64encode(json.dumps(value, separators=(",", ":")).encode()).decode("ascii")


def required(
    why: str, url: str, terms: Terms, offer: Offer, stand: PayStand | None = None, channel: bytes = b""
) -> dict[str, object]:
    """PAYMENT-REQUIRED: what the request at `url` costs, and `why` it is not answered as it is.

    With `stand`, how the payer's channel stands with us, for one that has proven to be the payer: a client whose sums
    are not ours takes these, after it has found its own signature among them.
    """
    extra: dict[str, object] = {
        "name": terms.token_name,
        "version": terms.token_version,
        "assetTransferMethod": "eip3009",
        "receiverAuthorizer": _hex(terms.receiver_authorizer),
        "withdrawDelay": terms.withdraw_delay_s,
        "minDeposit": str(max(offer.amount, terms.least_deposit_micros)),
        "meshnode": {
            "model": offer.model,
            "priceIn": str(offer.price.tokens_in),
            "priceOut": str(offer.price.tokens_out),
            "mostTokensIn": str(offer.most_in),
            "mostTokensOut": str(offer.most_out),
        },
    }
    if stand is not None:
        extra["channelState"] = channel_state(channel, stand, stand.charged)
        if stand.signature:
            extra["voucherState"] = {"signedMaxClaimable": str(stand.vouched), "signature": _hex(stand.signature)}
    requirements = {
        "scheme": SCHEME,
        "network": terms.network,
        "amount": str(offer.amount),
        "asset": _hex(terms.token),
        "payTo": _hex(terms.receiver),
        "maxTimeoutSeconds": TIMEOUT_S,
        "extra": extra,
    }
    resource = {"url": url, "description": f"an answer of {offer.model}", "mimeType": "application/json"}
    return {"x402Version": VERSION, "error": why, "resource": resource, "accepts": [requirements]}


def settled(
    payment: Payment,
    stand: PayStand | None,
    *,
    transaction: bytes = b"",
    charged: int | None = None,
    total: int = 0,
    receipt: bytes = b"",
) -> dict[str, object]:
    """PAYMENT-RESPONSE. `charged` is what the request came to, and `total` all that its channel was charged with it;
    None while that is not known, or was not written down. `stand` is how the channel stood before, where that is known;
    `transaction` is that of the deposit, if one was sent.
    """
    state = channel_state(payment.voucher.channel, stand, None if charged is None else total)
    extra: dict[str, object] = {"channelState": state}
    if charged is not None:
        extra["chargedAmount"] = str(charged)
    if receipt:
        extra["meshnodeReceipt"] = receipt.decode()
    return {
        "success": True,
        "payer": _hex(payment.config.payer),
        "transaction": _hex(transaction) if transaction else "",
        "network": payment.network,
        "amount": str(payment.deposit.amount) if transaction and payment.deposit else "",
        "extra": extra,
    }


def channel_state(channel: bytes, stand: PayStand | None, charged: int | None) -> dict[str, object]:
    """How a channel stands, in the words of the scheme. What is None is left out."""
    state: dict[str, object] = {"channelId": _hex(channel)}
    if stand is not None:
        state |= {"balance": str(stand.balance), "totalClaimed": str(stand.claimed)}
    return state if charged is None else {**state, "chargedCumulativeAmount": str(charged)}


def reason_of(code: int) -> str:
    """What a refusal with a code of ours is called in the scheme; our own words where it has none."""
    return _OF_CODE.get(code) or PAY_TEXTS.get(code, "the payment is refused")


def _hex(data: bytes) -> str:
    return "0x" + data.hex()
