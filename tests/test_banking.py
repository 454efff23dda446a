"""Channels between two nodes: opened, filled, asked about and emptied on a real chain with the real contracts."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from meshnode import banking
from meshnode.errors import (
    ChainUnreachable,
    MonthlyCapReached,
    NoChannel,
    NodeNotFound,
    PaymentRefused,
    PaymentRequired,
    WrongPassword,
)
from meshnode.settlement.store_channels import Channel
from meshnode.wire.payments import PayOpen, PayState, PayTerms
from meshnode.wire.registry import PayCode
from tests.bank_stage import PASSWORD, USDC, Bank, Node
from tests.lab.evm import Anvil, Deployment, deployed, needs_anvil

pytestmark = [pytest.mark.anyio, needs_anvil]
FINAL_BLOCKS = 100
HALF, THIRD = USDC // 2, USDC // 3


@pytest.fixture(scope="module")
def chain() -> Iterator[Anvil]:
    with Anvil(31337) as found:
        yield found


@pytest.fixture(scope="module")
def contracts(chain: Anvil) -> Deployment:
    return deployed(chain.web3)


@pytest.fixture
async def bank(chain: Anvil, contracts: Deployment, tmp_path: Path) -> AsyncIterator[Bank]:
    yield Bank(chain, contracts, tmp_path)


def join(bank: Bank, payer: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions of the payer go over the fake wire."""
    monkeypatch.setattr(banking, "ask", bank.wire.between(payer.node))


async def channels(node: Node) -> list[Channel]:
    return list(await node.money._book.channels())


