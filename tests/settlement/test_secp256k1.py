import pytest

from meshnode.settlement.secp256k1 import FIELD, ORDER, Signature, parsed

GOOD = Signature(7, ORDER // 2, True).to_bytes()


def test_the_curve_is_that_of_the_standard() -> None:
    assert f"{FIELD:X}" == "F" * 55 + "EFFFFFC2F"
    assert f"{ORDER:X}" == "F" * 31 + "EBAAEDCE6AF48A03BBFD25E8CD0364141"
    assert pow(2, FIELD - 1, FIELD) == pow(2, ORDER - 1, ORDER) == 1


@pytest.mark.parametrize("odd", [False, True])
def test_there_and_back(odd: bool) -> None:
    signature = Signature(ORDER - 1, 1, odd)
    assert signature.to_bytes()[64] == 27 + odd
    assert parsed(signature.to_bytes()) == signature


@pytest.mark.parametrize(
    "signature",
    [
        b"",
        GOOD[:64],
        GOOD + b"\0",
        GOOD[:64] + b"\0",
        GOOD[:64] + b"\x01",
        GOOD[:64] + b"\x1a",
        GOOD[:64] + b"\x1d",
        GOOD[:64] + b"\x25",
        bytes(32) + GOOD[32:],
        ORDER.to_bytes(32, "big") + GOOD[32:],
        b"\xff" * 32 + GOOD[32:],
        GOOD[:32] + bytes(32) + GOOD[64:],
        GOOD[:32] + (ORDER // 2 + 1).to_bytes(32, "big") + GOOD[64:],
        GOOD[:32] + (ORDER - 1).to_bytes(32, "big") + GOOD[64:],
        GOOD[:32] + b"\xff" * 32 + GOOD[64:],
    ],
    ids=lambda value: value[-33:].hex(),
)
def test_what_no_contract_takes(signature: bytes) -> None:
    assert parsed(GOOD) is not None
    assert parsed(signature) is None
