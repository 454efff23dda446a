"""What this node pays and earns, as one thing.

    Wallets    keys, policy, terminal value             (wallets.py)
    Store      the journal of money                     (settlement/store.py)
    Spending   strangers are paid: the Purse            (spending.py)
    Earning    strangers pay: the Till                  (earning.py)
    Settling   the chain                                (settling.py)
    Banking    channels, opened and filled and emptied  (banking.py)

A node that has no wallet and sells nothing has none of it. Whatever is wrong with the journal, the keys or the chain is
told in words, and keeps no node from starting: what is free goes on. The chain is asked by a node only that sells, that
has channels, or that is told to.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from meshnode.api.charging import Sale, Till
from meshnode.api.spending_control import SpendingControl, no_spending
from meshnode.banking import Banking, BankingParts
from meshnode.cashing import Cashing
from meshnode.config import Places, Settings
from meshnode.core.prices import FREE, Price
from meshnode.core.pricing import price_by_power
from meshnode.earning import Earning
from meshnode.earning_terms import Conditions
from meshnode.errors import ChainUnreachable, MeshnodeError, PaymentRefused, SettingsError
from meshnode.identity import Identity, verify
from meshnode.mesh.mesh import Mesh
from meshnode.money_events import MoneyEvents
from meshnode.serving import Tell
from meshnode.settlement import addresses, keys, networks
from meshnode.settlement.chain import Bounds
from meshnode.settlement.networks import Network
from meshnode.settlement.rpc import RpcPair
from meshnode.settlement.store import Store
from meshnode.settlement.store_book import Book
from meshnode.settlement.store_transactions import SCHEMA, SqliteTransactions
from meshnode.settlement.store_views import money_facts, shown_receipts
from meshnode.settling import Settling
from meshnode.spending import Spending
from meshnode.telemetry import LOG
from meshnode.wallets import Wallets
from meshnode.wire.payments import ChannelConfig, PayAsk
from meshnode.wire.registry import PayCode
from meshnode.wire.statements import Offer

if TYPE_CHECKING:
    from meshnode.settlement.keys import VoucherKey


WITHDRAW_DELAY_S = 86_400
"""A node at home may be off for hours: so long it has to claim what a payer is about to take away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoneyParts:
    """What of the node money has to do with. `mesh` is the public mesh, while there is one; `offers` are the
    models of this node; `record` writes to the audit log, and `recorded` says
    whether it is on the disk.
    """

    settings: Settings
    places: Places
    identity: Identity
    tell: Tell
    mesh: Callable[[], Mesh | None]
    offers: Callable[[], Sequence[Offer]]
    record: Callable[..., None]
    recorded: Callable[[], Awaitable[bool]]


def open_money(parts: MoneyParts) -> Money | None:
    """The money of a node; None for one that has no wallet and sells nothing.

    Raises SettingsError for a network that is not known.
    """
    settings = parts.settings
    wallets = Wallets(parts.places.home, password_file=settings.wallet_password_file)
    if not settings.sells and not wallets.exists():
        return None
    return Money(parts, wallets, networks.find(settings.network, settings.network_file))


def control_of(money: Money | None, settings: Settings) -> SpendingControl:
    """What the control API can be asked about money."""
    if money is not None:
        return SpendingControl(money, money.terminal)
    with contextlib.suppress(SettingsError):
        network = networks.find(settings.network, settings.network_file)
        return no_spending(network=network.name, chain=network.chain)
    return no_spending()


