"""Two ends of one QUIC link of ours in processes of their own, to see what a network between them carries.

python -m tests.lab.quic_ends serve 10.77.0.1                        prints "PORT NODE", serves until stdin ends
python -m tests.lab.quic_ends dial 10.77.0.2 10.77.0.1 PORT NODE N   sends N bytes; prints the seconds that it took
"""

from __future__ import annotations

import asyncio
import sys
import time

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.transport_ways import Flow, Streams
from meshnode.identity import Identity, NodeId
from meshnode.net.address import Address
from meshnode.net.endpoint import Endpoint

PIECE_BYTES = 1 << 16


async def _count(flow: Flow) -> None:
    """Say at the end how much came."""
    size = 0
    while data := await flow.read(1 << 20):
        size += len(data)
    flow.write(size.to_bytes(8, "big"))
    flow.write_eof()


async def _open(host: str) -> Endpoint:
    return await Endpoint.open(Identity(Ed25519PrivateKey.generate()), Streams(_count), host=host)


async def serve(host: str) -> None:
    """Take what comes."""
    endpoint = await _open(host)
    print(endpoint.address.port, endpoint.node_id.hex(), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await endpoint.close()


async def dial(host: str, server: str, port: int, node: str, size_bytes: int) -> None:
    """Send, wait until all has been read, and print the seconds from the first byte on."""
    endpoint = await _open(host)
    link = await endpoint.dial([Address(server, port)], expected=NodeId(bytes.fromhex(node)))
    flow = link.open_stream()
    begun = time.monotonic()
    for _ in range(size_bytes // PIECE_BYTES):
        flow.write(bytes(PIECE_BYTES))
        await flow.drain()
    flow.write_eof()
    assert int.from_bytes(await flow.read_exactly(8), "big") == size_bytes // PIECE_BYTES * PIECE_BYTES
    print(time.monotonic() - begun, flush=True)
    await endpoint.close()


if __name__ == "__main__":
    role, own, *place = sys.argv[1:]
    if role == "serve":
        asyncio.run(serve(own))
    else:
        asyncio.run(dial(own, place[0], int(place[1]), place[2], int(place[3])))
