"""Makes transactions of one key and brings each to its end: never two for one purpose, never one with a gap before it.

    plan     what it would do, use and cost, by a simulation at this moment; nothing is written or sent
    send     COMMIT the signed bytes, then send them
    follow   one look at the chain: what is in a block, what fell out of one, what must be sent again or offered more

Two endpoints or the disk may fail at any of these steps, and the process may end: `follow` takes up what was written.
One lock makes nonces; a key belongs to one process (the journal is locked).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from meshnode.errors import ChainDisagrees, GasCapReached, TransactionFailed
from meshnode.settlement import contracts, fees
from meshnode.settlement.abi_codec import Malformed, plain_text
from meshnode.settlement.addresses import shown
from meshnode.settlement.answers import Call, Reverted, TransactionReceipt
from meshnode.settlement.fees import Fees, GasBounds
from meshnode.settlement.keys import VoucherKey
from meshnode.settlement.raw_transactions import signed
from meshnode.settlement.rpc import RpcPair
from meshnode.settlement.transactions import (
    MOST_ATTEMPTS,
    MOST_WAITING,
    RAISE_AFTER_S,
    RAISE_ANYWAY_S,
    Attempt,
    Kind,
    Seen,
    Transaction,
    TransactionStore,
    advanced,
    gap,
    next_nonce,
)
from meshnode.telemetry import LOG

Allow = Callable[[str, Kind, int], Awaitable[None]]
"""Asked with purpose, kind and the micro-dollars that it may cost, before anything is signed. Raises GasCapReached."""
FILL_GAS = 21_000


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done on the chain. `purpose` is the name under which it is done once; `channels` it is about."""

    purpose: str
    kind: Kind
    target: bytes
    data: bytes
    channels: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """An order with what it takes: gas at most, fees per gas, and dollars in micros that it likely and at most costs.

    `short_wei` is what the key has too little for that.
    """

    order: Order
    gas: int
    fees: Fees
    likely_micros: int
    most_micros: int
    short_wei: int = 0


