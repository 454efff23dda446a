"""The web applications of a node, made of its settings and parts: the model API, the control API, requests of peers
and of strangers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from meshnode.api.access import Access
from meshnode.api.activity import Activity
from meshnode.api.app import ASGIApp, api_app, gateway_app
from meshnode.api.charging import Till
from meshnode.api.control import Controls, control_app
from meshnode.api.events import Events
from meshnode.api.gate import Gates
from meshnode.api.guest_requests import GuestRequests, Trail
from meshnode.api.inference import Answered, Inference, nobody, trusted_by_default
from meshnode.api.metrics import Metrics
from meshnode.api.paying import Purse
from meshnode.api.peer_requests import PeerRequests
from meshnode.api.record import Record
from meshnode.api.request import Limits
from meshnode.api.served import Served
from meshnode.api.x402_cashier import Cashier
from meshnode.api.x402_door import X402Door
from meshnode.config import Settings
from meshnode.console.site import site
from meshnode.core.guests import GuestLimits, Guests
from meshnode.core.radius import Radius
from meshnode.core.routing import Router
from meshnode.wire.address import Address


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorParts:
    """What callers meet: `here` are the models of this node, `models` those that can be asked for; `stopping` says
    that nothing new is taken on. `activity` knows the requests under way at all doors. `radius`, `pages_may_widen`,
    `answered` and `purse` are those of Inference."""

    settings: Settings
    gates: Gates
    here: Callable[[], Sequence[Served]]
    models: Callable[[], Sequence[Served]]
    stopping: Callable[[], bool]
    activity: Activity = field(default_factory=Activity)
    radius: Callable[[], Radius] = trusted_by_default
    pages_may_widen: bool = False
    answered: Answered = nobody
    purse: Purse | None = None


def gateway_door(parts: DoorParts, *, node: str, finished: Callable[[Record], None]) -> ASGIApp:
    """What answers for models; the doors of both ports lead to it. `node` is the id in hex digits; `finished` is told
    of every request."""
    settings = parts.settings
    inference = Inference(
        models=parts.models,
        gates=parts.gates,
        limits=_limits(settings),
        headers={"x-meshnode-node": node[:10], "x-meshnode-radius": "local"},
        finished=finished,
        router=Router(random.Random()),
        activity=parts.activity,
        radius=parts.radius,
        pages_may_widen=parts.pages_may_widen,
        answered=parts.answered,
        purse=parts.purse,
    )
    return gateway_app(
        inference=inference,
        models=parts.models,
        aliases=settings.aliases,
        owner=f"meshnode-{node[:10]}",
        stopping=parts.stopping,
    )


def access_of(settings: Settings) -> Access:
    """Who may call the API port."""
    return Access(
        api_key=settings.api_key,
        public=settings.listen_all,
        hosts=settings.allowed_hosts,
        origins=settings.allowed_origins,
    )


def api_door(parts: DoorParts, *, gateway: ASGIApp) -> ASGIApp:
    """The application of the API port."""
    return api_app(gateway, access_of(parts.settings))


def paid_door(app: ASGIApp, parts: DoorParts, *, cashier: Cashier, guests: GuestRequests) -> X402Door:
    """The same for strangers over plain HTTP who pay: they are served as `guests` are, all others by `app`."""
    return X402Door(
        app,
        access_of(parts.settings),
        cashier=cashier,
        strangers=guests.answer,
        models=parts.here,
        longest_answer=parts.settings.public_answer,
    )


def console_door(
    parts: DoorParts, *, controls: Controls, events: Events, metrics: Metrics, gateway: ASGIApp
) -> ASGIApp:
    """The application of the console port: it asks for the token of the node where the API port asks for a key."""
    return control_app(
        controls=controls,
        events=events,
        metrics=metrics,
        models=parts.models,
        access=Access(hosts=parts.settings.allowed_hosts, same_origin=True),
        site=site(controls.token),
        gateway=gateway,
    )


def peer_door(parts: DoorParts, *, finished: Callable[[Record], None]) -> PeerRequests:
    """What answers the requests of other members: from this node's own engines only."""
    return PeerRequests(
        models=parts.here,
        gates=parts.gates,
        limits=_limits(parts.settings),
        finished=finished,
        stopping=parts.stopping,
        activity=parts.activity,
    )


def guests_of(settings: Settings) -> Guests:
    """The strangers of a node, bounded as its settings say."""
    return Guests(
        GuestLimits(
            requests=settings.public_requests, tokens=settings.public_tokens, answer_tokens=settings.public_answer
        )
    )


def guest_door(
    parts: DoorParts,
    guests: Guests,
    audit: Trail,
    finished: Callable[[Record], None],
    *,
    address_of: Callable[[bytes], Address | None],
    is_near: Callable[[bytes], bool],
    till: Till | None = None,
) -> GuestRequests:
    """What answers the requests of strangers: from this node's own engines only, after everyone nearer. `address_of`
    is the validated address of a linked node; `is_near` says that a node is our own or a friend's. With a `till`
    strangers pay for what has a price.
    """
    return GuestRequests(
        models=parts.here,
        gates=parts.gates,
        guests=guests,
        slots=parts.settings.public_slots,
        trail=audit,
        finished=finished,
        stopping=parts.stopping,
        activity=parts.activity,
        address_of=address_of,
        is_near=is_near,
        till=till,
    )


def _limits(settings: Settings) -> Limits:
    return Limits(settings.max_body, settings.ping_interval, settings.aliases, stall_s=settings.stall_timeout)
