"""The digests against others who compute them: eth-account for any typed data, x402, and the contracts on a chain."""

import dataclasses
import statistics
import time
from typing import Any

import pytest
from eth_abi.abi import encode as abi_encode
from eth_account.messages import encode_typed_data
from eth_utils import keccak
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.settlement import typed_data
from meshnode.settlement.addresses import parse, shown
from meshnode.settlement.keys import VoucherKey
from meshnode.settlement.typed_data import ChannelConfig, ClaimEntry
from tests.lab.evm import Deployment, deployed, in_process

CHAIN = 84532
HUB = bytes.fromhex("4020074e9dF2ce1deE5A9C1b5c3f541D02a10003")
CONFIG = ChannelConfig(b"\x11" * 20, b"\x22" * 20, b"\x33" * 20, b"\x44" * 20, b"\x55" * 20, 86_400, b"\x66" * 32)

ADDRESSES = st.binary(min_size=20, max_size=20)
WORDS = st.binary(min_size=32, max_size=32)
AMOUNTS = st.integers(0, typed_data.MOST_UINT128)
CHAINS = st.integers(1, 2**63 - 1)
CONFIGS = st.builds(
    ChannelConfig, ADDRESSES, ADDRESSES, ADDRESSES, ADDRESSES, ADDRESSES, st.integers(900, 2_592_000), WORDS
)

TYPES: dict[str, list[tuple[str, str]]] = {
    "ChannelConfig": [
        ("payer", "address"),
        ("payerAuthorizer", "address"),
        ("receiver", "address"),
        ("receiverAuthorizer", "address"),
        ("token", "address"),
        ("withdrawDelay", "uint40"),
        ("salt", "bytes32"),
    ],
    "Voucher": [("channelId", "bytes32"), ("maxClaimableAmount", "uint128")],
    "Refund": [("channelId", "bytes32"), ("nonce", "uint256"), ("amount", "uint128")],
    "RefundRequest": [("channelId", "bytes32"), ("nonce", "uint256"), ("amount", "uint128")],
    "ClaimEntry": [("channelId", "bytes32"), ("maxClaimableAmount", "uint128"), ("totalClaimed", "uint128")],
    "ClaimBatch": [("claims", "ClaimEntry[]")],
    "ReceiveWithAuthorization": [
        ("from", "address"),
        ("to", "address"),
        ("value", "uint256"),
        ("validAfter", "uint256"),
        ("validBefore", "uint256"),
        ("nonce", "bytes32"),
    ],
}


def theirs(
    struct: str, *values: Any, chain: int = CHAIN, hub: bytes = HUB, name: str = "", version: str = "1"
) -> bytes:
    """The digest as eth-account has it."""
    domain = {"name": name or "x402 Batch Settlement", "version": version, "chainId": chain}
    used = [struct, "ClaimEntry"] if struct == "ClaimBatch" else [struct]
    types = {name: [{"name": field, "type": kind} for field, kind in TYPES[name]] for name in used}
    message = {field: value for (field, _), value in zip(TYPES[struct], values, strict=True)}
    signable = encode_typed_data({**domain, "verifyingContract": shown(hub)}, types, message)
    return keccak(b"\x19" + signable.version + signable.header + signable.body)


@given(CONFIGS, CHAINS, ADDRESSES)
def test_a_channel_is_named_as_the_standard_says(config: ChannelConfig, chain: int, hub: bytes) -> None:
    values = [shown(value) if len(value) == 20 else value for value in dataclasses.astuple(config)[:5]]
    expected = theirs("ChannelConfig", *values, config.withdraw_delay, config.salt, chain=chain, hub=hub)
    assert typed_data.channel_id(config, chain, hub) == expected


@given(WORDS, AMOUNTS, CHAINS, ADDRESSES)
def test_vouchers(channel: bytes, cumulative: int, chain: int, hub: bytes) -> None:
    expected = theirs("Voucher", channel, cumulative, chain=chain, hub=hub)
    assert typed_data.voucher_digest(channel, cumulative, chain, hub) == expected


