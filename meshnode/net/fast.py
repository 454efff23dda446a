"""aioquic's connection with a hot path for bulk data, and the decision whether to use it.

Of the time that aioquic spends on a packet, a tenth is cryptography; the rest is code that is ready for every kind of
packet in every state. Nearly all packets of a busy link are of one kind, stream data in an established connection.
`FastQuic` handles these itself and leaves everything else to the code it inherits.

Theory of operation
-------------------
The hot path keeps no state of its own about the protocol. It reads and writes the very fields that aioquic's methods
do, and leaves them as aioquic's methods would have: after each call the inherited code finds a connection in which
it might have sent and received those packets itself. So the two can alternate packet by packet, a peer cannot tell
which one it talks to, and falling back costs speed, nothing else. What is cached (the set of streams with data) can
be thrown away at any time.

- Sending (net/fast_send.py, net/fast_packets.py): aioquic's write pass for everything but stream data, then packets
  with one STREAM frame each.
- Receiving (net/fast_receive.py): runs of packets with one STREAM frame; all other datagrams go to aioquic unchanged.
- Acknowledgements (net/fast_recovery.py): packets that carried neighbouring bytes are reported together.

Flow control, final sizes, FIN, resets, congestion window, pacing, anti-amplification limit, key phases, idle timer and
duplicate detection hold on both paths; a stream or connection limit is only ever compared here, never moved.

| precondition of the hot path | why |
|---|---|
| connected, not closing | closing states send and accept other packets |
| handshake confirmed | only then do 1-RTT packets arm the probe timer, and other packet spaces are gone |
| no qlog | packets of the hot path would be missing in it |
| no preferred address waiting | aioquic probes it at the end of a flush |
| exactly one path, validated, and datagrams from its address | migration, validation, 3x limit (RFC 9000, 8 and 9) |
| 0-RTT receive keys gone | the first 1-RTT packet discards them |
| 1-RTT keys of AES-GCM both ways | header protection of ChaCha20 works differently |
| no local key update requested | the next packet that aioquic encrypts changes the keys |

They are checked by `steady` (net/fast_conditions.py) before each flush and before each run of datagrams, and again
after aioquic's code has run. What concerns one packet or one stream is listed in the two modules.

All this leans on some fifty private names, hence the two gates of `connection_class`: aioquic must be exactly the
version that this was written for and tested against, and two connections must pass a transfer in memory with loss,
reordering and duplicates before any real connection uses it. Without them a node runs on aioquic's own class.
"""

from __future__ import annotations

import datetime
import hashlib
import ssl
from functools import cache
from random import Random

import aioquic
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import StreamDataReceived
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from meshnode.net.congestion import NAME, pace
from meshnode.net.fast_receive import FastReceive
from meshnode.net.fast_send import FastSend

TESTED_VERSION = "1.7.2"
SELF_TEST_BYTES = 160_000


class FastQuic(FastSend, FastReceive):
    """A QuicConnection that is quick at bulk data. Used like one; `receive_datagrams` is the quicker way in."""


def connection_class(enabled: bool = True) -> type[QuicConnection]:
    """FastQuic where it is wanted and has proved itself in this process, else aioquic's own class.

    The first call with `enabled` runs the self-test, about 30 ms of processor time; call it before the event loop has
    anything to do, or in a thread.
    """
    return FastQuic if enabled and not why_off() else QuicConnection


@cache
def why_off() -> str:
    """Why the hot path cannot be used here; "" when it can."""
    if aioquic.__version__ != TESTED_VERSION:
        return f"aioquic is {aioquic.__version__}, the hot path is written for {TESTED_VERSION}"
    try:
        return self_test(FastQuic)
    except Exception as error:  # whatever it is, the answer is to do without it
        return f"the self-test of the hot path failed with {type(error).__name__}: {error}"


def self_test(candidate: type[QuicConnection]) -> str:
    """Move some data between two connections of a class, both ways, over a bad line. "" when all of it arrived.

    Time is simulated: one step of 2 ms is one flush and one delivery in each direction.
    """
    key = Ed25519PrivateKey.generate()
    certificate = _certificate(key)
    now = 0.0

    def options(is_client: bool) -> QuicConfiguration:
        made = QuicConfiguration(is_client=is_client, alpn_protocols=["self-test"], congestion_control_algorithm=NAME)
        made.certificate, made.private_key = certificate, key
        made.verify_mode = ssl.CERT_NONE
        return made

    client = candidate(configuration=options(True))
    server = candidate(
        configuration=options(False),
        original_destination_connection_id=client.original_destination_connection_id,
    )
    ends = {client: ("client", 1), server: ("server", 2)}
    for end in ends:
        pace(end)
    client.connect(ends[server], now)
    random = Random(1)
    content = random.randbytes(SELF_TEST_BYTES)
    received = {client: hashlib.sha256(), server: hashlib.sha256()}
    finished: set[QuicConnection] = set()
    started = False
    for _ in range(2000):
        now += 0.002
        if client._handshake_confirmed and not started:
            started = True
            client.send_stream_data(0, content, end_stream=True)
            server.send_stream_data(1, content, end_stream=True)
        for end, other in ((client, server), (server, client)):
            timer = end.get_timer()
            if timer is not None and timer <= now:
                end.handle_timer(now)
            line = [data for data, _ in end.datagrams_to_send(now)]
            if started:
                line = [data for data in line for _ in range(random.choice((0, *[1] * 30, 2)))]
                if len(line) > 2 and random.random() < 0.5:
                    at = random.randrange(len(line) - 1)
                    line[at], line[at + 1] = line[at + 1], line[at]
            if isinstance(other, FastReceive):
                other.receive_datagrams(line, ends[end], now)
            else:
                for data in line:
                    other.receive_datagram(data, ends[end], now)
            while (event := other.next_event()) is not None:
                if isinstance(event, StreamDataReceived):
                    received[other].update(event.data)
                    if event.end_stream:
                        finished.add(other)
        if len(finished) == 2:
            break
    else:
        return "the self-test of the hot path came to no end"
    wanted = hashlib.sha256(content).digest()
    if any(digest.digest() != wanted for digest in received.values()):
        return "the self-test of the hot path delivered other bytes than were sent"
    return ""


def _certificate(key: Ed25519PrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "self-test")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    valid = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    return valid.sign(key, None)
