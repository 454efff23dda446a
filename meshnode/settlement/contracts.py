"""The three contracts of a payment channel (hub, deposit collector, token) and the fee oracle of OP chains, as bytes.

What is encoded here is sent by `sending`, what is decoded here was read by `rpc`. The ABI is that of x402's
`batch-settlement`, in `abi/*.json`. Nothing here knows a chain or keeps anything.

A hub holds for each channel what was ever deposited (`balance`) and what its receiver has ever claimed; what is claimed
leaves it by `settle`, for all channels of one receiver at once. A withdrawal is announced, and done after the delay.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from meshnode.settlement.abi_codec import Interface, Malformed, encode
from meshnode.settlement.answers import Log
from meshnode.settlement.typed_data import ChannelConfig
from meshnode.wire import payments as wire

FEE_ORACLE = bytes.fromhex("420000000000000000000000000000000000000f")
"""Where OP chains tell what a transaction costs on the chain below: the same address on all of them."""
FEE_ORACLE_ABI = (
    {"type": "function", "name": "getL1Fee", "inputs": [{"type": "bytes"}], "outputs": [{"type": "uint256"}]},
)
WATCHED = ("Deposited", "Claimed", "Refunded", "WithdrawInitiated", "WithdrawFinalized")
"""Events that change what a channel is worth."""

EventName = Literal["Deposited", "Claimed", "Refunded", "WithdrawInitiated", "WithdrawFinalized"]


@dataclass(frozen=True, slots=True)
class Claim:
    """A voucher as the hub takes it: signed up to `ceiling_micros`, of which `total_micros` are claimed in all."""

    config: ChannelConfig
    ceiling_micros: int
    signature: bytes
    total_micros: int

    def row(self) -> tuple[Any, ...]:
        """As the ABI has it."""
        return ((config_row(self.config), self.ceiling_micros), self.signature, self.total_micros)


@dataclass(frozen=True, slots=True)
class Authorization:
    """The payer's signature that lets the collector take a deposit (EIP-3009). Times in the chain's epoch seconds,
    both ends excluded; `salt` tells deposits into one channel apart.
    """

    amount_micros: int
    valid_after: int
    valid_before: int
    salt: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Standing:
    """What the hub says of one channel. `withdraw_since` is 0, or when a withdrawal was announced (the chain's clock).

    `refund_nonce` counts the refunds that were made by signature.
    """

    balance_micros: int = 0
    claimed_micros: int = 0
    withdraw_micros: int = 0
    withdraw_since: int = 0
    refund_nonce: int = 0

    @property
    def left_micros(self) -> int:
        """What is neither claimed nor withdrawn."""
        return self.balance_micros - self.claimed_micros


@dataclass(frozen=True, slots=True)
class ChannelEvent:
    """A log of the hub about one channel."""

    name: EventName
    channel: bytes
    block: int
    transaction: bytes
    amount_micros: int


def typed(config: wire.ChannelConfig) -> ChannelConfig:
    """A configuration as a peer sent it, or as the journal keeps it, in the form that is hashed and sent to the hub."""
    parties = (config.payer, config.payer_authorizer, config.receiver, config.receiver_authorizer, config.token)
    return ChannelConfig(*parties, config.withdraw_delay_s, config.salt)


def config_row(config: ChannelConfig) -> tuple[Any, ...]:
    """A channel's configuration in the order of the ABI."""
    parties = (config.payer, config.payer_authorizer, config.receiver, config.receiver_authorizer, config.token)
    return (*parties, config.withdraw_delay, config.salt)


@cache
def interface(name: Literal["hub", "collector", "token"]) -> Interface:
    """A contract's ABI, read from the package once."""
    file = Path(__file__).with_name("abi") / f"{name}.json"
    return Interface(json.loads(file.read_text("utf-8")))


@cache
def fee_oracle() -> Interface:
    """The ABI of FEE_ORACLE, as far as it is asked."""
    return Interface(FEE_ORACLE_ABI)


# --- what is sent to the hub ---


def deposit(config: ChannelConfig, authorization: Authorization, collector: bytes) -> bytes:
    """Put an authorized amount into a channel."""
    collected = encode(
        ("uint256", "uint256", "uint256", "bytes"),
        (
            *(authorization.valid_after, authorization.valid_before),
            *(int.from_bytes(authorization.salt, "big"), authorization.signature),
        ),
    )
    return interface("hub").encode("deposit", config_row(config), authorization.amount_micros, collector, collected)


def claim(claims: Sequence[Claim]) -> bytes:
    """Claim vouchers; sent by the receiver or its authorizer. One that cannot be claimed fails them all."""
    return interface("hub").encode("claim", [item.row() for item in claims])


def settle(receiver: bytes, token: bytes) -> bytes:
    """Pay out all that was claimed for a receiver; anyone may send it."""
    return interface("hub").encode("settle", receiver, token)


def initiate_withdraw(config: ChannelConfig, amount_micros: int) -> bytes:
    """Announce a withdrawal; sent by the payer or its authorizer."""
    return interface("hub").encode("initiateWithdraw", config_row(config), amount_micros)


def finalize_withdraw(config: ChannelConfig) -> bytes:
    """Do an announced withdrawal after its delay."""
    return interface("hub").encode("finalizeWithdraw", config_row(config))


def refund(config: ChannelConfig, amount_micros: int) -> bytes:
    """Give back what is not claimed; sent by the receiver or its authorizer."""
    return interface("hub").encode("refund", config_row(config), amount_micros)


def together(calls: Sequence[bytes]) -> bytes:
    """Several calls of the hub in one transaction, all or none; one call as it is."""
    return calls[0] if len(calls) == 1 else interface("hub").encode("multicall", list(calls))


# --- what is asked of hub, token and oracle ---


def standings_question(channels: Sequence[bytes]) -> bytes:
    """Ask the hub for all that it holds of some channels, in one call."""
    hub = interface("hub")
    names = ("channels", "pendingWithdrawals", "refundNonce")
    return hub.encode("multicall", [hub.encode(name, channel) for channel in channels for name in names])


def standings(channels: Sequence[bytes], answer: bytes) -> dict[bytes, Standing]:
    """The answer to `standings_question`. Raises Malformed."""
    hub = interface("hub")
    (parts,) = hub.decode("multicall", answer)
    if len(parts) != 3 * len(channels):
        raise Malformed(f"{len(parts)} answers to {3 * len(channels)} questions")
    found = {}
    for number, channel in enumerate(channels):
        funds, pending, refunds = parts[3 * number : 3 * number + 3]
        balance, claimed = hub.decode("channels", funds)
        amount, since = hub.decode("pendingWithdrawals", pending)
        (nonce,) = hub.decode("refundNonce", refunds)
        if claimed > balance:
            raise Malformed("a channel of which more is claimed than was deposited")
        found[channel] = Standing(balance, claimed, amount, since, nonce)
    return found


def unsettled_question(receiver: bytes, token: bytes) -> bytes:
    """Ask the hub what was claimed for a receiver, and what of it was paid out."""
    return interface("hub").encode("receivers", receiver, token)


def unsettled(answer: bytes) -> tuple[int, int]:
    """What was claimed in all, and what of that is still in the hub. Raises Malformed."""
    claimed, settled = interface("hub").decode("receivers", answer)
    if settled > claimed:
        raise Malformed("more is paid out than was claimed")
    return claimed, claimed - settled


def token_question(name: str, *arguments: Any) -> bytes:
    """Ask the token."""
    return interface("token").encode(name, *arguments)


def token_answer(name: str, answer: bytes) -> Any:
    """The one value that the token answers with. Raises Malformed."""
    return interface("token").decode(name, answer)[0]


# --- what the hub logs ---


def watched_topics(channels: Sequence[bytes]) -> list[list[bytes]]:
    """The filter for logs of these channels: the first topic is the event, the second the channel."""
    return [[interface("hub").events[name].topic for name in WATCHED], list(channels)]


def channel_event(log: Log) -> ChannelEvent | None:
    """What a log of the hub says of a channel; None for one that says nothing of it. Raises Malformed."""
    event = interface("hub").event(log.topics, log.data)
    if event is None or event.name not in WATCHED:
        return None
    amount = event.members.get("amount", event.members.get("claimAmount", 0))
    return ChannelEvent(event.name, event.members["channelId"], log.block, log.transaction, amount)  # type: ignore[arg-type]
