"""Models in a real browser: load, unload, fetch, stop and remove, from a node that really does it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NodeProcess, StartNode
from tests.console.pages import overflows
from tests.e2e.small_models import tools_model
from tests.e2e.waiting import eventually
from tests.models.loopback_hub import LoopbackHub

pytestmark = pytest.mark.engine

REFUSED = r"status of (4\d\d|50\d)"
REPOSITORY = "ann/tiny-GGUF"


def served(page: Any, model: str) -> Any:
    """What the page shows of a model that is served, or should be."""
    return page.get_by_role("list", name="Served models").locator(f'li[data-model="{model}"]')


def ask_for(page: Any, name: str, action: str = "Load") -> None:
    """Type a name and say what is to be done with it."""
    page.get_by_label("Load or pull any model").fill(name)
    page.get_by_role("button", name=action, exact=True).click()


def confirm(page: Any, action: str) -> None:
    """Agree to what the page asks."""
    page.get_by_role("dialog").get_by_role("button", name=action).click()


def states(node: NodeProcess) -> dict[str, str]:
    """The models of a node and how they are."""
    return {model["id"]: model["state"] for model in node.status()["models"]}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    """A hub with one small model."""
    server = LoopbackHub()
    server.add(REPOSITORY, {"tiny-Q8_0.gguf": tools_model(tmp_path / "tiny.gguf").read_bytes()})
    yield server
    server.close()


@pytest.fixture
def node_with_hub(hub: LoopbackHub, start_node: StartNode, tmp_path: Path) -> NodeProcess:
    """An idle node that fetches from that hub into an empty folder."""
    environment = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(tmp_path / "hub"), "MESHNODE_THREADS": "1"}
    return start_node("--private-mesh-name", "shelf", environment=environment)


def test_a_model_is_loaded_and_unloaded(start_node, open_console) -> None:
    node = start_node("--private-mesh-name", "shelf")
    page = open_console(node, "models")
    page.get_by_text("No model is served", exact=True).wait_for()
    ask_for(page, "demo")
    served(page, "demo").get_by_text("ready").wait_for()
    words = served(page, "demo").inner_text()
    assert "on this node" in words and "0 of 4 busy" in words and "4,096 tokens" in words and "layers on" in words
    assert states(node) == {"demo": "ready"}
    disk = page.get_by_role("list", name="Models on this disk").locator('li[data-model="demo"]')
    disk.get_by_text("served").wait_for()
    served(page, "demo").get_by_role("button", name="Unload: demo").click()
    assert "stays on the disk" in page.get_by_role("dialog").inner_text()
    confirm(page, "Cancel")
    assert states(node) == {"demo": "ready"}
    served(page, "demo").get_by_role("button", name="Unload: demo").click()
    confirm(page, "Unload")
    page.get_by_text("No model is served", exact=True).wait_for()
    assert states(node) == {}
    disk.get_by_role("button", name="Load: demo").click()
    served(page, "demo").get_by_text("ready").wait_for()


def test_why_a_load_failed_stays_until_it_is_put_away(start_node, open_console, tmp_path: Path) -> None:
    node = start_node("--private-mesh-name", "shelf")
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"this is no model" * 64)
    page = open_console(node, "models")
    ask_for(page, str(file))
    failed = page.get_by_role("list", name="Served models").get_by_role("listitem")
    failed.get_by_text("failed").wait_for()
    (model,) = node.status()["models"]
    assert model["error"]["message"] in failed.inner_text()
    assert f"To do: {model['error']['fix']}" in failed.inner_text()
    before = model["since"]
    failed.get_by_role("button", name="Try").click()
    eventually(lambda: [each["since"] for each in node.status()["models"] if each["state"] == "failed"] > [before])
    failed.get_by_text("failed").wait_for()
    failed.get_by_role("button", name="Dismiss").click()
    page.get_by_text("No model is served", exact=True).wait_for()
    assert states(node) == {}


def test_a_name_that_means_nothing_is_answered_with_a_way_on(start_node, open_console) -> None:
    page = open_console(start_node("--private-mesh-name", "shelf"), "models")
    page.expected(REFUSED)
    hostile = "<img src=x onerror=alert(1)>"
    ask_for(page, hostile)
    fault = page.get_by_role("alert").filter(has_text="was not loaded")
    fault.wait_for()
    assert hostile in fault.inner_text()
    assert page.locator("main img").count() == 0
    page.get_by_role("button", name="Dismiss").click()
    fault.wait_for(state="detached")


def test_details_say_where_it_would_run(start_node, open_console, axe) -> None:
    node = start_node("--name", "kitchen")
    page = open_console(node, "models")
    details = page.get_by_role("list", name="Models on this disk").get_by_role("button", name="Details: demo")
    details.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    row = dialog.get_by_role("row").filter(has_text="kitchen")
    page.expected(REFUSED)  # where the engine of a fresh node is not there yet
    row.or_(dialog.get_by_role("alert")).first.wait_for()
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    assert details.evaluate("each => each === document.activeElement")
    ask_for(page, "demo")
    served(page, "demo").get_by_text("ready").wait_for()
    details.click()
    row.wait_for()
    assert "serves it alone" in row.inner_text()
    assert dialog.get_by_role("button", name="Load").count() == 0, "it is served already"
    axe(page)


def test_the_catalog_narrows_and_says_what_fits(demo_server, open_console) -> None:
    page = open_console(demo_server, "models")
    catalog = page.get_by_role("list", name="Catalog").get_by_role("listitem")
    catalog.first.wait_for()
    assert catalog.count() == 12
    page.get_by_role("button", name="Show all").click()
    eventually(lambda: catalog.count() > 30)
    page.get_by_label("Search the catalog").fill("coder 7b")
    eventually(lambda: catalog.count() == 1)
    words = catalog.inner_text()
    assert "qwen2.5-coder-7b" in words and "4.68 GB" in words
    assert any(verdict in words for verdict in ("fits here", "does not fit", "needs"))
    page.get_by_label("Search the catalog").fill("no such thing")
    page.get_by_text("Nothing in the catalog is like that").wait_for()


def test_a_model_is_found_fetched_stopped_taken_up_and_removed(node_with_hub, hub, open_console) -> None:
    gate = threading.Event()
    hub.before_chunk = lambda: gate.wait(20)
    page = open_console(node_with_hub, "models")
    page.get_by_label("Search the catalog").fill("tiny")
    page.get_by_role("button", name="Search").click()
    found = page.get_by_role("list", name="Found on Hugging Face").get_by_role("listitem")
    assert "100 downloads" in found.inner_text()
    found.get_by_role("button", name=f"Pull: {REPOSITORY}").click()
    page.get_by_role("progressbar", name=f"Downloading {REPOSITORY}").wait_for()
    found.get_by_text("downloading").wait_for()
    page.get_by_role("button", name=f"Stop: {REPOSITORY}").click()
    page.get_by_text(f"{REPOSITORY} was stopped").wait_for()
    gate.set()
    page.get_by_role("button", name=f"Go on: {REPOSITORY}").click()
    name = f"{REPOSITORY}:Q8_0"
    disk = page.get_by_role("list", name="Models on this disk").locator(f'li[data-model="{name}"]')
    disk.get_by_role("button", name=f"Load: {name}").click()
    served(page, name).get_by_text("ready").wait_for()
    assert disk.get_by_role("button", name="Remove").is_disabled()
    served(page, name).get_by_role("button", name="Unload").click()
    confirm(page, "Unload")
    disk.get_by_role("button", name="Remove").click()
    assert "MB" in page.get_by_role("dialog").inner_text()
    confirm(page, "Remove")
    disk.wait_for(state="detached")


def test_a_download_that_fails_says_why(node_with_hub, hub, open_console) -> None:
    hub.repositories[REPOSITORY].status = 503
    page = open_console(node_with_hub, "models")
    ask_for(page, REPOSITORY, "Pull")
    page.get_by_text("is not downloaded").wait_for()
    (download,) = node_with_hub.status()["downloads"]
    assert download["error"]["message"] in page.locator("main").inner_text()
    assert download["error"]["fix"] in page.locator("main").inner_text()
    page.get_by_role("button", name="Dismiss").click()
    page.get_by_text("is not downloaded").wait_for(state="detached")
    assert node_with_hub.status()["downloads"] == []


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 360)])
def test_it_is_accessible_and_fits(demo_server, open_console, axe, theme: str, width: int) -> None:
    page = open_console(demo_server, "models", theme=theme, width=width)
    page.get_by_role("list", name="Catalog").wait_for()
    axe(page)
    assert not overflows(page)
