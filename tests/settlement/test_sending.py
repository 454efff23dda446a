from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from meshnode.errors import DiskFull, GasCapReached, TransactionFailed
from meshnode.settlement import contracts
from meshnode.settlement.addresses import parse, shown
from meshnode.settlement.contracts import FEE_ORACLE
from meshnode.settlement.fees import GasBounds
from meshnode.settlement.keys import VoucherKey
from meshnode.settlement.raw_transactions import signed
from meshnode.settlement.rpc import RpcPair
from meshnode.settlement.sending import Order, Sender
from meshnode.settlement.store import Store
from meshnode.settlement.store_transactions import SCHEMA, SqliteTransactions
from meshnode.settlement.transactions import MOST_WAITING, RAISE_AFTER_S, Kind, Transaction
from meshnode.settlement.typed_data import ChannelConfig
from tests.crashes import Killed
from tests.lab.evm import Anvil, Deployment, deployed, needs_anvil
from tests.lab.rogue_rpc import RogueRpc

pytestmark = [pytest.mark.anyio, needs_anvil]
FINAL_BLOCKS = 40
GWEI = 10**9


@pytest.fixture(scope="module")
def anvil() -> Iterator[Anvil]:
    with Anvil() as chain:
        yield chain


@pytest.fixture(scope="module")
def deployment(anvil: Anvil) -> Deployment:
    return deployed(anvil.web3)


@dataclass
class Desk:
    """A sender with a journal, before an endpoint that can be made to lie."""

    anvil: Anvil
    rogue: RogueRpc
    hub: bytes
    token: bytes
    rpc: RpcPair
    store: Store
    transactions: SqliteTransactions
    key: VoucherKey = field(default_factory=VoucherKey.generate)
    now: float = 0.0
    most_micros: int = 1_000_000
    allowed: list[tuple[str, int]] = field(default_factory=list)
    cap_micros: int = 10**9
    is_mining: bool = True

    def stop_mining(self) -> None:
        """From here on, blocks are made only when a test says so."""
        self.is_mining = False
        self.anvil.ask("evm_setAutomine", False)

    def sender(self, transactions: Any = None, rpc: Any = None) -> Sender:
        """A new one over the same journal, as after a restart."""
        return Sender(
            *(rpc or self.rpc, transactions or self.transactions, self.key, self.anvil.chain_id),
            bounds=lambda: GasBounds(1_000_000, self.most_micros),
            allow=self.allow,
            clock=lambda: 1_795_300_000.0,
            monotonic=lambda: self.now,
        )

    async def allow(self, purpose: str, kind: Kind, most_micros: int) -> None:
        if most_micros > self.cap_micros:
            raise GasCapReached(purpose)
        self.allowed.append((purpose, most_micros))

    def order(self, name: str = "one") -> Order:
        """Pay out nothing to nobody: a call that always succeeds."""
        return Order(name, "claim", self.hub, contracts.settle(self.key.address, self.token), (bytes(32),))

    async def sent(self, sender: Sender, name: str = "one") -> Transaction:
        made = await sender.send(await sender.plan(self.order(name)))
        self.settle()
        return made

    def settle(self) -> None:
        """Have what was sent in a block by now: anvil makes them a moment later."""
        if self.is_mining:
            self.anvil.mine(1)

    @property
    def nonce(self) -> int:
        return int(self.anvil.web3.eth.get_transaction_count(shown(self.key.address)))

    async def state(self, name: str = "one") -> str:
        found = await self.transactions.find(name)
        return found.state if found else "none"


@pytest.fixture
async def desk(anvil: Anvil, deployment: Deployment, tmp_path: Path) -> AsyncIterator[Desk]:
    store = Store(tmp_path, more_tables=(SCHEMA,))
    await store.start()
    async with RogueRpc(anvil.url) as rogue:
        rpc = await RpcPair.of([rogue.url], testnet=True, pause_s=0)
        made = Desk(
            *(anvil, rogue, parse(deployment.hub), parse(deployment.token), rpc, store, SqliteTransactions(store.run))
        )
        deployment.fund(shown(made.key.address), eth_wei=10**18)
        yield made
        await rpc.close()
    await store.close()
    anvil.ask("evm_setAutomine", True)


