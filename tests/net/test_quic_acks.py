"""When acknowledgements go, and with what, on both foundations."""

import pytest
from aioquic.tls import Epoch

from meshnode.net.quic import MeshQuic, connection_type
from meshnode.net.quic_acks import PATIENCE_S, PATIENT_PACKETS, PROMPT_S
from meshnode.net.recovery import PatientRecovery
from tests.net.mesh_pair import PEER, Pair

QUESTION, ANSWER = bytes(300), bytes(500)


@pytest.fixture(params=[False, True], ids=["stock", "fast"])
def kind(request: pytest.FixtureRequest) -> type[MeshQuic]:
    return connection_type(request.param)


@pytest.fixture
def pair(kind: type[MeshQuic]) -> Pair:
    """With one stream that both ends know, and nothing owed."""
    made = Pair(kind)
    assert made.client.open_stream() == 0
    made.client.send_stream_data(0, b"begun")
    made.run(0.1)
    made.server.send_stream_data(0, b"begun")
    made.run(0.1)
    assert owed_s(made, made.server) is None and owed_s(made, made.client) is None
    made.carried.clear()
    return made


def owed_s(pair: Pair, end: MeshQuic) -> float | None:
    """In how many seconds this end will acknowledge what it has; None when it owes nothing."""
    at = end._spaces[Epoch.ONE_RTT].ack_at
    return None if at is None else at - pair.now


def datagrams(pair: Pair, sender: MeshQuic, *writes: bytes) -> list[bytes]:
    """A packet of the sender for each write, kept back."""
    made = []
    for data in writes:
        sender.send_stream_data(0, data)
        (datagram,) = (datagram for datagram, _ in sender.datagrams_to_send(pair.now))
        made.append(datagram)
    return made


def hand_over(pair: Pair, sender: MeshQuic, *packets: bytes) -> None:
    receiver = pair.server if sender is pair.client else pair.client
    receiver.feed(packets, PEER, pair.now)


def test_questions_and_answers_are_one_datagram_each(pair: Pair) -> None:
    for _ in range(20):
        pair.client.send_stream_data(0, QUESTION)
        pair.run(0.002)
        pair.server.send_stream_data(0, ANSWER)
        pair.run(0.002)
    assert len(pair.carried) == 40
    assert len(pair.client._spaces[Epoch.ONE_RTT].sent_packets) <= 1, "acknowledged all the same"
    assert len(pair.server._spaces[Epoch.ONE_RTT].sent_packets) <= 1


def test_without_an_answer_a_few_packets_wait_for_one_acknowledgement(pair: Pair) -> None:
    for _ in range(3):
        pair.client.send_stream_data(0, QUESTION)
        pair.run(0.002)
    assert [sender for sender, _ in pair.carried] == [pair.client] * 3
    pair.run(PATIENCE_S)
    assert [sender for sender, _ in pair.carried] == [pair.client] * 3 + [pair.server]
    assert not pair.client._spaces[Epoch.ONE_RTT].sent_packets


def test_many_packets_are_acknowledged_promptly(pair: Pair) -> None:
    packets = datagrams(pair, pair.client, *[QUESTION] * PATIENT_PACKETS)
    hand_over(pair, pair.client, *packets[:-1])
    assert owed_s(pair, pair.server) == pytest.approx(PATIENCE_S)
    hand_over(pair, pair.client, packets[-1])
    assert owed_s(pair, pair.server) == pytest.approx(PROMPT_S)


def test_a_gap_and_what_fills_it_are_acknowledged_promptly(pair: Pair) -> None:
    first, second, third = datagrams(pair, pair.client, *[QUESTION] * 3)
    hand_over(pair, pair.client, first)
    assert owed_s(pair, pair.server) == pytest.approx(PATIENCE_S)
    hand_over(pair, pair.client, third)
    assert owed_s(pair, pair.server) == pytest.approx(PROMPT_S)
    pair.now += PROMPT_S
    assert pair.server.datagrams_to_send(pair.now)
    hand_over(pair, pair.client, second)
    assert owed_s(pair, pair.server) == pytest.approx(PROMPT_S)


def test_a_ping_does_not_wait_behind_a_patient_acknowledgement(pair: Pair) -> None:
    hand_over(pair, pair.client, *datagrams(pair, pair.client, QUESTION))
    assert owed_s(pair, pair.server) == pytest.approx(PATIENCE_S)
    pair.client.send_ping(7)
    hand_over(pair, pair.client, *[data for data, _ in pair.client.datagrams_to_send(pair.now)])
    assert owed_s(pair, pair.server) == 0.0


def test_a_full_packet_of_data_leaves_room_for_the_acknowledgement(pair: Pair) -> None:
    hand_over(pair, pair.client, *datagrams(pair, pair.client, QUESTION))
    pair.server.send_stream_data(0, bytes(20_000))
    pair.run(0.001)
    assert owed_s(pair, pair.server) is None
    assert not pair.client._spaces[Epoch.ONE_RTT].sent_packets
    pair.run(0.01)
    assert pair.data(pair.client, 0) == b"begun" + bytes(20_000)


def test_nothing_rides_on_a_stream_that_may_not_send(pair: Pair) -> None:
    pair.server.send_stream_data(0, bytes(1 << 20))
    pair.run(0.3)
    assert pair.server.unsent_bytes(0), "the reader has stopped"
    pair.carried.clear()
    hand_over(pair, pair.client, *datagrams(pair, pair.client, QUESTION))
    assert pair.server.datagrams_to_send(pair.now) == []
    assert owed_s(pair, pair.server) == pytest.approx(PATIENCE_S)


def test_before_the_handshake_is_confirmed_acknowledgements_are_prompt(kind: type[MeshQuic]) -> None:
    pair = Pair(kind)
    space = pair.server._spaces[Epoch.ONE_RTT]
    for confirmed, within_s in ((True, PATIENCE_S), (False, PROMPT_S)):
        space.ack_at = pair.now + PATIENCE_S
        pair.server._settled = space.largest_received_packet
        pair.server._handshake_confirmed = confirmed
        pair.server.hasten(pair.now)
        assert owed_s(pair, pair.server) == pytest.approx(within_s)


def test_both_foundations_leave_out_the_delay_of_the_peer(kind: type[MeshQuic]) -> None:
    assert isinstance(Pair(kind).client._loss, PatientRecovery)
