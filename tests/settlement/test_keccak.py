from Crypto.Hash import SHA3_256
from hypothesis import given
from hypothesis import strategies as st

from meshnode.settlement.keccak import keccak256, selector


def test_the_known_hashes() -> None:
    assert keccak256(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    assert keccak256(b"abc").hex() == "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45"


@given(st.binary(max_size=300))
def test_it_is_not_sha3(data: bytes) -> None:
    assert keccak256(data) != SHA3_256.new(data).digest()
    assert len(keccak256(data)) == 32


def test_selectors() -> None:
    assert selector("transfer(address,uint256)").hex() == "a9059cbb"
    assert selector("DOMAIN_SEPARATOR()").hex() == "3644e515"
