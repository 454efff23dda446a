"""Weights among nodes: fetched from several, verified, resumed, deduplicated; liars are named, full disks survived."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from meshnode.errors import DiskFull, ModelFileInvalid, PeerUnreachable, WeightsUnavailable
from meshnode.models import fetched, pieces
from meshnode.models.cache import LocalModel
from meshnode.models.hub import Hub
from meshnode.models.hub_ranges import HubFiles
from meshnode.models.manifest import Manifest
from meshnode.models.names import file_ref
from meshnode.models.wanted import Wanted
from meshnode.net.stream import MeshStream
from meshnode.sharing import Sharing, SharingParts
from meshnode.wire.frames import HEADER_BYTES, decode_stream_header, encode_stream_header
from meshnode.wire.registry import Role, StreamType
from tests.mesh.memory_link import memory_links
from tests.models.gguf_samples import base_keys, ends, feed_forward, llama, write_gguf

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("plenty_of_room")]


@pytest.fixture
def plenty_of_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetched, "SPARE_BYTES", 0)


def fill(path: Path, seed: int = 1) -> Path:
    """Weights that are noise, in place of the hole."""
    from meshnode.models.gguf import read_header

    start = read_header(path).data_offset
    with path.open("r+b") as file:
        file.seek(start)
        file.write(random.Random(seed).randbytes(path.stat().st_size - start))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return fill(llama(tmp_path / "tiny.gguf", layers=3, kind="Q4_0"))


def local(path: Path) -> LocalModel:
    size = path.stat().st_size
    return LocalModel(ref=file_ref(path), path=path, parts=(path,), size_bytes=size, total_bytes=size)


class Nodes:
    """Several nodes in one process, joined by fake links."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.members: dict[bytes, Sharing] = {}
        self.suspects: list[tuple[bytes, str]] = []
        self.tamper: dict[bytes, Callable[[MeshStream, bytes], Awaitable[None]]] = {}
        self.opened: list[bytes] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def add(self, name: str, **parts: Any) -> Sharing:
        node = name.encode().ljust(32, b"-")

        async def connect(peer: bytes, header: bytes) -> MeshStream:
            return self.connect(node, peer, header)

        given = {"share": True, "most_bytes": None, "cache": self.folder / name, "open_stream": connect}
        sharing = Sharing(
            SharingParts(**{**given, "suspect": lambda who, what: self.suspects.append((who, what)), **parts})
        )
        await sharing.open()
        self.members[node] = sharing
        return sharing

    def id(self, name: str) -> bytes:
        return name.encode().ljust(32, b"-")

    def connect(self, caller: bytes, peer: bytes, header: bytes) -> MeshStream:
        if peer not in self.members:
            raise PeerUnreachable(peer.decode())
        self.opened.append(peer)

        def opened(stream: MeshStream) -> None:
            task = asyncio.get_running_loop().create_task(self._serve(peer, stream))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        mine, theirs = memory_links(opened)
        theirs.peer = caller
        theirs.quic = SimpleNamespace(rank_stream=lambda stream, priority: None)  # type: ignore[attr-defined]
        stream = mine.open_stream()
        stream.write(encode_stream_header(StreamType.BULK, header))
        return stream

    async def _serve(self, peer: bytes, stream: MeshStream) -> None:
        kind, size = decode_stream_header(await stream.read_exactly(HEADER_BYTES))
        header = await stream.read_exactly(size)
        assert kind == StreamType.BULK
        if peer in self.tamper:
            await self.tamper[peer](stream, header)
        else:
            await self.members[peer].serve(stream, header, Role.MEMBER)


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    return Nodes(tmp_path)


async def with_model(nodes: Nodes, model: Path, *names: str) -> Manifest:
    for name in names:
        manifest = await (await nodes.add(name)).learn(local(model))
    return manifest


def whole(manifest: Manifest, **more: Any) -> Wanted:
    return Wanted(sha256=manifest.sha256, manifest=manifest.digest, name="tiny", **more)


