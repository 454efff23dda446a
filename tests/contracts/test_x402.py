"""The public scheme's own client and facilitator (PyPI `x402`) against these contracts at the scheme's addresses.

What the two make of the same channel, voucher, batch, refund and deposit must be the same bytes; and the facilitator
must be able to take a channel through its life without knowing that the contract is another one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
from eth_abi import encode
from eth_utils import keccak
from web3 import Web3
from x402.mechanisms.evm.batch_settlement import constants
from x402.mechanisms.evm.batch_settlement.authorizer_signer import LocalAuthorizerSigner, sign_claim_batch, sign_refund
from x402.mechanisms.evm.batch_settlement.client.eip3009 import create_batch_settlement_eip3009_deposit_payload
from x402.mechanisms.evm.batch_settlement.client.voucher import sign_voucher
from x402.mechanisms.evm.batch_settlement.encoding import build_erc3009_collector_data, build_erc3009_deposit_nonce
from x402.mechanisms.evm.batch_settlement.facilitator.scheme import BatchSettlementEvmFacilitator
from x402.mechanisms.evm.batch_settlement.types import (
    ChannelConfig,
    ClaimPayload,
    EnrichedRefundPayload,
    SettlePayload,
    VoucherClaim,
)
from x402.mechanisms.evm.batch_settlement.utils import compute_channel_id
from x402.mechanisms.evm.constants import MULTICALL3_ADDRESS
from x402.mechanisms.evm.signers import EthAccountSigner, FacilitatorWeb3Signer
from x402.schemas import PaymentPayload, PaymentRequirements

from tests.contracts.parties import (
    FOREVER,
    PAYER,
    PAYER_VOUCHERS,
    RECEIVER,
    RECEIVER_CLAIMS,
    STRANGER,
    Config,
    Parties,
    gathered,
    reason,
    typed_hash,
)
from tests.lab.evm import (
    BASE_SEPOLIA,
    BASE_SEPOLIA_USDC,
    CANONICAL_COLLECTOR,
    CANONICAL_HUB,
    Anvil,
    Deployment,
    artifact,
    canonical,
    needs_anvil,
)

NETWORK = f"eip155:{BASE_SEPOLIA}"
OFFLINE = Parties(Deployment(BASE_SEPOLIA, CANONICAL_HUB, CANONICAL_COLLECTOR, BASE_SEPOLIA_USDC, Web3()))


def _theirs(config: Config) -> ChannelConfig:
    *parts, salt = config
    return ChannelConfig(*parts, salt="0x" + salt.hex())


def _hex(signature: str) -> bytes:
    return bytes.fromhex(signature.removeprefix("0x"))


# --- the same bytes -------------------------------------------------------------------------------------------------


def test_the_addresses_are_those_of_the_scheme() -> None:
    assert constants.BATCH_SETTLEMENT_ADDRESS == CANONICAL_HUB
    assert constants.ERC3009_DEPOSIT_COLLECTOR_ADDRESS == CANONICAL_COLLECTOR
    assert (constants.MIN_WITHDRAW_DELAY, constants.MAX_WITHDRAW_DELAY) == (15 * 60, 30 * 24 * 3600)


@pytest.mark.parametrize("salt", [0, 1, 2**256 - 1])
@pytest.mark.parametrize("amount", [0, 1, 10**15, 2**128 - 1])
def test_channels_vouchers_batches_and_refunds_are_the_same_bytes(salt: int, amount: int) -> None:
    config = OFFLINE.config(salt=salt)
    channel_id = compute_channel_id(_theirs(config), NETWORK)
    assert _hex(channel_id) == OFFLINE.channel_id(config)
    voucher = sign_voucher(EthAccountSigner(PAYER_VOUCHERS), channel_id, amount, NETWORK)
    assert _hex(voucher.signature) == OFFLINE.voucher(config, amount)
    authorizer = LocalAuthorizerSigner(RECEIVER_CLAIMS)
    refund = sign_refund(authorizer, channel_id, amount, salt, NETWORK)
    assert _hex(refund) == OFFLINE.refund_signature(config, amount, salt)
    claims = [VoucherClaim(_theirs(config), str(amount), voucher.signature, str(amount // 2))] * 2
    batch = sign_claim_batch(authorizer, claims, NETWORK)
    assert _hex(batch) == OFFLINE.batch([OFFLINE.claim(config, amount // 2, amount)] * 2)


def test_a_deposit_is_the_same_bytes() -> None:
    config = OFFLINE.config()
    nonce = build_erc3009_deposit_nonce("0x" + OFFLINE.channel_id(config).hex(), "0x05")
    assert _hex(nonce) == keccak(encode(["bytes32", "uint256"], [OFFLINE.channel_id(config), 5]))
    ours = OFFLINE.authorization(config, 70, salt=5)
    message = {
        "from": PAYER.address,
        "to": CANONICAL_COLLECTOR,
        "value": 70,
        "validAfter": 0,
        "validBefore": FOREVER,
        "nonce": _hex(nonce),
    }
    domain = OFFLINE.token_domain
    signature = EthAccountSigner(PAYER).sign_typed_data(
        domain, constants.RECEIVE_AUTHORIZATION_TYPES, "ReceiveWithAuthorization", message
    )
    assert len(typed_hash(domain, "ReceiveWithAuthorization", message)) == 32
    assert build_erc3009_collector_data("0", str(FOREVER), "0x05", "0x" + signature.hex()) == ours


def test_every_call_of_the_reference_abi_is_there() -> None:
    from x402.mechanisms.evm.batch_settlement.abi import BATCH_SETTLEMENT_ABI

    def shape(entry: dict[str, object]) -> object:
        def types(parts: list[dict[str, object]]) -> list[object]:
            return [(part["type"], part.get("indexed"), types(part.get("components", []))) for part in parts]  # type: ignore[arg-type]

        return entry["type"], entry["name"], types(entry["inputs"]), types(entry.get("outputs", []))  # type: ignore[arg-type]

    ours = [shape(entry) for entry in artifact("PaymentChannels")["abi"] if "name" in entry]
    missing = [entry["name"] for entry in BATCH_SETTLEMENT_ABI if shape(entry) not in ours]
    assert missing == []


# --- the same life --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain() -> Iterator[Anvil]:
    with Anvil() as started:
        started.set_code(MULTICALL3_ADDRESS, artifact("Aggregate")["deployedBytecode"])
        yield started


@pytest.fixture
def there(chain: Anvil) -> Iterator[Parties]:
    before = chain.snapshot()
    yield gathered(canonical(chain))
    chain.restore(before)


def _requirements(**changes: object) -> PaymentRequirements:
    asked = {
        "scheme": "batch-settlement",
        "network": NETWORK,
        "asset": BASE_SEPOLIA_USDC,
        "amount": "300",
        "pay_to": RECEIVER.address,
        "max_timeout_seconds": 3600,
        "extra": {
            "name": "USDC",
            "version": "2",
            "receiverAuthorizer": RECEIVER_CLAIMS.address,
            "withdrawDelay": 86_400,
        },
    }
    return PaymentRequirements(**{**asked, **changes})


def _payload(of: object, requirements: PaymentRequirements) -> PaymentPayload:
    return PaymentPayload(x402_version=2, payload=of.to_dict(), accepted=requirements)  # type: ignore[attr-defined]


@needs_anvil
def test_a_voucher_of_the_reference_client_is_claimed(there: Parties) -> None:
    config = there.opened(there.config(), 1000)
    assert there.call("getChannelId", config).call() == _hex(compute_channel_id(_theirs(config), NETWORK))
    voucher = sign_voucher(EthAccountSigner(PAYER_VOUCHERS), compute_channel_id(_theirs(config), NETWORK), 600, NETWORK)
    there.send(RECEIVER, there.call("claim", [there.claim(config, 555, 600, _hex(voucher.signature))]))
    there.send(STRANGER, there.call("settle", RECEIVER.address, there.contracts.token))
    assert there.contracts.balance(RECEIVER.address) == 555


@needs_anvil
def test_the_reference_facilitator_takes_a_channel_through_its_life(chain: Anvil, there: Parties) -> None:
    config = there.config(salt=11)
    requirements = _requirements()
    signer = FacilitatorWeb3Signer(STRANGER.key.hex(), chain.url)
    facilitator = BatchSettlementEvmFacilitator(signer, LocalAuthorizerSigner(RECEIVER_CLAIMS))
    deposit = create_batch_settlement_eip3009_deposit_payload(
        EthAccountSigner(PAYER), requirements, _theirs(config), 1000, 300, EthAccountSigner(PAYER_VOUCHERS)
    )
    verified = facilitator.verify(_payload(deposit, requirements), requirements)
    assert verified.is_valid, verified
    done = facilitator.settle(_payload(deposit, requirements), requirements)
    assert done.success, done
    assert there.channel(config) == (1000, 0)

    assert deposit.voucher is not None
    claim = VoucherClaim(_theirs(config), "300", deposit.voucher.signature, "250")
    done = facilitator.settle(_payload(ClaimPayload(claims=[claim]), requirements), requirements)
    assert done.success, done
    assert there.channel(config) == (1000, 250)
    sweep = SettlePayload(receiver=RECEIVER.address, token=BASE_SEPOLIA_USDC)
    done = facilitator.settle(_payload(sweep, requirements), requirements)
    assert done.success, done
    assert there.contracts.balance(RECEIVER.address) == 250

    before = there.contracts.balance(PAYER.address)
    refund = EnrichedRefundPayload(
        channel_config=_theirs(config),
        voucher=deposit.voucher,
        amount="900",
        refund_nonce="0",
        claims=[dataclasses.replace(claim, total_claimed="300")],
    )
    done = facilitator.settle(_payload(refund, requirements), requirements)
    assert done.success and done.amount == "700", done
    assert there.channel(config) == (300, 300)
    assert there.contracts.balance(PAYER.address) == before + 700


@needs_anvil
def test_a_voucher_of_the_reference_client_for_another_network_is_not(there: Parties) -> None:
    config = there.opened(there.config(), 1000)
    base = "eip155:8453"
    voucher = sign_voucher(EthAccountSigner(PAYER_VOUCHERS), compute_channel_id(_theirs(config), base), 600, base)
    row = there.claim(config, 555, 600, _hex(voucher.signature))
    assert reason(there.call("claim", [row]), RECEIVER) == "InvalidSignature"
