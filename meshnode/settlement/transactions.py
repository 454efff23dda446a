"""The life of a transaction: pure values and rules. `sending` acts by them, `store_transactions` keeps them.

    prepared ──> submitted ──> mined ──> final
                     ^           │  └──> failed      in a final block, but undone by the contract
                     └───────────┘ a reorganisation took it out again
    any of the first three ──> replaced               its nonce was used, finally, by a transaction that is none of ours

A transaction is made for one purpose, which is its name, and no second one is made for that purpose. It is signed and
written down, then sent, and sent again byte for byte until the chain has it. The only thing that changes is the price:
a dearer attempt has the same nonce and the same content, so that the chain takes one of them at most. What an endpoint
answers when it is handed a transaction never changes its state; what is in a block does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from meshnode.settlement.answers import TransactionReceipt
from meshnode.settlement.contracts import Authorization
from meshnode.settlement.fees import Fees

State = Literal["prepared", "submitted", "mined", "final", "failed", "replaced"]
Kind = Literal["deposit", "claim", "settle", "initiate-withdraw", "finalize-withdraw", "refund", "fill"]
OPEN: tuple[State, ...] = ("prepared", "submitted", "mined")
MOST_WAITING = 16
"""Nodes keep some 16 transactions of one key whose turn has not come."""
RAISE_AFTER_S = 60.0
"""A transaction in no block for so long is looked at: the base fee may be above what it offers by now."""
RAISE_ANYWAY_S = 300.0
"""It offers enough for the base fee, and still nobody takes it: others pay more for their place."""
MOST_ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class Attempt:
    """A signed transaction as it is sent. `digest` is its hash."""

    digest: bytes
    raw: bytes
    fees: Fees


@dataclass(frozen=True, slots=True)
class Transaction:
    """One purpose, and how far it has come.

    `attempts` share nonce and content, the newest last. `block`, `block_digest` and `succeeded` are set once it is in a
    block. `most_micros` is what it may cost, `fee_micros` what it did, in dollars at the price of the coin that was
    set; `channels` are those it is about. Times are wall time in seconds.
    """

    purpose: str
    kind: Kind
    chain: int
    sender: bytes
    nonce: int
    target: bytes
    data: bytes
    gas: int
    channels: tuple[bytes, ...]
    attempts: tuple[Attempt, ...]
    most_micros: int
    made_at: float
    state: State = "prepared"
    block: int = 0
    block_digest: bytes = b""
    succeeded: bool = False
    fee_micros: int = 0
    ended_at: float = 0.0

    @property
    def is_open(self) -> bool:
        """Whether anything can still happen to it."""
        return self.state in OPEN

    @property
    def newest(self) -> Attempt:
        """The attempt that is sent."""
        return self.attempts[-1]


@dataclass(frozen=True, slots=True)
class Seen:
    """What the chain says: the receipts of attempts that are in a block, by their hash; the newest block that no longer
    changes; and how many transactions of the sender are in blocks up to that one.
    """

    receipts: Mapping[bytes, TransactionReceipt]
    final_block: int
    final_nonce: int


def advanced(transaction: Transaction, seen: Seen) -> Transaction:
    """The transaction as it is after a look at the chain. One that has ended stays as it is."""
    if not transaction.is_open:
        return transaction
    for attempt in transaction.attempts:
        receipt = seen.receipts.get(attempt.digest)
        if receipt is None:
            continue
        state: State = "mined"
        if receipt.block <= seen.final_block:
            state = "final" if receipt.succeeded else "failed"
        return replace(
            transaction,
            state=state,
            block=receipt.block,
            block_digest=receipt.block_digest,
            succeeded=receipt.succeeded,
        )
    if transaction.nonce < seen.final_nonce:
        return replace(transaction, state="replaced", block=0, block_digest=b"", succeeded=False)
    if transaction.state == "mined":
        return replace(transaction, state="submitted", block=0, block_digest=b"", succeeded=False)
    return transaction


def next_nonce(open_ones: Sequence[Transaction], chain_nonce: int) -> int:
    """The nonce of the next transaction of a key: above all that are on their way, and all that the chain has."""
    return max([chain_nonce, *(transaction.nonce + 1 for transaction in open_ones)])


def gap(open_ones: Sequence[Transaction], chain_nonce: int) -> int | None:
    """A nonce that must be used before the first open transaction can be made, if there is one.

    An endpoint that lied about the nonce leaves such a gap, and so does a reorganisation of what was final.
    """
    waiting = [transaction.nonce for transaction in open_ones if transaction.state != "mined"]
    return chain_nonce if waiting and chain_nonce < min(waiting) else None


class TransactionStore(Protocol):
    """Keeps transactions over a crash: whatever a method was given is on the disk when it returns."""

    async def find(self, purpose: str) -> Transaction | None:
        """The transaction of a purpose."""

    async def open_ones(self, chain: int, sender: bytes) -> Sequence[Transaction]:
        """Those that have not ended, by nonce."""

    async def with_nonce(self, chain: int, sender: bytes, nonce: int) -> Sequence[Transaction]:
        """All that ever had this nonce."""

    async def add(self, transaction: Transaction) -> Transaction:
        """Keep a new one; where its purpose has one already, that is returned and nothing is written."""

    async def save(self, transaction: Transaction) -> None:
        """Write its state and its new attempts. One that has ended stays as it is."""

    async def newest(self, chain: int, count: int) -> Sequence[Transaction]:
        """The last that were made, newest first."""

    async def gas(self, chain: int, month: str) -> tuple[int, Mapping[str, int]]:
        """Micro-dollars: what fees came to in a month ("2026-11") and later, and what each open transaction may cost.

        Later ones were counted by a clock that was ahead.
        """

    async def authorization(self, channel: bytes) -> Authorization | None:
        """The deposit into a channel that the payer has signed and the chain may still take."""

    async def keep_authorization(self, channel: bytes, given: Authorization) -> Authorization:
        """Keep one before it leaves this node; where the channel has one already, that is returned instead."""

    async def drop_authorization(self, channel: bytes, salt: bytes) -> None:
        """It was taken, or can be taken no more."""

    async def cursor(self, name: str) -> int:
        """A number that was kept under a name; 0 at first."""

    async def move_cursor(self, name: str, to: int) -> None:
        """Keep it."""
