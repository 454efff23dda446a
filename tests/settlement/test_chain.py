from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from meshnode.errors import TransactionFailed
from meshnode.settlement import contracts
from meshnode.settlement.chain import MOST_FAILURES, Bounds, Chain, state_of, withdrawable_at
from meshnode.settlement.contracts import Standing
from meshnode.settlement.fees import GasBounds
from meshnode.settlement.sending import Order
from meshnode.settlement.store_channels import Channel, State
from meshnode.wire.payments import ChannelConfig
from tests.chain_stage import Side, Stage, on_chain, stage_on
from tests.lab.evm import Anvil, Deployment, deployed, needs_anvil

pytestmark = [pytest.mark.anyio, needs_anvil]
CONFIG = ChannelConfig(*(bytes([number]) * 20 for number in range(1, 6)), 900, bytes(32))


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


@pytest.fixture
async def side(stage: Stage) -> Side:
    return await stage.side("payer", usdc_micros=2_000_000)


async def chain_of(side: Side) -> Chain:
    return (await side.settling._parts()).chain


def order(side: Side, stage: Stage, purpose: str) -> Order:
    data = contracts.settle(side.key.address, stage.network.token)
    return Order(purpose, "claim", stage.network.hub, data, (b"c" * 32,))


def booked(state: State) -> Channel:
    return Channel(b"c" * 32, "payer", b"n" * 32, 1, bytes(20), CONFIG, state=state)


@pytest.mark.parametrize(
    "before, standing, after",
    [
        ("opening", Standing(), "opening"),
        ("opening", Standing(5), "open"),
        ("open", Standing(5, 5), "closed"),
        ("open", Standing(), "closed"),
        ("closed", Standing(9, 5), "open"),
        ("closing", Standing(9, 5), "open"),
        ("open", Standing(9, 5, 4, 1000), "withdrawing"),
    ],
)
def test_the_state_of_a_channel_is_what_the_chain_says(before: State, standing: Standing, after: State) -> None:
    assert state_of(booked(before), standing) == after
    assert withdrawable_at(booked(before), standing) == (1900.0 if standing.withdraw_since else None)


def test_bounds_of_one_transaction() -> None:
    assert Bounds(eth_micros=7, most_gas_micros=8).gas == GasBounds(7, 8)


async def test_a_purpose_is_new_again_only_when_it_has_ended(stage: Stage, side: Side, anvil: Anvil) -> None:
    chain = await chain_of(side)
    assert await chain.purpose("x") == "x#0"
    anvil.ask("evm_setAutomine", False)
    step = await chain.do(order(side, stage, "x#0"))
    assert await chain.purpose("x") == "x#0" and await chain.under_way("claim") == {b"c" * 32}
    assert (await chain.do(order(side, stage, "x#0"))).digest == step.digest
    assert await chain.under_way("deposit") == set()
    anvil.ask("evm_setAutomine", True)
    stage.settle()
    await chain.sender.follow()
    assert await chain.purpose("x") == "x#1" and await chain.under_way("claim") == set()


async def test_a_dry_run_writes_nothing(stage: Stage, side: Side) -> None:
    chain = await chain_of(side)
    step = await chain.do(order(side, stage, "x#0"), is_dry=True)
    assert step.state == "prepared" and not step.digest
    assert await side.transactions.find("x#0") is None


async def test_the_book_is_told_what_the_chain_says(stage: Stage, side: Side) -> None:
    provider = await stage.side("provider", sells=True)
    config = stage.config(side, provider)
    await side.settling.deposit(config, 700_000, side.fund, provider.node)
    stage.anvil.mine(1)
    chain = await chain_of(side)
    channel = await chain.channel(stage.id_of(config))
    assert channel is not None and channel.state == "opening"
    found = await chain.refresh([channel])
    assert found[channel.id].balance_micros == 700_000
    kept = await on_chain(stage, side, channel.id)
    assert (kept.state, kept.balance_micros, kept.usable_micros) == ("open", 700_000, 700_000)
    assert await chain.channel(bytes(32)) is None


async def test_what_fails_again_and_again_is_given_up(stage: Stage, side: Side) -> None:
    """Whoever makes simulations succeed and transactions fail would have this node pay for each."""
    chain = await chain_of(side)
    for number in range(MOST_FAILURES):
        assert await chain.purpose("x") == f"x#{number}"
        await chain.do(order(side, stage, f"x#{number}"))
        made = await side.transactions.find(f"x#{number}")
        assert made is not None
        await side.transactions.save(replace(made, state="failed", ended_at=1.0))
    with pytest.raises(TransactionFailed, match="given up"):
        await chain.purpose("x")
