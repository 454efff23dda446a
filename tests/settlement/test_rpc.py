from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from meshnode.errors import ChainDisagrees, ChainUnreachable, SettingsError, TransactionFailed
from meshnode.settlement import contracts
from meshnode.settlement.addresses import parse
from meshnode.settlement.answers import Call, Reverted
from meshnode.settlement.rpc import LAG_BLOCKS, UNFINAL_BLOCKS, RpcPair
from tests.lab.evm import Anvil, Deployment, deployed, needs_anvil
from tests.lab.rogue_rpc import SECRET, Conduct, Fails, RogueRpc

pytestmark = [pytest.mark.anyio, needs_anvil]
NOBODY = bytes([3]) * 20


@pytest.fixture(scope="module")
def anvil() -> Iterator[Anvil]:
    with Anvil() as chain:
        chain.mine(100)
        yield chain


@pytest.fixture(scope="module")
def deployment(anvil: Anvil) -> Deployment:
    return deployed(anvil.web3)


@pytest.fixture
async def rogue(anvil: Anvil) -> AsyncIterator[RogueRpc]:
    async with RogueRpc(anvil.url) as made:
        yield made


@pytest.fixture
async def pair(anvil: Anvil, rogue: RogueRpc) -> AsyncIterator[RpcPair]:
    """An honest endpoint and one that a test makes lie."""
    made = await RpcPair.of([anvil.url, rogue.url], testnet=False, pause_s=0)
    yield made
    await made.close()


def ether(anvil: Anvil) -> bytes:
    return parse(anvil.web3.eth.accounts[0])


async def test_two_that_agree_are_believed(pair: RpcPair, anvil: Anvil) -> None:
    assert await pair.chain_id() == anvil.chain_id
    assert (await pair.head()).number == anvil.web3.eth.block_number
    assert await pair.wei(ether(anvil)) == anvil.web3.eth.get_balance(anvil.web3.eth.accounts[0])
    assert await pair.nonce(NOBODY) == 0 and await pair.code(NOBODY) == b""
    assert not pair.alone
    assert [fact["ok"] for fact in pair.facts()] == [True, True]
    assert SECRET not in repr(pair) + str(pair.facts())


@pytest.mark.parametrize(
    "method", ["eth_getBalance", "eth_getTransactionCount", "eth_getCode", "eth_call", "eth_chainId"]
)
async def test_of_two_that_disagree_neither_is_believed(pair: RpcPair, rogue: RogueRpc, method: str) -> None:
    rogue.lies[method] = lambda params, honest: "0x" + "0" * 62 + "77"
    questions = {
        "eth_getBalance": lambda: pair.wei(NOBODY),
        "eth_getTransactionCount": lambda: pair.nonce(NOBODY),
        "eth_getCode": lambda: pair.code(NOBODY),
        "eth_call": lambda: pair.call(NOBODY, b""),
        "eth_chainId": lambda: pair.chain_id(),
    }
    with pytest.raises(ChainDisagrees):
        await questions[method]()


async def test_one_that_is_a_little_behind_is_asked_at_a_block_that_both_have(
    pair: RpcPair, rogue: RogueRpc, anvil: Anvil
) -> None:
    sender, head = anvil.web3.eth.accounts[1], anvil.web3.eth.block_number
    anvil.web3.eth.wait_for_transaction_receipt(anvil.web3.eth.send_transaction({"from": sender, "to": sender}))
    rogue.behind = 1
    assert (await pair.head()).number == head
    assert await pair.nonce(parse(sender)) == 0
    rogue.behind = 0
    assert await pair.nonce(parse(sender)) == 1
    rogue.behind = LAG_BLOCKS
    assert (await pair.head()).number == head + 1 - LAG_BLOCKS
    assert max(int(str(fact["behind"])) for fact in pair.facts()) == LAG_BLOCKS


async def test_one_that_is_far_behind_is_not_waited_for(pair: RpcPair, rogue: RogueRpc) -> None:
    rogue.behind = LAG_BLOCKS + 1
    with pytest.raises(ChainDisagrees, match="newest blocks"):
        await pair.head()
    assert await pair.lowest_head() > 0


@pytest.mark.parametrize("conduct", ["dies", "babbles", "empty", "fails"])
async def test_with_one_away_nothing_about_money_is_decided(
    pair: RpcPair, rogue: RogueRpc, conduct: Conduct, deployment: Deployment
) -> None:
    rogue.conduct = conduct
    for question in (pair.wei(NOBODY), pair.receipt(bytes(32)), pair.final(), pair.chain_id()):
        with pytest.raises(ChainUnreachable) as failed:
            await question
        assert SECRET not in failed.value.message
    hub = parse(deployment.hub)
    assert await pair.any_logs(hub, [], 0, 5) is not None
    assert len(await pair.any_call(hub, contracts.standings_question([bytes(32)]))) == 1
    assert await pair.estimate(Call(NOBODY, NOBODY, b"")) >= 21_000
    assert [fact["ok"] for fact in pair.facts()] == [True, False]


async def test_one_that_changes_its_mind_is_asked_again(pair: RpcPair, rogue: RogueRpc) -> None:
    """As one that saw a reorganisation a moment before the other."""
    answers = iter(["0x1", "0x2", "0x0"])
    rogue.lies["eth_getBalance"] = lambda params, honest: next(answers)
    assert await pair.wei(NOBODY) == 0


