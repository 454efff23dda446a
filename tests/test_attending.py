from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from meshnode.attending import SWEEP_S
from meshnode.errors import ChainDisagrees, ChainUnreachable
from meshnode.settlement.addresses import shown
from meshnode.settlement.store_channels import Channel
from tests.chain_stage import DAY_S, Side, Stage, on_chain, stage_on
from tests.lab.evm import Anvil, Deployment, deployed, needs_anvil
from tests.lab.rogue_rpc import RogueRpc

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


async def owing(stage: Stage, *urls: str) -> tuple[Side, Side, bytes]:
    """A channel whose payer owes 200,000, and the provider's side with these endpoints."""
    payer = await stage.side("payer", usdc_micros=2_000_000)
    provider = await stage.side("provider", sells=True, urls=urls, most_unclaimed_micros=10**9)
    channel = await stage.opened(payer, provider, HALF)
    provider.bounds["eth_micros"] = 30 * 10**9  # too dear to be claimed without a reason
    await stage.earned(payer, provider, channel, 200_000)
    await provider.settling.turn()
    assert provider.stopped == [] and stage.contracts.balance(shown(provider.fund.address)) == 0
    return payer, provider, channel


def paid(stage: Stage, provider: Side) -> int:
    return stage.contracts.balance(shown(provider.fund.address))


async def test_a_withdrawal_is_answered_with_a_claim_at_the_next_look(stage: Stage) -> None:
    payer, provider, channel = await owing(stage)
    await payer.settling.withdraw(channel)
    stage.anvil.mine(1)
    await provider.settling.turn()
    assert provider.stopped == [channel]
    assert [record["kind"] for record in provider.records if record["kind"] == "withdrawing"] == ["withdrawing"]
    stage.settle()
    await provider.settling.turn()
    assert paid(stage, provider) == 200_000 and provider.stopped == [channel]
    assert (await on_chain(stage, provider, channel)).state == "withdrawing"
    stage.anvil.travel(DAY_S)
    stage.settle()
    await payer.settling.turn()
    stage.settle()
    for side in (payer, provider):
        await side.settling.turn()
    assert stage.contracts.balance(shown(payer.fund.address)) == 2_000_000 - 200_000


async def test_a_withdrawal_whose_log_is_kept_back_is_found_by_the_sweep(stage: Stage, anvil: Anvil) -> None:
    async with RogueRpc(anvil.url) as first, RogueRpc(anvil.url) as second:
        payer, provider, channel = await owing(stage, first.url, second.url)
        for rogue in (first, second):
            rogue.lies["eth_getLogs"] = lambda params, honest: []
        await payer.settling.withdraw(channel)
        stage.anvil.mine(1)
        provider.monotonic.now += SWEEP_S + 1
        await provider.settling.turn()
        assert provider.stopped == [channel]
        stage.settle()
        await provider.settling.turn()
        assert paid(stage, provider) == 200_000
        await provider.settling.close()


async def test_one_endpoint_that_hides_a_withdrawal_delays_the_claim_and_not_the_alarm(
    stage: Stage, anvil: Anvil
) -> None:
    async with RogueRpc(anvil.url) as liar:
        payer, provider, channel = await owing(stage, anvil.url, liar.url)
        calm = anvil.ask("eth_call", {"to": stage.contracts.hub, "data": _question(channel)}, "latest")
        await payer.settling.withdraw(channel)
        stage.anvil.mine(1)
        liar.lies["eth_call"] = lambda params, honest: calm
        liar.lies["eth_getLogs"] = lambda params, honest: []
        with pytest.raises(ChainDisagrees):
            await provider.settling.turn()
        assert provider.stopped == [channel] and "different things" in provider.settling.why_not
        liar.lies.clear()
        await provider.settling.turn()
        stage.settle()
        await provider.settling.turn()
        assert paid(stage, provider) == 200_000 and provider.settling.why_not == ""
        await provider.settling.close()


def _question(channel: bytes) -> str:
    from meshnode.settlement.contracts import standings_question

    return "0x" + standings_question([channel]).hex()


async def test_an_invented_withdrawal_costs_no_more_than_a_pause(stage: Stage, anvil: Anvil) -> None:
    """One endpoint makes a withdrawal up: serving stops, but no money moves and the truth is found."""
    async with RogueRpc(anvil.url) as liar:
        payer, provider, channel = await owing(stage, anvil.url, liar.url)
        before = anvil.snapshot()
        await payer.settling.withdraw(channel)
        stage.anvil.mine(1)
        alarmed = anvil.ask("eth_call", {"to": stage.contracts.hub, "data": _question(channel)}, "latest")
        anvil.restore(before)
        liar.lies["eth_call"] = lambda params, honest: alarmed if len(params[0]["data"]) > 300 else honest
        provider.monotonic.now += SWEEP_S + 1
        with pytest.raises(ChainDisagrees):
            await provider.settling.turn()
        assert provider.stopped == [channel] and paid(stage, provider) == 0
        liar.lies.clear()
        told: list[Channel] = []

        async def hear(changed: Channel) -> None:
            told.append(changed)

        provider.book.listeners.append(hear)
        await provider.settling.turn()
        assert (await on_chain(stage, provider, channel)).state == "open" and paid(stage, provider) == 0
        assert [(one.id, one.state) for one in told] == [(channel, "open")]
        await provider.settling.close()


async def test_an_alarm_that_one_endpoint_is_too_early_with_is_kept_up(stage: Stage, anvil: Anvil) -> None:
    """The other endpoint is a block behind: nothing is agreed yet, and nothing is taken back either."""
    async with RogueRpc(anvil.url) as slow:
        payer, provider, channel = await owing(stage, anvil.url, slow.url)
        await payer.settling.withdraw(channel)
        anvil.mine(1)
        slow.behind = 2
        provider.monotonic.now += SWEEP_S + 1
        await provider.settling.turn()
        assert provider.stopped == [channel] and (await on_chain(stage, provider, channel)).state == "open"
        slow.behind = 0
        await provider.settling.turn()
        assert provider.stopped == [channel] and (await on_chain(stage, provider, channel)).state == "withdrawing"
        anvil.mine(1)
        assert paid(stage, provider) == 200_000
        await provider.settling.close()


async def test_without_logs_or_endpoints_the_next_turn_goes_on(stage: Stage, anvil: Anvil) -> None:
    async with RogueRpc(anvil.url) as rogue:
        _, provider, channel = await owing(stage, rogue.url)
        rogue.conduct = "dies"
        with pytest.raises(ChainUnreachable):
            await provider.settling.turn()
        assert provider.settling.why_not and provider.stopped == []
        rogue.conduct = "honest"
        await provider.settling.turn()
        assert provider.settling.why_not == ""
        await provider.settling.close()


async def test_age_makes_a_claim_worth_while(stage: Stage) -> None:
    _, provider, channel = await owing(stage)
    provider.clock.now += DAY_S / 4 + 1
    await provider.settling.turn()
    stage.settle()
    assert paid(stage, provider) == 200_000


async def test_who_sells_nothing_claims_nothing(stage: Stage) -> None:
    payer = await stage.side("payer", usdc_micros=2_000_000)
    provider = await stage.side("provider", sells=True)
    channel = await stage.opened(payer, provider, HALF)
    before: Any = await payer.transactions.newest(stage.network.chain, 9)
    await payer.settling.turn()
    assert (
        [one.kind for one in before]
        == ["deposit"]
        == [one.kind for one in await payer.transactions.newest(stage.network.chain, 9)]
    )
    assert (await on_chain(stage, payer, channel)).state == "open"
