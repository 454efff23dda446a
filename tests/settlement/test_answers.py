from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.settlement import answers
from meshnode.settlement.addresses import shown
from meshnode.settlement.answers import Block, Call, EndpointFailed, Log, TransactionReceipt

BLOCK = {"number": 7, "hash": b"h" * 32, "timestamp": 1_795_300_000, "baseFeePerGas": 9, "more": "x"}
RECEIPT = {
    "blockNumber": 7,
    "blockHash": b"h" * 32,
    "status": 1,
    "gasUsed": 50_000,
    "effectiveGasPrice": 11,
    "l1Fee": "0x1f4",
}
LOG = {
    "address": "0x" + "ab" * 20,
    "topics": [b"t" * 32],
    "data": b"d",
    "blockNumber": 7,
    "blockHash": b"h" * 32,
    "transactionHash": b"x" * 32,
    "logIndex": 3,
}
READERS: list[tuple[Callable[[Any], Any], dict[str, Any]]] = [
    (answers.block, BLOCK),
    (answers.receipt, RECEIPT),
    (answers.log, LOG),
]


def test_honest_answers() -> None:
    assert answers.block(BLOCK) == Block(7, b"h" * 32, 1_795_300_000, 9)
    assert answers.receipt(RECEIPT) == TransactionReceipt(7, b"h" * 32, True, 50_000, 11, 500)
    assert answers.log(LOG) == Log(b"\xab" * 20, (b"t" * 32,), b"d", 7, b"h" * 32, b"x" * 32, 3)


@pytest.mark.parametrize("l1_fee, wei", [(None, 0), (17, 17), ("0x1", 1), ("nonsense", 0), ("0xzz", 0), ([], 0)])
def test_the_fee_of_the_chain_below_is_there_or_not(l1_fee: Any, wei: int) -> None:
    assert answers.receipt({**RECEIPT, "l1Fee": l1_fee}).l1_fee_wei == wei


@pytest.mark.parametrize("reader, honest", READERS)
def test_a_member_that_is_missing_or_of_another_kind(reader: Callable[[Any], Any], honest: dict[str, Any]) -> None:
    wrongs: list[Any] = [None, -1, 1 << 256, "text", b"short", True, [b"short"], [None], [b"t" * 32] * 5, 1.5, {}]
    optional = {"more", "l1Fee"}
    for name in honest.keys() - optional:
        with pytest.raises(EndpointFailed):
            reader({key: value for key, value in honest.items() if key != name})
        for wrong in wrongs:
            if type(wrong) is type(honest[name]) and name in ("data", "status"):
                continue
            with pytest.raises(EndpointFailed):
                reader({**honest, name: wrong})


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.binary() | st.text(), lambda inner: st.lists(inner)))
def test_nothing_that_is_answered_is_too_strange(found: Any) -> None:
    for reader, honest in READERS:
        for strange in (found, *({**honest, name: found} for name in honest)):
            try:
                reader(strange)
            except EndpointFailed:
                continue
    assert isinstance(answers.refusal(found), str)
    assert isinstance(answers.revert_data(found), bytes)


def test_the_words_of_a_refusal() -> None:
    assert answers.refusal({"error": {"message": "no", "code": 1}}) == "no"
    for strange in (None, {}, {"error": None}, {"error": "no"}, []):
        assert answers.refusal(strange) == "an error without words"
    assert answers.refusal({"error": {}}) == ""


def test_the_reason_of_a_contract_is_bounded() -> None:
    assert answers.revert_data("0x0102") == b"\x01\x02"
    assert answers.revert_data("0x" + "00" * 10_000) == b""
    assert answers.revert_data("0102") == b""


def test_a_message_as_web3_wants_it() -> None:
    fields = Call(bytes([1]) * 20, bytes([2]) * 20, b"\x03").fields()
    assert fields == {"from": shown(bytes([1]) * 20), "to": shown(bytes([2]) * 20), "data": "0x03", "value": 0}
