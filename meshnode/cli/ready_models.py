"""Which model a program is to use: among those of /api/status that are ready, by name or the first that chats."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from meshnode.agents.recipe import AgentModel
from meshnode.cli.client import RunningNode
from meshnode.cli.render import printable
from meshnode.errors import MeshnodeError, ModelError, ModelLoading, ModelNotFound


def models_of(status: dict[str, Any]) -> list[AgentModel]:
    """The models that are ready, of /api/status."""
    return [
        AgentModel(str(entry["id"]), int(entry.get("context_length") or 0), tuple(entry.get("capabilities") or ()))
        for entry in status["models"]
        if entry["state"] == "ready"
    ]


def other_names(node: RunningNode) -> dict[str, set[str]]:
    """What callers may also say for a model, by its id; {} where the node does not tell."""
    try:
        listed = node.call("GET", "/v1/models")["data"]
        return {str(entry["id"]): {str(name) for name in entry.get("aliases") or ()} for entry in listed}
    except (MeshnodeError, LookupError, TypeError):
        return {}


def choose(status: dict[str, Any], name: str | None, others: Mapping[str, set[str]] | None = None) -> AgentModel:
    """The model that is called `name`, or the first that is ready and chats.

    A name means an id, a canonical name, either without `file:` or the owner, the path of a file, or one of `others`
    (see `other_names`). Raises ModelNotFound, ModelLoading, ModelError.
    """
    ready = models_of(status)
    if name is None:
        chosen = next((model for model in ready if "chat" in model.capabilities), None)
        if chosen is None:
            raise _nothing_ready(status)
        return chosen
    wanted = {name, f"file:{PurePath(name).stem}"} if name.endswith(".gguf") else {name}
    entries = [entry for entry in status["models"] if wanted & _names(entry, others)]
    for entry in entries:
        for model in ready:
            if model.id == entry["id"]:
                return _chatting(model)
    if entries:
        raise ModelLoading(f"{name} is {entries[0]['state']}", fix="wait for it: meshnode load " + shlex.quote(name))
    known = sorted({other for entry in status["models"] for other in _names(entry, others)})
    near = difflib.get_close_matches(name, known, 1)
    fix = (
        f"did you mean {near[0]}?" if near else f"serve it: meshnode load {shlex.quote(name)}; meshnode ps shows others"
    )
    raise ModelNotFound(printable(name, 200), fix=fix)


def _names(entry: dict[str, Any], others: Mapping[str, set[str]] | None) -> set[str]:
    full = {str(entry["id"]), str(entry.get("canonical", entry["id"])), *(others or {}).get(str(entry["id"]), ())}
    return full | {name.removeprefix("file:") for name in full} | {name.rpartition("/")[2] for name in full}


def _chatting(model: AgentModel) -> AgentModel:
    if "chat" not in model.capabilities:
        raise ModelError(f"{model.id} does not chat: it can {', '.join(model.capabilities) or 'nothing'}")
    return model


def _nothing_ready(status: dict[str, Any]) -> MeshnodeError:
    waiting = [entry for entry in status["models"] if entry["state"] != "ready"]
    if waiting:
        words = f"{waiting[0]['id']} is {waiting[0]['state']}"
        return ModelLoading(printable(f"{words}: {waiting[0].get('detail') or ''}".rstrip(": "), 300))
    return ModelNotFound("this node reaches no model that chats", fix="load one: meshnode load demo")
