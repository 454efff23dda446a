"""Manifests: spans tile the files, one form only, and every lie is refused."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf_samples import llama

from meshnode.models.gguf import read_header
from meshnode.models.manifest import (
    CHUNK_BYTES,
    FileEntry,
    Manifest,
    ManifestInvalid,
    TensorEntry,
    decode,
    encode,
    layer_of,
    spans_of,
    tensors_of_header,
)

VECTORS = json.loads(
    (Path(__file__).parent.parent.parent / "protocol" / "vectors" / "manifests.json").read_text("utf-8")
)


def made(*files: FileEntry) -> Manifest:
    count = sum(len(span.chunks) for span in spans_of(files))
    return Manifest(files, b"".join(hashlib.sha256(bytes([number % 251])).digest() for number in range(count)))


def sample() -> Manifest:
    tensors = (
        TensorEntry("token_embd.weight", 100, 3 * CHUNK_BYTES),
        TensorEntry("blk.0.attn_norm.weight", 3 * CHUNK_BYTES + 128, 64),
        TensorEntry("blk.0.ffn_up.weight", 3 * CHUNK_BYTES + 192, CHUNK_BYTES + 1),
        TensorEntry("blk.1.ffn_up.weight", 5 * CHUNK_BYTES, 2 << 20),
        TensorEntry("rope_freqs.weight", 6 * CHUNK_BYTES, 512),
        TensorEntry("output.weight", 6 * CHUNK_BYTES + 512, 2 << 20),
    )
    return made(FileEntry(7 * CHUNK_BYTES, b"s" * 32, tensors), FileEntry(10, b"t" * 32, ()))


def test_spans_and_chunks_are_the_files_byte_for_byte() -> None:
    manifest = sample()
    at: dict[int, int] = {}
    for number in range(manifest.chunk_count):
        chunk = manifest.chunk(number)
        assert chunk.number == number
        assert chunk.position == at.get(chunk.file, 0)
        assert 0 < chunk.size_bytes <= CHUNK_BYTES
        assert chunk.sha256 == manifest.hash_of(number)
        at[chunk.file] = chunk.position + chunk.size_bytes
    assert at == {number: file.size_bytes for number, file in enumerate(manifest.files)}
    for number in (-1, manifest.chunk_count):
        with pytest.raises(IndexError):
            manifest.chunk(number)


def test_a_chunk_never_holds_bytes_of_two_tensors() -> None:
    manifest = sample()
    for number in range(manifest.chunk_count):
        chunk = manifest.chunk(number)
        touched = [
            tensor.name
            for tensor in manifest.files[chunk.file].tensors
            if tensor.position < chunk.position + chunk.size_bytes and chunk.position < tensor.position + tensor.n_bytes
        ]
        assert len(touched) <= 1


def test_the_digest_pins_everything() -> None:
    manifest = sample()
    file = manifest.files[0]
    others = [
        replace(manifest, hashes=bytes(32) + manifest.hashes[32:]),
        replace(manifest, files=(replace(file, sha256=bytes(32)), manifest.files[1])),
        replace(
            manifest,
            files=(replace(file, tensors=(replace(file.tensors[0], name="x"), *file.tensors[1:])),)
            + manifest.files[1:],
        ),
        replace(
            manifest,
            files=(replace(file, tensors=(replace(file.tensors[0], n_bytes=5), *file.tensors[1:])),)
            + manifest.files[1:],
        ),
    ]
    digests = {found.digest for found in [manifest, *others]}
    assert len(digests) == len(others) + 1
    assert decode(manifest.encoded) == manifest
    assert decode(manifest.encoded).digest == hashlib.sha256(manifest.encoded).digest() == manifest.digest


def test_what_a_device_with_some_layers_reads() -> None:
    manifest = sample()
    assert manifest.tensors_of_layers(range(1), ends=False) == [
        "blk.0.attn_norm.weight",
        "blk.0.ffn_up.weight",
        "rope_freqs.weight",
    ]
    assert set(manifest.tensors_of_layers(range(1, 2), ends=True)) == {
        "token_embd.weight",
        "blk.1.ffn_up.weight",
        "rope_freqs.weight",
        "output.weight",
    }
    chunks = manifest.chunks_of(["blk.0.ffn_up.weight", "nothing"])
    assert [manifest.chunk(number).position for number in chunks] == [3 * CHUNK_BYTES + 192, 4 * CHUNK_BYTES + 192]
    assert manifest.header_chunks() == [0, manifest.chunk_count - 1]
    assert manifest.chunks_of([""]) == []


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("blk.0.attn_q.weight", 0),
        ("blk.61.ffn_gate_exps.weight", 61),
        ("enc.blk.3.attn_q.weight", 3),
        ("token_embd.weight", None),
        ("blk.x.attn", None),
        ("subblk.3.a", None),
        ("blk." + "9" * 400 + ".a", None),
    ],
)
def test_the_layer_of_a_tensor(name: str, layer: int | None) -> None:
    assert layer_of(name) == layer


def test_the_header_has_to_say_the_same(tmp_path: Path) -> None:
    header = read_header(llama(tmp_path / "m.gguf", layers=2))
    entry = FileEntry(header.file_bytes, b"s" * 32, tensors_of_header(header))
    made(entry).check_header(0, header)
    first, *rest = entry.tensors
    for lie in (
        replace(first, name="other"),
        replace(first, n_bytes=first.n_bytes - 1),
        replace(first, position=first.position - 32),
    ):
        with pytest.raises(ManifestInvalid, match="other tensors"):
            made(replace(entry, tensors=(lie, *rest))).check_header(0, header)
    with pytest.raises(ManifestInvalid):
        made(replace(entry, tensors=tuple(rest))).check_header(0, header)


@pytest.mark.parametrize("case", VECTORS["valid"], ids=lambda case: str(case["comment"]))
def test_valid_vectors(case: dict[str, Any]) -> None:
    found = decode(bytes.fromhex(case["hex"]))
    assert encode(found).hex() == case["hex"]
    assert found.digest.hex() == case["digest"]
    assert [file.size_bytes for file in found.files] == [file["size"] for file in case["files"]]
    chunks = [found.chunk(number) for number in range(found.chunk_count)]
    assert [[chunk.file, chunk.position, chunk.size_bytes] for chunk in chunks] == case["chunks"]


@pytest.mark.parametrize("case", VECTORS["invalid"], ids=lambda case: str(case["comment"]))
def test_invalid_vectors(case: dict[str, Any]) -> None:
    with pytest.raises(ManifestInvalid):
        decode(bytes.fromhex(case["hex"]))


def test_every_prefix_is_refused() -> None:
    data = sample().encoded
    chance = random.Random(1)
    for at in [*range(80), *(chance.randrange(len(data)) for _ in range(200))]:
        with pytest.raises(ManifestInvalid):
            decode(data[:at])


def test_too_large_is_refused_unread() -> None:
    with pytest.raises(ManifestInvalid, match="at most"):
        decode(bytes((64 << 20) + 1))


def test_a_wrong_manifest_is_not_written() -> None:
    with pytest.raises(ManifestInvalid):
        encode(Manifest((FileEntry(10, b"short", ()),), bytes(32)))
    with pytest.raises(ManifestInvalid):
        encode(Manifest((FileEntry(10, bytes(32), ()),), bytes(31)))
