"""Two ends of a paid stream, in processes of their own or in one: a payer and a provider, to be killed at any step.

They are the node's own purse and till over its own journal, with the frames of the protocol on a Unix socket between
them. There is no engine: a token is four bytes. There is no chain: `stage` writes into both journals that a channel is
open and what it holds.

A *point* is where a crash can matter: before, inside and after each transaction of the journal, before and after each
message. `Points(n)` kills at the n-th of them, by SIGKILL in a process, by `Killed` inside of a test.

`provide` and `pay` are what a process of either side does. A payer tells "r" for each request and "." for each token
that it has received, at once, and ends when it has as many as it wants.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from meshnode import identity
from meshnode.api.paying import PaidCall, Progress
from meshnode.core.pay_policy import Policy
from meshnode.core.prices import Price
from meshnode.earning import Earning
from meshnode.earning_terms import Conditions
from meshnode.errors import MeshnodeError, PaymentRefused
from meshnode.identity import Identity
from meshnode.settlement.contracts import typed
from meshnode.settlement.keys import VoucherKey
from meshnode.settlement.networks import NETWORKS
from meshnode.settlement.store import Store, Work
from meshnode.settlement.store_book import Book
from meshnode.settlement.store_channels import Channel, Role, add_channel
from meshnode.settlement.typed_data import channel_id
from meshnode.spending import Spending
from meshnode.wire.frames import FrameReader, encode_frame
from meshnode.wire.messages import decode_message, encode_message, message_id
from meshnode.wire.payments import (
    ChannelConfig,
    PayAsk,
    PayDue,
    PayHttp,
    PayQuote,
    PayReceipt,
    PayRefused,
    PayVoucher,
)

NETWORK = NETWORKS["base-sepolia"]
PRICE = Price(345_678, 1_234_567)
"""Micro-USDC per million tokens, such that nothing comes out even."""
MODEL, CONTENT_HASH = "tiny", bytes(range(16))
TOKENS_IN, MOST_IN = 50, 400
MOST_OUT = 400
"""Tokens of one request."""
TOKEN = b"four"
DEPOSIT_MICROS = 1_000_000
WAIT_S = 5.0

PAYER = VoucherKey.from_secret(sha256(b"the key of a payer").digest())
RECEIVER = VoucherKey.from_secret(sha256(b"the key of a receiver").digest())
CONFIG = ChannelConfig(
    b"payer of all of it..", PAYER.address, RECEIVER.address, RECEIVER.address, NETWORK.token, 86_400, bytes(32)
)
CHANNEL = channel_id(typed(CONFIG), NETWORK.chain, NETWORK.hub)


class Killed(BaseException):
    """The end of a process that is a part of this one: whatever it does from here on raises this again."""


class _CutOff(Exception):
    """The same, inside of a transaction, which is undone by it."""


class Points:
    """Kills at the point with the number `last`, from 1; 0: never. `passed` counts them."""

    def __init__(self, last: int = 0, *, by_signal: bool = False) -> None:
        self.last = last
        self.passed = 0
        self._by_signal = by_signal

    def __call__(self) -> None:
        """A point."""
        if self.counts():
            self.kill()

    def counts(self) -> bool:
        """One more point; whether it is the end."""
        self.passed += 1
        return 0 < self.last <= self.passed

    def kill(self) -> None:
        """The end."""
        if self._by_signal:
            os.kill(os.getpid(), signal.SIGKILL)
        raise Killed


class FragileStore(Store):
    """A journal that has points before, inside and after each transaction."""

    def __init__(self, folder: Path, points: Points) -> None:
        super().__init__(folder)
        self.points = points

    async def run(self, work: Work[Any]) -> Any:
        """As Store.run."""
        self.points()
        ends_inside = self.points.counts()

        def cut_off(db: sqlite3.Connection) -> Any:
            work(db)
            try:
                self.points.kill()
            except Killed:
                raise _CutOff from None

        try:
            result = await super().run(cut_off if ends_inside else work)
        except _CutOff:
            raise Killed from None
        self.points()
        return result


class Link:
    """One stream: messages as frames, a point before and after each that is sent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, points: Points) -> None:
        self._reader = reader
        self._writer = writer
        self._points = points

    async def send(self, message: Any, *, fragile: bool = True) -> None:
        """Send a message. Raises OSError when nobody is there."""
        if fragile:
            self._points()
        self._writer.write(encode_frame(message_id(message), encode_message(message)))
        await self._writer.drain()
        if fragile:
            self._points()

    async def messages(self) -> AsyncIterator[Any]:
        """Those that come, until the other end is gone."""
        frames = FrameReader()
        with suppress(OSError):
            while data := await self._reader.read(1 << 16):
                for number, body in frames.feed(data):
                    yield decode_message(number, body)

    def close(self) -> None:
        """Hang up."""
        self._writer.close()


