"""What the gateway knows of a model that this node can answer for, and how callers name it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from meshnode.api.upstream import Connect
from meshnode.errors import BadRequest, EngineCrashed, MeshnodeError, ModelLoading, ModelNotFound

ServedState = Literal["loading", "ready", "restarting", "failed"]
ANY_MODEL = "auto"


@dataclass(frozen=True, slots=True)
class Served:
    """A frozen view of one model. `names` are further names it answers to; `slots` how many requests at a time."""

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
    connect: Connect | None = None
    api_key: str = field(default="", repr=False)

    def as_openai(self, owner: str) -> dict[str, object]:
        """The entry of `GET /v1/models`. The context length stands under the names that common clients look for."""
        return {
            "id": self.id,
            "object": "model",
            "created": self.created,
            "owned_by": owner,
            "context_length": self.context_length,
            "max_model_len": self.context_length,
            "capabilities": list(self.capabilities),
            "aliases": list(self.names),
            "status": {"value": "loaded" if self.state == "ready" else self.state},
            "meta": {"n_ctx": self.context_length, "size": self.size_bytes, **self.facts},
        }


def find_served(name: object, models: Sequence[Served], aliases: Mapping[str, str]) -> Served:
    """The model that a request means.

    A request without a name means the only model, or is refused when there are several. Raises BadRequest,
    ModelNotFound with the nearest names, ModelLoading, or EngineCrashed for one that failed.
    """
    if name is None:
        if len(models) != 1:
            raise BadRequest("the request names no model", fix=f'add "model": one of {_listed(models)}')
        return _ready(models[0])
    if not isinstance(name, str) or not name:
        raise BadRequest("`model` must be a text")
    wanted = aliases.get(name, name)
    if wanted == ANY_MODEL and models:
        return _ready(min(models, key=lambda model: model.state != "ready"))
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
    if model.state == "ready":
        return model
    if model.state == "failed":
        failure: MeshnodeError = EngineCrashed(f"{model.id}: {model.detail}", retry_after_s=30)
        failure.http_status = 503
        raise failure
    raise ModelLoading(f"{model.id} is {model.state}", retry_after_s=2)


def _listed(models: Sequence[Served]) -> str:
    return ", ".join(model.id for model in models) or "none yet"
