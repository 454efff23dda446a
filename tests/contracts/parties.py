"""The accounts around a channel, what they sign, and how they call the contracts: shared by the tests of the contracts.

Everything is signed with eth_account's own typed data from the types of the public scheme, so that the contracts are
compared with a second implementation. Amounts are micros; channel configs and claims are the tuples of the ABI.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eth_abi import encode
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_tester.exceptions import TransactionFailed
from eth_utils import keccak
from web3.contract.contract import ContractFunction
from web3.exceptions import ContractCustomError, ContractLogicError
from web3.types import TxReceipt

from tests.lab.evm import Deployment, travel

DAY_S = 86_400
FOREVER = 2**256 - 1
GAS = 9_000_000
NOBODY = "0x" + "00" * 20

Config = tuple[str, str, str, str, str, int, bytes]
Claim = tuple[tuple[Config, int], bytes, int]

TYPES = {
    "Voucher": {"channelId": "bytes32", "maxClaimableAmount": "uint128"},
    "Refund": {"channelId": "bytes32", "nonce": "uint256", "amount": "uint128"},
    "ClaimEntry": {"channelId": "bytes32", "maxClaimableAmount": "uint128", "totalClaimed": "uint128"},
    "ClaimBatch": {"claims": "ClaimEntry[]"},
    "ReceiveWithAuthorization": {
        "from": "address",
        "to": "address",
        "value": "uint256",
        "validAfter": "uint256",
        "validBefore": "uint256",
        "nonce": "bytes32",
    },
    "Permit": {
        "owner": "address",
        "spender": "address",
        "value": "uint256",
        "nonce": "uint256",
        "deadline": "uint256",
    },
    "CancelAuthorization": {"authorizer": "address", "nonce": "bytes32"},
    "ChannelConfig": {
        "payer": "address",
        "payerAuthorizer": "address",
        "receiver": "address",
        "receiverAuthorizer": "address",
        "token": "address",
        "withdrawDelay": "uint40",
        "salt": "bytes32",
    },
}
TYPES["TransferWithAuthorization"] = TYPES["ReceiveWithAuthorization"]


def account(name: str) -> LocalAccount:
    """The account of this name, the same in every run."""
    made: LocalAccount = Account.from_key(keccak(text=f"meshnode tests: {name}"))
    return made


PAYER, PAYER_VOUCHERS, RECEIVER, RECEIVER_CLAIMS, STRANGER = map(
    account, ("payer", "payer's voucher key", "receiver", "receiver's authorizer", "stranger")
)


def typed_hash(domain: dict[str, Any], kind: str, message: dict[str, Any]) -> bytes:
    """The EIP-712 digest of a message, as eth_account makes it."""
    from eth_account.messages import _hash_eip191_message, encode_typed_data

    wanted = [kind] if kind != "ClaimBatch" else [kind, "ClaimEntry"]
    types = {name: [{"name": key, "type": value} for key, value in TYPES[name].items()] for name in wanted}
    return bytes(_hash_eip191_message(encode_typed_data(domain, types, message)))


def signed(by: LocalAccount, digest: bytes) -> bytes:
    """65 bytes: r, s, v of 27 or 28."""
    return bytes(by.unsafe_sign_hash(digest).signature)


@dataclass(frozen=True)
class Parties:
    """The five accounts at one deployment."""

    contracts: Deployment

    @property
    def domain(self) -> dict[str, Any]:
        """The EIP-712 domain of the hub."""
        return {
            "name": "x402 Batch Settlement",
            "version": "1",
            "chainId": self.contracts.chain_id,
            "verifyingContract": self.contracts.hub,
        }

    @property
    def token_domain(self) -> dict[str, Any]:
        """The EIP-712 domain of the token."""
        return {
            "name": "USDC",
            "version": "2",
            "chainId": self.contracts.chain_id,
            "verifyingContract": self.contracts.token,
        }

    def config(
        self,
        *,
        payer: str = PAYER.address,
        payer_authorizer: str = PAYER_VOUCHERS.address,
        receiver: str = RECEIVER.address,
        receiver_authorizer: str = RECEIVER_CLAIMS.address,
        token: str | None = None,
        delay_s: int = DAY_S,
        salt: int = 0,
    ) -> Config:
        """A channel between the usual parties; each part can be another."""
        of = token or self.contracts.token
        return (payer, payer_authorizer, receiver, receiver_authorizer, of, delay_s, salt.to_bytes(32, "big"))

    def channel_id(self, config: Config) -> bytes:
        """What names a channel."""
        return typed_hash(self.domain, "ChannelConfig", dict(zip(TYPES["ChannelConfig"], config, strict=True)))

    def voucher(self, config: Config, ceiling: int, by: LocalAccount = PAYER_VOUCHERS) -> bytes:
        """A signature over a ceiling of a channel."""
        message = {"channelId": self.channel_id(config), "maxClaimableAmount": ceiling}
        return signed(by, typed_hash(self.domain, "Voucher", message))

    def claim(self, config: Config, total: int, ceiling: int | None = None, signature: bytes | None = None) -> Claim:
        """A row of a claim: up to `total` under a voucher for `ceiling` (the same if not said)."""
        most = total if ceiling is None else ceiling
        return (config, most), self.voucher(config, most) if signature is None else signature, total

    def batch(self, claims: Sequence[Claim], by: LocalAccount = RECEIVER_CLAIMS) -> bytes:
        """The authorizer's signature over a batch of claims."""
        entries = [
            {"channelId": self.channel_id(config), "maxClaimableAmount": ceiling, "totalClaimed": total}
            for (config, ceiling), _, total in claims
        ]
        return signed(by, typed_hash(self.domain, "ClaimBatch", {"claims": entries}))

    def refund_signature(self, config: Config, amount: int, nonce: int, by: LocalAccount = RECEIVER_CLAIMS) -> bytes:
        """The authorizer's signature over one refund."""
        message = {"channelId": self.channel_id(config), "nonce": nonce, "amount": amount}
        return signed(by, typed_hash(self.domain, "Refund", message))

    def authorization(
        self,
        config: Config,
        amount: int,
        *,
        salt: int = 1,
        valid_after: int = 0,
        valid_before: int = FOREVER,
        by: LocalAccount = PAYER,
    ) -> bytes:
        """The collector's data for a deposit that the payer signed."""
        message = {
            "from": config[0],
            "to": self.contracts.collector,
            "value": amount,
            "validAfter": valid_after,
            "validBefore": valid_before,
            "nonce": keccak(encode(["bytes32", "uint256"], [self.channel_id(config), salt])),
        }
        signature = signed(by, typed_hash(self.token_domain, "ReceiveWithAuthorization", message))
        return encode(["uint256", "uint256", "uint256", "bytes"], [valid_after, valid_before, salt, signature])

    def deposit(self, config: Config, amount: int, *, salt: int = 1, data: bytes | None = None) -> ContractFunction:
        """The call that pays in."""
        brought = self.authorization(config, amount, salt=salt) if data is None else data
        return self.contracts.channels.functions.deposit(config, amount, self.contracts.collector, brought)

    def call(self, name: str, *arguments: Any) -> ContractFunction:
        """A call of the hub by name."""
        return self.contracts.channels.functions[name](*arguments)

    def send(self, by: LocalAccount, function: ContractFunction) -> TxReceipt:
        """Have an account make a call; it must go through. The receipt says what it cost."""
        web3 = self.contracts.web3
        asked = function.build_transaction(
            {
                "from": by.address,
                "nonce": web3.eth.get_transaction_count(by.address),
                "gas": GAS,
                "maxFeePerGas": 20 * 10**9,
                "maxPriorityFeePerGas": 10**9,
                "chainId": web3.eth.chain_id,
            }
        )
        sent = web3.eth.send_raw_transaction(by.sign_transaction(asked).raw_transaction)
        receipt = web3.eth.wait_for_transaction_receipt(sent)
        assert receipt["status"] == 1, reason(function, by)
        return receipt

    def opened(self, config: Config, amount: int = 1_000_000, *, salt: int = 1) -> Config:
        """Pay into a channel; gives its config back."""
        self.send(STRANGER, self.deposit(config, amount, salt=salt))
        return config

    def channel(self, config: Config) -> tuple[int, int]:
        """(balance, claimed) of a channel on the chain."""
        balance, claimed = self.call("channels", self.channel_id(config)).call()
        return balance, claimed

    def pending(self, config: Config) -> int:
        """How much the payer's exit under way asks for."""
        amount: int = self.call("pendingWithdrawals", self.channel_id(config)).call()[0]
        return amount

    def travel(self, seconds: int) -> None:
        """Move the chain's clock on."""
        travel(self.contracts.web3, seconds)


