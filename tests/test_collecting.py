from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meshnode.collecting import MOST_OF_A_PEER, PERIOD_S
from meshnode.errors import GasCapReached, PaymentRefused, TransactionFailed
from meshnode.settlement import contracts
from meshnode.settlement.addresses import shown
from meshnode.settlement.contracts import Authorization, typed
from meshnode.settlement.preflight import authorization_digest
from meshnode.settlement.store_channels import Channel
from meshnode.settlement.typed_data import refund_digest, refund_request_digest
from meshnode.wire.payments import ChannelConfig, PayOpen, PayRefund
from meshnode.wire.registry import PayCode
from tests.chain_stage import DAY_S, Side, Stage, on_chain, stage_on
from tests.lab.evm import Anvil, Deployment, deployed, needs_anvil

pytestmark = [pytest.mark.anyio, needs_anvil]
HALF = 500_000


@pytest.fixture(scope="module")
def anvil() -> Iterator[Anvil]:
    with Anvil() as chain:
        yield chain


@pytest.fixture(scope="module")
def deployment(anvil: Anvil) -> Deployment:
    return deployed(anvil.web3)


@pytest.fixture
async def stage(anvil: Anvil, deployment: Deployment, tmp_path: Path) -> AsyncIterator[Stage]:
    made = stage_on(anvil, tmp_path, deployment)
    yield made
    await made.close()


async def pair(stage: Stage, **of_provider: Any) -> tuple[Side, Side]:
    provider = await stage.side("provider", sells=True, **of_provider)
    return await stage.side("payer", usdc_micros=2_000_000), provider


def opening(
    stage: Stage, payer: Side, config: ChannelConfig, amount: int = HALF, left_s: int = 3600, salt: int = 1
) -> PayOpen:
    """A deposit as an honest payer hands it in."""
    before = stage.anvil.web3.eth.get_block("latest")["timestamp"] + left_s
    terms = Authorization(amount, 0, before, salt.to_bytes(32, "big"), b"")
    signature = payer.fund.sign(authorization_digest(stage.network, typed(config), terms))
    return PayOpen(config, stage.network.chain, amount, 0, before, terms.salt, signature)


async def refusal(stage: Stage, provider: Side, asked: PayOpen, node: bytes) -> PayCode:
    """With what code it is refused, and nothing is sent."""
    stage.anvil.mine(1)
    before = await provider.transactions.newest(84532, 50)
    with pytest.raises(PaymentRefused) as refused:
        await provider.settling.sponsor(asked, node)
    assert await provider.transactions.newest(84532, 50) == before
    return PayCode(refused.value.pay_code)


async def test_a_deposit_that_is_handed_in_is_sent_once(stage: Stage) -> None:
    payer, provider = await pair(stage)
    config = stage.config(payer, provider)
    asked = opening(stage, payer, config)
    digests = {await provider.settling.sponsor(asked, payer.node) for _ in range(3)}
    stage.settle()
    assert len(digests) == 1 and stage.in_hub == HALF
    await provider.settling.turn()
    kept = await on_chain(stage, provider, stage.id_of(config))
    assert (kept.role, kept.node, kept.usable_micros, kept.state) == ("receiver", payer.node, HALF, "open")
    assert {await provider.settling.sponsor(asked, payer.node)} == digests


async def test_deposits_that_are_not_what_they_should_be_cost_nothing(stage: Stage) -> None:
    payer, provider = await pair(stage)
    config = stage.config(payer, provider)
    good = opening(stage, payer, config)
    elsewhere = replace(config, receiver=bytes([9]) * 20)
    other_key = replace(config, receiver_authorizer=bytes([9]) * 20)
    hasty = replace(config, withdraw_delay_s=900)
    other_token = replace(config, token=bytes([9]) * 20)
    codes = {
        PayCode.UNSUPPORTED_NETWORK: [replace(good, chain=1), opening(stage, payer, other_token)],
        PayCode.BAD_ASK: [opening(stage, payer, elsewhere), opening(stage, payer, other_key)],
        PayCode.TOO_SMALL: [opening(stage, payer, hasty), opening(stage, payer, config, 99_999)],
    }
    for code, asks in codes.items():
        for asked in asks:
            assert await refusal(stage, provider, asked, payer.node) == code
    late = opening(stage, payer, config, left_s=60)
    forged = replace(good, signature=payer.key.sign(bytes(32)))
    raised = replace(good, amount=good.amount + 1)
    for asked, code in ((late, PayCode.BAD_ASK), (forged, PayCode.BAD_SIGNATURE), (raised, PayCode.BAD_SIGNATURE)):
        assert await refusal(stage, provider, asked, b"n" * 31 + bytes([code])) == code
    assert await provider.book.channels() == []


