"""Accounts through crashes: marks are charged, vouchers kept, and nobody pays for what somebody else lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from meshnode.core.prices import charge
from meshnode.earning_accounts import Account, Accounts
from meshnode.errors import HomeNotWritable
from meshnode.settlement.store import Store
from tests.lab.paying_ends import CHANNEL, MODEL, NETWORK, PAYER, PRICE, RECEIVER, channel_line
from tests.money_stage import NOVEMBER, channel_in, open_channel, voucher

pytestmark = pytest.mark.anyio
NODE, OTHER = bytes([7]) * 32, bytes([8]) * 32


@asynccontextmanager
async def opened(folder: Path, *, is_new: bool = True) -> AsyncIterator[tuple[Accounts, Account, Store]]:
    store = Store(folder)
    await store.start()
    try:
        if is_new:
            await open_channel(store, "receiver", OTHER)
        accounts = await Accounts.opened(store, NETWORK, lambda: NOVEMBER)
        account = accounts.account(CHANNEL)
        assert account is not None
        yield accounts, account, store
    finally:
        await store.close()


async def begun(accounts: Accounts, account: Account, name: str = "r", unpaid: int = 0) -> bool:
    return await accounts.begin(account, account.credit.open(name, PRICE, unpaid), MODEL, 100)


async def hold(accounts: Accounts, account: Account, cumulative: int, name: str = "r") -> None:
    await accounts.hold(account, cumulative, voucher(cumulative).signature, name, NODE)


async def test_after_a_crash_what_the_marks_say_is_charged(tmp_path: Path) -> None:
    async with opened(tmp_path) as (accounts, account, _):
        assert await begun(accounts, account)
        await hold(accounts, account, 100)
        account.credit.deliver("r", 50, 30)
        await hold(accounts, account, 120)  # the mark goes along
        account.credit.deliver("r", 50, 60)
    async with opened(tmp_path, is_new=False) as (_, account, store):
        credit = account.credit
        assert (credit.vouched_micros, credit.settled_micros, credit.running) == (120, charge(PRICE, 50, 30), 0)
        found = "SELECT state, finish, tokens_in, tokens_out, charged_micros FROM requests"
        assert await store.run(lambda db: db.execute(found).fetchall()) == [
            ("interrupted", "broken", 50, 30, charge(PRICE, 50, 30))
        ]
    async with opened(tmp_path, is_new=False) as (_, account, _):  # and it is charged once
        assert account.credit.settled_micros == charge(PRICE, 50, 30)


async def test_before_anything_was_given_a_crash_charges_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as (accounts, account, _):
        await begun(accounts, account)
        account.credit.prefilled("r", 500)
        await hold(accounts, account, 1000)
    async with opened(tmp_path, is_new=False) as (_, account, _):
        assert (account.credit.vouched_micros, account.credit.settled_micros) == (1000, 0)


async def test_what_ran_unpaid_when_it_crashed_is_no_debt_of_the_payer(tmp_path: Path) -> None:
    async with opened(tmp_path) as (accounts, account, store):
        await begun(accounts, account, unpaid=64)
        await hold(accounts, account, 10)
        account.credit.deliver("r", 0, 60)
        await hold(accounts, account, 11)
        assert await store.run(lambda db: db.execute("SELECT tokens_out FROM requests").fetchone()) == (60,)
    async with opened(tmp_path, is_new=False) as (_, account, _):
        credit = account.credit
        assert credit.settled_micros == credit.vouched_micros == 11 and credit.written_off_micros == 0


async def test_the_first_voucher_says_whose_channel_it_is(tmp_path: Path) -> None:
    async with opened(tmp_path) as (accounts, account, store):
        assert account.channel.node == OTHER
        await begun(accounts, account)
        await hold(accounts, account, 10)
        assert account.channel.node == NODE
        await accounts.hold(account, 20, voucher(20).signature, "r", OTHER)
        assert account.channel.node == (await channel_in(store)).node == NODE


async def test_a_request_of_a_known_id_is_not_begun(tmp_path: Path) -> None:
    async with opened(tmp_path) as (accounts, account, _):
        assert await begun(accounts, account)
        await accounts.end(account, account.credit.ended("r", 0, 0), MODEL, "stop", b"{}")
        assert not await begun(accounts, account)


async def test_debts_that_are_written_off_are_remembered(tmp_path: Path) -> None:
    async with opened(tmp_path) as (accounts, account, _):
        await begun(accounts, account, unpaid=64)
        account.credit.deliver("r", 0, 10)
        await accounts.end(account, account.credit.ended("r", 0, 10), MODEL, "broken", b"{}")
        await begun(accounts, account, "s")
        assert account.credit.written_off_micros == charge(PRICE, 0, 10)
    async with opened(tmp_path, is_new=False) as (_, account, _):
        assert account.credit.written_off_micros == charge(PRICE, 0, 10) and account.credit.settled_micros == 0
        assert account.credit.unpaid_tokens == 0


async def test_only_the_payers_own_signature_counts(tmp_path: Path) -> None:
    async with opened(tmp_path) as (_, account, _):
        assert account.is_signed(10, voucher(10).signature)
        assert not account.is_signed(11, voucher(10).signature)
        assert not account.is_signed(10, voucher(10, key=RECEIVER).signature)
        assert account.channel.config.payer_authorizer == PAYER.address


async def test_what_the_chain_says_reaches_the_credit(tmp_path: Path) -> None:
    async with opened(tmp_path) as (accounts, account, store):
        await begun(accounts, account)
        await hold(accounts, account, 10)
        for number, chain in ((1, NETWORK.chain), (2, 1)):
            await store.run(lambda db, n=number, c=chain: channel_line(db, n, chain=c, role="receiver"))  # type: ignore[misc]
        book = await open_channel(store, "receiver", OTHER, None, micros=777)
        (channel,) = [item for item in await book.channels() if item.id == CHANNEL]
        accounts.take(channel)
        assert account.credit.balance_micros == 777 and account.channel.node == NODE
        again = await Accounts.opened(store, NETWORK, lambda: NOVEMBER)
        assert again.account((1).to_bytes(32, "big")) is not None
        assert again.account((2).to_bytes(32, "big")) is None


async def test_a_write_that_fails_is_the_end_of_these_accounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path) as (accounts, account, store):
        await begun(accounts, account)

        async def fails(_: object) -> None:
            raise HomeNotWritable("gone")

        with monkeypatch.context() as patch:
            patch.setattr(store, "run", fails)
            with pytest.raises(HomeNotWritable):
                await hold(accounts, account, 10)
        assert account.credit.vouched_micros == 0 and isinstance(accounts.failed, HomeNotWritable)
        with pytest.raises(HomeNotWritable):
            await hold(accounts, account, 10)
        assert (await channel_in(store)).signed_micros == 0
