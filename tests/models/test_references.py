"""References find the bytes that the header names, and nothing else, whatever a peer says."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from gguf_samples import base_keys, ends, feed_forward, llama, write_gguf

from meshnode.errors import ModelFileInvalid, ModelNotFound
from meshnode.models.gguf import read_header
from meshnode.models.references import References

SHA = bytes(range(32))
GATE = "blk.0.ffn_gate.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model whose weights are noise."""
    path = llama(tmp_path / "m.gguf", layers=2, kind="Q4_0")
    header = read_header(path)
    with path.open("r+b") as file:
        file.seek(header.data_offset)
        file.write(random.Random(3).randbytes(path.stat().st_size - header.data_offset))
    return path


def part(folder: Path, number: int, *, tensors: int = 1, count: int = 2, total: int = 2) -> Path:
    """One part of a split model, with some of its tensors."""
    splits: dict[str, object] = {"split.no": number, "split.count": count, "split.tensors.count": total}
    own = [*ends(), *feed_forward(0)][number : number + tensors]
    path = folder / f"m-{number + 1:05d}-of-{count:05d}.gguf"
    return write_gguf(path, "llama", base_keys(1) if number == 0 else {}, own, vocabulary=0, raw_keys=splits)


def test_every_tensor_is_found_where_its_bytes_are(model: Path) -> None:
    found = References.open(SHA, model)
    header = read_header(model)
    content = model.read_bytes()
    assert found.sha256 == SHA
    assert len(found.tensors) == len(header.tensors) > 10
    for tensor in header.tensors:
        place = found.find(tensor.name, 0, tensor.n_bytes)
        assert place == (model, header.data_offset + tensor.offset)
        middle = found.find(tensor.name, 3, 5)
        assert middle is not None
        start = header.data_offset + tensor.offset + 3
        assert content[middle[1] : middle[1] + 5] == content[start : start + 5]
    assert found.held_bytes == header.weights_bytes


@pytest.mark.parametrize(
    ("tensor", "offset", "size"),
    [
        ("", 0, 1),
        ("../../etc/passwd", 0, 1),
        ("m.gguf", 0, 1),
        (GATE + "\0", 0, 1),
        (GATE, -1, 1),
        (GATE, 0, 0),
        (GATE, 0, -1),
        (GATE, 0, 1 << 63),
        (GATE, 1 << 63, 1),
        (GATE, (1 << 64) - 1, (1 << 64) - 1),
        (GATE, 1, 1024 * 2048 // 32 * 18),
    ],
)
def test_what_is_not_inside_a_tensor_is_not_found(model: Path, tensor: str, offset: int, size: int) -> None:
    assert References.open(SHA, model).find(tensor, offset, size) is None


def test_the_last_byte_of_a_tensor_is_its_last(model: Path) -> None:
    found = References.open(SHA, model)
    size = 1024 * 2048 // 32 * 18
    assert found.find(GATE, size - 1, 1) is not None
    assert found.find(GATE, size - 1, 2) is None


def test_a_file_that_changed_is_not_the_model_any_more(model: Path) -> None:
    found = References.open(SHA, model)
    assert found.find(GATE, 0, 1) is not None
    facts = model.stat()
    os.utime(model, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert found.find(GATE, 0, 1) is None


def test_a_file_that_is_gone_holds_nothing(model: Path) -> None:
    found = References.open(SHA, model)
    model.unlink()
    assert found.find(GATE, 0, 1) is None


def test_a_sparse_file_gives_only_what_is_there(model: Path) -> None:
    here = {GATE}
    found = References.open(SHA, model, present=here.__contains__)
    assert found.find(GATE, 0, 8) is not None
    assert found.find("blk.0.ffn_up.weight", 0, 8) is None
    assert not found.is_whole("blk.0.ffn_up.weight")
    assert found.held_bytes == 1024 * 2048 // 32 * 18
    with model.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"newbytes")
    here.add("blk.0.ffn_up.weight")
    assert found.find("blk.0.ffn_up.weight", 0, 8) is not None, "what fills a hole is no other file"
    os.truncate(model, model.stat().st_size - 1)
    assert found.find(GATE, 0, 8) is None


def test_a_split_model_is_found_in_its_parts(tmp_path: Path) -> None:
    first, second = part(tmp_path, 0), part(tmp_path, 1)
    for any_part in (first, second):
        found = References.open(SHA, any_part)
        names = found.tensors
        assert len(names) == 2
        places = [found.find(name, 0, 1) for name in names]
        assert [place and place[0] for place in places] == [first, second]


def test_missing_parts_are_named(tmp_path: Path) -> None:
    first = part(tmp_path, 0, count=3)
    with pytest.raises(ModelFileInvalid, match=r"2 of 3 parts are missing: m-00002-of-00003\.gguf, m-00003"):
        References.open(SHA, first)


def test_a_tensor_in_two_parts_is_refused(tmp_path: Path) -> None:
    first = part(tmp_path, 0, tensors=2, total=3)
    part(tmp_path, 1)
    with pytest.raises(ModelFileInvalid, match="is in another part"):
        References.open(SHA, first)


def test_a_file_that_ends_too_early_is_refused(model: Path) -> None:
    os.truncate(model, model.stat().st_size - 1000)
    with pytest.raises(ModelFileInvalid, match="missing"):
        References.open(SHA, model)


def test_no_file_and_no_hash(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ModelNotFound):
        References.open(SHA, tmp_path / "none.gguf")
    with pytest.raises(ValueError, match="SHA-256"):
        References.open(b"short", model)
