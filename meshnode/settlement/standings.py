"""What the hub says of channels: agreed where money is relied on, by any endpoint alone where it is an alarm.

How far a deposit can be relied on depends on what it is worth: a small one as soon as it is in a block, a larger one
when that block is safe, a large one when it is final. Who asks says which (`TagFor`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from meshnode.errors import ChainDisagrees
from meshnode.settlement import contracts
from meshnode.settlement.abi_codec import Malformed
from meshnode.settlement.contracts import Standing
from meshnode.settlement.rpc import RpcPair

MOST_TOGETHER = 100
"""Channels in one question: some three million gas of a call that nobody pays."""
TagFor = Callable[[int], Literal["latest", "safe", "finalized"]]
"""How settled an amount of micro-USDC must be before it is relied on."""


class HubReader:
    """Reads of one hub. They raise ChainUnreachable and ChainDisagrees."""

    def __init__(self, rpc: RpcPair, hub: bytes, *, tag_for: TagFor) -> None:
        self._rpc = rpc
        self._hub = hub
        self._tag_for = tag_for

    async def now(self, channels: Sequence[bytes], block: int | None = None) -> dict[bytes, Standing]:
        """What endpoints agree on, at their newest common block or at an older one."""
        found: dict[bytes, Standing] = {}
        for some in _slices(channels):
            answer = await self._rpc.call(self._hub, contracts.standings_question(some), block=block)
            if block is not None and not answer:  # the block is older than the hub
                found |= dict.fromkeys(some, Standing())
            else:
                found |= _standings(some, answer)
        return found

    async def usable_micros(self, channel: bytes, now: Standing) -> int:
        """How much of its balance can be relied on: what is settled as its amount asks for, and little more."""
        if self._tag_for(now.balance_micros) == "latest":
            return now.balance_micros
        settled = await self._balance_at(channel, await self._rpc.final("safe"))
        if self._tag_for(settled) == "finalized":
            final = await self._balance_at(channel, await self._rpc.final("finalized"))
            if self._tag_for(max(0, settled - final)) == "finalized":
                settled = final
        if self._tag_for(max(0, now.balance_micros - settled)) == "latest":
            return now.balance_micros
        return settled

    async def _balance_at(self, channel: bytes, block: int) -> int:
        return (await self.now([channel], block))[channel].balance_micros

    async def alarms(self, channels: Sequence[bytes]) -> dict[bytes, Standing]:
        """Channels of which any endpoint says that a withdrawal is announced. Nonsense is not heard."""
        found: dict[bytes, Standing] = {}
        for some in _slices(channels):
            for answer in await self._rpc.any_call(self._hub, contracts.standings_question(some)):
                try:
                    said = contracts.standings(some, answer)
                except Malformed:
                    continue
                found |= {channel: standing for channel, standing in said.items() if standing.withdraw_since}
        return found


def _standings(channels: Sequence[bytes], answer: bytes) -> dict[bytes, Standing]:
    try:
        return contracts.standings(channels, answer)
    except Malformed as error:
        raise ChainDisagrees(f"the hub answers as no hub can: {error}") from None


def _slices(channels: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    return (channels[first : first + MOST_TOGETHER] for first in range(0, len(channels), MOST_TOGETHER))
