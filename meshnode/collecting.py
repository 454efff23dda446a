"""What a provider does on the chain: take deposits, claim what it has earned, give back what it has not.

A payer without coins for fees hands in its signed deposit, and this node sends it and pays (`sponsor`). That is an
invitation to make this node pay for nothing, so everything is looked at first, most of it without a transaction, and
there are few a peer and few in all. What is earned is claimed in batches, when core/claiming.py says so; every batch is
simulated, and a channel that cannot pay is left out, since it would undo the claims of all the others. A payer that
wants the rest of its channel back gets it in the same transaction that claims what it owes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from meshnode.core import claiming
from meshnode.core.claiming import Batch, ClaimPolicy, Stand, Unclaimed
from meshnode.errors import ChainDisagrees, GasCapReached, PaymentRefused, TransactionFailed
from meshnode.settlement import contracts, preflight
from meshnode.settlement.abi_codec import Malformed
from meshnode.settlement.chain import Chain
from meshnode.settlement.contracts import Authorization, Claim, Standing, typed
from meshnode.settlement.fees import dollars
from meshnode.settlement.keccak import keccak256
from meshnode.settlement.keys import Verifier
from meshnode.settlement.outcomes import Outcome, Step
from meshnode.settlement.sending import Order
from meshnode.settlement.store_channels import Channel
from meshnode.settlement.typed_data import channel_id, refund_request_digest
from meshnode.wire.payments import PayOpen, PayRefund
from meshnode.wire.registry import PayCode

PERIOD_S = 3600.0
MOST_OF_A_PEER = 4
MOST_ASKED = 400
MOST_SENT = 40
"""In a PERIOD_S: what one peer may ask for, what all may, and how many transactions that may come to."""
_TOO_OFTEN = "no more transactions are sent for others this hour"
A_CLAIM = b"\xff" * 230
"""As much as one claim adds to a transaction once it is compressed: keys, a salt, a signature."""
_CODES: Mapping[str, PayCode] = {
    "balance": PayCode.INSUFFICIENT_BALANCE,
    "signature": PayCode.BAD_SIGNATURE,
    "paused": PayCode.CHAIN_REFUSED,
    "blocked": PayCode.CHAIN_REFUSED,
    "delegated": PayCode.CHAIN_REFUSED,
    "time": PayCode.BAD_ASK,
    "used": PayCode.BAD_ASK,
}


class Collector:
    """The provider's side. `stop_serving` is told of a channel before it is emptied; `is_busy` says that a request runs
    on it, and where nobody can say so, what a payer has signed stays in the channel when it asks for the rest. Methods
    raise ChainUnreachable, ChainDisagrees, WrongNetwork and what the disk raises.
    """

    def __init__(
        self,
        chain: Chain,
        receiver: bytes,
        *,
        stop_serving: Callable[[bytes], None],
        is_busy: Callable[[bytes], bool] | None,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._chain = chain
        self._receiver = receiver
        self._stop_serving = stop_serving
        self._is_busy = is_busy
        self._clock = clock
        self._monotonic = monotonic
        self._asked: deque[tuple[float, bytes]] = deque()
        self._sent: deque[float] = deque()
        self._earned_since: dict[bytes, float] = {}
        self._pays_out = False

    # --- what peers ask for ---

    async def sponsor(self, asked: PayOpen, node: bytes) -> bytes:
        """Send a peer's deposit into a channel to this node; the hash of the transaction. Raises PaymentRefused.

        The same deposit asked for again is the same transaction.
        """
        chain, network, bounds = self._chain, self._chain.network, self._chain.bounds()
        config = asked.channel
        if asked.chain != network.chain or config.token != network.token:
            raise PaymentRefused(f"only {network.title} is taken here", pay_code=PayCode.UNSUPPORTED_NETWORK)
        if (config.receiver, config.receiver_authorizer) != (self._receiver, chain.key.address) or not config.is_sound:
            raise PaymentRefused("the channel does not lead to this node", pay_code=PayCode.BAD_ASK)
        if config.withdraw_delay_s < bounds.least_withdraw_delay_s:
            text = f"the withdraw delay must be {bounds.least_withdraw_delay_s} s or more"
            raise PaymentRefused(text, pay_code=PayCode.TOO_SMALL)
        if asked.amount < bounds.least_deposit_micros:
            text = f"a deposit must be {dollars(bounds.least_deposit_micros)} or more"
            raise PaymentRefused(text, pay_code=PayCode.TOO_SMALL)
        channel = channel_id(typed(config), network.chain, network.hub)
        stem = f"sponsor:{channel.hex()}:{asked.salt.hex()}"
        before = await chain.transactions.find(f"{stem}#0")
        if before is not None and (before.is_open or before.state == "final"):
            return before.newest.digest
        self._count(node)
        await chain.check()
        given = Authorization(asked.amount, asked.valid_after, asked.valid_before, asked.salt, asked.signature)
        hindrance = await preflight.obstacle(chain.rpc, network, typed(config), asked.amount, given)
        if hindrance is not None:
            raise PaymentRefused(hindrance.text, pay_code=_CODES[hindrance.cause])
        data = contracts.deposit(typed(config), given, network.collector)
        order = Order(await chain.purpose(stem), "deposit", network.hub, data, (channel,))
        await chain.book.opening(config, channel, "receiver", node)
        return (await self._made(order)).digest

    async def refund(self, asked: PayRefund, node: bytes) -> bytes:
        """Claim what a channel owes and give back the rest, at its payer's wish; the hash of the transaction.

        Raises PaymentRefused.
        """
        chain, network = self._chain, self._chain.network
        channel = await chain.channel(asked.channel)
        if channel is None or channel.role != "receiver":
            raise PaymentRefused("there is no such channel here", pay_code=PayCode.UNKNOWN_CHANNEL)
        digest = refund_request_digest(asked.channel, asked.nonce, asked.amount, network.chain, network.hub)
        if not Verifier(channel.config.payer_authorizer).verify(digest, asked.signature):
            raise PaymentRefused("the request is not signed by the payer", pay_code=PayCode.BAD_SIGNATURE)
        name = f"refunded:{asked.channel.hex()}"
        stem = f"{name}:{asked.nonce}"
        before = await chain.transactions.find(f"{stem}#0")
        if before is not None:
            return before.newest.digest
        if asked.nonce <= await chain.transactions.cursor(name):
            raise PaymentRefused("a later request was made already", pay_code=PayCode.BAD_ASK)
        if self._is_busy is not None and self._is_busy(asked.channel):
            raise PaymentRefused("a request runs on the channel", pay_code=PayCode.CHANNEL_BUSY)
        self._count(node)
        self._stop_serving(asked.channel)
        standing = (await chain.refresh([channel]))[asked.channel]
        channel = await chain.channel(asked.channel) or channel
        owed = max(_target(channel, standing), standing.claimed_micros)
        kept = owed if self._is_busy is not None else max(owed, channel.signed_micros)
        calls = [contracts.refund(typed(channel.config), max(0, min(asked.amount, standing.balance_micros - kept)))]
        if owed > standing.claimed_micros:
            calls = [*self._claim_calls([channel], {channel.id: standing}), *calls]
        order = Order(f"{stem}#0", "refund", network.hub, contracts.together(calls), (asked.channel,))
        await chain.transactions.move_cursor(name, asked.nonce)
        try:
            return (await self._made(order)).digest
        except PaymentRefused:
            await chain.tell_again(channel)
            raise

    async def _made(self, order: Order) -> Step:
        """Do what a peer asked for. What stands in the way is the peer's answer."""
        if len(self._sent) >= MOST_SENT:
            raise PaymentRefused(_TOO_OFTEN, pay_code=PayCode.TOO_OFTEN)
        self._sent.append(self._monotonic())
        try:
            return await self._chain.do(order)
        except GasCapReached as reached:
            raise PaymentRefused(reached.detail, pay_code=PayCode.CHAIN_DOWN) from None
        except TransactionFailed as failed:
            raise PaymentRefused(failed.detail, pay_code=PayCode.CHAIN_REFUSED) from None

    def _count(self, node: bytes) -> None:
        """Bound what a peer, and all peers, may ask for: looking costs questions to endpoints, sending costs fees."""
        now = self._monotonic()
        while self._asked and self._asked[0][0] <= now - PERIOD_S:
            self._asked.popleft()
        while self._sent and self._sent[0] <= now - PERIOD_S:
            self._sent.popleft()
        of_peer = sum(1 for _, who in self._asked if who == node)
        if of_peer >= MOST_OF_A_PEER or len(self._asked) >= MOST_ASKED:
            raise PaymentRefused(_TOO_OFTEN, pay_code=PayCode.TOO_OFTEN)
        self._asked.append((now, node))

    # --- what is earned ---

    async def claim(
        self,
        standings: Mapping[bytes, Standing],
        *,
        is_shutdown: bool = False,
        is_dry: bool = False,
    ) -> Outcome:
        """Claim what is worth it now, by what the chain says of the channels. Raises GasCapReached where fees are too
        high for it.
        """
        under_way = await self._chain.under_way("claim", "refund")
        channels = {
            channel.id: channel
            for channel in await self._chain.book.channels()
            if channel.role == "receiver"
            and channel.id in standings
            and channel.id not in under_way
            and channel.signature
            and channel.config.receiver_authorizer == self._chain.key.address
        }
        items = [self._unclaimed(channel, standings[channel.id]) for channel in channels.values()]
        due = [item for item in items if item.claimable_micros]
        if not due:
            steps = await self._paid_out(is_dry) if not self._pays_out and not under_way else []
            return Outcome(tuple(steps), is_dry=is_dry, note="" if steps else "there is nothing to claim")
        policy = ClaimPolicy(most_unclaimed_micros=self._chain.bounds().most_unclaimed_micros)
        batches = claiming.plan(due, await self._fee(), self._clock(), policy, is_shutdown=is_shutdown)
        steps = []
        for batch in batches:
            for some in _of_one_receiver(batch, channels):
                steps += await self._claimed(some, channels, standings, is_dry)
        total = sum(item.claimable_micros for item in due)
        note = "" if steps else f"{dollars(total)} can be claimed, which is not yet worth the fee"
        return Outcome(tuple(steps), amount_micros=total, note=note, is_dry=is_dry)

    def _unclaimed(self, channel: Channel, standing: Standing) -> Unclaimed:
        target = _target(channel, standing)
        if target <= standing.claimed_micros:
            self._earned_since[channel.id] = self._clock()
        deadline = standing.withdraw_since + channel.config.withdraw_delay_s if standing.withdraw_since else None
        return Unclaimed(
            channel.id,
            target,
            standing.claimed_micros,
            self._earned_since.get(channel.id, channel.opened_at),
            channel.config.withdraw_delay_s,
            deadline,
        )

    async def _fee(self) -> claiming.Fee:
        gas_wei, data_wei = await self._chain.sender.prices(A_CLAIM)
        return claiming.Fee(gas_wei, self._chain.bounds().eth_micros, data_wei)

    async def _claimed(
        self, batch: Batch, channels: Mapping[bytes, Channel], standings: Mapping[bytes, Standing], is_dry: bool
    ) -> list[Step]:
        """One transaction for a batch; without those that would undo it, where the simulation fails."""
        if not batch:
            return []
        chosen = [channels[claim.channel] for claim in batch]
        for calls in (self._claim_calls(chosen, standings), self._claim_calls(chosen, standings)[:1]):
            order = await self._claim_order(chosen, standings, calls)
            if await self._chain.would_succeed(order):
                self._pays_out = len(calls) > 1
                return [await self._chain.do(order, is_dry=is_dry)]
        fresh = await self._chain.hub.now([channel.id for channel in chosen])
        stands = {key: Stand(said.balance_micros, said.claimed_micros) for key, said in fresh.items()}
        kept, dropped = claiming.without_drained(batch, stands)
        parts = [kept] if dropped else claiming.halves(batch)
        return [step for part in parts for step in await self._claimed(part, channels, fresh, is_dry)]

    async def _paid_out(self, is_dry: bool) -> list[Step]:
        """What was claimed while it could not be paid out, as under a paused token, is paid out later."""
        chain, network = self._chain, self._chain.network
        answer = await chain.rpc.call(network.hub, contracts.unsettled_question(self._receiver, network.token))
        try:
            claimed, left = contracts.unsettled(answer)
        except Malformed as error:
            raise ChainDisagrees(f"the hub answers as no hub can: {error}") from None
        self._pays_out = not left
        data = contracts.settle(self._receiver, network.token)
        stem = f"settle:{self._receiver.hex()}:{claimed}"
        order = Order(await chain.purpose(stem), "settle", network.hub, data)
        if left <= claiming.share_micros(1, await self._fee()) or not await chain.would_succeed(order):
            return []
        return [await chain.do(order, is_dry=is_dry)]

    async def _claim_order(
        self, chosen: Sequence[Channel], standings: Mapping[bytes, Standing], calls: Sequence[bytes]
    ) -> Order:
        targets = sorted((channel.id, _target(channel, standings[channel.id])) for channel in chosen)
        digest = keccak256(b"".join(key + target.to_bytes(16, "big") for key, target in targets))
        return Order(
            await self._chain.purpose(f"claim:{digest.hex()}"),
            "claim",
            self._chain.network.hub,
            contracts.together(calls),
            tuple(channel.id for channel in chosen),
        )

    def _claim_calls(self, chosen: Sequence[Channel], standings: Mapping[bytes, Standing]) -> list[bytes]:
        """Claim, and pay out: both in one transaction, so that no endpoint that is behind comes between."""
        rows = [
            Claim(
                typed(channel.config), channel.signed_micros, channel.signature, _target(channel, standings[channel.id])
            )
            for channel in chosen
        ]
        return [contracts.claim(rows), contracts.settle(chosen[0].config.receiver, self._chain.network.token)]


def _target(channel: Channel, standing: Standing) -> int:
    """Up to where a channel is claimed: what was charged, as far as it was signed for and is there."""
    return min(channel.charged_micros, channel.signed_micros, standing.balance_micros)


def _of_one_receiver(batch: Batch, channels: Mapping[bytes, Channel]) -> list[Batch]:
    """A batch cut by whom it pays: an older channel may lead to another address of the owner."""
    found: dict[bytes, Batch] = {}
    for claim in batch:
        receiver = channels[claim.channel].config.receiver
        found[receiver] = (*found.get(receiver, ()), claim)
    return list(found.values())
