"""Models that are fetched in the background: asked for, followed, stopped and taken up again by name.

    pull ──> names.resolve ──> waits for its turn ──> models/store.pull in a thread ──> done, or the reason why not
                                    stop ──> the thread sees it at the next bytes; what came stays on the disk

What a caller writes reaches nothing but `ModelStore.resolve`: which repository, file and folder are meant is decided
there. How a file is received, checked and resumed is `models/transfer.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from meshnode.errors import DownloadStopped, MeshnodeError, ModelNotFound, NodeStopping, TooManyRequests
from meshnode.models.names import ModelRef
from meshnode.models.store import ModelStore
from meshnode.telemetry import LOG, Progress
from meshnode.threads import aside

AT_ONCE = 2
"""A small model need not wait behind a large one; more of them only share the same line."""
MOST_WAITING = 16
MOST_ENDED = 20
"""So many that have ended are kept for the view; the oldest go first."""
RATE_WINDOW_S = 5.0
SHOW_EVERY_S = 0.5
CLOSE_S = 0.8

DownloadState = Literal["running", "done", "failed", "stopped"]


class Rate:
    """Bytes a second over the last seconds, from how many there are at which time. Safe from any thread."""

    def __init__(self, window_s: float = RATE_WINDOW_S) -> None:
        self._window_s = window_s
        self._lock = threading.Lock()
        self._counts: deque[tuple[float, int]] = deque(maxlen=256)

    def note(self, done_bytes: int, now: float) -> None:
        """So many are here now. Fewer than before begins anew: some were thrown away."""
        with self._lock:
            if self._counts and done_bytes < self._counts[-1][1]:
                self._counts.clear()
            self._counts.append((now, done_bytes))

    def bytes_per_s(self, now: float) -> float:
        """0 with less than two counts inside the window."""
        with self._lock:
            while self._counts and self._counts[0][0] < now - self._window_s:
                self._counts.popleft()
            if len(self._counts) < 2:
                return 0.0
            (begin, first), (_, last) = self._counts[0], self._counts[-1]
        return (last - first) / max(now - begin, 1e-3)


@dataclass(slots=True, eq=False)
class _Download:
    """One download. Its thread writes `done_bytes`, `total_bytes`, `detail` and `rate`; all else is the loop's."""

    ref: ModelRef
    asked_as: str
    since: float
    state: DownloadState = "running"
    detail: str = "waits for its turn"
    done_bytes: int = 0
    total_bytes: int | None = None
    error: MeshnodeError | None = None
    rate: Rate = field(default_factory=Rate)
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def model(self) -> str:
        """How it is shown, and named in calls."""
        return self.ref.short_name

    def is_called(self, name: str) -> bool:
        """Whether a caller may mean it."""
        return name.strip().lower() in {self.model.lower(), self.ref.canonical.lower(), self.asked_as.lower()}

    def heard(self, progress: Progress) -> None:
        """A report of the store; called in the thread, also for a moment after it was stopped."""
        if self.cancelled.is_set():
            return
        self.done_bytes = int(progress.done)
        self.total_bytes = int(progress.total) if progress.total is not None else None
        self.detail = progress.text.removeprefix(self.model).lstrip(": ")
        self.rate.note(self.done_bytes, time.monotonic())