async def test_from_a_plan_to_the_end(desk: Desk) -> None:
    sender = desk.sender()
    plan = await sender.plan(desk.order())
    assert await desk.state() == "none" and desk.rogue.count("eth_sendRawTransaction") == 0
    made = await sender.send(plan)
    desk.settle()
    assert made.state == "submitted" and desk.nonce == 1
    assert [one.state for one in await sender.follow()] == ["mined"]
    assert await sender.follow() == []
    desk.anvil.mine(FINAL_BLOCKS)
    (ended,) = await sender.follow()
    assert ended.state == "final" and 0 < ended.fee_micros <= plan.most_micros
    assert desk.allowed == [("one", plan.most_micros)]
    assert await sender.follow() == []


async def test_one_purpose_is_one_transaction_however_often_it_is_asked_for(desk: Desk) -> None:
    sender = desk.sender()
    plan = await sender.plan(desk.order())
    made = await asyncio.gather(*(sender.send(plan) for _ in range(5)))
    assert len({one.newest.digest for one in made}) == 1
    desk.anvil.mine(FINAL_BLOCKS)
    await sender.follow()
    assert (await sender.send(plan)).state == "final"
    assert (await desk.sent(desk.sender())).state == "final"
    assert desk.nonce == 1


async def test_several_at_once_have_nonces_of_their_own(desk: Desk) -> None:
    sender = desk.sender()
    made = await asyncio.gather(*(desk.sent(sender, str(number)) for number in range(6)))
    assert sorted(one.nonce for one in made) == list(range(6)) and desk.nonce == 6


