from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meshnode.errors import ChainUnreachable, NoChannel, PaymentRefused, TransactionFailed, WrongNetwork
from meshnode.settlement.addresses import shown
from meshnode.settlement.depositing import VALID_S
from meshnode.settlement.keys import Verifier
from meshnode.settlement.typed_data import refund_request_digest
from meshnode.wire.payments import ChannelConfig, PayOpen, PayRefund
from tests.chain_stage import DAY_S, Side, Stage, on_chain, stage_on
from tests.crashes import Killed
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


async def pair(stage: Stage, **of_payer: Any) -> tuple[Side, Side, ChannelConfig]:
    payer = await stage.side("payer", **{"usdc_micros": 2_000_000, **of_payer})
    provider = await stage.side("provider", sells=True)
    return payer, provider, stage.config(payer, provider)


def funds(stage: Stage, side: Side) -> int:
    return stage.contracts.balance(shown(side.fund.address))


async def test_a_dry_run_shows_all_and_does_nothing(stage: Stage) -> None:
    payer, provider, config = await pair(stage)
    planned = await payer.settling.deposit(config, HALF, payer.fund, provider.node, is_dry=True)
    (step,) = planned.as_dict()["transactions"]
    assert planned.is_dry and step["hash"] is None and step["state"] == "prepared" and step["purpose"] == "deposit"
    assert step["to"] == stage.contracts.hub and 100_000 < step["gas"] < 300_000 and step["fee_micros"] > 0
    assert step["calldata"].count("00" * 65) == 1, "the place of the signature, which nobody can use"
    assert await payer.book.channels() == [] and funds(stage, payer) == 2_000_000
    assert await payer.transactions.authorization(stage.id_of(config)) is None


async def test_a_deposit_is_made_once_however_often_it_is_asked_for(stage: Stage) -> None:
    payer, provider, config = await pair(stage)
    first = await payer.settling.deposit(config, HALF, payer.fund, provider.node)
    stage.anvil.mine(1)
    again = await payer.settling.deposit(config, HALF, payer.fund, provider.node)
    assert "in a block" in again.note and again.steps == ()
    assert stage.in_hub == HALF and first.steps[0].state == "submitted"
    with pytest.raises(TransactionFailed, match="under way"):
        await payer.settling.deposit(config, HALF + 1, payer.fund, provider.node)
    stage.settle()
    await payer.settling.turn()
    await payer.settling.deposit(config, HALF + 1, payer.fund, provider.node)
    stage.anvil.mine(1)
    assert stage.in_hub == 2 * HALF + 1
    kept = await on_chain(stage, payer, stage.id_of(config))
    assert kept.node == provider.node and kept.role == "payer"


async def test_a_deposit_that_waits_for_a_block_is_not_made_again(stage: Stage, anvil: Anvil) -> None:
    payer, provider, config = await pair(stage)
    anvil.ask("evm_setAutomine", False)
    first = await payer.settling.deposit(config, HALF, payer.fund, provider.node)
    again = await payer.settling.deposit(config, HALF, payer.fund, provider.node)
    assert again.steps[0].digest == first.steps[0].digest
    anvil.ask("evm_setAutomine", True)
    stage.settle()
    assert stage.in_hub == HALF


async def test_a_reorganised_deposit_comes_back_and_counts_only_then(stage: Stage, anvil: Anvil) -> None:
    payer, provider, config = await pair(stage)
    await payer.settling.turn()
    anvil.mine(1)
    await payer.settling.deposit(config, HALF, payer.fund, provider.node)
    anvil.mine(1)
    await payer.settling.turn()
    channel = stage.id_of(config)
    assert (await on_chain(stage, payer, channel)).usable_micros == HALF
    anvil.reorg(2)
    assert stage.in_hub == 0
    await payer.settling.look_at(channel)
    assert (await on_chain(stage, payer, channel)).usable_micros == 0
    await payer.settling.turn()
    stage.settle()
    await payer.settling.turn()
    assert stage.in_hub == HALF and (await on_chain(stage, payer, channel)).usable_micros == HALF
    assert funds(stage, payer) == 2_000_000 - HALF


async def test_a_large_deposit_counts_when_its_block_is_safe(stage: Stage) -> None:
    payer, provider, config = await pair(stage, usdc_micros=50_000_000, most_deposit_micros=50_000_000)
    stage.settle()
    await payer.settling.deposit(config, 20_000_000, payer.fund, provider.node)
    stage.anvil.mine(1)
    await payer.settling.turn()
    seen = await on_chain(stage, payer, stage.id_of(config))
    assert (seen.balance_micros, seen.usable_micros) == (20_000_000, 0)
    stage.settle()
    await payer.settling.turn()
    assert (await on_chain(stage, payer, stage.id_of(config))).usable_micros == 20_000_000


