"""Places with relays: a node that others cannot dial has up to two members keep a way to it open.

A place is a `relay` stream that stays open (protocol/14-traversal.md). It keeps the link to the relay, which a node
without reservations might let go, and it tells where the relay sees this node. With whom, core/traversal decides.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from meshnode.mesh.message_stream import MessageStream
from meshnode.mesh.relaying import why_ended
from meshnode.net.link import Link
from meshnode.telemetry import LOG
from meshnode.wire.address import Address
from meshnode.wire.frames import encode_stream_header
from meshnode.wire.registry import Reset, StreamType
from meshnode.wire.traversal import RELAY_MESSAGES, RelayReserve, RelayReserved
from meshnode.wire.values import WireError

ANSWER_S = 3.0


class Reservations:
    """See the module. `observed(address, link)` is told where a relay sees this node, `refused(node)` of a relay that
    has no place, `ended` that one was lost; all are called from the event loop. `counters` gets: reservations_made,
    reservations_refused.
    """

    def __init__(
        self,
        *,
        observed: Callable[[Address, Link], None],
        refused: Callable[[bytes], None],
        ended: Callable[[], None],
        counters: Counter[str],
    ) -> None:
        self._observed = observed
        self._refused = refused
        self._ended = ended
        self._counters = counters
        self._held: dict[bytes, asyncio.Task[None]] = {}
        self._granted: set[bytes] = set()

    @property
    def held(self) -> frozenset[bytes]:
        """With whom there is a place, or is about to be."""
        return frozenset(self._held)

    @property
    def granted(self) -> tuple[bytes, ...]:
        """Who has agreed."""
        return tuple(sorted(self._granted))

    def want(self, links: Sequence[Link]) -> None:
        """Have places with the peers of these links, and with nobody else."""
        wanted = {bytes(link.peer): link for link in links}
        for node in self._held.keys() - wanted.keys():
            self._held[node].cancel()
        for node, link in wanted.items():
            if node not in self._held:
                task = asyncio.get_running_loop().create_task(self._hold(link), name="reservation")
                self._held[node] = task
                task.add_done_callback(partial(self._lost, node))

    async def close(self) -> None:
        """Give all of them back."""
        tasks = list(self._held.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _lost(self, node: bytes, task: asyncio.Task[None]) -> None:
        if self._held.get(node) is task:
            del self._held[node]
        self._granted.discard(node)
        self._ended()

    async def _hold(self, link: Link) -> None:
        """Ask for a place, and keep it until either end gives it up."""
        node = bytes(link.peer)
        stream = None
        try:
            stream = link.open_stream()
            stream.watched = False
            stream.write(encode_stream_header(StreamType.RELAY, b""))
            messages = MessageStream(stream, RELAY_MESSAGES)
            messages.send(RelayReserve())
            answer = await messages.receive(ANSWER_S)
            if not isinstance(answer, RelayReserved):
                self._counters["reservations_refused"] += 1
                self._refused(node)
                return
            self._counters["reservations_made"] += 1
            self._granted.add(node)
            if answer.observed is not None:
                self._observed(answer.observed, link)
            await why_ended(messages)
            messages.finish()
        except (WireError, TimeoutError) as error:
            LOG.debug("no place with %s: %s", node.hex()[:10], error)
            self._refused(node)
        except OSError:
            pass  # the link is gone, and the place with it
        finally:
            if stream is not None and not stream.is_closing():
                stream.reset(Reset.CANCELLED)
