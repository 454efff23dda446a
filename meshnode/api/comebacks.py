"""Hosts that failed one request, and when each may be asked again: an engine that died is usually being rebuilt.

A node starts its engine again after a crash, and a split that lost a worker is planned and loaded anew; meanwhile the
host is "restarting" or "loading". A request that has no other host waits for one that is, for WAIT_S at most, and goes
on there. How it is known that a host came back:

    our own engine    it has another key than the one that failed, or was seen down in between
    a peer's          it was seen down and is up, or it is asked: news of a peer may be seconds old, but a node whose
                      engine is not there answers "model_loading" at once

A request may be what kills the engine. So a host that gave nothing new of the answer FRUITLESS times is not asked again
by this request, and whatever happens only LIMIT returns are made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from meshnode.api.attempt import EngineRefused, HostFailed
from meshnode.api.served import Host
from meshnode.api.upstream import UpstreamBroken
from meshnode.errors import ModelLoading

WAIT_S = 30.0
"""How long a request waits for a host; from anew once more of the answer has come."""
NOTICE_S = 2.0
"""How long it may take until the death of our own engine is noticed: a large process dies slowly."""
LOOK_S = 0.05
ASK_FIRST_S, ASK_LAST_S = 0.25, 0.5
"""Pauses between the questions to a peer; each is twice the one before."""
FRUITLESS = 2
LIMIT = 10
DOWN = ("restarting", "loading")
LOST = UpstreamBroken.code.replace("-", "_")
LOADING = ModelLoading.code.replace("-", "_")


def is_loading(failure: Exception) -> bool:
    """The host says that its engine is not there yet."""
    match failure:
        case HostFailed():
            return isinstance(failure.error, ModelLoading)
        case EngineRefused():
            return failure.error.get("type") == LOADING
    return False


def is_lost(failure: Exception, *, here: bool) -> bool:
    """The engine was there and is gone: it may come back. A peer that cannot be reached at all counts as gone for good.

    Of our own engine that is the other way round: where nothing listens it has just died.
    """
    match failure:
        case HostFailed():
            return isinstance(failure.error, UpstreamBroken) and (here or failure.error.reached)
        case EngineRefused():
            return failure.error.get("type") == LOST
    return isinstance(failure, UpstreamBroken)


@dataclass(slots=True)
class _Past:
    """What a host did with this request; times are those of the event loop.

    `hopeful`: it failed in a way after which it may come back. `asks`: how often it said that it is still loading.
    """

    key: str
    failed_at: float
    hopeful: bool = False
    seen_down: bool = False
    fruitless: int = 0
    asks: int = 0


class Comebacks:
    """The past of one request at its hosts. `hosts` gives those of its model as they are now."""

    def __init__(self, hosts: Callable[[], Sequence[Host]]) -> None:
        self._hosts = hosts
        self._past: dict[str, _Past] = {}
        self._left = LIMIT
        self._until: float | None = None

    def failed(self, host: Host, failure: Exception, *, gave: bool) -> bool:
        """An attempt at a host has failed; `gave` says that it brought more of the answer.

        False when that is no news: the host is still coming up.
        """
        now = asyncio.get_running_loop().time()
        loading = is_loading(failure)
        past = self._past.get(host.node)
        news = past is None or not (past.hopeful and loading)
        if past is None:
            past = self._past[host.node] = _Past(host.api_key, now)
        elif not loading:
            self._left -= 1
        past.asks = past.asks + 1 if loading else 0
        if gave:
            self._until, past.fruitless = None, 0
        elif not loading:
            past.fruitless += 1
        past.key, past.failed_at, past.seen_down = host.api_key, now, False
        past.hopeful = loading or is_lost(failure, here=host.here)
        return news

    async def next(self, content_hash: str = "") -> Host | None:
        """The host that can be asked first; None when there is none to wait for, or none came back in time.

        With a `content_hash` any host of the very same weights, also one that was never asked; without it those that
        failed or were down.
        """
        if not self._past or self._left <= 0:
            return None
        loop = asyncio.get_running_loop()
        if self._until is None:
            self._until = loop.time() + WAIT_S
        while True:
            now, coming = loop.time(), False
            for host in sorted(self._hosts(), key=lambda host: not host.ready):
                if content_hash and host.content_hash != content_hash:
                    continue
                if self._is_back(host, now, fresh=bool(content_hash)):
                    return host
                coming = coming or self._is_coming(host, now)
            if not coming or now >= self._until:
                return None
            await asyncio.sleep(LOOK_S)

    def _is_back(self, host: Host, now: float, *, fresh: bool) -> bool:
        past = self._past.get(host.node)
        if not host.ready and (host.here or host.connect is None or host.state not in DOWN):
            return False
        if past is None:
            return fresh and host.ready
        if past.fruitless >= FRUITLESS:
            return False
        if past.seen_down and host.ready:
            return True
        if host.here:
            return host.api_key != past.key
        return past.hopeful and now >= past.failed_at + min(ASK_LAST_S, ASK_FIRST_S * 2.0**past.asks)

    def _is_coming(self, host: Host, now: float) -> bool:
        past = self._past.get(host.node)
        if past is not None and past.fruitless >= FRUITLESS:
            return False
        if host.state in DOWN:
            self._past.setdefault(host.node, _Past(host.api_key, now)).seen_down = True
            return True
        if past is None or not past.hopeful or host.state == "failed":
            return False
        return not host.here or now < past.failed_at + NOTICE_S
