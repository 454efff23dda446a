"""The processes of bench.weights: nodes that have a model, and one that fetches it.

    python -m bench.weights_ends give MODEL CACHE                 a source; prints its port and node
    python -m bench.weights_ends fetch MODEL CACHE PORT:NODE ...   does jobs from stdin, one JSON object a line

Both are a mesh endpoint and a `Sharing`, as in a node, without the mesh's admission. A stream of type `http` is for
the ceiling: the source sends as many bytes as the header says, from memory, and nobody keeps them.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.transport_ways import HOST, Flow, Streams
from meshnode.identity import Identity, NodeId
from meshnode.mesh.bulk import BEHIND_OTHERS
from meshnode.models.cache import LocalModel
from meshnode.models.names import file_ref
from meshnode.models.wanted import Wanted
from meshnode.net.address import Address
from meshnode.net.endpoint import Endpoint, EndpointOptions
from meshnode.net.link import Link
from meshnode.net.stream import MeshStream
from meshnode.sharing import Sharing, SharingParts
from meshnode.wire.frames import HEADER_BYTES, decode_stream_header, encode_stream_header
from meshnode.wire.registry import Role, StreamType

CHUNK_BYTES = 1 << 16
READ_BYTES = 1 << 20
ETHERNET_BYTES = 1452


def local_model(path: Path) -> LocalModel:
    """A file as the store would describe it."""
    size = path.stat().st_size
    return LocalModel(ref=file_ref(path), path=path, parts=(path,), size_bytes=size, total_bytes=size)


async def nobody(node: bytes, header: bytes) -> MeshStream:
    """A source fetches nothing."""
    raise ConnectionRefusedError


async def open_endpoint(serve: Any = None) -> Endpoint:
    """An endpoint with a new identity. Its datagrams are as on Ethernet, as in bench.transport's bulk."""
    identity = Identity(Ed25519PrivateKey.generate())
    return await Endpoint.open(
        identity, Streams(serve), host=HOST, options=EndpointOptions(most_datagram_bytes=ETHERNET_BYTES)
    )


async def give(model: Path, cache: Path) -> None:
    """Be a source until stdin ends."""
    sharing = Sharing(SharingParts(share=True, most_bytes=None, cache=cache, open_stream=nobody))
    await sharing.open()
    manifest = await sharing.learn(local_model(model))
    noise = os.urandom(CHUNK_BYTES)

    async def serve(flow: Flow) -> None:
        assert isinstance(flow, MeshStream)
        kind, size = decode_stream_header(await flow.read_exactly(HEADER_BYTES))
        header = await flow.read_exactly(size)
        if kind == StreamType.BULK:
            await sharing.serve(flow, header, Role.MEMBER)
            return
        left = int.from_bytes(header, "big")
        while left > 0:
            flow.write(noise[:left] if left < CHUNK_BYTES else noise)
            left -= CHUNK_BYTES
            await flow.drain()
        flow.write_eof()

    endpoint = await open_endpoint(serve)
    place = {"port": endpoint.address.port, "node": endpoint.node_id.hex(), "manifest": manifest.digest.hex()}
    print(json.dumps({**place, "sha256": manifest.sha256.hex()}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await endpoint.close()


class Fetcher:
    """The jobs of the node that fetches."""

    def __init__(self, model: Path, cache: Path, links: dict[bytes, Link]) -> None:
        self._model = model
        self._cache = cache
        self._links = links

    async def _open(self, node: bytes, header: bytes) -> MeshStream:
        stream = self._links[node].open_stream(priority=BEHIND_OTHERS)
        stream.write(encode_stream_header(StreamType.BULK, header))
        return stream

    async def ceiling(self, size: int, sources: int) -> dict[str, Any]:
        """`size` bytes from so many sources at once, each its share on one stream; nobody keeps them."""

        async def take(link: Link) -> int:
            stream = link.open_stream()
            stream.write(encode_stream_header(StreamType.HTTP, (size // sources).to_bytes(8, "big")))
            stream.write_eof()
            count = 0
            while data := await stream.read(READ_BYTES):
                count += len(data)
            return count

        began_at, used_at = time.perf_counter(), time.process_time()
        counts = await asyncio.gather(*(take(link) for link in list(self._links.values())[:sources]))
        wall_s, used_s = time.perf_counter() - began_at, time.process_time() - used_at
        return {"wall_s": wall_s, "processor_s": used_s, "bytes": sum(counts)}

    async def fetch(self, sha256: str, manifest: str, sources: int) -> dict[str, Any]:
        """The model from so many sources into an empty cache; its bytes are compared with those of the original."""
        shutil.rmtree(self._cache, ignore_errors=True)
        sharing = Sharing(SharingParts(share=True, most_bytes=None, cache=self._cache, open_stream=self._open))
        await sharing.open()
        wanted = Wanted(sha256=bytes.fromhex(sha256), manifest=bytes.fromhex(manifest), name=self._model.stem)
        began_at, used_at = time.perf_counter(), time.process_time()
        path = await sharing.fetch(wanted, list(self._links)[:sources])
        wall_s, used_s = time.perf_counter() - began_at, time.process_time() - used_at
        same = subprocess.run(["cmp", str(path), str(self._model)], check=False).returncode == 0
        if not same:
            raise RuntimeError("what was fetched is not the model")
        await sharing.close()
        memory_bytes = psutil.Process().memory_info().rss
        size = path.stat().st_size
        shutil.rmtree(self._cache)
        return {"wall_s": wall_s, "processor_s": used_s, "bytes": size, "memory_bytes": memory_bytes}


async def fetch(model: Path, cache: Path, places: list[str]) -> None:
    """Do jobs until stdin ends."""
    endpoint = await open_endpoint()
    links: dict[bytes, Link] = {}
    for place in places:
        port, _, node = place.partition(":")
        expected = NodeId(bytes.fromhex(node))
        links[expected] = await endpoint.dial([Address(HOST, int(port))], expected=expected)
    fetcher = Fetcher(model, cache, links)
    print("{}", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        job = json.loads(line)
        try:
            outcome = await getattr(fetcher, job.pop("job"))(**job)
        except Exception as error:
            outcome = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(outcome), flush=True)
    await endpoint.close()


class Process:
    """One process of this module, there until the `with` block ends. `place` is the first line that it printed."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "bench.weights_ends", *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.place = self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def run(self, job: str, **arguments: Any) -> dict[str, Any]:
        """Let the process do a job. Raises RuntimeError when it could not."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"job": job, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a process of the benchmark has ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer


if __name__ == "__main__":
    role, model_path, cache_path, *rest = sys.argv[1:]
    if role == "give":
        asyncio.run(give(Path(model_path), Path(cache_path)))
    else:
        asyncio.run(fetch(Path(model_path), Path(cache_path), rest))
