"""The one UDP socket of a node: many datagrams a system call, both address families, and errors worth hearing of.

Reading drains what is there, up to a bound, with the kernel joining datagrams of one sender (UDP_GRO). Writing hands
the kernel runs of equal datagrams in one call (UDP_SEGMENT). Where a system has neither, single datagrams go. What
the kernel does not take at once waits in a bounded queue; beyond that it is lost, as on any network.

On Linux the error queue (IP_RECVERR, see ip(7)) tells which address answered with ICMP "port unreachable". That is a
hint and no proof, since anybody can send such a message.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from meshnode.errors import PortInUse, StateError
from meshnode.net.address import Address, SocketAddress, from_socket

BUFFER_BYTES = 4 << 20
READS_A_TURN = 8
MOST_QUEUED_BYTES = 4 << 20
MOST_SEGMENTS = 64
MOST_SEGMENTED_BYTES = 65_000
MOST_ERRORS_A_TURN = 64

# Constants of linux/udp.h, linux/in.h and linux/in6.h that Python does not name.
_UDP_SEGMENT = 103
_UDP_GRO = 104
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE = 10, 23, 3
_IP_RECVERR, _IPV6_RECVERR = 11, 25
_IP_MTU, _IPV6_MTU = 14, 24
_MSG_ERRQUEUE = 0x2000
_ERROR_MESSAGES = {(socket.IPPROTO_IP, _IP_RECVERR), (socket.IPPROTO_IPV6, _IPV6_RECVERR)}
_SEGMENTATION_REFUSED = {errno.EIO, errno.EINVAL, errno.EOPNOTSUPP, errno.EMSGSIZE}
_GONE = {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH}
_LINUX = sys.platform == "linux"

Received = Callable[[list[bytes], SocketAddress], None]
Unreachable = Callable[[SocketAddress], None]


@dataclass(slots=True)
class Traffic:
    """What went through the socket since the start."""

    datagrams_in: int = 0
    datagrams_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    send_dropped: int = 0


class UdpSocket:
    """See the module. `received` gets the datagrams that one sender sent in one go, `unreachable` the hints;
    `drained` is called after each turn of reading, when it is time to react to all of it."""

    def __init__(
        self,
        bound: socket.socket,
        *,
        received: Received,
        unreachable: Unreachable,
        drained: Callable[[], None],
        traffic: Traffic | None = None,
    ) -> None:
        self._socket = bound
        self._received = received
        self._unreachable = unreachable
        self._drained = drained
        self.family = bound.family
        self.address = from_socket(bound.getsockname())
        self.traffic = traffic or Traffic()
        self.segments = self._set(socket.SOL_UDP, _UDP_SEGMENT, 0) if _LINUX else False
        self._joins = self._set(socket.SOL_UDP, _UDP_GRO, 1) if _LINUX else False
        self._tells_errors = False
        if _LINUX:
            self._tells_errors = self._set(socket.IPPROTO_IP, _IP_RECVERR, 1)
            # No fragments: a datagram that is too large is lost, which is how its size is found out (RFC 8899).
            self._set(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
            if self.family == socket.AF_INET6:
                self._set(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
                self._set(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
        self.receive_buffer_bytes = self._enlarge(socket.SO_RCVBUF)
        self.send_buffer_bytes = self._enlarge(socket.SO_SNDBUF)
        self._buffer = memoryview(bytearray(1 << 16))
        self._queue: deque[tuple[list[bytes], SocketAddress]] = deque()
        self._queued_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(bound.fileno(), self._readable)

    @classmethod
    def open(
        cls, host: str, port: int, *, received: Received, unreachable: Unreachable, drained: Callable[[], None]
    ) -> UdpSocket:
        """Bind. "::" means both families, and IPv4 alone where there is no IPv6. Raises PortInUse, StateError."""
        try:
            bound = _bound(host, port)
        except OSError as reason:
            if host != "::" or reason.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                raise _refusal(port, reason) from None
            try:
                bound = _bound("0.0.0.0", port)
            except OSError as second:
                raise _refusal(port, second) from None
        return cls(bound, received=received, unreachable=unreachable, drained=drained)

    def close(self) -> None:
        """Give the port back. What is still queued is lost."""
        self._loop.remove_reader(self._socket.fileno())
        if self._queue:
            self._loop.remove_writer(self._socket.fileno())
            self._queue.clear()
        self._socket.close()

    @property
    def has_unsent(self) -> bool:
        """Whether datagrams still wait for the kernel."""
        return bool(self._queue)

    def _set(self, level: int, option: int, value: int) -> bool:
        try:
            self._socket.setsockopt(level, option, value)
        except OSError:
            return False
        return True

    def _enlarge(self, option: int) -> int:
        """Ask for a large buffer, and return what the system grants (it silently cuts to its own limit)."""
        self._set(socket.SOL_SOCKET, option, BUFFER_BYTES)
        granted = self._socket.getsockopt(socket.SOL_SOCKET, option)
        return granted // 2 if _LINUX else granted  # Linux doubles it, for its own bookkeeping: socket(7)

    # --- reading ---------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        if not self.read():
            self._read_errors()
        self._drained()

    def read(self) -> int:
        """Read what is there, up to a bound, and return how many datagrams came."""
        traffic, buffer, count = self.traffic, self._buffer, 0
        for _ in range(READS_A_TURN):
            try:
                size, ancillary, _, source = self._socket.recvmsg_into([buffer], 64)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                self._read_errors()
                continue
            step = size
            for level, kind, data in ancillary:
                if level == socket.SOL_UDP and kind == _UDP_GRO:
                    step = int.from_bytes(data[:2], sys.byteorder)
            if not step or not source[1]:
                continue  # nothing in it, or nowhere to answer to
            datagrams = [bytes(buffer[start : min(start + step, size)]) for start in range(0, size, step)]
            count += len(datagrams)
            traffic.bytes_in += size
            self._received(datagrams, source)
        traffic.datagrams_in += count
        return count

    def _read_errors(self) -> None:
        if not self._tells_errors:
            return
        for _ in range(MOST_ERRORS_A_TURN):
            try:
                _, ancillary, _, destination = self._socket.recvmsg(0, 512, _MSG_ERRQUEUE)
            except OSError:
                return
            for level, kind, data in ancillary:
                # struct sock_extended_err begins with the error number (linux/errqueue.h).
                if (level, kind) in _ERROR_MESSAGES and int.from_bytes(data[:4], sys.byteorder) in _GONE:
                    self._unreachable(destination)

    # --- writing ---------------------------------------------------------------------------------------------

    def send(self, datagrams: Sequence[bytes], destination: SocketAddress) -> None:
        """Send in order. Never raises: what cannot be sent is lost."""
        for run in _runs(datagrams) if self.segments else ([datagram] for datagram in datagrams):
            if self._queue or not self._try(run, destination):
                self._enqueue(run, destination)

    def _try(self, run: list[bytes], destination: SocketAddress) -> bool:
        """Hand a run to the kernel. False when its buffer is full."""
        ancillary = [(socket.SOL_UDP, _UDP_SEGMENT, struct.pack("=H", len(run[0])))] if len(run) > 1 else []
        error = None
        for _ in range(2):
            try:
                self.traffic.bytes_out += self._socket.sendmsg(run, ancillary, 0, destination)
                self.traffic.datagrams_out += len(run)
                return True
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as reason:
                error = reason.errno
            if len(run) > 1 and error in _SEGMENTATION_REFUSED:
                self.segments = error == errno.EMSGSIZE
                return all([self._try([datagram], destination) for datagram in run])
            # Often not about this datagram: an earlier one was answered with an ICMP message. Once more, then.
            self._read_errors()
        self.traffic.send_dropped += len(run)
        if error in _GONE:
            self._unreachable(destination)
        return True

    def _enqueue(self, run: list[bytes], destination: SocketAddress) -> None:
        size = sum(map(len, run))
        if self._queued_bytes + size > MOST_QUEUED_BYTES:
            self.traffic.send_dropped += len(run)
            return
        if not self._queue:
            self._loop.add_writer(self._socket.fileno(), self._writable)
        self._queue.append((run, destination))
        self._queued_bytes += size

    def _writable(self) -> None:
        while self._queue:
            run, destination = self._queue[0]
            if not self._try(run, destination):
                return
            self._queue.popleft()
            self._queued_bytes -= sum(map(len, run))
        self._loop.remove_writer(self._socket.fileno())


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_DGRAM)
    try:
        bound.setblocking(False)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


def _refusal(port: int, reason: OSError) -> StateError:
    if reason.errno == errno.EADDRINUSE:
        return PortInUse(f"UDP {port}", fix="choose another with --bind-port, or 0 for any")
    return StateError(f"UDP port {port} cannot be opened: {reason.strerror}")


def _runs(datagrams: Sequence[bytes]) -> list[list[bytes]]:
    """Cut into runs that the kernel can take as one: all of one size, but for a shorter last one."""
    runs: list[list[bytes]] = []
    run: list[bytes] = []
    size = total = 0
    for datagram in datagrams:
        length = len(datagram)
        if (
            run
            and length <= size == len(run[-1])
            and len(run) < MOST_SEGMENTS
            and total + length <= MOST_SEGMENTED_BYTES
        ):
            run.append(datagram)
            total += length
        else:
            run = [datagram]
            runs.append(run)
            size = total = length
    return runs


@dataclass(frozen=True, slots=True)
class Route:
    """What the system says about the way to an address, without sending anything."""

    mtu_bytes: int | None
    same_host: bool


def route_to(destination: Address) -> Route:
    """Ask the system by connecting a throwaway socket: the MTU, and whether the address is one of our own."""
    family = socket.AF_INET6 if destination.is_ipv6 else socket.AF_INET
    mtu: int | None = None
    local = None
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((destination.host, destination.port))
        local = from_socket(probe.getsockname()).host
        if _LINUX and family == socket.AF_INET6:
            mtu = probe.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)
        elif _LINUX:
            mtu = probe.getsockopt(socket.IPPROTO_IP, _IP_MTU)
    return Route(mtu, destination.is_loopback or local == destination.host)