def gathered(contracts: Deployment, *, usdc_micros: int = 10_000_000) -> Parties:
    """The parties with ether for gas each, and the payer with money."""
    for party in (PAYER, PAYER_VOUCHERS, RECEIVER, RECEIVER_CLAIMS, STRANGER):
        contracts.fund(party.address, eth_wei=10**19)
    contracts.fund(PAYER.address, usdc_micros=usdc_micros)
    return Parties(contracts)


def reason(function: ContractFunction, by: LocalAccount = STRANGER) -> str:
    """Why a call is refused: the name of the contract's error or the token's words; empty where it is not."""
    try:
        function.call({"from": by.address, "gas": GAS})
    except ContractCustomError as error:
        return error_name(function.contract_abi, bytes.fromhex(str(error.data).removeprefix("0x")))
    except (ContractLogicError, TransactionFailed) as error:
        words = str(error.args[0]).removeprefix("execution reverted: ")
        # eth-tester gives an error that is no text as the source text of a bytes object.
        raw = ast.literal_eval(words) if words.startswith(("b'", 'b"')) else None
        return words if raw is None else error_name(function.contract_abi, raw)
    return ""


def error_name(abi: Sequence[Any], data: bytes) -> str:
    """The name of the contract's error that revert data stands for; the data itself where the ABI has none."""
    for entry in abi:
        if entry["type"] == "error":
            signature = f"{entry['name']}({','.join(part['type'] for part in entry['inputs'])})"
            if keccak(text=signature)[:4] == data[:4]:
                return str(entry["name"])
    return "0x" + data.hex()
