"""The host's side of a lease: a worker's promise to hold layers, for as long as the stream lasts.

The end of a lease that the host did not ask for is told once, in words, to `lost`: the worker ended it, the stream
broke, or nothing has been heard of the worker for a while. What the worker says of itself is bounded and checked here,
and believed no further: a tunnel that does not work shows the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from meshnode.errors import LeaseDenied, MeshnodeError, PeerUnreachable
from meshnode.net.stream import LinkLost, MeshStream
from meshnode.rpc.facts import DeviceFacts, WorkerFacts
from meshnode.rpc.lease_stream import LeaseStream
from meshnode.wire.registry import LEASE_TEXTS, LeaseCode, Reset
from meshnode.wire.splits import (
    LeaseAsk,
    LeaseEnd,
    LeaseGranted,
    LeaseLeaving,
    LeaseMessage,
    LeaseReady,
    LeaseRefused,
    LeaseWeights,
)
from meshnode.wire.values import WireError

Progress = Callable[[int, int], None]
"""So many bytes of so many are there."""

SILENT_S = 1.0
"""A link counts as silent about 1.3 s after the last packet; this much longer, and the worker counts as lost."""
LOOK_S = 0.2
RELEASE_S = 1.5
"""A worker ends everything within a second of hearing of it."""


@dataclass(frozen=True, slots=True)
class Granted:
    """What the worker granted: its rpc-server's answers, and whether it has the weights already."""

    facts: WorkerFacts
    has_weights: bool


class HeldLease:
    """Made by `ask`. `lost` and `leaving` are called from the event loop, each once at most."""

    def __init__(
        self,
        stream: MeshStream,
        plan: bytes,
        granted: Granted,
        lost: Callable[[str], None],
        leaving: Callable[[], None],
    ) -> None:
        self.plan = plan
        self.granted = granted
        self._stream = stream
        self._messages = LeaseStream(stream)
        self._lost = lost
        self._leaving = leaving
        self._progress: Progress = lambda have, want: None
        self._ready: asyncio.Future[LeaseReady] = asyncio.get_running_loop().create_future()
        # Nobody may ever ask for it.
        self._ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())
        self._over = False
        self._told_leaving = False
        self._tasks = [
            asyncio.create_task(self._listen(), name="lease"),
            asyncio.create_task(self._look(), name="lease watch"),
        ]

    @classmethod
    async def ask(
        cls,
        open_stream: Callable[[], Awaitable[MeshStream]],
        plan: bytes,
        ask: LeaseAsk,
        *,
        lost: Callable[[str], None],
        leaving: Callable[[], None],
        timeout_s: float,
    ) -> HeldLease:
        """Ask a worker for a lease on the stream that `open_stream` opens, its header for `plan` written.

        Raises LeaseDenied when the worker refuses, PeerUnreachable when it does not answer in `timeout_s`, and what
        `open_stream` raises.
        """
        stream: MeshStream | None = None
        try:
            async with asyncio.timeout(timeout_s):
                stream = await open_stream()
                messages = LeaseStream(stream)
                messages.send(ask)
                granted = _granted(await messages.receive())
        except TimeoutError:
            raise PeerUnreachable(f"no answer in {timeout_s:.0f} s") from None
        except WireError as error:
            raise LeaseDenied(f"its answer breaks the rules: {error.reason}") from None
        except OSError as error:
            raise PeerUnreachable(_words(error)) from error
        else:
            lease, stream = cls(stream, plan, granted, lost, leaving), None
            return lease
        finally:
            if stream is not None:
                stream.abort()

    async def ready(self, progress: Progress = lambda have, want: None) -> LeaseReady:
        """Wait until tunnels may be opened. `progress` is told of bytes of weights that the worker fetches.

        Raises LeaseDenied when the worker ends the lease before, PeerUnreachable when it is lost; `lost` is called
        as well.
        """
        self._progress = progress
        return await asyncio.shield(self._ready)

    async def release(self) -> None:
        """End the lease and wait, for a moment, until the worker has freed everything. Idempotent; raises nothing."""
        if not self._over:
            self._over = True
            self._messages.send(LeaseEnd(LeaseCode.RELEASED))
            self._messages.finish()
            await asyncio.wait(self._tasks[:1], timeout=RELEASE_S)
        await self._close()

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not self._ready.done():
            self._ready.set_exception(LeaseDenied("the lease was given back"))
        self._stream.abort()

    # --- what comes ---------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        try:
            while (message := await self._messages.receive()) is not None:
                match message:
                    case LeaseEnd():
                        self._end(LeaseDenied(_said(message.code, message.text), lease_code=message.code))
                        return
                    case LeaseWeights():
                        self._progress(message.have_bytes, message.want_bytes)
                    case LeaseReady():
                        if not self._ready.done():
                            self._ready.set_result(message)
                    case LeaseLeaving():
                        self._tell_leaving()
                    case _:
                        raise WireError(f"a {type(message).__name__} of a worker")
            self._end(LeaseDenied("the worker ended the lease"))
        except WireError as error:
            self._end(LeaseDenied(f"the worker breaks the rules: {error.reason}"))
            self._stream.reset(Reset.MALFORMED)
        except OSError as error:
            self._end(PeerUnreachable(_words(error)))

    async def _look(self) -> None:
        """Count a worker as lost of which nothing is heard, long before its link ends."""
        loop = asyncio.get_running_loop()
        silent_since: float | None = None
        while not self._over:
            await asyncio.sleep(LOOK_S)
            now = loop.time()
            silent_since = (silent_since or now) if self._stream.silent else None
            if silent_since is not None and now - silent_since >= SILENT_S:
                self._end(PeerUnreachable("nothing is heard of it any more"))
                self._stream.abort()

    def _tell_leaving(self) -> None:
        if not (self._over or self._told_leaving):
            self._told_leaving = True
            self._leaving()

    def _end(self, reason: MeshnodeError) -> None:
        """The lease is over, and it was not this side that ended it."""
        if self._over:
            return
        self._over = True
        if not self._ready.done():
            self._ready.set_exception(reason)
        self._messages.finish()
        self._lost(reason.message)


def _granted(answer: LeaseMessage | None) -> Granted:
    """What the first message of a worker grants. Raises LeaseDenied, or WireError for what makes no sense."""
    match answer:
        case LeaseGranted(hello, devices, has_weights):
            for device in devices:
                if device.alignment.bit_count() != 1:
                    raise WireError(f"an alignment of {device.alignment} bytes")
            facts = WorkerFacts(
                hello,
                tuple(
                    DeviceFacts(device.alignment, device.max_bytes, device.free_bytes, device.total_bytes)
                    for device in devices
                ),
            )
            return Granted(facts, has_weights)
        case LeaseRefused(code, text, free_bytes, retry_after_s):
            raise LeaseDenied(
                _said(code, text), lease_code=code, free_bytes=free_bytes, retry_after_s=float(retry_after_s) or None
            )
        case LeaseEnd(code, text):
            raise LeaseDenied(_said(code, text), lease_code=code)
        case None:
            raise LeaseDenied("it ended the lease without a word")
    raise WireError(f"a {type(answer).__name__} as the first word of a worker")


def _said(code: int, text: str) -> str:
    """What a worker says, in its words, else in those of the code."""
    return text or LEASE_TEXTS.get(code, f"code {code}")


def _words(error: OSError) -> str:
    if isinstance(error, LinkLost):
        return "the connection was lost"
    code = getattr(error, "code", None)
    return f"it refused the stream ({Reset(code).name.lower()})" if code in set(Reset) else str(error)
