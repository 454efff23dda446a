"""What is signed for the chain: typed data (EIP-712) of the payment hub and of the token, as digests of 32 bytes.

The hub is the `batch-settlement` contract of x402, or one with its interface: its domain is ("x402 Batch Settlement",
"1", chain, hub), and a channel is named by the digest of its configuration in that domain, so that neither a channel
nor a voucher is good on another chain or with another contract. The token is USDC with EIP-3009.

Pure functions on bytes. A value out of its bounds is the caller's mistake and raises ValueError: what a peer sends is
checked before (wire/payments, ChannelConfig).

    digest        keccak256(0x19 01 | domain | hash of the struct)
    hash          keccak256(hash of the type | members, each as 32 bytes)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Final

from meshnode.settlement.addresses import ADDRESS_BYTES
from meshnode.settlement.keccak import DIGEST_BYTES, keccak256

HUB_NAME: Final = "x402 Batch Settlement"
HUB_VERSION: Final = "1"
LEAST_WITHDRAW_DELAY_S = 15 * 60
MOST_WITHDRAW_DELAY_S = 30 * 24 * 3600
"""The bounds of the hub itself; what a provider asks for is its own."""
MOST_UINT128 = (1 << 128) - 1
MOST_UINT256 = (1 << 256) - 1

DOMAIN = "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
CHANNEL_CONFIG = (
    "ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,address token,"
    "uint40 withdrawDelay,bytes32 salt)"
)
VOUCHER = "Voucher(bytes32 channelId,uint128 maxClaimableAmount)"
REFUND = "Refund(bytes32 channelId,uint256 nonce,uint128 amount)"
REFUND_REQUEST = "RefundRequest(bytes32 channelId,uint256 nonce,uint128 amount)"
CLAIM_ENTRY = "ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)"
CLAIM_BATCH = "ClaimBatch(ClaimEntry[] claims)" + CLAIM_ENTRY
RECEIVE_AUTHORIZATION = (
    "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,"
    "uint256 validBefore,bytes32 nonce)"
)


@dataclass(frozen=True, slots=True)
class ChannelConfig:
    """Who pays whom through a channel: addresses, the token, seconds between announcing a withdrawal and it, a salt.

    `payer` gave the deposit and `payer_authorizer` signs vouchers; `receiver` is paid and `receiver_authorizer` claims.
    Raises ValueError for a value that the hub could not hold.
    """

    payer: bytes
    payer_authorizer: bytes
    receiver: bytes
    receiver_authorizer: bytes
    token: bytes
    withdraw_delay: int
    salt: bytes

    def __post_init__(self) -> None:
        self.words()
        if not LEAST_WITHDRAW_DELAY_S <= self.withdraw_delay <= MOST_WITHDRAW_DELAY_S:
            raise ValueError(f"a withdraw delay is {LEAST_WITHDRAW_DELAY_S} to {MOST_WITHDRAW_DELAY_S} seconds")

    def words(self) -> bytes:
        """Its seven members as the ABI encodes them, 32 bytes each."""
        parties = (self.payer, self.payer_authorizer, self.receiver, self.receiver_authorizer, self.token)
        return b"".join(map(_address, parties)) + _uint(self.withdraw_delay, 40) + _bytes32(self.salt)


@dataclass(frozen=True, slots=True)
class ClaimEntry:
    """One channel of a batch: its id, the cumulative amount its payer has signed, and the amount claimed in all."""

    channel: bytes
    ceiling: int
    claimed: int


@lru_cache(maxsize=64)
def domain_separator(name: str, version: str, chain: int, contract: bytes) -> bytes:
    """The domain of a contract on a chain, which its DOMAIN_SEPARATOR() gives as well."""
    members = keccak256(name.encode("utf-8")) + keccak256(version.encode("utf-8")) + _uint(chain) + _address(contract)
    return keccak256(type_hash(DOMAIN) + members)


def hub_domain(chain: int, hub: bytes) -> bytes:
    """The domain of a payment hub."""
    return domain_separator(HUB_NAME, HUB_VERSION, chain, hub)


@cache
def type_hash(declaration: str) -> bytes:
    """The hash of a struct's declaration; of those in this module and a few like them, as they are remembered."""
    return keccak256(declaration.encode("ascii"))


