"""Which hosts a request is offered to, in which order; and what became of it, so that the next order is better.

The order itself is a pure function of core/routing; this module feeds it: the hosts of the model as they are now, the
queue of our own engine from its gate, and the outcome of each attempt. Hosts beyond the radius of a request, and those
whose price is not paid, are not among those that it ever sees here, in whichever attempt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from random import Random

from meshnode.api.gate import Gates
from meshnode.api.paying import ONLY_FREE, Affording
from meshnode.api.reaching import out_of_radius
from meshnode.api.request import Request
from meshnode.api.served import Host, Served
from meshnode.core.radius import PUBLIC, distance, reaches
from meshnode.core.routing import Router, Wanted
from meshnode.errors import MeshnodeError


class Candidates:
    """Orders the hosts of a model for each request. `models` gives a fresh snapshot of the mesh, `affording` says which
    prices are paid.
    """

    def __init__(
        self,
        models: Callable[[], Sequence[Served]],
        gates: Gates,
        router: Router | None = None,
        affording: Affording = ONLY_FREE,
    ) -> None:
        self._models = models
        self._gates = gates
        self._router = router or Router(Random())
        self._affording = affording

    def hosts(self, request: Request) -> list[Host]:
        """Where the model runs now, within the radius and at prices that are paid; our own host with the numbers of its
        queue as it is."""
        model, may_ask = request.model.id, self._affording.may_ask
        return [
            self._present(model, host) if host.here else host
            for served in self._models()
            if served.id == model
            for host in served.hosts
            if reaches(request.radius, host.radius) and may_ask(host, model)
        ]

    def refusal(self, request: Request) -> MeshnodeError | None:
        """Why no host is left, where there are some that want too much, or are beyond the radius of the request."""
        served = next((served for served in self._models() if served.id == request.model.id), None)
        if served is None:
            return None
        within = served.within(request.radius)
        return (within and self._affording.refusal(within)) or out_of_radius(served, request.radius)

    def _present(self, model: str, host: Host) -> Host:
        queue = self._gates.snapshot(model)
        return replace(host, busy=queue.busy, waiting=queue.waiting)

    def find(self, request: Request, host: Host) -> Host | None:
        """A host as it is now; None when the model is gone from there, or the host from the radius of the request."""
        return next(
            (found for found in self.hosts(request) if (found.here, found.node) == (host.here, host.node)), None
        )

    def order(self, request: Request, *, without: Collection[str] = (), content_hash: str = "") -> list[Host]:
        """The hosts that can take the request, the best one first; with a `content_hash` those of that alone."""
        hosts: dict[str, Host] = {}
        for host in sorted(self.hosts(request), key=lambda host: distance(host.radius)):
            if host.node not in without and (not content_hash or host.content_hash == content_hash):
                hosts.setdefault(host.node, host)  # a node that is known in two ways is asked in the nearer one
        if len(hosts) < 2:
            return list(hosts.values())
        able = frozenset(name for host in hosts.values() for name in host.capabilities)
        wanted = Wanted(
            model=request.model.id,
            needs=request.needs & able,
            prompt_tokens=request.prompt_tokens(),
            prefix=request.prefix(),
            radius=request.radius,
        )
        ranked = self._router.rank(wanted, [host.view() for host in hosts.values()], time.monotonic())
        order = [hosts[entry.node] for entry in ranked if entry.predicted_s is not None]
        # Where none is fit the one with the most context words the refusal: it knows how much too long the prompt is.
        return order or sorted(filter(_ready, hosts.values()), key=_by_room)

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


def _by_room(host: Host) -> tuple[bool, int]:
    return host.radius == PUBLIC, -host.context_length
