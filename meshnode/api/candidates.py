"""Which hosts a request is offered to, in which order; and what became of it, so that the next order is better.

The order itself is a pure function of core/routing; this module feeds it: the hosts of the model as they are now, the
queue of our own engine from its gate, and the outcome of each attempt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from random import Random

from meshnode.api.gate import Gates
from meshnode.api.request import Request
from meshnode.api.served import Host, Served
from meshnode.core.routing import Router, Wanted


class Candidates:
    """Orders the hosts of a model for each request. `models` gives a fresh snapshot of the mesh."""

    def __init__(self, models: Callable[[], Sequence[Served]], gates: Gates, router: Router | None = None) -> None:
        self._models = models
        self._gates = gates
        self._router = router or Router(Random())

    def hosts(self, model: str) -> list[Host]:
        """Where the model runs now; our own host with the present numbers of its queue."""
        return [
            self._present(model, host) if host.here else host
            for served in self._models()
            if served.id == model
            for host in served.hosts
        ]

    def _present(self, model: str, host: Host) -> Host:
        queue = self._gates.snapshot(model)
        return replace(host, busy=queue.busy, waiting=queue.waiting)

    def find(self, model: str, host: Host) -> Host | None:
        """A host as it is now; None when the model is gone from there."""
        return next(
            (
                found
                for served in self._models()
                if served.id == model
                for found in served.hosts
                if (found.here, found.node) == (host.here, host.node)
            ),
            None,
        )

    def order(self, request: Request, *, without: Collection[str] = (), content_hash: str = "") -> list[Host]:
        """The hosts that can take the request, the best one first; with a `content_hash` those of that alone."""
        hosts = {
            host.node: host
            for host in self.hosts(request.model.id)
            if host.node not in without and (not content_hash or host.content_hash == content_hash)
        }
        if len(hosts) < 2:
            return list(hosts.values())
        able = frozenset(name for host in hosts.values() for name in host.capabilities)
        wanted = Wanted(
            model=request.model.id,
            needs=request.needs & able,
            prompt_tokens=request.prompt_tokens(),
            prefix=request.prefix(),
        )
        ranked = self._router.rank(wanted, [host.view() for host in hosts.values()], time.monotonic())
        order = [hosts[entry.node] for entry in ranked if entry.predicted_s is not None]
        # Where none is fit the one with the most context words the refusal: it knows how much too long the prompt is.
        return order or sorted(filter(_ready, hosts.values()), key=lambda host: -host.context_length)

    @contextmanager
    def trying(self, request: Request, host: Host) -> Iterator[None]:
        """Count the request as under way at the host for the length of the block."""
        self._router.started(host.node, request.model.id)
        try:
            yield
        finally:
            self._router.ended(host.node, request.model.id)

    def failed(self, request: Request, host: Host) -> None:
        """The host gave no answer, and is better avoided for a while."""
        self._router.failed(host.node, request.model.id, time.monotonic())

    def succeeded(self, request: Request, host: Host) -> None:
        """The host answered: it holds the keys and values of this conversation now."""
        self._router.succeeded(
            host.node,
            request.model.id,
            request.prefix(),
            time.monotonic(),
            prompt_tokens=request.prompt_tokens(),
        )


def _ready(host: Host) -> bool:
    return host.ready
