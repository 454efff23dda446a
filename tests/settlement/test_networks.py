import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from eth_abi.abi import encode
from eth_tester.exceptions import TransactionFailed as Reverted
from eth_utils import to_checksum_address
from hexbytes import HexBytes
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import ChainUnreachable, SettingsError, TransactionFailed, WrongNetwork
from meshnode.settlement import networks
from meshnode.settlement.addresses import parse, shown
from meshnode.settlement.keccak import keccak256, selector
from meshnode.settlement.networks import DEFAULT, NETWORKS, Network, checked, find, read, to_json
from meshnode.settlement.typed_data import HUB_NAME, domain_separator
from tests.lab.evm import deployed, in_process

pytestmark = pytest.mark.anyio

LOOPBACK = Network("loopback", "Loopback", 31337, True, b"\x01" * 20, "USDC", "2", b"\x02" * 20, b"\x03" * 20, None, {})
PLAIN: dict[str, Any] = json.loads(to_json(LOOPBACK))

DOMAIN_SEPARATOR = selector("DOMAIN_SEPARATOR()")
DECIMALS = selector("decimals()")
HUB_DOMAIN = selector("eip712Domain()")
DOMAIN_TYPES = ["bytes1", "string", "string", "uint256", "address", "bytes32", "uint256[]"]


def hub_says(network: Network, **changes: Any) -> bytes:
    """What eip712Domain() of a hub returns."""
    said = {"fields": b"\x0f", "name": HUB_NAME, "version": "1", "chain": network.chain, "at": network.hub, **changes}
    return encode(DOMAIN_TYPES, [*said.values(), bytes(32), []])


class Ledger:
    """A chain as a Reader sees it; what it says can be changed before it is asked."""

    def __init__(self, network: Network) -> None:
        self.number = network.chain
        self.codes = {address: b"\x60" + address for address in (network.token, network.hub, network.collector)}
        self.answers = {
            (network.token, DOMAIN_SEPARATOR): network.token_domain,
            (network.token, DECIMALS): (6).to_bytes(32, "big"),
            (network.hub, HUB_DOMAIN): hub_says(network),
        }

    async def chain_id(self) -> int:
        return self.number

    async def code(self, address: bytes, /) -> bytes:
        return self.codes.get(address, b"")

    async def call(self, to: bytes, data: bytes, /) -> bytes:
        if (to, data) not in self.answers:
            raise TransactionFailed("execution reverted")
        return self.answers[to, data]


async def refused(ledger: Ledger, network: Network = LOOPBACK) -> str:
    with pytest.raises(WrongNetwork) as caught:
        await checked(network, ledger)
    return caught.value.message


# --- the table ------------------------------------------------------------------------------------------------------


def test_nothing_is_worth_anything_unless_somebody_says_so() -> None:
    assert DEFAULT in NETWORKS and NETWORKS[DEFAULT].testnet
    assert NETWORKS[DEFAULT].caip2 == "eip155:84532"


def test_the_table_is_that_of_x402() -> None:
    assets = pytest.importorskip("x402.mechanisms.evm.default_assets").DEFAULT_ASSETS
    constants = pytest.importorskip("x402.mechanisms.evm.batch_settlement.constants")
    for network in NETWORKS.values():
        (asset,) = (one for one in assets[network.caip2] if one["symbol"] == "USDC")
        assert shown(network.token) == asset["asset"]
        assert (network.token_name, network.token_version) == (asset["name"], asset["version"])
        assert asset["decimals"] == networks.DECIMALS
        assert shown(network.hub) == constants.BATCH_SETTLEMENT_ADDRESS
        assert shown(network.collector) == constants.ERC3009_DEPOSIT_COLLECTOR_ADDRESS


def test_each_chain_is_there_once_and_by_its_number() -> None:
    assert len({network.chain for network in NETWORKS.values()}) == len(NETWORKS)
    for name, network in NETWORKS.items():
        assert network.name == name and networks.by_chain(network.chain) is network
        assert network.testnet is (network.chain not in networks.WORTH_MONEY)
    assert networks.by_chain(31337) is None


def test_the_domains_of_a_network() -> None:
    base = NETWORKS["base"]
    # What DOMAIN_SEPARATOR() of USDC on Base is computed from: its name there differs from that on Base Sepolia.
    assert base.token_domain == domain_separator("USD Coin", "2", 8453, base.token)
    assert base.token_domain != dataclasses.replace(base, token_name="USDC").token_domain
    assert base.hub_domain == domain_separator("x402 Batch Settlement", "1", 8453, base.hub)
    assert len({network.hub_domain for network in NETWORKS.values()}) == len(NETWORKS)


# --- files ----------------------------------------------------------------------------------------------------------


