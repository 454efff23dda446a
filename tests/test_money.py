"""The money of a node: what is opened, what is told, and that nothing of it keeps a node from starting."""

from __future__ import annotations

import dataclasses
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshnode.api.spending_control import nothing_spent
from meshnode.config import Places, Settings
from meshnode.core.prices import FREE, Price
from meshnode.errors import PaymentRefused, PaymentsOff, SettingsError, WalletInUse
from meshnode.identity import load_or_create
from meshnode.money import MoneyParts, control_of, open_money
from meshnode.wallets import Wallets
from meshnode.wire.payments import PayAsk
from meshnode.wire.registry import PayCode
from tests.bank_stage import ALLOWED, DEMO, PRICE, Bank
from tests.lab.evm import Anvil, Deployment, deployed, needs_anvil
from tests.stage import QUIET

pytestmark = pytest.mark.anyio
NOWHERE = ("http://127.0.0.1:9",)
SELLS = {"publish": True, "price_in": PRICE.tokens_in, "price_out": PRICE.tokens_out}
ASK = PayAsk("request", "demo", 10, 31337)


def parts(home: Path, **settings: Any) -> MoneyParts:
    async def recorded() -> bool:
        return True

    return MoneyParts(
        settings=dataclasses.replace(QUIET, **settings),
        places=Places(home, home / "cache", home / "config.toml"),
        identity=load_or_create(home / "node.key"),
        tell=lambda label, text: None,
        mesh=lambda: None,
        offers=tuple,
        record=lambda kind, **facts: None,
        recorded=recorded,
    )


@pytest.fixture(scope="module")
def chain() -> Iterator[tuple[Anvil, Deployment]]:
    with Anvil(31337) as found:
        yield found, deployed(found.web3)


@pytest.fixture
def bank(chain: tuple[Anvil, Deployment], tmp_path: Path) -> Bank:
    return Bank(*chain, tmp_path)


def test_without_a_wallet_or_a_price_there_is_no_money(tmp_path: Path) -> None:
    assert open_money(parts(tmp_path)) is None
    assert not (tmp_path / "wallet").exists(), "nothing is made unasked"
    control = control_of(None, Settings())
    assert control.settlement is not None
    assert open_money(parts(tmp_path, **SELLS)) is not None


def test_a_network_that_is_not_known_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(SettingsError):
        open_money(parts(tmp_path, network="narnia", **SELLS))
    assert control_of(None, Settings(network="narnia")).settlement is not None


@needs_anvil
async def test_what_is_told_has_every_member_that_is_promised(bank: Bank) -> None:
    async with bank.seller() as seller, bank.running("payer") as payer:
        for node in (seller, payer):
            facts = await node.money.facts()
            json.dumps(facts)
            promised = nothing_spent()
            assert set(promised) <= set(facts)
            for name, value in promised.items():
                if isinstance(value, dict):
                    assert set(value) <= set(facts[name]), name
        earning = (await seller.money.facts())["earning"]
        assert earning["selling"] and earning["price"] == {"in": 200_000, "out": 600_000}
        assert earning["receiver"] == seller.wallets.voucher_address()
        assert (await payer.money.facts())["earning"]["receiver"] is None


@needs_anvil
async def test_the_terminal_value_is_for_the_user_alone_and_new_at_each_start(bank: Bank) -> None:
    async with bank.running("payer") as payer:
        file = payer.wallets.terminal_file
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert file.read_text() == payer.money.terminal != ""
        assert payer.money.terminal not in json.dumps(await payer.money.facts())


@needs_anvil
async def test_prices_are_said_only_by_who_sells(bank: Bank) -> None:
    async with bank.seller() as seller, bank.running("payer", price_out=5) as payer:
        assert (seller.money.price("demo"), seller.money.chain) == (PRICE, 31337)
        assert (payer.money.price("demo"), payer.money.chain) == (FREE, 0)
        with pytest.raises(PaymentRefused) as refused:
            await payer.money.open(b"n" * 32, ASK, model="demo", content_hash=b"d" * 16)
        assert refused.value.pay_code == PayCode.CHAIN_DOWN


@needs_anvil
async def test_prices_may_follow_from_what_electricity_costs(bank: Bank) -> None:
    node = bank.made("seller", wallet=False, publish=True, kwh=300_000, watts=360, margin=0)
    fast = dataclasses.replace(DEMO, decode_speed=1000, prompt_speed=10_000)
    money = open_money(dataclasses.replace(node.money._its, offers=lambda: (fast,)))
    assert money is not None
    assert money.price("demo") == Price(30_000, 300_000)
    assert money.price("another").tokens_out == 30_000_000, "of unknown speed"


@needs_anvil
async def test_what_a_person_says_in_a_terminal_holds_at_once(bank: Bank) -> None:
    async with bank.running("payer") as payer:
        purse = payer.money.purse
        assert isinstance(purse.refusal(PRICE, 31337, "demo"), PaymentsOff)
        payer.allow()
        assert purse.refusal(PRICE, 31337, "demo") is None
        assert (await payer.money.facts())["policy"]["month_micros"] == ALLOWED.month_micros
        payer.allow(mode="off")
        assert isinstance(purse.refusal(PRICE, 31337, "demo"), PaymentsOff)


@needs_anvil
async def test_a_second_node_of_one_wallet_starts_and_pays_nothing(bank: Bank) -> None:
    async with bank.running("payer") as payer:
        payer.allow()
        second = open_money(dataclasses.replace(payer.money._its))
        assert second is not None
        await second.start()
        try:
            assert isinstance(second._store.trouble, WalletInUse)
            assert not second.purse.facts()["paying"]
            assert any("Another node" in text for _, text in payer.told)
        finally:
            await second.stop()


@needs_anvil
@pytest.mark.parametrize("content", [b"", b"not a database at all" * 100, None])
async def test_a_journal_that_cannot_be_read_stops_no_node(bank: Bank, content: bytes | None) -> None:
    node = bank.made("payer")
    node.allow()
    if content is None:
        node.wallets.folder.joinpath("ledger.db").mkdir()
    else:
        node.wallets.folder.joinpath("ledger.db").write_bytes(content)
    await node.money.start()
    try:
        facts = await node.money.facts()
        if content != b"":  # an empty file is a new database
            assert not facts["paying"] and facts["why_not"]
    finally:
        await node.money.stop()


async def test_a_chain_that_is_away_stops_no_node(tmp_path: Path) -> None:
    money = open_money(parts(tmp_path, rpc=NOWHERE, **SELLS))
    assert money is not None
    await money.start()
    try:
        settling = await money._chain()
        with pytest.raises(Exception, match="cannot be reached"):
            await settling.turn()
        assert (await money.facts())["earning"]["why_not"]
    finally:
        await money.stop()


async def test_keys_that_others_can_read_are_not_used(tmp_path: Path) -> None:
    Wallets(tmp_path, environment={}).ensure_voucher_key()
    (tmp_path / "wallet" / "voucher.key").chmod(0o644)
    told: list[str] = []
    made = dataclasses.replace(parts(tmp_path, rpc=NOWHERE, **SELLS), tell=lambda label, text: told.append(text))
    money = open_money(made)
    assert money is not None
    await money.start()
    try:
        assert any("others can read" in text for text in told)
    finally:
        await money.stop()
