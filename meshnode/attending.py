"""One look at the channels of this node, and what follows from it.

Logs say which channels something happened to; all are looked at every SWEEP_S, since logs can be held back. A payer
that withdraws is an alarm: it is believed of any endpoint alone, nothing more is served on the channel from then on,
and what it owes is claimed while there is time. Then withdrawals of this node that are due are done, deposits that came
to their end make room for others, and what was earned is claimed if it is worth the fee.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from meshnode.collecting import Collector
from meshnode.errors import ChainUnreachable, MeshnodeError
from meshnode.settlement.chain import Chain
from meshnode.settlement.contracts import Standing
from meshnode.settlement.depositing import Depositor
from meshnode.settlement.outcomes import Outcome
from meshnode.settlement.store_channels import Channel
from meshnode.settlement.watch import HubWatch
from meshnode.telemetry import LOG

SWEEP_S = 300.0
"""Far below the shortest withdraw delay that a hub takes, 900 s."""
RESTLESS = ("opening", "withdrawing", "closing")


class Attendant:
    """Looks after the channels of one chain. `claims` says whether this node earns; `alarm` is told once of each
    channel whose payer withdraws, before anything is sent.
    """

    def __init__(
        self,
        chain: Chain,
        depositor: Depositor,
        collector: Collector,
        *,
        claims: bool,
        alarm: Callable[[bytes], None],
        monotonic: Callable[[], float],
    ) -> None:
        self._chain = chain
        self._depositor = depositor
        self._collector = collector
        self._claims = claims
        self._alarm = alarm
        self._monotonic = monotonic
        self._watch = HubWatch(chain.rpc, chain.transactions, chain.network.hub, chain.network.chain)
        self._swept_at: float | None = None
        self._alarmed: set[bytes] = set()
        self._named: set[bytes] = set()

    async def look(self, moved: Iterable[bytes] = ()) -> Outcome:
        """Once over everything, in any case over the channels in `moved`; what was claimed. Raises as the parts do:
        what is left is done at the next look.
        """
        chain = self._chain
        channels = await chain.book.channels()
        self._named |= set(moved)
        if not channels:
            return Outcome()
        await self._hear(channels)
        now = self._monotonic()
        is_sweep = self._swept_at is None or now - self._swept_at >= SWEEP_S
        named = frozenset(self._named)
        heard = await self._listen([one for one in channels if is_sweep or one.id in named or one.id in self._alarmed])
        changing = await chain.under_way("deposit", "claim", "refund", "initiate-withdraw", "finalize-withdraw")
        watched = named | changing | self._alarmed
        chosen = [one for one in channels if is_sweep or one.id in watched or _is_restless(one)]
        standings = await chain.refresh(chosen)
        self._named -= named
        for channel in chosen:
            if channel.id in self._alarmed - heard and not standings[channel.id].withdraw_since:
                self._alarmed.discard(channel.id)
                await chain.tell_again(channel)
        if is_sweep:
            self._swept_at = now
        wrong: list[MeshnodeError] = []
        try:
            await self._tidy([channel for channel in chosen if channel.role == "payer"], standings)
        except MeshnodeError as error:  # money that is owed to this node does not wait for that
            wrong.append(error)
        outcome = await self._collector.claim(standings) if self._claims else Outcome()
        if wrong:
            raise wrong[0]
        return outcome

    async def all_standings(self) -> Mapping[bytes, Standing]:
        """What the chain says of all channels to this node; the book is told."""
        return await self._chain.refresh([one for one in await self._chain.book.channels() if one.role == "receiver"])

    async def _hear(self, channels: Sequence[Channel]) -> None:
        """Note the channels that new logs speak of, until they were looked at. Without logs there is the sweep."""
        try:
            self._named |= {event.channel for event in await self._watch.look([channel.id for channel in channels])}
        except ChainUnreachable as error:
            LOG.warning("no logs of the payment hub: %s", error.detail)

    async def _listen(self, channels: Sequence[Channel]) -> set[bytes]:
        """Channels of which any endpoint says that their payer withdraws; the alarm is sounded for new ones."""
        earning = [channel.id for channel in channels if channel.role == "receiver"]
        heard = set(await self._chain.hub.alarms(earning)) if earning else set()
        for channel_id in heard - self._alarmed:
            self._alarmed.add(channel_id)
            LOG.warning("the payer of channel 0x%s withdraws: what it owes is claimed", channel_id.hex())
            self._alarm(channel_id)
        return heard

    async def _tidy(self, channels: Sequence[Channel], standings: Mapping[bytes, Standing]) -> None:
        """The payer's side: withdrawals whose time has come are done, deposits that are over are forgotten."""
        due = [channel for channel in channels if standings[channel.id].withdraw_since]
        now = (await self._chain.rpc.head()).at if due else 0
        for channel in due:
            await self._depositor.finalize(channel, standings[channel.id], now)
        for channel in channels:
            await self._depositor.outstanding(channel.id, channel.config.payer)


def _is_restless(channel: Channel) -> bool:
    """Whether a channel is looked at in every turn: something is to come, or something is to be claimed."""
    return (
        channel.state in RESTLESS
        or channel.depositing_micros > 0
        or channel.usable_micros < channel.balance_micros
        or (channel.role == "receiver" and channel.unclaimed_micros > 0)
    )