@pytest.mark.parametrize("dies_in", ["opening", "keep_authorization", "add", "broadcast", "save"])
@pytest.mark.parametrize("after", [False, True])
async def test_a_process_that_ends_anywhere_has_deposited_once_or_not(
    stage: Stage, dies_in: str, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    payer, provider, config = await pair(stage)
    await payer.settling.turn()
    parts = await payer.settling._parts()
    owner = {"opening": payer.book, "broadcast": parts.chain.rpc}.get(dies_in, payer.transactions)
    real = getattr(owner, dies_in)

    async def dying(*arguments: Any) -> Any:
        if after:
            await real(*arguments)
        raise Killed

    monkeypatch.setattr(owner, dies_in, dying)
    with pytest.raises(Killed):
        await payer.settling.deposit(config, HALF, payer.fund, provider.node)
    monkeypatch.undo()
    await payer.close()
    reborn = await stage.side("payer", key=payer.key, fund=payer.fund, eth_wei=0)
    await reborn.settling.turn()
    await reborn.settling.deposit(config, HALF, payer.fund, provider.node)
    stage.settle()
    await reborn.settling.turn()
    assert stage.in_hub == HALF and funds(stage, payer) == 2_000_000 - HALF
    assert (await on_chain(stage, reborn, stage.id_of(config))).usable_micros == HALF


async def test_without_coins_the_provider_is_asked_and_not_believed(stage: Stage) -> None:
    payer, provider, config = await pair(stage, eth_wei=0)
    asked: list[PayOpen] = []

    async def lie(message: PayOpen) -> bytes:
        asked.append(message)
        return bytes(32)

    for _ in range(2):
        outcome = await payer.settling.deposit(config, HALF, payer.fund, provider.node, ask_open=lie)
        assert outcome.steps[0].state == "asked-provider"
    assert asked[0] == asked[1], "the same authorization, so that it can be taken once"
    await payer.settling.turn()
    assert (await on_chain(stage, payer, stage.id_of(config))).balance_micros == 0
    message = asked[0]
    assert 0 < message.valid_before - stage.anvil.web3.eth.get_block("latest")["timestamp"] <= VALID_S + 60
    await payer.settling.deposit(
        *(config, HALF, payer.fund, provider.node),
        ask_open=lambda opening: provider.settling.sponsor(opening, payer.node),
    )
    stage.settle()
    await payer.settling.turn()
    assert (await on_chain(stage, payer, stage.id_of(config))).usable_micros == HALF
    with pytest.raises(TransactionFailed, match="ETH too little"):
        await payer.settling.deposit(stage.config(payer, provider), HALF, payer.fund, provider.node)


async def test_an_authorization_that_nobody_took_is_over_by_the_clock_of_the_chain(stage: Stage) -> None:
    payer, provider, config = await pair(stage, eth_wei=0)
    asked: list[PayOpen] = []

    async def keep(message: PayOpen) -> bytes:
        asked.append(message)
        return bytes(32)

    await payer.settling.deposit(config, HALF, payer.fund, provider.node, ask_open=keep)
    payer.clock.now += 400 * DAY_S
    with pytest.raises(TransactionFailed, match="under way"):
        await payer.settling.deposit(config, HALF + 1, payer.fund, provider.node, ask_open=keep)
    stage.anvil.travel(VALID_S + 1)
    stage.settle()
    await payer.settling.deposit(config, HALF + 1, payer.fund, provider.node, ask_open=keep)
    assert asked[1].salt != asked[0].salt and asked[1].amount == HALF + 1


async def test_what_stands_against_a_deposit_is_said_before_it_is_signed(stage: Stage) -> None:
    payer, provider, config = await pair(stage, usdc_micros=HALF)
    usdc, anyone = stage.contracts.usdc, {"from": stage.anvil.web3.eth.accounts[0]}
    account = shown(payer.fund.address)

    async def refused(amount: int = HALF) -> str:
        stage.anvil.mine(1)
        with pytest.raises(TransactionFailed) as failed:
            await payer.settling.deposit(config, amount, payer.fund, provider.node)
        return failed.value.message

    assert "has $0.50" in await refused(HALF + 1)
    assert "at most $2.00" in await refused(3_000_000)
    assert "more than nothing" in await refused(0)
    usdc.functions.pause().transact(anyone)
    assert "paused" in await refused()
    usdc.functions.unpause().transact(anyone)
    usdc.functions.blacklist(account).transact(anyone)
    assert "blocked" in await refused()
    usdc.functions.unBlacklist(account).transact(anyone)
    stage.anvil.set_code(account, "0xef0100" + "12" * 20)
    assert "EIP-7702" in await refused()
    stage.anvil.set_code(account, "0x6000")
    assert "EIP-1271" in await refused()
    stage.anvil.set_code(account, "0x")
    assert await payer.book.channels() == []
    await payer.settling.deposit(config, HALF, payer.fund, provider.node)
    stage.anvil.mine(1)
    assert stage.in_hub == HALF


async def test_a_channel_of_other_keys_or_another_token(stage: Stage) -> None:
    payer, provider, config = await pair(stage)
    for wrong in (replace(config, payer=payer.key.address), replace(config, payer_authorizer=payer.fund.address)):
        with pytest.raises(ValueError):
            await payer.settling.deposit(wrong, HALF, payer.fund, provider.node)
    with pytest.raises(WrongNetwork):
        await payer.settling.deposit(replace(config, token=bytes([1]) * 20), HALF, payer.fund, provider.node)


async def test_what_is_left_comes_back_after_the_delay(stage: Stage) -> None:
    payer, provider, _ = await pair(stage)
    channel = await stage.opened(payer, provider, HALF)
    planned = await payer.settling.withdraw(channel, is_dry=True)
    assert planned.amount_micros == HALF and planned.steps[0].kind == "initiate-withdraw"
    outcome = await payer.settling.withdraw(channel)
    assert outcome.steps[0].state == "submitted" and "1 days" in outcome.note
    stage.anvil.mine(1)
    again = await payer.settling.withdraw(channel)
    assert again.steps == () and "before" in again.note
    await payer.settling.turn()
    seen = await on_chain(stage, payer, channel)
    assert seen.state == "withdrawing" and seen.withdrawable_at is not None
    payer.clock.now += 400 * DAY_S
    await payer.settling.turn()
    assert stage.in_hub == HALF
    stage.anvil.travel(DAY_S)
    stage.settle()
    await payer.settling.turn()
    stage.settle()
    await payer.settling.turn()
    assert funds(stage, payer) == 2_000_000 and (await on_chain(stage, payer, channel)).state == "closed"
    assert "nothing is left" in (await payer.settling.withdraw(channel)).note


async def test_panic_takes_all_channels_in_one_transaction(stage: Stage) -> None:
    payer, provider, _ = await pair(stage)
    channels = [await stage.opened(payer, provider, 100_000 + number) for number in range(3)]
    await payer.settling.withdraw(channels[0])
    planned = await payer.settling.panic(is_dry=True)
    assert len(planned.steps) == 1 and planned.amount_micros == 200_003
    outcome = await payer.settling.panic()
    assert len(outcome.steps) == 1
    stage.anvil.mine(1)
    await payer.settling.turn()
    assert {one.state for one in await payer.book.channels()} == {"withdrawing"}
    assert (await payer.settling.panic()).steps == ()
    stage.anvil.travel(DAY_S)
    stage.settle()
    await payer.settling.turn()
    stage.settle()
    await payer.settling.turn()
    assert funds(stage, payer) == 2_000_000 and stage.in_hub == 0


async def test_panic_does_what_it_can_where_one_channel_is_in_the_way(stage: Stage) -> None:
    """Another wallet's channel stands in the journal, as after a change of keys."""
    payer, provider, _ = await pair(stage)
    stranger = await stage.side("stranger", usdc_micros=1_000_000)
    theirs = stage.config(stranger, provider)
    await stranger.settling.deposit(theirs, HALF, stranger.fund, provider.node)
    mine = await stage.opened(payer, provider, HALF)
    await payer.book.opening(theirs, stage.id_of(theirs), "payer", provider.node)
    outcome = await payer.settling.panic()
    assert [step.channel for step in outcome.steps] == [mine]
    with pytest.raises(NoChannel, match="another key"):
        await payer.settling.withdraw(stage.id_of(theirs))


async def test_closing_asks_the_provider_and_looks_at_the_chain(stage: Stage) -> None:
    payer, provider, _ = await pair(stage)
    channel = await stage.opened(payer, provider, HALF)
    await stage.earned(payer, provider, channel, 70_000, 60_000)
    asked: list[PayRefund] = []

    async def refuse(message: PayRefund) -> bytes:
        asked.append(message)
        raise PaymentRefused("busy")

    planned = await payer.settling.close_channel(channel, refuse, is_dry=True)
    assert planned.steps[0].state == "asked-provider" and not asked
    with pytest.raises(PaymentRefused):
        await payer.settling.close_channel(channel, refuse)
    digest = refund_request_digest(channel, asked[0].nonce, HALF, stage.network.chain, stage.network.hub)
    assert Verifier(payer.key.address).verify(digest, asked[0].signature)
    outcome = await payer.settling.close_channel(channel, lambda ask: provider.settling.refund(ask, payer.node))
    assert outcome.steps[0].digest
    stage.settle()
    for side in (payer, provider):
        await side.settling.turn()
        assert (await on_chain(stage, side, channel)).state == "closed"
    assert funds(stage, payer) == 2_000_000 - 60_000 and funds(stage, provider) == 60_000
    with pytest.raises(NoChannel):
        await payer.settling.close_channel(bytes(32), refuse)


async def test_with_the_chain_away_nothing_is_signed(stage: Stage) -> None:
    payer, provider, config = await pair(stage, urls=("http://127.0.0.1:9",))
    with pytest.raises(ChainUnreachable):
        await payer.settling.deposit(config, HALF, payer.fund, provider.node)
    assert await payer.book.channels() == []
