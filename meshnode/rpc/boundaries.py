"""Where a boundary between stages goes from worker to worker: what the host's end of a tunnel makes of it. No IO.

A patched engine says so itself: TUNNEL_PUSH to the server that has the tensor, TUNNEL_RECV to the one that gets it. A
stock engine reads the tensor from one and writes it to the other, and waits for the bytes in between. It gets other
bytes at once, a placeholder, which the tunnel to the next stage recognises. That needs stages in the order of the
pipeline, and is done for what lies between two stages only: never for caches and results, which the engine looks into.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable

from meshnode.rpc.facts import TunnelOptions
from meshnode.wire import ggml_rpc as rpc
from meshnode.wire.tunnel_blocks import MOST_PUSH_BYTES
from meshnode.wire.values import WireError

_MARK = secrets.token_bytes(16)
"""What nobody outside of this process can have in a tensor."""
_NUMBER_AT = rpc.HEAD_BYTES + rpc.SET_FIXED_BYTES + len(_MARK)
_NUMBERS = itertools.count(secrets.randbits(40) << 16)
"""Ids of pushes for engines that give none: one sequence for all tunnels, and another for each process."""
_INSPECTED = (b"cache_", b"result_")


class Boundaries:
    """Of one tunnel. `route` gives the stage behind a port of this host."""

    def __init__(self, options: TunnelOptions, route: Callable[[int], int | None]) -> None:
        self._stage = options.stage
        self._route = route
        self._places = options.push == "placeholder" and options.stage + 1 < options.stages

    def push(self, frame: bytes) -> bytes:
        """The TUNNEL_PUSH of an engine as the worker gets it: with a stage in place of a port. Raises WireError."""
        number, port, size, get = rpc.push_of(frame)
        stage = self._route(port)
        if stage is None or stage == self._stage or not 0 < size <= MOST_PUSH_BYTES:
            raise WireError(f"a push of {size} bytes to port {port}")
        return rpc.push(number, stage, get)

    def replace(self, frame: bytes) -> tuple[bytes, bytes] | None:
        """(TUNNEL_PUSH, reply) in place of a GET_TENSOR; None when it must be done as it is. Raises WireError."""
        if not self._places:
            return None
        size = rpc.get_size_of(frame)
        name = rpc.name_of(frame, rpc.HEAD_BYTES)
        if not len(_MARK) + 8 <= size <= MOST_PUSH_BYTES or name.startswith(_INSPECTED):
            return None
        number = next(_NUMBERS)
        reply = rpc.reply((_MARK + number.to_bytes(8, "little")).ljust(size, b"\0"))
        return rpc.push(number, self._stage + 1, frame[rpc.HEAD_BYTES :]), reply

    @staticmethod
    def recognise(frame: bytes) -> bytes | None:
        """The TUNNEL_RECV for a SET_TENSOR, or the beginning of one, that sets a placeholder; None for another."""
        at = _NUMBER_AT - len(_MARK)
        if frame[at:_NUMBER_AT] != _MARK:
            return None
        size = rpc.REQUEST_HEAD.unpack_from(frame)[1] - rpc.SET_FIXED_BYTES
        number = int.from_bytes(frame[_NUMBER_AT : _NUMBER_AT + 8], "little")
        return rpc.receive(number, size, frame[rpc.HEAD_BYTES : at])
