"""What the gateway knows of a model that this node can answer for: where it runs, and how callers name it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from meshnode.api.upstream import Connect
from meshnode.core.prices import FREE, Price
from meshnode.core.radius import TRUSTED, nearest, reaches
from meshnode.core.routing import HostView
from meshnode.errors import BadRequest, EngineCrashed, MeshnodeError, ModelLoading, ModelNotFound, NoModelServed

ServedState = Literal["loading", "ready", "restarting", "failed"]
ANY_MODEL = "auto"
COME_BACK_S = 10
"""To a node that has no model: someone has to load one first."""


@dataclass(frozen=True, slots=True)
class Host:
    """One place where a model runs: this node (`here`), or a peer.

    `connect` is None while nothing answers there. `content_hash` names the exact weights: an answer that was begun by
    one host can be continued only by another with the same. Times are in seconds, rates in tokens per second. A
    stranger may have a `price`: its answers are asked for by `connect_paid`, and paid over `chain` (paying.py).
    """

    node: str = ""
    here: bool = False
    connect: Connect | None = field(default=None, repr=False)
    api_key: str = field(default="", repr=False)
    state: ServedState = "ready"
    slots: int = 1
    busy: int = 0
    waiting: int = 0
    context_length: int = 0
    content_hash: str = ""
    capabilities: tuple[str, ...] = ()
    rtt_s: float = 0.0
    tokens_per_s: float | None = None
    prompt_tokens_per_s: float | None = None
    radius: str = "local"
    price: Price = FREE
    chain: int = 0
    connect_paid: Connect | None = field(default=None, repr=False)

    @property
    def ready(self) -> bool:
        """A request can be sent there now."""
        return self.state == "ready" and self.connect is not None

    def view(self, size_bytes: int = 0) -> HostView:
        """What the router looks at; `size_bytes` is that of the model."""
        return HostView(
            node=self.node,
            here=self.here,
            rtt_s=self.rtt_s,
            slots=self.slots,
            busy=self.busy,
            waiting=self.waiting,
            context_length=self.context_length,
            tokens_per_s=self.tokens_per_s,
            prompt_tokens_per_s=self.prompt_tokens_per_s,
            capabilities=self.capabilities,
            state=self.state,
            radius=self.radius,
            size_bytes=size_bytes,
            price=self.price,
        )


@dataclass(frozen=True, slots=True)
class Served:
    """A frozen view of one model. `names` are further names it answers to; `state` and `slots` are those of this node
    where it runs here, else of the best host.
    """

    id: str
    state: ServedState
    names: tuple[str, ...] = ()
    slots: int = 1
    context_length: int = 0
    capabilities: tuple[str, ...] = ()
    created: int = 0
    size_bytes: int = 0
    detail: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)
    hosts: tuple[Host, ...] = ()

    def here(self, connect: Connect | None, api_key: str = "", *, node: str = "", content_hash: str = "") -> Served:
        """This model with the engine of this node as its host."""
        host = Host(
            node=node,
            here=True,
            connect=connect,
            api_key=api_key,
            state=self.state,
            slots=self.slots,
            context_length=self.context_length,
            content_hash=content_hash,
            capabilities=self.capabilities,
        )
        return replace(self, hosts=(host, *(other for other in self.hosts if not other.here)))

    @property
    def local(self) -> Host | None:
        """The engine of this node, if the model runs here."""
        return next((host for host in self.hosts if host.here), None)

    @property
    def ready(self) -> bool:
        """At least one host can answer."""
        return self.state == "ready" or any(host.ready for host in self.hosts)

    @property
    def near(self) -> bool:
        """No stranger needs to be asked for it: it has a host that is nearer, or none yet."""
        return not self.hosts or any(reaches(TRUSTED, host.radius) for host in self.hosts)

    def within(self, allowed: str) -> Served | None:
        """This model with those of its hosts that a request of that radius may reach; None when all are beyond it."""
        return self.at(tuple(host for host in self.hosts if reaches(allowed, host.radius)))

    def at(self, hosts: tuple[Host, ...]) -> Served | None:
        """This model with some of its hosts, in their order; None without any."""
        if len(hosts) == len(self.hosts):
            return self
        if not hosts:
            return None
        # What is said of this node counts while it is among them.
        state = self.state if hosts[0].here else min(hosts, key=lambda host: not host.ready).state
        return replace(self, state=state, hosts=hosts)

    def as_openai(self, owner: str) -> dict[str, object]:
        """The entry of `GET /v1/models`. The context length stands under the names that common clients look for;
        `meshnode` says where the model runs, and how far a request for it must be allowed to go.
        """
        return {
            "id": self.id,
            "object": "model",
            "created": self.created,
            "owned_by": owner,
            "context_length": self.context_length,
            "max_model_len": self.context_length,
            "capabilities": list(self.capabilities),
            "aliases": list(self.names),
            "status": {"value": "loaded" if self.ready else self.state},
            "meta": {"n_ctx": self.context_length, "size": self.size_bytes, **self.facts},
            "meshnode": {
                "here": self.local is not None,
                "radius": nearest(host.radius for host in self.hosts) if self.hosts else "local",
                "hosts": [
                    {
                        "node": host.node,
                        "here": host.here,
                        "radius": host.radius,
                        "state": host.state,
                        "slots": host.slots,
                        "context_length": host.context_length,
                        **_priced(host),
                    }
                    for host in self.hosts
                ],
            },
        }


def _priced(host: Host) -> dict[str, object]:
    """What a host wants, in micro-USDC per million tokens; nothing of one that is free."""
    if host.price.is_free:
        return {}
    return {"price": {"in": host.price.tokens_in, "out": host.price.tokens_out, "chain": host.chain}}


def any_ready(models: Sequence[Served]) -> Served:
    """The first model that answers, or just the first."""
    return min(models, key=lambda model: not model.ready)


def find_served(
    name: object,
    models: Sequence[Served],
    aliases: Mapping[str, str],
    choose: Callable[[Sequence[Served]], Served] = any_ready,
) -> Served:
    """The model that a request means; `choose` decides what "auto" means.

    A request without a name means the only model, or is refused when there are several. Raises NoModelServed where
    there is none at all, BadRequest, ModelNotFound with the nearest names, ModelLoading, or EngineCrashed for one that
    failed.
    """
    if not models:
        raise NoModelServed(retry_after_s=COME_BACK_S)
    if name is None:
        if len(models) != 1:
            raise BadRequest("the request names no model", fix=f'add "model": one of {_listed(models)}')
        return _ready(models[0])
    if not isinstance(name, str) or not name:
        raise BadRequest("`model` must be a text")
    wanted = aliases.get(name, name)
    if wanted == ANY_MODEL:
        return _ready(choose(models))
    for model in models:
        if wanted == model.id or wanted in model.names:
            return _ready(model)
    folded = wanted.casefold()
    for model in models:
        if folded in (other.casefold() for other in (model.id, *model.names)):
            return _ready(model)
    known = [other for model in models for other in (model.id, *model.names)] + list(aliases)
    near = difflib.get_close_matches(wanted[:200], known, 3, 0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"served here: {_listed(models)}"
    raise ModelNotFound(f"{wanted[:200]!r} is not served here", fix=hint)


def _ready(model: Served) -> Served:
    if model.ready:
        return model
    if model.state == "failed":
        failure: MeshnodeError = EngineCrashed(f"{model.id}: {model.detail}", retry_after_s=30)
        failure.http_status = 503
        raise failure
    raise ModelLoading(f"{model.id} is {model.state}", retry_after_s=2)


def _listed(models: Sequence[Served]) -> str:
    return ", ".join(model.id for model in models)
