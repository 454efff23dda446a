"""The streams of one link: which are open, who may open more, and what the peer may send on all of them.

aioquic opens and frees streams by its own rules, and speaks of streams that the application has done with. This table
is what the application sees: a stream is in it from its first byte until both directions have ended and everything was
read, or until a reset by either side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import monotonic
from typing import TYPE_CHECKING

from meshnode.net.quic import MeshQuic
from meshnode.net.stream import LOW_WATER_BYTES, LinkLost, MeshStream, StreamReset
from meshnode.wire.registry import LIMIT_STREAMS_A_LINK, Reset

if TYPE_CHECKING:
    from meshnode.net.link import Link


class Multiplexer:
    """See the module. `flush_soon` has the link send, `refused` counts streams that were too many."""

    def __init__(self, link: Link, quic: MeshQuic, flush_soon: Callable[[], None], refused: Callable[[], None]) -> None:
        self.loop = link.loop
        self._link = link
        self._quic = quic
        self._flush_soon = flush_soon
        self._refused = refused
        self._our_bit = 0 if quic.configuration.is_client else 1
        self._streams: dict[int, MeshStream] = {}
        self._ended_by_us: set[int] = set()
        """Streams of the peer that aioquic may still speak of, though the application has done with them."""
        self._of_peer = 0
        self._undrained: set[MeshStream] = set()
        self._consumed_bytes = 0

    def __len__(self) -> int:
        return len(self._streams)

    def __iter__(self) -> Iterator[MeshStream]:
        return iter(self._streams.values())

    # --- opening and ending ----------------------------------------------------------------------------------

    def open(self, priority: int) -> MeshStream:
        """A stream of ours. The peer hears of it with its first byte."""
        stream_id = self._quic.open_stream()
        self._quic.rank_stream(stream_id, priority)
        stream = self._streams[stream_id] = MeshStream(self._link, self, stream_id, monotonic())
        return stream

    def known(self, stream_id: int) -> MeshStream | None:
        """The stream with this id, if it is open."""
        return self._streams.get(stream_id)

    def is_new(self, stream_id: int) -> bool:
        """Whether the peer has just opened it: late data of streams that have ended is not for anybody."""
        return stream_id & 1 != self._our_bit and stream_id not in self._ended_by_us

    def accept(self, stream_id: int) -> MeshStream | None:
        """A stream of the peer; None, and a reset, if it has too many."""
        if self._of_peer >= LIMIT_STREAMS_A_LINK:
            self._refused()
            self.abandon(stream_id, Reset.OVERLOAD)
            return None
        self._of_peer += 1
        stream = self._streams[stream_id] = MeshStream(self._link, self, stream_id, monotonic())
        return stream

    def arrived(self, stream: MeshStream, data: bytes, end: bool) -> None:
        """The next bytes of a stream, and whether they are its last."""
        stream.arrived(data, end)
        self._forget_finished(stream)

    def ended_by_peer(self, stream_id: int, code: int) -> None:
        """The peer has reset a stream, or wants no more of it: either ends both directions."""
        stream = self._streams.get(stream_id)
        self.abandon(stream_id, code)
        if stream is not None:
            stream.broke(StreamReset(code))

    def abandon(self, stream_id: int, code: int) -> None:
        """End both directions of a stream."""
        if not self._link.has_ended:
            self._quic.abandon_stream(stream_id, code)
            self._forget(stream_id)
            self._return_credit()
            self._flush_soon()

    def break_all(self, reason: str, code: int) -> None:
        """The link is over."""
        for stream in list(self._streams.values()):
            stream.broke(LinkLost(reason, code))
        self._streams.clear()
        self._undrained.clear()

    def _forget(self, stream_id: int) -> None:
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            self._undrained.discard(stream)
        if stream_id & 1 != self._our_bit:
            self._of_peer -= stream is not None
            self._ended_by_us.add(stream_id)
            if len(self._ended_by_us) > 2 * LIMIT_STREAMS_A_LINK:
                self._ended_by_us = {each for each in self._ended_by_us if self._quic.has_stream(each)}

    def _forget_finished(self, stream: MeshStream) -> None:
        if stream.is_finished:
            self._forget(stream.id)

    # --- called by streams -----------------------------------------------------------------------------------

    def send(self, stream: MeshStream, data: bytes, end: bool) -> None:
        """Queue bytes. Raises StreamReset when the connection knows better than the stream."""
        try:
            self._quic.send_stream_data(stream.id, data, end)
        except (ValueError, RuntimeError):
            stream.broke(StreamReset(Reset.CANCELLED))
            raise StreamReset(Reset.CANCELLED) from None
        self._forget_finished(stream)
        self._flush_soon()

    def unsent_bytes(self, stream: MeshStream) -> int:
        """What a stream has queued and not sent."""
        return self._quic.unsent_bytes(stream.id)

    def wait_drained(self, stream: MeshStream) -> None:
        """Call `stream.drained` when little enough is unsent."""
        self._undrained.add(stream)

    def sent(self) -> None:
        """A turn of sending is over."""
        if self._undrained:
            for stream in [each for each in self._undrained if self.unsent_bytes(each) <= LOW_WATER_BYTES]:
                self._undrained.discard(stream)
                stream.drained()

    def taken(self, stream: MeshStream, count: int) -> None:
        """The application took `count` bytes: the peer may send as many more."""
        self._consumed_bytes += count
        credit = stream.credit
        rose = credit.take(count, monotonic(), self._quic.smoothed_rtt_s)
        if rose and self._quic.raise_stream_limit(stream.id, credit.limit_bytes):
            self._flush_soon()
        self._return_credit()
        self._forget_finished(stream)

    def _return_credit(self) -> None:
        if self._quic.is_connection_limit_near(self._consumed_bytes):
            waiting = sum(stream.waiting_bytes for stream in self._streams.values())
            if self._quic.raise_connection_limit(waiting, self._consumed_bytes):
                self._flush_soon()

    def watch_changed(self) -> None:
        """A stream became watched, or ceased to be."""
        self._link.watch_changed()
