from __future__ import annotations

import json
from pathlib import Path

import pytest
from eth_abi.abi import encode as oracle
from hypothesis import given
from hypothesis import strategies as st

from meshnode.settlement import abi_codec
from meshnode.settlement.abi_codec import Interface, Malformed, decode, encode, plain_text
from meshnode.settlement.keccak import keccak256

ABI = json.loads((Path(abi_codec.__file__).with_name("abi") / "hub.json").read_text())
TOKEN = json.loads((Path(abi_codec.__file__).with_name("abi") / "token.json").read_text())
HUB = Interface(ABI)
CONFIG = (*(bytes([number]) * 20 for number in range(1, 6)), 86_400, b"s" * 32)
CONFIG_TYPE = "(address,address,address,address,address,uint40,bytes32)"


def test_calldata_is_that_of_the_contract_abi() -> None:
    rows = [((CONFIG, 500), b"x" * 65, 400), ((CONFIG, 600), b"y" * 65, 300)]
    signature = f"claim((({CONFIG_TYPE},uint128),bytes,uint128)[])"
    expected = keccak256(signature.encode())[:4] + oracle([signature[6:-1]], [rows])
    assert HUB.encode("claim", rows) == expected
    assert HUB.arguments("claim", expected) == (tuple(rows),)


def test_the_abi_of_x402_gives_the_same_bytes() -> None:
    x402 = pytest.importorskip("x402.mechanisms.evm.batch_settlement.abi")
    other = Interface(x402.BATCH_SETTLEMENT_ABI)
    for name, function in other.functions.items():
        if name in HUB.functions and "(" not in name:
            assert HUB.functions[name].selector == function.selector, name
            assert HUB.functions[name].inputs == function.inputs, name


def test_overloaded_functions_are_named_whole() -> None:
    token = Interface(TOKEN)
    assert "permit" not in token.functions
    assert token.functions["balanceOf"].inputs == ("address",)
    both = [name for name in token.functions if name.startswith("permit(")]
    assert len(both) == 2 and len({token.functions[name].selector for name in both}) == 2


@pytest.mark.parametrize("arguments", [(), (b"short",), (b"x" * 33,), (bytes(32), 7)])
def test_arguments_that_do_not_fit(arguments: tuple[object, ...]) -> None:
    with pytest.raises(ValueError):
        HUB.encode("channels", *arguments)
    with pytest.raises(ValueError):
        HUB.encode("initiateWithdraw", CONFIG, -1)


def test_answers_are_decoded_whole_or_not_at_all() -> None:
    whole = encode(("uint128", "uint128"), (7, 5))
    assert HUB.decode("channels", whole) == (7, 5)
    for wrong in (b"", whole[:-1], whole + bytes(32), b"\xff" * 64, bytes(abi_codec.MOST_ANSWER_BYTES + 32)):
        with pytest.raises(Malformed):
            HUB.decode("channels", wrong)


@given(st.binary(max_size=400))
def test_no_answer_is_too_strange(answer: bytes) -> None:
    for name in ("channels", "eip712Domain", "multicall", "refundNonce"):
        try:
            values = HUB.decode(name, answer)
        except Malformed:
            continue
        assert encode(HUB.functions[name].outputs, values) == answer


def test_addresses_are_bytes_wherever_they_stand() -> None:
    kinds = ("address[]", f"({CONFIG_TYPE},uint8)[]")
    values = ((CONFIG[0], CONFIG[1]), ((CONFIG, 7),))
    assert decode(kinds, encode(kinds, values)) == values


def test_calldata_of_another_function() -> None:
    with pytest.raises(Malformed):
        HUB.arguments("settle", HUB.encode("channels", bytes(32)))


def test_logs_by_their_first_topic() -> None:
    shape = HUB.events["Deposited"]
    topics = [shape.topic, b"c" * 32, bytes(12) + b"a" * 20]
    event = HUB.event(topics, encode(("uint128", "uint128"), (5, 6)))
    assert event is not None and event.name == "Deposited"
    assert event.members == {"channelId": b"c" * 32, "sender": b"a" * 20, "amount": 5, "newBalance": 6}
    assert HUB.event([b"z" * 32], b"") is None and HUB.event([], b"") is None
    for wrong_topics, data in ((topics[:2], bytes(64)), (topics, bytes(63)), ([*topics[:2], b"\xff" * 32], bytes(64))):
        with pytest.raises(Malformed):
            HUB.event(wrong_topics, data)


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "no reason given"),
        (bytes.fromhex("08c379a0") + oracle(["string"], ["Pausable: paused"]), "Pausable: paused"),
        (bytes.fromhex("08c379a0") + oracle(["string"], ["a\x1b[31m\nb"]), "a [31m b"),
        (bytes.fromhex("4e487b71") + oracle(["uint256"], [0x11]), "panic 0x11"),
        (keccak256(b"NotAParty()")[:4], "NotAParty"),
        (keccak256(b"AboveBalance(bytes32)")[:4] + b"c" * 32, "AboveBalance"),
        (bytes.fromhex("08c379a0ff"), "0x08c379a0ff"),
        (b"\x01\x02\x03\x04", "0x01020304"),
    ],
)
def test_why_a_call_failed(data: bytes, words: str) -> None:
    assert HUB.reason(data) == words


def test_words_of_others_are_bounded_and_plain() -> None:
    assert plain_text("\x00ok\r\n" + "x" * 500) == "ok  " + "x" * 195
