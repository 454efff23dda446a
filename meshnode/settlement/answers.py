"""What an endpoint answers, as values: checked for form and bounds before anything is made of it.

web3 gives back what the endpoint sent, in dictionaries, decoded from hexadecimal text where it knows the member. Here
they become frozen values of known members; whatever is missing, of another kind or out of its bounds is EndpointFailed.
What an endpoint says of failures is kept apart: Reverted is the contract's no, Refused the endpoint's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meshnode.settlement.addresses import ADDRESS_BYTES, shown

MOST_REVERT_BYTES = 4096
DIGEST_BYTES = 32
MOST_TOPICS = 4


class EndpointFailed(Exception):
    """The endpoint does not answer, or with something that is no answer. Its text names no address."""


class Reverted(Exception):
    """The call would fail on the chain. `data` is what the contract gave as its reason."""

    def __init__(self, text: str, data: bytes) -> None:
        super().__init__(text)
        self.data = data


class Refused(Exception):
    """The endpoint answered with an error of its own, in the words of this exception."""


@dataclass(frozen=True, slots=True)
class Block:
    """A block as far as it matters here. `at` is the chain's clock, in epoch seconds."""

    number: int
    digest: bytes
    at: int
    base_fee_wei: int


@dataclass(frozen=True, slots=True)
class TransactionReceipt:
    """What became of a transaction that is in a block."""

    block: int
    block_digest: bytes
    succeeded: bool
    gas: int
    gas_price_wei: int
    l1_fee_wei: int


@dataclass(frozen=True, slots=True)
class Log:
    """A log of a contract, undecoded."""

    address: bytes
    topics: tuple[bytes, ...]
    data: bytes
    block: int
    block_digest: bytes
    transaction: bytes
    place: int


@dataclass(frozen=True, slots=True)
class Call:
    """A message to a contract, as a transaction or as a question."""

    sender: bytes
    target: bytes
    data: bytes
    value_wei: int = 0

    def fields(self) -> dict[str, Any]:
        """As web3 wants it."""
        return {
            "from": shown(self.sender),
            "to": shown(self.target),
            "data": "0x" + self.data.hex(),
            "value": self.value_wei,
        }


def refusal(response: Any) -> str:
    """The message in a JSON-RPC response that is an error."""
    inner = response.get("error") if isinstance(response, Mapping) else None
    return str(inner.get("message", "")) if isinstance(inner, Mapping) else "an error without words"


def revert_data(data: Any) -> bytes:
    """What a contract gave as its reason; empty where that is not hexadecimal text."""
    return _hexadecimal(data)[:MOST_REVERT_BYTES]


def whole(value: Any) -> int:
    """A number of 256 bits at most."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 256:
        raise EndpointFailed("a number was expected")
    return value


def member(holder: Any, name: str, kind: type) -> Any:
    """A member of an object."""
    value = holder.get(name) if isinstance(holder, Mapping) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise EndpointFailed(f"{name} is missing in the answer")
    return value


def block(found: Any) -> Block:
    """A block; one without a base fee is of a chain before EIP-1559, which is not spoken here."""
    return Block(
        whole(member(found, "number", int)),
        _sized(found, "hash", DIGEST_BYTES),
        whole(member(found, "timestamp", int)),
        whole(member(found, "baseFeePerGas", int)),
    )


def receipt(found: Any) -> TransactionReceipt:
    """A receipt. web3 knows no `l1Fee`, which OP chains add, and leaves it as it came."""
    l1_fee = found.get("l1Fee") if isinstance(found, Mapping) else None
    return TransactionReceipt(
        whole(member(found, "blockNumber", int)),
        _sized(found, "blockHash", DIGEST_BYTES),
        member(found, "status", int) == 1,
        whole(member(found, "gasUsed", int)),
        whole(member(found, "effectiveGasPrice", int)),
        whole(l1_fee if isinstance(l1_fee, int) else int.from_bytes(_hexadecimal(l1_fee)[:DIGEST_BYTES], "big")),
    )


def log(found: Any) -> Log:
    """A log."""
    topics = member(found, "topics", Sequence)
    is_sound = all(isinstance(topic, bytes) and len(topic) == DIGEST_BYTES for topic in topics)
    if len(topics) > MOST_TOPICS or not is_sound:
        raise EndpointFailed("a log with other topics than a log can have")
    address = _hexadecimal(member(found, "address", str))
    if len(address) != ADDRESS_BYTES:
        raise EndpointFailed("a log of no contract")
    return Log(
        address,
        tuple(bytes(topic) for topic in topics),
        bytes(member(found, "data", bytes)),
        whole(member(found, "blockNumber", int)),
        _sized(found, "blockHash", DIGEST_BYTES),
        _sized(found, "transactionHash", DIGEST_BYTES),
        whole(member(found, "logIndex", int)),
    )


def _sized(holder: Any, name: str, size_bytes: int) -> bytes:
    value = bytes(member(holder, name, bytes))
    if len(value) != size_bytes:
        raise EndpointFailed(f"{name} has {len(value)} bytes")
    return value


def _hexadecimal(text: Any) -> bytes:
    """The bytes of "0x..."; of an odd number of digits as well, as quantities have. Empty for anything else."""
    if not isinstance(text, str) or not text.startswith("0x") or len(text) > 2 * MOST_REVERT_BYTES + 2:
        return b""
    digits = text[2:]
    try:
        return bytes.fromhex("0" * (len(digits) % 2) + digits)
    except ValueError:
        return b""
