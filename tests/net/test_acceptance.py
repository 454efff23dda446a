import pytest
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicPacketType

from meshnode.net import tls
from meshnode.net.acceptance import MOST_HALF_OPEN, RETRY_ABOVE, Acceptance, Accepted, Challenged, Refused, parse_long
from meshnode.net.quic import MeshQuic, configuration
from tests.net.nodes import IDENTITIES

HERE, ELSEWHERE = ("::ffff:127.0.0.1", 4000, 0, 0), ("::ffff:127.0.0.1", 4001, 0, 0)


def client() -> QuicConnection:
    one = IDENTITIES[0]
    made = MeshQuic(configuration=configuration(tls.certificate(one), one.private_key, is_client=True))
    made.connect(HERE, 0.0)
    return made


def first_packet(quic: QuicConnection, now: float = 0.0) -> bytes:
    return quic.datagrams_to_send(now)[0][0]


def judge(acceptance: Acceptance, datagram: bytes, half_open: int, source=HERE, now: float = 0.0):  # type: ignore[no-untyped-def]
    header = parse_long(datagram)
    assert header is not None
    return acceptance.judge(header, len(datagram), source, half_open, now)


def test_a_first_packet_is_welcome_while_few_are_half_open() -> None:
    quic = client()
    verdict = judge(Acceptance(), first_packet(quic), RETRY_ABOVE - 1)
    assert verdict == Accepted(quic.original_destination_connection_id, None)


def test_many_half_open_ask_for_a_token_and_the_token_for_a_real_address() -> None:
    acceptance, quic = Acceptance(), client()
    initial = first_packet(quic)
    verdict = judge(acceptance, initial, RETRY_ABOVE)
    assert isinstance(verdict, Challenged)
    assert len(verdict.datagram) < len(initial), "nothing is amplified"
    quic.receive_datagram(verdict.datagram, HERE, 0.1)
    second = first_packet(quic, 0.1)
    header = parse_long(second)
    assert header is not None and header.token
    accepted = judge(acceptance, second, RETRY_ABOVE, now=0.2)
    assert accepted == Accepted(quic.original_destination_connection_id, header.destination_cid)
    assert judge(acceptance, second, RETRY_ABOVE, source=ELSEWHERE, now=0.2) == Refused(junk=True)
    assert judge(acceptance, second, RETRY_ABOVE, now=1000.0) == Refused(junk=True), "tokens grow old"
    assert judge(Acceptance(), second, 0) == Refused(junk=True), "a token of another node"


def test_the_last_bound_holds_for_everybody() -> None:
    assert judge(Acceptance(), first_packet(client()), MOST_HALF_OPEN) == Refused(junk=False)


def test_always_retry() -> None:
    assert isinstance(judge(Acceptance(always_retry=True), first_packet(client()), 0), Challenged)


def test_what_is_no_first_packet() -> None:
    initial = first_packet(client())
    version_2 = initial[:1] + (0x6B3343CF).to_bytes(4, "big") + initial[5:]
    handshake = bytes([initial[0] & 0xCF | 0x20]) + initial[1:]
    short_id = initial[:5] + b"\x04" + initial[6:10] + b"\x08" + initial[15:]
    for datagram in (initial[:1100] + b"", version_2, handshake, short_id):
        header = parse_long(datagram)
        if header is not None:
            assert Acceptance().judge(header, len(datagram), HERE, 0, 0.0) == Refused(junk=True)
    assert parse_long(handshake).packet_type is QuicPacketType.HANDSHAKE  # type: ignore[union-attr]


@pytest.mark.parametrize("datagram", [b"\xc0", b"\xff" * 20, bytes([0xC0, 0, 0, 0, 1, 255]), b"\xc0\0\0\0\1\x08"])
def test_malformed_headers(datagram: bytes) -> None:
    assert parse_long(datagram) is None
