"""An RPC endpoint that lags, lies or dies: a small HTTP proxy before an honest one.

    async with RogueRpc(anvil.url) as rogue:
        rogue.lies["eth_getBalance"] = lambda params, honest: "0x0"     what it says instead of the honest answer
        rogue.kept_back = {"eth_sendRawTransaction"}                    what it hands on to nobody, and lies about
        rogue.behind = 2                                                its newest block is two older than it is
        rogue.conduct = "hangs"                                         or one of CONDUCTS, for every question

What it was asked stands in `asked`, so that a test can count what was sent to the chain.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Self

import aiohttp
from aiohttp import web

Conduct = Literal["honest", "hangs", "dies", "dies once", "floods", "babbles", "fails", "redirects", "empty"]
FLOOD_BYTES = 4 << 20
BABBLE = b'{"jsonrpc":"2.0","id":0,"result":{"hash":17,"number":"soon"}}'
SECRET = "k3y-of-the-owner"
"""Part of its address, as providers do it; nothing may ever show it."""
_TAGGED = {
    **dict.fromkeys(("eth_call", "eth_getBalance", "eth_getCode", "eth_getTransactionCount"), 1),
    "eth_getBlockByNumber": 0,
}
"""Where the block stands among the parameters."""


class Fails(Exception):
    """Raised by a lie: the endpoint answers with a JSON-RPC error, with these words and this data."""

    def __init__(self, words: str, data: str | None = None) -> None:
        super().__init__(words)
        self.data = data


class RogueRpc:
    """A proxy on a free port of the loopback; `url` is where it answers."""

    def __init__(self, honest_url: str) -> None:
        self._honest_url = honest_url
        self.conduct: Conduct = "honest"
        self.lies: dict[str, Callable[[list[Any], Any], Any]] = {}
        self.kept_back: set[str] = set()
        self.behind = 0
        self.asked: list[tuple[str, list[Any]]] = []
        self.url = ""
        self._hung = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession()
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(application, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/v2/{SECRET}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hung.set()
        await self._session.close()
        await self._runner.cleanup()

    def count(self, method: str) -> int:
        """How often it was asked that."""
        return sum(1 for asked, _ in self.asked if asked == method)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.asked.append((body["method"], body["params"]))
        match self.conduct:
            case "hangs":
                await self._hung.wait()
            case "dies" | "dies once":
                self.conduct = "dies" if self.conduct == "dies" else "honest"
                assert request.transport is not None
                request.transport.close()
                return web.Response()
            case "floods":
                return web.Response(body=b'{"jsonrpc":"2.0","id":0,"result":"0x' + b"00" * FLOOD_BYTES + b'"}')
            case "babbles":
                return web.Response(body=BABBLE)
            case "fails":
                return web.Response(status=502, text=f"<html>bad gateway at {request.path}</html>")
            case "redirects":
                raise web.HTTPTemporaryRedirect(self._honest_url)
            case "empty":
                return web.Response(body=b"")
        try:
            answer = await self._said(body)
        except Fails as error:
            said = {"code": 3 if error.data else -32000, "message": str(error), "data": error.data}
            answer = {"jsonrpc": "2.0", "id": body["id"], "error": said}
        return web.json_response(answer)

    async def _said(self, body: dict[str, Any]) -> dict[str, Any]:
        method, params = body["method"], list(body["params"])
        place = _TAGGED.get(method)
        if self.behind and place is not None and params[place] == "latest":
            params[place] = hex(await self._head() - self.behind)
        answer = await self._honest(method, params) if method not in self.kept_back else {"result": None}
        if method in self.lies:
            answer = {"jsonrpc": "2.0", "result": self.lies[method](params, answer.get("result"))}
        return {**answer, "id": body["id"]}

    async def _head(self) -> int:
        return int((await self._honest("eth_blockNumber", []))["result"], 16)

    async def _honest(self, method: str, params: list[Any]) -> dict[str, Any]:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        async with self._session.post(self._honest_url, json=body) as answer:
            found: dict[str, Any] = await answer.json()
            return found