class Sender:
    """The transactions of `key` on one chain.

    `bounds` is asked each time, so that a changed setting holds at once; `fee_oracle` says that the chain has the
    oracle of OP chains.
    """

    def __init__(
        self,
        rpc: RpcPair,
        store: TransactionStore,
        key: VoucherKey,
        chain: int,
        *,
        bounds: Callable[[], GasBounds],
        allow: Allow,
        fee_oracle: bytes | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rpc = rpc
        self._store = store
        self._key = key
        self._chain = chain
        self._bounds = bounds
        self._allow = allow
        self._fee_oracle = fee_oracle
        self._clock = clock
        self._monotonic = monotonic
        self._lock = asyncio.Lock()
        self._sent_at: dict[bytes, float] = {}
        self.refusals: dict[str, str] = {}
        """Purpose -> what endpoints said when they took a transaction last: words for people, nothing depends on it."""

    @property
    def address(self) -> bytes:
        """The account that sends and pays the fees."""
        return self._key.address

    # --- making one ---

    async def plan(self, order: Order) -> Plan:
        """Simulate, and work out what it takes. Raises TransactionFailed with the contract's reason where it would
        fail, GasCapReached where it is too dear now, ChainUnreachable, ChainDisagrees.
        """
        message = Call(self.address, order.target, order.data)
        try:
            await self._rpc.simulate(message)
            gas = fees.gas_limit(await self._rpc.estimate(message))
        except Reverted as refused:
            raise TransactionFailed(f"{order.kind}: {reason(refused)}") from None
        except ValueError as error:
            raise ChainDisagrees(str(error)) from None
        return await self._priced(order, gas)

    async def _priced(self, order: Order, gas: int) -> Plan:
        base_fee_wei = (await self._rpc.head()).base_fee_wei
        l1_wei = await self._l1_wei(order.data)
        bounds = self._bounds()
        offer = fees.bounded(await self._expected(base_fee_wei), base_fee_wei, gas=gas, l1_wei=l1_wei, bounds=bounds)
        most_wei = gas * offer.most_wei + l1_wei
        likely_wei = gas * (base_fee_wei + offer.priority_wei) * 100 // fees.GAS_ROOM_PERCENT + l1_wei
        return Plan(
            order,
            gas,
            offer,
            fees.micros(likely_wei, bounds.eth_micros),
            fees.micros(most_wei, bounds.eth_micros),
            max(0, most_wei - await self._rpc.wei(self.address)),
        )

    async def prices(self, data: bytes) -> tuple[int, int]:
        """What gas costs now, in wei, and what the chain below takes for this much data."""
        base_fee_wei = (await self._rpc.head()).base_fee_wei
        return base_fee_wei + (await self._expected(base_fee_wei)).priority_wei, await self._l1_wei(data)

    async def _expected(self, base_fee_wei: int) -> Fees:
        return fees.expected(base_fee_wei, await self._rpc.priority_fees_wei())

    async def _l1_wei(self, data: bytes) -> int:
        """What an OP chain takes for writing the transaction to the chain below; a fifth is added, as it moves."""
        if self._fee_oracle is None:
            return 0
        oracle = contracts.fee_oracle()
        padded = data + bytes(b"\xff" * 110)  # a transaction's own fields and signature, which do not compress
        try:
            (wei,) = oracle.decode(
                "getL1Fee", await self._rpc.call(self._fee_oracle, oracle.encode("getL1Fee", padded))
            )
        except Malformed as error:
            raise ChainDisagrees(f"the fee oracle: {error}") from None
        return int(wei) * 6 // 5

    async def send(self, plan: Plan) -> Transaction:
        """Make the transaction of a plan. Where its purpose has one already, that is returned, whatever became of it.

        Raises TransactionFailed where the key cannot pay for it or too many wait, GasCapReached, and what the disk
        raises: then nothing was sent.
        """
        order = plan.order
        async with self._lock:
            found = await self._store.find(order.purpose)
            if found is not None:
                return found
            open_ones = await self._store.open_ones(self._chain, self.address)
            if sum(1 for one in open_ones if one.state != "mined") >= MOST_WAITING:
                raise TransactionFailed(f"{MOST_WAITING} transactions of this node still wait for the chain")
            if plan.short_wei:
                raise TransactionFailed(self.short_of(plan))
            nonce = next_nonce(open_ones, await self._rpc.nonce(self.address))
            await self._allow(order.purpose, order.kind, plan.most_micros)
            made = await self._store.add(self._prepared(plan, nonce))
        return await self._hand_out(made)

    def short_of(self, plan: Plan) -> str:
        """What the key lacks for a plan, in words."""
        missing = f"{plan.short_wei / fees.WEI_PER_ETH:.6f}"
        return f"the account that pays the fees, {shown(self.address)}, has {missing} ETH too little: send some there"

    def _prepared(self, plan: Plan, nonce: int) -> Transaction:
        order = plan.order
        return Transaction(
            order.purpose,
            order.kind,
            self._chain,
            self.address,
            nonce,
            order.target,
            order.data,
            plan.gas,
            order.channels,
            (self._attempt(nonce, order.target, order.data, plan.gas, plan.fees),),
            plan.most_micros,
            self._clock(),
        )

    def _attempt(self, nonce: int, target: bytes, data: bytes, gas: int, offer: Fees) -> Attempt:
        made = signed(
            self._key,
            {
                "chainId": self._chain,
                "nonce": nonce,
                "maxFeePerGas": offer.most_wei,
                "maxPriorityFeePerGas": offer.priority_wei,
                "gas": gas,
                "to": target,
                "value": 0,
                "data": data,
            },
        )
        return Attempt(made.hash, made.raw, offer)

    async def _hand_out(self, transaction: Transaction) -> Transaction:
        """Send the newest attempt to all endpoints. Whether one took it is written; all else is for `follow`."""
        attempt = transaction.newest
        self._sent_at.setdefault(attempt.digest, self._monotonic())
        words = await self._rpc.broadcast(attempt.raw)
        self.refusals[transaction.purpose] = plain_text(words)
        if not words and transaction.state == "prepared":
            transaction = replace(transaction, state="submitted")
            await self._store.save(transaction)
        return transaction

    # --- bringing it to its end ---

    async def follow(self) -> list[Transaction]:
        """One look at the chain for all that is open. Returns what changed its state. Raises ChainUnreachable,
        ChainDisagrees, and what the disk raises; the rest is done at the next look then.
        """
        async with self._lock:
            open_ones = list(await self._store.open_ones(self._chain, self.address))
            if not open_ones:
                return []
            final_block = await self._rpc.final()
            final_nonce = await self._rpc.nonce(self.address, final_block)
            changed = []
            for place, transaction in enumerate(open_ones):
                seen = Seen(await self._receipts(transaction), final_block, final_nonce)
                after = self._paid(advanced(transaction, seen), seen)
                if after != transaction:
                    await self._store.save(after)
                    changed.append(after)
                open_ones[place] = after
            waiting = [transaction for transaction in open_ones if transaction.state in ("prepared", "submitted")]
            if waiting:
                await self._close_gap(open_ones)
                waiting[0] = await self._raised(waiting[0])
        for transaction in waiting:
            await self._hand_out(transaction)
        for transaction in changed:
            if not transaction.is_open:
                self.refusals.pop(transaction.purpose, None)
                for attempt in transaction.attempts:
                    self._sent_at.pop(attempt.digest, None)
        return changed

    async def _receipts(self, transaction: Transaction) -> dict[bytes, TransactionReceipt]:
        found = {attempt.digest: await self._rpc.receipt(attempt.digest) for attempt in transaction.attempts}
        return {digest: receipt for digest, receipt in found.items() if receipt is not None}

    def _paid(self, transaction: Transaction, seen: Seen) -> Transaction:
        """With its end, when it has come to one: the time, and what it cost, which no endpoint can exaggerate."""
        if transaction.is_open:
            return transaction
        wei = sum(receipt.gas * receipt.gas_price_wei + receipt.l1_fee_wei for receipt in seen.receipts.values())
        if transaction.state != "final":
            LOG.warning("transaction %s (%s): %s", transaction.newest.digest.hex(), transaction.kind, transaction.state)
        cost = fees.micros(wei, self._bounds().eth_micros)
        return replace(transaction, ended_at=self._clock(), fee_micros=min(cost, transaction.most_micros))

    async def _raised(self, transaction: Transaction) -> Transaction:
        """A dearer attempt where the first in line waits for too long, written down before it is sent."""
        before = transaction.newest.fees
        waited_s = self._monotonic() - self._sent_at.get(transaction.newest.digest, self._monotonic())
        if waited_s < RAISE_AFTER_S or len(transaction.attempts) >= MOST_ATTEMPTS:
            return transaction
        base_fee_wei = (await self._rpc.head()).base_fee_wei
        if base_fee_wei + before.priority_wei <= before.most_wei and waited_s < RAISE_ANYWAY_S:
            return transaction
        offer = fees.raised(before, await self._expected(base_fee_wei))
        bounds = self._bounds()
        l1_wei = await self._l1_wei(transaction.data)
        try:
            offer = fees.bounded(offer, base_fee_wei, gas=transaction.gas, l1_wei=l1_wei, bounds=bounds)
            if offer.most_wei * 100 < before.most_wei * (fees.RAISE_PERCENT - 2):
                return transaction  # the bound leaves no room for a raise that nodes would take
            most_micros = fees.micros(transaction.gas * offer.most_wei + l1_wei, bounds.eth_micros)
            await self._allow(transaction.purpose, transaction.kind, most_micros)
        except GasCapReached as reached:
            self.refusals[transaction.purpose] = reached.detail
            return transaction
        attempt = self._attempt(transaction.nonce, transaction.target, transaction.data, transaction.gas, offer)
        dearer = replace(
            transaction,
            attempts=(*transaction.attempts, attempt),
            most_micros=max(transaction.most_micros, most_micros),
        )
        await self._store.save(dearer)
        return dearer

    async def _close_gap(self, open_ones: Sequence[Transaction]) -> None:
        """Use up a nonce that stands between the chain and the first open transaction, with a transfer of nothing to
        ourselves; or send again what once had it, if a reorganisation took that out of a final block.
        """
        missing = gap(open_ones, await self._rpc.nonce(self.address))
        if missing is None:
            return
        for old in await self._store.with_nonce(self._chain, self.address, missing):
            if old.state != "replaced":
                await self._rpc.broadcast(old.newest.raw)
                return
        LOG.warning("nonce %d of %s is missing: it is used up by an empty transaction", missing, shown(self.address))
        order = Order(f"fill:{missing}", "fill", self.address, b"")
        plan = await self._priced(order, FILL_GAS)
        await self._allow(order.purpose, order.kind, plan.most_micros)
        await self._hand_out(await self._store.add(self._prepared(plan, missing)))


def reason(refused: Reverted) -> str:
    """Why the chain refuses a call, in the contract's words, else in the endpoint's."""
    if refused.data:
        return contracts.interface("hub").reason(refused.data)
    return str(refused) or "no reason given"
