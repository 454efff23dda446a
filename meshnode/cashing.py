"""What a stranger over plain HTTP is paid by: the Cashier of the x402 door, over the same till and chain as for nodes.

See api/x402_door.py. Nothing of money is decided here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from meshnode.api.x402 import Terms
from meshnode.core.prices import Price
from meshnode.earning import Earning
from meshnode.earning_terms import Conditions
from meshnode.errors import PaymentRefused
from meshnode.settlement.contracts import typed
from meshnode.settlement.keys import Verifier
from meshnode.settlement.networks import Network
from meshnode.settlement.typed_data import channel_id, voucher_digest
from meshnode.settling import Settling
from meshnode.wire.payments import ChannelConfig, PayOpen, PayStand, PayState, PayVoucher
from meshnode.wire.registry import PayCode


class Cashing:
    """See the module. `earning` and `conditions` give None while nothing can be sold."""

    def __init__(
        self,
        network: Network,
        *,
        price: Callable[[str], Price],
        conditions: Callable[[], Conditions | None],
        earning: Callable[[], Earning | None],
        settling: Callable[[], Awaitable[Settling]],
    ) -> None:
        self._network = network
        self._price = price
        self._conditions = conditions
        self._earning = earning
        self._settling = settling

    def terms(self) -> Terms | None:
        """See Cashier."""
        network, conditions = self._network, self._conditions()
        if conditions is None or self._earning() is None:
            return None
        return Terms(
            chain=network.chain,
            token=network.token,
            token_name=network.token_name,
            token_version=network.token_version,
            receiver=conditions.receiver,
            receiver_authorizer=conditions.authorizer,
            withdraw_delay_s=conditions.least_withdraw_delay_s,
            least_deposit_micros=conditions.least_deposit_micros,
        )

    def price(self, model: str, /) -> Price:
        """See Cashier."""
        return self._price(model)

    def channel(self, config: ChannelConfig, /) -> bytes:
        """See Cashier."""
        return channel_id(typed(config), self._network.chain, self._network.hub)

    def is_signed(self, config: ChannelConfig, voucher: PayVoucher, /) -> bool:
        """See Cashier."""
        digest = voucher_digest(voucher.channel, voucher.cumulative, self._network.chain, self._network.hub)
        return Verifier(config.payer_authorizer).verify(digest, voucher.signature)

    async def stand(self, question: PayState, node: bytes, /) -> PayStand:
        """See Cashier. Raises PaymentRefused."""
        earning = self._earning()
        if earning is None:
            raise PaymentRefused("this node cannot be paid at the moment", pay_code=PayCode.CHAIN_DOWN)
        return await earning.stand(question, node)

    async def deposit(self, opening: PayOpen, node: bytes, /) -> bytes:
        """See Cashier. Raises PaymentRefused, and what the chain says."""
        return await (await self._settling()).sponsor(opening, node)

    async def look(self, config: ChannelConfig, channel: bytes, node: bytes, /) -> None:
        """See Cashier."""
        await (await self._settling()).look_for(config, channel, node)