@given(WORDS, st.integers(0, typed_data.MOST_UINT256), AMOUNTS)
def test_refunds_and_requests_for_them_are_never_the_same(channel: bytes, nonce: int, amount: int) -> None:
    refund = typed_data.refund_digest(channel, nonce, amount, CHAIN, HUB)
    request = typed_data.refund_request_digest(channel, nonce, amount, CHAIN, HUB)
    assert refund == theirs("Refund", channel, nonce, amount)
    assert request == theirs("RefundRequest", channel, nonce, amount)
    assert refund != request


@given(st.lists(st.builds(ClaimEntry, WORDS, AMOUNTS, AMOUNTS), max_size=5))
def test_batches_of_claims(entries: list[ClaimEntry]) -> None:
    fields = [name for name, _ in TYPES["ClaimEntry"]]
    claims = [dict(zip(fields, dataclasses.astuple(entry), strict=True)) for entry in entries]
    assert typed_data.claim_batch_digest(entries, CHAIN, HUB) == theirs("ClaimBatch", claims)


@given(ADDRESSES, ADDRESSES, st.integers(0, 2**256 - 1), st.integers(0, 2**64), st.integers(0, 2**256 - 1), WORDS)
def test_authorizations_of_deposits(
    payer: bytes, to: bytes, amount: int, after: int, before: int, nonce: bytes
) -> None:
    domain = typed_data.domain_separator("USDC", "2", CHAIN, b"\x55" * 20)
    values = (shown(payer), shown(to), amount, after, before, nonce)
    expected = theirs("ReceiveWithAuthorization", *values, hub=b"\x55" * 20, name="USDC", version="2")
    found = typed_data.receive_authorization_digest(payer, to, amount, after, before, nonce, domain)
    assert found == expected


@given(WORDS, WORDS)
def test_the_nonce_of_a_deposit(channel: bytes, salt: bytes) -> None:
    encoded = abi_encode(["bytes32", "uint256"], [channel, int.from_bytes(salt, "big")])
    assert typed_data.deposit_nonce(channel, salt) == keccak(encoded)


@given(CONFIGS)
def test_the_words_of_a_configuration(config: ChannelConfig) -> None:
    *parties, delay, salt = dataclasses.astuple(config)
    assert config.words() == abi_encode(["address"] * 5 + ["uint40", "bytes32"], [*map(shown, parties), delay, salt])


@settings(deadline=None)  # x402 takes its time to import
@given(CONFIGS, st.integers(0, 2**64))
def test_x402_computes_the_same(config: ChannelConfig, salt: int) -> None:
    utils = pytest.importorskip("x402.mechanisms.evm.batch_settlement.utils")
    encoding = pytest.importorskip("x402.mechanisms.evm.batch_settlement.encoding")
    constants = pytest.importorskip("x402.mechanisms.evm.batch_settlement.constants")
    types = pytest.importorskip("x402.mechanisms.evm.batch_settlement.types")
    *parties, delay, channel_salt = dataclasses.astuple(config)
    names = ("payer", "payer_authorizer", "receiver", "receiver_authorizer", "token")
    other = types.ChannelConfig(
        **{name: shown(value) for name, value in zip(names, parties, strict=True)},
        withdraw_delay=delay,
        salt="0x" + channel_salt.hex(),
    )
    channel = typed_data.channel_id(config, CHAIN, HUB)
    assert utils.compute_channel_id(other, "eip155:84532") == "0x" + channel.hex()
    word = salt.to_bytes(32, "big")
    assert encoding.build_erc3009_deposit_nonce("0x" + channel.hex(), "0x" + word.hex()) == (
        "0x" + typed_data.deposit_nonce(channel, word).hex()
    )
    for name in ("CHANNEL_CONFIG", "VOUCHER", "REFUND", "CLAIM_BATCH", "RECEIVE_AUTHORIZATION"):
        for struct, members in getattr(constants, name + "_TYPES").items():
            assert [(member["name"], member["type"]) for member in members] == TYPES[struct]


