"""One question to the router over UDP, asked again until it answers: what PCP and NAT-PMP have in common.

The socket is connected, so that the kernel drops what others send and says at once when nobody listens. What is not an
answer to the question is passed over, and only so much of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TypeVar

from meshnode.net.gateway import Gateway
from meshnode.net.mapping import NoMapping

PAUSES_S = (0.25, 0.5, 1.0)
"""RFC 6886, 3.1: 250 ms, doubled each time. A router that is silent for all of them does not know the protocol."""
MOST_WRONG_ANSWERS = 64
_RECEIVED_AT_ONCE = 64

Answer = TypeVar("Answer")


class _Answers(asyncio.DatagramProtocol):
    """Queues what comes; a flood is cut off, and an error of the socket ends the wait."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes | Exception] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: object) -> None:
        if self.queue.qsize() < _RECEIVED_AT_ONCE:
            self.queue.put_nowait(data)

    def error_received(self, exc: Exception) -> None:
        if self.queue.qsize() < _RECEIVED_AT_ONCE:
            self.queue.put_nowait(exc)


async def ask(
    gateway: Gateway,
    request: bytes,
    read: Callable[[bytes], Answer | None],
    *,
    pauses_s: Sequence[float] = PAUSES_S,
) -> Answer:
    """The first answer that `read` understands; it returns None for what answers another question.

    Raises NoMapping when nobody answers in time, and passes on what `read` raises.
    """
    loop = asyncio.get_running_loop()
    try:
        transport, answers = await loop.create_datagram_endpoint(
            _Answers, local_addr=(gateway.own, 0), remote_addr=(gateway.host, gateway.control_port)
        )
    except OSError as error:
        raise NoMapping(f"the router cannot be asked: {error.strerror}", answered=False) from None
    wrong = 0
    with closing(transport):
        for pause_s in pauses_s:
            transport.sendto(request)
            try:
                async with asyncio.timeout(pause_s):
                    while wrong < MOST_WRONG_ANSWERS:
                        found = await answers.queue.get()
                        if isinstance(found, Exception):
                            raise NoMapping("the router does not listen there", answered=False)
                        if (answer := read(found)) is not None:
                            return answer
                        wrong += 1
            except TimeoutError:
                continue
            raise NoMapping("what the router answers has nothing to do with the question", answered=False)
    raise NoMapping("the router does not answer", answered=False)