async def test_a_model_comes_from_two_nodes(nodes: Nodes, model: Path) -> None:
    manifest = await with_model(nodes, model, "a", "b")
    me = await nodes.add("me")
    seen: list[tuple[int, int]] = []
    path = await me.fetch(whole(manifest), [nodes.id("a"), nodes.id("b")], lambda *progress: seen.append(progress))
    assert path.name == "tiny.gguf"
    assert path.read_bytes() == model.read_bytes()
    assert seen[-1] == (manifest.size_bytes, manifest.size_bytes)
    assert {nodes.id("a"), nodes.id("b")} <= set(nodes.opened)
    assert me._proving is not None
    await me._proving
    assert me.models() == (manifest.sha256,)
    assert [found.sha256 for found in me.local_models()] == [manifest.sha256.hex()]
    assert me.facts()["fetching"] == []
    assert me.facts()["fetched_bytes_on_disk"] >= manifest.size_bytes
    assert nodes.suspects == []


async def test_what_is_here_is_not_fetched_again(nodes: Nodes, model: Path) -> None:
    manifest = await with_model(nodes, model, "a")
    me = await nodes.add("me")
    first = await me.fetch(whole(manifest), [nodes.id("a")])
    asked = len(nodes.opened)
    assert await me.fetch(whole(manifest), [nodes.id("a")]) == first
    again = await nodes.add("me")
    assert await again.fetch(whole(manifest), []) == first
    assert len(nodes.opened) == asked


async def test_a_worker_fetches_only_its_layers(nodes: Nodes, model: Path) -> None:
    manifest = await with_model(nodes, model, "a")
    me = await nodes.add("me")
    path = await me.fetch(whole(manifest, layers=range(1, 2)), [nodes.id("a")])
    assert path.stat().st_size == model.stat().st_size
    assert path.stat().st_blocks * 512 < 0.6 * model.stat().st_size
    found = me.references(manifest.sha256, manifest.digest)
    assert found is not None
    for tensor in found.tensors:
        entry = next(each for file in manifest.files for each in file.tensors if each.name == tensor)
        place = found.find(tensor, 0, entry.n_bytes)
        if tensor.startswith("blk.1."):
            assert place == (path, entry.position)
            with path.open("rb") as file, model.open("rb") as original:
                assert os.pread(file.fileno(), entry.n_bytes, entry.position) == os.pread(
                    original.fileno(), entry.n_bytes, entry.position
                )
        elif tensor.startswith(("blk.0.ffn_gate", "token_embd", "output.weight")):
            assert place is None
    assert me.models() == (), "a part is no model to serve"
    rest = await me.fetch(whole(manifest), [nodes.id("a")])
    assert rest.read_bytes() == model.read_bytes()
    assert found.find("blk.0.ffn_gate.weight", 0, 1) is not None, "what comes later is found, too"


async def test_a_part_can_be_had_from_whoever_has_that_part(nodes: Nodes, model: Path) -> None:
    manifest = await with_model(nodes, model, "a")
    half = await nodes.add("half")
    await half.fetch(whole(manifest, layers=range(2)), [nodes.id("a")])
    me = await nodes.add("me")
    await me.fetch(whole(manifest, layers=range(1, 2)), [nodes.id("half")])
    with pytest.raises(WeightsUnavailable, match="MB are missing, and no node"):
        await me.fetch(whole(manifest, layers=range(2, 3)), [nodes.id("half")])


async def test_a_corrupted_chunk_is_fetched_elsewhere_and_its_sender_named(nodes: Nodes, model: Path) -> None:
    manifest = await with_model(nodes, model, "a", "bad")
    library = nodes.members[nodes.id("bad")]._library
    read = library.read

    def corrupted(digest: bytes, chunk: int) -> bytes | None:
        data = read(digest, chunk)
        return data if data is None else data[:-1] + bytes([data[-1] ^ 1])

    nodes.members[nodes.id("bad")]._server._library = SimpleNamespace(  # type: ignore[assignment]
        manifest=library.manifest, have=library.have, read=corrupted
    )
    me = await nodes.add("me")
    path = await me.fetch(whole(manifest), [nodes.id("bad"), nodes.id("a")])
    assert path.read_bytes() == model.read_bytes()
    assert [who for who, _ in nodes.suspects] == [nodes.id("bad")]
    assert "damaged" in nodes.suspects[0][1]