async def test_a_request_has_its_channel_opened(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bank.seller() as seller, bank.running("payer") as payer:
        join(bank, payer, monkeypatch)
        payer.allow(deposit_micros=THIRD)  # together they stay below a dollar, and count in the next block
        await payer.money.bank.fill(seller.node, 100)
        (channel,) = await channels(payer)
        assert (channel.role, channel.state, channel.usable_micros) == ("payer", "open", THIRD)
        assert channel.node == seller.node
        # One that is there is filled up, and no second one is opened; but not before the first deposit is final.
        with pytest.raises(NoChannel, match="in a block"):
            await payer.money.bank.fill(seller.node, 100)
        bank.chain.mine(FINAL_BLOCKS)
        await (await payer.money._chain()).turn()
        await payer.money.bank.fill(seller.node, 100)
        (again,) = await channels(payer)
        assert (again.id, again.usable_micros) == (channel.id, 2 * THIRD)
        held = bank.contracts.balance(bank.contracts.hub)
        assert held >= 2 * THIRD


async def test_a_payer_without_ether_has_its_deposit_sent_by_the_provider(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bank.seller() as seller, bank.running("payer", ether=False) as payer:
        join(bank, payer, monkeypatch)
        payer.allow()
        await payer.money.bank.fill(seller.node, 100)
        assert any(isinstance(question, PayOpen) for question in bank.wire.asked)
        (channel,) = await channels(payer)
        assert channel.usable_micros == HALF
        sent = [facts for kind, facts in seller.records if kind == "transaction"]
        assert [(each["purpose"], each["outcome"]) for each in sent][:1] == [("deposit", "submitted")]
        assert sent[0]["node"] == payer.node.hex() and sent[0]["channel"] == channel.id.hex()


async def test_a_deposit_that_was_signed_stays_counted_until_it_is_over(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who holds the signature may still send it."""
    async with bank.seller(ether=False) as seller, bank.running("payer", ether=False) as payer:
        join(bank, payer, monkeypatch)
        payer.allow()
        with pytest.raises(PaymentRefused):
            await payer.money.bank.fill(seller.node, 100)
        assert payer.money.purse.facts()["locked_micros"] == HALF
        with pytest.raises(PaymentRefused):
            await payer.money.bank.fill(seller.node, 100)
        assert payer.money.purse.facts()["locked_micros"] == HALF, "the same deposit is not counted twice"


async def test_a_person_deposits_within_the_bounds(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bank.seller() as seller, bank.running("payer") as payer:
        join(bank, payer, monkeypatch)
        payer.allow(mode="off")
        name = seller.node.hex()
        dry = await payer.money.deposit(name, HALF, PASSWORD, True)
        assert dry["dry_run"] and dry["transactions"][0]["hash"] is None
        assert await channels(payer) == [] and payer.money.purse.facts()["locked_micros"] == 0
        with pytest.raises(PaymentRequired, match="may hold"):
            await payer.money.deposit(name, 100 * USDC, PASSWORD, False)
        payer.allow(mode="off", month_micros=HALF - 1)
        with pytest.raises(MonthlyCapReached):
            await payer.money.deposit(name, HALF, PASSWORD, False)
        with pytest.raises(WrongPassword):
            await payer.money.deposit(name, HALF, b"wrong", False)
        assert payer.money.purse.facts()["locked_micros"] == 0
        assert {channel.state for channel in await channels(payer)} == {"closed"}, "nothing is left to be watched"
        payer.allow(mode="off")
        done = await payer.money.deposit(name, HALF, PASSWORD, False)
        assert done["amount_micros"] == HALF and done["transactions"][0]["hash"].startswith("0x")


async def test_locked_funds_open_nothing_by_themselves(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bank.seller() as seller, bank.running("payer") as payer:
        join(bank, payer, monkeypatch)
        payer.allow()
        payer.wallets._password_file = None
        payer.money._wallets._password_file = None
        with pytest.raises(NoChannel, match="locked"):
            await payer.money.bank.fill(seller.node, 100)
        assert bank.wire.asked == []


async def test_more_than_the_policy_leaves_is_not_locked(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bank.seller() as seller, bank.running("payer") as payer:
        join(bank, payer, monkeypatch)
        payer.allow()
        with pytest.raises(NoChannel, match="policy leaves"):
            await payer.money.bank.fill(seller.node, HALF + 1)
        assert await channels(payer) == []


async def test_closed_by_agreement_or_after_the_delay(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bank.seller() as seller, bank.running("payer") as payer:
        join(bank, payer, monkeypatch)
        payer.allow()
        await payer.money.bank.fill(seller.node, 100)
        (channel,) = await channels(payer)
        name, funds = f"0x{channel.id.hex()}", payer.wallets.address()
        assert funds is not None
        before = bank.contracts.balance(funds)
        await seller.money._look(channel.config, channel.id, payer.node)  # as at the first request
        await payer.money.close(name, False)
        assert bank.contracts.balance(funds) == before + HALF
        with pytest.raises(NoChannel):
            await payer.money.close("0x" + "00" * 32, True)
        await payer.money.bank.fill(seller.node, 100)
        gone = await payer.money.panic(False)
        assert [step["purpose"] for step in gone["transactions"]] == ["initiate-withdraw"]


async def test_terms_of_somebody_else_open_nothing(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bank.seller() as seller, bank.running("payer") as payer:
        payer.allow()
        asking = bank.wire.between(payer.node)

        async def forged(_: object, __: bytes, question: PayTerms) -> object:
            return await asking(None, seller.node, question)

        monkeypatch.setattr(banking, "ask", forged)
        with pytest.raises(PaymentRefused) as refused:
            await payer.money.bank.fill(b"n" * 32, 100)
        assert refused.value.pay_code == PayCode.BAD_SIGNATURE
        assert await channels(payer) == []


async def test_names_that_mean_nobody(bank: Bank) -> None:
    async with bank.running("payer") as payer:
        payer.money.bank._its = dataclasses.replace(payer.money.bank._its, mesh=lambda: None)
        with pytest.raises(NodeNotFound, match="no node"):
            await payer.money.deposit("nobody", HALF, PASSWORD, True)


async def test_what_a_node_answers_that_sells_nothing(bank: Bank) -> None:
    async with bank.running("payer") as payer:
        for question in (PayTerms(), PayState(bytes(32))):
            with pytest.raises(PaymentRefused) as refused:
                await payer.money.bank.answer(b"n" * 32, question)
            assert refused.value.pay_code == PayCode.NOT_SELLING
        with pytest.raises(PaymentRequired, match="sells nothing"):
            await payer.money.claim(False)


async def test_a_chain_that_is_away_is_said_in_words(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bank.seller() as seller, bank.running("payer", rpc=("http://127.0.0.1:9",)) as payer:
        join(bank, payer, monkeypatch)
        payer.allow()
        with pytest.raises(ChainUnreachable):
            await payer.money.bank.fill(seller.node, 100)
        assert payer.money.purse.facts()["locked_micros"] == 0