async def test_payers_who_cannot_pay(stage: Stage) -> None:
    payer, provider = await pair(stage)
    config, usdc, anyone = stage.config(payer, provider), stage.contracts.usdc, stage.anvil.web3.eth.accounts[0]
    account = shown(payer.fund.address)
    assert (
        await refusal(stage, provider, opening(stage, payer, config, 3_000_000), b"1" * 32)
        == PayCode.INSUFFICIENT_BALANCE
    )
    usdc.functions.blacklist(account).transact({"from": anyone})
    assert await refusal(stage, provider, opening(stage, payer, config), b"2" * 32) == PayCode.CHAIN_REFUSED
    usdc.functions.unBlacklist(account).transact({"from": anyone})
    usdc.functions.pause().transact({"from": anyone})
    assert await refusal(stage, provider, opening(stage, payer, config), b"3" * 32) == PayCode.CHAIN_REFUSED
    usdc.functions.unpause().transact({"from": anyone})
    stage.anvil.set_code(account, "0xef0100" + "12" * 20)
    assert await refusal(stage, provider, opening(stage, payer, config), b"4" * 32) == PayCode.CHAIN_REFUSED
    stage.anvil.set_code(account, "0x")
    asked = opening(stage, payer, config)
    await payer.settling.deposit(config, HALF, payer.fund, provider.node)
    given = await payer.transactions.authorization(stage.id_of(config))
    assert given is not None
    stage.anvil.mine(1)
    used = replace(asked, valid_before=given.valid_before, salt=given.salt, signature=given.signature)
    assert await refusal(stage, provider, used, b"5" * 32) == PayCode.BAD_ASK


async def test_a_peer_can_make_this_node_pay_for_few_transactions_only(stage: Stage) -> None:
    payer, provider = await pair(stage)
    for salt in range(MOST_OF_A_PEER):
        await provider.settling.sponsor(
            opening(stage, payer, stage.config(payer, provider), 100_000, salt=salt), payer.node
        )
    asked = opening(stage, payer, stage.config(payer, provider), 100_000)
    assert await refusal(stage, provider, asked, payer.node) == PayCode.TOO_OFTEN
    provider.monotonic.now += PERIOD_S + 1
    await provider.settling.sponsor(asked, payer.node)


async def test_the_cap_for_fees_holds_what_peers_ask_for(stage: Stage) -> None:
    payer, provider = await pair(stage, gas_month_micros=0)
    assert (
        await refusal(stage, provider, opening(stage, payer, stage.config(payer, provider)), payer.node)
        == PayCode.CHAIN_DOWN
    )
    assert await provider.transactions.newest(stage.network.chain, 9) == []


async def test_what_is_earned_is_claimed_together_and_once(stage: Stage) -> None:
    payer, provider = await pair(stage)
    channels = [await stage.opened(payer, provider, 100_000) for _ in range(4)]
    for number, channel in enumerate(channels):
        await stage.earned(payer, provider, channel, 50_000 + number, 40_000 + number)
    planned = await provider.settling.claim_now(is_dry=True)
    assert planned.amount_micros == 160_006 and [step.state for step in planned.steps] == ["prepared"]
    made = await provider.settling.claim_now()
    again = await provider.settling.claim_now()
    assert len(made.steps) == 1 and again.steps == ()
    stage.settle()
    await provider.settling.turn()
    assert stage.contracts.balance(shown(provider.fund.address)) == 160_006
    assert [(await on_chain(stage, provider, channel)).claimed_micros for channel in channels] == [
        40_000,
        40_001,
        40_002,
        40_003,
    ]
    assert (await provider.settling.claim_now()).steps == ()


