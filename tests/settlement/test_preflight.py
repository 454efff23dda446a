from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from meshnode.errors import ChainDisagrees
from meshnode.settlement import preflight
from meshnode.settlement.addresses import shown
from meshnode.settlement.contracts import Authorization
from meshnode.settlement.keys import VoucherKey
from meshnode.settlement.rpc import RpcPair
from meshnode.settlement.typed_data import ChannelConfig, channel_id
from tests.chain_stage import Stage, stage_on
from tests.lab.evm import Anvil, needs_anvil

pytestmark = [pytest.mark.anyio, needs_anvil]
AMOUNT = 500_000


@pytest.fixture(scope="module")
def anvil() -> Iterator[Anvil]:
    with Anvil() as chain:
        yield chain


@pytest.fixture
def stage(anvil: Anvil, tmp_path: Path) -> Stage:
    return stage_on(anvil, tmp_path)


@pytest.fixture
async def rpc(anvil: Anvil) -> AsyncIterator[RpcPair]:
    made = await RpcPair.of([anvil.url], testnet=True, pause_s=0)
    yield made
    await made.close()


@pytest.fixture
def fund(stage: Stage) -> VoucherKey:
    key = VoucherKey.generate()
    stage.contracts.fund(shown(key.address), usdc_micros=AMOUNT)
    return key


def channel_of(stage: Stage, fund: VoucherKey) -> ChannelConfig:
    others = [secrets.token_bytes(20) for _ in range(3)]
    return ChannelConfig(fund.address, *others, stage.network.token, 86_400, secrets.token_bytes(32))


def given_by(
    stage: Stage, fund: VoucherKey, config: ChannelConfig, left_s: int = 3600, after: int = 0
) -> Authorization:
    now = stage.anvil.web3.eth.get_block("latest")["timestamp"]
    terms = Authorization(AMOUNT, after and now + after, now + left_s, secrets.token_bytes(32), b"")
    return replace(terms, signature=fund.sign(preflight.authorization_digest(stage.network, config, terms)))


async def test_nothing_stands_against_an_honest_deposit(stage: Stage, rpc: RpcPair, fund: VoucherKey) -> None:
    config = channel_of(stage, fund)
    given = given_by(stage, fund, config)
    assert await preflight.obstacle(rpc, stage.network, config, AMOUNT, given) is None
    assert await preflight.balance(rpc, stage.network, fund.address) == AMOUNT


async def test_the_digest_is_the_one_that_the_token_checks(stage: Stage, rpc: RpcPair, fund: VoucherKey) -> None:
    """The token itself takes the signature, once, and for this channel only."""
    from meshnode.settlement.contracts import deposit

    config = channel_of(stage, fund)
    given = given_by(stage, fund, config)
    channel = channel_id(config, stage.network.chain, stage.network.hub)
    assert not await preflight.is_used(rpc, stage.network, fund.address, channel, given.salt)
    stage.anvil.web3.eth.send_transaction(
        {
            "from": stage.anvil.web3.eth.accounts[0],
            "to": stage.contracts.hub,
            "data": "0x" + deposit(config, given, stage.network.collector).hex(),
        }
    )
    stage.anvil.mine(1)
    assert await preflight.is_used(rpc, stage.network, fund.address, channel, given.salt)
    assert not await preflight.is_used(rpc, stage.network, fund.address, channel, given.salt, block=0)
    found = await preflight.obstacle(rpc, stage.network, config, AMOUNT, given)
    assert found is not None and found.cause == "used"


async def test_authorizations_that_are_not_taken(stage: Stage, rpc: RpcPair, fund: VoucherKey) -> None:
    config = channel_of(stage, fund)
    good = given_by(stage, fund, config)
    causes = {
        "signature": [
            replace(good, amount_micros=AMOUNT + 1),
            replace(good, salt=bytes(32)),
            replace(good, signature=good.signature[:64] + b"\x00"),
            replace(good, signature=bytes(65)),
            given_by(stage, VoucherKey.generate(), config),
            given_by(stage, fund, replace(config, salt=bytes(32))),
        ],
        "time": [
            given_by(stage, fund, config, left_s=preflight.LEAST_LEFT_S - 30),
            given_by(stage, fund, config, left_s=preflight.MOST_LEFT_S + 600),
            given_by(stage, fund, config, after=60),
        ],
    }
    for cause, wrong in causes.items():
        for given in wrong:
            found = await preflight.obstacle(rpc, stage.network, config, given.amount_micros, given)
            assert found is not None and found.cause == cause


async def test_accounts_and_tokens_that_cannot_pay(stage: Stage, rpc: RpcPair, fund: VoucherKey) -> None:
    config, usdc = channel_of(stage, fund), stage.contracts.usdc
    anyone = {"from": stage.anvil.web3.eth.accounts[0]}

    async def cause(amount: int = AMOUNT) -> str:
        stage.anvil.mine(1)
        found = await preflight.obstacle(rpc, stage.network, config, amount)
        return found.cause if found else "none"

    assert await cause() == "none" and await cause(AMOUNT + 1) == "balance"
    usdc.functions.pause().transact(anyone)
    assert await cause() == "paused"
    usdc.functions.unpause().transact(anyone)
    for account in (shown(fund.address), stage.contracts.hub, stage.contracts.collector):
        usdc.functions.blacklist(account).transact(anyone)
        assert await cause() == "blocked"
        usdc.functions.unBlacklist(account).transact(anyone)
    stage.anvil.set_code(shown(fund.address), "0xef0100" + "12" * 20)
    assert await cause() == "delegated"


async def test_a_token_that_answers_nonsense(stage: Stage, rpc: RpcPair, fund: VoucherKey) -> None:
    stage.anvil.set_code(stage.contracts.token, "0x60ff60005260016000f3")
    with pytest.raises(ChainDisagrees, match="the token does not answer"):
        await preflight.obstacle(rpc, stage.network, channel_of(stage, fund), AMOUNT)
