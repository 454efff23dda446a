"""Channels as people, requests and peers want them: opened, filled, asked about, closed.

    fill        a request needs money in a channel to a node: within the policy, if the funds are unlocked
    deposit     a person in a terminal puts an amount into a channel
    withdraw, close, claim, panic
    answer      what peers ask of this node as a provider (`pay` streams)

A channel leads from the funds of this wallet to one node, on the terms that this node has signed. What is locked in
channels is counted by the ledger before anything is signed, so that no bug of what follows can lock more than allowed.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from meshnode.errors import (
    MeshnodeError,
    NoChannel,
    NodeNotFound,
    NotInMesh,
    PaymentRefused,
    PaymentRequired,
    WalletLocked,
)
from meshnode.mesh.mesh import Mesh
from meshnode.mesh.payments_stream import Answer, Question, ask
from meshnode.settlement import contracts
from meshnode.settlement.keys import VoucherKey
from meshnode.settlement.networks import Network
from meshnode.settlement.outcomes import Outcome
from meshnode.settlement.store_book import Book
from meshnode.settlement.store_channels import Channel
from meshnode.settlement.typed_data import channel_id
from meshnode.settling import Settling
from meshnode.spending import Spending
from meshnode.wallets import Wallets
from meshnode.wire import quotes
from meshnode.wire.payments import (
    ChannelConfig,
    PayOpen,
    PayOpened,
    PayQuote,
    PayRefund,
    PayRefunded,
    PayStand,
    PayState,
    PayTerms,
)
from meshnode.wire.quotes import Quote
from meshnode.wire.registry import PayCode
from meshnode.wire.signed import Verify
from meshnode.wire.values import WireError

SALT_BYTES = 32
LOOK_S = 0.5
USABLE_S = 60.0
"""So long a deposit is waited for; one that comes later is there for the next request."""
NODE_HEX = 64
SHOWN_DIGITS = 10


class Sells(Protocol):
    """The provider's side of a channel, as peers may ask about it."""

    async def terms(self, question: PayTerms) -> PayQuote: ...
    async def stand(self, question: PayState, node: bytes) -> PayStand: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BankingParts:
    """`mesh` is the public mesh, while there is one; `settling` raises why there is no chain. `sells` is the provider's
    side, None where this node sells nothing.
    """

    network: Network
    wallets: Wallets
    book: Book
    purse: Spending
    verify: Verify
    mesh: Callable[[], Mesh | None]
    settling: Callable[[], Awaitable[Settling]]
    sells: Callable[[], Sells | None]