async def test_without_an_honest_node_it_ends_in_words(nodes: Nodes, model: Path) -> None:
    manifest = await with_model(nodes, model, "a")
    library = nodes.members[nodes.id("a")]._library
    nodes.members[nodes.id("a")]._server._library = SimpleNamespace(  # type: ignore[assignment]
        manifest=library.manifest, have=library.have, read=lambda digest, chunk: bytes(manifest.chunk(chunk).size_bytes)
    )
    me = await nodes.add("me")
    with pytest.raises(WeightsUnavailable, match="it sent a damaged chunk"):
        await me.fetch(whole(manifest), [nodes.id("a"), nodes.id("nobody")])


async def test_no_share_gives_nothing(nodes: Nodes, model: Path) -> None:
    closed = await nodes.add("closed", share=False)
    manifest = await closed.learn(local(model))
    assert closed.models() == ()
    me = await nodes.add("me")
    with pytest.raises(WeightsUnavailable):
        await me.fetch(whole(manifest), [nodes.id("closed")])
    assert closed._parts.counters["bulk_refused"] > 0


async def test_a_manifest_that_lies_about_the_model_is_found_out(nodes: Nodes, model: Path, tmp_path: Path) -> None:
    """Without its digest: the files do not have the hash that was asked for, and the next offer is tried."""
    manifest = await with_model(nodes, model, "honest")
    other = fill(llama(tmp_path / "other.gguf", layers=3, kind="Q4_0"), seed=9)
    liar = await nodes.add("liar")
    true = await liar.learn(local(other))
    file = true.files[0]
    forged = Manifest((type(file)(file.size_bytes, manifest.sha256, file.tensors),), true.hashes)
    liar._library.add(other, forged)
    me = await nodes.add("me")
    wanted = Wanted(sha256=manifest.sha256, name="tiny")
    with pytest.raises(WeightsUnavailable):
        await me.fetch(wanted, [nodes.id("liar")])
    assert nodes.suspects == [(nodes.id("liar"), "its manifest is not that of the model")]
    path = await me.fetch(wanted, [nodes.id("liar"), nodes.id("honest")])
    assert path.read_bytes() == model.read_bytes()


async def test_a_digest_that_is_not_the_models_is_never_offered_as_the_model(
    nodes: Nodes, model: Path, tmp_path: Path
) -> None:
    """Whoever asks for that digest gets what it stands for; nobody else hears of it under the hash that it claims."""
    other = fill(llama(tmp_path / "other.gguf", layers=3, kind="Q4_0"), seed=9)
    liar = await nodes.add("liar")
    true = await liar.learn(local(other))
    file = true.files[0]
    claimed = bytes(32)
    forged = Manifest((type(file)(file.size_bytes, claimed, file.tensors),), true.hashes)
    liar._library.add(other, forged)
    me = await nodes.add("me")
    await me.fetch(Wanted(sha256=claimed, manifest=forged.digest, name="tiny"), [nodes.id("liar")])
    assert me.references(claimed) is None
    assert me.models() == ()
    assert me._proving is not None
    await me._proving
    assert me.models() == ()
    assert me.manifest_of(claimed, b"") is None
    assert not (nodes.folder / "me" / "weights" / forged.digest.hex()).exists()


async def test_a_part_needs_the_digest_of_the_manifest(nodes: Nodes, model: Path) -> None:
    manifest = await with_model(nodes, model, "a")
    me = await nodes.add("me")
    with pytest.raises(WeightsUnavailable, match="no part of it can be verified"):
        await me.fetch(Wanted(sha256=manifest.sha256, name="tiny", layers=range(1)), [nodes.id("a")])


async def test_a_header_that_contradicts_the_manifest_ends_the_fetch_early(nodes: Nodes, model: Path) -> None:
    """A liar about sizes: its manifest names other tensors than the header, which it describes truly."""
    true = await with_model(nodes, model, "a")
    liar = await nodes.add("liar")
    file = true.files[0]
    renamed = tuple(type(each)(f"x{each.name}", each.position, each.n_bytes) for each in file.tensors)
    forged = Manifest((type(file)(file.size_bytes, file.sha256, renamed),), true.hashes)
    liar._library.add(model, forged)
    me = await nodes.add("me")
    with pytest.raises(ModelFileInvalid, match="other tensors"):
        await me.fetch(whole(forged), [nodes.id("liar")])
    assert not (nodes.folder / "me" / "weights" / forged.digest.hex()).exists()
    assert liar._parts.counters["bulk_bytes"] < true.size_bytes + (8 << 20)