class Money(Till):
    """See the module. `start`, then `stop`. It is the Till of the guest door, and what the control API calls."""

    def __init__(self, parts: MoneyParts, wallets: Wallets, network: Network) -> None:
        self._its = parts
        self._wallets = wallets
        self._network = network
        self._store = Store(wallets.folder, more_tables=(SCHEMA,))
        self._book = Book(self._store, chain=network.chain, hub=network.hub)
        self._settling: Settling | None = None
        self._earning: Earning | None = None
        self._begin = asyncio.Lock()
        self._events = MoneyEvents(self._store, parts.record, parts.recorded)
        self._conditions: Conditions | None = None
        self.terminal = _terminal_of(wallets)
        self.purse = Spending(
            self._store,
            standing=lambda: wallets.policy(network=network.name, no_pay=parts.settings.no_pay),
            key=wallets.voucher_key,
            network=network,
            verify=verify,
            fund=self._fill,
        )
        self._book.listeners.append(self.purse.take)
        self.cashier = Cashing(
            network,
            price=self.price,
            conditions=lambda: self._conditions,
            earning=lambda: self._earning,
            settling=self._chain,
        )
        self.bank = Banking(
            BankingParts(
                network=network,
                wallets=wallets,
                book=self._book,
                purse=self.purse,
                verify=verify,
                mesh=parts.mesh,
                settling=self._chain,
                sells=lambda: self._earning,
            )
        )

    async def _fill(self, node: bytes, least_micros: int) -> None:
        await self.bank.fill(node, least_micros)

    # --- life -------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the journal, and begin to sell. Never raises: what is in the way is told."""
        await self._store.start()
        await self.purse.start()
        self._events.start()
        open_channels = False
        try:
            open_channels = any(channel.state != "closed" for channel in await self._book.channels())
        except MeshnodeError as reason:
            self._tell(reason)
        if self._its.settings.sells or open_channels:
            try:
                await self._chain()
            except MeshnodeError as reason:
                self._tell(reason)

    def _tell(self, reason: MeshnodeError) -> None:
        self._its.tell("money", f"{reason.message}. {reason.fix}".removesuffix(". "))

    async def stop(self) -> None:
        """Claim what is worth it, and close the journal."""
        if self._settling is not None:
            await self._settling.close()
        await self.purse.close()
        await self._events.close()
        await self._store.close()

    async def _chain(self) -> Settling:
        """The chain, and the till where this node sells. Raises what is wrong with the keys."""
        async with self._begin:
            if self._settling is None:
                await asyncio.to_thread(keys.prepare)
                sells = self._its.settings.sells
                key = await asyncio.to_thread(self._wallets.ensure_voucher_key if sells else self._wallets.voucher_key)
                receiver = await asyncio.to_thread(self._receiver, key)
                if sells:
                    self._earning = await self._opened_till(key, receiver)
                self._settling = self._made(key, receiver if sells else None)
                self._settling.start()
            return self._settling

    def _receiver(self, key: VoucherKey) -> bytes:
        """Where what is earned goes: as set, else to the funds, else to the key that sends."""
        given = self._its.settings.receiver or self._wallets.address()
        return addresses.parse(given) if given else key.address

    async def _opened_till(self, key: VoucherKey, receiver: bytes) -> Earning:
        identity = self._its.identity
        self._conditions = Conditions(receiver, key.address, least_withdraw_delay_s=WITHDRAW_DELAY_S)
        earning = Earning(
            self._store,
            node=bytes(identity.node_id),
            sign=identity.sign,
            price=self.price,
            content_hash=self._content_hash,
            conditions=self._conditions,
            network=self._network,
            look=self._look,
        )
        await earning.start()
        self._book.listeners.append(earning.take)
        return earning

    def _content_hash(self, model: str) -> bytes:
        offer = self._offer(model)
        return b"" if offer is None else offer.content_hash

    async def _look(self, config: ChannelConfig, channel: bytes, node: bytes) -> None:
        await (await self._chain()).look_for(config, channel, node)

    def _made(self, key: VoucherKey, receiver: bytes | None) -> Settling:
        settings, earning = self._its.settings, self._earning
        urls = settings.rpc or networks.ENDPOINTS.get(self._network.name, ())

        async def open_rpc() -> RpcPair:
            if not urls:
                raise ChainUnreachable(f"no endpoint of {self._network.name} is named", fix="name one: --rpc URL")
            return await RpcPair.of(urls, testnet=self._network.testnet)

        return Settling(
            self._network,
            open_rpc,
            SqliteTransactions(self._store.run),
            self._book,
            key,
            bounds=self._bounds,
            receiver=receiver,
            record=self._its.record,
            stop_serving=earning.withdrawn if earning is not None else lambda _: None,
            is_busy=earning.is_busy if earning is not None else lambda _: False,
        )

    def _bounds(self) -> Bounds:
        settings = self._its.settings
        policy = self._wallets.policy(network=self._network.name, no_pay=settings.no_pay).policy
        return Bounds(
            eth_micros=settings.eth_usd,
            gas_month_micros=policy.gas_month_micros,
            most_deposit_micros=policy.most_deposit_micros,
            most_unclaimed_micros=settings.claim_at,
            least_withdraw_delay_s=WITHDRAW_DELAY_S,
        )

    # --- the till ---------------------------------------------------------------------------------------------------

    def price(self, model: str, /) -> Price:
        """What strangers pay here for a model."""
        settings = self._its.settings
        if not settings.sells:
            return FREE
        if not settings.is_priced_by_power:
            return Price(*settings.price)
        offer = self._offer(model)
        return price_by_power(
            settings.watts,
            settings.kwh,
            settings.margin,
            answer_tenths=offer.decode_speed if offer is not None else 0,
            prompt_tenths=offer.prompt_speed if offer is not None else 0,
        )

    def _offer(self, model: str) -> Offer | None:
        return next((offer for offer in self._its.offers() if model == offer.name or model in offer.names), None)

    @property
    def chain(self) -> int:
        """Of the network on which this node is paid; 0 where it sells nothing."""
        return self._network.chain if self._its.settings.sells else 0

    async def open(self, node: bytes, ask: PayAsk, /, *, model: str, content_hash: bytes) -> Sale:
        """See Till. Raises PaymentRefused."""
        if self._earning is None:
            raise PaymentRefused("this node cannot be paid at the moment", pay_code=PayCode.CHAIN_DOWN)
        return await self._earning.open(node, ask, model=model, content_hash=content_hash)

    # --- what a person can ask and do -------------------------------------------------------------------------------

    async def facts(self) -> dict[str, Any]:
        """What GET /api/spending answers (api/spending_control.py has its shape)."""
        settings = self._its.settings
        standing = self._wallets.policy(network=self._network.name, no_pay=settings.no_pay)
        spending = self.purse.facts()
        facts: dict[str, Any] = {}
        with contextlib.suppress(MeshnodeError):
            facts = await self._store.run(money_facts)
        chain = await self._settling.facts() if self._settling is not None and facts else {}
        return {
            "wallet": await asyncio.to_thread(self._wallet_facts),
            "policy": self._wallets.policy_facts(standing),
            **{name: spending[name] for name in spending if name != "is_near_cap"},
            "gas_micros": chain.get("gas_micros", 0),
            "chain": chain,
            "transactions": chain.get("transactions", []),
            **{name: facts.get(name, []) for name in ("channels", "receipts", "by_day", "by_provider")},
            "earning": await self._earning_facts(facts.get("earning", {})),
        }

    def _wallet_facts(self) -> dict[str, Any]:
        address = voucher = None
        with contextlib.suppress(MeshnodeError):
            address, voucher = self._wallets.address(), self._wallets.voucher_address()
        return {
            "address": address,
            "voucher": voucher,
            "network": self._network.name,
            "chain": self._network.chain,
            "testnet": self._network.testnet,
        }

    async def _earning_facts(self, earned: dict[str, Any]) -> dict[str, Any]:
        settings = self._its.settings
        # Of the first model, where prices differ by the speed of each.
        price = self.price(next((offer.name for offer in self._its.offers()), ""))
        nothing = {
            "vouched_micros": 0,
            "claimed_micros": 0,
            "unclaimed_micros": 0,
            "channels": 0,
            "last_claim_at": None,
        }
        settling = self._settling
        return {
            "selling": settings.sells,
            "price": {"in": price.tokens_in, "out": price.tokens_out} if settings.sells else None,
            "receiver": None if self._conditions is None else addresses.shown(self._conditions.receiver),
            "why_not": settling.why_not if settling is not None and settings.sells else "",
            "last_claim_at": None,
            **nothing,
            **earned,
        }

    async def receipts(self, limit: int) -> dict[str, Any]:
        """The newest receipts, with the text that was signed."""
        return {"receipts": await self._store.run(lambda db: shown_receipts(db, limit, with_text=True))}

    async def deposit(self, node: str, amount_micros: int, password: bytes | None, dry_run: bool) -> dict[str, Any]:
        """See spending_control.Settlement."""
        return await self.bank.deposit(node, amount_micros, password, dry_run)

    async def withdraw(self, channel: str, dry_run: bool) -> dict[str, Any]:
        """See spending_control.Settlement."""
        return await self.bank.withdraw(channel, dry_run)

    async def close(self, channel: str, dry_run: bool) -> dict[str, Any]:
        """See spending_control.Settlement."""
        return await self.bank.close(channel, dry_run)

    async def claim(self, dry_run: bool) -> dict[str, Any]:
        """See spending_control.Settlement."""
        return await self.bank.claim(dry_run)

    async def panic(self, dry_run: bool) -> dict[str, Any]:
        """See spending_control.Settlement."""
        return await self.bank.panic(dry_run)


def _terminal_of(wallets: Wallets) -> str:
    """What a terminal must show to move money; "" where it cannot be kept, and then none can."""
    try:
        return wallets.new_terminal_token()
    except MeshnodeError as reason:
        LOG.warning("no terminal value: %s", reason)
        return ""
