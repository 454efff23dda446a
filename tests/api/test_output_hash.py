from hashlib import sha256

import pytest

from meshnode.api.output_hash import OutputHash
from meshnode.api.record import Record


def record(radius: str) -> Record:
    return Record("req_1", "/v1/chat/completions", 0.0, radius=radius)


def test_what_a_stranger_gave_is_hashed_in_the_order_in_which_it_came() -> None:
    taken: list[bytes] = []
    found = record("public")
    output = OutputHash(found, taken.append)
    for piece in (b"one", b"", b"two"):
        output.take(piece)
    output.close()
    assert taken == [b"one", b"", b"two"]
    assert found.output_sha256 == sha256(b"onetwo").hexdigest()


@pytest.mark.parametrize("radius", ["", "local", "trusted"])
def test_nothing_else_is_hashed(radius: str) -> None:
    found = record(radius)
    output = OutputHash(found, lambda piece: None)
    output.take(b"one")
    output.close()
    assert found.output_sha256 == ""


def test_of_an_answer_that_a_stranger_ends_only_its_own_part_counts() -> None:
    found = record("trusted")
    output = OutputHash(found, lambda piece: None)
    output.take(b"from a friend")
    found.radius = "public"
    output.take(b"from a stranger")
    output.close()
    assert found.output_sha256 == sha256(b"from a stranger").hexdigest()
