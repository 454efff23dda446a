"""What the security of every link rests on, tried once at start: that a handshake in memory proves both keys.

Two of aioquic's habits are relied on that it does not promise: that its server can be made to ask for a certificate,
and that a certificate without the key behind it is refused although no chain is checked. If an update changed either,
a node must not come up.
"""

from __future__ import annotations

from functools import cache

from aioquic.quic.connection import QuicConnection
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshnode.errors import NetworkError
from meshnode.identity import Identity
from meshnode.net import tls
from meshnode.net.quic import MeshQuic, configuration

ROUNDS = 8
STEP_S = 0.01
_ADDRESS = ("127.0.0.1", 1)


def exchange(client: QuicConnection, server: QuicConnection, now: float = 0.0, rounds: int = ROUNDS) -> float:
    """Carry datagrams between two connections in memory, `STEP_S` seconds a round. Returns the time after that."""
    for _ in range(rounds):
        now += STEP_S
        for sender, receiver in ((client, server), (server, client)):
            if sender._network_paths:
                for datagram, _ in sender.datagrams_to_send(now):
                    receiver.receive_datagram(datagram, _ADDRESS, now)
    return now


def pair(client_identity: Identity, server_identity: Identity, *, forged: bool = False) -> tuple[MeshQuic, MeshQuic]:
    """A client and a server after the exchange of a handshake. `forged`: the client signs with another key."""
    key = Ed25519PrivateKey.generate() if forged else client_identity.private_key
    client = MeshQuic(configuration=configuration(tls.certificate(client_identity), key, is_client=True))
    server = MeshQuic(
        configuration=configuration(tls.certificate(server_identity), server_identity.private_key, is_client=False),
        original_destination_connection_id=client.original_destination_connection_id,
    )
    client.connect(_ADDRESS, 0.0)
    exchange(client, server)
    return client, server


@cache
def verify_authentication() -> None:
    """Raises NetworkError unless honest keys are recognised and a forged one is refused. Some milliseconds, once."""
    one, other = (Identity(Ed25519PrivateKey.generate()) for _ in range(2))
    client, server = pair(one, other)
    proven = server.is_handshaken and (client.peer_id(), server.peer_id()) == (other.node_id, one.node_id)
    _, server = pair(one, other, forged=True)
    if not proven or server.is_handshaken:
        raise NetworkError(
            "the installed version of aioquic does not prove the keys of peers",
            fix="install the version that this release was tested with: pip install --force-reinstall meshnode",
        )