def digest(domain: bytes, struct_hash: bytes) -> bytes:
    """What is signed for a struct in a domain."""
    return keccak256(b"\x19\x01" + domain + struct_hash)


def channel_id(config: ChannelConfig, chain: int, hub: bytes) -> bytes:
    """The name of a channel, 32 bytes."""
    return digest(hub_domain(chain, hub), keccak256(type_hash(CHANNEL_CONFIG) + config.words()))


def voucher_digest(channel: bytes, cumulative: int, chain: int, hub: bytes) -> bytes:
    """For the payer's authorizer: the receiver may claim up to `cumulative` in all from this channel."""
    members = _bytes32(channel) + _uint(cumulative, 128)
    return digest(hub_domain(chain, hub), keccak256(type_hash(VOUCHER) + members))


def claim_batch_digest(entries: Sequence[ClaimEntry], chain: int, hub: bytes) -> bytes:
    """For the receiver's authorizer: anyone may claim these for it."""
    of_entry = type_hash(CLAIM_ENTRY)
    hashes = [
        keccak256(of_entry + _bytes32(entry.channel) + _uint(entry.ceiling, 128) + _uint(entry.claimed, 128))
        for entry in entries
    ]
    return digest(hub_domain(chain, hub), keccak256(type_hash(CLAIM_BATCH) + keccak256(b"".join(hashes))))


def refund_digest(channel: bytes, nonce: int, amount: int, chain: int, hub: bytes) -> bytes:
    """For the receiver's authorizer: the hub may give `amount` of what is not claimed back to the payer."""
    members = _bytes32(channel) + _uint(nonce) + _uint(amount, 128)
    return digest(hub_domain(chain, hub), keccak256(type_hash(REFUND) + members))


def refund_request_digest(channel: bytes, nonce: int, amount: int, chain: int, hub: bytes) -> bytes:
    """For the payer's authorizer: it asks the receiver for a refund.

    The hub knows no such struct, so a request can never be used as the refund, even where one key has both roles.
    """
    members = _bytes32(channel) + _uint(nonce) + _uint(amount, 128)
    return digest(hub_domain(chain, hub), keccak256(type_hash(REFUND_REQUEST) + members))


def deposit_nonce(channel: bytes, salt: bytes) -> bytes:
    """The EIP-3009 nonce under which the hub's collector takes a deposit: it binds the authorization to one channel."""
    return keccak256(_bytes32(channel) + _bytes32(salt))


def receive_authorization_digest(
    payer: bytes, to: bytes, amount: int, valid_after: int, valid_before: int, nonce: bytes, token_domain: bytes
) -> bytes:
    """For the key of `payer`: `to` alone may take `amount` once, between these two times in epoch seconds.

    The struct is ReceiveWithAuthorization of EIP-3009 and `token_domain` that of the token (`Network.token_domain`).
    """
    times = _uint(valid_after) + _uint(valid_before)
    members = _address(payer) + _address(to) + _uint(amount) + times + _bytes32(nonce)
    return digest(_bytes32(token_domain), keccak256(type_hash(RECEIVE_AUTHORIZATION) + members))


def _uint(value: int, bits: int = 256) -> bytes:
    if not 0 <= value < 1 << bits:
        raise ValueError(f"not an unsigned integer of {bits} bits")
    return value.to_bytes(DIGEST_BYTES, "big")


def _address(value: bytes) -> bytes:
    if len(value) != ADDRESS_BYTES:
        raise ValueError(f"an address has {ADDRESS_BYTES} bytes")
    return value.rjust(DIGEST_BYTES, b"\0")


def _bytes32(value: bytes) -> bytes:
    if len(value) != DIGEST_BYTES:
        raise ValueError(f"expected {DIGEST_BYTES} bytes")
    return value