class Banking:
    """See the module."""

    def __init__(self, parts: BankingParts) -> None:
        self._its = parts
        self._opening = asyncio.Lock()

    # --- money into channels ----------------------------------------------------------------------------------------

    async def fill(self, node: bytes, least_micros: int) -> None:
        """Put what the policy allows into a channel to `node`, at least so much; returns when it can be used.

        Raises NoChannel where the policy leaves less or the funds are locked, and what the chain says.
        """
        its = self._its
        try:
            fund = await asyncio.to_thread(its.wallets.fund_key)
        except WalletLocked:
            raise NoChannel(
                "the funds are locked, so that this node opens none by itself",
                fix=f"meshnode wallet deposit {node.hex()[:SHOWN_DIGITS]} USD, or MESHNODE_WALLET_PASSWORD_FILE",
            ) from None
        async with self._opening:
            config, channel = await self._channel_to(node, fund)
            wanted = await its.purse.deposit_wanted(channel)
            if wanted < least_micros:
                raise NoChannel(
                    f"the request may cost {least_micros} micro-USDC, and the policy leaves {wanted} for a deposit",
                    fix="raise the deposit or the cap in a terminal: meshnode wallet policy",
                )
            before = await self._usable(channel)
            outcome = await self._put(config, channel, wanted, fund, node, by_hand=False)
        if not outcome.steps:
            raise NoChannel(outcome.note, fix="try again in some minutes", retry_after_s=60)
        await self._until_usable(channel, before + outcome.amount_micros)

    async def deposit(self, node: str, amount_micros: int, password: bytes | None, dry_run: bool) -> dict[str, Any]:
        """See spending_control.Settlement."""
        its = self._its
        found = self._named(node)
        fund = await asyncio.to_thread(its.wallets.fund_key, password)
        async with self._opening:
            config, channel = await self._channel_to(found, fund)
            outcome = await self._put(config, channel, amount_micros, fund, found, by_hand=True, is_dry=dry_run)
        return outcome.as_dict()

    async def _put(
        self,
        config: ChannelConfig,
        channel: bytes,
        micros: int,
        fund: VoucherKey,
        node: bytes,
        *,
        by_hand: bool,
        is_dry: bool = False,
    ) -> Outcome:
        settling = await self._its.settling()
        under_way = await settling.outstanding(channel, config.payer)
        if under_way is not None:
            micros = under_way.amount_micros  # signed and counted before: that one is brought to its end first
        elif not is_dry:
            # The ledger knows of the channel from here on, and holds the amount against the policy.
            await self._counted(config, channel, micros, node, by_hand)
        try:
            return await settling.deposit(config, micros, fund, node, ask_open=self._opens_at(node), is_dry=is_dry)
        except MeshnodeError:
            # What was signed may still be sent by whoever has it, and stays counted.
            if under_way is None and not is_dry and await settling.outstanding(channel, config.payer) is None:
                await self._its.purse.deposit_failed(channel, micros)
            raise

    async def _counted(self, config: ChannelConfig, channel: bytes, micros: int, node: bytes, by_hand: bool) -> None:
        """Have the ledger hold an amount for a channel. A new one that the policy refuses is closed again."""
        its = self._its
        is_new = all(each.id != channel for each in await its.book.channels())
        await its.book.opening(config, channel, "payer", node)
        try:
            await its.purse.deposit_begins(channel, micros, by_hand=by_hand)
        except MeshnodeError:
            if is_new:
                nothing = {"balance_micros": 0, "usable_micros": 0, "claimed_micros": 0, "withdrawable_at": None}
                await its.book.seen(channel, state="closed", **nothing)  # type: ignore[arg-type]
            raise

    async def _channel_to(self, node: bytes, fund: VoucherKey) -> tuple[ChannelConfig, bytes]:
        """The open channel of these funds to a node, or the one that will be; nothing is written for that."""
        its = self._its
        voucher = await asyncio.to_thread(its.wallets.voucher_key)
        terms = await self._terms(node)
        for channel in await its.book.channels():
            if _leads(channel, node, fund.address, voucher.address, terms):
                return channel.config, channel.id
        config = ChannelConfig(
            payer=fund.address,
            payer_authorizer=voucher.address,
            receiver=terms.receiver,
            receiver_authorizer=terms.receiver_authorizer,
            token=terms.token,
            withdraw_delay_s=terms.withdraw_delay_s,
            salt=os.urandom(SALT_BYTES),
        )
        if not config.is_sound:
            raise PaymentRefused("its terms make no channel", pay_code=PayCode.BAD_ASK)
        return config, channel_id(contracts.typed(config), its.network.chain, its.network.hub)

    async def _terms(self, node: bytes) -> Quote:
        network = self._its.network
        answer = await self._ask(node, PayTerms(chain=network.chain))
        assert isinstance(answer, PayQuote)
        try:
            terms = quotes.read_genuine(answer.quote, node=node, verify=self._its.verify)
        except WireError as reason:
            raise PaymentRefused(f"its terms cannot be read: {reason.reason}", pay_code=PayCode.BAD_SIGNATURE) from None
        if (terms.chain, terms.hub, terms.token) != (network.chain, network.hub, network.token):
            raise PaymentRefused(f"it is not paid on {network.title}", pay_code=PayCode.UNSUPPORTED_NETWORK)
        return terms

    def _opens_at(self, node: bytes) -> Callable[[PayOpen], Awaitable[bytes]]:
        async def opens(asked: PayOpen) -> bytes:
            answer = await self._ask(node, asked)
            assert isinstance(answer, PayOpened)
            return answer.transaction

        return opens

    async def _ask(self, node: bytes, question: Question) -> Answer:
        mesh = self._its.mesh()
        if mesh is None:
            raise NotInMesh("strangers are paid in a public mesh", fix="start the node with --auto or --publish")
        answer: Answer = await ask(mesh.open_stream, node, question)
        return answer

    async def _usable(self, channel: bytes) -> int:
        return sum(each.usable_micros for each in await self._its.book.channels() if each.id == channel)

    async def _until_usable(self, channel: bytes, micros: int) -> None:
        settling = await self._its.settling()
        until = time.monotonic() + USABLE_S
        while await self._usable(channel) < micros:
            if time.monotonic() > until:
                raise NoChannel("the deposit is on its way", fix="try again in a minute", retry_after_s=30)
            await asyncio.sleep(LOOK_S)
            await settling.look_at(channel)

    def _named(self, node: str) -> bytes:
        """The node that a person means: an id, the beginning of one, or a name. Raises NodeNotFound."""
        if len(node) == NODE_HEX and set(node.lower()) <= set("0123456789abcdef"):
            return bytes.fromhex(node)
        mesh = self._its.mesh()
        members = mesh.members().members.values() if mesh is not None else ()
        found = {
            member.node
            for member in members
            if (len(node) >= 6 and member.node.hex().startswith(node.lower()))
            or (member.identity is not None and member.identity.name == node)
        }
        if len(found) != 1:
            which = "is the name of several nodes" if found else "is no node of the public mesh"
            raise NodeNotFound(f"{node!r} {which}", fix="meshnode peers shows the nodes, with their ids")
        return found.pop()

    # --- money out of channels --------------------------------------------------------------------------------------

    async def withdraw(self, channel: str, dry_run: bool) -> dict[str, Any]:
        """See spending_control.Settlement."""
        settling = await self._its.settling()
        return (await settling.withdraw(bytes.fromhex(channel[2:]), is_dry=dry_run)).as_dict()

    async def close(self, channel: str, dry_run: bool) -> dict[str, Any]:
        """See spending_control.Settlement."""
        settling, wanted = await self._its.settling(), bytes.fromhex(channel[2:])
        found = next((each for each in await self._its.book.channels() if each.id == wanted), None)
        if found is None or found.role != "payer":
            raise NoChannel(f"{channel} is no channel that this node pays through", fix="meshnode wallet channels")

        async def refunds(asked: PayRefund) -> bytes:
            answer = await self._ask(found.node, asked)
            assert isinstance(answer, PayRefunded)
            return answer.transaction

        return (await settling.close_channel(wanted, refunds, is_dry=dry_run)).as_dict()

    async def claim(self, dry_run: bool) -> dict[str, Any]:
        """See spending_control.Settlement."""
        settling = await self._its.settling()
        if self._its.sells() is None:
            raise PaymentRequired("this node sells nothing", fix="start it with --publish and --price-out USD")
        return (await settling.claim_now(is_dry=dry_run)).as_dict()

    async def panic(self, dry_run: bool) -> dict[str, Any]:
        """See spending_control.Settlement."""
        settling = await self._its.settling()
        return (await settling.panic(is_dry=dry_run)).as_dict()

    # --- what peers ask of a provider -------------------------------------------------------------------------------

    async def answer(self, node: bytes, question: Question) -> Answer:
        """A Desk of mesh/payments_stream.py."""
        sells = self._its.sells()
        if sells is None:
            raise PaymentRefused("this node sells nothing", pay_code=PayCode.NOT_SELLING)
        match question:
            case PayTerms():
                return await sells.terms(question)
            case PayState():
                return await sells.stand(question, node)
        try:
            settling = await self._its.settling()
            if isinstance(question, PayOpen):
                return PayOpened(await settling.sponsor(question, node))
            return PayRefunded(await settling.refund(question, node))
        except PaymentRefused:
            raise
        except MeshnodeError as error:
            raise PaymentRefused(error.summary, pay_code=PayCode.CHAIN_DOWN) from None


def _leads(channel: Channel, node: bytes, payer: bytes, authorizer: bytes, terms: Quote) -> bool:
    """Whether a channel is one of these funds to this node, and as the node would have it now."""
    config = channel.config
    return (
        channel.role == "payer"
        and channel.state in ("opening", "open")
        and channel.node == node
        and (config.payer, config.payer_authorizer, config.token) == (payer, authorizer, terms.token)
        and (config.receiver, config.receiver_authorizer) == (terms.receiver, terms.receiver_authorizer)
    )
