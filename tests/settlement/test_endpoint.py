from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from meshnode.errors import SettingsError
from meshnode.settlement.answers import Call, EndpointFailed, Refused, Reverted
from meshnode.settlement.contracts import settle
from meshnode.settlement.endpoint import Endpoint, checked_url, shown_url
from tests.lab.evm import Anvil, needs_anvil
from tests.lab.rogue_rpc import SECRET, Conduct, Fails, RogueRpc

pytestmark = pytest.mark.anyio
SOMEONE, SOMEWHERE = bytes([1]) * 20, bytes([2]) * 20


@pytest.fixture(scope="module")
def anvil() -> Iterator[Anvil]:
    with Anvil() as chain:
        yield chain


@pytest.fixture
async def rogue(anvil: Anvil) -> AsyncIterator[RogueRpc]:
    async with RogueRpc(anvil.url) as made:
        yield made


@pytest.fixture
async def endpoint(rogue: RogueRpc) -> AsyncIterator[Endpoint]:
    made = await Endpoint.open(rogue.url)
    yield made
    await made.close()


@needs_anvil
async def test_what_it_is_asked_comes_back_as_plain_values(endpoint: Endpoint, anvil: Anvil) -> None:
    anvil.mine(2)
    block = await endpoint.block()
    assert await endpoint.chain_id() == anvil.chain_id
    assert await endpoint.block(block.number) == block
    assert (await endpoint.block("safe")).number <= block.number
    assert abs(block.at - time.time()) < 3600
    assert await endpoint.nonce(SOMEONE) == await endpoint.wei(SOMEONE) == 0
    assert await endpoint.code(SOMEONE) == b""
    assert await endpoint.receipt(bytes(32)) is None
    assert await endpoint.call(Call(SOMEONE, SOMEWHERE, b"\x01")) == b""
    assert await endpoint.logs(SOMEWHERE, [[bytes(32)]], 0, block.number) == []
    assert await endpoint.estimate(Call(SOMEONE, SOMEWHERE, b"")) >= 21_000
    assert all(fee >= 0 for fee in await endpoint.priority_fees_wei())


@needs_anvil
@pytest.mark.parametrize("conduct", ["dies", "floods", "babbles", "fails", "redirects", "empty"])
async def test_whatever_it_does_is_a_failure_without_its_address(
    endpoint: Endpoint, rogue: RogueRpc, conduct: Conduct, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "web3")
    caplog.set_level(logging.DEBUG, "meshnode")
    rogue.conduct = conduct
    for question in (endpoint.block(), endpoint.logs(SOMEWHERE, [], 0, 1), endpoint.receipt(bytes(32))):
        with pytest.raises(EndpointFailed) as failed:
            await question
        assert SECRET not in str(failed.value)
    assert SECRET not in caplog.text
    assert SECRET not in repr(endpoint)
    rogue.conduct = "honest"
    assert (await endpoint.block()).number >= 0


@needs_anvil
async def test_one_that_hangs_is_left_after_a_while(rogue: RogueRpc) -> None:
    endpoint = await Endpoint.open(rogue.url, timeout_s=0.1)
    rogue.conduct = "hangs"
    with pytest.raises(EndpointFailed, match="TimeoutError"):
        await endpoint.block()
    await endpoint.close()


@needs_anvil
async def test_a_connection_that_was_closed_meanwhile_is_made_anew(endpoint: Endpoint, rogue: RogueRpc) -> None:
    await endpoint.block()
    rogue.conduct = "dies once"
    assert (await endpoint.block()).number >= 0
    assert rogue.count("eth_getBlockByNumber") == 3


@needs_anvil
@pytest.mark.parametrize(
    "lie",
    ["0x", "zz", None, [], {}, True, -1, "0x" + "f" * 65, 1.5, {"number": "0x1"}, [None], "0x1" + "0" * 70],
)
async def test_answers_of_another_form_are_failures(endpoint: Endpoint, rogue: RogueRpc, lie: object) -> None:
    for method in ("eth_chainId", "eth_getBlockByNumber", "eth_getBalance", "eth_feeHistory", "eth_getLogs"):
        rogue.lies[method] = lambda params, honest: lie
    for question in (
        *(endpoint.block(), endpoint.priority_fees_wei()),
        *((endpoint.chain_id(), endpoint.wei(SOMEONE)) if lie not in (True, "0x") else ()),
    ):
        with pytest.raises((EndpointFailed, Refused)):
            await question
    if lie not in ([], None):
        with pytest.raises((EndpointFailed, Refused)):
            await endpoint.logs(SOMEWHERE, [], 0, 1)


@needs_anvil
async def test_blocks_of_chains_whose_makers_sign_them_can_be_read(endpoint: Endpoint, rogue: RogueRpc) -> None:
    """Polygon and others put more into `extraData` than Ethereum allows."""
    rogue.lies["eth_getBlockByNumber"] = lambda params, honest: {**honest, "extraData": "0x" + "ab" * 97}
    assert (await endpoint.block()).number >= 0


