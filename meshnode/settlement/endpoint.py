"""One RPC endpoint of a chain, spoken to with web3: bounded in time and bytes, its answers not believed.

An endpoint is a stranger's server. Whatever it does (refuses, hangs, sends too much or nonsense, fails in words) is one
of three things here: EndpointFailed, Reverted (the contract said no) or Refused (the endpoint said no). Its address may
hold a key, so nothing shows more of it than scheme and host: neither log, nor error, nor repr. It is never followed
elsewhere: no redirects, no cookies, no proxy, and no off-chain lookups (EIP-3668), by which a contract could make this
node fetch an address of its choice.

web3 takes a second to import. `Endpoint.open` does that in a thread; this module does not import it.
"""

from __future__ import annotations

import asyncio
import importlib
import ipaddress
import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from meshnode.errors import SettingsError
from meshnode.settlement import answers
from meshnode.settlement.abi_codec import plain_text
from meshnode.settlement.addresses import shown
from meshnode.settlement.answers import Block, Call, EndpointFailed, Log, Refused, Reverted, TransactionReceipt

TIMEOUT_S = 10.0
KEEP_S = 5.0
"""An idle connection is used again for so long: servers close theirs after a similar time."""
MOST_BODY_BYTES = 1 << 20
"""The largest honest answer is a page of logs: some 500 bytes each, of this node's channels only."""


def checked_url(text: str) -> str:
    """The address of an endpoint. Raises SettingsError for one that is not https, unless it is on a machine nearby."""
    parts = urlsplit(text)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == -1:
        raise SettingsError("an RPC endpoint is an address that begins with https://")
    if parts.scheme == "http" and not is_near(parts.hostname):
        raise SettingsError(
            f"the RPC endpoint at {parts.hostname} needs https: anyone between could change its answers"
        )
    return text


def is_near(host: str) -> bool:
    """Whether a host is this machine or one of a private network, by its name alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return False


def shown_url(url: str) -> str:
    """What may be shown of an endpoint's address: paths, queries and user names are where providers put keys."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")


class Endpoint:
    """Questions to one endpoint. Every one raises EndpointFailed or Refused; calls also Reverted."""

    def __init__(self, url: str, web3: Any, name: str) -> None:
        self._url = url
        self._web3 = web3
        self.shown = name

    @classmethod
    async def open(cls, url: str, *, timeout_s: float = TIMEOUT_S, most_body_bytes: int = MOST_BODY_BYTES) -> Endpoint:
        """An endpoint that has not been asked anything yet. Raises SettingsError for an address that cannot be one."""
        checked_url(url)
        made = await asyncio.to_thread(_connected, url, timeout_s, most_body_bytes)
        return cls(url, made, shown_url(url))

    async def close(self) -> None:
        """Close its connections."""
        await self._web3.provider.disconnect()

    def __repr__(self) -> str:
        return f"Endpoint({self.shown})"

    async def chain_id(self) -> int:
        return answers.whole(await self._asked(self._web3.eth.chain_id))

    async def block(self, block: int | str = "latest") -> Block:
        """A block by its number, or by a tag: latest, safe, finalized."""
        return answers.block(await self._asked(self._web3.eth.get_block(block)))

    async def call(self, call: Call, block: int | str = "latest") -> bytes:
        """What the call returns at the end of that block."""
        return bytes(await self._asked(self._web3.eth.call(call.fields(), block, ccip_read_enabled=False)))

    async def estimate(self, call: Call) -> int:
        """The gas it takes now."""
        return answers.whole(await self._asked(self._web3.eth.estimate_gas(call.fields())))

    async def code(self, address: bytes, block: int | str = "latest") -> bytes:
        return bytes(await self._asked(self._web3.eth.get_code(shown(address), block)))

    async def wei(self, address: bytes, block: int | str = "latest") -> int:
        """The balance in the chain's own coin."""
        return answers.whole(await self._asked(self._web3.eth.get_balance(shown(address), block)))

    async def nonce(self, address: bytes, block: int | str = "latest") -> int:
        """How many transactions of this key the chain has."""
        return answers.whole(await self._asked(self._web3.eth.get_transaction_count(shown(address), block)))

    async def priority_fees_wei(self, blocks: int = 10) -> tuple[int, ...]:
        """What the median transaction of each of the last blocks paid above the base fee, per gas."""
        history = await self._asked(self._web3.eth.fee_history(blocks, "latest", [50.0]))
        return tuple(answers.whole(rewards[0]) for rewards in answers.member(history, "reward", Sequence) if rewards)

    async def receipt(self, digest: bytes) -> TransactionReceipt | None:
        """None while the transaction is in no block, as far as this endpoint knows."""
        from web3.exceptions import TransactionNotFound

        try:
            found = await self._asked(self._web3.eth.get_transaction_receipt(digest), TransactionNotFound)
        except TransactionNotFound:
            return None
        if bytes(answers.member(found, "transactionHash", bytes)) != digest:
            raise EndpointFailed(f"{self.shown} answers with another transaction")
        return answers.receipt(found)

    async def logs(self, address: bytes, topics: Sequence[Sequence[bytes]], first: int, last: int) -> list[Log]:
        """Logs of a contract from block `first` to `last`; each place of `topics` lists what may stand there."""
        wanted = {
            "address": shown(address),
            "topics": [["0x" + topic.hex() for topic in place] for place in topics],
            "fromBlock": first,
            "toBlock": last,
        }
        found = await self._asked(self._web3.eth.get_logs(wanted))
        if not isinstance(found, Sequence):
            raise EndpointFailed(f"{self.shown} answers with no logs")
        return [answers.log(item) for item in found]

    async def broadcast(self, raw: bytes) -> None:
        """Hand a signed transaction on. Returning says nothing of whether it will be in a block; nor does failing."""
        await self._asked(self._web3.eth.send_raw_transaction(raw))

    async def _asked(self, question: Any, *expected: type[Exception]) -> Any:
        """Await web3's answer; what goes wrong on the way becomes one of the three exceptions."""
        from web3.exceptions import ContractLogicError, Web3RPCError

        try:
            return await question
        except expected:
            raise
        except ContractLogicError as error:
            raise Reverted(self._clean(str(error.message or "")), answers.revert_data(error.data)) from None
        except Web3RPCError as error:
            raise Refused(self._clean(answers.refusal(error.rpc_response))) from None
        except EndpointFailed:
            raise
        except Exception as error:  # a hostile answer fails anywhere in web3's formatters, with any exception
            raise EndpointFailed(f"{self.shown} does not answer ({type(error).__name__})") from None

    def _clean(self, text: str) -> str:
        """Words of the endpoint: bounded, and without its own address, should it repeat that."""
        parts = urlsplit(self._url)
        for secret in (self._url, parts.path.strip("/"), parts.query, parts.password or "", parts.username or ""):
            if len(secret) > 3:
                text = text.replace(secret, "...")
        return plain_text(text)