class Steps:
    """Counts what reaches the disk or the network, and ends the process before or after one of them."""

    def __init__(self, deadly: int, *, after: bool) -> None:
        self.deadly = deadly
        self.after = after
        self.done = 0

    def wrapped(self, real: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def step(*arguments: Any) -> Any:
            self.done += 1
            if self.done == self.deadly and not self.after:
                raise Killed
            result = await real(*arguments)
            if self.done == self.deadly:
                raise Killed
            return result

        return step


class Through:
    """Something with some of its methods counted as steps."""

    def __init__(self, real: Any, steps: Steps, *names: str) -> None:
        self._real = real
        for name in names:
            setattr(self, name, steps.wrapped(getattr(real, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


async def test_a_process_that_ends_anywhere_sends_it_once(desk: Desk) -> None:
    """Kills before and after each step of sending and following; what comes next finds one transaction, or makes it."""
    deaths = 0
    for deadly in range(1, 20):
        survived = 0
        for after in (False, True):
            steps, name, before = Steps(deadly, after=after), f"{deadly}-{after}", desk.nonce
            dying = desk.sender(Through(desk.transactions, steps, "add", "save"), Through(desk.rpc, steps, "broadcast"))
            try:
                await desk.sent(dying, name)
                await dying.follow()
                desk.anvil.mine(FINAL_BLOCKS)
                await dying.follow()
                survived += 1
            except Killed:
                deaths += 1
            reborn = desk.sender()
            await reborn.follow()
            desk.settle()
            if await desk.state(name) == "none":
                assert desk.nonce == before
                await desk.sent(reborn, name)
            await reborn.follow()
            desk.anvil.mine(FINAL_BLOCKS)
            await reborn.follow()
            assert await desk.state(name) == "final" and desk.nonce == before + 1
        if survived == 2:
            break
    assert deaths == 2 * 5  # add, broadcast, save (submitted), save (mined), save (final)


async def test_a_reorganisation_is_noticed_and_the_same_bytes_are_sent_again(desk: Desk) -> None:
    sender = desk.sender()
    desk.anvil.mine(1)
    made = await desk.sent(sender)
    await sender.follow()
    desk.anvil.reorg(3)
    assert desk.nonce == 0
    (back,) = await sender.follow()
    assert back.state == "submitted" and back.attempts == made.attempts
    desk.anvil.mine(FINAL_BLOCKS)
    assert [one.state for one in await sender.follow()] == ["final"]
    assert desk.nonce == 1


async def test_a_transaction_that_nodes_forgot_is_sent_again(desk: Desk) -> None:
    desk.stop_mining()
    sender = desk.sender()
    made = await desk.sent(sender)
    desk.anvil.ask("anvil_dropTransaction", f"0x{made.newest.digest.hex()}")
    await sender.follow()
    desk.anvil.mine(FINAL_BLOCKS)
    assert [one.state for one in await sender.follow()] == ["final"]


async def test_an_endpoint_that_only_says_it_took_it_is_given_it_again(desk: Desk) -> None:
    sender = desk.sender()
    desk.rogue.kept_back = {"eth_sendRawTransaction"}
    desk.rogue.lies["eth_sendRawTransaction"] = lambda params, honest: "0x" + "11" * 32
    made = await desk.sent(sender)
    assert made.state == "submitted" and desk.nonce == 0
    assert await sender.follow() == []
    desk.rogue.kept_back.clear()
    desk.rogue.lies.clear()
    await sender.follow()
    desk.settle()
    assert desk.nonce == 1
    sent = [params[0] for method, params in desk.rogue.asked if method == "eth_sendRawTransaction"]
    assert len(sent) == 3 and set(sent) == {"0x" + made.newest.raw.hex()}


async def test_an_endpoint_that_is_away_when_it_is_sent(desk: Desk) -> None:
    sender = desk.sender()
    plan = await sender.plan(desk.order())
    broken = Through(desk.rpc, Steps(0, after=False))

    async def refuse(raw: bytes) -> str:
        return "insufficient funds for gas"

    broken.broadcast = refuse
    away = desk.sender(rpc=broken)
    made = await away.send(plan)
    assert made.state == "prepared" and away.refusals == {"one": "insufficient funds for gas"}
    assert desk.nonce == 0
    await desk.sender().follow()
    desk.settle()
    assert desk.nonce == 1


async def test_it_is_offered_more_for_when_the_base_fee_has_risen(desk: Desk) -> None:
    desk.stop_mining()
    sender = desk.sender()
    made = await desk.sent(sender)
    desk.anvil.ask("anvil_setNextBlockBaseFeePerGas", hex(made.newest.fees.most_wei * 3))
    desk.anvil.mine(1)
    await sender.follow()
    desk.now += RAISE_AFTER_S + 1
    await sender.follow()
    found = await desk.transactions.find("one")
    assert found is not None and len(found.attempts) == 2
    first, second = found.attempts
    assert second.fees.most_wei > 3 * first.fees.most_wei and found.most_micros > made.most_micros
    desk.anvil.ask("anvil_setNextBlockBaseFeePerGas", hex(GWEI))
    desk.anvil.mine(FINAL_BLOCKS)
    (ended,) = await sender.follow()
    assert ended.state == "final" and desk.nonce == 1
    assert desk.allowed[-1] == ("one", found.most_micros)


async def test_a_spike_above_the_bound_is_waited_through(desk: Desk) -> None:
    desk.stop_mining()
    sender = desk.sender()
    made = await desk.sent(sender)
    desk.anvil.ask("anvil_setNextBlockBaseFeePerGas", hex(10**6 * GWEI))
    desk.anvil.mine(1)
    with pytest.raises(GasCapReached, match="one transaction may cost"):
        await sender.plan(desk.order("two"))
    await sender.follow()
    for _ in range(3):
        desk.now += RAISE_AFTER_S + 1
        await sender.follow()
    found = await desk.transactions.find("one")
    assert found is not None and found.attempts == made.attempts
    desk.anvil.ask("anvil_setNextBlockBaseFeePerGas", hex(1))
    desk.anvil.mine(1)
    await sender.follow()
    desk.anvil.mine(FINAL_BLOCKS)
    await sender.follow()
    assert await desk.state() == "final"


async def test_a_nonce_that_another_program_used_is_lost_when_that_is_final(desk: Desk) -> None:
    desk.stop_mining()
    sender = desk.sender()
    made = await desk.sent(sender)
    desk.anvil.ask("anvil_dropTransaction", f"0x{made.newest.digest.hex()}")
    other = signed(
        desk.key,
        {
            "chainId": desk.anvil.chain_id,
            "nonce": 0,
            "maxFeePerGas": 100 * GWEI,
            "maxPriorityFeePerGas": 5 * GWEI,
            "gas": 21_000,
            "to": desk.key.address,
            "value": 0,
            "data": b"",
        },
    )
    desk.anvil.web3.eth.send_raw_transaction(other.raw)
    desk.anvil.mine(1)
    assert await sender.follow() == []
    desk.anvil.mine(FINAL_BLOCKS)
    (lost,) = await sender.follow()
    assert lost.state == "replaced" and lost.fee_micros == 0
    assert (await desk.sent(sender)).state == "replaced"
    assert (await desk.sent(sender, "one again")).nonce == 1


async def test_a_gap_that_a_lie_has_left_is_closed(desk: Desk) -> None:
    sender = desk.sender()
    desk.rogue.lies["eth_getTransactionCount"] = lambda params, honest: "0x2"
    made = await desk.sent(sender)
    assert made.nonce == 2 and desk.nonce == 0
    desk.rogue.lies.clear()
    for _ in range(4):
        await sender.follow()
        desk.anvil.mine(1)
    desk.anvil.mine(FINAL_BLOCKS)
    await sender.follow()
    assert await desk.state() == "final" and desk.nonce == 3
    filled = [one for one in await desk.transactions.newest(desk.anvil.chain_id, 9) if one.kind == "fill"]
    assert sorted(one.nonce for one in filled) == [0, 1]


async def test_what_would_fail_is_not_sent_and_says_why(desk: Desk) -> None:
    sender = desk.sender()
    config = ChannelConfig(*(bytes([number]) * 20 for number in range(1, 6)), 900, bytes(32))
    with pytest.raises(TransactionFailed, match="finalize-withdraw: NotAParty"):
        await sender.plan(Order("bad", "finalize-withdraw", desk.hub, contracts.finalize_withdraw(config)))
    assert await desk.state("bad") == "none" and desk.rogue.count("eth_sendRawTransaction") == 0


async def test_a_key_without_coins_cannot_send(desk: Desk) -> None:
    desk.key = VoucherKey.generate()
    sender = desk.sender()
    plan = await sender.plan(desk.order())
    assert plan.short_wei == plan.gas * plan.fees.most_wei
    with pytest.raises(TransactionFailed, match=shown(desk.key.address)):
        await sender.send(plan)
    assert await desk.state() == "none"


async def test_nothing_is_sent_that_is_not_written_or_not_allowed(desk: Desk) -> None:
    sender = desk.sender()
    desk.cap_micros = 0
    with pytest.raises(GasCapReached):
        await desk.sent(sender)
    desk.cap_micros = 10**9
    full = Through(desk.transactions, Steps(0, after=False))

    async def fail(transaction: Transaction) -> Transaction:
        raise DiskFull("no room")

    full.add = fail
    with pytest.raises(DiskFull):
        await desk.sent(desk.sender(full))
    assert desk.rogue.count("eth_sendRawTransaction") == 0 and await desk.state() == "none"


async def test_too_many_at_once_wait(desk: Desk) -> None:
    desk.stop_mining()
    sender = desk.sender()
    for number in range(MOST_WAITING):
        await desk.sent(sender, str(number))
    with pytest.raises(TransactionFailed, match="still wait"):
        await desk.sent(sender)
    desk.anvil.mine(FINAL_BLOCKS)
    assert len(await sender.follow()) == MOST_WAITING


async def test_the_fee_of_the_chain_below_is_part_of_the_cost(desk: Desk) -> None:
    wei = 10**12
    code = f"7f{wei:064x}60005260206000f3"  # PUSH32 wei, MSTORE at 0, RETURN 32 bytes
    desk.anvil.set_code(shown(FEE_ORACLE), f"0x{code}")
    plain = await desk.sender().plan(desk.order())
    sender = desk.sender()
    sender._fee_oracle = FEE_ORACLE
    plan = await sender.plan(desk.order())
    assert plan.most_micros - plain.most_micros >= wei * 6 // 5 // 10**12 - 1