async def test_equal_chunks_are_copied_from_other_models(nodes: Nodes, model: Path, tmp_path: Path) -> None:
    manifest = await with_model(nodes, model, "a")
    sister = tmp_path / "sister.gguf"
    content = bytearray(model.read_bytes())
    last = manifest.files[0].tensors[-1]
    content[last.position : last.position + 100] = bytes(100)
    sister.write_bytes(content)
    me = await nodes.add("me")
    await me.learn(local(sister))
    path = await me.fetch(whole(manifest), [nodes.id("a")])
    assert path.read_bytes() == model.read_bytes()
    assert me.facts()["copied_bytes"] >= 0.9 * (manifest.size_bytes - last.n_bytes)
    assert nodes.members[nodes.id("a")]._parts.counters["bulk_bytes"] <= last.n_bytes + 32


async def test_a_full_disk_ends_in_words_and_what_came_is_kept(
    nodes: Nodes, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = await with_model(nodes, model, "a")
    me = await nodes.add("me")
    written = 0
    real = pieces._write_all

    def full(descriptor: int, data: bytes, position: int) -> None:
        nonlocal written
        written += len(data)
        if written > manifest.size_bytes // 2 and len(data) > 4096:  # the bits overwrite what is there
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor, data, position)

    with monkeypatch.context() as patch:
        patch.setattr(pieces, "_write_all", full)
        with pytest.raises(DiskFull):
            await me.fetch(whole(manifest), [nodes.id("a")])
    again = await nodes.add("me")
    first = again._fetched.find(manifest.digest)
    assert first is not None
    missing = first.missing(range(manifest.chunk_count))
    assert 0 < len(missing) < manifest.chunk_count
    assert (await again.fetch(whole(manifest), [nodes.id("a")])).read_bytes() == model.read_bytes()


