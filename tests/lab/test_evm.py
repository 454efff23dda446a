"""The local chains do what tests count on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from eth_utils import to_checksum_address
from web3 import Web3
from web3.exceptions import TransactionNotFound

from tests.lab.evm import (
    BASE_SEPOLIA,
    BASE_SEPOLIA_USDC,
    CANONICAL_HUB,
    Anvil,
    canonical,
    deployed,
    in_process,
    needs_anvil,
    travel,
)

SOMEBODY = to_checksum_address("0x" + "5b" * 20)


@pytest.fixture(params=["in process", pytest.param("anvil", marks=needs_anvil)])
def web3(request: pytest.FixtureRequest) -> Web3:
    if request.param == "in process":
        return in_process()
    chain = Anvil()
    request.addfinalizer(chain.kill)
    chain.start()
    return chain.web3


def test_the_contracts_are_there_and_accounts_are_funded(web3: Web3) -> None:
    contracts = deployed(web3)
    contracts.fund(SOMEBODY, eth_wei=7, usdc_micros=9)
    assert (web3.eth.get_balance(SOMEBODY), contracts.balance(SOMEBODY)) == (7, 9)
    assert contracts.chain_id == web3.eth.chain_id
    assert contracts.channels.functions.eip712Domain().call()[4] == contracts.hub
    assert len(web3.eth.get_code(contracts.collector)) > 100
    assert deployed(web3) != contracts


def test_the_clock_moves_by_what_is_asked(web3: Web3) -> None:
    before = web3.eth.get_block("latest")["timestamp"]
    travel(web3, 86_400)
    assert 86_400 <= web3.eth.get_block("latest")["timestamp"] - before <= 86_400 + 5


@needs_anvil
def test_the_same_contracts_where_public_networks_have_them() -> None:
    with Anvil() as chain:
        contracts = canonical(chain)
        assert (contracts.chain_id, contracts.hub, contracts.token) == (BASE_SEPOLIA, CANONICAL_HUB, BASE_SEPOLIA_USDC)
        contracts.fund(SOMEBODY, usdc_micros=9)
        assert contracts.balance(SOMEBODY) == 9
        assert contracts.channels.functions.eip712Domain().call()[3:5] == [BASE_SEPOLIA, CANONICAL_HUB]


@needs_anvil
def test_blocks_come_when_asked_and_go_when_another_branch_wins() -> None:
    with Anvil(31337, mining=False) as chain:
        web3 = chain.web3
        sender = web3.eth.accounts[0]
        sent = web3.eth.send_transaction({"from": sender, "to": SOMEBODY, "value": 5})
        assert web3.eth.block_number == 0 and web3.eth.get_balance(SOMEBODY) == 0
        chain.mine(3)
        receipt = web3.eth.get_transaction_receipt(sent)
        assert (web3.eth.block_number, receipt["blockNumber"], web3.eth.chain_id) == (3, 1, 31337)
        chain.reorg(3)
        assert web3.eth.block_number == 3 and web3.eth.get_balance(SOMEBODY) == 0
        assert web3.eth.get_block(1)["hash"] != receipt["blockHash"]
        with pytest.raises(TransactionNotFound):
            web3.eth.get_transaction_receipt(sent)


@needs_anvil
def test_a_snapshot_is_gone_back_to() -> None:
    with Anvil() as chain:
        contracts = deployed(chain.web3)
        before = chain.snapshot()
        contracts.fund(SOMEBODY, usdc_micros=9)
        chain.restore(before)
        assert contracts.balance(SOMEBODY) == 0


@needs_anvil
def test_a_chain_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    with Anvil(state=tmp_path / "state.json") as chain:
        contracts = deployed(chain.web3)
        contracts.fund(SOMEBODY, usdc_micros=9)
        url, number = chain.url, chain.web3.eth.block_number
        chain.stop()
        with pytest.raises(OSError):
            chain.web3.eth.get_block("latest")
        chain.start()
        assert (chain.url, chain.web3.eth.block_number, contracts.balance(SOMEBODY)) == (url, number, 9)


@needs_anvil
def test_a_chain_may_hang_and_come_back() -> None:
    from web3 import HTTPProvider

    with Anvil() as chain:
        hasty = Web3(HTTPProvider(chain.url, request_kwargs={"timeout": 0.2}, exception_retry_configuration=None))
        assert hasty.eth.chain_id == BASE_SEPOLIA
        chain.pause()
        with pytest.raises(OSError):
            hasty.eth.get_block("latest")
        chain.resume()
        assert hasty.eth.get_block("latest")["number"] == 0


@needs_anvil
def test_it_answers_over_a_web_socket() -> None:
    from web3 import AsyncWeb3, WebSocketProvider

    async def asked(url: str) -> int:
        async with AsyncWeb3(WebSocketProvider(url)) as web3:
            return await web3.eth.chain_id

    with Anvil() as chain:
        assert asyncio.run(asked(chain.websocket_url)) == BASE_SEPOLIA


@needs_anvil
def test_what_it_does_not_know_is_said() -> None:
    with Anvil() as chain, pytest.raises(RuntimeError, match="anvil_fly"):
        chain.ask("anvil_fly")


@needs_anvil
def test_a_chain_that_does_not_start_says_why() -> None:
    with Anvil() as first:
        second = Anvil()
        second.port = first.port
        with pytest.raises(RuntimeError, match="in use"):
            second.start()


@needs_anvil
def test_a_chain_starts_again_many_times() -> None:
    chain = Anvil()
    for _ in range(5):
        with chain:
            assert chain.web3.eth.block_number == 0
