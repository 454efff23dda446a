"""When the hot path may run: the one place where its preconditions on a connection are checked.

net/fast.py lists them with their reasons. Each is a fact about the whole connection that only aioquic's own code
changes; conditions on a single packet or stream stand where packets are built (fast_send) and read (fast_receive).
"""

from __future__ import annotations

from aioquic.quic.connection import QuicConnection, QuicConnectionState
from aioquic.tls import Epoch


def steady(connection: QuicConnection) -> bool:
    """Whether the connection is in the ordinary state that the hot path is written for."""
    if (
        connection._state is not QuicConnectionState.CONNECTED
        or connection._close_pending
        or not connection._handshake_confirmed
        or connection._quic_logger is not None
        or connection._remote_preferred_address is not None
        or len(connection._network_paths) != 1
        or not connection._network_paths[0].is_validated
        or connection._cryptos[Epoch.ZERO_RTT].recv.aead is not None
    ):
        return False
    keys = connection._cryptos[Epoch.ONE_RTT]
    send, receive = keys.send, keys.recv
    return (
        not keys._update_key_requested
        and send.aead is not None
        and receive.aead is not None
        and send.hp is not None
        and receive.hp is not None
        and not send.hp._is_chacha20
        and not receive.hp._is_chacha20
    )
