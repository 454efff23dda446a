from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from meshnode.errors import ChainUnreachable, GasCapReached, NoChannel, SettingsError, WrongNetwork
from meshnode.settlement.addresses import shown
from meshnode.settlement.rpc import RpcPair
from tests.chain_stage import Stage, on_chain, stage_on
from tests.lab.evm import Anvil, needs_anvil
from tests.lab.rogue_rpc import SECRET, RogueRpc

pytestmark = [pytest.mark.anyio, needs_anvil]
HALF = 500_000


@pytest.fixture(scope="module")
def anvil() -> Iterator[Anvil]:
    with Anvil() as chain:
        yield chain


@pytest.fixture
async def stage(anvil: Anvil, tmp_path: Path) -> AsyncIterator[Stage]:
    made = stage_on(anvil, tmp_path)
    yield made
    await made.close()


async def test_a_channel_lives_from_its_deposit_to_its_end(stage: Stage) -> None:
    payer = await stage.side("payer", usdc_micros=2_000_000)
    provider = await stage.side("provider", sells=True)
    channel = await stage.opened(payer, provider, HALF)
    assert (await on_chain(stage, payer, channel)).state == "open"
    assert (await on_chain(stage, provider, channel)).usable_micros == HALF
    await stage.earned(payer, provider, channel, 120_000, 100_000)
    await provider.settling.turn()
    stage.settle()
    await provider.settling.turn()
    assert (await on_chain(stage, provider, channel)).claimed_micros == 100_000
    await payer.settling.close_channel(channel, lambda asked: provider.settling.refund(asked, payer.node))
    stage.settle()
    for side in (payer, provider):
        await side.settling.turn()
        assert (await on_chain(stage, side, channel)).state == "closed"
    assert stage.contracts.balance(shown(payer.fund.address)) == 1_900_000
    assert stage.contracts.balance(shown(provider.fund.address)) == 100_000
    facts = await provider.settling.facts()
    assert [one["purpose"] for one in facts["transactions"]] == ["refund", "claim"]
    assert {one["state"] for one in facts["transactions"]} == {"final"} and facts["gas_reserved_micros"] == 0
    assert facts["gas_micros"] == sum(one["fee_micros"] for one in facts["transactions"]) > 0
    told = {(record["purpose"], record["outcome"]) for record in provider.records}
    assert {("claim", "final"), ("refund", "final")} <= told


async def test_a_node_starts_without_its_chain_and_finds_it_later(stage: Stage, anvil: Anvil) -> None:
    async with RogueRpc(anvil.url) as rogue:
        payer = await stage.side("payer", urls=(rogue.url,))
        rogue.conduct = "dies"
        payer.settling.start()
        while "asked yet" in payer.settling.why_not:
            await asyncio.sleep(0)
        assert "cannot be reached" in payer.settling.why_not and SECRET not in payer.settling.why_not
        assert SECRET not in str(await payer.settling.facts())
        rogue.conduct = "honest"
        while payer.settling.why_not:
            payer.settling.wake()
            await asyncio.sleep(0.001)
        await payer.settling.close()


@pytest.mark.parametrize("wrong", ["chain", "hub", "collector", "token", "token_name", "hub_is_token"])
async def test_on_a_network_that_is_not_the_one_meant_nothing_is_done(stage: Stage, wrong: str) -> None:
    honest = stage.network
    elsewhere = bytes([7]) * 20
    changes = {"chain": 84533, "token_name": "USD Coin", "hub_is_token": honest.token}
    stage.network = replace(honest, **{"hub" if wrong == "hub_is_token" else wrong: changes.get(wrong, elsewhere)})
    payer = await stage.side("payer", usdc_micros=2_000_000)
    provider = await stage.side("provider", sells=True)
    config = replace(stage.config(payer, provider), token=stage.network.token)
    with pytest.raises(WrongNetwork):
        await payer.settling.turn()
    assert payer.settling.why_not
    with pytest.raises(WrongNetwork):
        await payer.settling.deposit(config, HALF, payer.fund, provider.node)
    assert await payer.transactions.newest(stage.network.chain, 5) == []


async def test_code_that_is_not_the_pinned_one(stage: Stage) -> None:
    stage.network = replace(stage.network, code_hashes={stage.network.hub: bytes(32)})
    payer = await stage.side("payer")
    with pytest.raises(WrongNetwork, match="hub"):
        await payer.settling.turn()


async def test_endpoints_that_cannot_be_used_are_said(stage: Stage) -> None:
    payer = await stage.side("payer")
    payer.settling._open_rpc = lambda: RpcPair.of([], testnet=False)
    with pytest.raises(SettingsError):
        await payer.settling.turn()
    assert "--rpc" in payer.settling.why_not