def test_a_network_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "networks.json"
    file.write_text(to_json(LOOPBACK))
    assert find("loopback", file) == LOOPBACK
    assert find("base", file) is NETWORKS["base"]
    with pytest.raises(SettingsError, match="loopback"):
        find("other", file)


def test_several_networks_of_a_file() -> None:
    full = dataclasses.replace(
        LOOPBACK, name="second", l1_fee_oracle=b"\x09" * 20, code_hashes={b"\x02" * 20: b"\x08" * 32}, testnet=False
    )
    assert read(f"[{to_json(LOOPBACK)}, {to_json(full)}]") == (LOOPBACK, full)
    assert read("[]") == ()


def test_what_may_be_left_out() -> None:
    plain = {name: value for name, value in PLAIN.items() if name not in ("title", "code_hashes")}
    assert read(json.dumps(plain)) == (dataclasses.replace(LOOPBACK, title="loopback"),)


def test_a_test_chain_of_the_table_may_have_other_contracts() -> None:
    (network,) = read(json.dumps(PLAIN | {"chain": 84532}))
    assert network.chain == 84532 and network.hub == LOOPBACK.hub


@pytest.mark.parametrize("name", [name for name in PLAIN if name not in ("title", "code_hashes")])
def test_what_may_not_be_left_out(name: str) -> None:
    with pytest.raises(ValueError, match=f"lacks {name}"):
        read(json.dumps({key: value for key, value in PLAIN.items() if key != name}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "base"}, "is known"),
        ({"name": ""}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"name": "a\x1bb"}, "name"),
        ({"name": 1}, "name"),
        ({"title": None}, "title"),
        ({"chain": 8453}, "no testnet"),
        ({"chain": 8453, "testnet": False}, "Base, where only"),
        ({"chain": 1, "testnet": False}, "Ethereum, where only"),
        ({"chain": 10}, "no testnet"),
        ({"chain": 0}, "number of a chain"),
        ({"chain": -1}, "number of a chain"),
        ({"chain": True}, "number of a chain"),
        ({"chain": "31337"}, "number of a chain"),
        ({"chain": 2**63}, "number of a chain"),
        ({"testnet": "true"}, "neither true nor false"),
        ({"testnet": 1}, "neither true nor false"),
        ({"token": "0x12"}, "token: "),
        ({"token": None}, "token: "),
        ({"hub": "0x" + "Ab" * 20}, "checksum"),
        ({"collector": 5}, "collector: "),
        ({"l1_fee_oracle": "x"}, "l1_fee_oracle: "),
        ({"token_name": ""}, "token_name"),
        ({"token_version": 2}, "token_version"),
        ({"code_hashes": []}, "code_hashes"),
        ({"code_hashes": {"0x12": "0x" + "00" * 32}}, "code_hashes"),
        ({"code_hashes": {"0x" + "02" * 20: "0x00"}}, "code_hashes"),
        ({"code_hashes": {"0x" + "02" * 20: "zz" * 32}}, "code_hashes"),
        ({"code_hashes": {"0x" + "02" * 20: 1}}, "code_hashes"),
        ({"hubb": "0x"}, "unknown: hubb"),
    ],
)
def test_networks_that_are_none(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    text = json.dumps(PLAIN | change)
    with pytest.raises(ValueError, match=said):
        read(text)
    file = tmp_path / "networks.json"
    file.write_text(text)
    with pytest.raises(SettingsError, match="networks.json"):
        find("base", file)


@pytest.mark.parametrize("text", ["", "{", "3", '"base"', "[1]", "[[]]", "[" * 9999, b"\xff", " " * 65_537])
def test_files_that_are_none(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        read(text)


def test_too_many_and_twice() -> None:
    with pytest.raises(ValueError, match="more than 16"):
        read(json.dumps([PLAIN] * 17))
    with pytest.raises(ValueError, match="one name"):
        read(json.dumps([PLAIN, PLAIN]))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        find("base", tmp_path / "none.json")


# --- against the chain ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [LOOPBACK, *NETWORKS.values()], ids=lambda network: network.name)
async def test_a_chain_that_is_as_it_should_be(network: Network) -> None:
    await checked(network, Ledger(network))


async def test_the_contracts_on_a_chain_are_what_they_say() -> None:
    contracts = deployed(in_process())
    token, hub, collector = map(parse, (contracts.token, contracts.hub, contracts.collector))
    network = Network("here", "Here", contracts.chain_id, True, token, "USDC", "2", hub, collector)
    eth = contracts.web3.eth

    class Here(Ledger):
        """Asks the chain in this process."""

        async def code(self, address: bytes, /) -> bytes:
            return bytes(eth.get_code(to_checksum_address(address)))

        async def call(self, to: bytes, data: bytes, /) -> bytes:
            try:
                return bytes(eth.call({"to": to_checksum_address(to), "data": HexBytes(data)}))
            except Reverted as reason:
                raise TransactionFailed(str(reason)) from None

    await checked(network, Here(network))
    for change in ({"token_name": "USD Coin"}, {"hub": collector}, {"token": hub}, {"collector": b"\x01" * 20}):
        wrong = dataclasses.replace(network, **change)  # type: ignore[arg-type]
        with pytest.raises(WrongNetwork):
            await checked(wrong, Here(wrong))


async def test_another_chain() -> None:
    ledger = Ledger(LOOPBACK)
    ledger.number = 8453
    assert "chain 8453" in await refused(ledger)


@pytest.mark.parametrize("what", ["token", "hub", "collector"])
async def test_nothing_where_a_contract_should_be(what: str) -> None:
    ledger = Ledger(LOOPBACK)
    del ledger.codes[getattr(LOOPBACK, what)]
    assert f"no {what} at 0x" in await refused(ledger)


async def test_code_that_is_pinned() -> None:
    ledger = Ledger(LOOPBACK)
    pinned = dataclasses.replace(LOOPBACK, code_hashes={LOOPBACK.hub: keccak256(ledger.codes[LOOPBACK.hub])})
    await checked(pinned, ledger)
    ledger.codes[LOOPBACK.hub] += b"\0"
    assert "the code of the hub" in await refused(ledger, pinned)
    await checked(LOOPBACK, ledger)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"",
        bytes(32),
        domain_separator("USD Coin", "2", LOOPBACK.chain, LOOPBACK.token),
        domain_separator("USDC", "1", LOOPBACK.chain, LOOPBACK.token),
        domain_separator("USDC", "2", 1, LOOPBACK.token),
        domain_separator("USDC", "2", LOOPBACK.chain, LOOPBACK.hub),
        LOOPBACK.token_domain + bytes(32),
    ],
    ids=["none", "empty", "zeros", "name", "version", "chain", "contract", "longer"],
)
async def test_a_token_under_another_domain(answer: bytes | None) -> None:
    ledger = Ledger(LOOPBACK)
    if answer is None:
        del ledger.answers[LOOPBACK.token, DOMAIN_SEPARATOR]
    else:
        ledger.answers[LOOPBACK.token, DOMAIN_SEPARATOR] = answer
    assert "is not USDC 2" in await refused(ledger)


