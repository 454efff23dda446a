"""What a payer does on the chain: put money into a channel, take back what is left.

A deposit is a signature of the fund key that lets the collector take one amount for one channel (EIP-3009). It is
written down before it leaves this node, and the same one is used until it was taken or is late: however often a
deposit is tried, and through whom, it is made once. Its transaction is sent by this node where its key has coins for
the fee, else by the provider. Whoever sends it cannot redirect it.

Money comes back in two ways. The provider gives back what it has not earned, at once, if it is asked and there
(`close`). Or the withdrawal is announced to the chain, and done after the delay that the channel has (`withdraw`);
that needs nobody's consent, and `panic` does it for all channels.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from meshnode.errors import NoChannel, TransactionFailed, WrongNetwork
from meshnode.settlement import contracts, preflight
from meshnode.settlement.chain import Chain
from meshnode.settlement.contracts import Authorization, Standing, typed
from meshnode.settlement.fees import dollars
from meshnode.settlement.keccak import keccak256
from meshnode.settlement.keys import VoucherKey
from meshnode.settlement.outcomes import Outcome, Step
from meshnode.settlement.sending import Order
from meshnode.settlement.store_channels import Channel
from meshnode.settlement.typed_data import channel_id, refund_request_digest
from meshnode.wire.payments import ChannelConfig, PayOpen, PayRefund

VALID_S = 3600
"""How long the chain takes a deposit that was signed: long enough for a slow provider, and soon over."""
MOST_TOGETHER = 20
"""Withdrawals announced in one transaction."""

AskOpen = Callable[[PayOpen], Awaitable[bytes]]
"""Has the provider send a deposit; the hash of its transaction. Raises PaymentRefused, PeerUnreachable."""
AskRefund = Callable[[PayRefund], Awaitable[bytes]]
"""Has the provider give back what is left; the hash of its transaction. Raises as AskOpen."""


class Depositor:
    """The payer's side. All methods raise ChainUnreachable, ChainDisagrees and WrongNetwork; those that send raise
    TransactionFailed and GasCapReached, and what the disk raises. With `is_dry` nothing is written or sent, and no
    signature is shown that could be used.
    """

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    async def deposit(
        self,
        config: ChannelConfig,
        amount_micros: int,
        fund: VoucherKey,
        node: bytes,
        *,
        ask_open: AskOpen | None = None,
        is_dry: bool = False,
    ) -> Outcome:
        """Put an amount into the channel to `node`, which is made by that if it was not there. Returns when it is sent;
        what can be relied on is told to the book later.

        Raises ValueError for a channel of other keys. Whether the policy allows it has been asked before.
        """
        chain = self._chain
        network = chain.network
        if (config.payer, config.payer_authorizer) != (fund.address, chain.key.address):
            raise ValueError("the channel belongs to other keys")
        if config.token != network.token:
            raise WrongNetwork("the channel is in another token")
        most = chain.bounds().most_deposit_micros
        if not 0 < amount_micros <= most:
            raise TransactionFailed(f"a deposit is more than nothing and at most {dollars(most)}")
        await chain.check()
        channel = channel_id(typed(config), network.chain, network.hub)
        given = await self.outstanding(channel, config.payer)
        if given is not None and given.amount_micros != amount_micros:
            raise TransactionFailed(f"a deposit of {dollars(given.amount_micros)} into this channel is still under way")
        if given is not None and await preflight.is_used(chain.rpc, network, config.payer, channel, given.salt):
            note = "the deposit is in a block; it counts as soon as that is settled"
            return Outcome(channel=channel, amount_micros=amount_micros, note=note, is_dry=is_dry)
        if given is None or await chain.transactions.find(f"{_deposit_stem(channel, given)}#0") is None:
            hindrance = await preflight.obstacle(chain.rpc, network, typed(config), amount_micros)
            if hindrance is not None:
                raise TransactionFailed(hindrance.text)
        if given is None:
            given = await self._authorized(config, amount_micros, fund)
            if not is_dry:
                await chain.book.opening(config, channel, "payer", node)
                given = await chain.transactions.keep_authorization(channel, given)
        order = await self._order(channel, config, given)
        outcome = Outcome(channel=channel, amount_micros=amount_micros, is_dry=is_dry)
        if await self._pays_fees(order):
            step = await chain.do(order, is_dry=is_dry)
            return replace(outcome, steps=(_unsigned(step, given) if is_dry else step,))
        if ask_open is None:
            plan = await chain.sender.plan(order)
            if not is_dry:
                raise TransactionFailed(chain.sender.short_of(plan))
            return replace(outcome, steps=(_unsigned(Step.planned(plan), given),), note=chain.sender.short_of(plan))
        asked = Step("deposit", order.target, order.data, 0, 0, state="asked-provider", channel=channel)
        if is_dry:
            return replace(outcome, steps=(_unsigned(asked, given),), note="the provider sends it and pays the fee")
        answer = await ask_open(_open_message(config, network.chain, given))
        return replace(outcome, steps=(replace(asked, digest=answer),), note="the provider sends it and pays the fee")

    async def outstanding(self, channel: bytes, payer: bytes) -> Authorization | None:
        """The deposit into a channel that was signed before and can still be taken; one that cannot is forgotten."""
        given = await self._chain.transactions.authorization(channel)
        if given is None or not await self._is_over(channel, payer, given):
            return given
        await self._chain.transactions.drop_authorization(channel, given.salt)
        return None

    async def _is_over(self, channel: bytes, payer: bytes, given: Authorization) -> bool:
        """Whether it was taken for good, or never can be: by what a final block says."""
        rpc, network = self._chain.rpc, self._chain.network
        final = await rpc.final()
        if await preflight.is_used(rpc, network, payer, channel, given.salt, block=final):
            return True
        return (await rpc.block(final)).at >= given.valid_before

    async def _authorized(self, config: ChannelConfig, amount_micros: int, fund: VoucherKey) -> Authorization:
        """A deposit signed by the fund key. Its times are those of the chain: this machine's clock may be wrong."""
        now = (await self._chain.rpc.head()).at
        terms = Authorization(amount_micros, 0, now + VALID_S, secrets.token_bytes(32), b"")
        digest = preflight.authorization_digest(self._chain.network, typed(config), terms)
        return replace(terms, signature=fund.sign(digest))

    async def _order(self, channel: bytes, config: ChannelConfig, given: Authorization) -> Order:
        network = self._chain.network
        data = contracts.deposit(typed(config), given, network.collector)
        purpose = await self._chain.purpose(_deposit_stem(channel, given))
        return Order(purpose, "deposit", network.hub, data, (channel,))

    async def _pays_fees(self, order: Order) -> bool:
        """Whether this node's key has coins for the transaction, or has sent it already."""
        if await self._chain.transactions.find(order.purpose) is not None:
            return True
        return (
            bool(await self._chain.rpc.wei(self._chain.key.address))
            and not (await self._chain.sender.plan(order)).short_wei
        )

    # --- back ---

    async def withdraw(self, channel_id: bytes, *, is_dry: bool = False) -> Outcome:
        """Announce to the chain that all that is left of a channel is taken back. Raises NoChannel."""
        channel = await self._own(channel_id)
        standing = (await self._chain.refresh([channel]))[channel_id]
        outcome = Outcome(channel=channel_id, amount_micros=standing.left_micros, is_dry=is_dry)
        if standing.withdraw_since:
            return replace(outcome, note="the withdrawal was announced before, and is done after its delay")
        if not standing.left_micros:
            return replace(outcome, note="nothing is left in the channel")
        order = Order(
            await self._chain.purpose(f"withdraw:{channel_id.hex()}"),
            "initiate-withdraw",
            self._chain.network.hub,
            contracts.initiate_withdraw(typed(channel.config), standing.left_micros),
            (channel_id,),
        )
        step = await self._chain.do(order, is_dry=is_dry)
        days = channel.config.withdraw_delay_s / 86_400
        return replace(outcome, steps=(step,), note=f"it is done by this node after the delay of {days:.2g} days")

    async def panic(self, *, is_dry: bool = False) -> Outcome:
        """Announce the withdrawal of every channel, as many at once as go together."""
        channels = [channel for channel in await self._chain.book.channels() if channel.role == "payer"]
        standings = await self._chain.refresh(channels)
        begun = await self._chain.under_way("initiate-withdraw")
        left = [
            channel
            for channel in channels
            if standings[channel.id].left_micros
            and not standings[channel.id].withdraw_since
            and channel.id not in begun
        ]
        steps: list[Step] = []
        for first in range(0, len(left), MOST_TOGETHER):
            steps += await self._announced(left[first : first + MOST_TOGETHER], standings, is_dry)
        total = sum(standings[channel.id].left_micros for channel in left)
        note = "" if left else "there is no channel from which anything could be withdrawn"
        return Outcome(tuple(steps), amount_micros=total, note=note, is_dry=is_dry)

    async def _announced(self, some: Sequence[Channel], standings: dict[bytes, Standing], is_dry: bool) -> list[Step]:
        """One transaction for all of them; where that would fail, one for each that does not."""
        ids = tuple(channel.id for channel in some)
        calls = [
            contracts.initiate_withdraw(typed(channel.config), standings[channel.id].left_micros) for channel in some
        ]
        stem = f"withdraw:{ids[0].hex()}" if len(some) == 1 else f"withdraw:{keccak256(b''.join(sorted(ids))).hex()}"
        order = Order(
            await self._chain.purpose(stem),
            "initiate-withdraw",
            self._chain.network.hub,
            contracts.together(calls),
            ids,
        )
        if not await self._chain.would_succeed(order):
            alone = [[channel] for channel in some] if len(some) > 1 else []
            return [step for one in alone for step in await self._announced(one, standings, is_dry)]
        return [await self._chain.do(order, is_dry=is_dry)]

    async def finalize(self, channel: Channel, standing: Standing, now: int) -> Step | None:
        """Do an announced withdrawal whose time has come, by the chain's clock."""
        if not standing.withdraw_since or now < standing.withdraw_since + channel.config.withdraw_delay_s:
            return None
        order = Order(
            await self._chain.purpose(f"finalize:{channel.id.hex()}:{standing.withdraw_since}"),
            "finalize-withdraw",
            self._chain.network.hub,
            contracts.finalize_withdraw(typed(channel.config)),
            (channel.id,),
        )
        return await self._chain.do(order)

    async def close(self, channel_id: bytes, ask_refund: AskRefund, *, is_dry: bool = False) -> Outcome:
        """Ask the provider to give back what it has not earned. Raises NoChannel, and what `ask_refund` raises.

        What the provider answers is not believed: the chain is looked at.
        """
        channel = await self._own(channel_id)
        standing = (await self._chain.refresh([channel]))[channel_id]
        outcome = Outcome(channel=channel_id, amount_micros=standing.left_micros, is_dry=is_dry)
        if not standing.left_micros:
            return replace(outcome, note="nothing is left in the channel")
        network = self._chain.network
        asked = Step("refund", network.hub, b"", 0, 0, state="asked-provider", channel=channel_id)
        if is_dry:
            return replace(outcome, steps=(asked,), note="the provider sends it and pays the fee")
        name = f"refund:{channel_id.hex()}"
        nonce = await self._chain.transactions.cursor(name) + 1
        await self._chain.transactions.move_cursor(name, nonce)
        digest = refund_request_digest(channel_id, nonce, standing.left_micros, network.chain, network.hub)
        answer = await ask_refund(PayRefund(channel_id, nonce, standing.left_micros, self._chain.key.sign(digest)))
        return replace(outcome, steps=(replace(asked, digest=answer),), note="the provider sends it and pays the fee")

    async def _own(self, channel_id: bytes) -> Channel:
        """A channel that this node pays through and its key can speak for."""
        channel = await self._chain.channel(channel_id)
        if channel is None or channel.role != "payer":
            raise NoChannel(f"0x{channel_id.hex()}")
        if self._chain.key.address not in (channel.config.payer, channel.config.payer_authorizer):
            raise NoChannel(f"0x{channel_id.hex()} belongs to another key")
        return channel


def _deposit_stem(channel: bytes, given: Authorization) -> str:
    return f"deposit:{channel.hex()}:{given.salt.hex()}"


def _unsigned(step: Step, given: Authorization) -> Step:
    """A step as it may be shown: whoever has the signature can send the deposit."""
    return replace(step, data=step.data.replace(given.signature, bytes(len(given.signature))))


def _open_message(config: ChannelConfig, chain: int, given: Authorization) -> PayOpen:
    return PayOpen(
        config, chain, given.amount_micros, given.valid_after, given.valid_before, given.salt, given.signature
    )
