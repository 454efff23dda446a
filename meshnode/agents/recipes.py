"""The programs that are known, in the order of the list that people see.

The shapes are those of the programs' own documentation and were tried against the versions in tools/agents.json.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from meshnode.agents import clients, coding
from meshnode.agents.recipe import AgentModel, Endpoint, Recipe

MAKERS: dict[str, Callable[[Endpoint], Recipe]] = {
    "goose": coding.goose,
    "opencode": coding.opencode,
    "pi": coding.pi,
    "claude": coding.claude,
    "codex": coding.codex,
    "aider": coding.aider,
    "openwebui": clients.open_webui,
    "continue": clients.continue_dev,
    "openai-python": clients.openai_python,
    "openai-javascript": clients.openai_javascript,
    "curl": clients.curl,
}
LAUNCHABLE = ("goose", "opencode", "pi", "claude", "codex", "aider")


def recipes(base_url: str, models: Sequence[AgentModel], *, key: str | None, model: str = "") -> list[Recipe]:
    """Every recipe, for a node at `base_url` (without /v1) that serves `models`.

    `model` is the id to use; without it the first that chats, and in an empty list a name that says what to fill in.
    Of `key` only counts whether there is one.
    """
    endpoint = endpoint_of(base_url, models, needs_key=key is not None, model=model)
    return [make(endpoint) for make in MAKERS.values()]


def recipe(name: str, base_url: str, models: Sequence[AgentModel], *, key: str | None, model: str = "") -> Recipe:
    """The one called `name`. Raises KeyError."""
    return MAKERS[name](endpoint_of(base_url, models, needs_key=key is not None, model=model))


def endpoint_of(base_url: str, models: Sequence[AgentModel], *, needs_key: bool, model: str = "") -> Endpoint:
    """See `recipes`."""
    known = {item.id: item for item in models}
    chatting = [item for item in models if "chat" in item.capabilities]
    chosen = known.get(model) or (AgentModel(model) if model else None) or next(iter(chatting), AgentModel("MODEL"))
    return Endpoint(base_url.rstrip("/").removesuffix("/v1"), chosen, tuple(models), needs_key)


def agents_facts(base_url: str, models: Sequence[AgentModel], key_set: bool, model: str = "") -> dict[str, Any]:
    """The answer of GET /api/agents: {"base_url", "models": [ids], "agents": [recipes]}; no key in it."""
    chosen = model if any(each.id == model for each in models) else ""
    made = recipes(base_url, models, key=KEY_SET if key_set else None, model=chosen)
    return {
        "base_url": base_url.rstrip("/").removesuffix("/v1"),
        "models": [each.id for each in models],
        "agents": [item.as_dict() for item in made],
    }


KEY_SET = "set"