async def test_a_channel_that_was_emptied_does_not_hold_up_the_others(stage: Stage) -> None:
    """Its receiver has given its rest back by another way, so what the journal wants is not there any more."""
    payer, provider = await pair(stage)
    channels = [await stage.opened(payer, provider, 100_000) for _ in range(3)]
    for channel in channels:
        await stage.earned(payer, provider, channel, 60_000)
    parts = await provider.settling._parts()
    stale = await parts.attendant.all_standings()
    drained = await on_chain(stage, provider, channels[1])
    nonce, amount = 0, 100_000
    signature = provider.key.sign(refund_digest(channels[1], nonce, amount, stage.network.chain, stage.network.hub))
    stage.contracts.channels.functions.refundWithSignature(
        contracts.config_row(typed(drained.config)), amount, nonce, signature
    ).transact({"from": stage.anvil.web3.eth.accounts[0]})
    stage.anvil.mine(1)
    outcome = await parts.collector.claim(stale, is_shutdown=True)
    assert len(outcome.steps) == 1
    stage.settle()
    await provider.settling.turn()
    assert stage.contracts.balance(shown(provider.fund.address)) == 120_000


async def test_a_voucher_that_the_hub_does_not_take_is_left_out(stage: Stage) -> None:
    payer, provider = await pair(stage)
    good, bad = [await stage.opened(payer, provider, 100_000) for _ in range(2)]
    await stage.earned(payer, provider, good, 60_000)
    await stage.earned(provider, provider, bad, 60_000)
    outcome = await provider.settling.claim_now()
    assert [step.channel for step in outcome.steps] == [good]
    stage.settle()
    await provider.settling.turn()
    assert stage.contracts.balance(shown(provider.fund.address)) == 60_000


async def test_what_is_not_worth_its_fee_waits(stage: Stage) -> None:
    payer, provider = await pair(stage)
    channel = await stage.opened(payer, provider, 100_000)
    await stage.earned(payer, provider, channel, 20)
    provider.bounds["eth_micros"] = 10**12
    outcome = await provider.settling.claim_now()
    assert outcome.steps == () and "not yet worth" in outcome.note


async def test_fees_above_the_bound_stop_a_claim_with_words(stage: Stage) -> None:
    payer, provider = await pair(stage)
    channel = await stage.opened(payer, provider, 100_000)
    await stage.earned(payer, provider, channel, 90_000)
    stage.anvil.ask("anvil_setNextBlockBaseFeePerGas", hex(10**9))
    stage.anvil.mine(1)
    provider.bounds["most_gas_micros"] = 1
    with pytest.raises(GasCapReached, match="one transaction may cost"):
        await provider.settling.claim_now()


async def test_a_paused_token_keeps_back_the_paying_out_and_not_the_claim(stage: Stage) -> None:
    payer, provider = await pair(stage)
    channel = await stage.opened(payer, provider, 100_000)
    await stage.earned(payer, provider, channel, 90_000)
    anyone = {"from": stage.anvil.web3.eth.accounts[0]}
    stage.contracts.usdc.functions.pause().transact(anyone)
    stage.anvil.mine(1)
    assert [step.kind for step in (await provider.settling.claim_now()).steps] == ["claim"]
    stage.settle()
    await provider.settling.turn()
    assert (await on_chain(stage, provider, channel)).claimed_micros == 90_000
    assert (await provider.settling.claim_now()).steps == ()
    stage.contracts.usdc.functions.unpause().transact(anyone)
    stage.anvil.mine(1)
    provider.monotonic.now += 1000
    assert stage.contracts.balance(shown(provider.fund.address)) == 0
    assert [step.kind for step in (await provider.settling.claim_now()).steps] == ["settle"]
    stage.settle()
    await provider.settling.turn()
    assert stage.contracts.balance(shown(provider.fund.address)) == 90_000
    assert (await provider.settling.claim_now()).steps == ()


async def test_a_key_without_coins_for_the_fee_says_so(stage: Stage) -> None:
    payer, provider = await pair(stage, eth_wei=0)
    channel = await stage.opened(payer, provider, 100_000)
    await stage.earned(payer, provider, channel, 90_000)
    with pytest.raises(TransactionFailed, match="ETH too little"):
        await provider.settling.claim_now()
    assert len((await provider.settling.claim_now(is_dry=True)).steps) == 1
    asked = opening(stage, payer, stage.config(payer, provider))
    assert await refusal(stage, provider, asked, payer.node) == PayCode.CHAIN_REFUSED


