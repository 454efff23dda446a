"""What the console asks of a node beside serving and mesh: every callable is one the control API knows, and answers."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meshnode.api.control import Controls
from meshnode.api.gate import Gates
from meshnode.api.served import Served
from meshnode.config import Places, Settings
from meshnode.desk import Desk, DeskParts
from meshnode.errors import ModelError, ModelNotFound
from meshnode.serving import Serving
from meshnode.tasks import TaskBoard
from meshnode.telemetry import ProblemBoard, Progress, silent

pytestmark = pytest.mark.anyio

SERVED = [
    Served("small", "ready", slots=1, context_length=512, capabilities=("completion", "chat")),
    Served("later", "loading", slots=1, context_length=512, capabilities=("completion", "chat")),
]


class Stage:
    """A Desk, the board of its tasks, and how often it told of a change."""

    def __init__(self, folder: Path) -> None:
        self.changes = 0
        settings = Settings(api_key="canary")
        self.places = Places(folder / "home", folder / "cache", folder / "config.toml")
        self.tasks = TaskBoard()
        serving = Serving(
            settings=settings,
            places=self.places,
            problems=ProblemBoard(),
            gates=Gates(capacity=1, timeout_s=1),
            report=silent,
            tell=lambda *_: None,
            changed=self._count,
        )
        self.desk = Desk(
            DeskParts(
                settings=settings,
                places=self.places,
                serving=serving,
                tasks=self.tasks,
                served=lambda: SERVED,
                lenders=tuple,
                api_url=lambda: "http://localhost:9337",
                changed=self._count,
            )
        )

    def _count(self) -> None:
        self.changes += 1


@pytest.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    made = Stage(tmp_path)
    yield made
    await made.desk.close()


async def test_it_hands_the_control_api_what_that_knows(stage: Stage) -> None:
    known = {item.name for item in dataclasses.fields(Controls)}
    assert set(stage.desk.controls()) == known - {
        "load",
        "unload",
        "plan",
        "stop",
        "token",
        "mesh",
        "spending",
        "public",
        "radius",
        "requests",
    }


async def test_agents_are_told_of_models_that_answer_and_never_of_the_key(stage: Stage) -> None:
    facts = stage.desk.agents()
    assert facts["base_url"] == "http://localhost:9337" and facts["models"] == ["small"]
    assert {"codex", "opencode", "pi", "claude", "goose", "aider"} <= {agent["id"] for agent in facts["agents"]}
    assert "canary" not in str(facts) and "MESHNODE_API_KEY" in str(facts)


async def test_models_settings_and_log_are_there_before_the_devices_are_known(stage: Stage) -> None:
    controls = stage.desk.controls()
    models = await controls["models"]()
    (demo,) = models["on_disk"]
    assert demo["alias"] == "demo" and demo["fit"]["verdict"] == "unknown"
    assert len(models["catalog"]) > 5
    settings = controls["settings"]()
    assert settings["paths"]["home"] == str(stage.places.home) and "canary" not in str(settings)
    assert (await controls["logs"]("node", 10))["lines"] == []


async def test_work_under_way_is_shown(stage: Stage) -> None:
    assert stage.desk.facts() == {"tasks": [], "downloads": []}
    stage.tasks(Progress("engine", "compiling", 1, 10))
    ((task, text),) = [(each["task"], each["text"]) for each in stage.desk.facts()["tasks"]]
    assert (task, text) == ("engine", "compiling")


async def test_names_that_nobody_knows_and_models_that_cannot_go(stage: Stage) -> None:
    controls = stage.desk.controls()
    with pytest.raises(ModelNotFound):
        await controls["pull"]("nosuchthing")
    with pytest.raises(ModelError, match="ships with meshnode"):
        await controls["remove"]("demo")
