"""What people ask of a node at its console, beside serving and the mesh: models to choose from, downloads, long work
that is under way, settings, the log, recipes of agents. Hands each to the control API as a callable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from meshnode.agents.recipe import AgentModel
from meshnode.agents.recipes import agents_facts
from meshnode.api.served import Served
from meshnode.capacity import Lender
from meshnode.config import Places, Settings, settings_facts
from meshnode.downloads import Downloads
from meshnode.journal import tail
from meshnode.planning import wishes_of
from meshnode.serving import Serving
from meshnode.shelf import Shelf, ShelfParts
from meshnode.tasks import TaskBoard


@dataclass(frozen=True, slots=True, kw_only=True)
class DeskParts:
    """What a Desk is made of. `served` are the models that can be asked for, `lenders` the members that lend memory to
    splits, `api_url` the address of the API without its /v1; all are called in the event loop and do not block."""

    settings: Settings
    places: Places
    serving: Serving
    tasks: TaskBoard
    served: Callable[[], Sequence[Served]]
    lenders: Callable[[], Sequence[Lender]]
    api_url: Callable[[], str]
    changed: Callable[[], None]


class Desk:
    """See the module; `close` before the node ends."""

    def __init__(self, parts: DeskParts) -> None:
        self._parts = parts
        self._downloads = Downloads(changed=parts.changed)
        self._shelf = Shelf(
            ShelfParts(
                budget=parts.serving.room,
                wishes=wishes_of(parts.settings),
                entries=parts.serving.entries,
                speeds=lambda: parts.serving.speeds,
                lenders=parts.lenders,
                reads=parts.serving.reads,
                fetching=self._downloads.is_running,
                removed=parts.changed,
            )
        )

    def controls(self) -> dict[str, Callable[..., Any]]:
        """The members of `Controls` that are answered here."""
        return {
            "models": self._shelf.models,
            "search": self._shelf.search,
            "pull": self._downloads.pull,
            "stop_pull": self._downloads.stop,
            "remove": self._shelf.remove,
            "settings": partial(settings_facts, self._parts.settings, self._parts.places),
            "logs": partial(tail, self._parts.places),
            "agents": self.agents,
        }

    def agents(self, model: str = "") -> dict[str, Any]:
        """The answer of `GET /api/agents`, filled in with `model` where that is served."""
        models = [
            AgentModel(each.id, each.context_length, each.capabilities) for each in self._parts.served() if each.ready
        ]
        return agents_facts(self._parts.api_url(), models, self._parts.settings.api_key is not None, model)

    def facts(self) -> dict[str, Any]:
        """The members `tasks` and `downloads` of /api/status."""
        return {"tasks": self._parts.tasks.facts(), "downloads": self._downloads.facts()}

    async def close(self) -> None:
        """Stop the downloads; what came stays."""
        await self._downloads.close()
