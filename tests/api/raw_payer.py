"""A payer that signs what a test says, when it says so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from meshnode.core.prices import charge
from meshnode.net.stream import MeshStream, StreamReset
from meshnode.wire.frames import FrameReader, encode_frame
from meshnode.wire.messages import decode_message, encode_message, message_id
from meshnode.wire.payments import (
    PayAsk,
    PayHttp,
    PayVoucher,
    pieces,
)
from tests.api.fake_llama import FakeLlamaServer
from tests.api.fake_money import CHAIN, PRICE, PROMPT_TOKENS, FakeTill, sign_voucher
from tests.api.paid_stage import Provider, line_to
from tests.api.running import CHAT, STREAM

TOKENS = 40
WHOLE = charge(PRICE, PROMPT_TOKENS, TOKENS)


class RawPayer:
    """A payer that signs what it is told to, when it is told to. `came` are the messages, `http` the bytes of HTTP."""

    def __init__(self, stream: MeshStream) -> None:
        self.stream = stream
        self.came: list[Any] = []
        self.http = b""
        self.code: int | None = None
        self._news = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    def send(self, *messages: Any) -> None:
        for message in messages:
            with suppress(OSError):
                self.stream.write(encode_frame(message_id(message), encode_message(message)))

    def ask(self, body: object = STREAM, path: str = CHAT, *, most_out: int = 200, request: str = "req_1") -> None:
        raw = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: llama-server\r\nContent-Length: {len(raw)}\r\n\r\n".encode()
        self.send(PayAsk(request, "demo", most_out, CHAIN), *pieces(head + raw))

    async def _read(self) -> None:
        frames = FrameReader()
        try:
            while data := await self.stream.read(1 << 16):
                for number, body in frames.feed(data):
                    message = decode_message(number, body)
                    self.came.append(message)
                    if isinstance(message, PayHttp):
                        self.http += message.data
                self._news.set()
        except StreamReset as reset:
            self.code = reset.code
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                self._news.clear()
                await self._news.wait()

    async def over(self) -> None:
        async with asyncio.timeout(5):
            await self._reading

    def all(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.came if isinstance(message, kind)]

    @property
    def tokens(self) -> int:
        """How many tokens were given."""
        return self.http.count(b'"content":"word')


@asynccontextmanager
async def at(till: FakeTill, llama: FakeLlamaServer, **limits: int) -> AsyncIterator[tuple[RawPayer, Provider]]:
    provider = Provider(llama, till, **limits)
    async with line_to(provider) as line:
        yield RawPayer(line.stream()), provider


def covers(tokens_out: int, tokens_in: int = PROMPT_TOKENS) -> PayVoucher:
    return sign_voucher(charge(PRICE, tokens_in, tokens_out))
