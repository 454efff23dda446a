"""The application of the console port in front of a node that notes what it is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.responses import PlainTextResponse

from meshnode.api.access import Access
from meshnode.api.control import Call, Controls, control_app, control_calls
from meshnode.api.events import Events
from meshnode.api.metrics import Metrics
from meshnode.api.radius_control import RadiusControl
from meshnode.api.served import Served
from meshnode.api.spending_control import SpendingControl
from meshnode.errors import ModelNotFound
from tests.api.raw_http import Reply, ask
from tests.api.running import serving

TOKEN = "secret"
TERMINAL = "seen at a terminal"


class FakeMesh:
    """Answers each call with its name and what it was given."""

    def __init__(self, asked: list[object]) -> None:
        self._asked = asked

    def __getattr__(self, name: str) -> Any:
        async def answer(*given: object, **named: object) -> dict[str, Any]:
            self._asked.append((name, *given, *named.values()))
            return {"call": name, "token": "mn1abc"}

        return answer


class Console:
    """What stands behind the console port. `status` and `models` may be changed while it runs."""

    def __init__(self) -> None:
        self.port = 0
        self.models: list[Served] = []
        self.status: dict[str, Any] = {"schema": 1, "models": [], "name": "é"}
        self.asked: list[object] = []
        self.events = Events(self.get_status, run="ab")
        self.metrics = Metrics(lambda: [("meshnode_up", "Whether", {"node": "a"}, 1.0)])
        self.controls = Controls(
            load=self.noting("load"),
            unload=self.noting("unload"),
            plan=self.noting("plan"),
            stop=lambda now: self.asked.append(("stop", now)),
            token=TOKEN,
            mesh=FakeMesh(self.asked),
            public=FakeMesh(self.asked),
            radius=RadiusControl("trusted"),
            models=self.noting("models"),
            search=self.noting("search"),
            pull=self.noting("pull"),
            stop_pull=self.noting("stop_pull"),
            remove=self.noting("remove"),
            requests=lambda most: [{"id": number} for number in range(most)],
            settings=lambda: {"settings": []},
            logs=self.noting("logs"),
            agents=lambda model: {"agents": []},
            spending=SpendingControl(FakeMesh(self.asked), TERMINAL),
        )

    def get_status(self) -> dict[str, Any]:
        return dict(self.status)

    def noting(self, name: str) -> Any:
        """A call that is noted under that name; no node knows the model "nothing"."""

        async def answer(*given: object) -> dict[str, Any]:
            if given == ("nothing",):
                raise ModelNotFound("'nothing'")
            self.asked.append((name, *given))
            return {"call": name, "given": list(given)}

        return answer

    async def ask(self, path: str, body: object = None, **headers: str) -> Reply:
        """A request with the token and the terminal value."""
        given = {"x_meshnode_token": TOKEN, "x_meshnode_terminal": TERMINAL, **headers}
        return await ask(self.port, path, body, **given)

    def calls(self) -> list[Call]:
        """Every call of the port."""
        return control_calls(
            controls=self.controls, events=self.events, metrics=self.metrics, models=lambda: self.models
        )


@asynccontextmanager
async def console(gateway: Any = None, **more: Any) -> AsyncIterator[Console]:
    """The console port of a fake node; `more` replaces members of it before it starts."""
    started = Console()
    for name, value in more.items():
        setattr(started, name, value)
    app = control_app(
        controls=started.controls,
        events=started.events,
        metrics=started.metrics,
        models=lambda: started.models,
        access=Access(same_origin=True),
        site=PlainTextResponse("the page"),
        gateway=gateway or PlainTextResponse("the gateway"),
    )
    async with serving(app) as started.port:
        yield started
