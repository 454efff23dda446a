import pytest
from eth_utils import to_checksum_address
from hypothesis import given
from hypothesis import strategies as st

from meshnode.settlement import addresses

# From the text of EIP-55.
CHECKSUMMED = [
    "0x52908400098527886E0F7030069857D2E4169EE7",
    "0x8617E340B3D01FA5F11F306F4090FD50E238070D",
    "0xde709f2102306220921060314715629080e2fb77",
    "0x27b1fdb04752bbc536007a920d24acb045561c26",
    "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
    "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
    "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
    "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
]


@pytest.mark.parametrize("text", CHECKSUMMED)
def test_the_checksums_of_the_standard(text: str) -> None:
    assert addresses.shown(addresses.parse(text)) == text
    assert addresses.parse(text.lower()) == addresses.parse(text)
    assert addresses.parse("0x" + text[2:].upper()) == addresses.parse(text)


@given(st.binary(min_size=20, max_size=20))
def test_any_address_is_shown_as_others_show_it(address: bytes) -> None:
    assert addresses.shown(address) == to_checksum_address(address)
    assert addresses.parse(addresses.shown(address)) == address


@given(st.sampled_from(CHECKSUMMED[4:]), st.integers(2, 41), st.sampled_from("0123456789abcdefABCDEF"))
def test_one_mistyped_letter_is_noticed(text: str, at: int, letter: str) -> None:
    typed = text[:at] + letter + text[at + 1 :]
    if typed == text:
        return
    with pytest.raises(ValueError, match="checksum"):
        addresses.parse(typed)


@pytest.mark.parametrize("text", ["", "0x", "0x12", CHECKSUMMED[4][2:], CHECKSUMMED[4] + "0", "0x" + "g" * 40, "\n"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="40 hexadecimal digits"):
        addresses.parse(text)
    with pytest.raises(ValueError, match="40 hexadecimal digits"):
        addresses.parse(CHECKSUMMED[4] + "\n")


def test_only_twenty_bytes_are_shown() -> None:
    with pytest.raises(ValueError, match="20 bytes"):
        addresses.shown(bytes(19))


def test_an_account_without_code_can_authorize() -> None:
    assert addresses.why_cannot_authorize(b"") == ""
    assert addresses.delegate(b"") is None


def test_a_delegated_account_cannot() -> None:
    target = addresses.parse(CHECKSUMMED[4])
    code = b"\xef\x01\x00" + target
    assert addresses.delegate(code) == target
    assert "EIP-7702" in addresses.why_cannot_authorize(code)
    assert CHECKSUMMED[4] in addresses.why_cannot_authorize(code)


@pytest.mark.parametrize("code", [b"\x60\x80", b"\xef\x01\x00" + bytes(19), b"\xef\x01\x01" + bytes(20), bytes(23)])
def test_a_contract_cannot_either(code: bytes) -> None:
    assert addresses.delegate(code) is None
    assert "EIP-1271" in addresses.why_cannot_authorize(code)