@pytest.mark.parametrize("answer", [b"", (18).to_bytes(32, "big"), b"\x06"], ids=["none", "18", "short"])
async def test_a_token_with_other_decimals(answer: bytes) -> None:
    ledger = Ledger(LOOPBACK)
    ledger.answers[LOOPBACK.token, DECIMALS] = answer
    assert "6 decimals" in await refused(ledger)


@pytest.mark.parametrize(
    "changes",
    [
        {"fields": b"\x07"},
        {"name": "x402 batch settlement"},
        {"version": "2"},
        {"chain": 1},
        {"at": b"\x04" * 20},
    ],
)
async def test_a_contract_that_is_no_such_hub(changes: dict[str, Any]) -> None:
    ledger = Ledger(LOOPBACK)
    ledger.answers[LOOPBACK.hub, HUB_DOMAIN] = hub_says(LOOPBACK, **changes)
    assert "is no payment hub" in await refused(ledger)
    del ledger.answers[LOOPBACK.hub, HUB_DOMAIN]
    assert "is no payment hub" in await refused(ledger)


WORDS = st.sampled_from([0, 1, 32, 0xE0, 2**255, 2**256 - 1]).map(lambda number: number.to_bytes(32, "big"))


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=500) | st.lists(WORDS, max_size=130).map(b"".join))
def test_no_answer_is_a_hub_by_chance(answer: bytes) -> None:
    assert not networks._is_hub_domain(answer, LOOPBACK)


@given(st.integers(0, len(hub_says(LOOPBACK)) - 1), st.integers(1, 255))
@settings(deadline=None)
def test_no_damaged_answer_makes_it_fail(at: int, bits: int) -> None:
    good = bytearray(hub_says(LOOPBACK))
    good[at] ^= bits
    assert networks._is_hub_domain(bytes(good), LOOPBACK) in (True, False)
    assert networks._is_hub_domain(bytes(good[:at]), LOOPBACK) is False


async def test_a_chain_that_does_not_answer_is_not_a_wrong_one() -> None:
    class Away(Ledger):
        async def code(self, address: bytes, /) -> bytes:
            raise ChainUnreachable("no answer")

    with pytest.raises(ChainUnreachable):
        await checked(LOOPBACK, Away(LOOPBACK))
