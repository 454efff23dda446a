"""How far a request may go; which model it means, of those that hosts within that radius serve; and words for one that
only others serve.

The radius is what the caller of our own door says in a header, or the default of the node. Nothing else of a request is
looked at for it, and it is passed on to nobody.

Hosts beyond the radius are taken away before anything is looked up, so that no name, state or capability that a
stranger states can decide anything about a request that may not go to strangers. Only when nothing is found they are
looked at once more, and only to say how many could answer. So it is with hosts that want to be paid more than this
node pays: what they offer is nothing to choose from, until nothing else is found and the price is the answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from meshnode.api.endpoints import Endpoint
from meshnode.api.paying import ONLY_FREE, Affording
from meshnode.api.served import ANY_MODEL, Served, find_served
from meshnode.core.radius import HEADER, PUBLIC, RADII, Radius, parse_header, reaches
from meshnode.errors import (
    BadRequest,
    EngineCrashed,
    Forbidden,
    MeshnodeError,
    ModelNotFound,
    NoModelServed,
    OutOfRadius,
)

Choose = Callable[[Sequence[Served]], Served]
RADIUS_HEADER = HEADER.encode()
OF_OWNER = "meshnode.of_owner"
"""Member of a scope that says: this caller has shown the token of the node. No header can set it."""


class CannotDo(BadRequest):
    """The model is not made for that."""


def asked_radius(scope: Mapping[str, Any], default: Radius, *, may_widen: bool) -> Radius:
    """How far the request with this head may go.

    Raises BadRequest for a header that names no radius, Forbidden for one beyond the default by a caller that may not
    widen it: a web page that nobody has given a key.
    """
    try:
        radius = parse_header((value for name, value in scope["headers"] if name == RADIUS_HEADER), default)
    except ValueError as reason:
        raise BadRequest(f"{HEADER}: {reason}", fix="send it once: local, trusted or public") from None
    if not may_widen and not reaches(default, radius):
        raise Forbidden(
            f"a web page may send nothing further than {default}",
            fix="set the radius in the console, or protect the API by a key (MESHNODE_API_KEY) that the page sends",
        )
    return radius


def find_reachable(
    name: object,
    models: Sequence[Served],
    aliases: Mapping[str, str],
    choose: Choose,
    *,
    endpoint: Endpoint,
    radius: str,
    affording: Affording = ONLY_FREE,
) -> Served:
    """The model that a request of this radius means, with the hosts that it may reach and pay.

    Raises what find_served raises, BadRequest where the model cannot do what the endpoint asks for, and in place of any
    of these but ModelLoading the refusal of the purse where nodes that want to be paid could answer, OutOfRadius where
    nodes that are further away could.
    """
    within = [found for model in models if (found := model.within(radius)) is not None]
    reachable = [found for model in within if (found := affording.within(model)) is not None]
    # A name means a nearer model before a stranger's, whichever of its names it is.
    reachable.sort(key=lambda model: not model.near)
    if name is None and reachable and reachable[0].near:
        reachable = [model for model in reachable if model.near]
    try:
        return _able(find_served(name, reachable, aliases, choose), endpoint)
    except (ModelNotFound, NoModelServed, EngineCrashed, CannotDo):
        refusal = None
        for some, why in ((within, affording.refusal), (models, partial(out_of_radius, radius=radius))):
            refused = [model for model in some if why(model) is not None]
            with suppress(MeshnodeError):
                wanted = ANY_MODEL if name is None else name
                refusal = refusal or why(_able(find_served(wanted, refused, aliases, choose), endpoint))
        if refusal is None:
            raise
    raise refusal


def out_of_radius(model: Served, radius: str) -> OutOfRadius | None:
    """The refusal of a request that may not go where the model is; None when nobody beyond could answer either."""
    counts = _beyond(model, radius)
    if not counts:
        return None
    words = [f"{counts[far]} {far}" for far in RADII if counts[far]]
    nodes = "node serves" if sum(counts.values()) == 1 else "nodes serve"
    needed = next(far for far in RADII if counts[far])
    fix = "" if needed == PUBLIC else f"send the header {HEADER}: {needed}"
    detail = f"{' and '.join(words)} {nodes} {model.id}, and this request may go no further than {radius}"
    return OutOfRadius(detail, fix=fix)


def _beyond(model: Served, radius: str) -> Counter[str]:
    """How many hosts that are ready are beyond a radius, by their own."""
    return Counter(host.radius for host in model.hosts if host.ready and not reaches(radius, host.radius))


def _able(model: Served, endpoint: Endpoint) -> Served:
    if endpoint.needs and model.capabilities and endpoint.needs not in model.capabilities:
        able = ", ".join(model.capabilities)
        fix = f"send it to a model that can do {endpoint.needs}: GET /v1/models shows what each one can"
        raise CannotDo(f"{endpoint.path} needs {endpoint.needs}, and {model.id} can do {able}", fix=fix)
    return model
