"""On which terms this node is paid: which channels it takes, and the quotes that say so.

Nothing here waits or writes. What is refused is refused with a code of the protocol, before anything is begun.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace

from meshnode.core.credit import MOST_UNPAID_PROMPT_TOKENS
from meshnode.core.prices import Price
from meshnode.core.windows import EVERY_TOKENS, MOST_AHEAD_TOKENS
from meshnode.earning_accounts import Account
from meshnode.errors import PaymentRefused
from meshnode.settlement.networks import Network
from meshnode.wire.payments import QUOTE_ID_BYTES, ChannelConfig
from meshnode.wire.quotes import Quote
from meshnode.wire.registry import LIMIT_QUOTE_TTL_S, PayCode

MOST_RUNNING = 8
"""Requests on one channel at a time."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """Whom strangers pay, and on which terms.

    `receiver` and `authorizer` are addresses: the first gets the money, the second claims it. Who deposits less than
    `least_deposit_micros`, or can withdraw sooner than `least_withdraw_delay_s`, is not served.
    """

    receiver: bytes
    authorizer: bytes
    least_deposit_micros: int = 100_000
    least_withdraw_delay_s: int = 86_400


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of the node with this key, on this network. `clock` is wall time (s)."""

    node: bytes
    network: Network
    conditions: Conditions
    clock: Callable[[], float]

    def check_chain(self, chain: int) -> None:
        """Raise PaymentRefused for another chain."""
        if chain != self.network.chain:
            text = f"it is paid on the chain {self.network.chain}, not {chain}"
            raise PaymentRefused(text, pay_code=PayCode.UNSUPPORTED_NETWORK)

    def checked(self, config: ChannelConfig | None) -> ChannelConfig:
        """The config of a channel that pays this node as it wants to be paid. Raises PaymentRefused."""
        wanted = self.conditions
        if config is None:
            raise PaymentRefused("open a channel first", pay_code=PayCode.UNKNOWN_CHANNEL)
        if not config.is_sound or config.token != self.network.token:
            raise PaymentRefused("no channel of this token", pay_code=PayCode.UNSUPPORTED_NETWORK)
        if (config.receiver, config.receiver_authorizer) != (wanted.receiver, wanted.authorizer):
            raise PaymentRefused("that channel pays somebody else", pay_code=PayCode.UNKNOWN_CHANNEL)
        if config.withdraw_delay_s < wanted.least_withdraw_delay_s:
            text = f"withdrawing from it takes less than {wanted.least_withdraw_delay_s} s"
            raise PaymentRefused(text, pay_code=PayCode.TOO_SMALL)
        return config

    def check_room(self, account: Account, node: bytes, least_micros: int) -> None:
        """Raise PaymentRefused where this node cannot use that channel now, for at least so much.

        The node that sent the first voucher has the channel: its config is public on the chain, its key is not.
        """
        channel, credit = account.channel, account.credit
        if credit.vouched_micros and channel.node != node:
            raise PaymentRefused("that channel is another node's", pay_code=PayCode.UNKNOWN_CHANNEL)
        if channel.state in ("withdrawing", "closing"):
            raise PaymentRefused("the channel is being closed", pay_code=PayCode.WITHDRAW_PENDING)
        if channel.state != "open":
            raise PaymentRefused("the channel is not open yet", pay_code=PayCode.UNKNOWN_CHANNEL)
        if credit.running >= MOST_RUNNING:
            raise PaymentRefused(f"{credit.running} requests run on the channel", pay_code=PayCode.CHANNEL_BUSY)
        if credit.balance_micros < self.conditions.least_deposit_micros and not credit.vouched_micros:
            raise PaymentRefused("the deposit is too small", pay_code=PayCode.TOO_SMALL)
        if min(credit.charged_micros, credit.vouched_micros) + least_micros > credit.balance_micros:
            raise PaymentRefused("the channel is used up", pay_code=PayCode.INSUFFICIENT_BALANCE)

    def quote(
        self, model: str, content_hash: bytes, price: Price, account: Account | None = None, request: str = ""
    ) -> Quote:
        """What a model costs now; for a request that has begun on an account, with how its channel stands."""
        conditions, network = self.conditions, self.network
        quote = Quote(
            id=secrets.token_bytes(QUOTE_ID_BYTES),
            node=self.node,
            model=model,
            content_hash=content_hash,
            price_in=price.tokens_in,
            price_out=price.tokens_out,
            every_tokens=EVERY_TOKENS,
            ahead_tokens=MOST_AHEAD_TOKENS,
            credit_tokens=0,
            unpaid_prefill_tokens=MOST_UNPAID_PROMPT_TOKENS,
            not_after=int(self.clock()) + LIMIT_QUOTE_TTL_S,
            chain=network.chain,
            hub=network.hub,
            token=network.token,
            receiver=conditions.receiver,
            receiver_authorizer=conditions.authorizer,
            withdraw_delay_s=conditions.least_withdraw_delay_s,
            min_deposit=conditions.least_deposit_micros,
        )
        if account is None:
            return quote
        credit, channel = account.credit, account.channel
        meter = credit.meter(request)
        return replace(
            quote,
            credit_tokens=meter.unpaid if meter else 0,
            unpaid_prefill_tokens=0 if credit.written_off_micros else MOST_UNPAID_PROMPT_TOKENS,
            channel=channel.id,
            charged=credit.stated(request),
            vouched=channel.signed_micros if channel.signature else 0,
            signature=channel.signature,
        )
