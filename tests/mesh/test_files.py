from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshnode.errors import StateError
from meshnode.mesh.files import Counter, load, save
from meshnode.wire.schema import Text, UInt, member


@dataclass(frozen=True, slots=True)
class Note:
    number: int = member(0, UInt(255))
    text: str = member(2, Text(8), "")


def read(file: Path) -> Note | None:
    return load(Note, file, limit_bytes=64, fix="do this")


def test_a_value_comes_back(tmp_path: Path) -> None:
    assert read(tmp_path / "note") is None
    save(tmp_path / "note", Note(7, "x"))
    assert read(tmp_path / "note") == Note(7, "x")


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=100))
def test_a_damaged_file_is_told_with_a_fix(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "damaged"
    file.write_bytes(data)
    try:
        found = read(file)
    except StateError as error:
        assert error.fix == "do this" and str(file) in error.message
    else:
        assert found is not None
        save(file, found)
        assert file.read_bytes() == data  # only what we could have written ourselves is read


def test_every_cut_and_every_flip_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "note"
    save(file, Note(7, "text"))
    whole = file.read_bytes()
    for end in range(len(whole)):
        file.write_bytes(whole[:end])
        with pytest.raises(StateError, match="damaged"):
            read(file)
    file.write_bytes(whole + b"\0")
    with pytest.raises(StateError, match="damaged"):
        read(file)


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot be read"):
        read(tmp_path)


def test_a_counter_only_grows(tmp_path: Path) -> None:
    counter = Counter(tmp_path / "count")
    assert (counter.next(), counter.next()) == (1, 2)
    counter.raise_to(1)
    assert Counter(tmp_path / "count").next() == 3
    counter = Counter(tmp_path / "count")
    counter.raise_to(100)
    assert Counter(tmp_path / "count").next() == 101
    (tmp_path / "count").write_bytes(b"")
    with pytest.raises(StateError) as caught:
        Counter(tmp_path / "count")
    assert "begins anew" in caught.value.fix
