"""What is paid for answers, as the gateway sees it: which hosts may be asked, and who keeps the money of a request.

    Purse        decides and signs; a PaidRequest is one attempt at one host      (implemented where the wallet is)
    Affording    hosts whose price is not paid are not asked, and the refusal says by how much

How a PaidRequest meets the bytes of an answer is in paid_pipe.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from meshnode.api.served import Host, Served
from meshnode.core.prices import Price
from meshnode.errors import MeshnodeError, PaymentsOff
from meshnode.wire.payments import PayAsk, PayDue, PayVoucher

MOST_OUT_TOKENS = 4096
"""Of an answer whose request sets no limit."""


@dataclass(frozen=True, slots=True)
class PaidCall:
    """One attempt at one host. `request` names it for ever. `price` and `chain` are what the host's offer says, the
    counts of tokens are the most that it may come to.
    """

    request: str
    node: bytes
    model: str
    content_hash: bytes
    price: Price
    chain: int
    most_in: int
    most_out: int
    rtt_s: float


@dataclass(frozen=True, slots=True)
class Progress:
    """What has come: bytes of text, counted here, and the tokens that it is by the word of the provider."""

    text_bytes: int = 0
    tokens_in: int = 0
    tokens_out: int = 0


class PaidRequest(Protocol):
    """One attempt, at the Purse. Never two calls at a time; `ended` comes once, and last.

    Each of the others may raise MeshnodeError: then nothing more is paid. What it returns is signed and kept already.
    """

    @property
    def step_tokens(self) -> int:
        """So many tokens of the answer are between two calls of `received`."""
        ...

    async def ask(self) -> tuple[PayAsk, PayVoucher | None]:
        """What is asked for, and a first voucher where channel and price are known from before."""
        ...

    async def quoted(self, quote: bytes, /) -> PayVoucher | None:
        """The provider has said what it costs."""
        ...

    async def received(self, progress: Progress, /) -> PayVoucher | None:
        """So much has come."""
        ...

    async def due(self, due: PayDue, progress: Progress, /) -> PayVoucher | None:
        """The provider waits for a voucher."""
        ...

    async def receipt(self, receipt: bytes, progress: Progress, output_sha256: str, /) -> PayVoucher | None:
        """The provider has said what it came to. The hash is of the body that came, in hex digits."""
        ...

    async def ended(self, outcome: str, progress: Progress, /) -> int:
        """It is over: whole, broken, cancelled or refused. What it cost, in micro-USDC."""
        ...


class Purse(Protocol):
    """Decides what is paid."""

    def refusal(self, price: Price, chain: int, model: str, /) -> MeshnodeError | None:
        """Why such a price is not paid; None when it may be."""
        ...

    async def begin(self, call: PaidCall, /) -> PaidRequest:
        """Reserve what it may come to. Raises MeshnodeError where it is not paid."""
        ...


class Affording:
    """Which hosts may be asked at all, as far as money goes. Without a purse those that are free."""

    def __init__(self, purse: Purse | None) -> None:
        self._purse = purse

    def may_ask(self, host: Host, model: str) -> bool:
        """Whether a host is free, or its price may be paid."""
        return host.connect_paid is None or self.refusal_of(host, model) is None

    def within(self, model: Served) -> Served | None:
        """A model with those of its hosts that may be asked; None without any."""
        if all(host.connect_paid is None for host in model.hosts):
            return model
        return model.at(tuple(host for host in model.hosts if self.may_ask(host, model.id)))

    def refusal(self, model: Served) -> MeshnodeError | None:
        """Why the cheapest host of a model that is ready is not paid; None when none is refused."""
        costly = [host for host in model.hosts if host.ready and not self.may_ask(host, model.id)]
        if not costly:
            return None
        cheapest = min(costly, key=lambda host: host.price.tokens_in + host.price.tokens_out)
        return self.refusal_of(cheapest, model.id)

    def refusal_of(self, host: Host, model: str) -> MeshnodeError | None:
        """Why the price of a host is not paid."""
        if self._purse is None:
            return PaymentsOff(f"those who serve {model} want to be paid")
        return self._purse.refusal(host.price, host.chain, model)


ONLY_FREE = Affording(None)
"""Nobody is paid."""
