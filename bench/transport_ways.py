"""Two ways from one process to another for bench.transport: aioquic's asyncio API, and our endpoint.

Both are used through `Flow`, one stream. aioquic's drain() returns at once whatever is queued, so on its side a writer
waits while more than four megabytes are not acknowledged; otherwise a transfer would be measured that fills the memory
first.
"""

from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from aioquic.asyncio import QuicConnectionProtocol, connect, serve
from aioquic.quic.configuration import QuicConfiguration
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from meshnode.identity import Identity, NodeId
from meshnode.net.address import Address
from meshnode.net.endpoint import Endpoint, EndpointOptions
from meshnode.net.link import Link
from meshnode.net.stream import MeshStream

WAYS = ("stock", "tuned", "fast")
UNACKNOWLEDGED_BYTES = 4 << 20
HOST = "127.0.0.1"


class Flow(Protocol):
    """One stream, whichever side it belongs to."""

    async def read(self, limit_bytes: int) -> bytes:
        """At most so many bytes, b"" at the end."""

    async def read_exactly(self, n: int) -> bytes:
        """Exactly so many, or asyncio.IncompleteReadError."""

    def write(self, data: bytes) -> None:
        """Queue data."""

    async def drain(self) -> None:
        """Wait while too much is queued."""

    def write_eof(self) -> None:
        """End this direction."""


Serve = Callable[[Flow], Awaitable[None]]
"""What a server does with a stream."""
OpenFlow = Callable[[], Awaitable[Flow]]
Attack = Callable[[], Awaitable[dict[str, Any]]]
Use = Callable[[OpenFlow, Attack], Awaitable[None]]
"""What a client does: it is handed what opens a stream, and the attack of `overrun`."""


# --- aioquic's asyncio API ------------------------------------------------------------------------------------


class StockProtocol(QuicConnectionProtocol):
    """Wakes a writer once little enough is unacknowledged."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    def unacknowledged(self, stream_id: int) -> int:
        """Bytes of a stream that are queued or under way."""
        stream = self._quic._streams.get(stream_id)
        return 0 if stream is None else stream.sender._buffer_stop - stream.sender._buffer_start

    async def drain(self, stream_id: int) -> None:
        """Wait while more than the limit is unacknowledged, until no more than half of it is."""
        if self.unacknowledged(stream_id) > UNACKNOWLEDGED_BYTES:
            future = asyncio.get_running_loop().create_future()
            self._waiting.append((stream_id, future))
            await future

    def transmit(self) -> None:
        """As aioquic does; then writers."""
        super().transmit()
        for entry in self._waiting[:]:
            stream_id, future = entry
            if self.unacknowledged(stream_id) <= UNACKNOWLEDGED_BYTES // 2:
                self._waiting.remove(entry)
                if not future.done():
                    future.set_result(None)


class StockFlow:
    """A pair of asyncio streams of aioquic."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._id: int = writer.get_extra_info("stream_id")
        self._protocol: Any = writer.transport.protocol  # type: ignore[attr-defined]
        self.write, self.write_eof = writer.write, writer.write_eof
        self.read, self.read_exactly = reader.read, reader.readexactly

    async def drain(self) -> None:
        """Wait for acknowledgements."""
        await self._protocol.drain(self._id)


def stock_configuration(is_client: bool, datagram_bytes: int) -> QuicConfiguration:
    """aioquic's defaults, but for the size of datagrams and AES-128, which ours negotiates too."""
    made = QuicConfiguration(is_client=is_client, alpn_protocols=["bench"], max_datagram_size=datagram_bytes)
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    made.certificate, made.private_key, made.verify_mode = builder.sign(key, None), key, ssl.CERT_NONE
    return made


