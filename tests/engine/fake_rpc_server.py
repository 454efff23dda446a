"""A stand-in for engine/rpc_server.RpcServer that starts nothing and writes down what is done to it."""

from __future__ import annotations

import asyncio

from meshnode.engine.rpc_server import RpcDeviceFacts, RpcFacts, RpcServerParts
from meshnode.errors import MeshnodeError

HELLO = bytes([7, 0, 0]) + bytes(25)
DEVICE = RpcDeviceFacts(128, (1 << 64) - 1, 8 << 30, 8 << 30)


class FakeRpcServer:
    """One server; all that were made are in `made`. Tests set what the next ones do."""

    made: list[FakeRpcServer] = []
    error: MeshnodeError | None = None
    hello = HELLO
    device = DEVICE
    hold: asyncio.Event | None = None

    def __init__(self, parts: RpcServerParts) -> None:
        self.parts = parts
        self.port = 0
        self.facts = RpcFacts(b"", ())
        self.events: list[str] = []
        FakeRpcServer.made.append(self)

    @classmethod
    def reset(cls) -> None:
        cls.made, cls.error, cls.hello, cls.device, cls.hold = [], None, HELLO, DEVICE, None

    async def start(self) -> None:
        self.events.append("start")
        if self.hold is not None:
            await self.hold.wait()
        if self.error is not None:
            raise self.error
        self.port = 50_000 + len(self.made)
        self.facts = RpcFacts(self.hello, (self.device,) * max(1, len(self.parts.devices)))

    async def stop(self, grace_s: float = 1.0) -> None:
        self.events.append("stop")

    def working(self) -> bool:
        return True

    @property
    def runs(self) -> bool:
        return bool(self.port) and self.events[-1] == "start"