def request(stage: Stage, payer: Side, channel: bytes, nonce: int = 1, amount: int = HALF) -> PayRefund:
    digest = refund_request_digest(channel, nonce, amount, stage.network.chain, stage.network.hub)
    return PayRefund(channel, nonce, amount, payer.key.sign(digest))


async def test_a_refund_claims_first_and_stops_serving(stage: Stage) -> None:
    payer, provider = await pair(stage)
    channel = await stage.opened(payer, provider, HALF)
    await stage.earned(payer, provider, channel, 90_000, 80_000)
    asked = request(stage, payer, channel)
    digests = {await provider.settling.refund(asked, payer.node) for _ in range(2)}
    stage.settle()
    assert len(digests) == 1 and provider.stopped == [channel]
    assert stage.contracts.balance(shown(provider.fund.address)) == 80_000
    assert stage.contracts.balance(shown(payer.fund.address)) == 2_000_000 - 80_000


async def test_where_nobody_knows_of_running_requests_what_was_signed_stays_in_the_channel(stage: Stage) -> None:
    """Else a payer could ask for everything in the middle of an answer, which is charged only at its end."""
    payer, provider = await pair(stage, knows_busy=False)
    channel = await stage.opened(payer, provider, HALF)
    await stage.earned(payer, provider, channel, 90_000, 80_000)
    await provider.settling.refund(request(stage, payer, channel), payer.node)
    stage.settle()
    assert stage.contracts.balance(shown(payer.fund.address)) == 2_000_000 - 90_000
    await provider.settling.turn()
    await stage.earned(payer, provider, channel, 90_000, 90_000)
    await provider.settling.claim_now()
    stage.settle()
    assert stage.contracts.balance(shown(provider.fund.address)) == 90_000


async def test_refunds_that_nobody_may_ask_for(stage: Stage) -> None:
    payer, provider = await pair(stage)
    channel = await stage.opened(payer, provider, HALF)

    async def refused(asked: PayRefund) -> PayCode:
        with pytest.raises(PaymentRefused) as said:
            await provider.settling.refund(asked, payer.node)
        return PayCode(said.value.pay_code)

    assert await refused(request(stage, payer, bytes(32))) == PayCode.UNKNOWN_CHANNEL
    assert await refused(request(stage, provider, channel)) == PayCode.BAD_SIGNATURE
    assert await refused(replace(request(stage, payer, channel), amount=1)) == PayCode.BAD_SIGNATURE
    provider.is_busy = True
    assert await refused(request(stage, payer, channel)) == PayCode.CHANNEL_BUSY
    provider.is_busy = False
    assert provider.stopped == []
    await provider.settling.refund(request(stage, payer, channel, 5, 1), payer.node)
    assert await refused(request(stage, payer, channel, 4)) == PayCode.BAD_ASK
    assert stage.contracts.balance(shown(payer.fund.address)) <= 2_000_000 - HALF + 1


async def test_a_refund_that_cannot_be_sent_takes_up_serving_again(stage: Stage) -> None:
    payer, provider = await pair(stage, gas_month_micros=0)
    channel = await stage.opened(payer, provider, HALF)
    told: list[Channel] = []

    async def hear(changed: Channel) -> None:
        told.append(changed)

    provider.book.listeners.append(hear)
    with pytest.raises(PaymentRefused):
        await provider.settling.refund(request(stage, payer, channel), payer.node)
    assert provider.stopped == [channel] and told[-1].id == channel and told[-1].state == "open"


async def test_the_delay_of_a_day_is_kept_by_the_hub(stage: Stage) -> None:
    """A payer that tries to take its deposit while the provider holds a voucher."""
    payer, provider = await pair(stage)
    channel = await stage.opened(payer, provider, HALF)
    await stage.earned(payer, provider, channel, 200_000)
    await payer.settling.withdraw(channel)
    stage.anvil.mine(1)  # it is announced before the time is moved on
    stage.anvil.travel(DAY_S - 60)
    stage.anvil.mine(1)
    provider.monotonic.now += 1000
    await provider.settling.turn()
    assert provider.stopped == [channel]
    stage.anvil.travel(120)
    stage.settle()
    await payer.settling.turn()
    stage.settle()
    assert stage.contracts.balance(shown(provider.fund.address)) == 200_000
    assert stage.contracts.balance(shown(payer.fund.address)) == 2_000_000 - 200_000