async def test_the_cap_for_fees_holds_deposits_and_never_a_way_back(stage: Stage) -> None:
    payer = await stage.side("payer", usdc_micros=2_000_000)
    provider = await stage.side("provider", sells=True)
    channel = await stage.opened(payer, provider, HALF)
    paid = (await payer.settling.facts())["gas_micros"]
    payer.bounds["gas_month_micros"] = paid
    config = stage.config(payer, provider)
    with pytest.raises(GasCapReached):
        await payer.settling.deposit(config, HALF, payer.fund, provider.node)
    assert (await payer.settling.withdraw(channel)).steps[0].state == "submitted"
    payer.clock.now += 40 * 86_400
    assert (await payer.settling.deposit(config, HALF, payer.fund, provider.node)).steps[0].state == "submitted"


async def test_what_was_under_way_at_the_end_of_a_process_is_brought_to_its_end_by_the_next(
    stage: Stage, anvil: Anvil
) -> None:
    payer = await stage.side("payer", usdc_micros=2_000_000)
    provider = await stage.side("provider", sells=True)
    config = stage.config(payer, provider)
    await payer.settling.turn()
    anvil.ask("evm_setAutomine", False)
    made = await payer.settling.deposit(config, HALF, payer.fund, provider.node)
    anvil.ask("anvil_dropTransaction", f"0x{made.steps[0].digest.hex()}")
    await payer.close()
    again = await stage.side("payer", key=payer.key, fund=payer.fund, eth_wei=0)
    await again.settling.turn()
    anvil.ask("evm_setAutomine", True)
    stage.settle()
    await again.settling.turn()
    assert (await on_chain(stage, again, stage.id_of(config))).usable_micros == HALF
    assert stage.contracts.balance(shown(payer.fund.address)) == 2_000_000 - HALF


async def test_what_is_earned_is_claimed_before_the_node_ends(stage: Stage) -> None:
    payer = await stage.side("payer", usdc_micros=2_000_000)
    provider = await stage.side("provider", sells=True)
    channel = await stage.opened(payer, provider, HALF)
    await stage.earned(payer, provider, channel, 400_000)
    await provider.settling.close()
    stage.settle()
    assert stage.contracts.balance(shown(provider.fund.address)) == 400_000


async def test_a_chain_that_dies_while_the_node_ends_holds_nothing_up(stage: Stage, anvil: Anvil) -> None:
    async with RogueRpc(anvil.url) as rogue:
        payer = await stage.side("payer", usdc_micros=2_000_000)
        provider = await stage.side("provider", sells=True, urls=(rogue.url,))
        channel = await stage.opened(payer, provider, HALF)
        await stage.earned(payer, provider, channel, 400_000)
        rogue.conduct = "dies"
        await provider.settling.close()


async def test_a_channel_that_is_not_in_the_book(stage: Stage) -> None:
    payer = await stage.side("payer")
    with pytest.raises(NoChannel):
        await payer.settling.look_at(bytes(32))
    with pytest.raises(NoChannel):
        await payer.settling.withdraw(bytes(32))
    gone = await stage.side("gone", urls=("http://127.0.0.1:9",))
    with pytest.raises(ChainUnreachable):
        await gone.settling.look_at(bytes(32))


async def test_a_channel_that_a_payer_names_comes_into_the_book_only_with_money_in_it(stage: Stage) -> None:
    payer = await stage.side("payer", usdc_micros=2_000_000)
    provider = await stage.side("provider", sells=True)
    config = stage.config(payer, provider)
    channel = stage.id_of(config)
    await provider.settling.look_for(config, channel, payer.node)
    assert await provider.book.channels() == []
    await payer.settling.deposit(config, HALF, payer.fund, provider.node)
    assert await payer.settling.outstanding(channel, payer.fund.address) is not None
    stage.settle()
    await provider.settling.look_for(config, channel, payer.node)
    kept = await on_chain(stage, provider, channel)
    assert (kept.role, kept.node, kept.state, kept.usable_micros) == ("receiver", payer.node, "open", HALF)
    assert await payer.settling.outstanding(channel, payer.fund.address) is None


async def test_a_fault_in_a_turn_does_not_end_the_watch(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    payer = await stage.side("payer")
    turns = 0
    real = payer.settling._turn

    async def faulty() -> None:
        nonlocal turns
        turns += 1
        if turns == 1:
            raise ZeroDivisionError
        await real()

    payer.settling._turn = faulty
    payer.settling.start()
    while turns < 1 or "fault" not in payer.settling.why_not:
        await asyncio.sleep(0)
    payer.settling.wake()
    while payer.settling.why_not:
        await asyncio.sleep(0.001)
    assert turns == 2 and "settlement failed" in caplog.text
    await payer.settling.close()


async def test_facts_are_there_without_chain_and_without_journal(stage: Stage) -> None:
    payer = await stage.side("payer", urls=("http://127.0.0.1:9",))
    facts = await payer.settling.facts()
    assert facts["endpoints"] == [] and facts["why_not"] and facts["transactions"] == []
    await payer.store.close()
    assert (await payer.settling.facts())["why_not"]
