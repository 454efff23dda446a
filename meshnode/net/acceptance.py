"""Who may begin a handshake: the only part of a node that answers strangers.

Whoever sends a first packet may have forged its source address, and costs us a state machine and some milliseconds.
So the number of unfinished handshakes is bounded, and from a point on a stranger must first show with a token that it
receives what we send (RFC 9000, 8.1.2). Tokens keep no state here. Everything that is no valid first packet is dropped
without an answer: no version negotiation, no stateless reset, nothing to amplify.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from aioquic._buffer import Buffer
from aioquic.quic.packet import QuicHeader, QuicPacketType, QuicProtocolVersion, encode_quic_retry, pull_quic_header
from aioquic.quic.retry import QuicRetryTokenHandler

from meshnode.net.address import SocketAddress

CONNECTION_ID_BYTES = 8
INITIAL_LEAST_BYTES = 1200
"""A first datagram is padded to this (RFC 9000, 14.1), so that an answer amplifies little."""
RETRY_ABOVE = 64
MOST_HALF_OPEN = 512


@dataclass(frozen=True, slots=True)
class Accepted:
    """Begin a handshake. The connection ids are those that the client must find in our transport parameters."""

    original_destination: bytes
    retry_source: bytes | None


@dataclass(frozen=True, slots=True)
class Challenged:
    """Answer with this datagram, and remember nothing."""

    datagram: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """Do nothing. `junk` tells what could not be meant for us from what came when we were full."""

    junk: bool


Verdict = Accepted | Challenged | Refused


def parse_long(datagram: bytes) -> QuicHeader | None:
    """The header of a datagram that begins with a long one (RFC 9000, 17.2); None if malformed."""
    try:
        return pull_quic_header(Buffer(data=datagram), host_cid_length=CONNECTION_ID_BYTES)
    except ValueError:
        return None


class Acceptance:
    """Judges first packets. `always_retry` demands a token of everybody."""

    def __init__(self, *, always_retry: bool = False) -> None:
        self._tokens = QuicRetryTokenHandler()
        self._retry_above = 0 if always_retry else RETRY_ABOVE

    def judge(self, header: QuicHeader, size: int, source: SocketAddress, half_open: int, now: float) -> Verdict:
        """What to do with a datagram of `size` bytes for a connection that does not exist."""
        if (
            header.packet_type != QuicPacketType.INITIAL
            or header.version != QuicProtocolVersion.VERSION_1
            or size < INITIAL_LEAST_BYTES
            or len(header.destination_cid) < CONNECTION_ID_BYTES
        ):
            return Refused(junk=True)
        if half_open >= MOST_HALF_OPEN:
            return Refused(junk=False)
        if header.token:
            return self._redeem(header, source, now)
        if half_open < self._retry_above:
            return Accepted(header.destination_cid, None)
        return Challenged(self._challenge(header, source, now))

    def _redeem(self, header: QuicHeader, source: SocketAddress, now: float) -> Verdict:
        try:
            original = self._tokens.validate_token(
                address=source, destination_cid=header.destination_cid, token=header.token, now=now
            )
        except ValueError:  # BufferReadError is one, too
            return Refused(junk=True)
        return Accepted(original, header.destination_cid)

    def _challenge(self, header: QuicHeader, source: SocketAddress, now: float) -> bytes:
        assert header.version is not None
        fresh = os.urandom(CONNECTION_ID_BYTES)
        token = self._tokens.create_token(
            address=source,
            original_destination_connection_id=header.destination_cid,
            retry_source_connection_id=fresh,
            now=now,
        )
        return encode_quic_retry(
            version=header.version,
            source_cid=fresh,
            destination_cid=header.source_cid,
            original_destination_cid=header.destination_cid,
            retry_token=token,
        )
