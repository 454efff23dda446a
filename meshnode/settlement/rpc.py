"""Endpoints of a chain that are believed only where they agree.

Every read that decides about money is asked of all endpoints, at one block that all of them have, and is true when as
many as QUORUM answer the same and none answers otherwise. Endpoints that are some blocks apart are no reason to worry:
the lower block is asked for. Where they are further apart, or answer differently, they are asked again after a moment,
since one of them may have seen a reorganisation first; then neither is believed (ChainDisagrees).

Alarms are the other way round: what one endpoint alone says of a withdrawal is acted upon, because acting on it costs a
fee at most, and missing it costs the channel (`any_logs`, `any_call`).

One endpoint alone has nobody to agree with. That is allowed on test networks and for a node of one's own nearby.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Literal, TypeVar
from urllib.parse import urlsplit

from meshnode.errors import ChainDisagrees, ChainUnreachable, SettingsError, TransactionFailed
from meshnode.settlement.answers import Block, Call, EndpointFailed, Log, Refused, Reverted, TransactionReceipt
from meshnode.settlement.endpoint import Endpoint, is_near

Answer = TypeVar("Answer")
QUORUM = 2
MOST_ENDPOINTS = 4
LAG_BLOCKS = 3
ATTEMPTS = 4
PAUSE_S = 0.5
"""Between two attempts, growing: a block of an OP chain takes two seconds."""
UNFINAL_BLOCKS = 64
"""How deep a block counts as final where an endpoint does not know the tag `safe`."""


class RpcPair:
    """The endpoints of one chain, one or more. Reads raise ChainUnreachable and ChainDisagrees."""

    def __init__(
        self, endpoints: Sequence[Endpoint], *, lag_blocks: int = LAG_BLOCKS, pause_s: float = PAUSE_S
    ) -> None:
        self._endpoints = tuple(endpoints)
        self._quorum = min(QUORUM, len(self._endpoints))
        self._lag_blocks = lag_blocks
        self._pause_s = pause_s
        self._heads: dict[str, int | None] = {endpoint.shown: None for endpoint in endpoints}

    @classmethod
    async def of(cls, urls: Sequence[str], *, testnet: bool, pause_s: float = PAUSE_S) -> RpcPair:
        """Open endpoints. Raises SettingsError where there are too few to agree, or an address cannot be one."""
        if not 0 < len(set(urls)) <= MOST_ENDPOINTS:
            raise SettingsError(f"name one to {MOST_ENDPOINTS} RPC endpoints with --rpc")
        hosts = {urlsplit(url).hostname or "" for url in urls}
        if len(hosts) < QUORUM and not testnet and not all(is_near(host) for host in hosts):
            raise SettingsError("real money needs two RPC endpoints of different hands, or a node of your own: --rpc")
        return cls([await Endpoint.open(url) for url in dict.fromkeys(urls)], pause_s=pause_s)

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(endpoint.close() for endpoint in self._endpoints), return_exceptions=True)

    def __repr__(self) -> str:
        return f"RpcPair({', '.join(endpoint.shown for endpoint in self._endpoints)})"

    @property
    def alone(self) -> bool:
        """Nobody checks what the one endpoint says."""
        return self._quorum < QUORUM

    def facts(self) -> list[dict[str, object]]:
        """Each endpoint without its key, whether it answered last, and how many blocks it is behind the best."""
        best = max((head for head in self._heads.values() if head is not None), default=0)
        return [
            {"url": shown, "ok": head is not None, "behind": best - head if head is not None else None}
            for shown, head in self._heads.items()
        ]

    # --- reads on which money depends ---

    async def agreed(self, what: str, question: Callable[[Endpoint, int], Awaitable[Answer]]) -> Answer:
        """The answer that the endpoints agree on, at the newest block that all of them have."""
        return (await self.agreed_at(what, question))[1]

    async def agreed_at(self, what: str, question: Callable[[Endpoint, int], Awaitable[Answer]]) -> tuple[int, Answer]:
        """As `agreed`, with the number of the block. Raises Reverted where the contract refuses it, by all accounts."""
        apart, words = "", ""
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(self._pause_s * attempt)
            heads = await self._all(lambda endpoint: endpoint.block())
            if len(heads) < self._quorum:
                continue
            numbers = [head.number for _, head in heads]
            block = min(numbers)
            if max(numbers) - block > self._lag_blocks:
                apart = f"their newest blocks are {block} and {max(numbers)}"
                continue
            answers, words = await self._answers([endpoint for endpoint, _ in heads], partial(_at, question, block))
            if len(answers) >= self._quorum:
                if all(_same(answer, answers[0]) for answer in answers):
                    return block, _given(answers[0])
                apart = what
        if apart:
            raise ChainDisagrees(apart)
        raise ChainUnreachable(words or f"too few endpoints answer: {self!r}")

    async def _answers(
        self, endpoints: Sequence[Endpoint], question: Callable[[Endpoint], Awaitable[Answer]]
    ) -> tuple[list[Answer | Reverted], str]:
        """What each says, a refusal of the contract among it, and the words of one that says nothing else."""
        found = await asyncio.gather(*(question(endpoint) for endpoint in endpoints), return_exceptions=True)
        answers: list[Answer | Reverted] = []
        words = ""
        for endpoint, answer in zip(endpoints, found, strict=True):
            if isinstance(answer, EndpointFailed | Refused):
                self._heads[endpoint.shown] = None
                words = str(answer)
            elif isinstance(answer, Reverted) or not isinstance(answer, BaseException):
                answers.append(answer)
            else:
                raise answer
        return answers, words

    async def chain_id(self) -> int:
        return await self.agreed("the number of the chain", lambda endpoint, _: endpoint.chain_id())

    async def head(self) -> Block:
        """The newest block that the endpoints agree on, with its time."""
        return await self.agreed("the newest block", lambda endpoint, block: endpoint.block(block))

    async def block(self, number: int) -> Block:
        """An older block."""
        return await self.agreed("an older block", lambda endpoint, _: endpoint.block(number))

    async def final(self, tag: Literal["safe", "finalized"] = "safe") -> int:
        """The number of a block up to which nothing changes any more: by the tag, else UNFINAL_BLOCKS deep."""

        async def tagged(endpoint: Endpoint) -> int:
            try:
                return (await endpoint.block(tag)).number
            except Refused:
                return max(0, (await endpoint.block()).number - UNFINAL_BLOCKS)

        found = await self._all(tagged)
        if len(found) < self._quorum:
            raise ChainUnreachable(f"too few endpoints answer: {self!r}")
        return min(number for _, number in found)

    async def call(self, target: bytes, data: bytes, *, sender: bytes = bytes(20), block: int | None = None) -> bytes:
        """What a call returns, at the newest common block or at an older one that is named.

        Raises TransactionFailed where the contract refuses it.
        """
        message = Call(sender, target, data)
        try:
            return await self.agreed(
                f"an answer of {target.hex()[:8]}",
                lambda endpoint, newest: endpoint.call(message, newest if block is None else block),
            )
        except Reverted as refused:
            raise TransactionFailed(str(refused)) from None

    async def simulate(self, message: Call) -> bytes:
        """What a transaction would return now. Raises Reverted with the contract's reason."""
        return await self.agreed("a simulation", lambda endpoint, block: endpoint.call(message, block))

    async def code(self, address: bytes) -> bytes:
        return await self.agreed("code of an address", lambda endpoint, block: endpoint.code(address, block))

    async def wei(self, address: bytes) -> int:
        """The balance in the chain's own coin."""
        return await self.agreed("a balance", lambda endpoint, block: endpoint.wei(address, block))

    async def nonce(self, address: bytes, block: int | None = None) -> int:
        """How many transactions of a key are in blocks up to that one."""
        return await self.agreed(
            "a nonce", lambda endpoint, newest: endpoint.nonce(address, newest if block is None else block)
        )

    async def receipt(self, digest: bytes) -> TransactionReceipt | None:
        """None where the transaction is in no block, by all accounts; one endpoint may be behind (ChainDisagrees)."""
        found = [receipt for _, receipt in await self._all(lambda endpoint: endpoint.receipt(digest))]
        if len(found) < self._quorum:
            raise ChainUnreachable(f"too few endpoints answer: {self!r}")
        first = found[0]
        for other in found:
            if (other is None) != (first is None) or (
                other is not None
                and first is not None
                and (other.block_digest, other.succeeded) != (first.block_digest, first.succeeded)
            ):
                raise ChainDisagrees("what became of a transaction")
        return first

    # --- reads that only cost a fee when they are wrong ---

    async def priority_fees_wei(self) -> tuple[int, ...]:
        """Fees of the last blocks, by the endpoint that says the least: one that exaggerates costs nothing then."""
        found = await self._all(lambda endpoint: endpoint.priority_fees_wei())
        if not found:
            raise ChainUnreachable(f"no endpoint answers: {self!r}")
        return min((fees for _, fees in found), key=sum)

    async def estimate(self, message: Call) -> int:
        """The most gas that an endpoint expects. Raises Reverted where none expects it to succeed."""
        found, words = await self._answers(self._endpoints, lambda endpoint: endpoint.estimate(message))
        expected = [gas for gas in found if not isinstance(gas, Reverted)]
        if not found:
            raise ChainUnreachable(words or repr(self))
        return max(expected) if expected else _given(found[0])

    async def any_logs(self, address: bytes, topics: Sequence[Sequence[bytes]], first: int, last: int) -> list[Log]:
        """Every log that any endpoint knows. Raises ChainUnreachable when none answers."""
        found = await self._all(lambda endpoint: endpoint.logs(address, topics, first, last))
        if not found:
            raise ChainUnreachable(f"no endpoint answers: {self!r}")
        return list(dict.fromkeys(log for _, logs in found for log in logs))

    async def any_call(self, target: bytes, data: bytes) -> list[bytes]:
        """What each endpoint that answers gives for a call now. Raises ChainUnreachable when none answers."""
        message = Call(bytes(20), target, data)
        found = await self._all(lambda endpoint: endpoint.call(message))
        if not found:
            raise ChainUnreachable(f"no endpoint answers: {self!r}")
        return [answer for _, answer in found]

    async def lowest_head(self) -> int:
        """The number of a block that every endpoint has that answers, however far they are apart."""
        found = await self._all(lambda endpoint: endpoint.block())
        if not found:
            raise ChainUnreachable(f"no endpoint answers: {self!r}")
        return min(block.number for _, block in found)

    async def broadcast(self, raw: bytes) -> str:
        """Hand a signed transaction to every endpoint. Returns "" when one took it, else what they said.

        Neither decides anything: whether a transaction is made is read from the chain alone.
        """
        words: list[str] = []

        async def one(endpoint: Endpoint) -> None:
            try:
                await endpoint.broadcast(raw)
            except (Refused, Reverted, EndpointFailed) as error:
                words.append(str(error))

        await asyncio.gather(*(one(endpoint) for endpoint in self._endpoints))
        return "" if len(words) < len(self._endpoints) else words[0]

    async def _all(self, question: Callable[[Endpoint], Awaitable[Answer]]) -> list[tuple[Endpoint, Answer]]:
        """The endpoints that answer, with what they say."""
        found = await asyncio.gather(*(question(endpoint) for endpoint in self._endpoints), return_exceptions=True)
        answered: list[tuple[Endpoint, Answer]] = []
        for endpoint, answer in zip(self._endpoints, found, strict=True):
            if isinstance(answer, EndpointFailed | Refused | Reverted):
                self._heads[endpoint.shown] = None
            elif isinstance(answer, BaseException):
                raise answer
            else:
                answered.append((endpoint, answer))
                self._heads[endpoint.shown] = (
                    answer.number if isinstance(answer, Block) else self._heads[endpoint.shown]
                )
        return answered


def _at(question: Callable[[Endpoint, int], Awaitable[Answer]], block: int, endpoint: Endpoint) -> Awaitable[Answer]:
    return question(endpoint, block)


def _same(one: object, other: object) -> bool:
    """Whether two endpoints say the same; of a refusal only the contract's reason counts, not the endpoint's words."""
    if isinstance(one, Reverted) or isinstance(other, Reverted):
        return isinstance(one, Reverted) and isinstance(other, Reverted) and one.data == other.data
    return one == other


def _given(answer: Answer | Reverted) -> Answer:
    if isinstance(answer, Reverted):
        raise answer
    return answer
