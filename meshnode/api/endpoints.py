"""What a caller may reach of a llama-server: everything else it has stays out of sight.

llama-server has slots, adapters, properties and a router besides; none of that is reachable through the gateway, nor
by a peer. Peers are served the endpoints of callers and two more, pure functions of the model's vocabulary and
template, which a gateway needs to continue an answer that another node began. Strangers are served less than callers.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path that is forwarded. `takes_slot` is False for those that only count or format; `needs` is what a
    model must be able to do, in the words of its capabilities.
    """

    path: str
    takes_slot: bool = True
    multipart: bool = False
    needs: str = ""


def _by_path(*endpoints: Endpoint) -> dict[str, Endpoint]:
    return {endpoint.path: endpoint for endpoint in endpoints}


ENDPOINTS = _by_path(
    Endpoint("/v1/chat/completions", needs="completion"),
    Endpoint("/v1/completions", needs="completion"),
    Endpoint("/v1/responses", needs="completion"),
    Endpoint("/v1/messages", needs="completion"),
    Endpoint("/v1/embeddings", needs="embedding"),
    Endpoint("/v1/rerank", needs="rerank"),
    Endpoint("/v1/audio/transcriptions", multipart=True),
    Endpoint("/v1/messages/count_tokens", takes_slot=False),
    Endpoint("/v1/chat/completions/input_tokens", takes_slot=False),
    Endpoint("/v1/responses/input_tokens", takes_slot=False),
)
"""For callers of the gateway, all by POST."""

PEER_ENDPOINTS = ENDPOINTS | _by_path(Endpoint("/tokenize", takes_slot=False))
"""For other nodes, all by POST."""

PUBLIC_PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
)
PUBLIC_ENDPOINTS = {path: ENDPOINTS[path] for path in PUBLIC_PATHS}
"""For strangers, all by POST: what takes a slot, as that is what is counted and bounded (guest_bounds.py)."""
COUNTING_ENDPOINTS = {path: endpoint for path, endpoint in PEER_ENDPOINTS.items() if not endpoint.takes_slot}
"""For strangers as well, as requests but no answers: a gateway needs them to go on with an answer of another node."""


def allowed(method: str, path: str) -> bool:
    """Whether a peer may ask for this. The path is taken literally: no query, no dots, no escapes."""
    return method == "POST" and path in PEER_ENDPOINTS