async def serve_stock(datagram_bytes: int, serve_flow: Serve) -> dict[str, Any]:
    """Start a server; returns its port and node, and what has to be kept for it to live."""
    tasks = set()

    def opened(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(serve_flow(StockFlow(reader, writer)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await serve(
        HOST,
        0,
        configuration=stock_configuration(False, datagram_bytes),
        create_protocol=StockProtocol,
        stream_handler=opened,
    )
    return {"port": server._transport.get_extra_info("sockname")[1], "node": "", "keep": (server, tasks)}


async def dial_stock(datagram_bytes: int, port: int, use: Use) -> None:
    """Connect and hand over."""
    configuration = stock_configuration(True, datagram_bytes)
    async with connect(HOST, port, configuration=configuration, create_protocol=StockProtocol) as protocol:

        async def open_flow() -> Flow:
            return StockFlow(*await protocol.create_stream())

        async def attack() -> dict[str, Any]:
            return await overrun(protocol._quic, protocol.transmit)

        await use(open_flow, attack)


# --- ours -----------------------------------------------------------------------------------------------------


class Streams:
    """A handler that serves every stream."""

    def __init__(self, serve_flow: Serve | None) -> None:
        self._serve_flow = serve_flow
        self._tasks: set[asyncio.Task[None]] = set()

    def stream_opened(self, stream: MeshStream) -> None:
        """Serve it."""
        task = asyncio.create_task(self._serve(stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, stream: MeshStream) -> None:
        try:
            if self._serve_flow is not None:
                await self._serve_flow(stream)
        except (OSError, EOFError):
            return  # the client is gone

    def link_up(self, link: Link) -> None:
        """Nothing to do."""

    def link_down(self, link: Link, code: int, reason: str) -> None:
        """Nothing to do."""

    def datagram(self, link: Link, data: bytes) -> None:
        """Nothing to do."""

    def link_silent(self, link: Link, silent: bool) -> None:
        """Nothing to do."""


async def open_ours(way: str, datagram_bytes: int, serve_flow: Serve | None = None) -> Endpoint:
    """An endpoint with a new identity."""
    options = EndpointOptions(fast=way == "fast", most_datagram_bytes=datagram_bytes)
    return await Endpoint.open(Identity(Ed25519PrivateKey.generate()), Streams(serve_flow), host=HOST, options=options)


async def serve_ours(way: str, datagram_bytes: int, serve_flow: Serve) -> dict[str, Any]:
    """Start a server; returns its port and node, and what has to be kept for it to live."""
    endpoint = await open_ours(way, datagram_bytes, serve_flow)
    return {"port": endpoint.address.port, "node": endpoint.node_id.hex(), "keep": endpoint}


async def dial_ours(way: str, datagram_bytes: int, port: int, node: str, use: Use) -> None:
    """Connect, wait until the size of datagrams is found, and hand over."""
    endpoint = await open_ours(way, datagram_bytes)
    link = await endpoint.dial([Address(HOST, port)], expected=NodeId(bytes.fromhex(node)))
    for _ in range(500):
        if link.quic.datagram_bytes >= datagram_bytes:
            break
        await asyncio.sleep(0.01)
    else:
        raise RuntimeError(f"the path carries {link.quic.datagram_bytes} bytes, not {datagram_bytes}")

    async def open_flow() -> Flow:
        return link.open_stream()

    async def attack() -> dict[str, Any]:
        return await overrun(link.quic, link.flush)

    await use(open_flow, attack)
    await endpoint.close()


async def overrun(quic: Any, flush: Callable[[], None]) -> dict[str, Any]:
    """Send single bytes at the highest offset that the server allows, again whenever it allows more.

    aioquic keeps one buffer from the first missing byte on, and allows twice as much whenever half is reached: 18
    datagrams of 621 bytes in all made it allocate 256 MiB (aioquic#589). The stream stays as it is afterwards.
    """
    stream_id = quic.get_next_available_stream_id()
    quic.send_stream_data(stream_id, b"")
    stream = quic._streams[stream_id]
    sender, sent = stream.sender, 0
    for _ in range(18):
        limit = stream.max_stream_data_remote
        sender._buffer, sender._buffer_start, sender._buffer_stop = bytearray(b"x"), limit - 1, limit
        sender.highest_offset = limit - 1
        quic._remote_max_data_used = 0
        sender._pending.add(limit - 1, limit)
        sender.buffer_is_empty = False
        quic.send_stream_data(stream_id, b"")
        flush()
        sent += 1
        for _ in range(30):
            await asyncio.sleep(0.01)
            if stream.max_stream_data_remote > limit:
                break
        else:
            break
        if limit >= 256 << 20:
            break
    return {"datagrams": sent, "reached": stream.max_stream_data_remote}
