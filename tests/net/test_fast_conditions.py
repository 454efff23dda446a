"""Each precondition of the hot path turns it off on its own, and the connection works without it."""

from collections.abc import Callable

import pytest
from aioquic.quic.connection import QuicConnection, QuicConnectionState, QuicNetworkPath
from aioquic.tls import CipherSuite, Epoch

from meshnode.net.fast import FastQuic
from meshnode.net.fast_conditions import steady
from tests.net.quic_pair import Pair, configuration


def keys(quic: QuicConnection, direction: str) -> object:
    return getattr(quic._cryptos[Epoch.ONE_RTT], direction)


UNUSUAL: dict[str, Callable[[QuicConnection], object]] = {
    "closing": lambda quic: setattr(quic, "_state", QuicConnectionState.CLOSING),
    "close wanted": lambda quic: quic.close(),
    "not confirmed": lambda quic: setattr(quic, "_handshake_confirmed", False),
    "qlog": lambda quic: setattr(quic, "_quic_logger", object()),
    "preferred address": lambda quic: setattr(quic, "_remote_preferred_address", object()),
    "second path": lambda quic: quic._network_paths.append(QuicNetworkPath(("elsewhere", 1))),
    "path not validated": lambda quic: setattr(quic._network_paths[0], "is_validated", False),
    "0-RTT keys": lambda quic: setattr(quic._cryptos[Epoch.ZERO_RTT].recv, "aead", object()),
    "key update wanted": lambda quic: quic.request_key_update(),
    "no keys to send": lambda quic: setattr(keys(quic, "send"), "aead", None),
    "no keys to receive": lambda quic: setattr(keys(quic, "recv"), "aead", None),
}


def test_an_established_connection_is_steady() -> None:
    pair = Pair(FastQuic, FastQuic)
    assert steady(pair.client) and steady(pair.server)


@pytest.mark.parametrize("name", UNUSUAL)
def test_anything_unusual_is_not(name: str) -> None:
    pair = Pair(FastQuic, QuicConnection)
    UNUSUAL[name](pair.client)
    assert not steady(pair.client)


def test_a_connection_that_has_not_begun_is_not() -> None:
    quic = FastQuic(configuration=configuration(True))
    assert not steady(quic)
    quic.connect(("server", 2), 1.0)
    assert not steady(quic)
    assert quic.datagrams_to_send(1.0)


def test_chacha20_takes_the_ordinary_way() -> None:
    pair = Pair(FastQuic, FastQuic, cipher_suites=[CipherSuite.CHACHA20_POLY1305_SHA256])
    assert not steady(pair.client)
    pair.client.send_stream_data(0, bytes(100_000), end_stream=True)
    pair.flush()
    pair.run(0.5)
    assert pair.arrived[pair.server][0].finished


def test_a_key_update_is_over_with_the_next_packet() -> None:
    pair = Pair(FastQuic, FastQuic)
    pair.client.request_key_update()
    pair.client.send_stream_data(0, bytes(100))
    pair.flush()
    assert steady(pair.client)
    pair.run(0.1)
    assert steady(pair.server)
    assert pair.arrived[pair.server][0].data == bytes(100)
