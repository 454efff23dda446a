"""The header reader against the `gguf` package, against the clock, and against files that lie."""

import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import gguf_samples as samples
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import ModelFileInvalid, ModelNotFound
from meshnode.models import gguf as reader
from meshnode.models.gguf import merge_headers, parse_header, read_header, read_model, split_parts
from meshnode.models.header import TENSOR_TYPES


@pytest.mark.parametrize("family", samples.FAMILIES)
def test_agrees_with_the_gguf_package(family: str, tmp_path: Path) -> None:
    path = samples.FAMILIES[family](tmp_path / "m.gguf")
    theirs, ours = gguf.GGUFReader(path), read_header(path)
    assert ours.data_offset == theirs.data_offset
    assert [(t.name, t.shape, t.type, t.n_bytes) for t in ours.tensors] == [
        (t.name, tuple(int(size) for size in t.shape), t.tensor_type.name, int(t.n_bytes)) for t in theirs.tensors
    ]
    assert [ours.data_offset + t.offset for t in ours.tensors] == [int(t.data_offset) for t in theirs.tensors]
    for name, field in theirs.fields.items():
        if name.startswith("GGUF.") or name == "tokenizer.ggml.tokens":
            continue
        if name in ours.metadata:
            value, expected = ours.metadata[name], field.contents()
            assert (list(value) if isinstance(value, tuple) else value) == pytest.approx(expected), name
        else:
            assert ours.array_lengths[name] == len(field.data), name


def test_every_tensor_type_of_the_package_has_the_same_size() -> None:
    known = {name: (block, size) for name, block, size in TENSOR_TYPES.values()}
    theirs = {kind.name: sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    # The package counts an older layout of Q8_1, which no file contains.
    theirs.pop("Q8_1")
    assert {name: known[name] for name in theirs} == theirs


def large_vocabulary(path: Path, tokens: int = 150_000, merges: int = 280_000) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in samples.base_keys(2).items():
        samples._add(writer, f"llama.{key}", value)
    draw = random.Random(5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"token{i}"[: draw.randint(1, 11)] for i in range(tokens)])
    writer.add_token_types([1] * tokens)
    writer.add_token_scores([0.0] * tokens)
    writer.add_token_merges([f"{i} {i}" for i in range(merges)])
    writer.add_chat_template("{{ messages }}")
    writer.add_tensor("token_embd.weight", np.zeros((4, 1024), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_vocabulary_of_150000_is_read_in_under_100_ms(
    tmp_path: Path, benchmark_s: Callable[[Callable[[], object]], float]
) -> None:
    path = large_vocabulary(tmp_path / "m.gguf")
    header = read_header(path)
    assert header.vocabulary_size == 150_000
    assert header.array_lengths["tokenizer.ggml.merges"] == 280_000
    assert header.chat_template == "{{ messages }}"
    assert benchmark_s(lambda: read_header(path)) < 0.1


def test_a_header_longer_than_the_first_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = samples.llama(tmp_path / "m.gguf", layers=2)
    expected = read_header(path)
    monkeypatch.setattr(reader, "FIRST_READ_BYTES", 100)
    assert read_header(path) == expected


def test_a_prefix_is_no_header_yet(tmp_path: Path) -> None:
    path = samples.llama(tmp_path / "m.gguf", layers=1)
    data, size = path.read_bytes(), path.stat().st_size
    end = read_header(path).data_offset - 32
    for length in (4, 7, 8, 23, 24, 30, 100, 5000, end):
        assert parse_header(data[:length], size) is None, length
    assert parse_header(data[: end + 32], size) is not None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b'{"error":"Invalid username"}', "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS pointer"),
        (b"ggjt" + bytes(100), "old GGML"),
        (b"PK\x03\x04" + bytes(100), "not a GGUF"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "version 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "tensors and"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 40), "keys, which cannot be"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 40), "a key claims"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "which architecture"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1), "ends inside its header"),
    ],
)
def test_what_is_no_model_says_why(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileInvalid, match=reason) as caught:
        read_header(path)
    assert caught.value.detail.startswith("m.gguf: ")
    assert caught.value.fix


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


ARCHITECTURE = pair("general.architecture", 8, text("llama"))


def tensor(name: str = "t", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def file_of(pairs: list[bytes], tensors: list[bytes]) -> bytes:
    return (
        b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs) + b"".join(tensors) + bytes(4096)
    )