class Allowed:
    """The policy of a payer that may spend."""

    policy = Policy(mode="auto", ceiling=PRICE, month_micros=DEPOSIT_MICROS)
    why_not = ""


async def stage(folder: Path) -> None:
    """Give both ends keys, and a channel with DEPOSIT_MICROS between them."""
    for name, role, other in (("payer", "payer", "provider"), ("provider", "receiver", "payer")):
        await _stage_one(folder / name, role, _key_of(folder / other))  # type: ignore[arg-type]


async def _stage_one(folder: Path, role: Role, other: Identity) -> None:
    store = Store(folder)
    await store.start()
    book = Book(store, chain=NETWORK.chain, hub=NETWORK.hub)
    await book.opening(CONFIG, CHANNEL, role, other.node_id)
    facts = {"balance_micros": DEPOSIT_MICROS, "usable_micros": DEPOSIT_MICROS, "claimed_micros": 0}
    await book.seen(CHANNEL, **facts, state="open", withdrawable_at=None)  # type: ignore[arg-type]
    await store.close()


def _key_of(folder: Path) -> Identity:
    return identity.load_or_create(folder / "node.key")


def channel_line(db: sqlite3.Connection, number: int = 1, **values: Any) -> bytes:
    """Write a channel into a journal, open and with DEPOSIT_MICROS unless `values` say otherwise; its id."""
    channel = number.to_bytes(32, "big")
    known: dict[str, Any] = {"state": "open", "balance_micros": DEPOSIT_MICROS, "usable_micros": DEPOSIT_MICROS}
    known |= {"role": "payer", "node": bytes([number]) * 32, "opened_at": float(number), **values}
    add_channel(db, Channel(channel, config=CONFIG, **{"chain": NETWORK.chain, "hub": NETWORK.hub, **known}))
    return channel


# --- the payer ------------------------------------------------------------------------------------------------


class PayerEnd:
    """Asks for tokens until it has as many as it wants. `tell` gets "r" and "."."""

    def __init__(self, folder: Path, points: Points, tell: Callable[[str], object]) -> None:
        self.store = FragileStore(folder / "payer", points)
        self.spending = Spending(
            self.store, standing=lambda: Allowed, key=lambda: PAYER, network=NETWORK, verify=identity.verify
        )
        self._provider = _key_of(folder / "provider").node_id
        self._points = points
        self._tell = tell

    async def start(self) -> None:
        """Open the books."""
        await self.store.start()
        await self.spending.start()

    async def request(self, link: Link, most_out: int) -> int:
        """One request; the tokens that came. Ends early when the provider is gone."""
        call = PaidCall(
            secrets.token_hex(8), self._provider, MODEL, CONTENT_HASH, PRICE, NETWORK.chain, MOST_IN, most_out, 0.0
        )
        payment = await self.spending.begin(call)
        outcome, progress, signed_for = "broken", Progress(), 0
        output = sha256()
        self._tell("r")
        try:
            ask, voucher = await payment.ask()
            await link.send(ask)
            if voucher is not None:
                await link.send(voucher)
            async for message in link.messages():
                voucher = None
                match message:
                    case PayQuote(quote):
                        voucher = await payment.quoted(quote)
                    case PayHttp(data, tokens_in, tokens_out):
                        output.update(data)
                        progress = Progress(progress.text_bytes + len(data), tokens_in, tokens_out)
                        self._tell(".")
                        if tokens_out - signed_for >= payment.step_tokens:
                            signed_for = tokens_out
                            voucher = await payment.received(progress)
                    case PayDue():
                        voucher = await payment.due(message, progress)
                    case PayReceipt(receipt):
                        voucher = await payment.receipt(receipt, progress, output.hexdigest())
                        outcome = "whole"
                    case PayRefused(code, text):
                        raise PaymentRefused(text, pay_code=code)
                if voucher is not None:
                    await link.send(voucher)
                if outcome == "whole":
                    break
        except OSError:
            pass
        finally:
            await payment.ended(outcome, progress)
        return progress.tokens_out

    async def close(self) -> None:
        """Close the books."""
        await self.spending.close()
        await self.store.close()