def _keep_recursion_limit() -> None:
    """A package of web3 sets the recursion limit of Python to a hundred thousand when it is imported. With that, some
    thousand brackets of JSON, from whomever, overflow the stack of the process instead of raising RecursionError.
    """
    limit = sys.getrecursionlimit()
    importlib.import_module("py_ecc")
    sys.setrecursionlimit(limit)


def _connected(url: str, timeout_s: float, most_body_bytes: int) -> Any:
    """web3 over a provider with bounds. Runs in a thread: the import takes a second."""
    aiohttp = importlib.import_module("aiohttp")
    _keep_recursion_limit()
    from web3 import AsyncHTTPProvider, AsyncWeb3
    from web3.middleware import ExtraDataToPOAMiddleware

    class BoundedProvider(AsyncHTTPProvider):
        """As web3's, which has no bound of bytes, follows redirects and logs the whole address."""

        _session: Any = None

        def __str__(self) -> str:
            return f"RPC connection {shown_url(url)}"

        async def make_request(self, method: Any, params: Any) -> Any:
            if self._session is None:
                self._session = aiohttp.ClientSession(
                    timeout=aiohttp.ClientTimeout(total=timeout_s),
                    connector=aiohttp.TCPConnector(keepalive_timeout=KEEP_S),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    auto_decompress=False,
                    headers={"Content-Type": "application/json", "Accept-Encoding": "identity"},
                )
            body = self.encode_rpc_request(method, params)
            try:
                received = await self._posted(body)
            except aiohttp.ServerDisconnectedError:  # it closed an idle connection at this very moment
                received = await self._posted(body)
            decoded = self.decode_rpc_response(received)
            if not isinstance(decoded, dict) or not ("result" in decoded or "error" in decoded):
                raise EndpointFailed(f"{shown_url(url)} answers with no JSON-RPC")
            return decoded

        async def _posted(self, body: bytes) -> bytes:
            async with self._session.post(url, data=body, allow_redirects=False) as answer:
                received = await _bounded(answer.content, most_body_bytes)
                if answer.status != 200 and not received.lstrip().startswith(b"{"):
                    raise EndpointFailed(f"{shown_url(url)} answers with HTTP status {answer.status}")
                return received

        async def disconnect(self) -> None:
            if self._session is not None:
                await self._session.close()

    made: Any = AsyncWeb3(BoundedProvider(url, exception_retry_configuration=None), middleware=[])
    made.middleware_onion.inject(ExtraDataToPOAMiddleware, layer=0)  # else no block of Polygon can be read
    return made


async def _bounded(content: Any, most_bytes: int) -> bytes:
    received = bytearray()
    async for chunk in content.iter_any():
        received += chunk
        if len(received) > most_bytes:
            raise EndpointFailed(f"the answer is longer than {most_bytes} bytes")
    return bytes(received)