@pytest.mark.parametrize(
    ("pairs", "tensors", "reason"),
    [
        ([pair("a", 8, struct.pack("<Q", 1 << 50))], [], "text of a claims"),
        ([pair("a", 99, b"")], [], "unknown type 99"),
        ([pair("a", 9, struct.pack("<IQ", 4, 1 << 50))], [], "a claims 1,125,899,906,842,624 values"),
        ([pair("a", 9, struct.pack("<IQ", 9, 1))], [], "list of the unknown type 9"),
        (
            [pair("tokenizer.x", 9, struct.pack("<IQ", 8, 2) + struct.pack("<Q", 1 << 62) + bytes(64))],
            [],
            "longer than",
        ),
        ([ARCHITECTURE, ARCHITECTURE], [], "there twice"),
        ([ARCHITECTURE, pair("general.alignment", 4, struct.pack("<I", 33))], [], "alignment is 33"),
        ([ARCHITECTURE, pair("general.alignment", 4, struct.pack("<I", 0))], [], "alignment is 0"),
        ([ARCHITECTURE, pair("llama.block_count", 4, struct.pack("<I", 1 << 31))], [], "2,147,483,648 layers"),
        ([ARCHITECTURE, pair("split.count", 4, struct.pack("<I", 1 << 31))], [], "one of"),
        ([ARCHITECTURE], [tensor("x" * 300)], "name of a tensor claims"),
        ([ARCHITECTURE], [tensor(shape=(1, 1, 1, 1, 1))], "5 dimensions"),
        ([ARCHITECTURE], [tensor(shape=())], "0 dimensions"),
        ([ARCHITECTURE], [tensor(shape=(0,))], "impossible shape"),
        ([ARCHITECTURE], [tensor(shape=(1 << 32, 1 << 31))], "impossible shape"),
        ([ARCHITECTURE], [tensor(kind=77)], "type 77"),
        ([ARCHITECTURE], [tensor(shape=(33,), kind=8)], "rows of 33"),
        ([ARCHITECTURE], [tensor(offset=7)], "multiple of 32"),
        ([ARCHITECTURE], [tensor(), tensor()], "same name"),
        ([ARCHITECTURE], [tensor(shape=(1 << 20,))], "unfinished download"),
        ([ARCHITECTURE], [tensor(offset=1 << 62)], "unfinished download"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, pairs: list[bytes], tensors: list[bytes], reason: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(file_of(pairs, tensors))
    with pytest.raises(ModelFileInvalid, match=reason):
        read_header(path)


def test_a_truncated_model_says_how_much_is_missing(tmp_path: Path) -> None:
    path = samples.llama(tmp_path / "m.gguf", layers=1)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 12_345)
    with pytest.raises(ModelFileInvalid, match=f"last 12,345 of {size:,} bytes are missing"):
        read_header(path)
    assert read_header(path, check_size=False).file_bytes == size - 12_345


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_damage_raises_anything_else(data: st.DataObject) -> None:
    whole = SAMPLE
    at = data.draw(st.integers(4, len(whole) - 1))
    damaged = bytearray(whole)
    damaged[at : at + 8] = data.draw(st.binary(min_size=1, max_size=8))
    cut = data.draw(st.integers(4, len(damaged)))
    try:
        parse_header(bytes(damaged[:cut]), cut)
    except ModelFileInvalid as error:
        assert error.detail


SAMPLE = file_of(
    [
        ARCHITECTURE,
        pair("llama.block_count", 4, struct.pack("<I", 2)),
        pair("llama.attention.head_count_kv", 9, struct.pack("<IQ2i", 5, 2, 1, 2)),
        pair("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 2) + text("a") + text("bc")),
        pair("general.tags", 9, struct.pack("<IQ", 8, 1) + text("chat")),
    ],
    [tensor("a", (32, 2)), tensor("b", (256,), 12, 256)],
)


def test_what_is_missing_or_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        read_header(tmp_path / "absent.gguf")
    with pytest.raises(ModelNotFound):
        read_header(tmp_path)


def split_model(folder: Path, count: int = 3) -> list[Path]:
    paths = []
    for number in range(count):
        path = folder / f"big-Q8_0-{number + 1:05d}-of-{count:05d}.gguf"
        keys = {"split.no": number, "split.count": count, "split.tensors.count": 2 * count}
        tensors = samples.norms(number, "attn_norm", "ffn_norm")
        samples.write_gguf(
            path, "llama", samples.base_keys(3) if number == 0 else {}, tensors, vocabulary=0, raw_keys=keys
        )
        paths.append(path)
    return paths


def test_a_split_model_is_one_model(tmp_path: Path) -> None:
    paths = split_model(tmp_path)
    merged = read_model(paths[0])
    assert merged == read_model(paths[2])
    assert len(merged.tensors) == 6
    assert merged.file_bytes == sum(path.stat().st_size for path in paths)
    assert merged.layer_count == 3
    assert split_parts(paths[1]) == tuple(paths)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    paths = split_model(tmp_path)
    paths[1].unlink()
    with pytest.raises(ModelFileInvalid, match="1 of 3 parts are missing: big-Q8_0-00002-of-00003"):
        read_model(paths[0])


def test_parts_of_different_sets_are_refused(tmp_path: Path) -> None:
    paths = split_model(tmp_path)
    shutil.copy(paths[0], paths[1])
    with pytest.raises(ModelFileInvalid, match="part 2 belongs"):
        read_model(paths[0])
    whole = samples.llama(tmp_path / "whole-00001-of-00002.gguf", layers=1)
    shutil.copy(whole, tmp_path / "whole-00002-of-00002.gguf")
    with pytest.raises(ModelFileInvalid, match="1 parts, its file name 2"):
        read_model(whole)
    with pytest.raises(ModelFileInvalid, match="announces 6"):
        broken = split_model(tmp_path)
        headers = [read_header(path) for path in broken]
        object.__setattr__(headers[2], "tensors", ())
        merge_headers(headers)


def test_one_part_of_a_set_of_one(tmp_path: Path) -> None:
    assert read_model(split_model(tmp_path, 1)[0]).split_count == 1