# --- the provider ---------------------------------------------------------------------------------------------


class ProviderEnd:
    """Gives as many tokens as are asked for and paid."""

    def __init__(self, folder: Path, points: Points) -> None:
        key = _key_of(folder / "provider")
        self.store = FragileStore(folder / "provider", points)
        self.earning = Earning(
            self.store,
            node=key.node_id,
            sign=key.sign,
            price=lambda _: PRICE,
            content_hash=lambda _: CONTENT_HASH,
            conditions=Conditions(RECEIVER.address, RECEIVER.address),
            network=NETWORK,
            look=self._nothing_new,
        )
        self._payer = _key_of(folder / "payer").node_id

    async def start(self) -> None:
        """Open the accounts."""
        await self.store.start()
        await self.earning.start()

    async def serve(self, link: Link) -> None:
        """One request."""
        messages = link.messages()
        ask = await anext(messages, None)
        if not isinstance(ask, PayAsk):
            return
        try:
            sale = await self.earning.open(self._payer, ask, model=MODEL, content_hash=CONTENT_HASH)
        except PaymentRefused as reason:
            await link.send(PayRefused(reason.pay_code, reason.detail[:200]), fragile=False)
            return
        news, gone = asyncio.Event(), asyncio.Event()

        async def take() -> None:
            try:
                async for message in messages:
                    if isinstance(message, PayVoucher):
                        await sale.voucher(message)
                        news.set()
            finally:
                gone.set()
                news.set()

        taking = asyncio.create_task(take())
        output, given, finish = sha256(), 0, "cancelled"
        try:
            with suppress(OSError):
                await link.send(PayQuote(sale.quote))
                while given < ask.most_out and not gone.is_set():
                    if not sale.may_emit(TOKENS_IN, given + 1):
                        news.clear()
                        await link.send(sale.due(TOKENS_IN, given + 1), fragile=False)
                        await news.wait()
                        continue
                    given += 1
                    output.update(TOKEN)
                    await link.send(PayHttp(TOKEN, TOKENS_IN, given), fragile=False)
                finish = "length" if given == ask.most_out else "cancelled"
            receipt = await sale.ended(TOKENS_IN if given else 0, given, finish, output.hexdigest())
            with suppress(OSError):
                await link.send(PayReceipt(receipt))
            async with asyncio.timeout(WAIT_S):
                await gone.wait()
        finally:
            taking.cancel()
            results = await asyncio.gather(taking, return_exceptions=True)
        for result in results:
            if isinstance(result, Killed | Exception):
                raise result

    async def close(self) -> None:
        """Close the accounts."""
        await self.store.close()

    async def _nothing_new(self, *_: object) -> None:
        """There is no chain to ask."""


# --- processes ------------------------------------------------------------------------------------------------


def provide(folder: Path, socket: Path, point: int, marks: Connection) -> None:
    """Serve on the socket until SIGTERM, or until that point."""
    asyncio.run(_provide(folder, socket, Points(point, by_signal=True)))


def pay(folder: Path, socket: Path, point: int, tokens: int, marks: Connection) -> None:
    """Get so many tokens from whoever serves on the socket, or stop at that point."""
    asyncio.run(_pay(folder, socket, Points(point, by_signal=True), tokens, marks))


async def _provide(folder: Path, socket: Path, points: Points) -> None:
    end = ProviderEnd(folder, points)
    await end.start()
    tasks: set[asyncio.Task[None]] = set()

    async def come(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(reader, writer, points)
        task = asyncio.ensure_future(end.serve(link))
        tasks.add(task)
        with suppress(OSError, MeshnodeError, TimeoutError):
            await task
        tasks.discard(task)
        link.close()

    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    socket.unlink(missing_ok=True)
    async with await asyncio.start_unix_server(come, socket):
        await ended.wait()
    await asyncio.gather(*tasks, return_exceptions=True)
    await end.close()


async def _pay(folder: Path, socket: Path, points: Points, tokens: int, marks: Connection) -> None:
    end = PayerEnd(folder, points, lambda mark: marks.send_bytes(mark.encode()))
    await end.start()
    while tokens > 0:
        try:
            reader, writer = await asyncio.open_unix_connection(socket)
        except OSError:
            await asyncio.sleep(0.01)  # the provider is being started again
            continue
        link = Link(reader, writer, points)
        try:
            tokens -= await end.request(link, min(tokens, MOST_OUT))
        finally:
            link.close()
    await end.close()