@needs_anvil
async def test_a_receipt_of_another_transaction_is_not_taken(endpoint: Endpoint, rogue: RogueRpc, anvil: Anvil) -> None:
    sent = anvil.web3.eth.send_transaction({"from": anvil.web3.eth.accounts[0], "to": anvil.web3.eth.accounts[1]})
    anvil.web3.eth.wait_for_transaction_receipt(sent)
    honest = anvil.ask("eth_getTransactionReceipt", sent.to_0x_hex())
    rogue.lies["eth_getTransactionReceipt"] = lambda params, said: honest
    assert (await endpoint.receipt(bytes(sent))) is not None
    with pytest.raises(EndpointFailed, match="another transaction"):
        await endpoint.receipt(bytes(32))


@needs_anvil
async def test_a_refusal_says_why_in_clean_words(endpoint: Endpoint, rogue: RogueRpc) -> None:
    def refuse(params: list[object], honest: object) -> object:
        raise Fails(f"no\x1b[31m such\nthing at {rogue.url} " + "x" * 1000)

    rogue.lies["eth_getCode"] = refuse
    with pytest.raises(Refused) as refused:
        await endpoint.code(SOMEONE)
    words = str(refused.value)
    assert SECRET not in words and len(words) <= 200 and words.isprintable() and words.startswith("no")


@needs_anvil
async def test_a_revert_carries_the_reason_of_the_contract(endpoint: Endpoint, rogue: RogueRpc) -> None:
    def revert(params: list[object], honest: object) -> object:
        raise Fails("execution reverted", "0x12345678")

    rogue.lies["eth_call"] = revert
    with pytest.raises(Reverted) as reverted:
        await endpoint.call(Call(SOMEONE, SOMEWHERE, settle(SOMEONE, SOMEWHERE)))
    assert reverted.value.data == bytes.fromhex("12345678")


@needs_anvil
async def test_a_contract_cannot_make_this_node_look_something_up(endpoint: Endpoint, rogue: RogueRpc) -> None:
    """EIP-3668: OffchainLookup(address,string[],bytes,bytes4,bytes), which web3 would follow to the URL in it."""
    from eth_abi.abi import encode

    arguments = encode(
        ["address", "string[]", "bytes", "bytes4", "bytes"],
        ["0x" + SOMEWHERE.hex(), [rogue.url + "/{sender}"], b"", b"\x01\x02\x03\x04", b""],
    )

    def lookup(params: list[object], honest: object) -> object:
        raise Fails("execution reverted", "0x556f1830" + arguments.hex())

    rogue.lies["eth_call"] = lookup
    with pytest.raises(Reverted):
        await endpoint.call(Call(SOMEONE, SOMEWHERE, b"\x01"))
    assert [method for method, _ in rogue.asked] == ["eth_call"]


@needs_anvil
async def test_opening_an_endpoint_does_not_hold_the_event_loop(rogue: RogueRpc) -> None:
    late = 0.0

    async def tick() -> None:
        nonlocal late
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            late = max(late, time.perf_counter() - before - 0.005)

    ticking = asyncio.create_task(tick())
    endpoint = await Endpoint.open(rogue.url)
    await endpoint.block()
    ticking.cancel()
    await endpoint.close()
    assert late < 0.25


@pytest.mark.parametrize("url", ["", "ftp://x", "http://", "https://h:99999", "http://8.8.8.8", "http://example.org/x"])
def test_addresses_that_are_not_taken(url: str) -> None:
    with pytest.raises(SettingsError):
        checked_url(url)


@pytest.mark.parametrize(
    "url, shown",
    [
        ("https://me:secret@rpc.example/v2/key?token=1", "https://rpc.example"),
        ("http://127.0.0.1:8545/key", "http://127.0.0.1:8545"),
        ("http://[::1]:8545", "http://[::1]:8545"),
        ("http://192.168.1.5", "http://192.168.1.5"),
        ("http://localhost:1", "http://localhost:1"),
    ],
)
def test_of_an_address_only_scheme_and_host_are_shown(url: str, shown: str) -> None:
    assert shown_url(checked_url(url)) == shown


def test_hostile_json_is_no_deeper_than_before() -> None:
    """A package of web3's raises the recursion limit of the whole process, and deep JSON would then end it."""
    code = """
import asyncio, json, sys
from meshnode.settlement.endpoint import Endpoint
limit = sys.getrecursionlimit()
asyncio.run(Endpoint.open("http://127.0.0.1:9"))
assert sys.getrecursionlimit() == limit, sys.getrecursionlimit()
try:
    json.loads("[" * 50_000)
except RecursionError:
    print("bounded")
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "bounded"), done.stderr
