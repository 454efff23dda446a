"""The view Memory in a real browser: what a real node holds as models come and go, and every kind of machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.console.fake_mesh import GIB, a_peer, a_status, fake_mesh
from tests.console.pages import overflows
from tests.e2e.meshes import SMALL, invite_of

pytestmark = [pytest.mark.engine, pytest.mark.timeout(120)]

ENOUGH_FOR_A_NODE_S = 30
GPU = {
    "device": "CUDA0",
    "name": "RTX 4090",
    "kind": "gpu",
    "unified": False,
    "total_bytes": 24 * GIB,
    "parts": [
        {"kind": "weights", "bytes": 8 * GIB, "model": "large"},
        {"kind": "kv", "bytes": 2 * GIB, "model": "large"},
        {"kind": "kv", "bytes": GIB, "model": "small"},
        {"kind": "compute", "bytes": GIB, "model": "large"},
        {"kind": "lent", "bytes": 3 * GIB, "model": "far"},
        {"kind": "other", "bytes": 2 * GIB, "model": ""},
        {"kind": "reserved", "bytes": GIB, "model": ""},
        {"kind": "free", "bytes": 6 * GIB, "model": ""},
    ],
}
UNIFIED = {
    "device": "host",
    "name": "Apple M3",
    "kind": "memory",
    "unified": True,
    "total_bytes": 32 * GIB,
    "parts": [{"kind": "free", "bytes": 32 * GIB, "model": ""}],
}
SILENT = {"device": "Vulkan0", "name": "Card", "kind": "gpu", "unified": False, "total_bytes": 0, "parts": []}


@pytest.fixture
def fake() -> Iterator[Any]:
    """`fake(status)` is a running FakeMesh."""
    with ExitStack() as stack:
        yield lambda status: stack.enter_context(fake_mesh(status))


def rows(page: Any, caption: str) -> list[list[str]]:
    """The cells of a table."""
    found = page.get_by_role("table", name=caption).locator("tbody tr")
    return [[cell.strip() for cell in row.locator("td").all_inner_texts()] for row in found.all()]


def test_bars_and_machines_follow_what_real_nodes_do(start_node, open_console) -> None:
    founder = start_node("--name", "founder", environment=SMALL)
    page = open_console(founder, "memory")
    bar = page.locator(".stack-bar")
    bar.wait_for(timeout=ENOUGH_FOR_A_NODE_S * 1000)
    assert "Weights" not in bar.get_attribute("aria-label") and "Free" in bar.get_attribute("aria-label")
    page.get_by_text("No model holds memory here").wait_for()
    page.get_by_text("No other machine shares memory").wait_for()

    assert founder.command("load", "demo").returncode == 0
    page.locator(".stack .legend", has_text="KV cache · demo").wait_for(timeout=ENOUGH_FOR_A_NODE_S * 1000)
    facts = founder.status()["memory"]
    assert sum(part["bytes"] for part in facts[0]["parts"]) == facts[0]["total_bytes"]
    held = rows(page, "Memory by model and device")
    assert "demo" in [row[0] for row in held] and all(row[-1].endswith("B") for row in held)

    start_node("--name", "second", "--join", invite_of(founder), environment=SMALL)
    others = page.get_by_role("table", name="Memory of the other machines")
    others.wait_for(timeout=ENOUGH_FOR_A_NODE_S * 1000)
    assert [row[:2] for row in rows(page, "Memory of the other machines")] == [["second", "main memory"]]

    assert founder.command("unload", "demo").returncode == 0
    page.get_by_text("No model holds memory here").wait_for(timeout=ENOUGH_FOR_A_NODE_S * 1000)


def test_a_client_holds_no_memory_and_says_so(start_node, open_console, axe) -> None:
    founder = start_node("--name", "founder", environment=SMALL)
    client = start_node("--client", "--join", invite_of(founder), environment=SMALL)
    page = open_console(client, "memory")
    page.get_by_text("This node holds no memory for models").wait_for()
    axe(page)


def test_every_part_has_a_number_in_words(fake, open_console) -> None:
    page = open_console(fake(a_status(memory=[GPU])), "memory")
    words = page.get_by_role("img").get_attribute("aria-label")
    assert words.startswith("RTX 4090: Weights · large 8.59 GB, ") and words.endswith("Free 6.44 GB of 25.8 GB")
    legend = page.locator(".stack .legend li").all_inner_texts()
    assert len(legend) == len(GPU["parts"])
    assert all(re.search(r"\d (GB|MB)$", text.strip()) for text in legend)
    card = page.locator(".card", has=page.get_by_role("heading", name="RTX 4090"))
    assert "GPU, CUDA0 to the engine" in card.inner_text()
    assert [text.split("\n")[1] for text in card.locator(".stat").all_inner_texts()] == [
        "16.1 GB",
        "6.44 GB",
        "25.8 GB",
    ]
    widths = [part.bounding_box()["width"] for part in page.locator(".stack-part").all()]
    assert widths[0] == pytest.approx(8 * widths[3], rel=0.05), "as long as they are large"
    page.get_by_text("What the parts are").click()
    assert page.locator(".meanings dd").first.is_visible()


def test_each_model_is_told_apart(fake, open_console) -> None:
    page = open_console(fake(a_status(memory=[GPU])), "memory")
    found = {row[0]: row[2:] for row in rows(page, "Memory by model and device")}
    assert found["large"] == ["8.59 GB", "2.15 GB", "1.07 GB", "–", "11.8 GB"]
    assert found["small"] == ["–", "1.07 GB", "–", "–", "1.07 GB"]
    assert found["far"] == ["–", "–", "–", "3.22 GB", "3.22 GB"]
    page.get_by_role("button", name="Weights").click()
    assert rows(page, "Memory by model and device")[-1][0] == "large"


def test_unified_and_silent_devices_say_what_they_are(fake, open_console) -> None:
    page = open_console(fake(a_status(memory=[UNIFIED, SILENT])), "memory")
    main = page.locator("main").inner_text()
    assert "unified memory: processor and GPU share it" in main
    assert "This device does not tell how much memory it has." in main
    assert page.locator(".stack").count() == 1


def test_other_machines_are_listed_as_they_state_it(fake, open_console) -> None:
    dead = a_peer(3, state="dead", reachable=False)
    page = open_console(fake(a_status(a_peer(1), a_peer(4), dead, memory=[GPU])), "memory")
    assert rows(page, "Memory of the other machines") == [
        ["machine-1", "RTX 4090", "25.8 GB", "9.66 GB", "63 %"],
        ["machine-1", "main memory", "68.7 GB", "42.9 GB", "38 %"],
    ], "neither a client nor a dead node lends"
    assert "52.6 GB of 94.5 GB are free there" in page.locator("main").inner_text()


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"state": "starting"}, "The node is looking at its devices"),
        ({}, "Nothing is known of this machine's memory"),
        ({"memory": None}, "Nothing is known of this machine's memory"),
        ({"mesh": None}, "Nothing is known of this machine's memory"),
    ],
)
def test_a_node_that_knows_nothing_yet_says_so(fake, open_console, members, words) -> None:
    page = open_console(fake(a_status(**members)), "memory", wait=False)
    page.get_by_text(words).wait_for()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_it_is_accessible_and_fits_with_hostile_names(fake, open_console, axe, theme, width) -> None:
    name = "<img src=x onerror=alert(1)>\u202e" + "W" * 300
    hostile = GPU | {"name": name, "parts": [part | {"model": part["model"] and name} for part in GPU["parts"]]}
    devices = [{"name": name, "total_bytes": 0, "free_bytes": 1 << 60}, {"name": "", "total_bytes": 1, "free_bytes": 9}]
    peers = [a_peer(number, name=name, devices=devices) for number in (1, 2)]
    page = open_console(fake(a_status(*peers, memory=[hostile, UNIFIED, SILENT])), "memory", theme=theme, width=width)
    page.locator(".stack").first.wait_for()
    axe(page)
    assert page.locator("main img").count() == 0 and "\u202e" not in page.locator("main").inner_html()
    assert not overflows(page)