def test_what_is_signed_is_bound_to_chain_contract_channel_and_amount() -> None:
    channel = typed_data.channel_id(CONFIG, CHAIN, HUB)
    digests = {
        typed_data.voucher_digest(channel, 1000, CHAIN, HUB),
        typed_data.voucher_digest(channel, 1001, CHAIN, HUB),
        typed_data.voucher_digest(channel, 1000, 8453, HUB),
        typed_data.voucher_digest(channel, 1000, CHAIN, b"\x01" * 20),
        typed_data.voucher_digest(bytes(32), 1000, CHAIN, HUB),
    }
    assert len(digests) == 5
    changes: list[dict[str, Any]] = [
        {"payer": bytes(20)},
        {"payer_authorizer": bytes(20)},
        {"receiver": bytes(20)},
        {"receiver_authorizer": bytes(20)},
        {"token": bytes(20)},
        {"withdraw_delay": 900},
        {"salt": bytes(32)},
    ]
    others = {typed_data.channel_id(dataclasses.replace(CONFIG, **change), CHAIN, HUB) for change in changes}
    assert len(others | {channel}) == 8


@pytest.mark.parametrize(
    "change",
    [
        {"payer": bytes(19)},
        {"payer_authorizer": bytes(21)},
        {"receiver": b""},
        {"receiver_authorizer": bytes(32)},
        {"token": bytes(1)},
        {"withdraw_delay": 899},
        {"withdraw_delay": 2_592_001},
        {"withdraw_delay": -1},
        {"withdraw_delay": 1 << 40},
        {"salt": bytes(31)},
    ],
)
def test_a_configuration_that_the_hub_could_not_hold(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        dataclasses.replace(CONFIG, **change)


def test_values_out_of_their_bounds() -> None:
    channel = bytes(32)
    for amount in (-1, 1 << 128):
        with pytest.raises(ValueError, match="128 bits"):
            typed_data.voucher_digest(channel, amount, CHAIN, HUB)
        with pytest.raises(ValueError, match="128 bits"):
            typed_data.refund_digest(channel, 0, amount, CHAIN, HUB)
        with pytest.raises(ValueError, match="128 bits"):
            typed_data.claim_batch_digest([ClaimEntry(channel, 1, amount)], CHAIN, HUB)
    with pytest.raises(ValueError, match="32 bytes"):
        typed_data.voucher_digest(channel[1:], 1, CHAIN, HUB)
    with pytest.raises(ValueError, match="20 bytes"):
        typed_data.voucher_digest(channel, 1, CHAIN, HUB[1:])
    with pytest.raises(ValueError, match="256 bits"):
        typed_data.refund_digest(channel, 1 << 256, 0, CHAIN, HUB)
    with pytest.raises(ValueError, match="32 bytes"):
        typed_data.receive_authorization_digest(HUB, HUB, 1, 0, 1, channel, b"")


# --- on a chain -----------------------------------------------------------------------------------------------------

PAYER, PAYER_VOUCHERS, RECEIVER_CLAIMS = (VoucherKey.from_secret(bytes([at]) * 32, native=False) for at in (1, 2, 3))


@dataclasses.dataclass(frozen=True)
class Place:
    """One channel on a chain in this process."""

    contracts: Deployment
    config: ChannelConfig

    @property
    def on(self) -> tuple[int, bytes]:
        """Chain and hub, as the digests want them."""
        return self.contracts.chain_id, parse(self.contracts.hub)

    @property
    def channel(self) -> bytes:
        return typed_data.channel_id(self.config, *self.on)

    def said(self) -> tuple[Any, ...]:
        """The configuration as the ABI wants it."""
        *parties, delay, salt = dataclasses.astuple(self.config)
        return (*map(shown, parties), delay, salt)

    def send(self, function: Any) -> None:
        sent = function.transact({"from": self.contracts.web3.eth.accounts[0]})
        assert self.contracts.web3.eth.wait_for_transaction_receipt(sent)["status"] == 1


@pytest.fixture(scope="module")
def place() -> Place:
    contracts = deployed(in_process())
    keys = (PAYER.address, PAYER_VOUCHERS.address, b"\x44" * 20, RECEIVER_CLAIMS.address)
    return Place(contracts, ChannelConfig(*keys, parse(contracts.token), 86_400, b"\x66" * 32))


def test_the_contracts_compute_the_same(place: Place) -> None:
    functions, channel = place.contracts.channels.functions, place.channel
    assert functions.getChannelId(place.said()).call() == channel
    assert functions.getVoucherDigest(channel, 1200).call() == typed_data.voucher_digest(channel, 1200, *place.on)
    assert functions.getRefundDigest(channel, 7, 300).call() == typed_data.refund_digest(channel, 7, 300, *place.on)
    entries = [ClaimEntry(channel, 1200, 700), ClaimEntry(channel, typed_data.MOST_UINT128, 0)]
    claims = [((place.said(), entry.ceiling), b"", entry.claimed) for entry in entries]
    for count in (0, 1, 2):
        digest = typed_data.claim_batch_digest(entries[:count], *place.on)
        assert functions.getClaimBatchDigest(claims[:count]).call() == digest
    domain = typed_data.domain_separator("USDC", "2", place.contracts.chain_id, parse(place.contracts.token))
    assert place.contracts.usdc.functions.DOMAIN_SEPARATOR().call() == domain


def test_the_life_of_a_channel_is_what_was_signed(place: Place) -> None:
    """A deposit, a claim and a refund, each sent by somebody else than who signed it."""
    contracts, functions, channel = place.contracts, place.contracts.channels.functions, place.channel
    contracts.fund(shown(PAYER.address), usdc_micros=1_000_000)
    salt, forever = b"\x07" * 32, 2**256 - 1
    token_domain = typed_data.domain_separator("USDC", "2", contracts.chain_id, parse(contracts.token))
    collector = parse(contracts.collector)
    authorization = typed_data.receive_authorization_digest(
        PAYER.address, collector, 500_000, 0, forever, typed_data.deposit_nonce(channel, salt), token_domain
    )
    data = abi_encode(
        ["uint256", "uint256", "uint256", "bytes"],
        [0, forever, int.from_bytes(salt, "big"), PAYER.sign(authorization)],
    )
    place.send(functions.deposit(place.said(), 500_000, contracts.collector, data))
    assert functions.channels(channel).call() == [500_000, 0]

    voucher = PAYER_VOUCHERS.sign(typed_data.voucher_digest(channel, 1200, *place.on))
    claims = [((place.said(), 1200), voucher, 1100)]
    batch = RECEIVER_CLAIMS.sign(typed_data.claim_batch_digest([ClaimEntry(channel, 1200, 1100)], *place.on))
    place.send(functions.claimWithSignature(claims, batch))
    assert functions.channels(channel).call() == [500_000, 1100]

    refund = RECEIVER_CLAIMS.sign(typed_data.refund_digest(channel, 0, 498_900, *place.on))
    place.send(functions.refundWithSignature(place.said(), 498_900, 0, refund))
    assert contracts.balance(shown(PAYER.address)) == 998_900


def test_a_voucher_digest_costs_next_to_nothing() -> None:
    """0.01 ms; the bound leaves room for a machine that does something else."""
    taken = []
    for amount in range(200):
        begun = time.perf_counter()
        typed_data.voucher_digest(bytes(32), amount, CHAIN, HUB)
        taken.append(time.perf_counter() - begun)
    assert statistics.median(taken) < 0.000_05 * 4
