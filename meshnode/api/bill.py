"""What one request of a caller costs, over all of the hosts that were paid for a part of its answer."""

from __future__ import annotations

import asyncio

from meshnode.api.attempt import HostFailed
from meshnode.api.paid_pipe import Payment
from meshnode.api.paying import MOST_OUT_TOKENS, PaidCall, PaidRequest, Progress, Purse
from meshnode.api.record import Record
from meshnode.api.request import Request
from meshnode.api.resume import limit_of
from meshnode.api.served import Host
from meshnode.core.counting import most_tokens_in
from meshnode.errors import MeshnodeError, PaymentsOff

OUTPUT_LESS = "/v1/embeddings"
LEAST_OUT_TOKENS = 1
"""An answer without text counts as one that might have a token."""


class Bill:
    """The payments of one request. Each attempt that pays begins one, and leaves it; `settled` waits for all."""

    def __init__(self, purse: Purse | None, record: Record) -> None:
        self._purse = purse
        self._record = record
        self._begun = 0
        self._current: Payment | None = None
        self._settling: list[asyncio.Task[int]] = []

    @property
    def has_payments(self) -> bool:
        """Whether anybody was to be paid."""
        return self._begun > 0

    async def begin(self, request: Request, host: Host, body: bytes) -> Payment:
        """A payment to a host for what `body` asks of it, reserved. Raises HostFailed where it is not paid."""
        if self._purse is None:
            raise HostFailed(PaymentsOff(), cool_down=False)
        self._begun += 1
        path = request.endpoint.path
        call = PaidCall(
            request=f"{self._record.id}.{self._begun}",
            node=bytes.fromhex(host.node),
            model=request.model.id,
            content_hash=bytes.fromhex(host.content_hash),
            price=host.price,
            chain=host.chain,
            most_in=most_tokens_in(len(body), _messages(request)),
            most_out=LEAST_OUT_TOKENS if path == OUTPUT_LESS else limit_of(path, request.members) or MOST_OUT_TOKENS,
            rtt_s=host.rtt_s,
        )
        reserving = asyncio.ensure_future(self._purse.begin(call))
        try:
            self._current = Payment(await asyncio.shield(reserving), path)
        except MeshnodeError as reason:
            raise HostFailed(reason, cool_down=False) from None
        except asyncio.CancelledError:
            self._settling.append(asyncio.ensure_future(_give_back(reserving)))
            raise
        return self._current

    @property
    def refusal(self) -> MeshnodeError | None:
        """Why the payment that is under way ended, if it did."""
        return None if self._current is None else self._current.refusal

    def leave(self, outcome: str) -> None:
        """The payment that is under way is over: whole, broken or cancelled. Nothing where there is none."""
        if self._current is not None:
            self._settling.append(self._current.settle(outcome))
            self._current = None

    async def settled(self) -> None:
        """Wait until it is known what all of it cost, and note that in the record."""
        costs = await asyncio.shield(asyncio.gather(*self._settling, return_exceptions=True))
        self._record.cost_micros = sum(cost for cost in costs if isinstance(cost, int))


async def _give_back(reserving: asyncio.Future[PaidRequest]) -> int:
    """End what was reserved for somebody who has left meanwhile."""
    return await (await reserving).ended("cancelled", Progress())


def _messages(request: Request) -> int:
    """How many times a template adds its own to the prompt; one more for an answer that is continued."""
    lists = (value for name in ("messages", "input") if isinstance(value := request.members.get(name), list))
    return sum(map(len, lists)) + 1