async def test_a_call_that_the_contract_refuses(pair: RpcPair, rogue: RogueRpc, deployment: Deployment) -> None:
    config = contracts.ChannelConfig(*(bytes([number]) * 20 for number in range(1, 6)), 900, bytes(32))
    hub, data = parse(deployment.hub), contracts.finalize_withdraw(config)
    with pytest.raises(TransactionFailed):
        await pair.call(hub, data)
    with pytest.raises(Reverted) as refused:
        await pair.simulate(Call(NOBODY, hub, data))
    assert contracts.interface("hub").reason(refused.value.data) == "NotAParty"
    with pytest.raises(Reverted):
        await pair.estimate(Call(NOBODY, hub, data))
    rogue.kept_back = {"eth_call"}
    rogue.lies["eth_call"] = lambda params, honest: "0x"
    with pytest.raises(ChainDisagrees):
        await pair.simulate(Call(NOBODY, hub, data))


async def test_a_receipt_counts_when_both_have_the_same(pair: RpcPair, rogue: RogueRpc, anvil: Anvil) -> None:
    sent = bytes(anvil.web3.eth.send_transaction({"from": anvil.web3.eth.accounts[2], "to": "0x" + "22" * 20}))
    anvil.web3.eth.wait_for_transaction_receipt("0x" + sent.hex())
    found = await pair.receipt(sent)
    assert found is not None and found.succeeded and found.gas == 21_000
    for lie in ({"status": "0x0"}, {"blockHash": "0x" + "ab" * 32}):
        rogue.lies["eth_getTransactionReceipt"] = lambda params, honest, lie=lie: {**honest, **lie}
        with pytest.raises(ChainDisagrees):
            await pair.receipt(sent)
    rogue.lies["eth_getTransactionReceipt"] = lambda params, honest: None
    with pytest.raises(ChainDisagrees):
        await pair.receipt(sent)
    assert await pair.receipt(bytes(32)) is None


async def test_the_final_block_is_the_lower_one_and_has_a_depth_without_the_tag(
    pair: RpcPair, rogue: RogueRpc, anvil: Anvil
) -> None:
    head = anvil.web3.eth.block_number
    assert await pair.final() == anvil.web3.eth.get_block("safe")["number"]

    def unknown(params: list[object], honest: object) -> object:
        if params[0] == "safe":
            raise Fails("unknown block tag")
        return honest

    rogue.lies["eth_getBlockByNumber"] = unknown
    assert await pair.final() == head - UNFINAL_BLOCKS


async def test_the_log_that_one_keeps_back_is_had_of_the_other(pair: RpcPair, rogue: RogueRpc, anvil: Anvil) -> None:
    usdc = deployed(anvil.web3).usdc
    sent = usdc.functions.pause().transact({"from": anvil.web3.eth.accounts[0]})
    head = anvil.web3.eth.wait_for_transaction_receipt(sent)["blockNumber"]
    honest = await pair.any_logs(parse(usdc.address), [], head, head)
    assert len(honest) == 1
    rogue.lies["eth_getLogs"] = lambda params, logs: []
    assert await pair.any_logs(parse(usdc.address), [], head, head) == honest


async def test_fees_are_those_of_the_endpoint_that_exaggerates_less(pair: RpcPair, rogue: RogueRpc) -> None:
    honest = await pair.priority_fees_wei()
    rogue.lies["eth_feeHistory"] = lambda params, said: {**said, "reward": [[hex(10**18)]] * 10}
    assert await pair.priority_fees_wei() == honest


async def test_a_transaction_is_handed_to_both(pair: RpcPair, rogue: RogueRpc) -> None:
    assert await pair.broadcast(b"\x02nonsense") != ""
    assert rogue.count("eth_sendRawTransaction") == 1
    rogue.kept_back = {"eth_sendRawTransaction"}
    rogue.lies["eth_sendRawTransaction"] = lambda params, honest: "0x" + "11" * 32
    assert await pair.broadcast(b"\x02nonsense") == ""


async def test_of_three_one_may_be_away_and_none_may_contradict(anvil: Anvil, rogue: RogueRpc) -> None:
    async with RogueRpc(anvil.url) as third:
        three = await RpcPair.of([anvil.url, rogue.url, third.url], testnet=False, pause_s=0)
        rogue.conduct = "dies"
        assert await three.chain_id() == anvil.chain_id and await three.receipt(bytes(32)) is None
        third.lies["eth_getBalance"] = lambda params, honest: "0x7"
        with pytest.raises(ChainDisagrees):
            await three.wei(NOBODY)
        rogue.conduct = "honest"
        with pytest.raises(ChainDisagrees):
            await three.wei(NOBODY)
        await three.close()


async def test_one_alone_is_enough_only_where_nothing_is_at_stake(anvil: Anvil) -> None:
    with pytest.raises(SettingsError, match="two RPC endpoints"):
        await RpcPair.of(["https://rpc.example"], testnet=False)
    with pytest.raises(SettingsError, match="two RPC endpoints"):
        await RpcPair.of(["https://rpc.example", "https://rpc.example"], testnet=False)
    for urls in ([], [f"https://rpc{number}.example" for number in range(9)]):
        with pytest.raises(SettingsError):
            await RpcPair.of(urls, testnet=True)
    own = await RpcPair.of([anvil.url], testnet=False)
    assert own.alone and await own.chain_id() == anvil.chain_id
    await own.close()