class Downloads:
    """The downloads of one node. All methods run in the event loop; `close` before it ends.

    `store` makes the store of this machine and may block; it is called once, in a thread.
    """

    def __init__(
        self, *, store: Callable[[], ModelStore] = ModelStore.from_environment, changed: Callable[[], None]
    ) -> None:
        self._make_store = store
        self._store: ModelStore | None = None
        self._changed = changed
        self._known: list[_Download] = []
        self._running: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._showing: asyncio.Task[None] | None = None
        self._closing = False

    async def pull(self, text: str) -> dict[str, Any]:
        """Begin to fetch a model, or go on with one that has stopped or failed: `model` and `state`.

        One that runs already goes on as it was. Raises ModelNotFound, TooManyRequests and NodeStopping.
        """
        ref = await self._resolve(text)
        if self._closing:
            raise NodeStopping()
        if ref.kind != "hub":
            return {"model": ref.short_name, "state": "done"}  # it is a file of this disk already
        known = next((each for each in self._known if each.ref.canonical.lower() == ref.canonical.lower()), None)
        if known is not None and known.state == "running":
            return _answer(known)
        if sum(each.state == "running" for each in self._known) >= AT_ONCE + MOST_WAITING:
            raise TooManyRequests(
                f"{MOST_WAITING} downloads are waiting already", fix="wait for one to end, or stop one"
            )
        if known is not None:
            self._known.remove(known)
        download = _Download(ref, text.strip(), time.time())
        self._known.append(download)
        running = asyncio.create_task(self._run(download), name=f"pull {download.model}")
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        if self._showing is None or self._showing.done():
            self._showing = asyncio.create_task(self._show(), name="show downloads")
        self._changed()
        return _answer(download)

    async def stop(self, text: str) -> dict[str, Any]:
        """Stop a download: `model` and `state`. What came stays on the disk, and `pull` goes on from there.

        One that has ended is no longer shown from then on. Raises ModelNotFound for one that there is not.
        """
        download = self._find(text)
        if download is None:
            raise ModelNotFound(f"{text[:120]!r} is not being fetched", fix="/api/status lists what is, in downloads")
        if download.state != "running":
            self._known.remove(download)
        else:
            download.cancelled.set()
            self._end(download, DownloadStopped(download.model))
        self._changed()
        return _answer(download)

    def is_running(self, ref: ModelRef) -> bool:
        """Whether a model is being fetched, or waits for that; safe from any thread."""
        return any(each.state == "running" and each.ref.canonical == ref.canonical for each in [*self._known])

    def facts(self) -> list[dict[str, Any]]:
        """The `downloads` of /api/status, in the order in which they were asked for."""
        now = time.monotonic()
        return [
            {
                "model": each.model,
                "state": each.state,
                "detail": each.detail,
                "done_bytes": each.done_bytes,
                "total_bytes": each.total_bytes,
                "bytes_per_s": round(each.rate.bytes_per_s(now)) if each.state == "running" else 0,
                "error": each.error.as_dict() if each.error else None,
                "since": round(each.since, 3),
            }
            for each in self._known
        ]

    async def close(self) -> None:
        """Stop all of them. A thread that still waits for the network then is left to end with the process."""
        self._closing = True
        for download in [each for each in self._known if each.state == "running"]:
            download.cancelled.set()
            self._end(download, DownloadStopped(download.model))
        if self._showing is not None:
            self._showing.cancel()
        if tasks := set(self._running):
            await asyncio.wait(tasks, timeout=CLOSE_S)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    # --- inside -----------------------------------------------------------------------------------------------

    async def _resolve(self, text: str) -> ModelRef:
        if self._store is None:
            self._store = await asyncio.to_thread(self._make_store)
        return await asyncio.to_thread(self._store.resolve, text)

    def _find(self, text: str) -> _Download | None:
        """By name; one that runs before one that has ended."""
        found = [each for each in self._known if each.is_called(text)]
        return min(found, key=lambda each: each.state != "running", default=None)

    async def _run(self, download: _Download) -> None:
        async with self._turns:
            if download.state != "running":
                return
            download.detail = ""
            assert self._store is not None
            pull = partial(self._store.pull, download.ref, download.heard, download.cancelled.is_set)
            try:
                found = await aside(pull, name=f"pull {download.model}")
            except MeshnodeError as error:
                self._end(download, error)
            except Exception as error:
                LOG.exception("fetching %s failed", download.model)
                self._end(download, MeshnodeError(f"a fault of meshnode ({type(error).__name__}); see meshnode logs"))
            else:
                download.done_bytes = download.total_bytes = max(download.done_bytes, found.total_bytes)
                self._end(download, None)

    def _end(self, download: _Download, error: MeshnodeError | None) -> None:
        if download.state != "running":
            return  # it was stopped, and its thread has only now seen that
        download.detail = ""
        if error is None:
            download.state = "done"
        elif isinstance(error, DownloadStopped):
            download.state = "stopped"
        else:
            download.state, download.error = "failed", error
        LOG.info("download of %s: %s%s", download.model, download.state, f": {error.message}" if error else "")
        ended = [each for each in self._known if each.state != "running"]
        for old in ended[:-MOST_ENDED]:
            self._known.remove(old)
        self._changed()

    async def _show(self) -> None:
        """Say that figures have changed, for as long as any may."""
        with contextlib.suppress(asyncio.CancelledError):
            while any(each.state == "running" for each in self._known):
                await asyncio.sleep(SHOW_EVERY_S)
                self._changed()


def _answer(download: _Download) -> dict[str, Any]:
    return {"model": download.model, "state": download.state}
