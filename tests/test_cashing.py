"""The cashier of strangers over plain HTTP: the terms of the node, and the same till and chain as for nodes."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshnode.api.x402 import payer_id
from meshnode.errors import PaymentRefused
from meshnode.money import open_money
from meshnode.settlement.contracts import Authorization, typed
from meshnode.settlement.keys import VoucherKey
from meshnode.settlement.preflight import authorization_digest
from meshnode.settlement.typed_data import voucher_digest
from meshnode.wire.payments import ChannelConfig, PayOpen, PayState, PayVoucher
from meshnode.wire.registry import PayCode
from tests.bank_stage import PRICE, USDC, Bank
from tests.lab.evm import Anvil, Deployment, deployed, needs_anvil
from tests.test_money import SELLS, parts
from tools.play_chain import make_cheap

pytestmark = pytest.mark.anyio
MINUTES_S = 600


@pytest.fixture(scope="module")
def chain() -> Iterator[tuple[Anvil, Deployment]]:
    with Anvil(31337) as found:
        yield found, deployed(found.web3)


async def test_nothing_is_offered_before_it_can_be_sold(tmp_path: Path) -> None:
    money = open_money(parts(tmp_path, **SELLS))
    assert money is not None
    assert money.cashier.terms() is None
    with pytest.raises(PaymentRefused) as refused:
        await money.cashier.stand(PayState(bytes(32)), b"n" * 32)
    assert refused.value.pay_code == PayCode.CHAIN_DOWN


@needs_anvil
async def test_a_payer_that_is_no_node_opens_a_channel_and_sees_how_it_stands(
    chain: tuple[Anvil, Deployment], tmp_path: Path
) -> None:
    bank = Bank(*chain, tmp_path)
    async with bank.seller() as seller:
        cashier, network = seller.money.cashier, seller.money._network
        terms = cashier.terms()
        assert terms is not None and terms.chain == 31337 and terms.token == network.token
        assert cashier.price("demo") == PRICE
        payer = VoucherKey.generate()
        bank.contracts.fund("0x" + payer.address.hex(), usdc_micros=USDC)
        make_cheap(bank.contracts)
        config = ChannelConfig(
            payer=payer.address,
            payer_authorizer=payer.address,
            receiver=terms.receiver,
            receiver_authorizer=terms.receiver_authorizer,
            token=terms.token,
            withdraw_delay_s=terms.withdraw_delay_s,
            salt=secrets.token_bytes(32),
        )
        node, channel = payer_id(payer.address), cashier.channel(config)
        with pytest.raises(PaymentRefused) as unknown:
            await cashier.stand(PayState(channel), node)
        assert unknown.value.pay_code == PayCode.UNKNOWN_CHANNEL

        until = bank.chain.web3.eth.get_block("latest")["timestamp"] + MINUTES_S
        given = Authorization(USDC // 2, 0, until, secrets.token_bytes(32), b"")
        signature = payer.sign(authorization_digest(network, typed(config), given))
        opening = PayOpen(config, 31337, USDC // 2, 0, until, given.salt, signature)
        assert len(await cashier.deposit(opening, node)) == 32
        await cashier.look(config, channel, node)
        assert (await cashier.stand(PayState(channel), node)).balance == USDC // 2
        with pytest.raises(PaymentRefused):
            await cashier.stand(PayState(channel), b"n" * 32)

        digest = voucher_digest(channel, 10, network.chain, network.hub)
        assert cashier.is_signed(config, PayVoucher(channel, 10, payer.sign(digest)))
        assert not cashier.is_signed(config, PayVoucher(channel, 11, payer.sign(digest)))
        assert not cashier.is_signed(config, PayVoucher(channel, 10, VoucherKey.generate().sign(digest)))
