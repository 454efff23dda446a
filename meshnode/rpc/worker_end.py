"""The worker's end of a lease: its tunnels, one after the other, and the pushes of the other workers of the plan."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from meshnode.net.stream import MeshStream
from meshnode.rpc.commands import Lent
from meshnode.rpc.facts import References, WorkerFacts
from meshnode.rpc.liveness import HEARSAY_S
from meshnode.rpc.push import Arrivals, Convert, receive
from meshnode.rpc.session import Session
from meshnode.wire.registry import Reset
from meshnode.wire.values import WireError


class WorkerEnd:
    """Serves the streams of one lease.

    `port` is the rpc-server's on loopback, `workers` the node ids of all stages in order and `stage` the own place
    among them, `limit_bytes` what the host may allocate in all. `open_push(node)` opens a push stream to another
    worker, header written. `working` says whether the rpc-server has worked since it was last asked. `failed(words)`
    is called when the rpc-server breaks, stalls, or cannot be reached.
    """

    def __init__(
        self,
        *,
        port: int,
        facts: WorkerFacts,
        workers: Sequence[bytes],
        stage: int,
        limit_bytes: int,
        references: References | None,
        open_push: Callable[[bytes], Awaitable[MeshStream]],
        working: Callable[[], bool],
        to_half: Convert | None,
        from_half: Convert | None,
        failed: Callable[[str], None],
    ) -> None:
        self.facts = facts
        self._workers = tuple(workers)
        self._stage = stage
        self._from_half = from_half
        self._arrivals = Arrivals()
        self._lent = Lent(
            port=port,
            limit_bytes=limit_bytes,
            references=references,
            opens=[
                None if place == stage else partial(open_push, worker) for place, worker in enumerate(self._workers)
            ],
            arrivals=self._arrivals,
            working=working,
            to_half=to_half,
            failed=failed,
        )
        self._turn = asyncio.Lock()
        self._session: Session | None = None
        self._closed = False

    async def serve_tunnel(self, stream: MeshStream) -> None:
        """Serve one tunnel to its end; while another one runs, wait for its end first."""
        async with self._turn:
            if self._closed:
                stream.reset(Reset.REFUSED)
                return
            self._session = Session(self._lent, stream)
            try:
                await self._session.run()
            finally:
                self._session = None

    async def serve_push(self, stream: MeshStream, peer: bytes) -> None:
        """Take the pushes of another worker, until its stream ends. One that is not of the plan is refused."""
        if self._closed or peer not in self._workers or peer == self._workers[self._stage]:
            stream.reset(Reset.REFUSED)
            return
        stream.watched = False
        place = self._workers.index(peer) + 1
        try:
            await receive(stream, self._arrivals, self._from_half)
            stream.write_eof()
        except WireError as error:
            stream.reset(Reset.MALFORMED)
            self._end(f"the worker of stage {place} broke the rules: {error}")
        except OSError as error:
            if (session := self._session) is not None:
                words = f"the connection to the worker of stage {place} is lost: {error}"
                asyncio.get_running_loop().call_later(HEARSAY_S, session.end, words)

    def _end(self, words: str) -> None:
        if self._session is not None:
            self._session.end(words)

    async def close(self) -> None:
        """End the running tunnel; further ones are refused. Returns when it has ended."""
        self._closed = True
        self._end("the worker takes no part any more")
        async with self._turn:
            self._arrivals.forget()
