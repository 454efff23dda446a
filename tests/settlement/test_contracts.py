from __future__ import annotations

from dataclasses import replace

import pytest
from eth_abi.abi import encode as oracle

from meshnode.settlement import contracts
from meshnode.settlement.abi_codec import Malformed, encode
from meshnode.settlement.answers import Log
from meshnode.settlement.contracts import Authorization, Claim, Standing
from meshnode.settlement.typed_data import ChannelConfig
from meshnode.wire import payments as wire

PARTIES = [bytes([number]) * 20 for number in range(1, 6)]
CONFIG = ChannelConfig(*PARTIES, 86_400, b"s" * 32)
HUB = contracts.interface("hub")


def test_a_configuration_of_the_wire_is_the_same_channel() -> None:
    assert contracts.typed(wire.ChannelConfig(*PARTIES, 86_400, b"s" * 32)) == CONFIG


def test_a_deposit_carries_what_the_collector_needs() -> None:
    given = Authorization(500, 3, 9, b"t" * 32, b"x" * 65)
    row, amount, collector, data = HUB.arguments("deposit", contracts.deposit(CONFIG, given, PARTIES[0]))
    assert (row, amount, collector) == (contracts.config_row(CONFIG), 500, PARTIES[0])
    assert data == oracle(
        ["uint256", "uint256", "uint256", "bytes"], [3, 9, int.from_bytes(b"t" * 32, "big"), b"x" * 65]
    )


def test_claims_keep_ceiling_and_total_apart() -> None:
    (rows,) = HUB.arguments("claim", contracts.claim([Claim(CONFIG, 700, b"x" * 65, 600)]))
    assert rows == (((contracts.config_row(CONFIG), 700), b"x" * 65, 600),)


def test_several_calls_are_one_and_one_stays_itself() -> None:
    one, two = contracts.settle(PARTIES[0], PARTIES[1]), contracts.finalize_withdraw(CONFIG)
    assert contracts.together([one]) == one
    assert HUB.arguments("multicall", contracts.together([one, two])) == ((one, two),)
    assert HUB.arguments("initiateWithdraw", contracts.initiate_withdraw(CONFIG, 4))[1] == 4
    assert HUB.arguments("refund", contracts.refund(CONFIG, 5))[1] == 5


def answer(*figures: tuple[int, int, int, int, int]) -> bytes:
    parts = []
    for balance, claimed, amount, since, nonce in figures:
        parts += [
            encode(("uint128", "uint128"), (balance, claimed)),
            encode(("uint128", "uint40"), (amount, since)),
            encode(("uint256",), (nonce,)),
        ]
    return encode(("bytes[]",), (parts,))


def test_what_the_hub_says_of_several_channels() -> None:
    ids = [b"a" * 32, b"b" * 32]
    (questions,) = HUB.arguments("multicall", contracts.standings_question(ids))
    assert len(questions) == 6 and questions[3] == HUB.encode("channels", ids[1])
    found = contracts.standings(ids, answer((9, 4, 0, 0, 0), (8, 8, 2, 77, 3)))
    assert found == {ids[0]: Standing(9, 4), ids[1]: Standing(8, 8, 2, 77, 3)}
    assert found[ids[0]].left_micros == 5


@pytest.mark.parametrize("wrong", [b"", answer(), answer((1, 0, 0, 0, 0), (1, 0, 0, 0, 0)), answer((4, 5, 0, 0, 0))])
def test_answers_that_no_hub_gives(wrong: bytes) -> None:
    with pytest.raises(Malformed):
        contracts.standings([b"a" * 32], wrong)


def test_the_token_answers_with_one_value() -> None:
    assert contracts.token_question("balanceOf", PARTIES[0])[4:] == bytes(12) + PARTIES[0]
    assert contracts.token_answer("balanceOf", encode(("uint256",), (7,))) == 7
    assert contracts.token_answer("paused", encode(("bool",), (True,))) is True
    with pytest.raises(Malformed):
        contracts.token_answer("paused", encode(("uint256",), (2,)))


def test_what_is_claimed_and_not_yet_paid_out() -> None:
    assert contracts.unsettled(encode(("uint128", "uint128"), (9, 4))) == (9, 5)
    with pytest.raises(Malformed):
        contracts.unsettled(encode(("uint128", "uint128"), (4, 9)))


def test_logs_of_channels() -> None:
    topics = (HUB.events["Claimed"].topic, b"c" * 32, bytes(32))
    log = Log(PARTIES[0], topics, encode(("uint128", "uint128"), (5, 9)), 3, b"b" * 32, b"t" * 32, 0)
    event = contracts.channel_event(log)
    assert event is not None
    assert (event.name, event.channel, event.amount_micros, event.block) == ("Claimed", b"c" * 32, 5, 3)
    assert (
        contracts.channel_event(replace(log, topics=(HUB.events["Settled"].topic, *[bytes(32)] * 3), data=bytes(32)))
        is None
    )
    assert contracts.channel_event(replace(log, topics=(b"z" * 32,))) is None
    with pytest.raises(Malformed):
        contracts.channel_event(replace(log, data=b""))
    events, channels = contracts.watched_topics([b"c" * 32])
    assert channels == [b"c" * 32] and HUB.events["WithdrawInitiated"].topic in events and len(events) == 5