async def test_too_little_room_is_said_before_anything_comes(nodes: Nodes, model: Path) -> None:
    manifest = await with_model(nodes, model, "a")
    me = await nodes.add("me", most_bytes=manifest.size_bytes // 2)
    with pytest.raises(DiskFull, match="models from peers may take") as caught:
        await me.fetch(whole(manifest), [nodes.id("a")])
    assert "--max-disk" in caught.value.fix
    assert nodes.members[nodes.id("a")]._parts.counters["bulk_chunks"] == 0


async def test_a_fetch_that_is_cancelled_goes_on_where_it_stopped(nodes: Nodes, model: Path) -> None:
    manifest = await with_model(nodes, model, "a")
    me = await nodes.add("me")
    server = nodes.members[nodes.id("a")]
    enough = asyncio.Event()
    fetching = asyncio.create_task(
        me.fetch(whole(manifest), [nodes.id("a")], lambda have, want: enough.set() if have > want // 4 else None)
    )
    await enough.wait()
    assert me.facts()["fetching"][0]["want_bytes"] == manifest.size_bytes
    fetching.cancel()
    await asyncio.wait({fetching})
    assert fetching.cancelled()
    before = server._parts.counters["bulk_bytes"]
    again = await nodes.add("me")
    left = again._fetched.find(manifest.digest)
    assert left is not None
    missing = left.missing(range(manifest.chunk_count))
    assert len(missing) < manifest.chunk_count
    path = await again.fetch(whole(manifest), [nodes.id("a")])
    assert path.read_bytes() == model.read_bytes()
    fetched_bytes = server._parts.counters["bulk_bytes"] - before
    assert fetched_bytes <= sum(manifest.chunk(number).size_bytes for number in missing)


async def test_a_prefetch_gives_way_to_a_fetch(nodes: Nodes, model: Path, tmp_path: Path) -> None:
    manifest = await with_model(nodes, model, "a")
    other = fill(llama(tmp_path / "other.gguf", layers=1, kind="Q4_0"), seed=5)
    second = await nodes.members[nodes.id("a")].learn(local(other))
    me = await nodes.add("me")
    me.prefetch(whole(manifest, layers=range(2, 3)), [nodes.id("a")])
    me.prefetch(whole(manifest, layers=range(1)), [nodes.id("a")])
    await asyncio.sleep(0)
    path = await me.fetch(Wanted(sha256=second.sha256, manifest=second.digest, name="other"), [nodes.id("a")])
    assert path.read_bytes() == other.read_bytes()
    assert all(not fetch["ahead"] for fetch in me.facts()["fetching"])
    me.prefetch(whole(manifest, layers=range(1)), [nodes.id("a")])
    assert me._ahead is not None
    await me._ahead
    found = await asyncio.to_thread(me.references, manifest.sha256, manifest.digest)
    assert found is not None and found.is_whole("blk.0.ffn_gate.weight")
    await me.close()


async def test_two_at_once_fetch_it_once(nodes: Nodes, model: Path) -> None:
    manifest = await with_model(nodes, model, "a")
    me = await nodes.add("me")
    one, two = await asyncio.gather(*(me.fetch(whole(manifest), [nodes.id("a")]) for _ in range(2)))
    assert one == two
    assert nodes.members[nodes.id("a")]._parts.counters["bulk_bytes"] == manifest.size_bytes


def split_model(folder: Path) -> Path:
    splits: dict[str, object] = {"split.count": 2, "split.tensors.count": 6}
    tensors = [*ends(), *feed_forward(0)]
    for number in range(2):
        path = folder / f"big-{number + 1:05d}-of-00002.gguf"
        own = tensors[3 * number : 3 * number + 3]
        raw = {**splits, "split.no": number}
        write_gguf(path, "llama", base_keys(1) if number == 0 else {}, own, vocabulary=0, raw_keys=raw)
        fill(path, seed=number + 20)
    return folder / "big-00001-of-00002.gguf"


async def test_a_model_in_parts(nodes: Nodes, tmp_path: Path) -> None:
    first = split_model(tmp_path)
    manifest = await with_model(nodes, first, "a")
    assert len(manifest.files) == 2
    me = await nodes.add("me")
    with pytest.raises(WeightsUnavailable):
        await me.fetch(Wanted(sha256=manifest.sha256, name="big"), [nodes.id("a")])
    path = await me.fetch(Wanted(sha256=manifest.sha256, manifest=manifest.digest, name="big"), [nodes.id("a")])
    assert path.name == first.name
    for part in ("big-00001-of-00002.gguf", "big-00002-of-00002.gguf"):
        assert path.with_name(part).read_bytes() == (tmp_path / part).read_bytes()
    assert me.references(manifest.sha256) is None, "the first file does not pin the second"
    assert me.references(manifest.sha256, manifest.digest) is not None


async def test_a_missing_part_is_named(nodes: Nodes, tmp_path: Path) -> None:
    first = split_model(tmp_path)
    first.with_name("big-00002-of-00002.gguf").unlink()
    me = await nodes.add("me")
    with pytest.raises(ModelFileInvalid, match="big-00002-of-00002"):
        await me.learn(local(first))


@pytest.fixture
def hub_server() -> Iterator[Any]:
    from tests.models.loopback_hub import LoopbackHub

    server = LoopbackHub()
    yield server
    server.close()


async def test_the_hub_brings_what_no_peer_has(nodes: Nodes, model: Path, hub_server: Any) -> None:
    manifest = await with_model(nodes, model, "a")
    half = await nodes.add("half")
    await half.fetch(whole(manifest, layers=range(2)), [nodes.id("a")])
    hub_server.add("owner/tiny", {"tiny.gguf": model.read_bytes()})
    me = await nodes.add("me", hub=lambda: Hub(hub_server.endpoint, timeout_s=5))
    files = HubFiles("owner/tiny", hub_server.repositories["owner/tiny"].commit, ("tiny.gguf",))
    path = await me.fetch(whole(manifest, hub=files), [nodes.id("half")])
    assert path.read_bytes() == model.read_bytes()
    asked = sum(int(last) + 1 - int(first) for first, last in (r[6:].split("-") for r in hub_server.ranges()))
    assert 0 < asked < 0.8 * manifest.size_bytes
    assert hashlib.sha256(path.read_bytes()).digest() == manifest.sha256
