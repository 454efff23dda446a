"""One connection on the shared socket: feeds its state machine, sends what it wants sent, keeps its timer.

The state machine sees one constant *logical* address per connection. Where datagrams really go is kept here, so that
either role may move: a peer whose NAT gave it another port is followed once an authentic, newest packet came from the
new place, and until it has answered a challenge there it is sent no more than three times what came from it
(RFC 9000, 9.3). aioquic itself lets only clients move.

`redirect` is the other way round: this end goes on at another address of the peer, which follows by the rule above. The
connection does not notice: what was under way on the old path still counts when it arrives. Until the peer has answered
at the new address little is sent there, and if it does not the connection is back at the old one.

A bug, or a packet that finds one, ends this connection and no other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from time import monotonic
from typing import Protocol

from aioquic.quic.events import ConnectionIdIssued, ConnectionIdRetired, QuicEvent

from meshnode.net.address import Address, SocketAddress, from_socket
from meshnode.net.quic import MeshQuic
from meshnode.net.quic_path import FIRST_DATAGRAM_BYTES
from meshnode.wire.registry import Close

LOG = logging.getLogger(__name__)

TIMER_SLACK_S = 0.0002
MOVE_GAP_S = 0.1
"""The least time between two moves to places where the peer has never answered."""
CHALLENGE_GAP_S = 0.05
"""The least time between two challenges to a place from which the peer goes on sending."""
REDIRECT_S = 1.2
"""How long a new address may take to answer. A peer that watches hears nothing meanwhile if the way is dead, and must
not take that for the end: see SILENT_LEAST_S and QUIET_S in liveness.py."""
REDIRECT_FIRST_GAP_S = 0.06
REDIRECT_GAP_GROWTH = 1.6
REDIRECT_BYTES = 16 * FIRST_DATAGRAM_BYTES
"""A third of what may be sent to a new address before it has answered: it was chosen by us, but may be dead."""
LINGER_LEAST_S = 0.5
MOST_GOODBYES = 8


class Carrier(Protocol):
    """What a channel needs of the endpoint."""

    def transmit(self, datagrams: Sequence[bytes], destination: SocketAddress) -> None:
        """Send datagrams."""

    def register(self, connection_id: bytes, channel: Channel) -> None:
        """Datagrams to this connection id are for `channel`."""

    def forget(self, connection_id: bytes) -> None:
        """This connection id is not in use any more."""


class Channel:
    """See the module. `Link` adds what the events mean."""

    def __init__(self, carrier: Carrier, quic: MeshQuic, destination: SocketAddress) -> None:
        self.loop = asyncio.get_running_loop()
        self.quic = quic
        self._carrier = carrier
        self._logical = self._destination = self._proven_destination = destination
        self._redirect: asyncio.Future[bool] | None = None
        """Done when a redirection that is under way has come to its end."""
        self._heard_there = False
        self._next_move_at = self._challenge_at = 0.0
        self._connection_ids: set[bytes] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._turn: asyncio.Handle | None = None
        self._ended = False
        self._goodbye: list[bytes] = []
        self._goodbyes_left = MOST_GOODBYES
        self.claim(quic.host_cid)

    # --- what Link defines -----------------------------------------------------------------------------------

    def _handle(self, event: QuicEvent) -> None:
        """Something happened in the connection."""

    def _heard(self, now: float) -> None:
        """An authenticated packet of the peer came."""

    def _sent(self) -> None:
        """A turn of sending is over."""

    def _timed_out(self, now: float) -> None:
        """A timer of the connection has run."""

    def _left(self) -> None:
        """Datagrams go to a place where the peer has not answered yet."""

    def _returned(self) -> None:
        """They go to the proven place again."""

    def _moved(self, before: SocketAddress) -> None:
        """The peer has answered from another address than `before`."""

    def _over(self, code: int, reason: str) -> None:
        """The connection has ended. Called once."""

    # --- the address -----------------------------------------------------------------------------------------

    @property
    def address(self) -> Address:
        """Where the peer is."""
        return from_socket(self._destination)

    @property
    def destination(self) -> SocketAddress:
        """The same, as the socket names it."""
        return self._destination

    @property
    def proven_destination(self) -> SocketAddress:
        """The last address from which the peer has answered."""
        return self._proven_destination

    def claim(self, connection_id: bytes) -> None:
        """Receive what is sent to this connection id."""
        self._connection_ids.add(connection_id)
        self._carrier.register(connection_id, self)

    # --- receiving -------------------------------------------------------------------------------------------

    def receive(self, datagrams: list[bytes], source: SocketAddress, now: float) -> None:
        """Datagrams that came from one address. `process` must follow when all are in."""
        quic = self.quic
        if self._ended:
            self._repeat_goodbye()
            return
        elsewhere = source != self._destination
        if elsewhere and not quic.is_handshaken:
            return  # before the handshake nobody moves, and nobody can add to what another may be sent
        expires_at, newest = quic.expires_at, quic.newest_received
        uncounted = elsewhere and not quic.is_path_valid
        try:
            quic.feed(datagrams, self._logical, now)
        except Exception:
            self._fail("receiving")
            return
        if uncounted:
            quic.uncount(sum(map(len, datagrams)))
        if quic.expires_at != expires_at:
            self._heard(now)
            if not elsewhere:
                self._heard_there = True
                if self._destination != self._proven_destination and now >= self._challenge_at:
                    # It is there, and goes on without an answer of ours: faster than any timer if some get lost.
                    self._challenge_at = now + CHALLENGE_GAP_S
                    quic.repeat_challenge()
            elif quic.newest_received > newest:
                self._follow(source, sum(map(len, datagrams)), now)

    def process(self) -> None:
        """React to what was received, and send in the next turn of the event loop.

        By then those who waited for the data have run, and their answers go into the same packets.
        """
        self._dispatch()
        if not self._ended:
            self._check_path()
            if self.quic.ending is None:
                self.flush_soon()
            else:
                self.flush()

    def _dispatch(self) -> None:
        try:
            while (event := self.quic.take_event()) is not None:
                if isinstance(event, ConnectionIdIssued):
                    self.claim(event.connection_id)
                elif isinstance(event, ConnectionIdRetired):
                    self._connection_ids.discard(event.connection_id)
                    self._carrier.forget(event.connection_id)
                else:
                    self._handle(event)
        except Exception:
            self._fail("handling an event")

    def _follow(self, source: SocketAddress, received_bytes: int, now: float) -> None:
        if self._redirect is not None:
            return  # the peer's packets go on coming from the old place until it has seen ours from the new one
        if source == self._proven_destination:
            self._return()
        elif now >= self._next_move_at:
            self._next_move_at = now + MOVE_GAP_S
            self._challenge_at = now + CHALLENGE_GAP_S
            self._destination = source
            self.quic.begin_validation(received_bytes)
            self._left()

    def _return(self) -> None:
        self._destination = self._proven_destination
        self.quic.end_validation()
        self._returned()

    def _check_path(self) -> None:
        if self._destination == self._proven_destination:
            return
        if self.quic.path_failed:
            self.quic.path_failed = False
            if self._redirect is None:
                self._return()
            else:
                self.quic.challenge_again()  # how long to try is decided by go_on_at
        elif self.quic.is_path_valid:
            if self._redirect is not None and not self._heard_there:
                # The answer came the old way: the peer has not followed yet, and would draw us back.
                self.quic.challenge_again()
                return
            before, self._proven_destination = self._proven_destination, self._destination
            self._moved(before)
            self._settle(True)

    def _settle(self, answered: bool) -> None:
        if self._redirect is not None and not self._redirect.done():
            self._redirect.set_result(answered)

    async def go_on_at(self, target: SocketAddress) -> bool:
        """Send to `target` from now on. False when nothing has answered there within REDIRECT_S, or the connection is
        over, or is being redirected already: then all is as before."""
        if self._ended or self._redirect is not None or not self.quic.is_confirmed:
            return False
        if target == self._proven_destination:
            if target != self._destination:
                self._return()
            return True
        answered: asyncio.Future[bool] = self.loop.create_future()
        self._redirect, self._destination, self._heard_there = answered, target, False
        self._left()
        self.quic.begin_validation(REDIRECT_BYTES)
        gap_s, deadline = REDIRECT_FIRST_GAP_S, monotonic() + REDIRECT_S
        try:
            while not answered.done() and (left_s := deadline - monotonic()) > 0:
                self.quic.probe()
                self.flush()
                await asyncio.wait([answered], timeout=min(gap_s, left_s))
                gap_s *= REDIRECT_GAP_GROWTH
                if not answered.done():
                    self.quic.challenge_again(FIRST_DATAGRAM_BYTES)
        finally:
            self._redirect = None
            if not self._ended and self._destination != self._proven_destination:
                self.quic.path_failed = False
                self._return()
                self.flush_soon()
        return answered.done() and answered.result()

    # --- sending ---------------------------------------------------------------------------------------------

    def flush_soon(self) -> None:
        """Send in the next turn of the event loop, together with whatever else comes up in this one."""
        if self._turn is None:
            self._turn = self.loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._turn = None
        self.flush()

    def flush(self) -> None:
        """Send a burst of what waits; the rest follows after a turn of the event loop."""
        if self._ended:
            return
        quic, now = self.quic, monotonic()
        try:
            datagrams = [data for data, _ in quic.datagrams_to_send(now)]
        except Exception:
            self._fail("sending")
            return
        if datagrams:
            self._carrier.transmit(datagrams, self._destination)
        if quic.ending is not None:
            self._end(datagrams)
            return
        if quic.take_turn(now):
            self.flush_soon()
        self._arm()
        self._sent()

    # --- the timer -------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """See that the timer runs in time. One that runs too early looks again, which is cheaper than moving it."""
        at = self.quic.get_timer()
        if at is None or (self._timer is not None and self._timer_at <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(max(at - monotonic(), 0.0), self._fire)
        self._timer_at = at

    def _fire(self) -> None:
        self._timer = None
        quic, now = self.quic, monotonic()
        at = quic.get_timer()
        if at is not None and at <= now + TIMER_SLACK_S:
            try:
                quic.handle_timer(max(now, at))
            except Exception:
                self._fail("a timer")
                return
            self._timed_out(now)
            self.process()
        else:
            self._arm()

    # --- the end ---------------------------------------------------------------------------------------------

    @property
    def has_ended(self) -> bool:
        """Whether the connection is over."""
        return self._ended

    def end(self, code: int, reason: str) -> None:
        """Close the connection and tell the peer why."""
        if not self._ended:
            self.quic.close(error_code=code, reason_phrase=reason)
            self.flush()

    def vanish(self, reason: str) -> None:
        """End the connection without a word to the peer."""
        if not self._ended:
            self._finish(Close.DONE, reason)

    def _fail(self, doing: str) -> None:
        """A bug showed. Log it once and give this connection up."""
        if self._ended:
            return
        LOG.exception("the connection to %s failed while %s", self.address, doing)
        datagrams: list[bytes] = []
        try:
            self.quic.close(error_code=Close.INTERNAL)
            datagrams = [data for data, _ in self.quic.datagrams_to_send(monotonic())]
        except Exception as second:
            LOG.debug("no goodbye either: %r", second)
        if datagrams:
            self._carrier.transmit(datagrams, self._destination)
        self._goodbye = datagrams
        self._finish(Close.INTERNAL, "a fault of the node")

    def _end(self, goodbye: list[bytes]) -> None:
        ending = self.quic.ending
        assert ending is not None
        self._goodbye = goodbye
        self._finish(ending.error_code, ending.reason_phrase)

    def _finish(self, code: int, reason: str) -> None:
        self._ended = True
        for handle in (self._timer, self._turn):
            if handle is not None:
                handle.cancel()
        self._timer = self._turn = None
        self._settle(False)
        # For a while late packets are answered with the same goodbye, as the first may be lost (RFC 9000, 10.2).
        self.loop.call_later(max(LINGER_LEAST_S, 3 * self.quic.smoothed_rtt_s), self._disappear)
        self._over(code, reason)

    def _repeat_goodbye(self) -> None:
        if self._goodbye and self._goodbyes_left:
            self._goodbyes_left -= 1
            self._carrier.transmit(self._goodbye, self._destination)

    def _disappear(self) -> None:
        for connection_id in self._connection_ids:
            self._carrier.forget(connection_id)
        self._connection_ids.clear()
